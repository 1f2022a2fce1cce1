//! SIGTERM and SIGINT.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::json;

use super::sleeping;
use crate::support::server::Server;
use crate::support::until;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::shutdown":
        sigterm_finishes_what_runs_and_exits_0,
        sigterm_cuts_off_what_takes_too_long,
    )
}

fn sigterm_finishes_what_runs_and_exits_0() {
    let mut server = Server::hostile(&[]);
    let payload = json!({"hostile": [sleeping(1500)]}).to_string();
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload)).body["receipt"]
        .as_str()
        .expect("a receipt")
        .to_owned();
    let body = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get(&format!("/api/v1.0/tests?receipt={receipt}&wait=20")).body);
        std::thread::sleep(Duration::from_millis(300));
        server.signal(Signal::SIGTERM);
        until("no new tests", || server.request("POST", "/api/v1.0/tests", Some("{}")).status == 503);
        waiting.join().expect("answered")
    });
    assert_eq!(body["results"]["hostile"][0]["failed"], json!(false), "{body}");
    assert_eq!(server.wait(), Some(0));
}

fn sigterm_cuts_off_what_takes_too_long() {
    let mut server = Server::hostile(&[]);
    let payload = json!({"hostile": [sleeping(60_000)]}).to_string();
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload)).body["receipt"]
        .as_str()
        .expect("a receipt")
        .to_owned();
    let started = Instant::now();
    let body = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get(&format!("/api/v1.0/tests?receipt={receipt}&wait=60")).body);
        std::thread::sleep(Duration::from_millis(300));
        server.signal(Signal::SIGINT);
        waiting.join().expect("answered")
    });
    assert_eq!(
        (&body["results"]["hostile"][0]["failed"], &body["results"]["hostile"][0]["error"]),
        (&json!(true), &json!("cancelled")),
        "{body}"
    );
    assert_eq!(server.wait(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
}
