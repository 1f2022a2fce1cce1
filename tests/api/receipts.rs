//! Results as they come, expiry, deletion.

use std::time::Instant;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::sleeping;
use crate::support::server::Server;
use crate::support::{SOON, until};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::receipts":
        receipts_show_results_as_tests_finish,
        results_over_a_receipts_budget_become_failed_tests,
        receipts_expire,
        deleting_a_receipt_cancels_its_tests,
        guessing_receipts_finds_nothing,
    )
}

fn receipts_show_results_as_tests_finish() {
    let server = Server::hostile(&[]);
    let payload = json!({"hostile": [sleeping(2000), {"do": "nothing", "id": "quick"}], "nothing": [{}]});
    let answer = server.request("POST", "/api/v1.0/tests", Some(&payload.to_string()));
    let path = format!("/api/v1.0/tests?receipt={}", answer.body["receipt"].as_str().expect("a receipt"));
    let mut early = Value::Null;
    until("the quick ones are there", || {
        early = server.get(&path).body;
        early["progress"]["finished"] == json!(2)
    });
    assert_eq!((&early["is_running"], &early["progress"]["total"]), (&json!(true), &json!(3)), "{early}");
    assert_eq!(early["results"]["hostile"][0]["id"], "quick", "{early}");
    let started = Instant::now();
    let done = server.get(&format!("{path}&wait=30")).body;
    assert!(started.elapsed() < SOON, "wait ends with the last test");
    assert_eq!(done["is_running"], json!(false));
    assert_eq!(done["results"]["hostile"][1]["id"], "quick", "in the order of submission: {done}");
    let timing = &done["results"]["hostile"][0]["timing"];
    assert!(timing["duration_ms"].as_f64().is_some_and(|ms| (2000.0..12_000.0).contains(&ms)), "{timing}");
    assert!(
        timing["queued_ms"].is_number() && timing["started_at"].as_str().is_some_and(|at| at.ends_with('Z')),
        "{timing}"
    );
    assert_eq!(done["results"]["hostile"][0]["plugin"], json!({"name": "hostile", "version": "1.0.0"}));
    assert_eq!(server.get(&path).body, done, "GET may be repeated");
    let waited =
        server.request("POST", "/api/v1.0/tests?wait=0.2", Some(&json!({"hostile": [sleeping(2000)]}).to_string()));
    assert_eq!((waited.status, &waited.body["is_running"]), (200, &json!(true)), "the time is up");
    assert!(waited.headers.contains_key("location"));
}

fn results_over_a_receipts_budget_become_failed_tests() {
    let server = Server::hostile(&[("SCOUTER_MAX_RECEIPT_BYTES", "20000")]);
    let results = server.run(&json!({"hostile": [{"do": "return", "n": 12000}, {"do": "return", "n": 12000}]}));
    let failed: Vec<_> =
        results["hostile"].as_array().expect("a list").iter().filter(|t| t["failed"] == json!(true)).collect();
    assert_eq!(failed.len(), 1, "{results}");
    assert!(failed[0]["message"].as_str().is_some_and(|m| m.contains("20000 bytes")), "{}", failed[0]);
}

fn receipts_expire() {
    let server = Server::start(&[("SCOUTER_RECEIPT_TTL", "3")]);
    let receipt =
        server.request("POST", "/api/v1.0/tests", Some("{}")).body["receipt"].as_str().expect("a receipt").to_owned();
    let path = format!("/api/v1.0/tests?receipt={receipt}");
    assert_eq!(server.get(&path).status, 200);
    until("expired", || server.get(&path).status == 404);
    assert_eq!(
        server.get(&path).body,
        server.get("/api/v1.0/tests?receipt=unknown").body,
        "expired and unknown look the same"
    );
    until("forgotten", || server.get("/api/v1.0/status").body["receipts"]["finished"] == json!(0));
}

fn deleting_a_receipt_cancels_its_tests() {
    let server = Server::hostile(&[("SCOUTER_MAX_PROCESS_COUNT", "1")]);
    let answer = server.request(
        "POST",
        "/api/v1.0/tests",
        Some(&json!({"hostile": [sleeping(60_000), sleeping(60_000)]}).to_string()),
    );
    let path = format!("/api/v1.0/tests?receipt={}", answer.body["receipt"].as_str().expect("a receipt"));
    until("it runs", || server.get("/api/v1.0/status").body["worker_status"][0]["status"] == "busy");
    let deleted = server.request("DELETE", &path, None);
    assert_eq!(
        (deleted.status, deleted.body),
        (200, json!({"message": "Provided 'receipt' has been successfully deleted."}))
    );
    until("the slot is free", || server.get("/api/v1.0/status").body["worker_status"][0]["status"] == "idle");
    assert_eq!(server.get(&path).status, 404);
    assert_eq!(server.request("DELETE", &path, None).status, 404);
    assert_eq!(server.test("hostile", &json!({"do": "nothing"}))["failed"], json!(false), "the next one runs");
}

fn guessing_receipts_finds_nothing() {
    let server = Server::start(&[]);
    let receipt =
        server.request("POST", "/api/v1.0/tests", Some("{}")).body["receipt"].as_str().expect("a receipt").to_owned();
    for digit in 0..32 {
        let mut guess = receipt.clone().into_bytes();
        guess[digit] = if guess[digit] == b'0' { b'1' } else { b'0' };
        let guess = String::from_utf8(guess).expect("ASCII");
        assert_eq!(server.get(&format!("/api/v1.0/tests?receipt={guess}")).status, 404);
    }
    assert_eq!(server.get(&format!("/api/v1.0/tests?receipt={}", receipt.to_uppercase())).status, 404);
    assert_eq!(server.raw("GET", &format!("/api/v1.0/tests?receipt={receipt}"), &[], None).status, 403);
}
