//! Limits on clients, TLS, and the privileges that the server gives up.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::server::{SECRET, Server, command};
use crate::support::{SOON, scouter, until};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    let mut all = trials!("hardening":
        every_request_has_a_line_and_a_name,
        each_secret_has_a_rate_of_its_own,
        tls_follows_its_certificate,
        what_is_no_certificate_is_an_error_at_start,
        a_storm_of_waiting_clients_costs_nothing,
        the_wall_clock_may_jump,
        slow_connections_do_not_hold_up_others,
    );
    all.extend(crate::needing_root(trials!("hardening":
        threads_keep_no_capability_that_they_do_not_need,
        a_file_capability_is_made_use_of,
    )));
    all
}

/// A request as bytes, and the answer as text.
fn say(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    stream.write_all(request).expect("written");
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn every_request_has_a_line_and_a_name() {
    for format in ["text", "json"] {
        let server = Server::start(&[("SCOUTER_LOG_FORMAT", format), ("SCOUTER_LOG", "info")]);
        let id_of = |answer: &str| {
            let line = answer.lines().find_map(|line| line.strip_prefix("x-request-id: "));
            line.unwrap_or_else(|| panic!("no id: {answer}")).to_owned()
        };
        let ask = |path: &str, id: &[u8]| {
            let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {SECRET}\r\n");
            say(&server, &[head.as_bytes(), b"X-Request-Id: ", id, b"\r\n\r\n"].concat())
        };
        assert_eq!(id_of(&ask("/api/v1.0/status", b"monitor-7.2_a")), "monitor-7.2_a", "the caller's own");
        let endless = [b'a'; 65];
        for strange in [&b"a b"[..], b"\x80\xff", b"{evil}", b"", b"\"x\\n\"", &endless] {
            let id = id_of(&ask("/api/v1.0/tests?receipt=0123456789abcdef", strange));
            assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        }
        ask("/secret-place/%1b%5b31m?token=hush", b"stranger");
        say(&server, b"BR\x1bEW / HTTP/1.1\r\n\r\n");
        say(&server, b"GET /\x1b[31m\n2026-01-01 INFO forged HTTP/1.1\r\nHost: x\r\n\r\n");
        until("the lines are there", || server.log().contains("stranger"));
        let log = server.log();
        let lines: Vec<&str> =
            log.lines().filter(|line| line.contains("/api/v1.0/") || line.contains("none")).collect();
        assert_eq!(lines.len(), 8, "a line for each request: {log}");
        assert!(lines[0].contains("monitor-7.2_a") && lines[0].contains("200"), "{log}");
        assert!(lines[1].contains("404") && lines[1].contains("/api/v1.0/tests"), "{log}");
        let hidden = [SECRET, "0123456789abcdef", "secret-place", "hush", "evil", "forged", "\x1b"];
        assert!(!hidden.iter().any(|hidden| log.contains(hidden)), "{log:?}");
        if format == "json" {
            for line in log.lines() {
                let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
            }
            let last: Value = serde_json::from_str(lines.last().expect("a line")).expect("JSON");
            assert_eq!(
                (&last["span"]["id"], &last["fields"]["status"], &last["target"]),
                (&json!("stranger"), &json!(404), &json!("access"))
            );
        }
    }
}

fn each_secret_has_a_rate_of_its_own() {
    let secrets = "first-secret-of-the-tests,second-secret-of-the-tests";
    let settings = [("SCOUTER_RATE_LIMIT", "5")];
    let server = Server::spawn_with(command(), &settings, None, Some(secrets));
    let ask = |secret: &str| server.raw("GET", "/api/v1.0/status", &[("authorization", secret)], None);
    let answers: Vec<_> = (0..20).map(|_| ask("first-secret-of-the-tests")).collect();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!((10..=15).contains(&refused.len()) && answers.len() - refused.len() >= 5, "{}", refused.len());
    assert_eq!(refused[0].headers["retry-after"], "1");
    assert!(refused[0].body["error"].as_str().is_some_and(|text| text.contains("Too many requests")));
    assert_eq!(ask("second-secret-of-the-tests").status, 200, "another caller is not held up");
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
    until("a second later it may ask again", || ask("first-secret-of-the-tests").status == 200);
}

/// A certificate for `localhost` and its key, put there as those who renew them do: whole, by a rename.
fn certificate(folder: &Path, name: &str) {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout new.key -out new.pem \
                  -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null && \
                  mv new.pem \"$0.pem\" && mv new.key \"$0.key\"";
    let status = Command::new("sh").args(["-ec", script, name]).current_dir(folder).status().expect("runs");
    assert!(status.success());
}

fn curl(server: &Server, trusted: &Path, more: &[&str]) -> Output {
    let url = format!("https://localhost:{}/healthz", server.address.port());
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "10", "--resolve"]).arg(format!("localhost:{}:127.0.0.1", server.address.port()));
    curl.args(["--cacert", trusted.to_str().expect("UTF-8"), &url]).args(more).output().expect("curl runs")
}

fn tls_follows_its_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    certificate(folder.path(), "server");
    std::fs::copy(file("server.pem"), file("first.pem")).expect("copied");
    let (cert, key) = (file("server.pem"), file("server.key"));
    let settings =
        [("SCOUTER_TLS_CERT", cert.to_str().expect("UTF-8")), ("SCOUTER_TLS_KEY", key.to_str().expect("UTF-8"))];
    let server = Server::start(&settings);
    for (more, version) in [(&["--http1.1"][..], "1.1"), (&["--http2"], "2")] {
        let output = curl(&server, &file("first.pem"), &[more, &["-w", "%{http_version}"]].concat());
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("ok\n{version}"), "{output:?}");
    }
    let plain = say(&server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!plain.contains("ok"), "no plain HTTP: {plain:?}");
    let started = Instant::now();
    assert!(say(&server, &[22]).is_empty(), "half a handshake");
    assert!((4.0..20.0).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
    let health = |port: &str| {
        let mut health = command();
        health
            .arg("health")
            .env("API_PORT", port)
            .env("SCOUTER_TLS_CERT", &cert)
            .env("https_proxy", "http://127.0.0.1:9");
        health.output().expect("runs")
    };
    let port = server.address.port().to_string();
    assert!(health(&port).status.success(), "{:?}", health(&port));
    // A certificate without its key changes nothing; then the key comes.
    certificate(folder.path(), "other");
    std::fs::copy(file("other.pem"), file("server.pem")).expect("copied");
    until("it says so", || server.log().contains("the TLS certificate stays as it was"));
    assert!(curl(&server, &file("first.pem"), &[]).status.success());
    std::fs::copy(file("other.key"), file("server.key")).expect("copied");
    until("it is taken", || curl(&server, &file("other.pem"), &[]).status.success());
    assert!(!curl(&server, &file("first.pem"), &[]).status.success(), "the old one is gone");
    // Immediately, on SIGHUP.
    certificate(folder.path(), "server");
    server.signal(nix::sys::signal::Signal::SIGHUP);
    let started = Instant::now();
    until("SIGHUP", || curl(&server, &file("server.pem"), &[]).status.success());
    // The server looks by itself every 5 s.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

fn what_is_no_certificate_is_an_error_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["one", "two"] {
        certificate(folder.path(), name);
    }
    std::fs::write(folder.path().join("text.pem"), "no certificate").expect("written");
    for (cert, key, words) in [
        ("missing.pem", "one.key", "SCOUTER_TLS_CERT"),
        ("text.pem", "one.key", "no certificates in PEM form"),
        ("one.pem", "text.pem", "no private key in PEM form"),
        ("one.pem", "two.key", "SCOUTER_TLS_KEY"),
        ("one.pem", "", "--tls-key"),
    ] {
        let mut command = command();
        command
            .env("SCOUTER_API_SECRET", SECRET)
            .env("API_PORT", "0")
            .env("SCOUTER_TLS_CERT", folder.path().join(cert));
        if !key.is_empty() {
            command.env("SCOUTER_TLS_KEY", folder.path().join(key));
        }
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(words), "{cert} {key}: {text}");
    }
}

/// Of each thread: its name, and the lines of its status with this name.
fn of_threads(server: &Server, field: &str) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads");
    let read = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"))?.to_owned();
        Some((name, u64::from_str_radix(&value, 16).expect("a mask")))
    };
    tasks.flatten().filter_map(read).collect()
}

const NET_RAW: u64 = 1 << 13;
/// For the sandbox of a Firefox that root starts.
const SETFCAP: u64 = 1 << 31;

/// Root is the worst case: it has everything, and so would all that it starts.
fn threads_keep_no_capability_that_they_do_not_need() {
    let server = Server::start(&[("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8")]);
    let test = server.test("traceroute", &json!({"dst": "127.0.0.1", "proto": "TCP", "dport": 9}));
    assert_eq!(test["result"]["mode"], json!("raw"), "{test}");
    // The thread that checks payloads begins with the first of them, late, and has the name of the guests' threads.
    assert_eq!(server.request("POST", "/api/v1.0/tests", Some("{}")).status, 200);
    for field in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        let threads = of_threads(&server, field);
        assert!(["io", "guest", "opener"].iter().all(|known| threads.iter().any(|(name, _)| name == known)));
        for (name, mask) in threads {
            let expected = match (field, name.as_str()) {
                ("CapEff" | "CapPrm" | "CapBnd", "opener") => NET_RAW,
                // Browsers are started from here.
                ("CapBnd", "io" | "scouter") => SETFCAP,
                _ => 0,
            };
            assert_eq!(mask, expected, "{field} of {name}");
        }
    }
}

/// `setcap cap_net_raw+p`: permitted, but not effective until the program raises it.
fn a_file_capability_is_made_use_of() {
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let program = folder.path().join("scouter");
    std::fs::copy(scouter(), &program).expect("copied");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("opened");
    // capabilities(7): revision 2, no effective bit, permitted and inheritable sets in two halves.
    let words = [0x0200_0000_u32, 1 << 13, 0, 0, 0];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let script = "import os, sys; os.setxattr(sys.argv[1], 'security.capability', bytes(eval(sys.argv[2])))";
    let value = format!("{value:?}");
    let set = Command::new("python3").args(["-c", script]).arg(&program).arg(value).status().expect("python runs");
    assert!(set.success());
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    crate::support::server::clean(&mut nobody);
    let server = Server::spawn(nobody, &[("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8")], None);
    let status = server.get("/api/v1.0/status").body;
    assert_eq!(status["network"]["icmp_v4"]["mode"], json!("raw"), "{status}");
    let test = server.test("ping", &json!({"dst": "127.0.0.1", "count": 1}));
    assert_eq!(test["result"]["recv"], json!(1), "{test}");
}

/// Threat 52: who waits for a receipt is woken, and does not spin.
fn a_storm_of_waiting_clients_costs_nothing() {
    let server = Server::hostile(&[]);
    let answer = server.request("POST", "/api/v1.0/tests", Some(r#"{"hostile": [{"do": "sleep", "n": 4000}]}"#));
    let receipt = answer.body["receipt"].as_str().expect("a receipt").to_owned();
    let head = format!(
        "GET /api/v1.0/tests?receipt={receipt}&wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\nConnection: close\r\n\r\n"
    );
    let mut waiting: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).expect("connected");
            stream.write_all(head.as_bytes()).expect("written");
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let before = cpu_ticks(&server);
    let asked = Instant::now();
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    std::thread::sleep(Duration::from_secs(2));
    let spent = cpu_ticks(&server) - before;
    // A client that polls, or a server that does, would spend most of the two seconds.
    assert!(spent <= 40, "{spent} hundredths of a second of CPU in two seconds of waiting");
    for stream in &mut waiting {
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        assert!(text.contains("\"is_running\":false"), "{text}");
    }
}

/// User and system time, in hundredths of a second (`proc_pid_stat(5)`).
fn cpu_ticks(server: &Server) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("stat");
    let after = stat.rsplit_once(')').expect("a name").1.to_owned();
    after.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// Threat 57: lifetimes and durations are of the monotonic clock; only what is shown as a time of day follows the other.
fn the_wall_clock_may_jump() {
    let library = std::fs::read_dir("/usr/lib").expect("listed").flatten().find_map(|folder| {
        let file = folder.path().join("faketime/libfaketimeMT.so.1");
        file.exists().then_some(file)
    });
    let library = library.expect("faketime is installed by `make test`");
    let folder = tempfile::tempdir().expect("a folder");
    let offset = folder.path().join("offset");
    std::fs::write(&offset, "+0").expect("written");
    let mut command = command();
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &offset);
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let hostile = crate::support::hostile();
    let settings = [("SCOUTER_RECEIPT_TTL", "15"), ("SCOUTER_PLUGIN_DIR", hostile.to_str().expect("UTF-8"))];
    let server = Server::spawn(command, &settings, None);
    let started = Instant::now();
    let receipt = server.request("POST", "/api/v1.0/tests", Some("{}")).body["receipt"].clone();
    let path = format!("/api/v1.0/tests?receipt={}", receipt.as_str().expect("a receipt"));
    for jump in ["+3600", "-3600", "+0"] {
        std::fs::write(&offset, jump).expect("written");
        let test = server.test("hostile", &json!({"do": "sleep", "n": 300}));
        let at = test["timing"]["started_at"].as_str().expect("a time").parse::<jiff::Timestamp>().expect("RFC 3339");
        let off = at.duration_since(jiff::Timestamp::now()).as_secs_f64();
        assert!(
            (off - jump.parse::<f64>().expect("seconds")).abs() < 60.0,
            "{jump}: the library has no effect: {test}"
        );
        let took = test["timing"]["duration_ms"].as_f64().expect("a number");
        assert!((290.0..10_000.0).contains(&took), "{jump}: {test}");
        assert_eq!(server.get(&path).status, 200, "{jump}: the receipt lives");
    }
    assert!(started.elapsed() < Duration::from_secs(14), "too slow a machine for this test: {:?}", started.elapsed());
    std::fs::write(&offset, "-3600").expect("written");
    until("it expires all the same", || server.get(&path).status == 404);
    assert!((14.5..40.0).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
}

/// Threat 51; `bench loris` does the same with a thousand.
fn slow_connections_do_not_hold_up_others() {
    let server = Server::start(&[("SCOUTER_LOG", "info,access=warn")]);
    let mut slow: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(server.address).expect("connected")).collect();
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        for stream in &mut slow {
            let _ = stream.write_all(b"G");
        }
        let asked = Instant::now();
        assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
        worst = worst.max(asked.elapsed());
    }
    // They are cut off after 5 s.
    assert!(worst < Duration::from_secs(4), "{worst:?}");
}
