//! How traces adapt to their path: what they wait for, and how often they ask one router.

use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::number;
use super::path::{PROTOCOLS, TARGETS, fits, follows_the_chain, trace};
use crate::support::chain;
use crate::support::lab::Lab;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::pace", lab =>
        many_probes_at_one_hop_are_each_accounted_for,
        no_repeated_probe_is_lost,
        a_silent_router_costs_no_timeout,
    )
}

fn many_probes_at_one_hop_are_each_accounted_for(lab: &Lab) {
    let server = lab.server(&[]);
    let result = trace(&server, json!({"dst": "10.81.7.2", "probes": 10}));
    let trace = result["trace"].as_array().expect("a trace");
    let expected = [&chain::V4[..7], &[Some("10.81.6.2"), Some("10.81.7.2")]].concat();
    assert_eq!(trace.len(), 9, "{result}");
    for (expected, hop) in expected.iter().zip(trace) {
        assert!(fits(*expected, hop["src"].as_str()), "{result}");
        let rtts = hop["rtts_ms"].as_array().expect("times");
        assert_eq!(rtts.len(), 10, "{result}");
        let known: Vec<f64> = rtts.iter().filter_map(Value::as_f64).collect();
        assert_eq!(known.iter().copied().min_by(f64::total_cmp), hop["rtt_ms"].as_f64(), "{result}");
        // Also of the router that answers six at once, then one a second.
        assert_eq!(known.len(), if expected.is_some() { 10 } else { 0 }, "{result}");
        assert_eq!(hop["no_response"], json!(known.is_empty()), "{result}");
    }
}

/// By the router that answers seldom, too: over IPv6, whose answers are counted apart from those over IPv4.
fn no_repeated_probe_is_lost(lab: &Lab) {
    let server = lab.server(&[]);
    for (proto, dst) in [
        ("TCP", "10.81.0.2"),
        ("UDP", "10.81.0.2"),
        ("TCP", "fd81:0:0:7::2"),
        // That router itself.
        ("UDP", "fd81:0:0:6::2"),
    ] {
        let result = trace(&server, json!({"dst": dst, "proto": proto, "probes": 3}));
        assert_eq!(result["reached"], json!(true), "{result}");
        for hop in result["trace"].as_array().expect("a trace").iter().filter(|hop| hop["ttl"] != json!(4)) {
            let rtts = hop["rtts_ms"].as_array().expect("times").iter();
            let others = hop["others"].as_array().into_iter().flatten();
            let rtts = rtts.chain(others.flat_map(|other| other["rtts_ms"].as_array().expect("times")));
            let known: Vec<bool> = rtts.map(Value::is_number).collect();
            assert_eq!(known, [true; 3], "{proto} {dst} TTL {}: {result}", hop["ttl"]);
        }
    }
}

/// Its neighbours say how long an answer may take.
fn a_silent_router_costs_no_timeout(lab: &Lab) {
    let server = lab.server(&[]);
    for (dst, expected) in TARGETS {
        for proto in PROTOCOLS {
            let test = server.test("traceroute", &json!({"dst": dst, "proto": proto, "timeout_ms": 10_000}));
            follows_the_chain(&test["result"], expected, dst);
            // On a quiet machine 12 ms: bench/ asserts that.
            assert!(number(&test["timing"]["duration_ms"]) < 5_000.0, "{test}");
        }
    }
}
