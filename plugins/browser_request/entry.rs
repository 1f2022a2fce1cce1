//! One request of a page in the result.

use std::collections::BTreeMap;

use scouter_sdk::attempts::ConnectionAttempt;
use scouter_sdk::headers::joined;
use scouter_sdk::prelude::*;
use scouter_sdk::stats::rounded;

use browser::{Exchange, FailureKind};

/// Of a child's URL in a result that would be too large.
pub const URL_BYTES: usize = 512;

/// One request and its response. Times are durations of phases in milliseconds, 0 for a phase that did not happen.
#[derive(Serialize, JsonSchema)]
pub struct Entry {
    pub url: String,
    pub failed: bool,
    /// Status of the response, or curl's code of the failure; null when a request is open that has no response yet.
    status: Option<u16>,
    /// Reason phrase of the response (empty over HTTP/2 and 3, which have none), or of the failure.
    reason: String,
    /// ALPN name of the HTTP version: `http/1.1`, `h2`.
    version: Option<String>,
    /// Names in lower case; values of one name joined by ", ".
    pub headers: BTreeMap<String, String>,
    time_namelookup: f64,
    /// TCP and TLS handshakes, as in HAR.
    time_connect: f64,
    /// TLS handshake.
    time_appconnect: f64,
    /// From the last byte of the request to the first byte of the response.
    time_starttransfer: f64,
    /// From the start of the request to the last byte of the response.
    time_total: f64,
    method: String,
    /// Destination of the request: `document`, `style`, `script`, `image`, …
    #[serde(rename = "type")]
    kind: String,
    remote_ip: Option<String>,
    /// Attempts to connect of the first request of a connection, when there were several or one failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<ConnectionAttempt>,
    /// Milliseconds from the start of the navigation to the start of the request.
    started_ms: f64,
    size: Size,
    /// True when the exchange was still under way when the page was done: a websocket, an event stream, a long poll. Its
    /// `time_total` is 0.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    open: bool,
    /// Present when the URL or the headers are shown in part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
}

/// Bytes of what is shown in part; null for what is shown whole.
#[derive(Default, Serialize, JsonSchema)]
pub struct Cut {
    /// Length of the whole URL.
    pub url: Option<u64>,
    /// Length of the names and values of all headers.
    pub headers: Option<u64>,
}

/// Bytes on the wire; null when the browser did not report them.
#[derive(Serialize, JsonSchema)]
pub struct Size {
    headers: Option<u64>,
    body: Option<u64>,
}

impl Entry {
    pub fn new(exchange: &Exchange) -> Self {
        let failure = exchange.failure.as_ref();
        let t = &exchange.timings;
        let or_zero = |value: Option<f64>| rounded(value.unwrap_or(0.0));
        Self {
            url: url::without_password(&exchange.url),
            failed: failure.is_some(),
            status: failure.map_or(exchange.status, |failure| Some(curl_code(failure.kind))),
            reason: failure.map_or_else(|| exchange.reason.clone(), |failure| failure.reason.clone()),
            version: exchange.version.clone(),
            headers: joined(&exchange.headers),
            time_namelookup: or_zero(t.dns),
            time_connect: or_zero(t.connect.map(|connect| connect + t.tls.unwrap_or(0.0))),
            time_appconnect: or_zero(t.tls),
            time_starttransfer: or_zero(t.wait),
            time_total: or_zero(t.total),
            method: exchange.method.clone(),
            kind: exchange.destination.clone(),
            remote_ip: exchange.remote_address.clone(),
            attempts: attempts(exchange),
            started_ms: rounded(exchange.started_ms),
            size: Size { headers: exchange.header_bytes, body: exchange.body_bytes },
            open: exchange.open,
            cut: Cut::of(exchange),
        }
    }

    /// Shows no headers, but how much they are.
    pub fn without_headers(&mut self) {
        let bytes: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > 0 {
            self.headers.clear();
            self.cut.get_or_insert_default().headers.get_or_insert(bytes as u64);
        }
    }

    /// Shows the beginning of a long URL, and how long it is.
    pub fn cut_url(&mut self) {
        let bytes = self.url.len() as u64;
        let end = self.url.floor_char_boundary(URL_BYTES);
        if end < self.url.len() {
            self.url.truncate(end);
            self.cut.get_or_insert_default().url.get_or_insert(bytes);
        }
    }
}

impl Cut {
    fn of(exchange: &Exchange) -> Option<Self> {
        let beyond =
            |shown: usize, whole: u64| (u64::try_from(shown).is_ok_and(|shown| shown < whole)).then_some(whole);
        let headers = exchange.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        let cut = Self {
            url: beyond(exchange.url.len(), exchange.url_bytes),
            headers: beyond(headers, exchange.header_text_bytes),
        };
        (cut.url.is_some() || cut.headers.is_some()).then_some(cut)
    }
}

/// The code of a failure (libcurl-errors(3)).
fn curl_code(kind: FailureKind) -> u16 {
    match kind {
        FailureKind::Denied | FailureKind::Connect => 7,
        FailureKind::Name => 6,
        FailureKind::Timeout => 28,
        FailureKind::Handshake => 35,
        FailureKind::Certificate => 60,
        FailureKind::EmptyReply => 52,
        FailureKind::Receive => 56,
        FailureKind::Partial => 18,
        FailureKind::InvalidResponse => 8,
        FailureKind::Blocked => 42,
        FailureKind::TooLarge => 63,
        FailureKind::Unavailable | FailureKind::Other => 2,
    }
}

/// A page has hundreds of connections that were there at once: those say nothing.
fn attempts(exchange: &Exchange) -> Vec<ConnectionAttempt> {
    let is_plain = exchange.attempts.len() == 1 && exchange.attempts.iter().all(|attempt| attempt.error.is_none());
    if is_plain { vec![] } else { exchange.attempts.iter().map(Into::into).collect() }
}
