//! The result of an `http_request`.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use scouter_sdk::attempts::ConnectionAttempt;
use scouter_sdk::bindings::scouter::probe::net;
use scouter_sdk::headers::joined;
use scouter_sdk::options::add_comment;
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
    /// Status of the response, also when the exchange failed after it came; null without one.
    http_status: Option<u16>,
    /// Reason phrase of the response (empty over HTTP/2 and 3, which have none), or of the failure.
    reason: String,
    /// HTTP version of the response; null without one.
    version: Option<&'static str>,
    /// Names in lower case; values of one name joined by ", ".
    headers: BTreeMap<String, String>,
    comment: Option<String>,
    failed: bool,
    /// Phase that the exchange failed in; null when it did not fail, or before the first phase.
    phase: Option<Phase>,
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
    /// Address of the server of the last request; the one that was tried last when connecting failed.
    remote_ip: Option<String>,
    /// Attempts to connect of the last request, in the order in which they began.
    attempts: Vec<ConnectionAttempt>,
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

#[derive(Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Phase {
    Dns,
    Connect,
    Tls,
    Send,
    Wait,
    Download,
}

/// Durations of the phases in milliseconds; null for a phase that did not happen or did not end. `connect` is the handshake of
/// the connection that was used, without attempts with other addresses before it.
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
    attempts: Vec<ConnectionAttempt>,
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

/// Bytes of the last response, or of what came of it; null without one.
#[derive(Default, Serialize, JsonSchema)]
struct Size {
    headers: Option<u64>,
    /// Before content decoding.
    body: Option<u64>,
    /// After content decoding; null when decoding failed or the body is not whole.
    decoded: Option<u64>,
}

impl HttpResult {
    pub fn new(
        options: &Options,
        exchanges: &[Exchange],
        too_many_redirects: bool,
        mut comment: Option<String>,
    ) -> Self {
        let mut times = Times::default();
        for exchange in exchanges {
            times.add(&Times::of(exchange.timings(), exchange.attempts(), exchange.is_secured()));
        }
        let (last, redirected) = match exchanges.split_last() {
            Some((last, redirected)) => (Some(last), redirected),
            None => (None, exchanges),
        };
        let response = last.and_then(|exchange| exchange.outcome.as_ref().ok());
        let failure = last.and_then(|exchange| exchange.outcome.as_ref().err());
        if let Some(http::Response { body_bytes, body_limit: Some(limit), .. }) = response {
            add_comment(&mut comment, &format!("The body was cut: {body_bytes} bytes were read. Max: {limit}."));
        }
        let head = last.and_then(Head::of);
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
            http_status: head.as_ref().map(|head| head.status),
            version: head.as_ref().map(|head| version(head.version)),
            headers: head.as_ref().map(|head| joined(head.headers)).unwrap_or_default(),
            comment,
            failed: too_many_redirects || failure.is_some(),
            phase: failure.and_then(|failure| failure.phase).map(Phase::from),
            speed_download: speed(head.as_ref().map_or(0, |head| head.size.body.unwrap_or_default()), times.total),
            time_namelookup: seconds_text(times.namelookup),
            time_connect: seconds_text(times.connect),
            time_appconnect: seconds_text(times.appconnect),
            time_starttransfer: seconds_text(times.starttransfer),
            time_total: seconds_text(times.total),
            url_effective: last.map(|exchange| exchange.url().to_owned()).unwrap_or_default(),
            remote_ip: last.and_then(Exchange::remote_address),
            attempts: last.map(Exchange::attempts).unwrap_or_default().iter().map(Into::into).collect(),
            timings: last.map(|exchange| exchange.timings().into()).unwrap_or_default(),
            degraded: exchanges.iter().find_map(|exchange| exchange.timings().degraded.clone()),
            redirects: redirected.iter().filter_map(Redirect::of).collect(),
            tls: last.and_then(Exchange::tls).map(Tls::from),
            size: head.map(|head| head.size).unwrap_or_default(),
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

/// What came of a response.
struct Head<'a> {
    status: u16,
    version: http::Version,
    headers: &'a [http::Header],
    size: Size,
}

impl<'a> Head<'a> {
    fn of(exchange: &'a Exchange) -> Option<Self> {
        match &exchange.outcome {
            Ok(response) => Some(Self {
                status: response.status,
                version: response.version,
                headers: &response.headers,
                size: Size {
                    headers: Some(response.header_bytes),
                    body: Some(response.body_bytes),
                    decoded: response.decoded_bytes,
                },
            }),
            Err(failure) => failure.head.as_ref().map(|head| Self {
                status: head.status,
                version: head.version,
                headers: &head.headers,
                size: Size {
                    // What passed a limit is not there, and not counted.
                    headers: Some(head.header_bytes).filter(|_| !head.headers.is_empty()),
                    body: Some(failure.body_bytes),
                    decoded: None,
                },
            }),
        }
    }
}

impl From<http::Phase> for Phase {
    fn from(phase: http::Phase) -> Self {
        match phase {
            http::Phase::Dns => Self::Dns,
            http::Phase::Connect => Self::Connect,
            http::Phase::Tls => Self::Tls,
            http::Phase::Send => Self::Send,
            http::Phase::Wait => Self::Wait,
            http::Phase::Download => Self::Download,
        }
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

    fn attempts(&self) -> &[net::ConnectionAttempt] {
        match &self.outcome {
            Ok(response) => &response.attempts,
            Err(failure) => &failure.attempts,
        }
    }

    fn tls(&self) -> Option<&http::TlsDetails> {
        match &self.outcome {
            Ok(response) => response.tls.as_ref(),
            Err(failure) => failure.tls.as_ref(),
        }
    }

    /// Did a TLS handshake end? A part of one may be known.
    fn is_secured(&self) -> bool {
        let in_handshake =
            matches!(&self.outcome, Err(http::Failure { phase: Some(http::Phase::Connect | http::Phase::Tls), .. }));
        self.tls().is_some() && (!in_handshake || self.timings().tls.is_some())
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
            attempts: response.attempts.iter().map(Into::into).collect(),
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

    pub fn failure() -> http::Failure {
        http::Failure {
            url: "http://a.example/".into(),
            kind: http::FailureKind::Connect,
            reason: "connection refused".into(),
            phase: Some(http::Phase::Connect),
            remote_address: None,
            attempts: vec![],
            timings: timings(),
            tls: None,
            head: None,
            body_bytes: 0,
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
            attempts: vec![],
            timings: timings(),
            tls: None,
            header_bytes: 100,
            body_bytes: 1000,
            body_limit: None,
            decoded_bytes: None,
            body: vec![b'o', b'k', 0xff],
        }
    }
}
