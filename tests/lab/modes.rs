//! Traces without privileges: over error queues, and the message when no ICMP socket is available.

use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::path::{TARGETS, follows_the_chain, trace};
use super::ping::nobody;
use crate::asn;
use crate::support::chain;
use crate::support::lab::{Lab, Namespace};
use crate::support::server::Server;
use crate::support::until;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::modes", lab =>
        error_queues_find_every_router_too,
        without_an_icmp_socket_the_other_carriers_still_trace,
        the_systems_of_a_path_follow_the_database,
    )
}

fn error_queues_find_every_router_too(lab: &Lab) {
    let server = lab.server_by(nobody(&lab.probe), &[("SCOUTER_CACHE_DIR", "/nonexistent/scouter")]);
    for (dst, expected) in TARGETS {
        for (proto, answer) in [("ICMP", "echo reply"), ("TCP", "SYN-ACK"), ("UDP", "port unreachable")] {
            let result = trace(&server, json!({"dst": dst, "proto": proto, "timeout_ms": 300}));
            follows_the_chain(&result, expected, dst);
            assert_eq!(
                (&result["mode"], &result["constant_flow"], &result["trace"][0]["mpls"]),
                (&json!("datagram"), &json!(proto == "ICMP"), &Value::Null),
                "{result}"
            );
            assert_eq!(result["trace"][7]["answer"], json!(answer), "{result}");
            let size = if proto == "TCP" { 0 } else { 56 };
            assert_eq!((&result["payload_size"], result["comment"].is_null()), (&json!(size), true), "{result}");
        }
        let closed = trace(&server, json!({"dst": dst, "proto": "TCP", "dport": 82, "timeout_ms": 300}));
        follows_the_chain(&closed, expected, dst);
        assert_eq!(closed["trace"][7]["answer"], json!("RST"), "{closed}");
    }
    let dns = server.test("dns_traceroute", &json!({"qname": "www.lab.test", "ns": "10.81.0.2"}));
    assert_eq!((&dns["result"]["rcode"], &dns["result"]["mode"]), (&json!("ok"), &json!("datagram")), "{dns}");
    follows_the_chain(&dns["result"], chain::V4, "10.81.0.2");
    let refused = trace(&server, json!({"dst": "10.81.2.9", "proto": "UDP", "timeout_ms": 300}));
    assert_eq!(refused["stopped_by"]["icmp"]["kind"], json!("host unreachable"), "{refused}");
}

fn without_an_icmp_socket_the_other_carriers_still_trace(_: &Lab) {
    let bare = Namespace::add(format!("scouter-{}-u", std::process::id()));
    bare.sh("sysctl -qw net.ipv4.ping_group_range='1 0'");
    let server = Server::spawn(nobody(&bare), &[("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8")], Some(bare.clone()));
    let test = server.test("traceroute", &json!({"dst": "127.0.0.1"}));
    let message = test["message"].as_str().expect("a message");
    assert!(message.contains("CAP_NET_RAW") && message.contains("ping_group_range"), "{test}");
    for (proto, answer) in [("UDP", "port unreachable"), ("TCP", "RST")] {
        let result = trace(&server, json!({"dst": "127.0.0.1", "proto": proto, "timeout_ms": 300}));
        assert_eq!(
            (&result["mode"], &result["trace"][0]["answer"], &result["reached"]),
            (&json!("datagram"), &json!(answer), &json!(true)),
            "{result}"
        );
    }
    drop(server);
    bare.delete();
}

fn the_systems_of_a_path_follow_the_database(lab: &Lab) {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, next) = (folder.path().join("asn.mmdb"), folder.path().join("next"));
    asn::database(&file, 64500);
    let server = lab.server(&[("SCOUTER_MMDB_PATH", file.to_str().expect("UTF-8"))]);
    let systems = || asn::systems(&trace(&server, json!({"dst": "10.81.0.2", "timeout_ms": 300})));
    let agree = |first: u32| {
        let seen = systems();
        let same = asn::expected(first).into_iter().all(|(place, number, name)| seen[place] == (number, name));
        // The database has no network of r6's address, and a silent router has no address.
        same && [3, 5].iter().all(|place| seen[*place] == (Value::Null, Value::Null))
    };
    assert!(agree(64500), "the first test of a new server knows them already: {:?}", systems());
    // The file is replaced while in use: by rename, and in place.
    asn::database(&next, 65000);
    std::fs::rename(&next, &file).expect("renamed");
    until("the new one is in use", || agree(65000));
    let whole = std::fs::read(&file).expect("read");
    for damaged in [&whole[..whole.len() / 2], b"", b"hello"] {
        std::fs::write(&file, damaged).expect("written");
        until("the damage is noticed", || {
            asn::status(&server).1.is_some_and(|problem| problem.contains("is not used"))
        });
        assert!(asn::status(&server).0.is_some() && agree(65000), "what was good stays");
        std::fs::write(&file, &whole).expect("written");
        until("the damage is mended", || asn::status(&server).1.is_none());
    }
    let six = asn::systems(&trace(&server, json!({"dst": "fd81::2", "timeout_ms": 300})));
    assert_eq!((&six[0].0, &six[4].0, &six[7].0), (&json!(65004), &json!(65005), &Value::Null), "{six:?}");
    assert_eq!(chain::V6[4], Some("2001:db8:5::5"));
}
