//! What a server endures: a minute of load, slow connections, cancelled tests, signals at any moment.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::figures::mib;
use crate::report;
use crate::support::lab::Lab;
use crate::support::server::{SECRET, Server, children};
use crate::support::{hostile, plugins};

/// The value that so many of a hundred are below.
fn percentile(samples: &mut [f64], percent: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[(samples.len() * percent / 100).min(samples.len() - 1)]
}

fn connect(lab: &Lab, server: &Server) -> TcpStream {
    let stream = lab.probe.inside(|| TcpStream::connect(server.address)).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream.set_nodelay(true).expect("set");
    stream
}

/// One request over a connection that stays; the status.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> u16 {
    stream.write_all(request).expect("written");
    let (mut answer, mut buffer) = (vec![], [0; 16 << 10]);
    loop {
        let count = stream.read(&mut buffer).expect("an answer");
        assert!(count > 0, "the connection was closed");
        answer.extend_from_slice(&buffer[..count]);
        let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        if answer.len() >= head + 4 + length.unwrap_or(0) {
            return text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        }
    }
}

fn post(payload: &Value) -> Vec<u8> {
    let body = payload.to_string();
    format!(
        "POST /api/v1.0/tests HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// 1,000 payloads of one test in each second of a minute, each at its time whatever became of the one before: a delay is
/// counted from when a request was due.
pub fn minute(lab: &Lab) {
    const RATE: u32 = 1000;
    const SECONDS: u32 = 60;
    const CLIENTS: u32 = 32;
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let request = post(&json!({"ping": [{"dst": "10.77.0.2", "count": 1}]}));
    server.run(&json!({"ping": [{"dst": "10.77.0.2", "count": 1}]}));
    let started = Instant::now() + Duration::from_millis(100);
    let (samples, statuses) = (Mutex::new(vec![]), Mutex::new(std::collections::BTreeMap::<u16, usize>::new()));
    let mut weights = vec![];
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (request, samples, statuses, server) = (&request, &samples, &statuses, &server);
            scope.spawn(move || {
                let mut stream = connect(lab, server);
                let (mut own, mut seen) = (vec![], vec![]);
                for number in (client..RATE * SECONDS).step_by(CLIENTS as usize) {
                    let due = started + Duration::from_secs(1) * number / RATE;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    seen.push(exchange(&mut stream, request));
                    own.push(due.elapsed().as_secs_f64() * 1e3);
                }
                samples.lock().unwrap().extend(own);
                for status in seen {
                    *statuses.lock().unwrap().entry(status).or_default() += 1;
                }
            });
        }
        for second in [15, 30, 45, 59] {
            std::thread::sleep((started + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
            weights.push(mib(server.weight().0));
        }
    });
    let statuses = statuses.into_inner().unwrap();
    assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
    let mut samples = samples.into_inner().unwrap();
    let got = format!("p50 {:.1} ms, p99 {:.1} ms", percentile(&mut samples, 50), percentile(&mut samples, 99));
    report("1,000 POST/s for 60 s", &got, "p99 < 50 ms");
    report("  statuses", &format!("{statuses:?}"), "200 and 429 only");
    let weights: Vec<String> = weights.iter().map(|weight| format!("{weight:.0}")).collect();
    report("  resident after 15, 30, 45, 59 s", &format!("{} MiB", weights.join(", ")), "flat");
}

/// 1,000 clients that send a head byte by byte, over and over again, beside somebody who asks for the health.
pub fn loris(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let over = Arc::new(AtomicUsize::new(0));
    let mut samples = vec![];
    std::thread::scope(|scope| {
        for part in 0..10 {
            let (over, server) = (Arc::clone(&over), &server);
            scope.spawn(move || {
                let mut slow: Vec<TcpStream> = (0..100).map(|_| connect(lab, server)).collect();
                let head = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: {}", "y".repeat(1000 + part));
                for byte in head.bytes().cycle() {
                    for stream in &mut slow {
                        if stream.write_all(&[byte]).is_err() {
                            *stream = connect(lab, server);
                        }
                    }
                    if over.load(Ordering::Relaxed) > 0 {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            let asked = Instant::now();
            let mut stream = connect(lab, &server);
            assert_eq!(exchange(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), 200);
            samples.push(asked.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_millis(10));
        }
        over.store(1, Ordering::Relaxed);
    });
    let got = format!("p99 {:.1} ms, worst {:.1} ms", percentile(&mut samples, 99), percentile(&mut samples, 100));
    report("1,000 slow connections: a new one's /healthz", &got, "< 100 ms");
}

/// 10,000 tests of every kind but pages, half of them cancelled midway; then everything is as it was.
pub fn cancelled(lab: &Lab) {
    let both = format!("{},{}", plugins().display(), hostile().display());
    let settings = [
        ("SCOUTER_LOG", "info,access=warn"),
        ("SCOUTER_PLUGIN_DIR", both.as_str()),
        ("SCOUTER_MAX_PROCESS_COUNT", "50"),
        ("SCOUTER_MAX_QUEUE", "100000"),
        ("SCOUTER_MAX_RECEIPTS", "50"),
        ("SCOUTER_RECEIPT_TTL", "3600"),
    ];
    let server = lab.server(&settings);
    let payload = json!({
        "ping": [{"dst": "10.77.0.2", "count": 3, "interval_ms": 10}, {"dst": "198.51.100.1", "count": 2, "timeout_ms": 300}],
        "traceroute": [{"dst": "10.77.0.2", "proto": "TCP"}, {"dst": "198.51.100.1", "timeout_ms": 200, "proto": "UDP"}],
        "dns_traceroute": [{"qname": "www.lab.test", "ns": "10.77.0.2"}],
        "dns_lookup": [{"qname": "www.lab.test"}, {"qname": "www.lab.test", "transport": "tcp"}],
        "http_request": [{"url": "http://www.lab.test/"}, {"url": "http://198.51.100.1/", "timeout_ms": 300}],
        "hostile": [{"do": "allocate", "n": 1 << 30}],
    });
    let threads = || std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads").count();
    let round = |count: usize| {
        for number in 0..count {
            let answer = server.request("POST", "/api/v1.0/tests", Some(&payload.to_string()));
            let receipt = answer.body["receipt"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
            let path = format!("/api/v1.0/tests?receipt={receipt}");
            if number % 2 == 0 {
                std::thread::sleep(Duration::from_millis(number as u64 % 40));
                assert_eq!(server.request("DELETE", &path, None).status, 200);
            } else if number % 8 == 1 {
                assert_eq!(server.get(&format!("{path}&wait=60")).status, 200);
            }
        }
        crate::support::until("nothing runs", || {
            let status = server.get("/api/v1.0/status").body;
            let idle = status["worker_status"].as_array().expect("slots").iter().all(|slot| slot["status"] == "idle");
            idle && status["queue"]["waiting"] == json!(0)
        });
        // What is cached for a while (name lookups, connections of this client) is let go.
        std::thread::sleep(Duration::from_secs(3));
        let (resident, descriptors) = server.weight();
        (resident, descriptors, threads(), children(server.pid()).len())
    };
    let base = round(100);
    let after = round(1000);
    for (what, before, after) in
        [("descriptors", base.1, after.1), ("threads", base.2, after.2), ("processes", base.3, after.3)]
    {
        report(&format!("10,000 tests, half cancelled: {what}"), &format!("{before}, then {after}"), "the same");
    }
    let got = format!("{:.1}, then {:.1} MiB", mib(base.0), mib(after.0));
    report("  resident", &got, "within 5 %");
}

/// A server that is told to end, or is killed, at 1,000 moments of its life; each time the next one has its port.
pub fn signals(lab: &Lab) {
    const POINTS: u64 = 1000;
    let payload = json!({
        "ping": [{"dst": "10.77.0.2", "count": 2, "interval_ms": 20}],
        "traceroute": [{"dst": "10.77.0.2"}],
        "dns_lookup": [{"qname": "www.lab.test"}],
        "http_request": [{"url": "http://www.lab.test/"}, {"url": "http://198.51.100.1/", "timeout_ms": 100}],
    });
    let page = json!({"browser_request": [{"url": "http://www.lab.test/page/index.html", "timeout_ms": 5000}]});
    let port = 18_000;
    let (mut slowest, mut unclean, mut orphans) = (Duration::ZERO, 0, 0);
    for point in 0..POINTS {
        let mut server = lab.server(&[("SCOUTER_LOG", "info,access=warn"), ("API_PORT", &port.to_string())]);
        // Every 50th has a browser, which takes longer to come and to go.
        let with_page = point % 50 == 0;
        let body = if with_page { &page } else { &payload };
        server.request("POST", "/api/v1.0/tests", Some(&body.to_string()));
        std::thread::sleep(Duration::from_millis(if with_page { point * 2 } else { point % 200 }));
        let left = children(server.pid());
        let told = Instant::now();
        let signal = if point % 4 < 3 { Signal::SIGTERM } else { Signal::SIGKILL };
        server.signal(signal);
        let code = server.wait();
        slowest = slowest.max(told.elapsed());
        unclean += usize::from(signal == Signal::SIGTERM && code != Some(0));
        let end = Instant::now() + Duration::from_secs(10);
        let alive = || left.iter().any(|pid| std::path::Path::new("/proc").join(pid).exists());
        while alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        orphans += usize::from(alive());
    }
    report("1,000 signals: slowest end", &format!("{:.2} s", slowest.as_secs_f64()), "< 10 s");
    report("  SIGTERM without exit status 0; processes left", &format!("{unclean}; {orphans}"), "0; 0");
}
