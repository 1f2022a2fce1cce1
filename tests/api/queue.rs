//! Waiting tests and execution slots.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;

use super::sleeping;
use crate::support::server::Server;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::queue":
        a_full_queue_answers_429,
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
    assert_eq!(server.get("/api/v1.0/status").body["queue"], json!({"waiting": 2, "max": 2}));
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
