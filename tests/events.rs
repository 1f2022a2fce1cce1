//! Server-sent events of a receipt.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::server::{SECRET, Server};
use crate::support::{SOON, hostile};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("events": events_arrive_in_order_and_resume, ten_thousand_watchers_do_not_delay_requests, a_large_partial_result_is_read_once_for_all_watchers)
}

/// Reads events until their end: identifier, name, data.
fn watch(server: &Server, receipt: &str, last: Option<&str>) -> Vec<(u64, String, Value)> {
    let path = format!("/api/v1.0/tests/events?receipt={receipt}");
    let mut headers = vec![("authorization", SECRET)];
    headers.extend(last.map(|last| ("last-event-id", last)));
    let answer = server.raw("GET", &path, &headers, None);
    assert_eq!((answer.status, answer.headers["content-type"].to_str().expect("text")), (200, "text/event-stream"));
    let text = answer.body.as_str().expect("text").to_owned();
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).expect(name).to_owned();
        let data = serde_json::from_str(&field("data: ")).expect("JSON");
        (field("id: ").parse().expect("a number"), field("event: "), data)
    };
    text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':')).map(event).collect()
}

fn events_arrive_in_order_and_resume() {
    let folder = hostile();
    let both = format!("{},{}", crate::support::plugins().display(), folder.display());
    let server = Server::start(&[("SCOUTER_PLUGIN_DIR", &both), ("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8")]);
    let ping = json!({"dst": "127.0.0.1", "count": 3, "interval_ms": 200});
    let payload = json!({"ping": [ping], "hostile": [{"do": "sleep", "n": 900}, {"do": "nothing"}]});
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload.to_string())).body["receipt"].clone();
    let receipt = receipt.as_str().expect("a receipt");
    let events = watch(&server, receipt, None);
    let kinds: Vec<&str> = events.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "test").count(), 3, "{events:?}");
    assert!(kinds.contains(&"partial") && kinds.last() == Some(&"done"), "{kinds:?}");
    assert!(events.windows(2).all(|two| two[0].0 < two[1].0), "{events:?}");
    let partial = events.iter().find(|(_, kind, _)| kind == "partial").expect("one");
    assert_eq!((&partial.2["type"], &partial.2["index"]), (&json!("ping"), &json!(0)), "{partial:?}");
    assert!(partial.2["result"]["replies"].is_array(), "{partial:?}");
    let tests: Vec<_> = events.iter().filter(|(_, kind, _)| kind == "test").map(|(_, _, data)| data).collect();
    assert_eq!(
        (&tests[0]["type"], &tests[0]["index"]),
        (&json!("hostile"), &json!(1)),
        "the first one done: {tests:?}"
    );
    let body = server.get(&format!("/api/v1.0/tests?receipt={receipt}")).body;
    assert_eq!(events.last().expect("the end").2, body);
    assert_eq!(tests[2]["test"], body["results"]["hostile"][0]);
    // Late: everything that still matters. Resumed: only what is newer.
    let late = watch(&server, receipt, None);
    let kinds: Vec<&str> = late.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["test", "test", "test", "done"]);
    let resumed = watch(&server, receipt, Some(&late[1].0.to_string()));
    assert_eq!(resumed, late[2..]);
    assert_eq!(watch(&server, receipt, Some("nonsense")), late);
    let end = late.last().expect("the end").0;
    assert_eq!(watch(&server, receipt, Some(&end.to_string())), late[3..], "after the last event: `done` once more");
    assert_eq!(watch(&server, receipt, Some(&(end + 1).to_string())), late, "no number of this receipt");
    for (query, status) in [("", 400), ("?receipt=", 400), ("?receipt=ffffffffffffffffffffffffffffffff", 404)] {
        assert_eq!(server.get(&format!("/api/v1.0/tests/events{query}")).status, status);
    }
    assert_eq!(server.raw("GET", &format!("/api/v1.0/tests/events?receipt={receipt}"), &[], None).status, 403);
    // Nor while it runs: its events arrive, and it does not wait for a number that never comes.
    let payload = json!({"hostile": [{"do": "sleep", "n": 700}]});
    let running = server.request("POST", "/api/v1.0/tests", Some(&payload.to_string())).body["receipt"].clone();
    let events = watch(&server, running.as_str().expect("a receipt"), Some("18446744073709551615"));
    let kinds: Vec<&str> = events.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["test", "done"]);
    // The stream of a deleted receipt ends.
    let payload = json!({"hostile": [{"do": "sleep", "n": 60_000}]});
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload.to_string())).body["receipt"].clone();
    let receipt = receipt.as_str().expect("a receipt");
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&server, receipt, None));
        std::thread::sleep(Duration::from_millis(300));
        server.request("DELETE", &format!("/api/v1.0/tests?receipt={receipt}"), None);
        let started = Instant::now();
        assert!(watcher.join().expect("let go").iter().all(|(_, kind, _)| kind != "done"));
        assert!(started.elapsed() < SOON);
    });
}

fn a_large_partial_result_is_read_once_for_all_watchers() {
    let server = Server::hostile(&[]);
    let payload = json!({"hostile": vec![json!({"do": "large partials", "n": 20_000}); 4]});
    let (before, _) = server.weight();
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload.to_string())).body["receipt"].clone();
    let receipt = receipt.as_str().expect("a receipt");
    let most = std::thread::scope(|scope| {
        let watchers: Vec<_> = (0..60).map(|_| scope.spawn(|| watch(&server, receipt, None))).collect();
        let mut most = 0;
        while !watchers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            most = most.max(server.weight().0);
            std::thread::sleep(Duration::from_millis(20));
        }
        for watcher in watchers {
            let events = watcher.join().expect("watched");
            assert!(events.iter().any(|(_, kind, _)| kind == "partial") && events.last().expect("some").1 == "done");
        }
        most
    });
    // Parsed by each of them they took hundreds of MiB.
    assert!(most < before + 200 * 1024, "{before} kB, then {most} kB");
}

fn ten_thousand_watchers_do_not_delay_requests() {
    let server = Server::start(&[("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8"), ("SCOUTER_MAX_CONNECTIONS", "20000")]);
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit.1, limit.1).expect("set");
    let watchers = 10_000.min(usize::try_from(limit.1).expect("a number") - 1000);
    let payload = json!({"ping": [{"dst": "127.0.0.1", "count": 20, "interval_ms": 1000}]});
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload.to_string())).body["receipt"].clone();
    let head = format!(
        "GET /api/v1.0/tests/events?receipt={} HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\n\r\n",
        receipt.as_str().expect("a receipt")
    );
    let (before, _) = server.weight();
    let mut streams: Vec<TcpStream> = (0..watchers)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).expect("connected");
            stream.write_all(head.as_bytes()).expect("written");
            stream
        })
        .collect();
    let started = Instant::now();
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    let (with, _) = server.weight();
    // Any connection costs some kilobytes; its events cost nothing more.
    assert!(with.saturating_sub(before) < 600 << 10, "{} kB for {watchers} watchers", with - before);
    let mut received = String::new();
    let last = streams.last_mut().expect("one");
    last.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    let mut buffer = [0; 4096];
    while !received.contains("event: done") {
        let count = last.read(&mut buffer).expect("an event");
        assert!(count > 0, "{received}");
        received.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
}
