//! `traceroute`: which way do packets to the target go, and how far do they get?

use scouter_sdk::options::{Family as FamilyOption, add_comment};
use scouter_sdk::prelude::*;
use scouter_sdk::trace::{Found, Path, follow};

struct Traceroute;

/// From one probe to the next, in microseconds: 32 of them leave within 160 ms.
const INTERVAL_US: u32 = 5_000;
/// When there are many, they leave faster, down to this.
const SHORTEST_US: u32 = 1_000;
const FEW: usize = 64;

/// Options of a traceroute.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Name or address of the target.
    #[schemars(length(min = 1, max = 255))]
    dst: String,
    /// What the probes are: ICMP, TCP or UDP; ICMP when it is something else.
    #[serde(default = "proto")]
    #[schemars(length(max = 64))]
    proto: String,
    /// Target port, 0–65535: 80 for TCP, 33434 for UDP when not given; ICMP has none.
    #[schemars(range(min = 0, max = 65_535))]
    dport: Option<u16>,
    /// Bytes of data in each probe, 0–1472. Firewalls may drop a TCP SYN that carries data: 0 avoids that.
    #[serde(default = "payload_size")]
    #[schemars(range(min = 0, max = 1472))]
    payload_size: u16,
    /// The last time to live that is tried, 1–32.
    #[serde(default = "max_ttl")]
    #[schemars(range(min = 1, max = 32))]
    max_ttl: u8,
    /// The first one, 1–32.
    #[serde(default = "first_ttl")]
    #[schemars(range(min = 1, max = 32))]
    first_ttl: u8,
    /// Probes for each time to live and flow, 1–10.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10))]
    probes: u16,
    /// Flows to explore, 1–8: routers that balance by flow may send each another way.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    paths: u16,
    /// Milliseconds to wait for each answer, 1–10000.
    #[serde(default = "timeout_ms")]
    #[schemars(range(min = 1, max = 10_000))]
    timeout_ms: u32,
    /// Which addresses of a name are used.
    #[serde(default)]
    family: FamilyOption,
}

fn proto() -> String {
    "ICMP".into()
}
fn payload_size() -> u16 {
    56
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

/// What a traceroute found.
#[derive(Clone, Serialize, JsonSchema)]
struct Traced {
    /// As it was given.
    dst: String,
    /// `ICMP`, `TCP` or `UDP`.
    proto: &'static str,
    dport: Option<u16>,
    #[serde(flatten)]
    found: Found,
    comment: Option<String>,
    /// The target itself did not answer.
    failed: bool,
}

impl Probe for Traceroute {
    type Options = Options;
    type Result = Traced;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Finds the routers on the way to a target, with ICMP, TCP or UDP probes";

    fn run(options: Options) -> Result<Traced, Refusal> {
        if options.first_ttl > options.max_ttl {
            return Err(Refusal(format!(
                "Provided first_ttl of '{}' is not allowed: it is more than max_ttl, which is {}.",
                options.first_ttl, options.max_ttl
            )));
        }
        let mut comment = None;
        let (proto, dport, carrier) = carrier(&options, &mut comment);
        let addresses = resolver::lookup(&options.dst, options.family.into())?;
        let address = addresses.into_iter().next().ok_or("The name has no address.")?;
        let path = Path::new(&address, options.first_ttl, options.max_ttl, options.probes, options.paths);
        let plan = hops::TracePlan {
            target: address,
            carrier,
            probes: path.probes().to_vec(),
            payload_size: options.payload_size,
            interval_us: if path.probes().len() <= FEW { INTERVAL_US } else { SHORTEST_US },
            timeout_ms: options.timeout_ms,
        };
        let result = |found: Found| {
            let mut comment = comment.clone();
            if found.payload_size != options.payload_size {
                let text = "Without CAP_NET_RAW TCP probes carry no data: payload_size is 0.";
                add_comment(&mut comment, text);
            }
            Traced { dst: options.dst.clone(), proto, dport, failed: !found.reached, found, comment }
        };
        let (found, _) = follow(path, &plan, |so_far| watch(&result(so_far.clone())))?;
        Ok(result(found))
    }
}

/// What the probes are.
fn carrier(options: &Options, comment: &mut Option<String>) -> (&'static str, Option<u16>, hops::Carrier) {
    match options.proto.to_ascii_uppercase().as_str() {
        "TCP" => {
            let port = options.dport.unwrap_or(80);
            ("TCP", Some(port), hops::Carrier::Tcp(port))
        }
        "UDP" => {
            let port = options.dport.unwrap_or(33_434);
            ("UDP", Some(port), hops::Carrier::Udp(port))
        }
        other => {
            if other != "ICMP" {
                let text = format!(
                    "Provided 'proto' of '{}' is not supported. Defaulting to ICMP. ('ICMP', 'TCP', 'UDP').",
                    options.proto
                );
                add_comment(comment, &text);
            }
            ("ICMP", None, hops::Carrier::Icmp)
        }
    }
}

scouter_sdk::export!(Traceroute);
