//! From a browser's events to the exchanges of a page. Pure: no sockets, no clocks.
//!
//! Firefox tells of requests in WebDriver BiDi. What Chrome tells there is not right (the end of a body is the end of its
//! headers, an unknown time is 0, redirects get each other's status, a request is told of when its connection stands), so
//! for Chrome the events of its own protocol are read, which come over the same connection. There too a redirect may
//! show the headers of the one before; those of the events with the headers as they were on the wire are right.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::Value;

use super::bidi::Event;
use super::{Exchange, Header, Kind, Message, Role};

/// More requests than this are counted only.
const SHOWN: usize = 300;
/// A page with more requests is stopped.
pub const REQUESTS: usize = 2000;
const MESSAGES: usize = 100;
const TEXT: usize = 2000;
/// The exchanges of one page carry no more bytes of headers than this.
const HEADER_BYTES: usize = 256 << 10;

/// A request as it is known so far.
#[derive(Debug, Default)]
pub struct Entry {
    pub exchange: Exchange,
    pub host: String,
    pub port: u16,
    /// A document in the page's own frame.
    pub top: bool,
    /// Milliseconds since the epoch.
    pub started: f64,
    pub done: bool,
    pub error: Option<String>,
    /// When the connection was begun, likewise; None: one that there was already.
    pub connect_at: Option<f64>,
    /// Chrome's name of the connection.
    pub connection: Option<u64>,
    cached: bool,
    chrome: Chrome,
}

/// Status and headers.
type OnWire = (Option<u64>, Vec<Header>);

/// Of Chrome's own events, in its monotonic seconds.
#[derive(Debug, Default)]
struct Chrome {
    sent: f64,
    wall: f64,
}

#[derive(Debug, Default)]
pub struct Collector {
    kind: Option<Kind>,
    /// The page's own frame, and all that it opened.
    top: String,
    contexts: HashSet<String>,
    pub entries: Vec<Entry>,
    places: HashMap<(String, u64), usize>,
    /// Chrome's responses as they were on the wire, of each request in order: status and headers.
    wire: HashMap<String, VecDeque<OnWire>>,
    /// How many redirects a request has been through, as Chrome's own events have it.
    hops: HashMap<String, u64>,
    pub requests: usize,
    /// The navigation whose load event has happened.
    loaded: Option<String>,
    latest: Option<String>,
    pub console: Vec<Message>,
    pub crashed: bool,
}

impl Collector {
    #[must_use]
    pub fn new(kind: Kind, top: &str) -> Self {
        Self { kind: Some(kind), top: top.into(), contexts: HashSet::from([top.into()]), ..Self::default() }
    }

    /// Has the document's load event happened, for the document that is there now?
    #[must_use]
    pub fn loaded(&self) -> bool {
        self.loaded.is_some() && self.latest.as_ref().is_none_or(|latest| self.loaded.as_ref() == Some(latest))
    }

    /// Is any request still under way?
    #[must_use]
    pub fn busy(&self) -> bool {
        self.entries.iter().any(|entry| !entry.done)
    }

    pub fn event(&mut self, event: &Event) {
        let params = &event.params;
        if let Some(own) = event.method.strip_prefix("goog:cdp.") {
            self.chrome_event(own, &params["params"]);
            return;
        }
        let context = text(params, "/context");
        match event.method.as_str() {
            "browsingContext.contextCreated" => {
                let parent = params["parent"].as_str().or(params["originalOpener"].as_str());
                if parent.is_some_and(|parent| self.contexts.contains(parent)) {
                    self.contexts.insert(context);
                }
            }
            "browsingContext.load" if context == self.top => {
                self.loaded = params["navigation"].as_str().map(ToOwned::to_owned);
            }
            "log.entryAdded" => self.message(params),
            "network.beforeRequestSent" if self.contexts.contains(&context) => {
                let navigation = params["navigation"].as_str();
                if let Some(navigation) = navigation.filter(|_| context == self.top) {
                    self.latest = Some(navigation.to_owned());
                }
                if self.kind == Some(Kind::Firefox) {
                    let destination = [text(params, "/request/destination"), text(params, "/request/initiatorType")];
                    let destination = destination.into_iter().find(|word| !word.is_empty()).unwrap_or_default();
                    let top = navigation.is_some() && context == self.top;
                    let (url, method) = (text(params, "/request/url"), text(params, "/request/method"));
                    let started = params["timestamp"].as_f64().unwrap_or(0.0);
                    self.begin(key(params), top, started, &url, method, destination);
                }
            }
            "network.responseStarted" | "network.responseCompleted" | "network.fetchError" => {
                let place = self.places.get(&key(params)).copied();
                if let Some(entry) = place.and_then(|place| self.entries.get_mut(place))
                    && self.kind == Some(Kind::Firefox)
                {
                    tell(entry, event);
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, key: (String, u64), top: bool, started: f64, url: &str, method: String, destination: String) {
        let Ok(parsed) = url::Url::parse(url) else { return };
        if !matches!(parsed.scheme(), "http" | "https") {
            return;
        }
        self.requests += 1;
        self.places.insert(key, self.entries.len());
        self.entries.push(Entry {
            host: parsed.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: parsed.port_or_known_default().unwrap_or(0),
            exchange: Exchange { url: url.to_owned(), method, destination, ..Exchange::default() },
            top,
            started,
            ..Entry::default()
        });
    }

    fn chrome_event(&mut self, own: &str, params: &Value) {
        if matches!(own, "Inspector.targetCrashed" | "Target.targetCrashed") {
            self.crashed = true;
            return;
        }
        let id = text(params, "/requestId");
        let at = params["timestamp"].as_f64().unwrap_or(0.0);
        match own {
            "Network.requestWillBeSent" => return self.chrome_begin(&id, at, params),
            "Network.responseReceivedExtraInfo" => {
                let response = (params["statusCode"].as_u64(), lines(&params["headers"]));
                return self.wire.entry(id).or_default().push_back(response);
            }
            _ => {}
        }
        let key = (id.clone(), self.hops.get(&id).copied().unwrap_or(0));
        let Some(place) = self.places.get(&key).copied() else { return };
        match own {
            "Network.responseReceived" => self.chrome_response(place, &params["response"]),
            "Network.loadingFinished" => {
                let bytes = params["encodedDataLength"].as_u64();
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.done = true;
                    entry.exchange.body_bytes =
                        bytes.zip(entry.exchange.header_bytes).and_then(|(bytes, head)| bytes.checked_sub(head));
                }
                self.chrome_end(place, at);
            }
            "Network.loadingFailed" => {
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.done = true;
                    let blocked = params["blockedReason"].as_str().map(|why| format!("BLOCKED: {why}"));
                    entry.error = Some(blocked.unwrap_or_else(|| text(params, "/errorText")));
                }
                self.chrome_end(place, at);
            }
            _ => {}
        }
    }

    fn chrome_begin(&mut self, id: &str, at: f64, params: &Value) {
        if params["redirectResponse"].is_object() {
            let hop = self.hops.entry(id.to_owned()).or_default();
            let before = (id.to_owned(), *hop);
            *hop += 1;
            // The end of the hop before, of which there is no event of its own.
            if let Some(place) = self.places.get(&before).copied() {
                self.chrome_response(place, &params["redirectResponse"]);
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.done = true;
                }
                self.chrome_end(place, at);
            }
        }
        let frame = text(params, "/frameId");
        let document = text(params, "/type") == "Document";
        let top = document && frame == self.top;
        let destination = match params["type"].as_str().unwrap_or_default() {
            "Document" if top => "document".into(),
            "Document" => "iframe".into(),
            "Stylesheet" => "style".into(),
            "XHR" => "xmlhttprequest".into(),
            "Other" => String::new(),
            other => other.to_lowercase(),
        };
        let (url, method) = (text(params, "/request/url"), text(params, "/request/method"));
        let wall = params["wallTime"].as_f64().unwrap_or(0.0);
        let key = (id.to_owned(), self.hops.get(id).copied().unwrap_or(0));
        let before = self.entries.len();
        self.begin(key, top, wall * 1e3, &url, method, destination);
        if let Some(entry) = self.entries.get_mut(before) {
            entry.chrome = Chrome { sent: at, wall };
        }
    }

    fn chrome_end(&mut self, place: usize, at: f64) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let total = (at - entry.chrome.sent) * 1e3;
        let timings = &mut entry.exchange.timings;
        timings.total = (entry.chrome.sent > 0.0).then_some(total.max(0.0));
        // Until the response it stood for the time up to the first byte.
        timings.download = timings.download.and_then(|until| Some((timings.total? - until).max(0.0)));
    }

    fn chrome_response(&mut self, place: usize, response: &Value) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let timing = &response["timing"];
        entry.connection = response["connectionId"].as_u64().filter(|id| *id > 0);
        entry.cached = response["fromDiskCache"].as_bool().unwrap_or(false);
        let exchange = &mut entry.exchange;
        exchange.status = response["status"].as_u64().and_then(|status| u16::try_from(status).ok());
        exchange.reason = text(response, "/statusText");
        exchange.version = known(&response["protocol"]);
        exchange.mime_type = known(&response["mimeType"]);
        // So far: the response's head.
        exchange.header_bytes = response["encodedDataLength"].as_u64().filter(|bytes| *bytes > 0);
        exchange.headers = lines(&response["headers"]);
        if !timing.is_object() || entry.chrome.sent == 0.0 {
            return;
        }
        // Seconds, and milliseconds after them; -1: did not happen.
        let base = timing["requestTime"].as_f64().unwrap_or(0.0);
        let mark = |name: &str| timing[name].as_f64().filter(|at| *at >= 0.0);
        let span = |from: &str, to: &str| Some((mark(to)? - mark(from)?).max(0.0));
        let after_sent = (base - entry.chrome.sent) * 1e3;
        entry.connect_at = mark("connectStart").map(|at| entry.chrome.wall * 1e3 + after_sent + at);
        let first = mark("receiveHeadersStart").or(mark("receiveHeadersEnd"));
        let timings = &mut entry.exchange.timings;
        timings.tls = span("sslStart", "sslEnd");
        timings.connect = span("connectStart", "connectEnd").map(|whole| whole - timings.tls.unwrap_or(0.0));
        timings.send = span("sendStart", "sendEnd");
        timings.wait = first.and_then(|first| Some((first - mark("sendEnd")?).max(0.0)));
        timings.download = first.map(|first| after_sent + first);
    }

    fn message(&mut self, params: &Value) {
        let context = text(params, "/source/context");
        if !self.contexts.contains(&context) || self.console.len() >= MESSAGES {
            return;
        }
        let frame = &params["stackTrace"]["callFrames"][0];
        self.console.push(Message {
            level: text(params, "/level"),
            text: text(params, "/text").chars().take(TEXT).collect(),
            url: frame["url"].as_str().filter(|url| !url.is_empty()).map(|url| url.chars().take(TEXT).collect()),
            // Counted from 0 there.
            line: frame["lineNumber"].as_u64().and_then(|line| u32::try_from(line + 1).ok()),
        });
    }

    /// Everything that was still under way is over now, for this reason.
    pub fn stop(&mut self, now: f64, why: &str) {
        for entry in self.entries.iter_mut().filter(|entry| !entry.done) {
            entry.done = true;
            entry.error = Some(why.into());
            entry.exchange.timings.total.get_or_insert((now - entry.started).max(0.0));
        }
    }

    /// Lays the headers from the wire to the responses that they belong to: they come in the same order.
    fn take_wire(&mut self) {
        let mut hops: Vec<_> = self.places.iter().collect();
        hops.sort();
        for ((id, _), place) in hops {
            let (Some(wire), Some(entry)) = (self.wire.get_mut(id), self.entries.get_mut(*place)) else { continue };
            let status = entry.exchange.status.map(u64::from);
            if wire.front().is_some_and(|(on_wire, _)| *on_wire == status)
                && let Some((_, headers)) = wire.pop_front()
            {
                entry.exchange.headers = headers;
            }
        }
    }

    /// What is shown, and how much is not.
    #[must_use]
    pub fn finish(mut self, began: f64) -> (Vec<Entry>, usize) {
        self.take_wire();
        // What Firefox has in its memory it shows as if it were fetched again.
        let repeated =
            |entry: &Entry| entry.cached || (entry.exchange.timings.total.is_none() && entry.error.is_none());
        self.entries.retain(|entry| !(repeated(entry) && entry.exchange.status.is_some() && !entry.top));
        let last = self.entries.iter().rposition(|entry| entry.top);
        for (place, entry) in self.entries.iter_mut().enumerate() {
            entry.exchange.role = match (entry.top, Some(place) == last) {
                (_, true) => Role::Document,
                (true, false) => Role::Redirect,
                _ => Role::Resource,
            };
            entry.exchange.started_ms = (entry.started - began).max(0.0);
        }
        // Whole exchanges are left out, and counted; none is shown without its headers.
        let (all, mut place, mut room) = (self.entries.len(), 0, HEADER_BYTES);
        self.entries.retain(|entry| {
            let size: usize = entry.exchange.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            place += 1;
            room = room.saturating_sub(size);
            entry.exchange.role == Role::Document || (place <= SHOWN && room > 0)
        });
        let hidden = all - self.entries.len();
        (self.entries, hidden)
    }
}

/// Chrome's headers: an object; several of one name come in one value, on lines of their own.
fn lines(headers: &Value) -> Vec<Header> {
    let each = headers.as_object().into_iter().flatten();
    let lines = each.flat_map(|(name, value)| {
        value.as_str().unwrap_or_default().lines().map(|line| (name.to_lowercase(), line.to_owned()))
    });
    lines.collect()
}

/// Firefox, of a response.
fn tell(entry: &mut Entry, event: &Event) {
    let response = &event.params["response"];
    if response.is_object() {
        let exchange = &mut entry.exchange;
        exchange.status = response["status"].as_u64().and_then(|status| u16::try_from(status).ok());
        exchange.reason = text(response, "/statusText");
        exchange.version = known(&response["protocol"]);
        exchange.mime_type = known(&response["mimeType"]);
        exchange.headers = headers(&response["headers"]);
        exchange.header_bytes = response["headersSize"].as_u64();
        exchange.body_bytes = response["bodySize"].as_u64();
        entry.cached = response["fromCache"].as_bool().unwrap_or(false);
    }
    match event.method.as_str() {
        "network.responseCompleted" => entry.done = true,
        "network.fetchError" => {
            entry.done = true;
            entry.error = Some(text(&event.params, "/errorText"));
        }
        _ => {}
    }
    firefox_times(entry, &event.params["request"]["timings"], response);
}

fn known(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}

/// Firefox: milliseconds since the epoch, 0 for what did not happen.
fn firefox_times(entry: &mut Entry, timings: &Value, response: &Value) {
    let mark = |name: &str| timings[name].as_f64().filter(|at| *at > 0.0);
    let span = |from: &str, to: &str| Some((mark(to)? - mark(from)?).max(0.0));
    let began = mark("fetchStart").or(mark("requestTime"));
    let times = &mut entry.exchange.timings;
    entry.connect_at = mark("connectStart");
    times.tls = span("tlsStart", "tlsEnd").or_else(|| span("tlsStart", "connectEnd"));
    times.connect = span("connectStart", "connectEnd").map(|whole| (whole - times.tls.unwrap_or(0.0)).max(0.0));
    times.wait = span("requestStart", "responseStart");
    times.download = span("responseStart", "responseEnd");
    let ended = mark("responseEnd").or(mark("responseStart")).or(mark("requestStart")).or(mark("connectEnd"));
    times.total = began.zip(ended).map(|(began, ended)| (ended - began).max(0.0));
    if response["bytesReceived"].as_u64() == Some(0) && mark("requestStart").is_none() {
        entry.cached = true;
    }
    if let Some(began) = began {
        entry.started = began;
    }
}

fn key(params: &Value) -> (String, u64) {
    (text(params, "/request/request"), params["redirectCount"].as_u64().unwrap_or(0))
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Names in lower case; values as text, or bytes that are not UTF-8 replaced.
fn headers(list: &Value) -> Vec<Header> {
    let one = |header: &Value| {
        let value = match header["value"]["type"].as_str() {
            Some("base64") => {
                use base64::Engine as _;
                let bytes =
                    base64::engine::general_purpose::STANDARD.decode(header["value"]["value"].as_str()?).ok()?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
            _ => header["value"]["value"].as_str()?.to_owned(),
        };
        Some((header["name"].as_str()?.to_lowercase(), value))
    };
    list.as_array().into_iter().flatten().filter_map(one).collect()
}
