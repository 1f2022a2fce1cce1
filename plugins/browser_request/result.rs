//! The result of a `browser_request`, in the words of the first version and with what is new.

use std::collections::BTreeMap;

use base64::Engine as _;
use scouter_sdk::bindings::scouter::probe::browser::{Exchange, FailureKind, Page, Role};
use scouter_sdk::options::add_comment;
use scouter_sdk::prelude::*;
use scouter_sdk::stats::rounded;

/// Bytes of a result, with room to spare below the host's limit.
const RESULT_BYTES: usize = 480 << 10;

/// What a browser loaded.
#[derive(Serialize, JsonSchema)]
pub struct Requested {
    driver: &'static str,
    /// Name and version of the browser.
    browser: String,
    /// The document; unknown when nothing of it was requested.
    parent: Option<Entry>,
    /// What the document loaded, in the order in which it was asked for.
    child: Vec<Entry>,
    /// Documents on the way to this one, that led elsewhere.
    redirects: Vec<Entry>,
    /// Further requests, which are not shown.
    left_out: u32,
    /// Did the page's load event happen in time?
    loaded: bool,
    vitals: Vitals,
    console: Vec<Message>,
    sizes: Sizes,
    /// PNG as base64, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    screenshot: Option<String>,
    /// HAR 1.2, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    har: Option<serde_json::Value>,
    comment: Option<String>,
    failed: bool,
    #[serde(skip)]
    pub not_loaded: Option<String>,
}

/// One request and its response. Times are lengths of phases in milliseconds, 0 for one that did not happen.
#[derive(Serialize, JsonSchema)]
struct Entry {
    url: String,
    failed: bool,
    /// The response's status, or curl's code of the failure.
    status: u16,
    reason: String,
    /// HTTP version as ALPN has it: `http/1.1`, `h2`.
    version: Option<String>,
    /// Names in lower case; values of one name joined by ", ".
    headers: BTreeMap<String, String>,
    time_namelookup: f64,
    /// TCP and TLS handshake together, as HAR has it.
    time_connect: f64,
    /// TLS handshake.
    time_appconnect: f64,
    /// From the request's last byte to the response's first one.
    time_starttransfer: f64,
    /// All of it.
    time_total: f64,
    method: String,
    /// What it was fetched as: `document`, `style`, `script`, `image`, …
    #[serde(rename = "type")]
    kind: String,
    remote_ip: Option<String>,
    /// Milliseconds after the start of the page.
    started_ms: f64,
    size: Size,
}

/// Bytes on the wire; unknown when the browser does not tell.
#[derive(Serialize, JsonSchema)]
struct Size {
    headers: Option<u64>,
    body: Option<u64>,
}

/// Over all responses that are shown.
#[derive(Serialize, JsonSchema)]
struct Sizes {
    requests: usize,
    headers: u64,
    body: u64,
}

/// Milliseconds after the start of the navigation; null for what did not happen or is not measured.
#[derive(Serialize, JsonSchema)]
struct Vitals {
    /// First byte of the document.
    ttfb: Option<f64>,
    /// First contentful paint.
    fcp: Option<f64>,
    /// Largest contentful paint.
    lcp: Option<f64>,
    /// Cumulative layout shift: a score, not a time; null in Firefox.
    cls: Option<f64>,
    dom_content_loaded: Option<f64>,
    load: Option<f64>,
}

#[derive(Serialize, JsonSchema)]
struct Message {
    level: String,
    text: String,
    url: Option<String>,
    line: Option<u32>,
}

impl Requested {
    pub fn new(
        driver: &'static str,
        url: &str,
        page: Page,
        har: Option<serde_json::Value>,
        mut comment: Option<String>,
    ) -> Self {
        let of_role = |role: Role| page.exchanges.iter().filter(move |e| e.role == role).map(Entry::new);
        let parent = of_role(Role::Document).next();
        let answered = page.exchanges.iter().any(|e| e.role == Role::Document && e.status.is_some());
        let reason = page.stopped.as_ref().map(|failure| &failure.reason);
        let document = page.exchanges.iter().find(|e| e.role == Role::Document);
        let cause = document.and_then(|e| e.failure.as_ref()).map(|failure| &failure.reason);
        let not_loaded = (!answered).then(|| {
            let words = cause.or(reason).or(page.navigation_error.as_ref()).map_or("no response", String::as_str);
            crate::not_loaded(url, words)
        });
        if let Some(reason) = reason {
            add_comment(&mut comment, &format!("{reason}."));
        }
        let sum = |of: fn(&Exchange) -> Option<u64>| page.exchanges.iter().filter_map(of).sum();
        let ms = |value: Option<f64>| value.map(rounded);
        let vitals = &page.vitals;
        let mut requested = Self {
            driver,
            failed: parent.as_ref().is_none_or(|parent| parent.failed) || !page.loaded,
            parent,
            child: of_role(Role::Resource).collect(),
            redirects: of_role(Role::Redirect).collect(),
            left_out: page.left_out,
            loaded: page.loaded,
            vitals: Vitals {
                ttfb: ms(vitals.ttfb),
                fcp: ms(vitals.first_contentful_paint),
                lcp: ms(vitals.largest_contentful_paint),
                cls: ms(vitals.layout_shift),
                dom_content_loaded: ms(vitals.dom_content_loaded),
                load: ms(vitals.load),
            },
            console: page
                .console
                .iter()
                .map(|m| Message { level: m.level.clone(), text: m.text.clone(), url: m.url.clone(), line: m.line })
                .collect(),
            sizes: Sizes {
                requests: page.exchanges.len(),
                headers: sum(|e| e.header_bytes),
                body: sum(|e| e.body_bytes),
            },
            screenshot: page.screenshot.as_ref().map(|png| base64::engine::general_purpose::STANDARD.encode(png)),
            har,
            comment,
            not_loaded,
            browser: page.browser,
        };
        requested.fit();
        requested
    }

    /// Leaves out what matters least, until it is no longer too large to be handed over; and says so.
    fn fit(&mut self) {
        let size = |this: &Self| serde_json::to_string(this).map_or(usize::MAX, |text| text.len());
        let mut left_out = vec![];
        if size(self) > RESULT_BYTES && self.har.take().is_some() {
            left_out.push("the HAR");
        }
        if size(self) > RESULT_BYTES && self.screenshot.take().is_some() {
            left_out.push("the screenshot");
        }
        if size(self) > RESULT_BYTES {
            self.child.iter_mut().for_each(|entry| entry.headers.clear());
            left_out.push("headers of children");
        }
        if !left_out.is_empty() {
            let text = format!("The result is too large: without {}.", left_out.join(" and "));
            add_comment(&mut self.comment, &text);
        }
    }
}

impl Entry {
    fn new(exchange: &Exchange) -> Self {
        let failure = exchange.failure.as_ref();
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for header in &exchange.headers {
            headers
                .entry(header.name.clone())
                .and_modify(|value| *value = format!("{value}, {}", header.value))
                .or_insert_with(|| header.value.clone());
        }
        let t = &exchange.timings;
        let or_zero = |value: Option<f64>| rounded(value.unwrap_or(0.0));
        Self {
            url: exchange.url.clone(),
            failed: failure.is_some(),
            status: failure.map_or(exchange.status.unwrap_or(0), |failure| curl_code(failure.kind)),
            reason: failure.map_or_else(|| exchange.reason.clone(), |failure| failure.reason.clone()),
            version: exchange.version.clone(),
            headers,
            time_namelookup: or_zero(t.dns),
            time_connect: or_zero(t.connect.map(|connect| connect + t.tls.unwrap_or(0.0))),
            time_appconnect: or_zero(t.tls),
            time_starttransfer: or_zero(t.wait),
            time_total: or_zero(t.total),
            method: exchange.method.clone(),
            kind: exchange.destination.clone(),
            remote_ip: exchange.remote_address.clone(),
            started_ms: rounded(exchange.started_ms),
            size: Size { headers: exchange.header_bytes, body: exchange.body_bytes },
        }
    }
}

/// The exit code that curl has for it (libcurl-errors(3)).
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
