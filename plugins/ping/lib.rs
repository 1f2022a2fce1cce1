//! `ping`: is the target there, how far is it, how steady is the way?

use scouter_sdk::options::{Family as FamilyOption, in_range};
use scouter_sdk::prelude::*;
use scouter_sdk::stats::{Summary, ms, ms_text};

struct Ping;

const COUNT: u32 = 10;

/// Options of a ping.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Name or address to ping.
    #[schemars(length(min = 1, max = 255))]
    dst: String,
    /// Echo requests to send, 1–20; 10 when outside that.
    #[serde(default = "count")]
    count: u64,
    /// Bytes of data in each request, 0–1472.
    #[serde(default = "payload_size")]
    #[schemars(range(min = 0, max = 1472))]
    payload_size: u16,
    /// Milliseconds from one request to the next, 10–1000.
    #[serde(default = "interval_ms")]
    #[schemars(range(min = 10, max = 1000))]
    interval_ms: u32,
    /// Milliseconds to wait for each reply, 1–10000.
    #[serde(default = "timeout_ms")]
    #[schemars(range(min = 1, max = 10_000))]
    timeout_ms: u32,
    /// Which addresses of a name are used.
    #[serde(default)]
    family: FamilyOption,
    /// Time to live (hop limit) of the requests, 1–255; the system's default when not given.
    #[schemars(range(min = 1, max = 255))]
    ttl: Option<u8>,
    /// Forbid fragmentation on the way.
    #[serde(default)]
    dont_fragment: bool,
}

fn count() -> u64 {
    COUNT.into()
}
fn payload_size() -> u16 {
    56
}
fn interval_ms() -> u32 {
    200
}
fn timeout_ms() -> u32 {
    1000
}

/// What a ping found.
#[derive(Clone, Serialize, JsonSchema)]
struct Pinged {
    /// As it was given.
    dst: String,
    /// The address that was pinged.
    address: String,
    /// 4 or 6.
    family: u8,
    /// Requests that left the probing host.
    sent: u32,
    /// Requests that were answered in time.
    recv: u32,
    payload_size: u16,
    /// Bytes of each IP packet.
    packet_size: u32,
    /// Percent; unknown when nothing was sent, or the probing host itself dropped packets.
    loss: Option<f64>,
    rtt: Rtt,
    stats: Summary,
    replies: Vec<Reply>,
    /// ICMP errors that came back, and requests that could not be sent.
    errors: Vec<Error>,
    /// How the packets were sent: `raw` or `datagram`.
    mode: &'static str,
    /// Why the figures are worse than the network, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<&'static str>,
    comment: Option<String>,
    failed: bool,
}

/// Milliseconds as text.
#[derive(Clone, Default, Serialize, JsonSchema)]
struct Rtt {
    min: Option<String>,
    max: Option<String>,
    avg: Option<String>,
}

#[derive(Clone, Serialize, JsonSchema)]
struct Reply {
    seq: u16,
    /// Time to live with which the reply arrived.
    ttl: Option<u8>,
    /// Bytes of the ICMP message.
    len: u16,
    rtt_ms: f64,
    src: String,
    /// A further reply to a request that was answered already.
    duplicate: bool,
    /// It came after its request's time was up, and counts as lost.
    late: bool,
}

#[derive(Clone, Serialize, JsonSchema)]
struct Error {
    seq: u16,
    kind: String,
    /// Who sent the error; unknown for the probing host itself.
    src: Option<String>,
    #[serde(rename = "type")]
    icmp_type: Option<u8>,
    code: Option<u8>,
    mtu: Option<u32>,
}

impl Probe for Ping {
    type Options = Options;
    type Result = Pinged;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Sends ICMP echo requests and reports loss and round-trip times";

    fn run(options: Options) -> Result<Pinged, Refusal> {
        let mut comment = None;
        let count = in_range("count", options.count, COUNT, 1, 20, &mut comment);
        let addresses = resolver::lookup(&options.dst, options.family.into())?;
        let address = addresses.into_iter().next().ok_or("The name has no address.")?;
        let echoes = icmp::Echoes::start(&icmp::EchoPlan {
            target: address.clone(),
            count: u16::try_from(count).unwrap_or(u16::MAX),
            interval_ms: options.interval_ms,
            timeout_ms: options.timeout_ms,
            payload_size: options.payload_size,
            ttl: options.ttl,
            dont_fragment: options.dont_fragment,
        })?;
        let mode = match echoes.mode() {
            icmp::Mode::Raw => "raw",
            icmp::Mode::Datagram => "datagram",
        };
        let mut pinged = Pinged::new(&options, address, mode, comment);
        let mut samples = vec![];
        while let Some(event) = echoes.next() {
            // Replies and errors are news; that a request left is not, nor is a flood of duplicates.
            let news = !matches!(event, icmp::EchoEvent::Sent(_) | icmp::EchoEvent::Duplicate(_));
            pinged.add(event, &mut samples);
            if news {
                pinged.sum_up(&samples);
                watch(&pinged);
            }
        }
        pinged.sum_up(&samples);
        Ok(pinged)
    }
}

impl Pinged {
    fn new(options: &Options, address: String, mode: &'static str, comment: Option<String>) -> Self {
        let v6 = address.contains(':');
        Self {
            dst: options.dst.clone(),
            address,
            family: if v6 { 6 } else { 4 },
            sent: 0,
            recv: 0,
            payload_size: options.payload_size,
            packet_size: u32::from(options.payload_size) + if v6 { 48 } else { 28 },
            loss: None,
            rtt: Rtt::default(),
            stats: Summary::default(),
            replies: vec![],
            errors: vec![],
            mode,
            degraded: None,
            comment,
            failed: true,
        }
    }

    fn add(&mut self, event: icmp::EchoEvent, samples: &mut Vec<u64>) {
        use icmp::EchoEvent as Event;
        match event {
            Event::Sent(_) => self.sent += 1,
            Event::Lost(_) => {}
            Event::Reply(reply) => {
                self.recv += 1;
                samples.push(reply.rtt_ns);
                self.replies.push(Reply::new(reply, false, false));
            }
            Event::Duplicate(reply) => self.replies.push(Reply::new(reply, true, false)),
            Event::Late(reply) => self.replies.push(Reply::new(reply, false, true)),
            Event::Error(error) => self.errors.push(Error {
                seq: error.seq,
                kind: error.kind,
                src: Some(error.source),
                icmp_type: Some(error.icmp_type),
                code: Some(error.icmp_code),
                mtu: error.mtu,
            }),
            Event::SendFailed(failure) => self.errors.push(Error {
                seq: failure.seq,
                kind: format!("not sent: {}", failure.reason),
                src: None,
                icmp_type: None,
                code: None,
                mtu: None,
            }),
            Event::Overflow(_) => self.degraded = Some("host_receive_overflow"),
        }
    }

    fn sum_up(&mut self, samples: &[u64]) {
        let missing = self.sent.saturating_sub(self.recv);
        let known = self.sent > 0 && !(self.degraded.is_some() && missing > 0);
        self.loss = known.then(|| (f64::from(missing) / f64::from(self.sent) * 1e5).round() / 1e3);
        self.stats = Summary::of(samples);
        let average = samples.iter().sum::<u64>().checked_div(samples.len() as u64);
        self.rtt = Rtt {
            min: samples.iter().min().copied().map(ms_text),
            max: samples.iter().max().copied().map(ms_text),
            avg: average.map(ms_text),
        };
        self.failed = self.recv == 0;
    }
}

impl Reply {
    fn new(reply: icmp::EchoReply, duplicate: bool, late: bool) -> Self {
        Self {
            seq: reply.seq,
            ttl: reply.ttl,
            len: reply.length,
            rtt_ms: ms(reply.rtt_ns),
            src: reply.source,
            duplicate,
            late,
        }
    }
}

scouter_sdk::export!(Ping);
