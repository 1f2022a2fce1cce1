//! What clients cost that say nothing, or do not read what they asked for.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;

use crate::support::h2::Client;
use crate::support::server::{SECRET, Server};
use crate::support::{hostile, until};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("connections":
        healthz_answers_beside_ten_thousand_silent_connections,
        silent_tls_connections_are_closed_and_give_way,
        an_http2_preface_alone_is_no_request,
        a_later_head_has_its_deadline_too,
        an_idle_connection_stays_usable,
        beyond_the_limit_only_health_is_answered,
        unread_responses_cost_little_and_memory_is_returned,
        unread_events_cost_little,
        a_client_that_does_not_read_is_closed,
        unread_responses_refuse_no_other_client,
        a_client_is_answered_on_each_of_its_streams,
        unread_deleted_results_have_a_limit,
    )
}

/// As many descriptors as these tests may have.
fn raise_open_files() -> usize {
    let kind = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, hard) = nix::sys::resource::getrlimit(kind).expect("a limit");
    nix::sys::resource::setrlimit(kind, hard, hard).expect("set");
    usize::try_from(hard).expect("a number")
}

fn open(server: &Server, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| TcpStream::connect(server.address).expect("connected")).collect()
}

/// Whether the server closes this connection within the time that a head may take, and some for a loaded machine.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    match stream.read_to_end(&mut vec![]) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn healthy(server: &Server) {
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
}

fn healthz_answers_beside_ten_thousand_silent_connections() {
    let server = Server::start(&[("SCOUTER_LOG", "info")]);
    let (_, before) = server.weight();
    let count = 10_000.min(raise_open_files() - 1000);
    assert!(count > 5000, "more than the server takes");
    let mut silent = vec![];
    while silent.len() < count {
        silent.extend(open(&server, 1000));
        healthy(&server);
        assert_eq!(server.get("/api/v1.0/status").status, 200);
    }
    // The clients stay; the server lets go of them by itself.
    until("they are closed", || server.weight().1 <= before + 5);
    assert!(is_closed(&mut silent[0]) && is_closed(&mut silent[count - 1]));
    healthy(&server);
}

/// A server with a certificate of its own.
fn with_tls(folder: &Path, settings: &[(&str, &str)]) -> Server {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out certificate \
                  -days 30 -subj /CN=localhost 2>/dev/null";
    assert!(Command::new("sh").args(["-ec", script]).current_dir(folder).status().expect("runs").success());
    let [certificate, key] = ["certificate", "key"].map(|name| folder.join(name).display().to_string());
    let tls = [("SCOUTER_TLS_CERT", certificate.as_str()), ("SCOUTER_TLS_KEY", key.as_str())];
    Server::start(&[&tls[..], settings].concat())
}

fn silent_tls_connections_are_closed_and_give_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = with_tls(folder.path(), &[("SCOUTER_MAX_CONNECTIONS", "50")]);
    let mut silent = open(&server, 200);
    // A complete handshake is no request.
    let mut shaken = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &server.address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs");
    let url = format!("https://{}/healthz", server.address);
    let curl = Command::new("curl").args(["-sSk", "--max-time", "20", &url]).output().expect("curl runs");
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "ok\n", "{curl:?}");
    assert!(silent.iter_mut().all(is_closed));
    until("a connection without a request is closed", || shaken.try_wait().expect("waited").is_some());
}

fn an_http2_preface_alone_is_no_request() {
    let server = Server::start(&[]);
    let mut client = Client::connect(server.address, 65_535);
    let mut half = TcpStream::connect(server.address).expect("connected");
    half.write_all(b"PRI * HTT").expect("written");
    assert!(is_closed(&mut client.stream) && is_closed(&mut half));
}

/// Sends a request and reads its whole response, the connection kept open.
fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").expect("written");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let (mut answer, mut byte) = (vec![], [0]);
    while !answer.ends_with(b"ok\n") {
        stream.read_exact(&mut byte).expect("answered");
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

fn a_later_head_has_its_deadline_too() {
    let server = Server::start(&[]);
    let mut stream = TcpStream::connect(server.address).expect("connected");
    ask(&mut stream);
    stream.write_all(b"GET /healthz HTT").expect("written");
    assert!(is_closed(&mut stream), "long before an idle connection is");
}

fn an_idle_connection_stays_usable() {
    let server = Server::start(&[]);
    let mut stream = TcpStream::connect(server.address).expect("connected");
    for pause in [0, 7, 7] {
        std::thread::sleep(Duration::from_secs(pause));
        ask(&mut stream);
    }
}

/// A receipt whose one test sleeps so long.
fn sleeping(server: &Server, ms: u64) -> String {
    let payload = json!({"hostile": [{"do": "sleep", "n": ms}]}).to_string();
    let answer = server.request("POST", "/api/v1.0/tests", Some(&payload));
    answer.body["receipt"].as_str().expect("a receipt").to_owned()
}

fn beyond_the_limit_only_health_is_answered() {
    let server = Server::hostile(&[("SCOUTER_MAX_CONNECTIONS", "5")]);
    let (_, before) = server.weight();
    let receipt = sleeping(&server, 60_000);
    until("the connection of that request is closed", || server.weight().1 <= before);
    let head =
        format!("GET /api/v1.0/tests/events?receipt={receipt} HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\n\r\n");
    let watch = || {
        let mut stream = TcpStream::connect(server.address).expect("connected");
        stream.write_all(head.as_bytes()).expect("written");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).expect("answered");
        assert!(buffer[..count].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..count]));
        stream
    };
    let mut watching: Vec<TcpStream> = (0..5).map(|_| watch()).collect();
    // All five are busy, for clients with a secret: none of them has to give way.
    let answer = server.get("/api/v1.0/status");
    assert_eq!(answer.status, 503, "{answer:?}\n{}", server.log());
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.body["error"].as_str().is_some_and(|text| text.contains("too many connections")), "{answer:?}");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.raw("GET", path, &[], None).status, 200, "{path}");
    }
    // Idle ones give way.
    let mut idle = open(&server, 100);
    for stream in &mut idle {
        stream.write_all(b"\r\n").expect("written");
    }
    healthy(&server);
    drop(watching.pop());
    until("there is a place again", || server.get("/api/v1.0/status").status == 200);
}

/// A finished receipt of nearly a megabyte.
fn large_receipt(server: &Server) -> String {
    let large = json!({"do": "return", "n": 450_000});
    let payload = json!({"hostile": [large, large]}).to_string();
    let answer = server.request("POST", "/api/v1.0/tests?wait=60", Some(&payload));
    assert_eq!((answer.status, &answer.body["is_running"]), (200, &json!(false)));
    assert!(answer.body.to_string().len() > 900_000, "{}", answer.body["results"]["hostile"][0]["message"]);
    answer.body["receipt"].as_str().expect("a receipt").to_owned()
}

fn both() -> String {
    format!("{},{}", crate::support::plugins().display(), hostile().display())
}

/// What the server's memory may grow by, in kilobytes: generous, and a tenth of what it was.
const FLOOD: u64 = 48 << 10;

/// Asks for this path 200 times on each of so many connections, and reads nothing; gives them back, still open.
fn flood(server: &Server, connections: usize, path: &str, secret: Option<&str>, window: u32) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..connections).map(|_| Client::connect(server.address, window)).collect();
    for client in &mut clients {
        // More streams than the server allows are an error of the connection once it has said so.
        let _ = (0..200).all(|_| client.get(path, secret));
    }
    clients
}

fn unread_responses_cost_little_and_memory_is_returned() {
    let server = Server::start(&[("SCOUTER_PLUGIN_DIR", &both()), ("SCOUTER_LOG", "info,access=warn")]);
    let receipt = format!("/api/v1.0/tests?receipt={}", large_receipt(&server));
    for path in ["/openapi.json", "/metrics"] {
        assert_eq!(server.raw("GET", path, &[], None).status, 200);
    }
    let (idle, _) = server.weight();
    for (connections, path, secret) in
        [(20, "/openapi.json", None), (20, "/metrics", None), (3, &receipt[..], Some(SECRET))]
    {
        // Held back by HTTP/2's flow control, and by the socket.
        for window in [0, 65_535, 1 << 30] {
            let clients = flood(&server, connections, path, secret, window);
            let mut most = 0;
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(100));
                most = most.max(server.weight().0);
            }
            healthy(&server);
            assert!(most < idle + FLOOD, "{path}, windows of {window}: {idle} kB, then {most} kB");
            drop(clients);
        }
    }
    until("what it took is given back", || server.weight().0 < idle + FLOOD / 2);
}

fn unread_events_cost_little() {
    let server = Server::hostile(&[("SCOUTER_LOG", "info,access=warn")]);
    let path = format!("/api/v1.0/tests/events?receipt={}", large_receipt(&server));
    let (idle, _) = server.weight();
    let clients = flood(&server, 10, &path, Some(SECRET), 1 << 30);
    std::thread::sleep(Duration::from_secs(2));
    let (with, _) = server.weight();
    assert!(with < idle + FLOOD, "{idle} kB, then {with} kB");
    healthy(&server);
    drop(clients);
}

fn a_client_that_does_not_read_is_closed() {
    let server = Server::hostile(&[]);
    let receipt = large_receipt(&server);
    let (_, before) = server.weight();
    let paths = [format!("/api/v1.0/tests?receipt={receipt}"), format!("/api/v1.0/tests/events?receipt={receipt}")];
    let mut kept = vec![];
    for path in &paths {
        let mut stream = TcpStream::connect(server.address).expect("connected");
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\n\r\n");
        // Several: the kernels of both sides hold some megabytes themselves.
        stream.write_all(head.repeat(20).as_bytes()).expect("written");
        kept.push(stream);
        for window in [0, 1 << 30] {
            let mut client = Client::connect(server.address, window);
            assert!((0..20).all(|_| client.get(path, Some(SECRET))));
            kept.push(client.stream);
        }
    }
    until("they are connected", || server.weight().1 >= before + kept.len());
    let asked = Instant::now();
    while server.weight().1 > before && asked.elapsed() < Duration::from_secs(90) {
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(server.weight().1 <= before, "after {:?}", asked.elapsed());
    assert!(asked.elapsed() > Duration::from_secs(20), "a client may take its time: {:?}", asked.elapsed());
    healthy(&server);
}

/// More than the memory for responses, unread by clients without a secret: documents, which all responses share, and
/// counters, which each has for itself.
fn unread_responses_refuse_no_other_client() {
    for path in ["/openapi.json", "/metrics"] {
        let server = Server::start(&[("SCOUTER_PLUGIN_DIR", &both()), ("SCOUTER_LOG", "info,access=warn")]);
        let size = server.raw("GET", path, &[], None).body.to_string().len();
        let clients = flood(&server, (70 << 20) / (size * 100).min(1 << 20), path, None, 0);
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(2) {
            let answer = server.get("/api/v1.0/status");
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            let answer = server.request("POST", "/api/v1.0/tests?wait=10", Some(r#"{"hostile": [{"do": "nothing"}]}"#));
            assert_eq!((answer.status, &answer.body["is_running"]), (200, &json!(false)), "{path}: {answer:?}");
            assert!(answer.headers.contains_key("location"), "{path}: {answer:?}");
        }
        drop(clients);
    }
}

fn a_client_is_answered_on_each_of_its_streams() {
    let server = Server::hostile(&[("SCOUTER_LOG", "info,access=warn")]);
    let large = json!({"do": "return", "n": 450_000});
    let payload = json!({"hostile": [large, large, {"do": "sleep", "n": 10_000}]}).to_string();
    let answer = server.request("POST", "/api/v1.0/tests", Some(&payload));
    let path = format!("/api/v1.0/tests?receipt={}&wait=60", answer.body["receipt"].as_str().expect("a receipt"));
    let mut client = Client::connect(server.address, 0);
    assert!((0..100).all(|_| client.get(&path, Some(SECRET))));
    assert_eq!(client.ok_heads(100), 100, "a megabyte is to be written on each");
}

/// Results that only unread responses still hold: beyond 64 MiB of them no new ones are made.
fn unread_deleted_results_have_a_limit() {
    let settings = [("SCOUTER_MAX_RECEIPT_BYTES", "10000000"), ("SCOUTER_LOG", "info,access=warn")];
    let server = Server::hostile(&settings);
    let large = vec![json!({"do": "return", "n": 450_000}); 10];
    let payload = json!({"hostile": large}).to_string();
    let finished = |_| {
        let answer = server.request("POST", "/api/v1.0/tests", Some(&payload));
        let receipt = answer.body["receipt"].as_str().expect("a receipt").to_owned();
        until("it is done", || server.get("/api/v1.0/status").body["receipts"]["running"] == 0);
        receipt
    };
    let receipts: Vec<String> = (0..20).map(finished).collect();
    let post = || server.request("POST", "/api/v1.0/tests", Some("{}"));
    let mut clients = vec![];
    for receipt in receipts {
        if post().status != 200 {
            break;
        }
        let path = format!("/api/v1.0/tests?receipt={receipt}");
        let mut client = Client::connect(server.address, 0);
        assert!(client.get(&path, Some(SECRET)));
        assert_eq!(client.ok_heads(1), 1);
        assert_eq!(server.request("DELETE", &path, None).status, 200);
        clients.push(client);
    }
    let refused = post();
    assert_eq!((refused.status, &refused.headers["retry-after"]), (503, &"1".parse().expect("a value")), "{refused:?}");
    assert!(refused.body["error"].as_str().is_some_and(|text| text.contains("deleted results")), "{refused:?}");
    assert!((14..20).contains(&clients.len()), "each has 4.5 MB: {}", clients.len());
    drop(clients);
    until("they are gone", || post().status == 200);
}
