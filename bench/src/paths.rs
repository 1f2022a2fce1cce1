//! What a trace costs: time, processor, and the truth of its times when there are many.

use serde_json::{Value, json};

use crate::figures::{cpu, median};
use crate::report;
use crate::support::lab::Lab;
use crate::support::server::Server;

fn duration(test: &Value) -> f64 {
    test["timing"]["duration_ms"].as_f64().expect("a time")
}

/// The round trips of a trace, TTL by TTL.
fn rtts(test: &Value) -> Vec<Option<f64>> {
    test["result"]["trace"].as_array().expect("a trace").iter().map(|hop| hop["rtt_ms"].as_f64()).collect()
}

/// What silence costs: one router that never answers, and a target of which nothing is heard.
pub fn silence(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    for (dst, what) in [("10.81.0.2", "IPv4"), ("fd81::2", "IPv6")] {
        let mut over = vec![];
        for proto in ["ICMP", "TCP", "UDP"].repeat(3) {
            let test = server.test("traceroute", &json!({"dst": dst, "proto": proto}));
            let slowest = rtts(&test).into_iter().flatten().fold(0.0, f64::max);
            over.push(duration(&test) - slowest - 1000.0);
        }
        over.sort_by(f64::total_cmp);
        let got = format!("{:.0} ms, slowest of 9 {:.0} ms", over[4], over[8]);
        report(&format!("path with a silent hop, {what}: over slowest answer + timeout"), &got, "< 100 ms");
    }
    for dst in ["10.81.1.9", "fd81:0:0:1::9"] {
        let mut took: Vec<f64> = ["ICMP", "TCP", "UDP"]
            .repeat(3)
            .into_iter()
            .map(|proto| duration(&server.test("traceroute", &json!({"dst": dst, "proto": proto, "max_ttl": 32}))))
            .collect();
        took.sort_by(f64::total_cmp);
        let got = format!("{:.0} ms, slowest of 9 {:.0} ms", took[4], took[8]);
        report(&format!("black hole {dst}, 32 TTLs, timeout 1,000 ms"), &got, "< 1,500 ms");
    }
}

/// Fifty traces to one target and fifty to different ones, all carriers: is each time still that of the single trace?
pub fn hundred(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn"), ("SCOUTER_MAX_PROCESS_COUNT", "100")]);
    let carriers = ["ICMP", "TCP", "UDP"];
    let options = |n: usize| {
        let last = if n < 50 { 2 } else { n - 40 };
        json!({"dst": format!("10.81.0.{last}"), "proto": carriers[n % 3]})
    };
    let single: Vec<Vec<Option<f64>>> = (0..30).map(|n| rtts(&server.test("traceroute", &options(n)))).collect();
    let alone = |ttl: usize| median(single.iter().filter_map(|rtts| rtts[ttl]).collect());
    let all: Vec<Value> = (0..100).map(options).collect();
    let results = server.run(&json!({"traceroute": all}));
    let (mut off, mut wrong) = (vec![], 0);
    for test in results["traceroute"].as_array().expect("results") {
        let rtts = rtts(test);
        wrong += usize::from(rtts.len() != 8 || rtts.iter().filter(|rtt| rtt.is_none()).count() != 1);
        off.extend(rtts.iter().enumerate().filter_map(|(ttl, rtt)| Some((rtt.as_ref()? - alone(ttl)).abs())));
    }
    off.sort_by(f64::total_cmp);
    let at = |part: usize| off[(off.len() - 1) * part / 100];
    let got = format!("{:.2} ms, p99 {:.2} ms, most {:.2} ms", at(50), at(99), at(100));
    report("100 traces at once: RTT off the single trace's, median", &got, "within 1 ms");
    report("100 traces at once: traces with a hop too many or too few", &wrong.to_string(), "0");
}

/// Processor time of the server for each trace, of those that it runs one after the other.
pub fn trace_cpu(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    for (what, options) in [
        ("10 hops (a loop)", json!({"dst": "10.81.4.9", "max_ttl": 10, "timeout_ms": 50})),
        ("a path of 9 hops, 32 TTLs allowed", json!({"dst": "10.81.7.2", "timeout_ms": 50})),
    ] {
        for proto in ["ICMP", "TCP", "UDP"] {
            let mut options = options.clone();
            options["proto"] = json!(proto);
            let each = per_trace(&server, &options);
            report(&format!("CPU per trace, {proto}, {what}"), &format!("{each:.2} ms"), "< 5 ms");
        }
    }
}

fn per_trace(server: &Server, options: &Value) -> f64 {
    server.test("traceroute", options);
    let before = cpu(server);
    for _ in 0..4 {
        let tests = vec![options.clone(); 50];
        server.run(&json!({"traceroute": tests}));
    }
    (cpu(server) - before) * 1000.0 / 200.0
}
