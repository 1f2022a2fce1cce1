//! `dns_lookup`: what does a name server answer to a question?

use scouter_sdk::in_words;
use scouter_sdk::nameserver::{NameServers, rcode};
use scouter_sdk::prelude::*;
use scouter_sdk::stats::ms;

struct DnsLookup;

/// Each name server has this long.
const TIMEOUT_MS: u32 = 3000;

/// Options of a lookup.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Name to ask for.
    #[schemars(length(min = 1, max = 1024))]
    qname: String,
    /// Name server, or several that are tried in order until one answers: addresses or names. The probing host's own
    /// when not given.
    ns: Option<NameServers>,
    /// Record type: a mnemonic such as MX, or `TYPEnnn`.
    #[serde(default = "rdtype")]
    #[schemars(length(min = 1, max = 32))]
    rdtype: String,
    /// How the question travels; over udp, a truncated answer is asked again over tcp.
    #[serde(default)]
    transport: Transport,
    /// Port of the name server, 1–65535; the transport's own when not given.
    #[schemars(range(min = 1, max = 65_535))]
    port: Option<u16>,
    /// Ask for DNSSEC records (DO bit).
    #[serde(default)]
    dnssec: bool,
    /// Ask for recursion (RD bit).
    #[serde(default = "yes")]
    recursion: bool,
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

/// What a name server answered.
#[derive(Serialize, JsonSchema)]
struct Answered {
    /// The name server that answered, as it was given.
    ns: String,
    rcode: String,
    /// Seconds, of the question that was answered.
    elapsed_time: f64,
    /// Questions that no answer came to.
    timeout_count: u32,
    question: Question,
    answer: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
    /// Header bits that are set: aa, tc, rd, ra, ad, cd.
    flags: Vec<&'static str>,
    /// Bytes of the answer's DNS message.
    size: u32,
    /// How the answer travelled: tcp after a truncated one over udp.
    transport: &'static str,
    attempts: Vec<Attempt>,
    failed: bool,
}

#[derive(Serialize, JsonSchema)]
struct Question {
    qname: String,
    qtype: String,
    qclass: String,
}

#[derive(Serialize, JsonSchema)]
struct Record {
    rrname: String,
    #[serde(rename = "type")]
    rtype: String,
    rclass: String,
    /// Seconds.
    ttl: u32,
    /// Bytes of the data on the wire.
    rdlen: u16,
    /// In presentation form.
    rdata: String,
}

/// One name server that was asked.
#[derive(Serialize, JsonSchema)]
struct Attempt {
    ns: String,
    address: Option<String>,
    ms: Option<f64>,
    error: Option<String>,
}

impl Probe for DnsLookup {
    type Options = Options;
    type Result = Answered;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Asks a name server over UDP, TCP, TLS, HTTPS or QUIC and reports its whole answer";

    fn run(options: Options) -> Result<Answered, Refusal> {
        let servers = match &options.ns {
            Some(NameServers::One(server)) => vec![server.clone()],
            Some(NameServers::Several(servers)) => servers.clone(),
            None => resolver::nameservers(),
        };
        if servers.is_empty() {
            return Err("The probing host has no name server of its own. Please pass the 'ns' option.".into());
        }
        let mut attempts = vec![];
        let mut timeouts = 0;
        for server in &servers {
            for (address, name) in addresses(server, &mut attempts, &mut timeouts) {
                match ask(&options, &address, name) {
                    Ok(answer) => {
                        attempts.push(Attempt {
                            ns: server.clone(),
                            address: Some(address),
                            ms: Some(ms(answer.elapsed_ns)),
                            error: None,
                        });
                        return Ok(Answered::new(server, answer, timeouts, attempts));
                    }
                    Err(Failure::Hopeless(refusal)) => return Err(refusal),
                    Err(Failure::Next { error, timeout }) => {
                        timeouts += u32::from(timeout);
                        attempts.push(Attempt {
                            ns: server.clone(),
                            address: Some(address),
                            ms: None,
                            error: Some(error),
                        });
                    }
                }
            }
        }
        let list = servers.iter().map(|server| format!("'{server}'")).collect::<Vec<_>>().join(", ");
        let reasons = attempts.iter().filter_map(|attempt| attempt.error.as_deref()).collect::<Vec<_>>().join("; ");
        Err(format!("Unable to get an answer back from any of the following nameservers: [{list}]. {reasons}").into())
    }
}

/// Why a name server gave no answer.
enum Failure {
    /// The question itself is wrong: no other server will do better.
    Hopeless(Refusal),
    Next {
        error: String,
        timeout: bool,
    },
}

/// The addresses of a name server that is given by name, with that name; one that is an address is its own.
fn addresses(server: &str, attempts: &mut Vec<Attempt>, timeouts: &mut u32) -> Vec<(String, Option<String>)> {
    match resolver::lookup(server, Family::Any) {
        Ok(found) => found
            .into_iter()
            .map(|address| {
                let name = (server != address).then(|| server.trim_end_matches('.').to_owned());
                (address, name)
            })
            .collect(),
        Err(error) => {
            *timeouts += u32::from(error == NetError::Timeout);
            attempts.push(Attempt { ns: server.to_owned(), address: None, ms: None, error: Some(in_words(&error)) });
            vec![]
        }
    }
}

fn ask(options: &Options, address: &str, server_name: Option<String>) -> Result<dns::Answer, Failure> {
    let next = |error: &NetError| Failure::Next { error: in_words(error), timeout: *error == NetError::Timeout };
    let answer = dns::ask(&dns::Request {
        question: dns::Question {
            name: options.qname.clone(),
            type_: options.rdtype.clone(),
            class: options.class.clone(),
        },
        server: address.to_owned(),
        port: options.port,
        transport: match options.transport {
            Transport::Udp => dns::Transport::Udp,
            Transport::Tcp => dns::Transport::Tcp,
            Transport::Tls => dns::Transport::Tls,
            Transport::Https => dns::Transport::Https,
            Transport::Quic => dns::Transport::Quic,
        },
        server_name,
        recursion_desired: options.recursion,
        dnssec_ok: options.dnssec,
        timeout_ms: TIMEOUT_MS,
    });
    let failure = |error| match error {
        // A refusal by the policy is the caller's to know, whatever else is in the list.
        dns::DnsError::Net(NetError::Denied(why)) => Failure::Hopeless(why.into()),
        dns::DnsError::Net(error) => next(&error),
        dns::DnsError::BadName(why) => {
            Failure::Hopeless(format!("Provided value of 'qname' is not allowed: {why}.").into())
        }
        dns::DnsError::UnknownType(which) => {
            Failure::Hopeless(format!("Provided record type of '{which}' is not a recognized type.").into())
        }
        dns::DnsError::UnknownClass(which) => Failure::Hopeless(
            format!("Provided class of '{which}' is not a recognized class. ('IN', 'CH', 'HS', 'NONE', 'ANY').").into(),
        ),
        dns::DnsError::Malformed(error) | dns::DnsError::Insecure(error) => Failure::Next { error, timeout: false },
    };
    answer.map_err(failure)
}

impl Answered {
    fn new(ns: &str, answer: dns::Answer, timeout_count: u32, attempts: Vec<Attempt>) -> Self {
        use dns::AnswerFlags as Flag;
        let names = [
            (Flag::AUTHORITATIVE, "aa"),
            (Flag::TRUNCATED, "tc"),
            (Flag::RECURSION_DESIRED, "rd"),
            (Flag::RECURSION_AVAILABLE, "ra"),
            (Flag::AUTHENTIC_DATA, "ad"),
            (Flag::CHECKING_DISABLED, "cd"),
        ];
        let records = |records: Vec<dns::ResourceRecord>| records.into_iter().map(Record::from).collect();
        Self {
            ns: ns.to_owned(),
            rcode: rcode(answer.rcode, answer.mnemonic),
            elapsed_time: seconds(answer.elapsed_ns),
            timeout_count,
            question: Question {
                qname: answer.question.name,
                qtype: answer.question.type_,
                qclass: answer.question.class,
            },
            answer: records(answer.answers),
            authority: records(answer.authorities),
            additional: records(answer.additionals),
            flags: names.into_iter().filter(|(flag, _)| answer.flags.contains(*flag)).map(|(_, name)| name).collect(),
            size: answer.size,
            transport: match answer.transport {
                dns::Transport::Udp => "udp",
                dns::Transport::Tcp => "tcp",
                dns::Transport::Tls => "tls",
                dns::Transport::Https => "https",
                dns::Transport::Quic => "quic",
            },
            attempts,
            failed: false,
        }
    }
}

/// With microsecond precision.
#[expect(clippy::cast_precision_loss, reason = "an answer takes far less than 2^52 ns")]
fn seconds(ns: u64) -> f64 {
    ((ns as f64) / 1e3).round() / 1e6
}

impl From<dns::ResourceRecord> for Record {
    fn from(r: dns::ResourceRecord) -> Self {
        Self { rrname: r.name, rtype: r.type_, rclass: r.class, ttl: r.ttl, rdlen: r.data_length, rdata: r.data }
    }
}

scouter_sdk::export!(DnsLookup);
