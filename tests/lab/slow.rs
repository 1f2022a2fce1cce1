//! Round trips of tens of milliseconds, over a link that holds packets back.

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;

use super::number;
use super::path::{follows_the_chain, srcs, trace};
use crate::support::chain;
use crate::support::delay::Detour;
use crate::support::lab::Lab;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::slow", lab => round_trips_are_those_of_the_link)
}

/// 30 ms there and 10 ms back, on top of what the path takes; a busy machine adds to it and never takes from it.
fn round_trips_are_those_of_the_link(lab: &Lab) {
    let detour = Detour::build(lab, 9, Duration::from_millis(30), Duration::from_millis(10));
    let server = lab.server(&[]);
    let dst = detour.target();
    let ping = server.test("ping", &json!({"dst": dst, "count": 5, "interval_ms": 20}));
    let least = number(&ping["result"]["stats"]["min_ms"]);
    assert!(ping["result"]["recv"] == json!(5) && (40.0..1000.0).contains(&least), "{ping}");
    for proto in ["ICMP", "UDP", "TCP"] {
        let result = trace(&server, json!({"dst": dst, "proto": proto}));
        let first = detour.first_hop();
        let mut expected = chain::V4;
        expected[0] = Some(&first);
        follows_the_chain(&result, expected, &dst);
        let hops = result["trace"].as_array().expect("a trace").iter().filter(|hop| hop["src"].is_string());
        assert!(hops.map(|hop| number(&hop["rtt_ms"])).all(|rtt| rtt >= 40.0), "{result}");
    }
    // r7 drops what goes there before it looks at the TTL.
    let nowhere = trace(&server, json!({"dst": detour.black_hole(), "max_ttl": 10, "timeout_ms": 500}));
    let seen = srcs(&nowhere);
    let heard: Vec<bool> = seen.iter().map(Option::is_some).collect();
    assert_eq!(heard, [true, true, true, false, true, true, false, false, false, false], "{nowhere}");
}
