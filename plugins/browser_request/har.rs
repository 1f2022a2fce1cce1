//! HAR 1.2 (the historical W3C draft "HTTP Archive (HAR) format").

use browser::{Exchange, Page, Role};
use http::Header;
use scouter_sdk::prelude::*;
use scouter_sdk::stats::rounded;
use serde_json::{Value, json};

/// The page load as HAR.
pub fn of(page: &Page) -> Value {
    let (name, version) = page.browser.split_once(' ').unwrap_or((&page.browser, ""));
    let title = page
        .exchanges
        .iter()
        .find(|e| e.role == Role::Document)
        .map_or(String::new(), |e| url::without_password(&e.url));
    // -1 means that the value is unknown.
    let or_unknown = |value: Option<f64>| value.map_or(json!(-1), |value| json!(rounded(value)));
    json!({"log": {
        "version": "1.2",
        "creator": {"name": "scouter browser_request", "version": env!("CARGO_PKG_VERSION")},
        "browser": {"name": name, "version": version},
        "pages": [{
            "startedDateTime": time(page.started_at_ms),
            "id": "page_1",
            "title": title,
            "pageTimings": {
                "onContentLoad": or_unknown(page.vitals.dom_content_loaded),
                "onLoad": or_unknown(page.vitals.load),
            },
        }],
        "entries": page.exchanges.iter().map(|e| entry(page.started_at_ms, e)).collect::<Vec<_>>(),
    }})
}

fn entry(began: f64, exchange: &Exchange) -> Value {
    let t = &exchange.timings;
    let or_unknown = |value: Option<f64>| value.map_or(-1.0, rounded);
    let connect = t.connect.map(|connect| connect + t.tls.unwrap_or(0.0));
    let (send, wait, receive) = (t.send.unwrap_or(0.0), t.wait.unwrap_or(0.0), t.download.unwrap_or(0.0));
    let known = t.dns.unwrap_or(0.0) + connect.unwrap_or(0.0) + send + wait + receive;
    // `time` is the sum of the phases. The rest of the total is the time before them.
    let blocked = t.total.map_or(0.0, |total| (total - known).max(0.0));
    let (send, wait, receive) = (rounded(send), rounded(wait), rounded(receive));
    let (dns, connect, blocked) = (or_unknown(t.dns), or_unknown(connect), rounded(blocked));
    let time = blocked + dns.max(0.0) + connect.max(0.0) + send + wait + receive;
    let or_minus = |size: Option<u64>| size.map_or(json!(-1), |size| json!(size));
    let query = exchange.url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        json!({"name": name, "value": value})
    });
    let version = exchange.version.as_deref().unwrap_or("unknown");
    let location = exchange.headers.iter().find(|h| h.name == "location").map_or("", |h| &h.value);
    let mut entry = json!({
        "pageref": "page_1",
        "startedDateTime": self::time(began + exchange.started_ms),
        "time": rounded(time),
        "request": {
            "method": exchange.method,
            "url": url::without_password(&exchange.url),
            "httpVersion": version,
            "cookies": [],
            "headers": [],
            "queryString": pairs.collect::<Vec<_>>(),
            "headersSize": -1,
            "bodySize": -1,
        },
        "response": {
            "status": exchange.status.unwrap_or(0),
            "statusText": exchange.reason,
            "httpVersion": version,
            "cookies": [],
            "headers": exchange.headers.iter().map(header).collect::<Vec<_>>(),
            "content": {"size": exchange.body_bytes.unwrap_or(0), "mimeType": exchange.mime_type.clone().unwrap_or_default()},
            "redirectURL": location,
            "headersSize": or_minus(exchange.header_bytes),
            "bodySize": or_minus(exchange.body_bytes),
        },
        "cache": {},
        "timings": {"blocked": blocked, "dns": dns, "connect": connect, "ssl": or_unknown(t.tls),
                    "send": send, "wait": wait, "receive": receive},
    });
    if let Some(address) = &exchange.remote_address {
        entry["serverIPAddress"] = json!(address);
    }
    if let Some(failure) = &exchange.failure {
        entry["comment"] = json!(failure.reason);
    } else if exchange.open {
        entry["comment"] = json!("Still open when the page was done");
    }
    entry
}

fn header(header: &Header) -> Value {
    json!({"name": header.name, "value": header.value})
}

/// ISO 8601 with milliseconds, UTC.
fn time(unix_ms: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds since 1970 fit into 64 bits")]
    let at = jiff::Timestamp::from_millisecond(unix_ms as i64).unwrap_or_default();
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;

    use super::*;
    use crate::result::samples;

    fn har(page: &Page) -> Value {
        let schema = serde_json::from_str(include_str!("../../tests/support/har.schema.json")).expect("JSON");
        let har = of(page);
        testing::check(&schema, &har).expect("as HAR 1.2 says");
        har
    }

    #[test]
    fn a_page_is_valid_har() {
        let har = har(&samples::page());
        let log = &har["log"];
        assert_eq!((&log["version"], &log["browser"]), (&json!("1.2"), &json!({"name": "Chrome", "version": "156.0"})));
        let page = &log["pages"][0];
        assert_eq!(page["startedDateTime"], "2026-11-18T11:06:40.123Z");
        assert_eq!(page["pageTimings"], json!({"onContentLoad": 25.0, "onLoad": 40.0}));
        let entry = &log["entries"][0];
        assert_eq!(entry["startedDateTime"], "2026-11-18T11:06:40.125Z");
        assert_eq!(entry["serverIPAddress"], "192.0.2.1");
        let query = json!([{"name": "a", "value": "1"}, {"name": "b", "value": ""}]);
        assert_eq!(entry["request"]["queryString"], query, "without the fragment");
        assert_eq!(entry["response"]["content"], json!({"size": 1000, "mimeType": "text/html"}));
    }

    #[test]
    fn the_time_of_an_entry_is_the_sum_of_its_phases() {
        let har = har(&samples::page());
        let entry = &har["log"]["entries"][0];
        let timings =
            json!({"blocked": 4.5, "dns": 1.0, "connect": 5.0, "ssl": 3.0, "send": 0.5, "wait": 4.0, "receive": 5.0});
        assert_eq!((&entry["timings"], &entry["time"]), (&timings, &json!(20.0)));
    }

    #[test]
    fn phases_of_a_used_connection_are_unknown() {
        let timings = browser::Timings { dns: None, connect: None, tls: None, ..samples::document().timings };
        let reused = Exchange { timings, ..samples::document() };
        let har = har(&Page { exchanges: vec![reused], ..samples::page() });
        let timings = &har["log"]["entries"][0]["timings"];
        assert_eq!((&timings["dns"], &timings["connect"], &timings["ssl"]), (&json!(-1.0), &json!(-1.0), &json!(-1.0)));
        assert_eq!(timings["blocked"], 10.5);
    }

    #[test]
    fn a_failed_request_has_its_reason_and_no_status() {
        let failure = browser::Failure { kind: browser::FailureKind::Connect, reason: "refused".into() };
        let failed = Exchange {
            failure: Some(failure),
            status: None,
            version: None,
            body_bytes: None,
            url: "http://u:secret@a.example/".into(),
            ..samples::document()
        };
        let har = har(&Page { exchanges: vec![failed], ..samples::page() });
        let entry = &har["log"]["entries"][0];
        assert_eq!((&entry["comment"], &entry["response"]["status"]), (&json!("refused"), &json!(0)));
        assert_eq!((&entry["response"]["bodySize"], &entry["request"]["httpVersion"]), (&json!(-1), &json!("unknown")));
        assert_eq!(entry["request"]["url"], "http://u:***@a.example/");
    }
}
