//! What a request may cost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::support::server::{SECRET, Server};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::limits":
        slow_heads_are_cut_off,
        a_body_of_gigabytes_costs_no_memory,
    )
}

fn slow_heads_are_cut_off() {
    let server = Server::start(&[("SCOUTER_MAX_CONNECTIONS", "200")]);
    let mut slow: Vec<TcpStream> = (0..150).map(|_| TcpStream::connect(server.address).expect("connected")).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /api/v1.0/status HTTP/1.1\r\nX: ").expect("written");
    }
    let started = Instant::now();
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let mut first = slow.swap_remove(0);
    first.set_read_timeout(Some(Duration::from_secs(8))).expect("set");
    let mut rest = Vec::new();
    assert!(first.read_to_end(&mut rest).is_ok(), "closed by the server within the 5 s that a head may take");
}

fn a_body_of_gigabytes_costs_no_memory() {
    let server = Server::start(&[]);
    server.request("POST", "/api/v1.0/tests", Some("{}"));
    let (before, _) = server.weight();
    let mut stream = TcpStream::connect(server.address).expect("connected");
    let head = format!(
        "POST /api/v1.0/tests HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("written");
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    // The server answers and closes long before the 2 GiB are over.
    let sent = (0..2048).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 100, "{sent} MiB were taken");
    let (after, _) = server.weight();
    assert!(after < before + 8 * 1024, "{before} kB, then {after} kB");
}
