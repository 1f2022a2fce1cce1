//! What is known of an exchange that failed or was cut, and where its phases end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use socket2::SockRef;

use super::faults::{behave, read_head};
use super::http::request;
use super::python;
use crate::support::lab::Lab;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::http_failures", lab =>
        a_failure_keeps_what_is_known,
        a_failed_handshake_keeps_what_is_known,
        a_body_over_the_limit_is_cut,
        settings_of_http_2_do_not_move_send,
        version_1_0_reaches_servers_that_require_alpn,
    )
}

fn files(lab: &Lab) -> [String; 2] {
    ["good.pem", "good.key"].map(|file| lab.path(file).to_str().expect("UTF-8").to_owned())
}

fn port_of<'a>(ports: &'a [(String, String)], what: &str) -> &'a str {
    ports.iter().find(|(name, _)| name == what).map(|(_, port)| port.as_str()).expect("served")
}

/// The phases of a result that ended.
fn ended(result: &Value) -> Vec<&'static str> {
    let phases = ["dns", "connect", "tls", "send", "wait", "download"];
    phases.into_iter().filter(|phase| result["timings"][phase].is_number()).collect()
}

/// Head and a part of the body, then what `end` does.
fn begins(lab: &Lab, end: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let port = behave(lab, move |mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 203 Fine\r\nX-Known: yes\r\nContent-Length: 1000\r\n\r\nshort");
        end(stream);
    });
    format!("http://10.77.0.8:{port}/")
}

fn a_failure_keeps_what_is_known(lab: &Lab) {
    let server = lab.server(&[]);
    let wait = || std::thread::sleep(Duration::from_secs(3));
    let silent = behave(lab, move |mut stream| {
        read_head(&mut stream);
        wait();
    });
    let resets = begins(lab, |stream| {
        std::thread::sleep(Duration::from_millis(200));
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    let chunks = behave(lab, |mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 203 Fine\r\nX-Known: yes\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(&b"1\r\nx\r\n".repeat(1000)).is_ok() {}
    });
    let [cert, key] = files(lab);
    let (_peers, ports) = python(lab, "h2faults.py", &["10.77.0.8", &cert, &key]);
    let of_http_2 = |what: &str| format!("https://10.77.0.8:{}/", port_of(&ports, what));
    let none = json!(null);
    let known = json!("yes");
    for (what, url, status, phase, http_status, header, least) in [
        ("stalls", begins(lab, move |_stream| wait()), 28, "download", json!(203), &known, 5),
        ("resets", resets, 56, "download", json!(203), &known, 5),
        ("breaks off", begins(lab, |_stream| ()), 56, "download", json!(203), &known, 5),
        ("passes a limit", format!("http://10.77.0.8:{chunks}/"), 63, "download", json!(203), &known, 65_000),
        ("is silent", format!("http://10.77.0.8:{silent}/"), 28, "wait", none.clone(), &none, 0),
        ("drips over HTTP/2", of_http_2("drips data"), 28, "download", json!(200), &none, 5),
        ("resets the stream", of_http_2("resets the stream"), 56, "wait", none.clone(), &none, 0),
    ] {
        let timeout = if status == 28 { 1500 } else { 20_000 };
        let options = json!({"url": url, "version": 2, "ignore_ssl": true, "timeout_ms": timeout});
        let result = request(&server, options);
        assert_eq!((&result["status"], &result["failed"]), (&json!(status), &json!(true)), "{what}: {result}");
        assert_eq!(
            (&result["phase"], &result["http_status"], &result["headers"]["x-known"], &result["remote_ip"]),
            (&json!(phase), &http_status, header, &json!("10.77.0.8")),
            "{what}: {result}"
        );
        assert_eq!(result["version"].is_null(), http_status.is_null(), "{what}: {result}");
        let body = result["size"]["body"].as_u64();
        assert_eq!(body.is_none(), http_status.is_null(), "{what}: {result}");
        assert!(body.unwrap_or_default() >= least, "{what}: {result}");
        let secure = url.starts_with("https");
        let phases = ["connect", "tls", "send", "wait"].into_iter().filter(|phase| secure || *phase != "tls");
        let phases: Vec<&str> = phases.take_while(|name| *name != phase).collect();
        assert_eq!(ended(&result), phases, "{what}: {result}");
        assert_eq!(result["tls"]["alpn"] == json!("h2"), secure, "{what}: {result}");
    }
    for (what, url, status, phase, remote, phases) in [
        ("no answer", "http://198.51.100.1/", 28, "connect", json!("198.51.100.1"), vec![]),
        ("unreachable", "http://198.51.100.2/", 7, "connect", json!("198.51.100.2"), vec![]),
        ("closed", "http://v4.lab.test:1/", 7, "connect", json!("10.77.0.2"), vec!["dns"]),
        ("QUIC without an answer", "https://198.51.100.1/", 28, "connect", json!("198.51.100.1"), vec![]),
        ("no such name", "http://nothing.lab.test/", 6, "dns", none.clone(), vec![]),
    ] {
        let version = if what.starts_with("QUIC") { 3 } else { 1 };
        let result = request(&server, json!({"url": url, "version": version, "timeout_ms": 1000}));
        assert_eq!(
            (&result["status"], &result["phase"], &result["remote_ip"], &result["http_status"]),
            (&json!(status), &json!(phase), &remote, &none),
            "{what}: {result}"
        );
        assert_eq!(ended(&result), phases, "{what}: {result}");
    }
}

fn a_failed_handshake_keeps_what_is_known(lab: &Lab) {
    let server = lab.server(&[]);
    let silent = behave(lab, |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        std::thread::sleep(Duration::from_secs(3));
    });
    let url = format!("https://10.77.0.8:{silent}/");
    let result = request(&server, json!({"url": url, "timeout_ms": 700}));
    assert_eq!(
        (&result["status"], &result["phase"], &result["remote_ip"], ended(&result)),
        (&json!(28), &json!("tls"), &json!("10.77.0.8"), vec!["connect"]),
        "{result}"
    );
    let refused = request(&server, json!({"url": "https://self.lab.test/", "version": 2}));
    let tls = &refused["tls"];
    assert_eq!(
        (&refused["status"], &refused["phase"], &tls["version"], &tls["verified"]),
        (&json!(60), &json!("tls"), &json!("TLSv1.3"), &json!(false)),
        "{refused}"
    );
    assert!(tls["cipher"].is_string() && tls["alpn"].is_string(), "{refused}");
    assert_eq!(tls["chain"].as_array().map(Vec::len), Some(1), "{refused}");
    let [cert, key] = files(lab);
    let (_peers, ports) = python(lab, "h3faults.py", &["10.77.0.8", &cert, &key]);
    let url = format!("https://10.77.0.8:{}/", ports[0].1);
    let result = request(&server, json!({"url": url, "version": 3}));
    assert_eq!(
        (&result["status"], &result["phase"], &result["tls"]["alpn"], ended(&result)),
        (&json!(60), &json!("connect"), &json!("h3"), vec!["connect"]),
        "another name: {result}"
    );
    let subject = &result["tls"]["chain"][0]["subject"];
    assert_eq!((subject, &result["remote_ip"]), (&json!("CN=www.lab.test"), &json!("10.77.0.8")), "{result}");
}

fn a_body_over_the_limit_is_cut(lab: &Lab) {
    let server = lab.server(&[]);
    for (url, version) in
        [("http://v4.lab.test/huge", "1.1"), ("https://v4.lab.test/huge", "2"), ("https://h3.lab.test/huge", "3")]
    {
        let options = json!({"url": url, "version": version, "keep_body": 3, "timeout_ms": 60_000});
        let result = request(&server, options);
        assert_eq!(
            (&result["status"], &result["failed"], &result["phase"], &result["body"], &result["version"]),
            (&json!(200), &json!(false), &Value::Null, &json!("xxx"), &json!(version)),
            "{result}"
        );
        let (limit, size) = (64 << 20, &result["size"]);
        let read = size["body"].as_u64().expect("a number");
        assert!(size["decoded"].is_null() && (limit + 1..limit + 65_536).contains(&read), "{result}");
        let comment = json!(format!("The body was cut: {read} bytes were read. Max: {limit}."));
        assert_eq!(result["comment"], comment, "{result}");
        assert!(result["timings"]["download"].is_number(), "{result}");
    }
}

/// The server's SETTINGS come half a second after the request, and are acknowledged then.
fn settings_of_http_2_do_not_move_send(lab: &Lab) {
    let [cert, key] = files(lab);
    let (_peers, ports) = python(lab, "h2faults.py", &["10.77.0.8", &cert, &key]);
    let server = lab.server(&[]);
    for body in [json!(null), json!("a body")] {
        let url = format!("https://10.77.0.8:{}/", port_of(&ports, "late settings"));
        let method = if body.is_null() { "GET" } else { "POST" };
        let options = json!({"url": url, "version": 2, "ignore_ssl": true, "method": method, "body": body});
        let result = request(&server, options);
        assert_eq!((&result["status"], &result["version"]), (&json!(200), &json!("2")), "{result}");
        let phase = |name: &str| result["timings"][name].as_f64().expect("a number");
        assert!(phase("send") < 300.0 && phase("wait") > 700.0, "{result}");
    }
}

fn version_1_0_reaches_servers_that_require_alpn(lab: &Lab) {
    let server = lab.server(&[]);
    for version in ["1.0", "1.1"] {
        let result = request(&server, json!({"url": "https://h3.lab.test/", "version": version}));
        assert_eq!(
            (&result["status"], &result["tls"]["alpn"]),
            (&json!(200), &json!("http/1.1")),
            "{version}: {result}"
        );
    }
}
