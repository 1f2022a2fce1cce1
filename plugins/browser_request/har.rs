//! HAR 1.2 (the W3C Web Performance group's historical draft "HTTP Archive (HAR) format").

use scouter_sdk::bindings::scouter::probe::browser::{Exchange, Page, Role};
use scouter_sdk::bindings::scouter::probe::http::Header;
use scouter_sdk::stats::rounded;
use serde_json::{Value, json};

pub fn of(page: &Page) -> Value {
    let (name, version) = page.browser.split_once(' ').unwrap_or((&page.browser, ""));
    let title = page.exchanges.iter().find(|e| e.role == Role::Document).map_or("", |e| &e.url);
    // -1: not known.
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
    // `time` is the sum of the phases; what is left of the whole is the time before them.
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
            "url": exchange.url,
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
    }
    entry
}

fn header(header: &Header) -> Value {
    json!({"name": header.name, "value": header.value})
}

/// ISO 8601 with milliseconds.
fn time(unix_ms: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds since 1970 fit for ever")]
    let at = jiff::Timestamp::from_millisecond(unix_ms as i64).unwrap_or_default();
    format!("{at:.3}")
}
