//! Latencies, memory, and differences to ping(8) and curl.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scouter::imports::Lent;
use scouter::net::Net;
use scouter::plugins::{Partial, Plugins};
use scouter::policy::Policy;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::report;
use crate::support::lab::Lab;
use crate::support::server::Server;
use crate::support::{hostile, scouter};

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// A plugin that does nothing, from a fresh store to its checked outcome.
pub fn sandbox(_: &Lab) {
    // A server compiles a plugin in a child of its own program: so it does that here, and this one finds the result.
    let cache = std::path::Path::new(scouter()).with_file_name("bench-cache");
    let folder = hostile();
    drop(Server::start(&[
        ("SCOUTER_PLUGIN_DIR", folder.to_str().expect("UTF-8")),
        ("SCOUTER_CACHE_DIR", cache.to_str().expect("UTF-8")),
    ]));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let samples = runtime.block_on(async {
        let lent = Arc::new(Lent {
            io: tokio::runtime::Handle::current(),
            net: Net::open().expect("engines"),
            policy: Policy::default(),
        });
        let plugins = Plugins::load(&[hostile()], Some(&cache), &lent).await.expect("plugins");
        let plugin = Arc::clone(plugins.get("hostile").expect("the plugin"));
        let cancel = CancellationToken::new();
        let mut samples = vec![];
        for round in 0..11_000 {
            let started = Instant::now();
            let outcome = plugin
                .run(&lent, r#"{"do":"nothing"}"#, Arc::new(Partial::default()), Duration::from_secs(5), &cancel)
                .await;
            if round >= 1000 {
                samples.push(started.elapsed().as_secs_f64() * 1e6);
            }
            assert!(outcome.is_ok());
        }
        samples
    });
    report("sandbox: instantiate and run nothing, median", &format!("{:.1} us", median(samples)), "< 100 us");
}

/// From the start of the process to its first answered request, with compiled plugins cached; and what it weighs then.
pub fn start(lab: &Lab) {
    drop(lab.server(&[]));
    let mut samples = vec![];
    for _ in 0..5 {
        let started = Instant::now();
        let server = lab.server(&[("SCOUTER_LOG", "info")]);
        assert_eq!(server.get("/api/v1.0/status").status, 200);
        samples.push(started.elapsed().as_secs_f64() * 1e3);
    }
    report("start to first answered request, warm cache, median", &format!("{:.0} ms", median(samples)), "< 300 ms");
    let server = lab.server(&[("SCOUTER_LOG", "info")]);
    let log = server.log();
    let loaded = log.split("ms=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or("?");
    report("loading every plugin from the cache", &format!("{loaded} ms"), "< 100 ms");
    std::thread::sleep(Duration::from_secs(2));
    report("idle server, resident", &format!("{:.1} MiB", server.weight().0 as f64 / 1024.0), "< 80 MiB");
}

/// A thousand tests waiting for the network at once.
pub fn waiting(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_MAX_PROCESS_COUNT", "1000"), ("SCOUTER_LOG", "info")]);
    let pings = |count: usize| {
        let tests: Vec<Value> =
            (0..count).map(|_| json!({"dst": "198.51.100.1", "count": 1, "timeout_ms": 10_000})).collect();
        json!({"ping": tests}).to_string()
    };
    server.run(&json!({"ping": [{"dst": "10.77.0.2", "count": 1}]}));
    let (idle, _) = server.weight();
    let answer = server.request("POST", "/api/v1.0/tests", Some(&pings(1000)));
    assert_eq!(answer.status, 200);
    std::thread::sleep(Duration::from_secs(3));
    let busy = server.get("/api/v1.0/status").body["worker_status"]
        .as_array()
        .map_or(0, |w| w.iter().filter(|w| w["status"] == "busy").count());
    let (held, _) = server.weight();
    report(
        &format!("{busy} tests waiting, over idle"),
        &format!("{:.1} MiB", held.saturating_sub(idle) as f64 / 1024.0),
        "< 64 MiB",
    );
}

/// Our round-trip times and ping(8)'s to the same host, in turns.
pub fn rtt(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info")]);
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..10 {
        let text = lab.probe.output("ping", &["-n", "-c", "20", "-i", "0.02", "10.77.0.2"]);
        theirs
            .extend(text.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok()));
        let test = server.test("ping", &json!({"dst": "10.77.0.2", "count": 20, "interval_ms": 20}));
        ours.extend(test["result"]["replies"].as_array().expect("replies").iter().filter_map(|r| r["rtt_ms"].as_f64()));
    }
    let (ours, theirs) = (median(ours) * 1e3, median(theirs) * 1e3);
    report("ping: median RTT, ours", &format!("{ours:.0} us"), "");
    report("ping: median RTT, ping(8)", &format!("{theirs:.0} us"), "");
    report("ping: difference", &format!("{:.0} us", (ours - theirs).abs()), "< 50 us");
}

/// `time_*` of http_request and of curl -w for the same resources, in turns.
pub fn phases(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info")]);
    let fields = ["time_namelookup", "time_connect", "time_appconnect", "time_starttransfer", "time_total"];
    let format = fields.map(|field| format!("%{{{field}}}")).join(" ");
    let ca = lab.path("ca.pem").display().to_string();
    for (url, version, flag) in [
        ("http://v4.lab.test/echo", "1.1", "--http1.1"),
        ("https://v4.lab.test/echo", "1.1", "--http1.1"),
        ("https://v4.lab.test/echo", "2", "--http2"),
        ("https://v4.lab.test/large", "1.1", "--http1.1"),
    ] {
        let (mut ours, mut theirs) = (vec![vec![]; 5], vec![vec![]; 5]);
        for _ in 0..21 {
            let text = lab.probe.output("curl", &["-s", "-o", "/dev/null", flag, "--cacert", &ca, "-w", &format, url]);
            for (n, value) in text.split(' ').enumerate() {
                theirs[n].push(value.parse::<f64>().expect("a number") * 1e3);
            }
            let result = server.test("http_request", &json!({"url": url, "version": version}))["result"].clone();
            for (n, field) in fields.iter().enumerate() {
                ours[n].push(result[*field].as_str().and_then(|t| t.parse::<f64>().ok()).expect("a number") * 1e3);
            }
        }
        for (n, field) in fields.iter().enumerate() {
            let (a, b) = (median(ours[n].clone()), median(theirs[n].clone()));
            report(&format!("{url} HTTP/{version} {field}"), &format!("{a:.1} ms, curl {b:.1} ms"), "within 2 ms");
        }
    }
}

/// CPU time that a process has used, in seconds.
pub fn cpu(server: &Server) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("stat");
    let after = stat.rsplit(')').next().expect("fields");
    let ticks: f64 = after.split_whitespace().skip(11).take(2).map(|t| t.parse::<f64>().expect("ticks")).sum();
    ticks / 100.0
}
