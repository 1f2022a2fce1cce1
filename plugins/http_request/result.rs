//! The result of an `http_request`.

use std::collections::BTreeMap;

use scouter_sdk::headers::joined;
use scouter_sdk::prelude::*;
use scouter_sdk::stats::{ms, seconds_text};

use crate::curl::{self, Times};
use crate::{Exchange, Options};

/// Result of a request.
#[derive(Serialize, JsonSchema)]
pub struct HttpResult {
    /// The option, with `***` in place of a password.
    url: String,
    /// Method of the last request.
    method: String,
    /// Status of the response, or curl's code of the failure.
    status: u16,
    /// Reason phrase of the response (empty over HTTP/2 and 3, which have none), or of the failure.
    reason: String,
    /// HTTP version of the response; null without one.
    version: Option<&'static str>,
    /// Names in lower case; values of one name joined by ", ".
    headers: BTreeMap<String, String>,
    comment: Option<String>,
    failed: bool,
    /// Bits of the last body divided by the total time in seconds.
    speed_download: f64,
    /// Seconds with three decimals, cumulative as `curl -w` prints them.
    time_namelookup: String,
    time_connect: String,
    time_appconnect: String,
    time_starttransfer: String,
    time_total: String,
    /// URL of the last request in normal form, without user information.
    url_effective: String,
    /// Address of the server of the last request.
    remote_ip: Option<String>,
    /// Phases of the last request.
    timings: Timings,
    /// `host_scheduling_delay` when this host's own load may have lengthened a phase, by up to `host_delay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<String>,
    /// Redirects that were followed.
    redirects: Vec<Redirect>,
    tls: Option<Tls>,
    size: Size,
    /// The first `keep_body` bytes of the decoded body. Bytes that are not UTF-8 are replaced by U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

/// Durations of the phases in milliseconds; null for a phase that did not happen.
#[derive(Clone, Default, Serialize, JsonSchema)]
struct Timings {
    dns: Option<f64>,
    connect: Option<f64>,
    tls: Option<f64>,
    send: Option<f64>,
    wait: Option<f64>,
    download: Option<f64>,
    total: f64,
    /// Longest time for which a ready socket waited for a thread of this host; 0 below 0.25 ms.
    host_delay: f64,
}

#[derive(Serialize, JsonSchema)]
struct Redirect {
    url: String,
    status: u16,
    location: Option<String>,
    remote_ip: String,
    timings: Timings,
}

#[derive(Serialize, JsonSchema)]
struct Tls {
    version: Option<String>,
    cipher: Option<String>,
    alpn: Option<String>,
    verified: bool,
    verify_error: Option<String>,
    chain: Vec<Certificate>,
}

#[derive(Serialize, JsonSchema)]
struct Certificate {
    subject: String,
    issuer: String,
    san: Vec<String>,
    not_before: String,
    not_after: String,
    serial: String,
    sha256: String,
}

/// Bytes of the last response; null without one.
#[derive(Default, Serialize, JsonSchema)]
struct Size {
    headers: Option<u64>,
    /// Before content decoding.
    body: Option<u64>,
    /// After content decoding; null when decoding failed.
    decoded: Option<u64>,
}

impl HttpResult {
    pub fn new(options: &Options, exchanges: &[Exchange], too_many_redirects: bool, comment: Option<String>) -> Self {
        let mut times = Times::default();
        for exchange in exchanges {
            times.add(&Times::of(exchange.timings(), exchange.tls().is_some()));
        }
        let (last, redirected) = match exchanges.split_last() {
            Some((last, redirected)) => (Some(last), redirected),
            None => (None, exchanges),
        };
        let response = last.and_then(|exchange| exchange.outcome.as_ref().ok());
        let failure = last.and_then(|exchange| exchange.outcome.as_ref().err());
        let (status, reason) = match (response, failure) {
            _ if too_many_redirects => {
                (curl::TOO_MANY_REDIRECTS, format!("Maximum ({}) redirects followed", options.max_redirects))
            }
            (_, Some(failure)) => (curl::code(failure.kind), failure.reason.clone()),
            (Some(response), None) => (response.status, response.reason.clone()),
            (None, None) => (0, String::new()),
        };
        Self {
            url: url::without_password(&options.url),
            method: last.map(|exchange| exchange.method.clone()).unwrap_or_default(),
            status,
            reason,
            version: response.map(|response| version(response.version)),
            headers: response.map(|response| joined(&response.headers)).unwrap_or_default(),
            comment,
            failed: too_many_redirects || failure.is_some(),
            speed_download: speed(response.map_or(0, |response| response.body_bytes), times.total),
            time_namelookup: seconds_text(times.namelookup),
            time_connect: seconds_text(times.connect),
            time_appconnect: seconds_text(times.appconnect),
            time_starttransfer: seconds_text(times.starttransfer),
            time_total: seconds_text(times.total),
            url_effective: last.map(|exchange| exchange.url().to_owned()).unwrap_or_default(),
            remote_ip: last.and_then(Exchange::remote_address),
            timings: last.map(|exchange| exchange.timings().into()).unwrap_or_default(),
            degraded: exchanges.iter().find_map(|exchange| exchange.timings().degraded.clone()),
            redirects: redirected.iter().filter_map(Redirect::of).collect(),
            tls: last.and_then(Exchange::tls).map(Tls::from),
            size: response.map(Size::of).unwrap_or_default(),
            body: response
                .filter(|_| options.keep_body > 0)
                .map(|response| String::from_utf8_lossy(&response.body).into_owned()),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a body is at most 64 MiB")]
fn speed(bytes: u64, total_ns: u64) -> f64 {
    if total_ns == 0 { 0.0 } else { (bytes as f64 * 8e9 / total_ns as f64).round() }
}

fn version(version: http::Version) -> &'static str {
    match version {
        http::Version::Http10 => "1.0",
        http::Version::Http11 => "1.1",
        http::Version::Http2 => "2",
        http::Version::Http3 => "3",
    }
}

impl Exchange {
    fn url(&self) -> &str {
        match &self.outcome {
            Ok(response) => &response.url,
            Err(failure) => &failure.url,
        }
    }

    pub fn timings(&self) -> &http::Timings {
        match &self.outcome {
            Ok(response) => &response.timings,
            Err(failure) => &failure.timings,
        }
    }

    fn tls(&self) -> Option<&http::TlsDetails> {
        match &self.outcome {
            Ok(response) => response.tls.as_ref(),
            Err(failure) => failure.tls.as_ref(),
        }
    }

    fn remote_address(&self) -> Option<String> {
        match &self.outcome {
            Ok(response) => Some(response.remote_address.clone()),
            Err(failure) => failure.remote_address.clone(),
        }
    }
}

impl Redirect {
    fn of(exchange: &Exchange) -> Option<Self> {
        let response = exchange.outcome.as_ref().ok()?;
        Some(Self {
            url: response.url.clone(),
            status: response.status,
            location: response.redirect.as_ref().map(|redirect| url::without_password(&redirect.url)),
            remote_ip: response.remote_address.clone(),
            timings: (&response.timings).into(),
        })
    }
}

impl From<&http::Timings> for Timings {
    fn from(t: &http::Timings) -> Self {
        Self {
            dns: t.dns.map(ms),
            connect: t.connect.map(ms),
            tls: t.tls.map(ms),
            send: t.send.map(ms),
            wait: t.wait.map(ms),
            download: t.download.map(ms),
            total: ms(t.total),
            host_delay: ms(t.host_delay),
        }
    }
}

impl From<&http::TlsDetails> for Tls {
    fn from(details: &http::TlsDetails) -> Self {
        let chain = details.chain.iter().map(|c| Certificate {
            subject: c.subject.clone(),
            issuer: c.issuer.clone(),
            san: c.alternative_names.clone(),
            not_before: c.not_before.clone(),
            not_after: c.not_after.clone(),
            serial: c.serial.clone(),
            sha256: c.sha256.clone(),
        });
        Self {
            version: details.version.clone(),
            cipher: details.cipher.clone(),
            alpn: details.alpn.clone(),
            verified: details.verified,
            verify_error: details.verify_error.clone(),
            chain: chain.collect(),
        }
    }
}

impl Size {
    fn of(response: &http::Response) -> Self {
        Self { headers: Some(response.header_bytes), body: Some(response.body_bytes), decoded: response.decoded_bytes }
    }
}

/// Samples for the unit tests.
#[cfg(test)]
pub mod samples {
    use super::*;

    pub fn timings() -> http::Timings {
        http::Timings {
            dns: Some(10),
            connect: Some(20),
            tls: Some(30),
            send: Some(5),
            wait: Some(45),
            download: Some(90),
            total: 200,
            host_delay: 0,
            degraded: None,
        }
    }

    pub fn response() -> http::Response {
        let header = |name: &str, value: &str| http::Header { name: name.into(), value: value.into() };
        http::Response {
            url: "http://a.example/".into(),
            status: 200,
            reason: "OK".into(),
            version: http::Version::Http11,
            headers: vec![header("server", "x"), header("vary", "a"), header("vary", "b")],
            redirect: None,
            remote_address: "192.0.2.1".into(),
            remote_port: 80,
            timings: timings(),
            tls: None,
            header_bytes: 100,
            body_bytes: 1000,
            decoded_bytes: None,
            body: vec![b'o', b'k', 0xff],
        }
    }
}

#[cfg(test)]
mod tests {
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
        let delayed = http::Timings {
            host_delay: 2_500_000,
            degraded: Some("host_scheduling_delay".into()),
            ..samples::timings()
        };
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
            tls: None,
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
            ("time_starttransfer", json!("0.000")),
            ("speed_download", json!(0.0)),
        ] {
            assert_eq!(result[field], value, "{field}");
        }
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
}
