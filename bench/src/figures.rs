//! What the sandbox, the check of secrets and the API itself cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use scouter::api::Auth;
use scouter::metrics::Metrics;
use scouter::sandbox::{Plugins, Progress};
use scouter::services::Services;
use scouter_net::policy::Policy;
use scouter_net::{Net, browser};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::Run;
use crate::peers::once;
use crate::report::Promise;
use crate::stats::{digits, median, percentile};
use crate::support::server::{SECRET, Server};
use crate::support::{hostile, plugins, scouter};

const SECTION: &str = "Sandbox and API";

/// A plugin that does nothing, from a fresh store to its checked outcome.
pub fn sandbox(run: &mut Run) {
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
        let browsers = browser::Config { ports: 9001..=9001, ttl: Duration::from_mins(5), idle: Duration::ZERO };
        let services = Arc::new(Services {
            io: tokio::runtime::Handle::current(),
            guests: tokio::runtime::Handle::current(),
            net: Net::open(Arc::default(), &Policy::default(), None, browsers).expect("engines"),
            policy: Policy::default(),
            metrics: Metrics::default(),
        });
        let plugins =
            Plugins::load(&[hostile()], Some(&cache), &tokio::runtime::Handle::current(), 1).await.expect("plugins");
        let plugin = Arc::clone(plugins.get("hostile").expect("the plugin"));
        let cancel = CancellationToken::new();
        let mut samples = vec![];
        for round in 0..11_000 {
            let started = Instant::now();
            let outcome = plugin
                .run(
                    &services,
                    r#"{"do":"nothing"}"#,
                    Arc::new(Progress::default()),
                    Duration::from_secs(5),
                    &cancel,
                    None,
                )
                .await;
            if round >= 1000 {
                samples.push(started.elapsed().as_secs_f64() * 1e6);
            }
            assert!(outcome.is_ok());
        }
        samples
    });
    let us = median(&samples);
    run.report.section(SECTION, "");
    let what = "a plugin that does nothing, from fresh sandbox to checked outcome, median";
    run.report.figure(what, &format!("{us:.1} µs"), Promise::at_most(us, 35.0, "µs"));
    run.report.raw(
        "sandbox",
        json!({"median_us": us, "middle_half_us": [percentile(&samples, 25), percentile(&samples, 75)]}),
    );
}

/// Does the time that a wrong secret takes tell how much of it is right? Welch's t over two kinds of wrong ones, in
/// turns, without the slowest tenth of each (whoever was interrupted); beyond 4.5 it would.
pub fn auth(run: &mut Run) {
    let right = "a-secret-that-nobody-will-guess";
    let auth = Auth::new(vec![Sha256::digest(right).into()], None);
    let headers = |secret: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", secret.parse().expect("a header value"));
        headers
    };
    let kinds = [headers("X-wrong-from-the-first-byte-onX"), headers("a-secret-that-nobody-will-guesS")];
    let mut samples = [vec![], vec![]];
    // In an order that no predictor learns (a linear congruential generator's upper bit).
    let mut state = 1_u64;
    for _ in 0..1_000_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let kind = usize::from(state >> 63 == 1);
        let started = Instant::now();
        assert!(std::hint::black_box(auth.accepts(&kinds[kind])).is_none());
        samples[kind].push(started.elapsed().as_secs_f64() * 1e9);
    }
    let [a, b] = samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples.truncate(samples.len() * 9 / 10);
        let count = f64::from(u32::try_from(samples.len()).expect("a million"));
        let mean = samples.iter().sum::<f64>() / count;
        let variance = samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    });
    let t = ((a.0 - b.0) / (a.1 + b.1).sqrt()).abs();
    run.report.section(SECTION, "");
    run.report.figure(
        "wrong secrets, right in no byte or all but one: |t|",
        &format!("{t:.2}"),
        Promise::at_most(t, 4.5, ""),
    );
}

/// What 32 plugins that compute without end do to the API and to somebody's ping.
pub fn neighbours(run: &mut Run) {
    let both = format!("{},{}", plugins().display(), hostile().display());
    let settings = [
        ("SCOUTER_MAX_PROCESS_COUNT", "40"),
        ("SCOUTER_LOG", "info,access=warn"),
        ("SCOUTER_PLUGIN_DIR", both.as_str()),
    ];
    let server = run.lab.server(&settings);
    let spinners: Vec<Value> = (0..32).map(|_| json!({"do": "spin"})).collect();
    let calm = server.test("ping", &json!({"dst": "10.77.0.2", "count": 20, "interval_ms": 20}));
    let payload = json!({"hostile": spinners}).to_string();
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload)).body["receipt"].clone();
    let path = format!("/api/v1.0/tests?receipt={}", receipt.as_str().expect("a receipt"));
    let mut samples = vec![];
    let disturbed = server.test("ping", &json!({"dst": "10.77.0.2", "count": 20, "interval_ms": 20}));
    while server.get(&path).body["is_running"] == json!(true) {
        let started = Instant::now();
        assert_eq!(server.get("/api/v1.0/status").status, 200);
        samples.push(started.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(5));
    }
    let p99 = percentile(&samples, 99);
    run.report.section(SECTION, "");
    let what = "GET /status beside 32 plugins that spin, p99";
    run.report.figure(what, &format!("{p99:.1} ms"), Promise::at_most(p99, 100.0, "ms"));
    let rtt = |test: &Value| test["result"]["stats"]["p50_ms"].as_f64().expect("a number") * 1e3;
    let (disturbed, calm) = (rtt(&disturbed), rtt(&calm));
    let what = "ping beside 32 plugins that spin, median RTT";
    let promise = Promise::holds((disturbed - calm).abs() <= 1000.0, "within 1 ms");
    run.report.figure(what, &format!("{disturbed:.0} µs, alone {calm:.0} µs"), promise);
}

/// How many answers the API itself gives.
pub fn status(run: &mut Run) {
    let time = run.pick(Duration::from_secs(10), Duration::from_secs(2));
    let server = run.lab.server(&[("SCOUTER_MAX_PROCESS_COUNT", "10"), ("SCOUTER_LOG", "info,access=warn")]);
    let (script, url) = (run.lab.path("wrk.lua"), server.url("/api/v1.0/status"));
    std::fs::write(&script, format!("wrk.headers['Authorization'] = '{SECRET}'\n")).expect("written");
    let (script, seconds) = (script.display().to_string(), format!("{}s", time.as_secs()));
    let ran = once(&run.lab.probe, "wrk".as_ref(), &["-t1", "-c64", "-d", &seconds, "-s", &script, &url]);
    assert!(!ran.text.contains("Non-2xx"), "{}", ran.text);
    let rate = ran.text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse::<f64>().ok());
    let rate = rate.unwrap_or_else(|| panic!("wrk: {}", ran.text));
    run.report.section(SECTION, "");
    let promise = Promise::at_least(rate, 20_000.0, "/s");
    run.report.figure("GET /status, 64 connections of wrk", &format!("{}/s", digits(rate)), promise);
}
