//! What is answered 400, and what becomes a failed test.

use libtest_mimic::Trial;
use serde_json::json;

use crate::support::server::{SECRET, Server};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::payloads":
        every_error_row_of_the_contract,
        a_payload_without_tests_is_done_at_once,
        a_test_that_cannot_run_says_why,
    )
}

fn every_error_row_of_the_contract() {
    let server = Server::start(&[("SCOUTER_MAX_BODY_BYTES", "2000")]);
    let tests = "/api/v1.0/tests";
    let eleven = json!({"ping": vec![json!({"dst": "x"}); 11]}).to_string();
    let long = format!("{{\"ping\": [{{\"dst\": \"{}\"}}]}}", "x".repeat(2000));
    let empty = format!("{{{}}}", (0..11).map(|n| format!("\"t{n}\": []")).collect::<Vec<_>>().join(","));
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
        (
            "POST",
            tests,
            Some(r#"{"ping": [], "PING": []}"#),
            400,
            "Provided payload has a name more than once: 'PING'.",
        ),
        (
            "POST",
            tests,
            Some(r#"{"ping": [{"dst": "a", "DST": "b"}]}"#),
            400,
            "Provided payload has a name more than once: 'DST'.",
        ),
        (
            "POST",
            tests,
            Some(r#"{"ping": [{"dst": "a", "x": [[[[[[[[[0]]]]]]]]]}]}"#),
            400,
            "ping[0].x[0][0][0][0][0][0][0][0]: expected lists and objects at most 8 deep, got more",
        ),
        ("POST", tests, Some(&empty), 400, "Provided number of tests is too high. Max: 10"),
        (
            "POST",
            tests,
            Some(r#"{"ping": [{"dst": "a", "count": 1e309}]}"#),
            400,
            "Provided payload has a number that is out of range: line 1, column 37.",
        ),
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
            json!({"dst": "x", "count": 1e308}),
            "Provided value of '1e+308' for option 'count' is not allowed. Expected: a whole number from 0 to 18446744073709551615.",
        ),
        (
            "ping",
            json!({"dst": null, "count": null}),
            "Required test option of 'dst' was not given. Please pass the required 'dst' option.",
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
            "Provided value of '[1]' for option 'id' is not allowed. Expected: text of at most 256 characters, or a number.",
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
            "Provided value of '4' for option 'version' is not allowed. Expected: one of '1.0', '1', '1.1', '2', '2.0', '3', '3.0'.",
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
    // Refused addresses show that the options themselves were taken.
    for options in [
        json!({"url": "http://[::1]/", "version": 1.1, "headers": null, "id": null}),
        json!({"url": "http://[::1]/", "version": 2}),
        json!({"url": "http://[::1]/", "VERSION": "2.0", "timeout_ms": "500"}),
    ] {
        let test = server.test("http_request", &options);
        assert_eq!(test["message"], "Target '::1' is not allowed: it is a loopback address.", "{options}: {test}");
    }
    let given = server
        .run(&json!({"ping": [{"id": "mine", "dst": "::1"}, {"ID": 7.5, "DST": "::1"}], "nothing": [{"id": "x"}]}));
    assert_eq!(
        (&given["ping"][0]["id"], &given["ping"][1]["id"], &given["nothing"][0]["id"]),
        (&json!("mine"), &json!(7.5), &json!("x"))
    );
    assert_eq!(given["ping"][0]["message"], "Target '::1' is not allowed: it is a loopback address.");
}
