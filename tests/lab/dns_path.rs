//! `dns_traceroute` along the chain of routers.

use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::path::{TARGETS, follows_the_chain, srcs};
use crate::support::lab::Lab;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::dns_path", lab =>
        a_name_server_answers_at_the_end_of_its_path,
        a_name_server_that_does_not_answer_has_failed,
    )
}

fn a_name_server_answers_at_the_end_of_its_path(lab: &Lab) {
    let server = lab.server(&[]);
    for (ns, chain) in TARGETS {
        for (qname, rcode) in [("www.lab.test", "ok"), ("nothing.lab.test", "name-error"), ("example.com", "refused")] {
            for ns in [json!(ns), json!([ns, "10.77.0.2"])] {
                let test = server.test("dns_traceroute", &json!({"qname": qname, "ns": ns}));
                let result = &test["result"];
                let address = result["address"].as_str().expect("an address");
                follows_the_chain(result, chain, address);
                let of = |field: &str| result[field].clone();
                // Header 12, question (name with a length byte for each label, and the root) + 4, EDNS 11.
                let size = 12 + qname.len() + 2 + 4 + 11;
                let ip = if address.contains(':') { 48 } else { 28 };
                assert_eq!(
                    (of("qname"), of("proto"), of("dport"), of("payload_size"), of("packet_size"), of("rcode")),
                    (json!(qname), json!("UDP"), json!(53), json!(size), json!(size + ip), json!(rcode)),
                    "{result}"
                );
                assert_eq!(
                    result["trace"][7]["answer"].as_str().map(|a| a.starts_with("DNS ")),
                    Some(true),
                    "{result}"
                );
            }
        }
    }
    // The host's own name server, one hop away; by name.
    for options in [json!({"qname": "www.lab.test"}), json!({"qname": "www.lab.test", "ns": "v4.lab.test"})] {
        let test = server.test("dns_traceroute", &options);
        let result = &test["result"];
        assert_eq!((srcs(result), &test["failed"]), (vec![Some("10.77.0.2")], &json!(false)), "{test}");
        let ns = options.get("ns").cloned().unwrap_or_else(|| json!("10.77.0.2"));
        assert_eq!((&result["ns"], &result["address"]), (&ns, &json!("10.77.0.2")), "{test}");
    }
}

fn a_name_server_that_does_not_answer_has_failed(lab: &Lab) {
    let server = lab.server(&[]);
    let silent = server.test("dns_traceroute", &json!({"qname": "www.lab.test", "ns": "10.81.1.9", "max_ttl": 9}));
    assert_eq!((&silent["failed"], &silent["result"]["rcode"]), (&json!(true), &Value::Null), "{silent}");
    assert_eq!(srcs(&silent["result"]).len(), 9, "{silent}");
    // A host without a name server: it answers, but not the question.
    let none = server.test("dns_traceroute", &json!({"qname": "www.lab.test", "ns": "10.81.5.2"}));
    let result = &none["result"];
    assert_eq!(
        (&none["failed"], &result["reached"], &result["rcode"]),
        (&json!(true), &json!(true), &Value::Null),
        "{none}"
    );
    assert_eq!(result["trace"][7]["answer"], json!("port unreachable"), "{none}");
}
