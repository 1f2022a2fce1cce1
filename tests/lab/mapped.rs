//! IPv4-mapped addresses (RFC 4291, section 2.5.5.2) are the IPv4 addresses that they map to, in every test type.

use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::dns::{lookup, name_server, resolving, wants_a};
use super::pages;
use super::path::trace;
use crate::support::lab::Lab;
use crate::support::server::Server;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::mapped", lab =>
        pings_and_traces_are_of_ipv4,
        name_servers_are_asked_over_ipv4,
        urls_lead_to_ipv4,
        names_with_mapped_addresses_are_those_of_ipv4,
    )
}

const MAPPED: &str = "::ffff:10.77.0.2";

fn is_v4(result: &Value, address: &str) {
    assert_eq!((&result["address"], &result["family"]), (&json!(address), &json!(4)), "{result}");
}

fn ping(server: &Server, options: Value) -> Value {
    let test = server.test("ping", &options);
    assert_eq!((&test["message"], &test["failed"]), (&Value::Null, &json!(false)), "{test}");
    test["result"].clone()
}

fn pings_and_traces_are_of_ipv4(lab: &Lab) {
    let server = lab.server(&[]);
    for (dst, family) in [(MAPPED, "any"), (MAPPED, "4"), ("[::FFFF:a4d:2]", "any")] {
        let result = ping(&server, json!({"dst": dst, "family": family, "count": 1}));
        is_v4(&result, "10.77.0.2");
        assert_eq!((&result["dst"], &result["packet_size"]), (&json!(dst), &json!(84)), "{result}");
    }
    let test = server.test("ping", &json!({"dst": MAPPED, "family": "6", "count": 1}));
    let message = format!("Unable to resolve '{MAPPED}': it is not an IPv6 address.");
    assert_eq!(test["message"], json!(message), "{test}");
    for proto in ["ICMP", "UDP", "TCP"] {
        let result = trace(&server, json!({"dst": MAPPED, "proto": proto}));
        is_v4(&result, "10.77.0.2");
        let size = if proto == "TCP" { 44 } else { 84 };
        assert_eq!((&result["reached"], &result["packet_size"]), (&json!(true), &json!(size)), "{result}");
    }
}

fn name_servers_are_asked_over_ipv4(lab: &Lab) {
    let server = lab.server(&[]);
    for transport in ["udp", "tcp", "tls"] {
        let result = lookup(&server, json!({"qname": "www.lab.test", "ns": MAPPED, "transport": transport}));
        let attempt = &result["attempts"][0];
        assert_eq!(
            (&result["ns"], &attempt["ns"], &attempt["address"]),
            (&json!("10.77.0.2"), &json!(MAPPED), &json!("10.77.0.2")),
            "{result}"
        );
    }
    let test = server.test("dns_traceroute", &json!({"qname": "www.lab.test", "ns": MAPPED}));
    is_v4(&test["result"], "10.77.0.2");
    assert_eq!(test["result"]["rcode"], json!("ok"), "{test}");
}

fn urls_lead_to_ipv4(lab: &Lab) {
    let server = pages::server(lab, &[]);
    let get = |options: Value| {
        let test = server.test("http_request", &options);
        assert_eq!((&test["message"], &test["failed"]), (&Value::Null, &json!(false)), "{options}: {test}");
        assert_eq!(test["result"]["remote_ip"], json!("10.77.0.2"), "{test}");
    };
    // The certificate names 10.77.0.2.
    for scheme in ["http", "https"] {
        get(json!({"url": format!("{scheme}://[{MAPPED}]/")}));
    }
    get(json!({"url": "https://www.lab.test/", "resolve": MAPPED}));
    for driver in pages::DRIVERS {
        let test = pages::load(&server, json!({"url": format!("http://[{MAPPED}]/"), "driver": driver}));
        let parent = &test["result"]["parent"];
        assert_eq!((&test["failed"], &parent["remote_ip"]), (&json!(false), &json!("10.77.0.2")), "{test}");
    }
}

fn names_with_mapped_addresses_are_those_of_ipv4(lab: &Lab) {
    name_server(lab, "10.77.0.27:53", |question| {
        let mut reply = question[..question.len() - 11].to_vec();
        reply[2] |= 0x80;
        (reply[7], reply[11]) = (u8::from(!wants_a(question)), 0);
        if !wants_a(question) {
            reply.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
            reply.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 0, 2]);
        }
        vec![reply]
    });
    let server = resolving(lab, "mapped.conf", "nameserver 10.77.0.27\n");
    is_v4(&ping(&server, json!({"dst": "mapped.example", "count": 1})), "10.77.0.2");
    let test = server.test("ping", &json!({"dst": "mapped.example", "family": "6", "count": 1}));
    let message = "Unable to resolve 'mapped.example': the name has no address of the wanted family.";
    assert_eq!(test["message"], json!(message), "{test}");
}
