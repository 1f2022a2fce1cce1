//! What a trace costs: processor time, and the truth of its times when there are many.

use serde_json::{Value, json};

use crate::Run;
use crate::process::cpu;
use crate::report::Promise;
use crate::stats::{median, percentile};
use crate::support::server::Server;

const SECTION: &str = "Many traces";

/// The round trips of a trace, TTL by TTL.
fn rtts(test: &Value) -> Vec<Option<f64>> {
    test["result"]["trace"].as_array().expect("a trace").iter().map(|hop| hop["rtt_ms"].as_f64()).collect()
}

/// Fifty traces to one target and fifty to forty others, all carriers: is each time still that of the single trace? Addresses
/// from .50 on may lie behind a delay.
pub fn hundred(run: &mut Run) {
    let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn"), ("SCOUTER_MAX_PROCESS_COUNT", "100")]);
    let carriers = ["ICMP", "TCP", "UDP"];
    let options = |n: usize| {
        let last = if n < 50 { 2 } else { 10 + n % 40 };
        json!({"dst": format!("10.81.0.{last}"), "proto": carriers[n % 3]})
    };
    let single: Vec<Vec<Option<f64>>> = (0..30).map(|n| rtts(&server.test("traceroute", &options(n)))).collect();
    let alone = |ttl: usize| median(&single.iter().filter_map(|rtts| rtts[ttl]).collect::<Vec<_>>());
    let all: Vec<Value> = (0..100).map(options).collect();
    let results = server.run(&json!({"traceroute": all}));
    let (mut off, mut wrong) = (vec![], 0);
    for test in results["traceroute"].as_array().expect("results") {
        let rtts = rtts(test);
        wrong += usize::from(rtts.len() != 8 || rtts.iter().filter(|rtt| rtt.is_none()).count() != 1);
        off.extend(rtts.iter().enumerate().filter_map(|(ttl, rtt)| Some((rtt.as_ref()? - alone(ttl)).abs())));
    }
    let at = |percent: usize| percentile(&off, percent);
    run.report.section(SECTION, "");
    let got = format!("{:.2} ms, p99 {:.2} ms, most {:.2} ms", at(50), at(99), at(100));
    let promise = Promise::holds(at(99) <= 1.0, "p99 within 1 ms");
    run.report.figure("100 traces at once: RTT off the single trace's, median", &got, promise);
    let what = "100 traces at once: traces with a hop too many or too few";
    run.report.figure(what, &wrong.to_string(), Promise::holds(wrong == 0, "0"));
}

/// Processor time of the server for each trace, of those that it runs one after the other.
pub fn trace_cpu(run: &mut Run) {
    let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    for (what, options) in [
        ("10 hops (a loop)", json!({"dst": "10.81.4.9", "max_ttl": 10, "timeout_ms": 50})),
        ("a path of 9 hops, 32 TTLs allowed", json!({"dst": "10.81.7.2", "timeout_ms": 50})),
    ] {
        for proto in ["ICMP", "TCP", "UDP"] {
            let mut options = options.clone();
            options["proto"] = json!(proto);
            let each = per_trace(&server, &options);
            run.report.section(SECTION, "");
            let what = format!("CPU per trace, {proto}, {what}");
            run.report.figure(&what, &format!("{each:.2} ms"), Promise::at_most(each, 5.0, "ms"));
        }
    }
}

fn per_trace(server: &Server, options: &Value) -> f64 {
    server.test("traceroute", options);
    let before = cpu(server.pid());
    for _ in 0..4 {
        let tests = vec![options.clone(); 50];
        server.run(&json!({"traceroute": tests}));
    }
    (cpu(server.pid()) - before) * 1000.0 / 200.0
}
