//! `dns_lookup`: the answer of a name server to a question.

mod edns;
mod result;

use std::net::IpAddr;

use result::{Attempt, LookupResult};
use scouter_sdk::nameserver::{NameServers, question_name};
use scouter_sdk::prelude::*;

struct DnsLookup;

/// Time for each name server.
const TIMEOUT_MS: u32 = 3000;
/// Bytes. Fits the smallest MTU of IPv6 paths (DNS flag day 2020).
const UDP_PAYLOAD_SIZE: u16 = 1232;

/// Options of a lookup.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "they are bits of a query")]
struct Options {
    /// Name of the question; empty for the root.
    #[schemars(length(max = 1024))]
    qname: String,
    /// Addresses or names of name servers, a list or separated by blanks or commas. They are asked in order until one answers.
    /// Default: the name servers of the probing host.
    ns: Option<NameServers>,
    /// Record type: a mnemonic such as MX, or `TYPEnnn`. Zone transfers (AXFR, IXFR) are refused.
    #[serde(default = "rdtype")]
    #[schemars(length(min = 1, max = 32))]
    rdtype: String,
    /// Transport of the query. A truncated answer over udp leads to the same query over tcp.
    #[serde(default)]
    transport: Transport,
    /// Port of the name server, 1–65535. Default: the transport's own.
    #[schemars(range(min = 1, max = 65_535))]
    port: Option<u16>,
    /// Request DNSSEC records (DO bit). Needs EDNS.
    #[serde(default)]
    dnssec: bool,
    /// Request recursion (RD bit).
    #[serde(default = "yes")]
    recursion: bool,
    /// Ask whether a validating name server holds the answer for authentic (AD bit); `flags` then has `ad`.
    #[serde(default)]
    ad: bool,
    /// Ask a validating name server for the answer unchecked (CD bit).
    #[serde(default)]
    cd: bool,
    /// Send an OPT record (EDNS). Without it answers over udp have 512 bytes at most.
    #[serde(default = "yes")]
    edns: bool,
    /// Bytes of the largest answer over udp, 512–4096. Default: 1232. Needs EDNS.
    #[schemars(range(min = 512, max = 4096))]
    udp_payload_size: Option<u16>,
    /// Ask for the identifier of the name server (NSID). Needs EDNS.
    #[serde(default)]
    nsid: bool,
    /// Class of the question: IN, CH, HS, NONE or ANY.
    #[serde(default = "class")]
    #[schemars(length(min = 1, max = 32))]
    class: String,
}

fn rdtype() -> String {
    "A".into()
}
fn class() -> String {
    "IN".into()
}
fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Transport {
    #[default]
    Udp,
    Tcp,
    Tls,
    Https,
    Quic,
}

impl Probe for DnsLookup {
    type Options = Options;
    type Result = LookupResult;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Asks a name server over UDP, TCP, TLS, HTTPS or QUIC and reports its whole answer";

    fn run(options: Options) -> Result<LookupResult, Error> {
        options.check()?;
        let servers = options.ns.as_ref().map_or_else(|| Ok(resolver::nameservers()), NameServers::list)?;
        if servers.is_empty() {
            return Err("The probing host has no name server of its own. Please pass the 'ns' option.".into());
        }
        let mut attempts = vec![];
        for server in &servers {
            let addresses = match resolver::lookup(server, Family::Any) {
                Ok(addresses) => addresses,
                Err(error) => {
                    attempts.push(Attempt::failed(server, None, Failure::of(error)));
                    continue;
                }
            };
            for address in addresses {
                match dns::ask(&options.query(server, &address)) {
                    Ok(answer) => return Ok(LookupResult::new(server, &address, answer, attempts)),
                    Err(error) => {
                        let failure = failure(error)?;
                        attempts.push(Attempt::failed(server, Some(address), failure));
                    }
                }
            }
        }
        Err(no_answer(&servers, &attempts))
    }
}

impl Options {
    /// Checks what the schema cannot: without EDNS there is no place for what needs it.
    fn check(&self) -> Result<(), Error> {
        let given =
            [("dnssec", self.dnssec), ("nsid", self.nsid), ("udp_payload_size", self.udp_payload_size.is_some())];
        match given.into_iter().find(|(_, given)| *given && !self.edns) {
            Some((name, _)) => Err(format!("Provided option '{name}' needs 'edns' of 'true'. Given: 'false'.").into()),
            None => Ok(()),
        }
    }

    fn query(&self, server: &str, address: &str) -> dns::Query {
        dns::Query {
            question: dns::Question {
                name: question_name(&self.qname),
                type_: self.rdtype.clone(),
                class: self.class.clone(),
            },
            server: address.to_owned(),
            port: self.port,
            transport: match self.transport {
                Transport::Udp => dns::Transport::Udp,
                Transport::Tcp => dns::Transport::Tcp,
                Transport::Tls => dns::Transport::Tls,
                Transport::Https => dns::Transport::Https,
                Transport::Quic => dns::Transport::Quic,
            },
            // The certificate of a server that was given by name must be valid for the name.
            server_name: (!is_address(server)).then(|| server.trim_end_matches('.').to_owned()),
            recursion_desired: self.recursion,
            authentic_data: self.ad,
            checking_disabled: self.cd,
            edns: self.edns.then(|| dns::Edns {
                udp_payload_size: self.udp_payload_size.unwrap_or(UDP_PAYLOAD_SIZE),
                dnssec_ok: self.dnssec,
                nsid: self.nsid,
            }),
            timeout_ms: TIMEOUT_MS,
        }
    }
}

/// Is it an address, in any of the forms of one?
fn is_address(server: &str) -> bool {
    let bare = server.strip_prefix('[').and_then(|server| server.strip_suffix(']')).unwrap_or(server);
    bare.parse::<IpAddr>().is_ok()
}

/// Why one name server gave no answer.
struct Failure {
    error: String,
    timeout: bool,
}

impl Failure {
    fn of(error: NetError) -> Self {
        Self { timeout: error == NetError::Timeout, error: Error::from(error).to_string() }
    }
}

/// The failure of one name server, after which the next one is asked.
///
/// # Errors
/// When no other name server would do better: the question is invalid, or the target policy refuses the server.
fn failure(error: dns::DnsError) -> Result<Failure, Error> {
    use dns::DnsError as E;
    match error {
        E::Net(error @ NetError::Denied(_)) => Err(error.into()),
        E::Net(error) => Ok(Failure::of(error)),
        E::Malformed(error) | E::Handshake(error) => Ok(Failure { error, timeout: false }),
        E::BadName(why) => Err(format!("Provided value of 'qname' is not allowed: {why}.").into()),
        E::UnknownType(which) => Err(format!("Provided record type of '{which}' is not a recognized type.").into()),
        E::ZoneTransfer(which) => Err(format!(
            "Provided record type of '{which}' is not allowed: zone transfers (AXFR, IXFR) are no lookups. Please ask for \
             one record type."
        )
        .into()),
        E::UnknownClass(which) => {
            Err(format!("Provided class of '{which}' is not a recognized class. ('IN', 'CH', 'HS', 'NONE', 'ANY').")
                .into())
        }
    }
}

fn no_answer(servers: &[String], attempts: &[Attempt]) -> Error {
    let list: Vec<_> = servers.iter().map(|server| format!("'{server}'")).collect();
    let reasons: Vec<_> = attempts.iter().filter_map(Attempt::error).collect();
    let (list, reasons) = (list.join(", "), reasons.join("; "));
    format!("Unable to get an answer back from any of the following nameservers: [{list}]. {reasons}").into()
}

scouter_sdk::export!(DnsLookup);

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;

    fn options(options: Value) -> Result<Options, String> {
        testing::options::<DnsLookup>(options)
    }

    #[test]
    fn only_the_name_is_required() {
        let query = options(json!({"qname": "a.example"})).expect("valid").query("192.0.2.53", "192.0.2.53");
        let expected = dns::Query {
            question: dns::Question { name: "a.example".into(), type_: "A".into(), class: "IN".into() },
            server: "192.0.2.53".into(),
            port: None,
            transport: dns::Transport::Udp,
            server_name: None,
            recursion_desired: true,
            authentic_data: false,
            checking_disabled: false,
            edns: Some(dns::Edns { udp_payload_size: 1232, dnssec_ok: false, nsid: false }),
            timeout_ms: 3000,
        };
        assert_eq!(query, expected);
        assert!(options(json!({})).is_err());
    }

    #[test]
    fn an_empty_name_is_the_root() {
        let query = options(json!({"qname": ""})).expect("valid").query("192.0.2.53", "192.0.2.53");
        assert_eq!(query.question.name, ".");
    }

    #[test]
    fn bits_and_edns_are_what_is_asked_for() {
        let query = |all: Value| options(all).expect("valid").query("192.0.2.53", "192.0.2.53");
        let all = query(
            json!({"qname": "x", "ad": true, "cd": true, "dnssec": true, "nsid": true, "udp_payload_size": 4096}),
        );
        assert_eq!((all.authentic_data, all.checking_disabled), (true, true));
        assert_eq!(all.edns, Some(dns::Edns { udp_payload_size: 4096, dnssec_ok: true, nsid: true }));
        assert_eq!(query(json!({"qname": "x", "edns": false})).edns, None);
        for (name, value) in [("dnssec", json!(true)), ("nsid", json!(true)), ("udp_payload_size", json!(512))] {
            let mut all = json!({"qname": "x", "edns": false});
            all[name] = value;
            let message = format!("Provided option '{name}' needs 'edns' of 'true'. Given: 'false'.");
            assert_eq!(options(all.clone()).expect("valid").check(), Err(message.into()));
            all["edns"] = json!(true);
            assert_eq!(options(all).expect("valid").check(), Ok(()));
        }
    }

    #[test]
    fn an_address_in_another_form_is_no_name() {
        let options = options(json!({"qname": "x", "transport": "tls"})).expect("valid");
        for (server, address) in [("::ffff:192.0.2.53", "192.0.2.53"), ("[2001:DB8::53]", "2001:db8::53")] {
            assert_eq!(options.query(server, address).server_name, None, "{server}");
        }
    }

    #[test]
    fn a_server_given_by_name_must_have_a_certificate_for_it() {
        let options = options(json!({"qname": "x", "transport": "tls", "port": 8853})).expect("valid");
        let query = options.query("dns.example.", "192.0.2.53");
        assert_eq!((query.server_name.as_deref(), query.server.as_str()), (Some("dns.example"), "192.0.2.53"));
        assert_eq!((query.transport, query.port), (dns::Transport::Tls, Some(8853)));
    }

    #[test]
    fn options_are_checked() {
        for (all, valid) in [
            (json!({"qname": "x", "ns": "192.0.2.1, 192.0.2.2"}), true),
            (json!({"qname": "x", "ns": ["192.0.2.1", "192.0.2.2"]}), true),
            (json!({"qname": "x", "ns": [53]}), false),
            (json!({"qname": "x", "transport": "quic"}), true),
            (json!({"qname": "x", "transport": "UDP"}), false),
            (json!({"qname": "x", "port": 0}), false),
            (json!({"qname": "x", "port": 65_535}), true),
            (json!({"qname": "x", "udp_payload_size": 512}), true),
            (json!({"qname": "x", "udp_payload_size": 511}), false),
            (json!({"qname": "x", "udp_payload_size": 4097}), false),
            (json!({"qname": "x", "rdtype": ""}), false),
            (json!({"qname": "x".repeat(1025)}), false),
            (json!({"qname": "x", "type": "A"}), false),
        ] {
            assert_eq!(options(all.clone()).is_ok(), valid, "{all}");
        }
    }

    #[test]
    fn an_invalid_question_ends_the_test_and_a_failed_server_does_not() {
        use dns::DnsError as E;
        for (error, message) in [
            (E::BadName("'..' is empty".into()), "Provided value of 'qname' is not allowed: '..' is empty."),
            (E::UnknownType("XX".into()), "Provided record type of 'XX' is not a recognized type."),
            (
                E::UnknownClass("XX".into()),
                "Provided class of 'XX' is not a recognized class. ('IN', 'CH', 'HS', 'NONE', 'ANY').",
            ),
            (
                E::ZoneTransfer("AXFR".into()),
                "Provided record type of 'AXFR' is not allowed: zone transfers (AXFR, IXFR) are no lookups. Please ask for one record type.",
            ),
            (E::Net(NetError::Denied("refused".into())), "refused"),
        ] {
            assert_eq!(failure(error).map(|failure| failure.error), Err(message.into()));
        }
        for (error, text, timeout) in [
            (E::Net(NetError::Timeout), "no answer within the time given", true),
            (E::Net(NetError::Refused), "connection refused", false),
            (E::Malformed("short".into()), "short", false),
            (E::Handshake("unknown issuer".into()), "unknown issuer", false),
        ] {
            let failure = failure(error).expect("the next server is asked");
            assert_eq!((failure.error.as_str(), failure.timeout), (text, timeout));
        }
    }

    #[test]
    fn without_any_answer_all_name_servers_are_listed() {
        let attempts = [
            Attempt::failed("192.0.2.1", Some("192.0.2.1".into()), Failure::of(NetError::Timeout)),
            Attempt::failed("b", None, Failure::of(NetError::Unresolved("no address".into()))),
        ];
        let message = "Unable to get an answer back from any of the following nameservers: ['192.0.2.1', 'b']. \
                       no answer within the time given; no address";
        assert_eq!(no_answer(&["192.0.2.1".into(), "b".into()], &attempts).to_string(), message);
    }
}
