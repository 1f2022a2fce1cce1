//! Web servers that misbehave (threats 38–41), and invalid names (58): each failure has its curl code and its reason,
//! in time, and the server's memory does not notice.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};
use socket2::SockRef;

use super::http::request;
use super::python;
use crate::support::lab::Lab;
use crate::support::{SOON, until};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::faults", lab =>
        every_failure_has_its_code,
        a_bomb_does_not_unfold,
        header_injection_is_one_request_on_the_wire,
        http_2_that_misbehaves_ends_in_time,
        http_3_is_read_to_its_end_or_a_limit,
        a_flooding_server_ends_at_a_limit_and_disturbs_no_other_test,
        odd_names_are_errors_and_no_more,
    )
}

/// A listener in the target's namespace that treats every connection in one way.
pub fn behave(lab: &Lab, how: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = lab.target.inside(|| TcpListener::bind("10.77.0.8:0").expect("bound"));
    let port = listener.local_addr().expect("an address").port();
    let how = Arc::new(how);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(100) {
            let how = Arc::clone(&how);
            std::thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
                how(stream);
            });
        }
    });
    port
}

pub fn read_head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (vec![], [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Reads the request, then writes `first` once and `again` until the other side is gone or `rounds` are over.
fn answer(
    first: &'static [u8],
    again: &'static [u8],
    pause: Duration,
    rounds: u32,
) -> impl Fn(TcpStream) + Send + Sync + 'static {
    move |mut stream| {
        read_head(&mut stream);
        if stream.write_all(first).is_err() {
            return;
        }
        for _ in 0..rounds {
            if stream.write_all(again).is_err() {
                return;
            }
            std::thread::sleep(pause);
        }
    }
}

fn every_failure_has_its_code(lab: &Lab) {
    let server = lab.server(&[]);
    let none = Duration::ZERO;
    let many = "X-Many: header\r\n".repeat(200);
    let long: &'static str =
        Box::leak(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(100_000)).into_boxed_str());
    let many: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\n{many}\r\n").into_boxed_str());
    let cases: Vec<(&str, u16, u64)> = vec![
        (
            "closes after the request",
            behave(lab, |mut s| {
                read_head(&mut s);
            }),
            52,
        ),
        (
            "resets",
            behave(lab, |mut s| {
                read_head(&mut s);
                let _ = SockRef::from(&s).set_linger(Some(Duration::ZERO));
            }),
            56,
        ),
        (
            "is silent",
            behave(lab, |mut s| {
                read_head(&mut s);
                std::thread::sleep(Duration::from_secs(3));
            }),
            28,
        ),
        ("drips its head", behave(lab, answer(b"HTTP/1.1 200 OK\r\nX: ", b"y", Duration::from_millis(100), 50)), 28),
        (
            "drips its body",
            behave(
                lab,
                answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"y", Duration::from_millis(100), 50),
            ),
            28,
        ),
        (
            "never ends its chunks",
            behave(
                lab,
                answer(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                    b"1\r\nx\r\n",
                    Duration::from_millis(1),
                    100_000,
                ),
            ),
            28,
        ),
        (
            "floods 100 Continue",
            behave(lab, answer(b"", b"HTTP/1.1 100 Continue\r\n\r\n", Duration::from_micros(100), 100_000)),
            63,
        ),
        (
            "breaks off its body",
            behave(lab, answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort", b"", none, 0)),
            56,
        ),
        ("breaks off its head", behave(lab, answer(b"HTTP/1.1 200 OK\r\nX: y", b"", none, 0)), 56),
        ("does not speak HTTP", behave(lab, answer(b"SSH-2.0-OpenSSH_9.2\r\n", b"", none, 0)), 56),
        ("sends 200 headers", behave(lab, answer(many.as_bytes(), b"", none, 0)), 63),
        ("sends a header of 100 kB", behave(lab, answer(long.as_bytes(), b"", none, 0)), 63),
        ("is not there", 1, 7),
    ];
    for (what, port, code) in cases {
        let started = Instant::now();
        let result = request(&server, json!({"url": format!("http://10.77.0.8:{port}/"), "timeout_ms": 1500}));
        assert_eq!((&result["status"], &result["failed"]), (&json!(code), &json!(true)), "{what}: {result}");
        assert!(result["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{what}: {result}");
        assert!(started.elapsed() < SOON, "{what}: {:?}", started.elapsed());
    }
    for (url, code) in [("http://nothing.lab.test/", 6), ("http://198.51.100.1/", 28), ("http://198.51.100.2/", 7)] {
        let result = request(&server, json!({"url": url, "timeout_ms": 1000}));
        assert_eq!((&result["status"], &result["failed"]), (&json!(code), &json!(true)), "{url}: {result}");
    }
    let odd = behave(
        lab,
        answer(
            b"HTTP/1.1 200 Fine \xff\r\nX-Odd: a\xffb\r\nX-Two: 1\r\nX-Two: 2\r\nContent-Length: 0\r\n\r\n",
            b"",
            none,
            0,
        ),
    );
    let result = request(&server, json!({"url": format!("http://10.77.0.8:{odd}/")}));
    assert_eq!(
        (&result["status"], &result["headers"]["x-odd"], &result["headers"]["x-two"]),
        (&json!(200), &json!("a\u{fffd}b"), &json!("1, 2")),
        "{result}"
    );
    let slow = behave(lab, |mut s| {
        read_head(&mut s);
        std::thread::sleep(Duration::from_millis(300));
        let _ = s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        std::thread::sleep(Duration::from_millis(200));
        let _ = s.write_all(b"ok");
    });
    let result = request(&server, json!({"url": format!("http://10.77.0.8:{slow}/")}));
    let phase = |name: &str| result["timings"][name].as_f64().unwrap_or_default();
    assert!(phase("wait") >= 295.0 && phase("download") >= 195.0 && phase("send") < 290.0, "{result}");
}

fn a_bomb_does_not_unfold(lab: &Lab) {
    let server = lab.server(&[]);
    let bomb = lab.path("bomb.gz");
    lab.probe.output("sh", &["-c", &format!("head -c 500M /dev/zero | gzip -9 > {}", bomb.display())]);
    let body = std::fs::read(&bomb).expect("read");
    let length = body.len();
    let port = behave(lab, move |mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(
            format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n").as_bytes(),
        );
        let _ = stream.write_all(&body);
    });
    let url = json!({"url": format!("http://10.77.0.8:{port}/"), "keep_body": 1000});
    request(&server, json!({"url": "http://v4.lab.test/packed", "headers": {"Accept-Encoding": "gzip"}}));
    let (before, _) = server.weight();
    let result = request(&server, url);
    let (after, _) = server.weight();
    assert_eq!(
        (&result["status"], &result["size"]["body"], &result["size"]["decoded"]),
        (&json!(200), &json!(length), &Value::Null),
        "{result}"
    );
    assert!(after < before + 16 * 1024, "{before} kB, then {after} kB");
}

fn header_injection_is_one_request_on_the_wire(lab: &Lab) {
    let server = lab.server(&[]);
    let seen = Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let log = Arc::clone(&seen);
    let port = behave(lab, move |mut stream| {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length) = stream.read(&mut buffer) {
            if length == 0 {
                break;
            }
            bytes.extend(&buffer[..length]);
            if bytes.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        log.lock().unwrap().push(String::from_utf8_lossy(&bytes).into_owned());
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
    });
    let base = format!("http://10.77.0.8:{port}");
    let evil = "\r\nEvil: yes\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n";
    let attacks = [
        json!({"url": format!("{base}/a{evil}")}),
        json!({"url": format!("{base}/?q={evil}")}),
        json!({"url": format!("{base}/#{evil}")}),
        json!({"url": format!("{base}/%0d%0aEvil:%20yes")}),
        json!({"url": &base, "method": format!("GET / HTTP/1.1{evil}GET")}),
        json!({"url": &base, "headers": {"X": format!("y{evil}")}}),
        json!({"url": &base, "headers": {format!("X{evil}"): "y"}}),
        json!({"url": &base, "headers": [format!("X: y{evil}")]}),
        json!({"url": &base, "headers": {"Content-Length": "0", "Transfer-Encoding": "chunked"}}),
        json!({"url": format!("http://us\r\ner:p\nw@10.77.0.8:{port}/")}),
    ];
    for attack in attacks {
        server.test("http_request", &attack);
    }
    for request in seen.lock().unwrap().iter() {
        assert_eq!(request.matches("HTTP/1.1\r\n").count(), 1, "{request:?}");
        assert!(
            !request.to_lowercase().contains("\r\nevil:") && request.matches("\r\n\r\n").count() == 1,
            "{request:?}"
        );
    }
    assert!(!seen.lock().unwrap().is_empty(), "the harmless ones arrive");
}

/// Floods, resets, endless heads (threat 41): whatever the server does in HTTP/2, the test has failed when its time is up.
fn http_2_that_misbehaves_ends_in_time(lab: &Lab) {
    let (cert, key) = (lab.path("good.pem"), lab.path("good.key"));
    let files = [&cert, &key].map(|file| file.to_str().expect("UTF-8"));
    let (_peers, ports) = python(lab, "h2faults.py", &["10.77.0.8", files[0], files[1]]);
    assert_eq!(ports.len(), 15);
    let server = lab.server(&[]);
    let well = json!({"url": "https://www.lab.test/echo", "version": 2});
    assert_eq!(request(&server, well.clone())["version"], json!("2"));
    let (before, descriptors) = server.weight();
    for (what, port) in ports.iter().filter(|(what, _)| what != "late settings") {
        let started = Instant::now();
        let options =
            json!({"url": format!("https://10.77.0.8:{port}/"), "version": 2, "ignore_ssl": true, "timeout_ms": 1500});
        let result = request(&server, options);
        let known = [16, 28, 52, 56, 63, 92].map(|code| json!(code));
        assert!(known.contains(&result["status"]) && result["failed"] == json!(true), "{what}: {result}");
        assert!(result["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{what}: {result}");
        assert!(started.elapsed() < SOON, "{what}: {:?}", started.elapsed());
        let (during, _) = server.weight();
        assert!(during < before + 16 * 1024, "{what}: {before} kB, then {during} kB");
        let asked = Instant::now();
        assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
        assert!(asked.elapsed() < Duration::from_secs(1), "{what}: {:?}", asked.elapsed());
    }
    assert_eq!(request(&server, well)["status"], json!(200));
    until("connections are gone", || server.weight().1 <= descriptors);
}

/// Interim responses and empty frames are ignored, and floods of them end.
fn http_3_is_read_to_its_end_or_a_limit(lab: &Lab) {
    let (cert, key) = (lab.path("good.pem"), lab.path("good.key"));
    let files = [&cert, &key].map(|file| file.to_str().expect("UTF-8"));
    let (_peers, ports) = python(lab, "h3faults.py", &["10.77.0.8", files[0], files[1]]);
    assert_eq!(ports.len(), 8);
    let server = lab.server(&[]);
    let (before, _) = server.weight();
    for (what, port) in &ports {
        let url = format!("https://10.77.0.8:{port}/");
        let options = json!({"url": url, "version": 3, "ignore_ssl": true, "keep_body": 10, "timeout_ms": 20_000});
        let result = request(&server, options);
        let expected = match what.as_str() {
            "interim responses flood" | "bytes flood" | "an endless unknown frame" => json!([63, null]),
            "empty DATA frames flood" | "ends its body early" => json!([56, null]),
            _ => json!([200, "xx"]),
        };
        assert_eq!(json!([result["status"], result["body"]]), expected, "{what}: {result}");
        assert_eq!(
            (&result["tls"]["alpn"], &result["remote_ip"]),
            (&json!("h3"), &json!("10.77.0.8")),
            "{what}: {result}"
        );
        let (after, _) = server.weight();
        assert!(after < before + 64 * 1024, "{what}: {before} kB, then {after} kB");
    }
}

/// Threat 40, and 41: what costs the server next to nothing to send is limited, and until the limit is reached neither
/// the API nor the measurements of others wait for it.
fn a_flooding_server_ends_at_a_limit_and_disturbs_no_other_test(lab: &Lab) {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let flood = |first: &'static [u8], again: &str| {
        let again: &'static [u8] = again.repeat(10_000).leak().as_bytes();
        format!("http://10.77.0.8:{}/", behave(lab, answer(first, again, Duration::ZERO, 1_000_000)))
    };
    let mut urls = vec![
        ("interim responses", flood(b"", "HTTP/1.1 100 Continue\r\n\r\n")),
        ("interim responses with headers", flood(b"", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")),
        ("chunks of a byte", flood(chunked, "1\r\nx\r\n")),
    ];
    let (cert, key) = (lab.path("good.pem"), lab.path("good.key"));
    let files = [&cert, &key].map(|file| file.to_str().expect("UTF-8"));
    let (_peers, ports) = python(lab, "h2faults.py", &["10.77.0.8", files[0], files[1]]);
    for kind in ["settings flood", "ping flood", "empty data flood", "window update flood"] {
        let (what, port) = ports.iter().find(|(what, _)| what == kind).expect("served");
        urls.push((what, format!("https://10.77.0.8:{port}/")));
    }
    let server = lab.server(&[]);
    let options = |url: &str| json!({"url": url, "version": 2, "ignore_ssl": true, "timeout_ms": 20_000});
    for (what, url) in &urls {
        let result = request(&server, options(url));
        let reason = result["reason"].as_str().unwrap_or_default();
        // h2 has a limit of its own for frames of data.
        let by_h2 = result["status"] == json!(56) && reason.contains("too_many_data_frames");
        let by_us = result["status"] == json!(63) && reason.contains("more than");
        assert!(result["failed"] == json!(true) && (by_us || by_h2), "{what}: {result}");
        assert_eq!(result["remote_ip"], json!("10.77.0.8"), "{what}: {result}");
    }
    let floods: Vec<Value> = urls.iter().cycle().take(24).map(|(_, url)| options(url)).collect();
    let payload = json!({"http_request": floods}).to_string();
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload)).body["receipt"].clone();
    let receipt = receipt.as_str().expect("a receipt");
    let path = format!("/api/v1.0/tests?receipt={receipt}");
    let (mut unmarked, mut curl, mut api) = (vec![], vec![], vec![]);
    for _ in 0..20 {
        let good = request(&server, json!({"url": "http://v4.lab.test/echo"}));
        assert_eq!(good["status"], json!(200), "{good}");
        if good["degraded"].is_null() {
            unmarked.push(good["timings"]["wait"].as_f64().expect("a number"));
        } else {
            assert_eq!(good["degraded"], json!("host_scheduling_delay"), "{good}");
            assert!(good["timings"]["host_delay"].as_f64().is_some_and(|ms| ms > 1.0), "{good}");
        }
        let format = "%{time_connect} %{time_starttransfer}";
        let times = lab.probe.output("curl", &["-s", "-o", "/dev/null", "-w", format, "http://v4.lab.test/echo"]);
        let times: Vec<f64> = times.split(' ').map(|text| text.parse().expect("seconds")).collect();
        curl.push((times[1] - times[0]) * 1000.0);
        let asked = Instant::now();
        assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
        api.push(asked.elapsed());
    }
    let longest = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    // What curl, a process of its own, waits for the same server is the load of the machine.
    assert!(
        longest(&unmarked) < 50.0 + 2.0 * longest(&curl),
        "not marked: {unmarked:?} ms; curl beside: {curl:?} ms; /healthz: {api:?}"
    );
    let ended = server.get(&format!("{path}&wait=100")).body;
    assert_eq!(ended["is_running"], json!(false));
    for test in ended["results"]["http_request"].as_array().expect("results") {
        assert!([json!(56), json!(63)].contains(&test["result"]["status"]), "{test}");
    }
}

/// Threat 58: internationalised, too long, empty, with characters that no name has. Nothing traps, and no nonsense is
/// asked of a name server.
fn odd_names_are_errors_and_no_more(lab: &Lab) {
    let server = lab.server(&[]);
    let (label, long) = ("x".repeat(64), ["abcdefghi"; 30].join("."));
    let names = [
        ".",
        "..",
        "a..lab.test",
        ".lab.test",
        &label,
        &long,
        "nul\0.lab.test",
        "a b.lab.test",
        "a\nb.lab.test",
        "a\tb",
        "\u{202e}tset.bal",
        "xn--",
        "xn--a",
        "xn--\u{e9}",
        "-a.lab.test",
        "a-.lab.test",
        "\u{1f600}",
        "1.2.3.4.5",
        "999.1.1.1",
        "0x7f.1",
        "[::1",
        "::g",
        "fe80::1%eth0",
        "%00",
        "a/b",
        "a:b",
        "a@b",
        "*.lab.test",
        "a\\.lab.test",
        "\u{200d}",
        "\u{3002}",
    ];
    let mut tests = vec![];
    for name in names {
        tests.push(("ping", json!({"dst": name, "count": 1, "timeout_ms": 300})));
        tests.push(("traceroute", json!({"dst": name, "timeout_ms": 300, "max_ttl": 2})));
        tests.push(("dns_lookup", json!({"qname": name, "ns": "10.77.0.2"})));
        tests.push(("dns_lookup", json!({"qname": "www.lab.test", "ns": name})));
        tests.push(("dns_traceroute", json!({"qname": name, "ns": "10.77.0.2", "max_ttl": 2})));
        tests.push(("http_request", json!({"url": format!("http://{name}/"), "timeout_ms": 2000})));
    }
    for (kind, options) in tests {
        let started = Instant::now();
        let test = server.test(kind, &options);
        assert_eq!(test["error"], Value::Null, "the plugin was stopped: {kind} {options}: {test}");
        let answered = kind.starts_with("dns") && options["ns"] == json!("10.77.0.2");
        assert!(test["failed"] == json!(true) || answered, "{kind} {options}: {test}");
        let said = test["message"].as_str().or(test["result"]["reason"].as_str());
        let said = said.or_else(|| test["result"].as_object().filter(|result| !result.is_empty()).map(|_| "a result"));
        assert!(said.is_some_and(|text| !text.is_empty()), "{kind} {options}: {test}");
        assert!(started.elapsed() < Duration::from_secs(12), "{kind} {options}: {:?}", started.elapsed());
    }
    // What is a name, in whichever alphabet and case, is looked up as IDNA has it (UTS 46).
    for name in ["WWW.LAB.TEST", "www.lab.test.", "\u{ff57}ww.lab.test", "www\u{3002}lab.test"] {
        let test = server.test("ping", &json!({"dst": name, "count": 1}));
        assert_eq!((&test["failed"], &test["result"]["dst"]), (&json!(false), &json!(name)), "{test}");
    }
}
