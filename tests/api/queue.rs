//! Waiting tests and execution slots.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;

use super::sleeping;
use crate::support::server::Server;
use crate::support::until;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::queue":
        a_full_queue_answers_429,
        a_queue_full_of_options_answers_429,
        tests_over_all_requests_share_the_slots,
    )
}

fn a_full_queue_answers_429() {
    let server = Server::hostile(&[("SCOUTER_MAX_PROCESS_COUNT", "1"), ("SCOUTER_MAX_QUEUE", "2")]);
    let payload = json!({"hostile": [sleeping(60_000)]}).to_string();
    let mut full = None;
    for _ in 0..10 {
        let answer = server.request("POST", "/api/v1.0/tests", Some(&payload));
        if answer.status != 200 {
            full = Some(answer);
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let full = full.expect("a full queue");
    assert_eq!((full.status, full.body), (429, json!({"error": "The queue of waiting tests is full. Max: 2"})));
    assert!(full.headers.contains_key("retry-after"));
    assert_eq!(
        server.get("/api/v1.0/status").body["queue"],
        json!({"waiting": 2, "max": 2, "bytes": 1084, "max_bytes": 64 << 20})
    );
}

fn a_queue_full_of_options_answers_429() {
    let settings = [("SCOUTER_MAX_PROCESS_COUNT", "1"), ("SCOUTER_MAX_QUEUE_BYTES", "1048576")];
    let server = Server::hostile(&settings);
    let running = json!({"hostile": [sleeping(60_000)]}).to_string();
    assert_eq!(server.request("POST", "/api/v1.0/tests", Some(&running)).status, 200);
    until("it runs", || server.get("/api/v1.0/status").body["worker_status"][0]["status"] == "busy");
    let large = json!({"hostile": [{"do": "nothing", "to": "x".repeat(400_000)}]}).to_string();
    let answers: Vec<_> = (0..3).map(|_| server.request("POST", "/api/v1.0/tests", Some(&large))).collect();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 429]);
    let error = "The queue of waiting tests is full. Max: 1048576 bytes of options (SCOUTER_MAX_QUEUE_BYTES)";
    assert_eq!(answers[2].body, json!({"error": error}));
    assert!(answers[2].headers.contains_key("retry-after"));
    let queue = server.get("/api/v1.0/status").body["queue"].clone();
    assert!(queue["bytes"].as_u64().is_some_and(|bytes| (800_000..820_000).contains(&bytes)), "{queue}");
    let receipt = answers[0].body["receipt"].as_str().expect("a receipt");
    assert_eq!(server.request("DELETE", &format!("/api/v1.0/tests?receipt={receipt}"), None).status, 200);
    until("its bytes are free", || server.request("POST", "/api/v1.0/tests", Some(&large)).status == 200);
}

fn tests_over_all_requests_share_the_slots() {
    let server = Server::hostile(&[("SCOUTER_MAX_PROCESS_COUNT", "2")]);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| server.run(&json!({"hostile": [sleeping(300), sleeping(300)]})));
        }
    });
    // Eight tests of 0.3 s, two at a time.
    assert!(started.elapsed() >= Duration::from_millis(1200), "{:?}", started.elapsed());
    let status = server.get("/api/v1.0/status").body;
    let ran: u64 = status["worker_status"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|w| w["requests"].as_u64().expect("a number"))
        .sum();
    assert_eq!((ran, status["worker_status"].as_array().map(Vec::len)), (8, Some(2)), "{status}");
}
