//! `traceroute`: the routers on the path to a target, and how far the path goes.

use scouter_sdk::options::{FamilyOption, add_comment};
use scouter_sdk::prelude::*;
use scouter_sdk::trace::TraceResult;

struct Traceroute;

/// Options of a traceroute.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Name or address of the target.
    #[schemars(length(min = 1, max = 255))]
    dst: String,
    /// Protocol of the probes: ICMP, TCP or UDP; ICMP for any other value.
    #[serde(default = "proto")]
    #[schemars(length(max = 64))]
    proto: String,
    /// Port of the target, 0–65535. Default: 80 for TCP, 33434 for UDP. ICMP has none.
    #[schemars(range(min = 0, max = 65_535))]
    dport: Option<u16>,
    /// Bytes of data in each probe, 0–1472. Default: 56, and 0 for TCP: firewalls may drop a SYN with data.
    #[schemars(range(min = 0, max = 1472))]
    payload_size: Option<u16>,
    /// Last TTL, 1–32.
    #[serde(default = "max_ttl")]
    #[schemars(range(min = 1, max = 32))]
    max_ttl: u8,
    /// First TTL, 1–32.
    #[serde(default = "first_ttl")]
    #[schemars(range(min = 1, max = 32))]
    first_ttl: u8,
    /// Probes for each TTL and flow, 1–10.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10))]
    probes: u16,
    /// Flows, 1–8. Routers that balance by flow may forward each on another path.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    paths: u16,
    /// Milliseconds to wait for each response at most, 1–10000.
    #[serde(default = "timeout_ms")]
    #[schemars(range(min = 1, max = 10_000))]
    timeout_ms: u32,
    /// Addresses of a name: any, 4 (IPv4) or 6 (IPv6).
    #[serde(default)]
    family: FamilyOption,
}

fn proto() -> String {
    "ICMP".into()
}
fn max_ttl() -> u8 {
    32
}
fn first_ttl() -> u8 {
    1
}
fn one() -> u16 {
    1
}
fn timeout_ms() -> u32 {
    1000
}

/// Result of a traceroute.
#[derive(Clone, Serialize, JsonSchema)]
struct TracerouteResult {
    /// The option, unchanged.
    dst: String,
    /// `ICMP`, `TCP` or `UDP`.
    proto: &'static str,
    /// Port of the target; null for ICMP.
    dport: Option<u16>,
    #[serde(flatten)]
    trace: TraceResult,
    comment: Option<String>,
    /// The target itself did not respond.
    failed: bool,
}

impl Probe for Traceroute {
    type Options = Options;
    type Result = TracerouteResult;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Finds the routers on the way to a target, with ICMP, TCP or UDP probes";

    fn run(options: Options) -> Result<TracerouteResult, Error> {
        options.check()?;
        let mut comment = None;
        let protocol = Protocol::of(&options, &mut comment);
        let parameters = options.parameters(first_address(&options.dst, options.family.into())?, &protocol);
        let result = |trace| TracerouteResult::new(&options, &protocol, trace, comment.clone());
        let finished = trace::run(&parameters, |so_far| report_progress(&result(so_far.clone())))?;
        Ok(result(finished.result))
    }
}

/// Protocol and port of the probes.
#[derive(Debug, PartialEq, Eq)]
enum Protocol {
    Icmp,
    Tcp(u16),
    Udp(u16),
}

impl Protocol {
    fn of(options: &Options, comment: &mut Option<String>) -> Self {
        match options.proto.to_ascii_uppercase().as_str() {
            "TCP" => Self::Tcp(options.dport.unwrap_or(80)),
            "UDP" => Self::Udp(options.dport.unwrap_or(33_434)),
            "ICMP" => Self::Icmp,
            _ => {
                let text = format!(
                    "Provided 'proto' of '{}' is not supported. Defaulting to ICMP. ('ICMP', 'TCP', 'UDP').",
                    options.proto
                );
                add_comment(comment, &text);
                Self::Icmp
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Icmp => "ICMP",
            Self::Tcp(_) => "TCP",
            Self::Udp(_) => "UDP",
        }
    }

    fn payload_size(&self) -> u16 {
        match self {
            Self::Tcp(_) => 0,
            Self::Icmp | Self::Udp(_) => 56,
        }
    }

    fn port(&self) -> Option<u16> {
        match self {
            Self::Icmp => None,
            Self::Tcp(port) | Self::Udp(port) => Some(*port),
        }
    }
}

impl Options {
    /// Checks what the schema cannot: the order of the TTLs.
    fn check(&self) -> Result<(), Error> {
        if self.first_ttl <= self.max_ttl {
            return Ok(());
        }
        let (first, max) = (self.first_ttl, self.max_ttl);
        Err(format!("Provided first_ttl of '{first}' is not allowed: it is more than max_ttl, which is {max}.").into())
    }

    fn parameters(&self, target: String, protocol: &Protocol) -> trace::Parameters {
        trace::Parameters {
            target,
            protocol: match protocol {
                Protocol::Icmp => hops::Protocol::Icmp,
                Protocol::Tcp(port) => hops::Protocol::Tcp(*port),
                Protocol::Udp(port) => hops::Protocol::Udp(*port),
            },
            first_ttl: self.first_ttl,
            max_ttl: self.max_ttl,
            probes: self.probes,
            flows: self.paths,
            payload_size: self.payload_size.unwrap_or_else(|| protocol.payload_size()),
            timeout_ms: self.timeout_ms,
        }
    }
}

impl TracerouteResult {
    fn new(options: &Options, protocol: &Protocol, trace: TraceResult, mut comment: Option<String>) -> Self {
        let wanted = options.payload_size.unwrap_or(trace.payload_size);
        if trace.payload_size < wanted {
            add_comment(&mut comment, "Without CAP_NET_RAW TCP probes carry no data: payload_size is 0.");
        } else if trace.payload_size > wanted {
            let more = format!("Data tells the probes of a UDP flow apart: payload_size is {}.", trace.payload_size);
            add_comment(&mut comment, &more);
        }
        Self {
            dst: options.dst.clone(),
            proto: protocol.name(),
            dport: protocol.port(),
            failed: !trace.reached,
            trace,
            comment,
        }
    }
}

scouter_sdk::export!(Traceroute);

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;

    fn options(options: Value) -> Options {
        testing::options::<Traceroute>(options).expect("valid")
    }

    fn protocol(options: &Options) -> (Protocol, Option<String>) {
        let mut comment = None;
        (Protocol::of(options, &mut comment), comment)
    }

    #[test]
    fn only_the_target_is_required() {
        let options = options(json!({"dst": "a.example"}));
        let (protocol, comment) = protocol(&options);
        assert_eq!((&protocol, comment), (&Protocol::Icmp, None));
        let parameters = options.parameters("192.0.2.1".into(), &protocol);
        assert_eq!((parameters.first_ttl, parameters.max_ttl), (1, 32));
        assert_eq!((parameters.probes, parameters.flows), (1, 1));
        assert_eq!((parameters.payload_size, parameters.timeout_ms), (56, 1000));
        assert_eq!((parameters.target.as_str(), parameters.protocol), ("192.0.2.1", hops::Protocol::Icmp));
        for (payload_size, expected) in [(None, 0), (Some(9), 9)] {
            let options = Options { payload_size, ..self::options(json!({"dst": "x"})) };
            assert_eq!(options.parameters("192.0.2.1".into(), &Protocol::Tcp(80)).payload_size, expected);
        }
    }

    #[test]
    fn protocols_have_their_default_ports() {
        for (proto, dport, expected) in [
            ("ICMP", None, Protocol::Icmp),
            ("icmp", Some(5), Protocol::Icmp),
            ("TCP", None, Protocol::Tcp(80)),
            ("tcp", Some(443), Protocol::Tcp(443)),
            ("UDP", None, Protocol::Udp(33_434)),
            ("udp", Some(0), Protocol::Udp(0)),
        ] {
            let mut all = json!({"dst": "x", "proto": proto});
            if let Some(dport) = dport {
                all["dport"] = json!(dport);
            }
            assert_eq!(protocol(&options(all)), (expected, None), "{proto} {dport:?}");
        }
    }

    #[test]
    fn an_unknown_protocol_is_icmp_with_a_comment() {
        let text = "Provided 'proto' of 'SCTP' is not supported. Defaulting to ICMP. ('ICMP', 'TCP', 'UDP').";
        let all = options(json!({"dst": "x", "proto": "SCTP", "dport": 80}));
        assert_eq!(protocol(&all), (Protocol::Icmp, Some(text.into())));
    }

    #[test]
    fn ranges_are_in_the_schema() {
        for (name, min, max) in [
            ("dport", 0, 65_535),
            ("payload_size", 0, 1472),
            ("max_ttl", 1, 32),
            ("first_ttl", 1, 32),
            ("probes", 1, 10),
            ("paths", 1, 8),
            ("timeout_ms", 1, 10_000),
        ] {
            for (value, valid) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
                let all = json!({"dst": "x", name: value});
                assert_eq!(testing::options::<Traceroute>(all.clone()).is_ok(), valid, "{all}");
            }
        }
    }

    #[test]
    fn the_first_ttl_is_at_most_the_last() {
        assert_eq!(options(json!({"dst": "x", "first_ttl": 5, "max_ttl": 5})).check(), Ok(()));
        let error = options(json!({"dst": "x", "first_ttl": 6, "max_ttl": 5})).check().expect_err("refused");
        let text = "Provided first_ttl of '6' is not allowed: it is more than max_ttl, which is 5.";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_result_has_every_field_of_the_first_version() {
        let options = options(json!({"dst": "a.example", "proto": "TCP"}));
        let (protocol, comment) = protocol(&options);
        let result = TracerouteResult::new(&options, &protocol, testing::trace_result("192.0.2.1"), comment);
        let json = testing::result::<Traceroute>(&result).expect("as its schema says");
        for (field, value) in [
            ("dst", json!("a.example")),
            ("proto", json!("TCP")),
            ("dport", json!(80)),
            ("payload_size", json!(56)),
            ("packet_size", json!(84)),
            ("comment", json!(null)),
            ("failed", json!(false)),
            ("stopped_by", json!({"reason": "target", "ttl": 1, "src": "192.0.2.1", "icmp": null})),
        ] {
            assert_eq!(json[field], value, "{field}");
        }
        for field in ["asn", "ttl", "src", "hostname", "rtt_ms", "no_response"] {
            assert!(json["trace"][0].get(field).is_some(), "{field}: {json}");
        }
        let silent = TraceResult { reached: false, ..testing::trace_result("192.0.2.1") };
        assert!(TracerouteResult::new(&options, &protocol, silent, None).failed);
    }

    #[test]
    fn probes_without_the_requested_data_have_a_comment() {
        let options = options(json!({"dst": "x", "proto": "TCP", "payload_size": 56}));
        let trace = TraceResult { payload_size: 0, ..testing::trace_result("192.0.2.1") };
        let result = TracerouteResult::new(&options, &Protocol::Tcp(80), trace, Some("Before.".into()));
        let text = "Before. Without CAP_NET_RAW TCP probes carry no data: payload_size is 0.";
        assert_eq!(result.comment.as_deref(), Some(text));
        let options = self::options(json!({"dst": "x", "proto": "UDP", "payload_size": 1}));
        let trace = TraceResult { payload_size: 2, ..testing::trace_result("192.0.2.1") };
        let result = TracerouteResult::new(&options, &Protocol::Udp(33434), trace, None);
        let text = "Data tells the probes of a UDP flow apart: payload_size is 2.";
        assert_eq!(result.comment.as_deref(), Some(text));
    }
}
