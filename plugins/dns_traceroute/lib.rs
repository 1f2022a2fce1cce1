//! `dns_traceroute`: the routers on the path of DNS queries to a name server, and the server's response code.

use scouter_sdk::nameserver::{NameServers, question_name, rcode};
use scouter_sdk::prelude::*;
use scouter_sdk::trace::TraceResult;

struct DnsTraceroute;

const PORT: u16 = 53;
const TIMEOUT_MS: u32 = 1_000;

/// Options of a DNS traceroute.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Name of the question, whose type is A; empty for the root.
    #[schemars(length(max = 1024))]
    qname: String,
    /// Address or name of the name server; the first of several. Default: the first one of the probing host.
    ns: Option<NameServers>,
    /// Last TTL, 1–32.
    #[serde(default = "max_ttl")]
    #[schemars(range(min = 1, max = 32))]
    max_ttl: u8,
}

fn max_ttl() -> u8 {
    32
}

/// Result of a DNS traceroute.
#[derive(Clone, Serialize, JsonSchema)]
struct DnsTracerouteResult {
    /// The option, unchanged.
    qname: String,
    /// `UDP`.
    proto: &'static str,
    /// 53.
    dport: u16,
    /// The name server of the option, or of the probing host.
    ns: String,
    #[serde(flatten)]
    trace: TraceResult,
    /// Response code of the name server, with the names of `dns_lookup`; null when it did not answer.
    rcode: Option<String>,
    /// The name server did not answer the question. An ICMP error from its address is no answer.
    failed: bool,
}

impl Probe for DnsTraceroute {
    type Options = Options;
    type Result = DnsTracerouteResult;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Finds the routers on the way to a name server, with DNS questions";

    fn run(options: Options) -> Result<DnsTracerouteResult, Error> {
        let servers = options.ns.as_ref().map_or_else(|| Ok(resolver::nameservers()), NameServers::list)?;
        let ns = servers.into_iter().next();
        let ns = ns.ok_or("The probing host has no name server of its own. Please pass the 'ns' option.")?;
        let parameters = options.parameters(first_address(&ns, Family::Any)?);
        let result = |trace, response| DnsTracerouteResult::new(&options, &ns, trace, response);
        let finished = trace::run(&parameters, |so_far| report_progress(&result(so_far.clone(), None)))?;
        Ok(result(finished.result, finished.target_response))
    }
}

impl Options {
    fn parameters(&self, target: String) -> trace::Parameters {
        let question = dns::Question { name: question_name(&self.qname), type_: "A".into(), class: "IN".into() };
        trace::Parameters {
            target,
            protocol: hops::Protocol::Dns(question),
            first_ttl: 1,
            max_ttl: self.max_ttl,
            probes: 1,
            flows: 1,
            payload_size: 0,
            timeout_ms: TIMEOUT_MS,
        }
    }
}

impl DnsTracerouteResult {
    fn new(options: &Options, ns: &str, trace: TraceResult, response: Option<hops::ResponseKind>) -> Self {
        let rcode = match response {
            Some(hops::ResponseKind::Dns(answer)) => Some(rcode(answer.rcode, answer.mnemonic)),
            _ => None,
        };
        Self {
            qname: options.qname.clone(),
            proto: "UDP",
            dport: PORT,
            ns: ns.to_owned(),
            trace,
            failed: rcode.is_none(),
            rcode,
        }
    }
}

scouter_sdk::export!(DnsTraceroute);

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;

    fn options(options: Value) -> Result<Options, String> {
        testing::options::<DnsTraceroute>(options)
    }

    #[test]
    fn only_the_name_is_required() {
        let parameters = options(json!({"qname": "a.example"})).expect("valid").parameters("192.0.2.53".into());
        assert_eq!((parameters.first_ttl, parameters.max_ttl, parameters.timeout_ms), (1, 32, 1000));
        assert_eq!((parameters.probes, parameters.flows), (1, 1));
        let question = dns::Question { name: "a.example".into(), type_: "A".into(), class: "IN".into() };
        assert_eq!(parameters.protocol, hops::Protocol::Dns(question));
        assert!(options(json!({})).is_err());
    }

    #[test]
    fn an_empty_name_is_the_root() {
        let parameters = options(json!({"qname": ""})).expect("valid").parameters("192.0.2.53".into());
        assert!(matches!(parameters.protocol, hops::Protocol::Dns(question) if question.name == "."));
    }

    #[test]
    fn options_are_checked() {
        for (all, valid) in [
            (json!({"qname": "x", "max_ttl": 1}), true),
            (json!({"qname": "x", "max_ttl": 0}), false),
            (json!({"qname": "x", "max_ttl": 33}), false),
            (json!({"qname": "x", "ns": "192.0.2.1 192.0.2.2"}), true),
            (json!({"qname": "x", "ns": ["192.0.2.1"]}), true),
            (json!({"qname": "x", "ns": []}), false),
            (json!({"qname": "x", "ns": ""}), false),
            (json!({"qname": "x", "dport": 53}), false),
        ] {
            assert_eq!(options(all.clone()).is_ok(), valid, "{all}");
        }
    }

    #[test]
    fn only_an_answer_to_the_question_is_success() {
        let options = options(json!({"qname": "a.example"})).expect("valid");
        let result = |response| {
            let trace = testing::trace_result("192.0.2.53");
            let result = DnsTracerouteResult::new(&options, "ns.example", trace, response);
            testing::result::<DnsTraceroute>(&result).expect("as its schema says")
        };
        let answer = hops::DnsAnswer { rcode: 3, mnemonic: "nxdomain".into() };
        let answered = result(Some(hops::ResponseKind::Dns(answer)));
        for (field, value) in [
            ("qname", json!("a.example")),
            ("proto", json!("UDP")),
            ("dport", json!(53)),
            ("ns", json!("ns.example")),
            ("address", json!("192.0.2.53")),
            ("rcode", json!("name-error")),
            ("failed", json!(false)),
        ] {
            assert_eq!(answered[field], value, "{field}");
        }
        for response in [None, Some(hops::ResponseKind::Datagram)] {
            let silent = result(response);
            assert_eq!((&silent["rcode"], &silent["failed"]), (&json!(null), &json!(true)));
        }
    }
}
