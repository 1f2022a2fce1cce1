//! The result of a `dns_lookup`.

use scouter_sdk::nameserver::rcode;
use scouter_sdk::prelude::*;
use scouter_sdk::stats::{ms, seconds};

use crate::Failure;
use crate::edns::Edns;

/// Result of a lookup.
#[derive(Serialize, JsonSchema)]
pub struct LookupResult {
    /// Address of the name server that answered.
    ns: String,
    /// Response code: ok, format-error, server-failure, name-error, not-implemented, refused, or the IANA mnemonic in lower
    /// case.
    rcode: String,
    /// Seconds from the query to its answer.
    elapsed_time: f64,
    /// Number of queries without an answer.
    timeout_count: usize,
    question: Question,
    answer: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
    /// Header bits of the answer: aa, tc, rd, ra, ad, cd.
    flags: Vec<&'static str>,
    /// OPT record of the answer; null when there is none, or a malformed one.
    edns: Option<Edns>,
    /// Bytes of the answer's DNS message.
    size: u32,
    /// Transport of the answer: tcp after a truncated answer over udp.
    transport: &'static str,
    /// `host_scheduling_delay` when this host was too busy to time the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<String>,
    /// Name servers that were asked.
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
    /// Presentation form.
    rdata: String,
}

/// A query to one name server.
#[derive(Serialize, JsonSchema)]
pub struct Attempt {
    /// The name server of the option, or of the probing host.
    ns: String,
    /// Its address; null when its name was not resolved.
    address: Option<String>,
    /// Milliseconds from the query to its answer.
    ms: Option<f64>,
    error: Option<String>,
    #[serde(skip)]
    timeout: bool,
}

impl Attempt {
    pub fn failed(ns: &str, address: Option<String>, failure: Failure) -> Self {
        Self { ns: ns.to_owned(), address, ms: None, error: Some(failure.error), timeout: failure.timeout }
    }

    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

impl LookupResult {
    /// `server` is the name server as it was given, `attempts` are those before it.
    pub fn new(server: &str, address: &str, answer: dns::Answer, mut attempts: Vec<Attempt>) -> Self {
        let timeout_count = attempts.iter().filter(|attempt| attempt.timeout).count();
        attempts.push(Attempt {
            ns: server.to_owned(),
            address: Some(address.to_owned()),
            ms: Some(ms(answer.elapsed_ns)),
            error: None,
            timeout: false,
        });
        let records = |records: Vec<dns::ResourceRecord>| records.into_iter().map(Record::from).collect();
        Self {
            ns: address.to_owned(),
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
            flags: flag_names(answer.flags),
            edns: answer.opt.map(Edns::from),
            size: answer.size,
            transport: match answer.transport {
                dns::Transport::Udp => "udp",
                dns::Transport::Tcp => "tcp",
                dns::Transport::Tls => "tls",
                dns::Transport::Https => "https",
                dns::Transport::Quic => "quic",
            },
            degraded: answer.degraded,
            attempts,
            failed: false,
        }
    }
}

/// The abbreviations of `dig(1)`.
fn flag_names(flags: dns::AnswerFlags) -> Vec<&'static str> {
    use dns::AnswerFlags as Flag;
    let names = [
        (Flag::AUTHORITATIVE, "aa"),
        (Flag::TRUNCATED, "tc"),
        (Flag::RECURSION_DESIRED, "rd"),
        (Flag::RECURSION_AVAILABLE, "ra"),
        (Flag::AUTHENTIC_DATA, "ad"),
        (Flag::CHECKING_DISABLED, "cd"),
    ];
    names.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| name).collect()
}

impl From<dns::ResourceRecord> for Record {
    fn from(r: dns::ResourceRecord) -> Self {
        Self { rrname: r.name, rtype: r.type_, rclass: r.class, ttl: r.ttl, rdlen: r.data_length, rdata: r.data }
    }
}

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;
    use crate::DnsLookup;

    fn answer(rcode: u16, mnemonic: &str) -> dns::Answer {
        let record = |name: &str| dns::ResourceRecord {
            name: name.into(),
            type_: "A".into(),
            class: "IN".into(),
            ttl: 60,
            data_length: 4,
            data: "192.0.2.7".into(),
        };
        dns::Answer {
            rcode,
            mnemonic: mnemonic.into(),
            flags: dns::AnswerFlags::AUTHORITATIVE | dns::AnswerFlags::RECURSION_DESIRED,
            question: dns::Question { name: "a.example.".into(), type_: "A".into(), class: "IN".into() },
            answers: vec![record("a.example.")],
            authorities: vec![record("example.")],
            additionals: vec![],
            opt: None,
            size: 54,
            transport: dns::Transport::Tcp,
            elapsed_ns: 1_234_567,
            degraded: None,
        }
    }

    fn result(server: &str, address: &str, answer: dns::Answer, attempts: Vec<Attempt>) -> Value {
        let result = LookupResult::new(server, address, answer, attempts);
        testing::result::<DnsLookup>(&result).expect("as its schema says")
    }

    #[test]
    fn a_result_has_every_field_of_the_first_version() {
        let result = result("192.0.2.53", "192.0.2.53", answer(0, "noerror"), vec![]);
        let record =
            json!({"rrname": "a.example.", "type": "A", "rclass": "IN", "ttl": 60, "rdlen": 4, "rdata": "192.0.2.7"});
        for (field, value) in [
            ("ns", json!("192.0.2.53")),
            ("rcode", json!("ok")),
            ("elapsed_time", json!(0.001_235)),
            ("timeout_count", json!(0)),
            ("question", json!({"qname": "a.example.", "qtype": "A", "qclass": "IN"})),
            ("answer", json!([record])),
            ("failed", json!(false)),
            ("flags", json!(["aa", "rd"])),
            ("transport", json!("tcp")),
            ("additional", json!([])),
            ("edns", json!(null)),
        ] {
            assert_eq!(result[field], value, "{field}");
        }
        assert_eq!(result["authority"][0]["rrname"], "example.");
    }

    #[test]
    fn ns_is_the_address_that_answered_and_attempts_have_what_was_given() {
        let failed = Failure { error: "no answer within the time given".into(), timeout: true };
        let refused = Failure { error: "connection refused".into(), timeout: false };
        let attempts = vec![
            Attempt::failed("198.51.100.1", Some("198.51.100.1".into()), failed),
            Attempt::failed("ns.example", Some("2001:db8::53".into()), refused),
        ];
        let result = result("ns.example", "192.0.2.53", answer(2, "servfail"), attempts);
        assert_eq!((&result["ns"], &result["timeout_count"]), (&json!("192.0.2.53"), &json!(1)));
        assert_eq!((&result["rcode"], &result["failed"]), (&json!("server-failure"), &json!(false)));
        let last = json!({"ns": "ns.example", "address": "192.0.2.53", "ms": 1.235, "error": null});
        assert_eq!((result["attempts"].as_array().map(Vec::len), &result["attempts"][2]), (Some(3), &last));
    }

    #[test]
    fn flags_have_the_abbreviations_of_dig() {
        assert_eq!(flag_names(dns::AnswerFlags::all()), ["aa", "tc", "rd", "ra", "ad", "cd"]);
        assert!(flag_names(dns::AnswerFlags::empty()).is_empty());
    }
}
