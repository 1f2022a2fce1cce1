//! The result of an `http_request`, in the words of the first version and with what is new.

use std::collections::BTreeMap;

use scouter_sdk::prelude::*;
use scouter_sdk::stats::ms;

use crate::{Hop, Options, code_of};

/// What a web server answered.
#[derive(Serialize, JsonSchema)]
pub struct Requested {
    /// The last URL that was requested.
    url: String,
    /// The last method.
    method: String,
    /// The response's status, or curl's code of the failure.
    status: u16,
    reason: String,
    /// HTTP version of the response; unknown without one.
    version: Option<&'static str>,
    /// Names in lower case; values of one name joined by ", ".
    headers: BTreeMap<String, String>,
    comment: Option<String>,
    failed: bool,
    /// Bits per second of the last body over the whole time.
    speed_download: f64,
    /// Seconds with three decimals, cumulative as curl -w prints them.
    time_namelookup: String,
    time_connect: String,
    time_appconnect: String,
    time_starttransfer: String,
    time_total: String,
    remote_ip: Option<String>,
    /// Of the last request.
    timings: Timings,
    redirects: Vec<Redirect>,
    tls: Option<Tls>,
    size: Size,
    /// The first bytes of the decoded body, when asked for; bytes that are not UTF-8 are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

/// Lengths of the phases in milliseconds; null for one that did not happen.
#[derive(Clone, Default, Serialize, JsonSchema)]
struct Timings {
    dns: Option<f64>,
    connect: Option<f64>,
    tls: Option<f64>,
    send: Option<f64>,
    wait: Option<f64>,
    download: Option<f64>,
    total: f64,
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

/// Bytes of the last response; null when there was none.
#[derive(Default, Serialize, JsonSchema)]
struct Size {
    headers: Option<u64>,
    /// As transferred.
    body: Option<u64>,
    /// After content decoding; null when it could not be decoded.
    decoded: Option<u64>,
}

/// A failure in curl's words.
pub struct Failed {
    pub code: u16,
    pub reason: String,
}

/// Moments since the start of one request, in nanoseconds, as curl counts them: 0 for what did not happen.
#[derive(Default)]
struct Moments {
    namelookup: u64,
    connect: u64,
    appconnect: u64,
    starttransfer: u64,
    total: u64,
}

impl Moments {
    fn of(timings: &http::Timings) -> Self {
        let mut moments = Self { total: timings.total, ..Self::default() };
        let mut now = timings.dns.unwrap_or(0);
        moments.namelookup = now;
        if let Some(connect) = timings.connect {
            now += connect;
            moments.connect = now;
        }
        if let Some(tls) = timings.tls {
            now += tls;
            moments.appconnect = now;
        }
        if let Some(wait) = timings.wait {
            moments.starttransfer = now + timings.send.unwrap_or(0) + wait;
        }
        moments
    }

    /// curl's figures of a transfer with redirects are sums over its requests.
    fn add(&mut self, other: &Self) {
        self.namelookup += other.namelookup;
        self.connect += other.connect;
        self.appconnect += other.appconnect;
        self.starttransfer += other.starttransfer;
        self.total += other.total;
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a test are far below 2^52 ns")]
fn seconds(ns: u64) -> String {
    format!("{:.3}", ns as f64 / 1e9)
}

impl Requested {
    pub fn new(
        options: &Options,
        first_method: &str,
        hops: &[Hop],
        failure: Option<Failed>,
        comment: Option<String>,
    ) -> Self {
        let mut moments = Moments::default();
        for hop in hops {
            let mut own = Moments::of(hop.timings());
            // HTTP/3 connects and secures in one handshake: curl gives both the same moment.
            if own.appconnect == 0 && hop.tls().is_some() {
                own.appconnect = own.connect;
            }
            moments.add(&own);
        }
        let (last, before) = match hops.split_last() {
            Some((last, before)) => (Some(last), before),
            None => (None, hops),
        };
        let redirects = before.iter().filter_map(Redirect::of).collect();
        let response = last.and_then(|hop| hop.outcome.as_ref().ok());
        let failure = failure.or_else(|| {
            let failure = last?.outcome.as_ref().err()?;
            Some(Failed { code: code_of(failure), reason: failure.reason.clone() })
        });
        let (status, reason) = match (&failure, response) {
            (Some(failure), _) => (failure.code, failure.reason.clone()),
            (None, Some(response)) => (response.status, response.reason.clone()),
            (None, None) => (0, String::new()),
        };
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for header in response.into_iter().flat_map(|response| &response.headers) {
            headers
                .entry(header.name.clone())
                .and_modify(|all| {
                    all.push_str(", ");
                    all.push_str(&header.value);
                })
                .or_insert_with(|| header.value.clone());
        }
        let kept = response.filter(|_| options.keep_body > 0);
        Self {
            url: last.map(|hop| hop.url.clone()).unwrap_or_default(),
            method: last_method(first_method, before),
            status,
            reason,
            version: response.map(|response| version(response.version)),
            headers,
            comment,
            failed: failure.is_some(),
            speed_download: speed(response.map_or(0, |response| response.body_bytes), moments.total),
            time_namelookup: seconds(moments.namelookup),
            time_connect: seconds(moments.connect),
            time_appconnect: seconds(moments.appconnect),
            time_starttransfer: seconds(moments.starttransfer),
            time_total: seconds(moments.total),
            remote_ip: last.and_then(Hop::remote),
            timings: last.map(|hop| Timings::from(hop.timings())).unwrap_or_default(),
            redirects,
            tls: last.and_then(Hop::tls).map(Tls::from),
            size: response.map(Size::of).unwrap_or_default(),
            body: kept.map(|response| String::from_utf8_lossy(&response.body).into_owned()),
        }
    }
}

fn last_method(first: &str, before: &[Hop]) -> String {
    let mut method = first.to_owned();
    for hop in before {
        let status = hop.outcome.as_ref().map_or(0, |response| response.status);
        if (status == 303 && method != "HEAD") || (matches!(status, 301 | 302) && method == "POST") {
            method = "GET".into();
        }
    }
    method
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

/// libcurl-errors(3).
pub fn curl_code(kind: http::FailureKind) -> u16 {
    use http::FailureKind as Kind;
    match kind {
        Kind::Invalid => 3,
        Kind::Name => 6,
        Kind::Denied | Kind::Unavailable | Kind::Connect => 7,
        Kind::Timeout => 28,
        Kind::Handshake => 35,
        Kind::EmptyReply => 52,
        Kind::Send => 55,
        Kind::Receive => 56,
        Kind::Certificate => 60,
        Kind::TooLarge => 63,
    }
}

impl Hop {
    fn timings(&self) -> &http::Timings {
        match &self.outcome {
            Ok(response) => &response.timings,
            Err(failure) => &failure.timings,
        }
    }

    fn tls(&self) -> Option<&http::TlsFacts> {
        match &self.outcome {
            Ok(response) => response.tls.as_ref(),
            Err(failure) => failure.tls.as_ref(),
        }
    }

    fn remote(&self) -> Option<String> {
        match &self.outcome {
            Ok(response) => Some(response.remote_address.clone()),
            Err(failure) => failure.remote_address.clone(),
        }
    }
}

impl Redirect {
    fn of(hop: &Hop) -> Option<Self> {
        let response = hop.outcome.as_ref().ok()?;
        Some(Self {
            url: hop.url.clone(),
            status: response.status,
            location: response.redirect.as_ref().map(|redirect| redirect.url.clone()),
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
        }
    }
}

impl From<&http::TlsFacts> for Tls {
    fn from(facts: &http::TlsFacts) -> Self {
        let chain = facts.chain.iter().map(|c| Certificate {
            subject: c.subject.clone(),
            issuer: c.issuer.clone(),
            san: c.alternative_names.clone(),
            not_before: c.not_before.clone(),
            not_after: c.not_after.clone(),
            serial: c.serial.clone(),
            sha256: c.sha256.clone(),
        });
        Self {
            version: facts.version.clone(),
            cipher: facts.cipher.clone(),
            alpn: facts.alpn.clone(),
            verified: facts.verified,
            verify_error: facts.verify_error.clone(),
            chain: chain.collect(),
        }
    }
}

impl Size {
    fn of(response: &http::Response) -> Self {
        Self { headers: Some(response.header_bytes), body: Some(response.body_bytes), decoded: response.decoded_bytes }
    }
}
