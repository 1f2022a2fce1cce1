//! What a request may cost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::support::server::{SECRET, Server};
use crate::support::until;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::limits":
        slow_heads_are_cut_off,
        a_body_of_gigabytes_costs_no_memory,
        a_body_of_one_megabyte_costs_no_more_than_ten,
        bodies_beyond_their_memory_are_refused_until_there_is_some,
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
    // They are cut off after 5 s.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
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

/// What took 400 MiB and a second of every other request: half a million numbers where a name of a server belongs, or an
/// option whose name is the whole body.
fn a_body_of_one_megabyte_costs_no_more_than_ten() {
    let server = Server::start(&[("SCOUTER_MAX_TEST_COUNT", "10")]);
    let size = 1_040_000;
    let numbers = format!("{{\"dns_lookup\":[{{\"qname\":\"x.test\",\"ns\":[{}1]}}]}}", "1,".repeat(size / 2));
    let name = format!("{{\"ping\":[{{\"{}\":1}}]}}", "d".repeat(size));
    let value = format!("{{\"ping\":[{{\"dst\":\"x\",\"count\":\"{}\"}}]}}", "9".repeat(size));
    let id = format!("{{\"ping\":[{{\"dst\":\"x\",\"id\":\"{}\"}}]}}", "i".repeat(size));
    let lists: String = (0..19).map(|n| format!("\"{n}\":[{}1],", "1,".repeat(999))).collect::<Vec<_>>().concat();
    let lists = format!("{{\"ping\":[{{{lists}\"dst\":\"{}\"}}]}}", "x".repeat(size - lists.len()));
    let types: String = (0..size / 12).map(|n| format!("\"{n}\":[],")).collect::<Vec<_>>().concat();
    let types = format!("{{{types}\"x\":[]}}");
    // Once before the measurement: what the first request allocates stays.
    server.request("POST", "/api/v1.0/tests?wait=10", Some(r#"{"ping": [{"dst": "x", "y": 1}]}"#));
    let before = server.peak();
    for (body, status) in [(numbers, 400), (name, 400), (value, 200), (id, 200), (lists, 200), (types, 400)] {
        assert!(body.len() <= 1 << 20, "{}", body.len());
        let answer = server.request("POST", "/api/v1.0/tests", Some(&body));
        let text = answer.body.to_string();
        assert_eq!(answer.status, status, "{}", &text[..text.len().min(300)]);
        assert!(text.len() < 1000, "{} bytes of answer", text.len());
    }
    let peak = server.peak();
    assert!(peak < before + 10 * 1024, "{before} kB, then up to {peak} kB");
}

fn bodies_beyond_their_memory_are_refused_until_there_is_some() {
    let server = Server::start(&[]);
    let head = format!(
        "POST /api/v1.0/tests HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\nContent-Length: {}\r\n\r\n{{",
        1 << 20
    );
    // Each of the largest size that is allowed: 64 of them take all of the memory, and the others are refused.
    let announce = || {
        let mut stream = TcpStream::connect(server.address).expect("connected");
        stream.write_all(head.as_bytes()).expect("written");
        stream.set_nonblocking(true).expect("set");
        stream
    };
    let bodies: Vec<TcpStream> = (0..70).map(|_| announce()).collect();
    let refused = || bodies.iter().filter(|stream| stream.peek(&mut [0]).is_ok()).count();
    until("all others are being read", || refused() == 6);
    let post = || server.request("POST", "/api/v1.0/tests", Some("{}"));
    let answer = post();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.body["error"], "The server is too busy to check the request. Try again later.");
    assert_eq!(server.get("/api/v1.0/status").status, 200, "what has no body is answered");
    drop(bodies);
    until("there is memory again", || post().status == 200);
}
