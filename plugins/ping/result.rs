//! The result of a `ping`.

use scouter_sdk::prelude::*;
use scouter_sdk::stats::{Statistics, ms, ms_text};

use crate::Options;

/// Bytes of the ICMP header.
const ICMP_HEADER: u32 = 8;

/// Result of a ping.
#[derive(Clone, Serialize, JsonSchema)]
pub struct PingResult {
    /// The option, unchanged.
    dst: String,
    /// Address of the target.
    address: String,
    /// 4 or 6.
    family: u8,
    /// Requests that this host sent.
    sent: u32,
    /// Requests with a reply before the timeout.
    recv: u32,
    /// Bytes of data in each request.
    payload_size: u16,
    /// Bytes of each IP packet.
    packet_size: u32,
    /// Requests without a reply whose timeout has not passed: 0 in a test that has ended by itself.
    in_flight: u32,
    /// Percent of the requests without a reply, of those that are not in flight; null when there is none, and when this
    /// host dropped packets.
    loss: Option<f64>,
    rtt: Rtt,
    stats: Statistics,
    replies: Vec<Reply>,
    /// ICMP errors, and requests that this host could not send.
    errors: Vec<EchoError>,
    /// Socket type: `raw` or `datagram`.
    mode: &'static str,
    /// `host_receive_overflow` when this host dropped packets during the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<&'static str>,
    comment: Option<String>,
    /// No request had a reply.
    failed: bool,
    /// Round-trip times in nanoseconds, in the order of the replies.
    #[serde(skip)]
    samples: Vec<u64>,
    /// Requests whose timeout has passed without a reply.
    #[serde(skip)]
    lost: u32,
}

/// Round-trip times in milliseconds with three decimals; null without a reply.
#[derive(Clone, Default, Serialize, JsonSchema)]
struct Rtt {
    min: Option<String>,
    max: Option<String>,
    avg: Option<String>,
}

#[derive(Clone, Serialize, JsonSchema)]
struct Reply {
    /// Sequence number of the request, from 0.
    seq: u16,
    /// Time to live of the received packet.
    ttl: Option<u8>,
    /// Bytes of the ICMP message.
    len: u16,
    rtt_ms: f64,
    src: String,
    /// A further reply to the same request.
    duplicate: bool,
    /// The reply came after the timeout of its request, which counts as lost.
    late: bool,
}

#[derive(Clone, Serialize, JsonSchema)]
struct EchoError {
    /// Sequence number of the request, from 0.
    seq: u16,
    /// Name of type and code, or why the request was not sent.
    kind: String,
    /// Source of the ICMP error; null when the request was not sent.
    src: Option<String>,
    #[serde(rename = "type")]
    icmp_type: Option<u8>,
    code: Option<u8>,
    /// Next-hop MTU in bytes of `fragmentation needed` and `packet too big`.
    mtu: Option<u32>,
}

impl PingResult {
    pub fn new(options: &Options, address: String, mode: icmp::Mode, comment: Option<String>) -> Self {
        let ip = IpVersion::of(&address);
        Self {
            dst: options.dst.clone(),
            address,
            family: ip.number(),
            sent: 0,
            recv: 0,
            payload_size: options.payload_size,
            packet_size: u32::from(options.payload_size) + ICMP_HEADER + ip.header_size(),
            in_flight: 0,
            loss: None,
            rtt: Rtt::default(),
            stats: Statistics::default(),
            replies: vec![],
            errors: vec![],
            mode: match mode {
                icmp::Mode::Raw => "raw",
                icmp::Mode::Datagram => "datagram",
            },
            degraded: None,
            comment,
            failed: true,
            samples: vec![],
            lost: 0,
        }
    }

    pub fn add(&mut self, event: icmp::EchoEvent) {
        use icmp::EchoEvent as Event;
        match event {
            Event::Sent(_) => self.sent += 1,
            Event::TimedOut(_) => self.lost += 1,
            Event::Reply(reply) => {
                self.recv += 1;
                self.samples.push(reply.rtt_ns);
                self.replies.push(reply.into());
            }
            Event::Duplicate(reply) => self.replies.push(Reply { duplicate: true, ..reply.into() }),
            Event::Late(reply) => self.replies.push(Reply { late: true, ..reply.into() }),
            Event::Error(error) => self.errors.push(error.into()),
            Event::SendFailed(failure) => self.errors.push(failure.into()),
            Event::Overflow(_) => self.degraded = Some("host_receive_overflow"),
        }
    }

    /// Computes the fields that depend on all events.
    pub fn update_statistics(&mut self) {
        let decided = self.recv + self.lost;
        self.in_flight = self.sent.saturating_sub(decided);
        let is_known = decided > 0 && (self.lost == 0 || self.degraded.is_none());
        self.loss = is_known.then(|| (f64::from(self.lost) / f64::from(decided) * 1e5).round() / 1e3);
        self.stats = Statistics::of(&self.samples);
        let average = self.samples.iter().sum::<u64>().checked_div(self.samples.len() as u64);
        self.rtt = Rtt {
            min: self.samples.iter().min().copied().map(ms_text),
            max: self.samples.iter().max().copied().map(ms_text),
            avg: average.map(ms_text),
        };
        self.failed = self.recv == 0;
    }
}

impl From<icmp::EchoReply> for Reply {
    fn from(reply: icmp::EchoReply) -> Self {
        Self {
            seq: reply.seq,
            ttl: reply.ttl,
            len: reply.length,
            rtt_ms: ms(reply.rtt_ns),
            src: reply.source,
            duplicate: false,
            late: false,
        }
    }
}

impl From<icmp::IcmpError> for EchoError {
    fn from(error: icmp::IcmpError) -> Self {
        Self {
            seq: error.seq,
            kind: error.kind,
            src: Some(error.source),
            icmp_type: Some(error.icmp_type),
            code: Some(error.icmp_code),
            mtu: error.mtu,
        }
    }
}

impl From<icmp::SendFailure> for EchoError {
    fn from(failure: icmp::SendFailure) -> Self {
        Self {
            seq: failure.seq,
            kind: format!("not sent: {}", failure.reason),
            src: None,
            icmp_type: None,
            code: None,
            mtu: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;
    use crate::Ping;

    fn result_of(address: &str, events: Vec<icmp::EchoEvent>) -> Value {
        let options = testing::options::<Ping>(json!({"dst": "a.example", "payload_size": 100})).expect("valid");
        let mut result = PingResult::new(&options, address.into(), icmp::Mode::Raw, None);
        for event in events {
            result.add(event);
        }
        result.update_statistics();
        testing::result::<Ping>(&result).expect("as its schema says")
    }

    fn reply(seq: u16, rtt_ns: u64) -> icmp::EchoReply {
        icmp::EchoReply { seq, source: "192.0.2.1".into(), ttl: Some(57), length: 108, rtt_ns }
    }

    #[test]
    fn a_result_has_every_field_of_the_first_version() {
        use icmp::EchoEvent::{Reply, Sent, TimedOut};
        let result = result_of(
            "192.0.2.1",
            vec![Sent(0), Reply(reply(0, 1_234_567)), Sent(1), Reply(reply(1, 2_000_000)), Sent(2), TimedOut(2)],
        );
        for (field, value) in [
            ("dst", json!("a.example")),
            ("sent", json!(3)),
            ("recv", json!(2)),
            ("payload_size", json!(100)),
            ("packet_size", json!(128)),
            ("loss", json!(33.333)),
            ("in_flight", json!(0)),
            ("rtt", json!({"min": "1.235", "max": "2.000", "avg": "1.617"})),
            ("comment", json!(null)),
            ("failed", json!(false)),
            ("address", json!("192.0.2.1")),
            ("family", json!(4)),
            ("mode", json!("raw")),
            ("errors", json!([])),
        ] {
            assert_eq!(result[field], value, "{field}");
        }
        let first = json!({"seq": 0, "ttl": 57, "len": 108, "rtt_ms": 1.235, "src": "192.0.2.1",
            "duplicate": false, "late": false});
        assert_eq!(result["replies"][0], first);
        assert_eq!((&result["stats"]["p50_ms"], &result["stats"]["jitter_ms"]), (&json!(1.235), &json!(0.765)));
        assert!(result.get("degraded").is_none() && result.get("samples").is_none(), "{result}");
    }

    #[test]
    fn ipv6_packets_have_a_larger_header() {
        let result = result_of("2001:db8::1", vec![]);
        assert_eq!((&result["family"], &result["packet_size"]), (&json!(6), &json!(148)));
    }

    #[test]
    fn without_a_reply_the_test_has_failed() {
        let result = result_of("192.0.2.1", vec![icmp::EchoEvent::Sent(0), icmp::EchoEvent::TimedOut(0)]);
        assert_eq!((&result["failed"], &result["loss"], &result["recv"]), (&json!(true), &json!(100.0), &json!(0)));
        assert_eq!(result["rtt"], json!({"min": null, "max": null, "avg": null}));
        assert_eq!(result_of("192.0.2.1", vec![])["loss"], json!(null), "nothing was sent");
    }

    #[test]
    fn what_is_in_flight_is_not_lost() {
        use icmp::EchoEvent::{Reply, Sent, TimedOut};
        let mut events = vec![];
        let mut of = |event| {
            events.push(event);
            let result = result_of("192.0.2.1", events.clone());
            (result["sent"].clone(), result["in_flight"].clone(), result["loss"].clone())
        };
        assert_eq!(of(Sent(0)), (json!(1), json!(1), json!(null)), "nothing is known yet");
        assert_eq!(of(Reply(reply(0, 1))), (json!(1), json!(0), json!(0.0)));
        assert_eq!(of(Sent(1)), (json!(2), json!(1), json!(0.0)));
        assert_eq!(of(Sent(2)), (json!(3), json!(2), json!(0.0)));
        assert_eq!(of(TimedOut(1)), (json!(3), json!(1), json!(50.0)));
        assert_eq!(of(Reply(reply(2, 1))), (json!(3), json!(0), json!(33.333)));
    }

    #[test]
    fn duplicates_and_late_replies_do_not_count_as_received() {
        use icmp::EchoEvent as Event;
        let late = reply(1, 1_500_000_000);
        let events = vec![
            Event::Sent(0),
            Event::Reply(reply(0, 1_000_000)),
            Event::Duplicate(reply(0, 1_100_000)),
            Event::Sent(1),
            Event::TimedOut(1),
            Event::Late(late),
        ];
        let result = result_of("192.0.2.1", events);
        assert_eq!(
            (&result["recv"], &result["loss"], &result["rtt"]["max"]),
            (&json!(1), &json!(50.0), &json!("1.000"))
        );
        let flags = |at: usize| (result["replies"][at]["duplicate"].clone(), result["replies"][at]["late"].clone());
        assert_eq!(
            [flags(0), flags(1), flags(2)],
            [(json!(false), json!(false)), (json!(true), json!(false)), (json!(false), json!(true))]
        );
    }

    #[test]
    fn losses_of_this_host_are_not_the_targets() {
        use icmp::EchoEvent as Event;
        let lossy = result_of("192.0.2.1", vec![Event::Sent(0), Event::TimedOut(0), Event::Overflow(3)]);
        assert_eq!((&lossy["loss"], &lossy["degraded"]), (&json!(null), &json!("host_receive_overflow")));
        let complete = result_of("192.0.2.1", vec![Event::Sent(0), Event::Overflow(3), Event::Reply(reply(0, 1))]);
        assert_eq!(complete["loss"], json!(0.0), "nothing is missing");
        let failure = icmp::SendFailure { seq: 0, reason: "no buffer space".into() };
        let unsent = result_of("192.0.2.1", vec![Event::SendFailed(failure)]);
        let error = json!({"seq": 0, "kind": "not sent: no buffer space", "src": null, "type": null, "code": null, "mtu": null});
        assert_eq!((&unsent["errors"], &unsent["loss"]), (&json!([error]), &json!(null)));
    }

    #[test]
    fn icmp_errors_name_source_type_and_code() {
        let error = icmp::IcmpError {
            seq: 0,
            source: "198.51.100.7".into(),
            kind: "fragmentation needed".into(),
            icmp_type: 3,
            icmp_code: 4,
            mtu: Some(1400),
        };
        let result = result_of("192.0.2.1", vec![icmp::EchoEvent::Sent(0), icmp::EchoEvent::Error(error)]);
        let expected = json!([{"seq": 0, "kind": "fragmentation needed", "src": "198.51.100.7", "type": 3, "code": 4, "mtu": 1400}]);
        assert_eq!(result["errors"], expected);
    }
}
