//! Latencies, memory, and differences to ping(8) and curl.

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

use crate::report;
use crate::support::lab::Lab;
use crate::support::server::Server;
use crate::support::{hostile, plugins, scouter};

pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// From kilobytes.
pub fn mib(kb: u64) -> f64 {
    f64::from(u32::try_from(kb).expect("a few gigabytes at most")) / 1024.0
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
    report("sandbox: instantiate and run nothing, median", &format!("{:.1} us", median(samples)), "< 100 us");
}

/// Does the time that a wrong secret takes tell how much of it is right? Welch's t over two kinds of wrong ones, in
/// turns, without the slowest tenth of each (whoever was interrupted); beyond 4.5 it would.
pub fn auth(_: &Lab) {
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
    report("wrong secrets, right in no byte or all but one: |t|", &format!("{t:.2}"), "< 4.5");
}

/// From the start of the process to its first answered request, with compiled plugins cached; and what it weighs then.
pub fn start(lab: &Lab) {
    drop(lab.server(&[]));
    let mut samples = vec![];
    for _ in 0..5 {
        let started = Instant::now();
        let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
        assert_eq!(server.get("/api/v1.0/status").status, 200);
        samples.push(started.elapsed().as_secs_f64() * 1e3);
    }
    report("start to first answered request, warm cache, median", &format!("{:.0} ms", median(samples)), "< 300 ms");
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let log = server.log();
    let loaded = log.split("ms=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or("?");
    report("loading every plugin from the cache", &format!("{loaded} ms"), "< 100 ms");
    std::thread::sleep(Duration::from_secs(2));
    report("idle server, resident", &format!("{:.1} MiB", mib(server.weight().0)), "< 80 MiB");
}

/// A thousand tests waiting for the network at once.
pub fn waiting(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_MAX_PROCESS_COUNT", "1000"), ("SCOUTER_LOG", "info,access=warn")]);
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
        &format!("{:.1} MiB", mib(held.saturating_sub(idle))),
        "< 64 MiB",
    );
}

/// What 32 plugins that compute without end do to the API and to somebody's ping.
pub fn neighbours(lab: &Lab) {
    let both = format!("{},{}", plugins().display(), hostile().display());
    let settings = [
        ("SCOUTER_MAX_PROCESS_COUNT", "40"),
        ("SCOUTER_LOG", "info,access=warn"),
        ("SCOUTER_PLUGIN_DIR", both.as_str()),
    ];
    let server = lab.server(&settings);
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
    samples.sort_by(f64::total_cmp);
    let p99 = samples[samples.len() * 99 / 100];
    report("GET /status beside 32 spinning plugins, p99", &format!("{p99:.1} ms"), "< 100 ms");
    let rtt = |test: &Value| test["result"]["stats"]["p50_ms"].as_f64().expect("a number") * 1e3;
    let got = format!("{:.0} us, alone {:.0} us", rtt(&disturbed), rtt(&calm));
    report("ping beside 32 spinning plugins, median RTT", &got, "within 1 ms");
}

/// Our round-trip times and ping(8)'s to the same host, in turns.
pub fn rtt(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..10 {
        let text = lab.probe.output("ping", &["-n", "-c", "20", "-i", "0.02", "10.77.0.2"]);
        theirs
            .extend(text.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok()));
        let pinged = server.test("ping", &json!({"dst": "10.77.0.2", "count": 20, "interval_ms": 20}));
        ours.extend(
            pinged["result"]["replies"].as_array().expect("replies").iter().filter_map(|r| r["rtt_ms"].as_f64()),
        );
    }
    let (ours, theirs) = (median(ours) * 1e3, median(theirs) * 1e3);
    report("ping: median RTT, ours", &format!("{ours:.0} us"), "");
    report("ping: median RTT, ping(8)", &format!("{theirs:.0} us"), "");
    report("ping: difference", &format!("{:.0} us", (ours - theirs).abs()), "< 50 us");
}

/// The phases of `http_request` and of curl for the same resources, in turns. curl asks another name of the server first,
/// so that reading certificates and starting its TLS library are over; only the second transfer is looked at.
pub fn phases(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let fields =
        ["time_namelookup", "time_connect", "time_appconnect", "time_pretransfer", "time_starttransfer", "time_total"];
    let format = format!("{}\n", fields.map(|field| format!("%{{{field}}}")).join(" "));
    let ca = lab.path("ca.pem").display().to_string();
    for (path, scheme, version, flag) in [
        ("echo", "http", "1.1", "--http1.1"),
        ("echo", "https", "1.1", "--http1.1"),
        ("echo", "https", "2", "--http2"),
        ("large", "https", "1.1", "--http1.1"),
    ] {
        let (url, first) = (format!("{scheme}://v4.lab.test/{path}"), format!("{scheme}://mail.lab.test/{path}"));
        let (mut ours, mut theirs) = (vec![vec![]; 5], vec![vec![]; 5]);
        for _ in 0..21 {
            let once = ["-s", "-o", "/dev/null", flag, "--cacert", &ca, "-w", &format];
            let twice = [&once[..], &[&first, "--next"], &once[..], &[&url]].concat();
            let text = lab.probe.output("curl", &twice);
            let second = text.lines().nth(1).expect("two transfers");
            let t: Vec<f64> = second.split(' ').map(|v| v.parse::<f64>().expect("a number") * 1e3).collect();
            let secured = t[2].max(t[1]);
            for (n, length) in [t[0], t[1] - t[0], secured - t[1], t[4] - secured, t[5]].into_iter().enumerate() {
                theirs[n].push(length);
            }
            let result =
                server.test("http_request", &json!({"url": url, "version": version, "family": "4"}))["result"].clone();
            let of = |phase: &str| result["timings"][phase].as_f64().unwrap_or(0.0);
            let lengths = [of("dns"), of("connect"), of("tls"), of("send") + of("wait"), of("total")];
            for (n, length) in lengths.into_iter().enumerate() {
                ours[n].push(length);
            }
        }
        for (n, phase) in
            ["name lookup", "TCP connect", "TLS handshake", "request to first byte", "total"].iter().enumerate()
        {
            let (a, b) = (median(ours[n].clone()), median(theirs[n].clone()));
            report(&format!("{url} HTTP/{version}, {phase}"), &format!("{a:.2} ms, curl {b:.2} ms"), "within 2 ms");
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
