//! Results of exchanges that ended well, and that did not.

use scouter_sdk::testing;
use serde_json::{Value, json};

use super::*;
use crate::HttpRequest;

fn result(options: Value, exchanges: &[Exchange], too_many_redirects: bool) -> Value {
    let options = testing::options::<HttpRequest>(options).expect("valid");
    let result = HttpResult::new(&options, exchanges, too_many_redirects, None);
    testing::result::<HttpRequest>(&result).expect("as its schema says")
}

fn answered(response: http::Response) -> Exchange {
    Exchange { method: "GET".into(), outcome: Ok(response) }
}

fn milliseconds(timings: &http::Timings) -> http::Timings {
    let ms = |ns: u64| ns * 1_000_000;
    http::Timings {
        dns: timings.dns.map(ms),
        connect: timings.connect.map(ms),
        tls: timings.tls.map(ms),
        send: timings.send.map(ms),
        wait: timings.wait.map(ms),
        download: timings.download.map(ms),
        total: ms(timings.total),
        ..timings.clone()
    }
}

#[test]
fn a_busy_host_is_reported_whichever_exchange_it_delayed() {
    let delayed =
        http::Timings { host_delay: 2_500_000, degraded: Some("host_scheduling_delay".into()), ..samples::timings() };
    let first = answered(http::Response { timings: delayed, ..samples::response() });
    let second = answered(samples::response());
    let result = result(json!({"url": "a.example"}), &[first, second], false);
    assert_eq!(
        (&result["degraded"], &result["redirects"][0]["timings"]["host_delay"], &result["timings"]["host_delay"]),
        (&json!("host_scheduling_delay"), &json!(2.5), &json!(0.0)),
        "{result}"
    );
}

#[test]
fn a_result_has_every_field_of_the_first_version() {
    let response = http::Response { timings: milliseconds(&samples::timings()), ..samples::response() };
    let result = result(json!({"url": "EXAMPLE.com/a?b"}), &[answered(response)], false);
    for (field, value) in [
        ("url", json!("EXAMPLE.com/a?b")),
        ("method", json!("GET")),
        ("status", json!(200)),
        ("reason", json!("OK")),
        ("version", json!("1.1")),
        ("headers", json!({"server": "x", "vary": "a, b"})),
        ("comment", json!(null)),
        ("failed", json!(false)),
        ("speed_download", json!(40_000.0)),
        ("time_namelookup", json!("0.010")),
        ("time_connect", json!("0.030")),
        ("time_appconnect", json!("0.060")),
        ("time_starttransfer", json!("0.110")),
        ("time_total", json!("0.200")),
        ("http_status", json!(200)),
        ("phase", json!(null)),
        ("url_effective", json!("http://a.example/")),
        ("remote_ip", json!("192.0.2.1")),
        ("size", json!({"headers": 100, "body": 1000, "decoded": null})),
        ("redirects", json!([])),
        ("tls", json!(null)),
    ] {
        assert_eq!(result[field], value, "{field}");
    }
    assert_eq!((&result["timings"]["tls"], &result["timings"]["total"]), (&json!(30.0), &json!(200.0)));
    assert!(result.get("body").is_none(), "not asked for");
}

#[test]
fn the_url_is_the_option_without_its_password() {
    let url = "https://user:s&cret@a.example/";
    let shown = &result(json!({"url": url}), &[answered(samples::response())], false)["url"];
    assert_eq!(shown, "https://user:***@a.example/");
}

#[test]
fn a_failure_has_its_curl_code_for_status() {
    let failure = http::Failure {
        url: "http://a.example/".into(),
        kind: http::FailureKind::Connect,
        reason: "connection refused".into(),
        remote_address: Some("192.0.2.1".into()),
        timings: http::Timings { tls: None, send: None, wait: None, download: None, ..samples::timings() },
        ..samples::failure()
    };
    let failed = Exchange { method: "HEAD".into(), outcome: Err(failure) };
    let result = result(json!({"url": "a.example"}), &[failed], false);
    for (field, value) in [
        ("status", json!(7)),
        ("failed", json!(true)),
        ("reason", json!("connection refused")),
        ("version", json!(null)),
        ("headers", json!({})),
        ("method", json!("HEAD")),
        ("remote_ip", json!("192.0.2.1")),
        ("http_status", json!(null)),
        ("phase", json!("connect")),
        ("size", json!({"headers": null, "body": null, "decoded": null})),
        ("time_starttransfer", json!("0.000")),
        ("speed_download", json!(0.0)),
    ] {
        assert_eq!(result[field], value, "{field}");
    }
}

#[test]
fn a_failure_keeps_what_came() {
    let response = samples::response();
    let timings = http::Timings { download: None, ..milliseconds(&samples::timings()) };
    let head = http::ResponseHead {
        status: response.status,
        reason: response.reason,
        version: response.version,
        headers: response.headers,
        header_bytes: response.header_bytes,
    };
    let (kind, phase) = (http::FailureKind::Timeout, Some(http::Phase::Download));
    let head = Some(head);
    let failure = http::Failure { kind, phase, head, body_bytes: 500, timings, ..samples::failure() };
    let failed = Exchange { method: "GET".into(), outcome: Err(failure) };
    let result = result(json!({"url": "a.example"}), &[failed], false);
    for (field, value) in [
        ("status", json!(28)),
        ("failed", json!(true)),
        ("http_status", json!(200)),
        ("phase", json!("download")),
        ("version", json!("1.1")),
        ("headers", json!({"server": "x", "vary": "a, b"})),
        ("size", json!({"headers": 100, "body": 500, "decoded": null})),
        ("speed_download", json!(20_000.0)),
        ("time_starttransfer", json!("0.110")),
    ] {
        assert_eq!(result[field], value, "{field}");
    }
}

#[test]
fn a_handshake_that_did_not_end_has_no_time() {
    let tls = Some(http::TlsDetails {
        version: None,
        cipher: None,
        alpn: None,
        verified: false,
        verify_error: None,
        chain: vec![],
    });
    let timings = http::Timings { tls: None, send: None, wait: None, ..milliseconds(&samples::timings()) };
    let failure = http::Failure { phase: Some(http::Phase::Tls), tls, timings, ..samples::failure() };
    let failed = Exchange { method: "GET".into(), outcome: Err(failure) };
    let result = result(json!({"url": "https://a.example"}), &[failed], false);
    let expected = (&json!("0.030"), &json!("0.000"), &json!("tls"));
    assert_eq!((&result["time_connect"], &result["time_appconnect"], &result["phase"]), expected);
}

#[test]
fn a_body_that_was_cut_is_a_comment() {
    let response = http::Response { body_limit: Some(900), ..samples::response() };
    let result = result(json!({"url": "a.example"}), &[answered(response)], false);
    let comment = json!("The body was cut: 1000 bytes were read. Max: 900.");
    let expected = (&json!(200), &json!(false), &comment);
    assert_eq!((&result["status"], &result["failed"], &result["comment"]), expected);
}

#[test]
fn redirects_are_listed_and_their_times_are_summed() {
    let redirect = http::Redirect { url: "http://u:p@b.example/".into(), same_origin: false };
    let timings = milliseconds(&samples::timings());
    let moved =
        http::Response { status: 302, redirect: Some(redirect), timings: timings.clone(), ..samples::response() };
    let last = http::Response { url: "http://b.example/".into(), timings, ..samples::response() };
    let result = result(json!({"url": "a.example"}), &[answered(moved.clone()), answered(last)], false);
    assert_eq!((&result["status"], &result["time_total"]), (&json!(200), &json!("0.400")));
    assert_eq!((&result["url"], &result["url_effective"]), (&json!("a.example"), &json!("http://b.example/")));
    let hop = &result["redirects"][0];
    assert_eq!((&hop["status"], &hop["location"]), (&json!(302), &json!("http://u:***@b.example/")));
    let loops = self::result(json!({"url": "a.example"}), &[answered(moved)], true);
    let expected = (&json!(47), &json!("Maximum (10) redirects followed"), &json!(true));
    assert_eq!((&loops["status"], &loops["reason"], &loops["failed"]), expected);
}

#[test]
fn a_kept_body_is_text() {
    let result = result(json!({"url": "a.example", "keep_body": 10}), &[answered(samples::response())], false);
    assert_eq!(result["body"], "ok\u{fffd}");
}

#[test]
fn http_2_has_no_reason_phrase() {
    let response = http::Response { reason: String::new(), version: http::Version::Http2, ..samples::response() };
    let result = result(json!({"url": "a.example"}), &[answered(response)], false);
    assert_eq!((&result["reason"], &result["version"]), (&json!(""), &json!("2")));
}

#[test]
fn tls_details_are_complete() {
    let certificate = http::Certificate {
        subject: "CN=a.example".into(),
        issuer: "CN=CA".into(),
        alternative_names: vec!["DNS:a.example".into()],
        not_before: "2026-01-01T00:00:00Z".into(),
        not_after: "2027-01-01T00:00:00Z".into(),
        serial: "01".into(),
        sha256: "ab".into(),
    };
    let details = http::TlsDetails {
        version: Some("TLSv1.3".into()),
        cipher: Some("TLS_AES_128_GCM_SHA256".into()),
        alpn: Some("h2".into()),
        verified: false,
        verify_error: Some("certificate has expired".into()),
        chain: vec![certificate],
    };
    let response = http::Response { tls: Some(details), ..samples::response() };
    let tls = &result(json!({"url": "https://a.example"}), &[answered(response)], false)["tls"];
    assert_eq!((&tls["verified"], &tls["verify_error"]), (&json!(false), &json!("certificate has expired")));
    assert_eq!((&tls["chain"][0]["san"], &tls["chain"][0]["sha256"]), (&json!(["DNS:a.example"]), &json!("ab")));
}
