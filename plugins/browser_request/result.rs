//! The result of a `browser_request`.

use base64::Engine as _;
use scouter_sdk::options::add_comment;
use scouter_sdk::prelude::*;
use scouter_sdk::stats::rounded;

use crate::entry::Entry;
use browser::{Exchange, Page, Role};

/// Maximum size of a result in bytes, below the host's limit of 512 KiB.
const RESULT_BYTES: usize = 480 << 10;
/// Maximum number of values in a result, below the host's limit of 50,000.
const RESULT_VALUES: usize = 48_000;
/// Messages of the console in a result that would be too large.
const MESSAGES: usize = 20;

/// Result of a page load.
#[derive(Serialize, JsonSchema)]
pub struct BrowserResult {
    /// `chrome` or `firefox`.
    driver: &'static str,
    /// Name and version of the browser.
    browser: String,
    /// The document; null when the browser did not request it.
    parent: Option<Entry>,
    /// Resources of the document, in the order of their requests.
    child: Vec<Entry>,
    /// Redirects to the document.
    redirects: Vec<Entry>,
    /// Number of requests that are not listed.
    left_out: u32,
    /// Whether the page's load event happened before the timeout.
    loaded: bool,
    vitals: Vitals,
    /// Console messages and uncaught errors.
    console: Vec<Message>,
    sizes: Sizes,
    /// PNG as base64, when requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    screenshot: Option<String>,
    /// HAR 1.2, when requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    har: Option<serde_json::Value>,
    comment: Option<String>,
    failed: bool,
    #[serde(skip)]
    pub not_loaded: Option<String>,
}

/// Sums over all listed responses.
#[derive(Serialize, JsonSchema)]
struct Sizes {
    requests: usize,
    headers: u64,
    body: u64,
}

/// Web vitals in milliseconds after the start of the navigation; null for an event that did not happen or is not measured.
#[derive(Serialize, JsonSchema)]
struct Vitals {
    /// Time to the first byte of the document.
    ttfb: Option<f64>,
    /// First contentful paint.
    fcp: Option<f64>,
    /// Largest contentful paint.
    lcp: Option<f64>,
    /// Cumulative layout shift, a score without unit; null in Firefox.
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

impl BrowserResult {
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
            let why = cause.or(reason).or(page.navigation_error.as_ref()).map_or("no response", String::as_str);
            crate::not_loaded(url, why)
        });
        if let Some(reason) = reason {
            add_comment(&mut comment, &format!("{reason}."));
        }
        let sum = |of: fn(&Exchange) -> Option<u64>| page.exchanges.iter().filter_map(of).sum();
        let ms = |value: Option<f64>| value.map(rounded);
        let vitals = &page.vitals;
        let mut result = Self {
            driver,
            failed: parent.as_ref().is_none_or(|parent| parent.failed) || !page.loaded,
            parent,
            child: of_role(Role::Resource).collect(),
            redirects: of_role(Role::Redirect).collect(),
            left_out: page.omitted,
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
        result.shrink();
        result
    }

    /// Removes the least important parts, with a comment, until the result is small enough.
    fn shrink(&mut self) {
        let json = |this: &Self| serde_json::to_string(this).unwrap_or_default();
        // Each value but the first follows a comma, or begins a list or an object. Texts may have commas too.
        let values = |json: &str| json.bytes().filter(|byte| b",[{".contains(byte)).count();
        let too_large = |json: &str| json.len() > RESULT_BYTES || values(json) > RESULT_VALUES;
        let mut removed = vec![];
        if too_large(&json(self)) && self.har.take().is_some() {
            removed.push("the HAR");
        }
        if json(self).len() > RESULT_BYTES && self.screenshot.take().is_some() {
            removed.push("the screenshot");
        }
        if too_large(&json(self)) {
            self.child.iter_mut().for_each(Entry::without_headers);
            removed.push("headers of children");
        }
        if too_large(&json(self)) {
            self.child.iter_mut().for_each(Entry::cut_url);
            self.redirects.iter_mut().for_each(Entry::without_headers);
            removed.push("headers of redirects and the rest of long URLs");
        }
        if too_large(&json(self)) {
            self.console.truncate(MESSAGES);
            removed.push("messages of the console beyond the first 20");
        }
        if !removed.is_empty() {
            let text = format!("The result is too large: without {}.", removed.join(" and "));
            add_comment(&mut self.comment, &text);
        }
    }
}

/// Samples for the unit tests.
#[cfg(test)]
pub mod samples {
    use super::*;

    pub fn document() -> Exchange {
        let header = |name: &str, value: &str| http::Header { name: name.into(), value: value.into() };
        Exchange {
            role: Role::Document,
            url: "http://a.example/?a=1&b#c".into(),
            url_bytes: 25,
            method: "GET".into(),
            destination: "document".into(),
            status: Some(200),
            reason: "OK".into(),
            version: Some("http/1.1".into()),
            headers: vec![header("vary", "a"), header("vary", "b")],
            header_text_bytes: 10,
            failure: None,
            open: false,
            remote_address: Some("192.0.2.1".into()),
            remote_port: Some(80),
            attempts: vec![],
            started_ms: 1.5,
            timings: browser::Timings {
                dns: Some(1.0),
                connect: Some(2.0),
                tls: Some(3.0),
                send: Some(0.5),
                wait: Some(4.0),
                download: Some(5.0),
                total: Some(20.0),
            },
            header_bytes: Some(100),
            body_bytes: Some(1000),
            mime_type: Some("text/html".into()),
        }
    }

    pub fn page() -> Page {
        Page {
            browser: "Chrome 156.0".into(),
            started_at_ms: 1_795_000_000_123.9,
            exchanges: vec![document()],
            omitted: 0,
            loaded: true,
            stopped: None,
            navigation_error: None,
            vitals: browser::Vitals {
                ttfb: Some(7.123_456),
                first_contentful_paint: Some(30.0),
                largest_contentful_paint: None,
                dom_content_loaded: Some(25.0),
                load: Some(40.0),
                layout_shift: Some(0.01),
            },
            console: vec![],
            screenshot: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use browser::FailureKind;
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;
    use crate::BrowserRequest;
    use crate::entry::URL_BYTES;

    fn result(page: Page) -> (Value, BrowserResult) {
        let result = BrowserResult::new("chrome", "a.example", page, None, None);
        (testing::result::<BrowserRequest>(&result).expect("as its schema says"), result)
    }

    fn failed(kind: FailureKind, status: Option<u16>) -> Exchange {
        let failure = browser::Failure { kind, reason: "why".into() };
        Exchange { failure: Some(failure), status, ..samples::document() }
    }

    #[test]
    fn a_result_has_every_field_of_the_first_version() {
        let resource = Exchange { role: Role::Resource, url: "http://a.example/s.css".into(), ..samples::document() };
        let page = Page { exchanges: vec![samples::document(), resource], ..samples::page() };
        let (json, result) = result(page);
        assert_eq!((&json["driver"], &json["failed"], result.not_loaded), (&json!("chrome"), &json!(false), None));
        for (field, value) in [
            ("url", json!("http://a.example/?a=1&b#c")),
            ("failed", json!(false)),
            ("status", json!(200)),
            ("reason", json!("OK")),
            ("version", json!("http/1.1")),
            ("headers", json!({"vary": "a, b"})),
            ("time_namelookup", json!(1.0)),
            ("time_connect", json!(5.0)),
            ("time_appconnect", json!(3.0)),
            ("time_starttransfer", json!(4.0)),
            ("time_total", json!(20.0)),
            ("type", json!("document")),
            ("remote_ip", json!("192.0.2.1")),
            ("size", json!({"headers": 100, "body": 1000})),
        ] {
            assert_eq!(json["parent"][field], value, "{field}");
        }
        assert_eq!(json["child"][0]["url"], "http://a.example/s.css");
        assert_eq!(json["sizes"], json!({"requests": 2, "headers": 200, "body": 2000}));
        let vitals =
            json!({"ttfb": 7.123, "fcp": 30.0, "lcp": null, "cls": 0.01, "dom_content_loaded": 25.0, "load": 40.0});
        assert_eq!(json["vitals"], vitals);
        assert!(json.get("screenshot").is_none() && json.get("har").is_none() && json.get("not_loaded").is_none());
    }

    #[test]
    fn failures_have_the_codes_of_curl() {
        use FailureKind as Kind;
        for (kind, code) in [
            (Kind::Denied, 7),
            (Kind::Unavailable, 2),
            (Kind::Name, 6),
            (Kind::Connect, 7),
            (Kind::Timeout, 28),
            (Kind::Handshake, 35),
            (Kind::Certificate, 60),
            (Kind::EmptyReply, 52),
            (Kind::Receive, 56),
            (Kind::Partial, 18),
            (Kind::InvalidResponse, 8),
            (Kind::Blocked, 42),
            (Kind::TooLarge, 63),
            (Kind::Other, 2),
        ] {
            let page = Page { exchanges: vec![failed(kind, None)], loaded: false, ..samples::page() };
            let (json, result) = result(page);
            let parent = &json["parent"];
            assert_eq!((&parent["status"], &parent["reason"]), (&json!(code), &json!("why")), "{kind:?}");
            assert_eq!((&parent["failed"], &json["failed"]), (&json!(true), &json!(true)), "{kind:?}");
            let message = "Provided webpage of 'a.example' failed to load due to the following reason: why";
            assert_eq!(result.not_loaded.as_deref(), Some(message), "{kind:?}");
        }
    }

    #[test]
    fn a_page_that_was_stopped_has_failed_with_a_comment() {
        let stopped = browser::Failure { kind: FailureKind::Timeout, reason: "The page did not load in time".into() };
        let page = Page { loaded: false, stopped: Some(stopped), ..samples::page() };
        let (json, result) = result(page);
        assert_eq!((&json["failed"], &json["comment"]), (&json!(true), &json!("The page did not load in time.")));
        assert_eq!(result.not_loaded, None, "there is a document");
    }

    #[test]
    fn without_a_document_the_navigation_error_is_the_message() {
        let error = Some("net::ERR_ABORTED".to_owned());
        let page = Page { exchanges: vec![], navigation_error: error, loaded: false, ..samples::page() };
        let (json, result) = result(page);
        assert_eq!((&json["parent"], &json["failed"]), (&json!(null), &json!(true)));
        assert!(result.not_loaded.is_some_and(|message| message.ends_with("reason: net::ERR_ABORTED")));
    }

    #[test]
    fn passwords_in_urls_are_replaced() {
        let document = Exchange { url: "http://u:secret@a.example/".into(), ..samples::document() };
        let (json, _) = result(Page { exchanges: vec![document], ..samples::page() });
        assert_eq!(json["parent"]["url"], "http://u:***@a.example/");
    }

    #[test]
    fn a_result_that_is_too_large_loses_har_screenshot_and_headers_in_this_order() {
        let large = |kib: usize| "x".repeat(kib << 10);
        let header = http::Header { name: "x-large".into(), value: large(300) };
        let resource = Exchange { role: Role::Resource, headers: vec![header], ..samples::document() };
        for (har, screenshot, comment) in [
            (10, 10, None),
            (300, 10, Some("The result is too large: without the HAR.")),
            (300, 200, Some("The result is too large: without the HAR and the screenshot.")),
        ] {
            let screenshot = Some(vec![0; screenshot << 10]);
            let page = Page { exchanges: vec![samples::document(), resource.clone()], screenshot, ..samples::page() };
            let result = BrowserResult::new("chrome", "a.example", page, Some(json!({"x": large(har)})), None);
            assert_eq!(result.comment.as_deref(), comment);
            assert_eq!(result.har.is_none(), comment.is_some());
            assert!(serde_json::to_string(&result).is_ok_and(|text| text.len() <= RESULT_BYTES));
        }
        let values = Some(json!(vec![0; 50_000]));
        let result = BrowserResult::new("chrome", "a.example", samples::page(), values, None);
        assert_eq!(result.comment.as_deref(), Some("The result is too large: without the HAR."));
        let many = vec![resource; 3];
        let result = BrowserResult::new("chrome", "a.example", Page { exchanges: many, ..samples::page() }, None, None);
        assert_eq!(result.comment.as_deref(), Some("The result is too large: without headers of children."));
        assert!(result.child.iter().all(|entry| entry.headers.is_empty()));
        let url = format!("http://a.example/{}", "x".repeat(2031));
        let long = Exchange { role: Role::Resource, url, url_bytes: 1_000_000, ..samples::document() };
        let said = browser::ConsoleMessage { level: "info".into(), text: large(8), url: None, line: None };
        let page = Page { exchanges: vec![long; 300], console: vec![said; 100], ..samples::page() };
        let result = BrowserResult::new("chrome", "a.example", page, None, None);
        assert!(serde_json::to_string(&result).is_ok_and(|text| text.len() <= RESULT_BYTES));
        assert_eq!((result.child.len(), result.console.len()), (300, MESSAGES));
        let cut = result.child[0].cut.as_ref().expect("its sizes");
        assert_eq!((result.child[0].url.len(), cut.url, cut.headers), (URL_BYTES, Some(1_000_000), Some(8)));
    }

    #[test]
    fn what_is_open_has_not_failed_and_what_is_cut_has_its_size() {
        let open = Exchange { role: Role::Resource, open: true, status: None, ..samples::document() };
        let headers = Exchange { role: Role::Resource, header_text_bytes: 250_000, ..samples::document() };
        let (json, _) = result(Page { exchanges: vec![samples::document(), open, headers], ..samples::page() });
        let open = &json["child"][0];
        assert_eq!((&open["open"], &open["status"], &open["failed"]), (&json!(true), &json!(null), &json!(false)));
        assert_eq!(json["child"][1]["cut"], json!({"url": null, "headers": 250_000}));
        assert!(json["parent"].get("open").is_none() && json["parent"].get("cut").is_none());
    }
}
