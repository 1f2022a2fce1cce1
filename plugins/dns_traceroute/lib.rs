//! `dns_traceroute`: which way do DNS questions to a name server go, and does it answer?

use scouter_sdk::nameserver::{NameServers, rcode};
use scouter_sdk::prelude::*;
use scouter_sdk::trace::{Found, Path, follow};

struct DnsTraceroute;

const PORT: u16 = 53;
/// From one probe to the next, in microseconds: 32 of them leave within 160 ms.
const INTERVAL_US: u32 = 5_000;
const TIMEOUT_MS: u32 = 1_000;

/// Options of a DNS traceroute.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Name to ask for (its A record).
    #[schemars(length(min = 1, max = 1024))]
    qname: String,
    /// Name server, by address or name; of a list the first. The host's own first one when not given.
    ns: Option<NameServers>,
    /// The last time to live that is tried, 1–32.
    #[serde(default = "max_ttl")]
    #[schemars(range(min = 1, max = 32))]
    max_ttl: u8,
}

fn max_ttl() -> u8 {
    32
}

/// What a DNS traceroute found.
#[derive(Clone, Serialize, JsonSchema)]
struct Traced {
    qname: String,
    proto: &'static str,
    dport: u16,
    /// The name server as it was given, or the host's own.
    ns: String,
    #[serde(flatten)]
    found: Found,
    /// Response code of the name server's answer, as `dns_lookup` names it; unknown when there was none.
    rcode: Option<String>,
    /// The name server did not answer the question. An ICMP error of its host is no answer.
    failed: bool,
}

impl Probe for DnsTraceroute {
    type Options = Options;
    type Result = Traced;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Finds the routers on the way to a name server, with DNS questions";

    fn run(options: Options) -> Result<Traced, Refusal> {
        let given = match options.ns {
            Some(NameServers::One(server)) => Some(server),
            Some(NameServers::Several(servers)) => servers.into_iter().next(),
            None => None,
        };
        let ns = given.or_else(|| resolver::nameservers().into_iter().next());
        let ns = ns.ok_or("This host has no name server of its own. Please pass the 'ns' option.")?;
        let addresses = resolver::lookup(&ns, Family::Any)?;
        let address = addresses.into_iter().next().ok_or("The name server's name has no address.")?;
        let path = Path::new(&address, 1, options.max_ttl, 1, 1);
        let plan = hops::TracePlan {
            target: address,
            carrier: hops::Carrier::Dns(dns::Question {
                name: options.qname.clone(),
                type_: "A".into(),
                class: "IN".into(),
            }),
            probes: path.probes().to_vec(),
            payload_size: 0,
            interval_us: INTERVAL_US,
            timeout_ms: TIMEOUT_MS,
        };
        let result = |found: Found, rcode: Option<String>| Traced {
            qname: options.qname.clone(),
            proto: "UDP",
            dport: PORT,
            ns: ns.clone(),
            found,
            failed: rcode.is_none(),
            rcode,
        };
        let (found, path) = follow(path, &plan, |so_far| watch(&result(so_far.clone(), None)))?;
        let answered = match path.last_answer() {
            Some(hops::Answer::Dns(answer)) => Some(rcode(answer.rcode, answer.mnemonic.clone())),
            _ => None,
        };
        Ok(result(found, answered))
    }
}

scouter_sdk::export!(DnsTraceroute);
