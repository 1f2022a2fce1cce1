//! Every route and every error row of the contract.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::server::{SECRET, Server};
use crate::support::until;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api":
        only_who_has_the_secret_gets_in,
        a_thousand_wrong_secrets_are_slowed_down,
        every_error_row_of_the_contract,
        a_payload_without_tests_is_done_at_once,
        a_test_that_cannot_run_says_why,
        receipts_show_results_as_tests_finish,
        results_over_a_receipts_budget_become_failed_tests,
        receipts_expire,
        deleting_a_receipt_cancels_its_tests,
        a_full_queue_answers_429,
        tests_over_all_requests_share_the_slots,
        status_tells_how_the_server_is,
        plugins_tells_what_there_is,
        slow_heads_are_cut_off,
        sigterm_finishes_what_runs_and_exits_0,
        sigterm_cuts_off_what_takes_too_long,
        guessing_receipts_finds_nothing,
        a_body_of_gigabytes_costs_no_memory,
    )
}

fn sleeping(ms: u64) -> Value {
    json!({"do": "sleep", "n": ms})
}

fn only_who_has_the_secret_gets_in() {
    let server = Server::start(&[("SCOUTER_API_SECRET", "first-secret-of-two,second-secret-of-two")]);
    for good in ["first-secret-of-two", "second-secret-of-two", "Bearer first-secret-of-two"] {
        assert_eq!(server.raw("GET", "/api/v1.0/status", &[("AUTHORIZATION", good)], None).status, 200, "{good}");
    }
    for bad in ["", "first-secret-of-tw", "first-secret-of-two,second-secret-of-two", "Basic first-secret-of-two"] {
        let answer = server.raw("GET", "/api/v1.0/status", &[("authorization", bad)], None);
        assert_eq!(answer.status, 403, "{bad}");
        assert!(answer.body["error"].is_string(), "{}", answer.body);
    }
    for path in ["/api/v1.0/status", "/api/v1.0/plugins", "/api/v1.0/tests?receipt=x", "/api/v1.0/nothing"] {
        assert_eq!(server.raw("GET", path, &[], None).status, 403, "{path}");
    }
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
    assert!(!server.log().contains("first-secret"), "a secret in the log");
}

fn a_thousand_wrong_secrets_are_slowed_down() {
    let server = Server::start(&[]);
    let mut slowed = 0;
    for _ in 0..1000 {
        let answer = server.raw("GET", "/api/v1.0/status", &[("authorization", "wrong")], None);
        if answer.status == 429 {
            slowed += 1;
            assert!(answer.headers.contains_key("retry-after"));
        }
    }
    assert!(slowed > 700, "{slowed} of 1000 answered 429");
    assert_eq!(server.get("/api/v1.0/status").status, 200, "the right secret still works");
}

fn every_error_row_of_the_contract() {
    let server = Server::start(&[("SCOUTER_MAX_BODY_BYTES", "2000")]);
    let tests = "/api/v1.0/tests";
    let eleven = json!({"ping": vec![json!({"dst": "x"}); 11]}).to_string();
    let long = format!("{{\"ping\": [{{\"dst\": \"{}\"}}]}}", "x".repeat(2000));
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let rows: &[(&str, &str, Option<&str>, u16, &str)] = &[
        ("POST", tests, None, 400, "Valid request payload not found."),
        ("POST", tests, Some(""), 400, "Valid request payload not found."),
        ("POST", tests, Some("{"), 400, "Valid request payload not found."),
        ("POST", tests, Some("[]"), 400, "Valid request payload not found."),
        ("POST", tests, Some("null"), 400, "Valid request payload not found."),
        ("POST", tests, Some("{\"a\": NaN}"), 400, "Valid request payload not found."),
        ("POST", tests, Some(&deep), 400, "Valid request payload not found."),
        ("POST", tests, Some(&eleven), 400, "Provided number of tests is too high. Max: 10"),
        ("POST", tests, Some(r#"{"ping": {"dst": "x"}}"#), 400, "ping: expected a list of option objects"),
        ("POST", tests, Some(r#"{"ping": ["x"]}"#), 400, "ping[0]: expected an object of options"),
        ("POST", tests, Some(r#"{"nothing": [null]}"#), 400, "nothing[0]: expected an object of options"),
        ("POST", tests, Some(&long), 413, "The request body is over the limit of 2000 bytes."),
        (
            "POST",
            "/api/v1.0/tests?wait=-1",
            Some("{}"),
            400,
            "Provided value of '-1' for parameter 'wait' is not allowed. Expected: seconds from 0 to 300.",
        ),
        (
            "POST",
            "/api/v1.0/tests?wait=NaN",
            Some("{}"),
            400,
            "Provided value of 'NaN' for parameter 'wait' is not allowed. Expected: seconds from 0 to 300.",
        ),
        (
            "POST",
            "/api/v1.0/tests?wait=1e9",
            Some("{}"),
            400,
            "Provided value of '1e9' for parameter 'wait' is not allowed. Expected: seconds from 0 to 300.",
        ),
        ("GET", tests, None, 400, "Required 'receipt' parameter not found."),
        ("DELETE", tests, None, 400, "Required 'receipt' parameter not found."),
        ("GET", "/api/v1.0/tests?receipt=", None, 400, "Required 'receipt' parameter found with an empty value."),
        ("DELETE", "/api/v1.0/tests?receipt=", None, 400, "Required 'receipt' parameter found with an empty value."),
        ("GET", "/api/v1.0/tests?receipt=unknown", None, 404, "Provided 'receipt' not found."),
        ("GET", "/api/v1.0/tests?receipt=%00%ff%22", None, 404, "Provided 'receipt' not found."),
        ("DELETE", "/api/v1.0/tests?receipt=unknown", None, 404, "Provided 'receipt' not found."),
        ("PUT", tests, Some("{}"), 405, "This route does not take this method."),
        ("POST", "/api/v1.0/status", Some("{}"), 405, "This route does not take this method."),
        ("GET", "/api/v1.0/nothing", None, 404, "No such route. The API is under /api/v1.0: tests, status, plugins."),
        ("GET", "/", None, 404, "No such route. The API is under /api/v1.0: tests, status, plugins."),
    ];
    for (method, path, body, status, error) in rows {
        let answer = server.request(method, path, *body);
        assert_eq!((answer.status, &answer.body), (*status, &json!({"error": error})), "{method} {path} {body:?}");
        assert_eq!(answer.headers["content-type"], "application/json", "{method} {path}");
    }
    for (media_type, status) in [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
    ] {
        let answer = server.raw("POST", tests, &[("authorization", SECRET), ("content-type", media_type)], Some(b"{}"));
        assert_eq!(answer.status, status, "{media_type}: {}", answer.body);
    }
    assert_eq!(server.raw("POST", tests, &[("authorization", SECRET)], Some(b"{}")).status, 200, "no media type");
}

fn a_payload_without_tests_is_done_at_once() {
    let server = Server::start(&[]);
    let answer = server.request("POST", "/api/v1.0/tests", Some("{}"));
    assert_eq!(answer.status, 200);
    let receipt = answer.body["receipt"].as_str().expect("a receipt").to_owned();
    assert!(
        receipt.len() == 32 && receipt.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()),
        "{receipt}"
    );
    assert_eq!(answer.headers["location"], format!("/api/v1.0/tests?receipt={receipt}"));
    let body = server.get(&format!("/api/v1.0/tests?receipt={receipt}")).body;
    let expected =
        json!({"receipt": receipt, "is_running": false, "results": {}, "progress": {"finished": 0, "total": 0}});
    assert_eq!(body, expected);
}

fn a_test_that_cannot_run_says_why() {
    let server = Server::start(&[("SCOUTER_MAX_TEST_COUNT", "100")]);
    let cases = [
        ("nothing", json!({"a": 1}), "Provided test type does not exist."),
        ("Ping", json!({"dst": "127.0.0.1"}), "Provided test type does not exist."),
        ("ping", json!({}), "Required test option of 'dst' was not given. Please pass the required 'dst' option."),
        (
            "http_request",
            json!({}),
            "Required test option of 'url' was not given. Please pass the required 'url' option.",
        ),
        (
            "dns_lookup",
            json!({"NS": "1.1.1.1"}),
            "Required test option of 'qname' was not given. Please pass the required 'qname' option.",
        ),
        (
            "ping",
            json!({"dst": "x", "cuont": 1}),
            "Provided test option of 'cuont' does not exist. Did you mean 'count'?",
        ),
        (
            "ping",
            json!({"dst": "x", "count": -1}),
            "Provided value of '-1' for option 'count' is not allowed. Expected: a whole number of at least 0.",
        ),
        (
            "ping",
            json!({"dst": "x", "count": 1.5}),
            "Provided value of '1.5' for option 'count' is not allowed. Expected: a whole number of at least 0.",
        ),
        (
            "ping",
            json!({"dst": "x", "count": true}),
            "Provided value of 'true' for option 'count' is not allowed. Expected: a whole number of at least 0.",
        ),
        (
            "ping",
            json!({"dst": "x", "count": null}),
            "Provided value of 'null' for option 'count' is not allowed. Expected: a whole number of at least 0.",
        ),
        (
            "ping",
            json!({"dst": "x", "payload_size": 1473}),
            "Provided value of '1473' for option 'payload_size' is not allowed. Expected: a whole number from 0 to 1472.",
        ),
        (
            "ping",
            json!({"dst": "x", "interval_ms": 9}),
            "Provided value of '9' for option 'interval_ms' is not allowed. Expected: a whole number from 10 to 1000.",
        ),
        (
            "ping",
            json!({"dst": "x", "family": "5"}),
            "Provided value of '5' for option 'family' is not allowed. Expected: one of 'any', '4', '6'.",
        ),
        (
            "ping",
            json!({"dst": "x", "ttl": 0}),
            "Provided value of '0' for option 'ttl' is not allowed. Expected: a whole number from 1 to 255.",
        ),
        (
            "ping",
            json!({"dst": "x", "id": [1]}),
            "Provided value of '[1]' for option 'id' is not allowed. Expected: text or a number.",
        ),
        ("ping", json!({"dst": "127.0.0.1"}), "Target '127.0.0.1' is not allowed: it is a loopback address."),
        (
            "dns_lookup",
            json!({"qname": "x.test", "rdtype": "BOGUS", "ns": "8.8.8.8"}),
            "Provided record type of 'BOGUS' is not a recognized type.",
        ),
        (
            "dns_lookup",
            json!({"qname": "x.test", "ns": "192.168.1.1"}),
            "Target '192.168.1.1' is not allowed: it is a private address (RFC 1918).",
        ),
        (
            "dns_lookup",
            json!({"qname": "x.test", "transport": "smoke"}),
            "Provided value of 'smoke' for option 'transport' is not allowed. Expected: one of 'udp', 'tcp', 'tls', 'https', 'quic'.",
        ),
        (
            "http_request",
            json!({"url": "http://10.0.0.1/"}),
            "Target '10.0.0.1' is not allowed: it is a private address (RFC 1918).",
        ),
        (
            "http_request",
            json!({"url": "file:///etc/passwd"}),
            "Provided request is not allowed: the URL's scheme 'file' is not http or https.",
        ),
        (
            "http_request",
            json!({"url": "http://x.test/", "version": "4"}),
            "Provided value of '4' for option 'version' is not allowed. Expected: one of '1.0', '1.1', '2', '3'.",
        ),
        (
            "http_request",
            json!({"url": "http://x.test/", "headers": ["no colon"]}),
            "Provided value of 'no colon' for option 'headers' is not allowed. Expected: \"Name: value\".",
        ),
        (
            "http_request",
            json!({"url": "http://8.8.8.8/", "headers": {"X": "a\r\nHost: b"}}),
            "Provided request is not allowed: the value of header 'X' contains control characters.",
        ),
        (
            "http_request",
            json!({"url": "http://8.8.8.8/", "headers": {"Host": "b"}}),
            "Provided request is not allowed: header 'Host' cannot be set.",
        ),
        (
            "http_request",
            json!({"url": "http://8.8.8.8/", "resolve": "nonsense"}),
            "Provided request is not allowed: 'nonsense' is not an IP address.",
        ),
    ];
    for (test_type, options, message) in cases {
        let test = server.test(test_type, &options);
        assert_eq!((&test["failed"], &test["result"]), (&json!(true), &json!({})), "{test_type} {options}: {test}");
        assert_eq!(test["message"], message, "{test_type} {options}");
        assert!(test["id"].as_str().is_some_and(|id| id.len() == 6), "{test}");
    }
    let given = server
        .run(&json!({"ping": [{"id": "mine", "dst": "::1"}, {"ID": 7.5, "DST": "::1"}], "nothing": [{"id": "x"}]}));
    assert_eq!(
        (&given["ping"][0]["id"], &given["ping"][1]["id"], &given["nothing"][0]["id"]),
        (&json!("mine"), &json!(7.5), &json!("x"))
    );
    assert_eq!(given["ping"][0]["message"], "Target '::1' is not allowed: it is a loopback address.");
}

fn receipts_show_results_as_tests_finish() {
    let server = Server::hostile(&[]);
    let payload = json!({"hostile": [sleeping(600), {"do": "nothing", "id": "quick"}], "nothing": [{}]});
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
    let done = server.get(&format!("{path}&wait=10")).body;
    assert!(started.elapsed() < Duration::from_secs(5), "wait ends with the last test");
    assert_eq!(done["is_running"], json!(false));
    assert_eq!(done["results"]["hostile"][1]["id"], "quick", "in the order of submission: {done}");
    let timing = &done["results"]["hostile"][0]["timing"];
    assert!(timing["duration_ms"].as_f64().is_some_and(|ms| (600.0..2000.0).contains(&ms)), "{timing}");
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
    let server = Server::start(&[("SCOUTER_RECEIPT_TTL", "1")]);
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

fn status_tells_how_the_server_is() {
    let server = Server::hostile(&[]);
    server.run(&json!({"hostile": [{"do": "panic"}]}));
    let status = server.get("/api/v1.0/status").body;
    let workers = status["worker_status"].as_array().expect("a list");
    assert_eq!(workers.len(), 10);
    for (index, worker) in workers.iter().enumerate() {
        for field in [
            "avg_rt",
            "delta_requests",
            "exceptions",
            "id",
            "last_spawn",
            "pid",
            "requests",
            "respawn_count",
            "rss",
            "running_time",
            "signals",
            "status",
            "tx",
            "vsz",
        ] {
            assert!(worker.get(field).is_some(), "{field}");
        }
        assert_eq!(worker["id"], json!(index + 1));
    }
    let sum = |field: &str| workers.iter().map(|worker| worker[field].as_u64().expect("a number")).sum::<u64>();
    assert_eq!((sum("requests"), sum("exceptions"), sum("respawn_count")), (1, 1, 1), "{status}");
    for field in
        ["total_requests", "version", "uptime_s", "queue", "receipts", "plugins", "asn_database", "browsers", "network"]
    {
        assert!(status.get(field).is_some(), "{field}");
    }
    assert!(status["total_requests"].as_u64().is_some_and(|n| n >= 2), "{status}");
}

fn plugins_tells_what_there_is() {
    let server = Server::start(&[]);
    let body = server.get("/api/v1.0/plugins").body;
    let names: Vec<_> =
        body["plugins"].as_array().expect("a list").iter().map(|p| p["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["browser_request", "dns_lookup", "dns_traceroute", "http_request", "ping", "traceroute"]);
    let ping = &body["plugins"][4];
    assert_eq!(ping["options"]["required"], json!(["dst"]));
    assert_eq!(ping["options"]["properties"]["count"]["default"], json!(10));
    let imports: Vec<_> = ping["imports"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .filter(|i| i.starts_with("scouter:"))
        .collect();
    assert!(
        imports.contains(&"scouter:probe/icmp@1.0.0")
            && !imports.iter().any(|i| i.contains("/http@") || i.contains("/dns@")),
        "{imports:?}"
    );
    assert!(ping["version"].is_string() && ping["summary"].is_string(), "{ping}");
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
