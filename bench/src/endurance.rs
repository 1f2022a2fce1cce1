//! What a server endures: a minute of load, slow connections, cancelled tests.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Run;
use crate::process::resident;
use crate::report::Promise;
use crate::stats::percentile;
use crate::support::lab::Lab;
use crate::support::server::{SECRET, Server, children};
use crate::support::{hostile, plugins};

pub const SECTION: &str = "Endurance";

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
pub fn minute(run: &mut Run) {
    const RATE: u32 = 1000;
    const CLIENTS: u32 = 32;
    let last: u32 = run.pick(60, 8);
    let lab = &run.lab;
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
                for number in (client..RATE * last).step_by(CLIENTS as usize) {
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
        for part in 1..=4 {
            let second = u64::from((last * part / 4).min(last - 1));
            std::thread::sleep((started + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
            weights.push(resident(server.pid()));
        }
    });
    let statuses = statuses.into_inner().unwrap();
    assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
    let samples = samples.into_inner().unwrap();
    let (p50, p99) = (percentile(&samples, 50), percentile(&samples, 99));
    run.report.section(SECTION, "");
    let what = format!("1,000 payloads a second for {last} s: p50, p99");
    run.report.figure(&what, &format!("{p50:.1} ms, {p99:.1} ms"), Promise::holds(p99 <= 50.0, "p99 ≤ 50 ms"));
    run.report.figure("  statuses", &format!("{statuses:?}"), Promise::Nothing);
    let text: Vec<String> = weights.iter().map(|weight| format!("{weight:.0}")).collect();
    run.report.figure("  resident after each quarter", &format!("{} MiB", text.join(", ")), Promise::Nothing);
}

/// 1,000 clients that send a head byte by byte, over and over again, beside somebody who asks for the health.
pub fn loris(run: &mut Run) {
    let time = run.pick(Duration::from_secs(20), Duration::from_secs(5));
    let lab = &run.lab;
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
        while started.elapsed() < time {
            let asked = Instant::now();
            let mut stream = connect(lab, &server);
            assert_eq!(exchange(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), 200);
            samples.push(asked.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_millis(10));
        }
        over.store(1, Ordering::Relaxed);
    });
    let (p99, worst) = (percentile(&samples, 99), percentile(&samples, 100));
    run.report.section(SECTION, "");
    let promise = Promise::holds(worst <= 100.0, "≤ 100 ms");
    let what = "1,000 slow connections: a new one's /healthz, p99, worst";
    run.report.figure(what, &format!("{p99:.1} ms, {worst:.1} ms"), promise);
}

/// 10,000 tests of every kind but pages, half of them cancelled midway; then everything is as it was.
pub fn cancelled(run: &mut Run) {
    let payloads = run.pick(1000, 100);
    let lab = &run.lab;
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
        let (_, descriptors) = server.weight();
        (resident(server.pid()), descriptors, threads(), children(server.pid()).len())
    };
    let base = round(100);
    let after = round(payloads);
    run.report.section(SECTION, "");
    for (what, before, after) in
        [("descriptors", base.1, after.1), ("threads", base.2, after.2), ("processes", base.3, after.3)]
    {
        let what = format!("{} tests, half cancelled: {what}", payloads * 10);
        run.report.figure(&what, &format!("{before}, then {after}"), Promise::holds(after <= before, "no more"));
    }
    let got = format!("{:.1}, then {:.1} MiB", base.0, after.0);
    run.report.figure("  resident", &got, Promise::holds(after.0 <= base.0 * 1.05, "within 5 %"));
}
