//! From a browser's events to the exchanges of a page. Pure: no sockets, no clocks.
//!
//! However much a page does, what is kept of it is bounded: requests, messages, headers, and every text.

mod chrome;
mod firefox;
mod websocket;

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::Number;

use super::message::{Event, LongText, Text, beginning};
use super::{Exchange, Header, Kind, Message, Role};
use crate::name::canonical_host;

/// More requests than this are counted only.
const SHOWN: usize = 300;
/// A page with more requests is stopped.
pub const REQUESTS: usize = 2000;
const MESSAGES: usize = 100;
/// Of methods, versions, types and other texts that are words.
const WORD_BYTES: usize = 64;
/// Of a reason phrase, and of a MIME type with its parameters.
const PHRASE_BYTES: usize = 256;
const MESSAGE_CHARS: usize = 2000;
/// Of the URL of a resource.
const URL_BYTES: usize = 2048;
/// One exchange carries no more bytes of headers than this, and those of one page no more than that.
const EXCHANGE_HEADER_BYTES: usize = 16 << 10;
const HEADER_BYTES: usize = 256 << 10;
/// The content type of server-sent events (WHATWG HTML, section 9.2).
const EVENT_STREAM: &str = "text/event-stream";
const SWITCHING_PROTOCOLS: u16 = 101;
/// And so many are kept until it is known which are shown.
const KEPT_HEADER_BYTES: usize = 1 << 20;
/// Likewise of frames, and of redirects of one request.
const FRAMES: usize = 2000;
const HOPS: usize = 25;

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
    chrome: chrome::Clock,
}

/// Headers as far as they are kept, and the bytes of all of them.
#[derive(Debug, Default)]
struct KeptHeaders {
    headers: Vec<Header>,
    bytes: usize,
}

/// Status and headers.
type OnWire = (Option<u64>, KeptHeaders);

/// A request and how many redirects it has been through.
type Key = (String, u64);

#[derive(Debug)]
pub struct Collector {
    /// The page's own frame, and all frames in it.
    top: String,
    contexts: HashSet<String>,
    pub entries: Vec<Entry>,
    places: HashMap<Key, usize>,
    /// Chrome's responses as they were on the wire, of each request in order.
    wire: HashMap<String, VecDeque<OnWire>>,
    /// How many redirects a request has been through, as Chrome's own events have it.
    hops: HashMap<String, u64>,
    /// Chrome's websockets that have sent nothing yet.
    websockets: HashMap<String, LongText>,
    pub requests: usize,
    header_bytes: usize,
    /// The navigation whose load event has happened.
    loaded: Option<String>,
    latest: Option<String>,
    /// The latest one, when it came to nothing: the document before it stays.
    failed: Option<String>,
    pub console: Vec<Message>,
    pub crashed: bool,
}

/// The start of a request.
struct RequestStart<'a> {
    key: Key,
    top: bool,
    started: f64,
    url: &'a LongText,
    method: &'a str,
    destination: String,
}

/// A message of the console.
#[derive(Debug)]
pub struct ConsoleMessage {
    level: String,
    text: String,
    url: Option<String>,
    line: Option<u32>,
}

/// An event of a browser, reduced to what the collector uses. A page decides how long it takes to parse one.
#[derive(Debug)]
pub enum BrowserEvent {
    Chrome(chrome::DevToolsEvent),
    WebSocket(websocket::Step, Box<websocket::WebSocket>),
    Firefox(firefox::BidiEvent),
    Console(ConsoleMessage),
}

impl BrowserEvent {
    /// None: the collector does not use it.
    #[must_use]
    pub fn read(kind: Kind, event: &Event<'_>) -> Option<Self> {
        match kind {
            Kind::Chrome => chrome::read(event)
                .or_else(|| websocket::read(event).map(|(step, socket)| Self::WebSocket(step, socket))),
            Kind::Firefox => firefox::read(event).map(Self::Firefox),
        }
    }

    /// A message that was skipped because it is too long. Requests of this length are for `data:` URLs, and are
    /// ignored.
    #[must_use]
    pub fn too_long(head: &[u8], bytes: u64) -> Option<Self> {
        let head = String::from_utf8_lossy(head);
        let said = ["log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"];
        let text = format!("(a message of {} MiB)", bytes >> 20);
        let message = ConsoleMessage { level: "info".into(), text, url: None, line: None };
        said.iter().any(|method| head.contains(method)).then_some(Self::Console(message))
    }
}

impl Collector {
    #[must_use]
    pub fn new(top: &str) -> Self {
        Self {
            top: top.into(),
            contexts: HashSet::from([top.into()]),
            entries: vec![],
            places: HashMap::new(),
            wire: HashMap::new(),
            hops: HashMap::new(),
            websockets: HashMap::new(),
            requests: 0,
            header_bytes: 0,
            loaded: None,
            latest: None,
            failed: None,
            console: vec![],
            crashed: false,
        }
    }

    pub fn take(&mut self, event: BrowserEvent) {
        match event {
            BrowserEvent::Chrome(event) => self.chrome(event),
            BrowserEvent::WebSocket(step, socket) => self.websocket(step, *socket),
            BrowserEvent::Firefox(event) => self.firefox(event),
            BrowserEvent::Console(message) => self.log(message),
        }
    }

    /// Has the document's load event happened, for the document that is there now?
    #[must_use]
    pub fn loaded(&self) -> bool {
        let current = self.latest.is_none() || self.latest == self.loaded || self.latest == self.failed;
        self.loaded.is_some() && current
    }

    /// Is any request still under way? Streams are, for as long as the page likes: they do not count.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.entries.iter().any(|entry| !entry.done && !entry.exchange.is_stream())
    }

    /// The place of the new entry, if there is one.
    fn begin(&mut self, start: RequestStart<'_>) -> Option<usize> {
        let parsed = url::Url::parse(&start.url.beginning).ok()?;
        if !matches!(parsed.scheme(), "http" | "https" | "ws" | "wss") {
            return None;
        }
        self.requests += 1;
        if self.entries.len() > REQUESTS {
            return None;
        }
        let place = self.entries.len();
        self.places.insert(start.key, place);
        self.entries.push(Entry {
            host: canonical_host(parsed.host_str().unwrap_or_default()),
            port: parsed.port_or_known_default().unwrap_or(0),
            exchange: Exchange {
                url: if start.top { &*start.url.beginning } else { beginning(&start.url.beginning, URL_BYTES) }
                    .to_owned(),
                url_bytes: start.url.bytes,
                method: beginning(start.method, WORD_BYTES).to_owned(),
                destination: beginning(&start.destination, WORD_BYTES).to_owned(),
                ..Exchange::default()
            },
            top: start.top,
            started: start.started,
            ..Entry::default()
        });
        Some(place)
    }

    /// The first of the headers, and none beyond the limit for all headers of a page.
    fn bounded(&mut self, headers: Vec<Header>) -> KeptHeaders {
        let bytes = size_of(&headers);
        let mut left = EXCHANGE_HEADER_BYTES.min(KEPT_HEADER_BYTES.saturating_sub(self.header_bytes));
        let mut kept = vec![];
        for (name, mut value) in headers {
            let Some(rest) = left.checked_sub(name.len()).filter(|rest| *rest > 0) else { break };
            value.truncate(value.floor_char_boundary(rest));
            left = rest - value.len();
            kept.push((name, value));
        }
        self.header_bytes += size_of(&kept);
        KeptHeaders { headers: kept, bytes }
    }

    fn log(&mut self, message: ConsoleMessage) {
        if self.console.len() < MESSAGES {
            let cut = |text: String| text.chars().take(MESSAGE_CHARS).collect();
            let ConsoleMessage { level, text, url, line } = message;
            self.console.push(Message {
                level: beginning(&level, WORD_BYTES).to_owned(),
                text: cut(text),
                url: url.map(cut),
                line,
            });
        }
    }

    /// Everything that was still under way is over now, for this reason.
    pub fn stop(&mut self, now: f64, why: &str) {
        for entry in self.entries.iter_mut().filter(|entry| !entry.done) {
            entry.done = true;
            entry.error = Some(why.into());
            let timings = &mut entry.exchange.timings;
            (timings.download, timings.total) = (None, Some((now - entry.started).max(0.0)));
        }
    }

    /// The page is done: what is still under way does not belong to its loading, and stays open.
    pub fn leave_open(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| !entry.done) {
            entry.done = true;
            let exchange = &mut entry.exchange;
            exchange.open = true;
            (exchange.timings.download, exchange.timings.total, exchange.body_bytes) = (None, None, None);
        }
    }

    /// Assigns headers from the wire to their responses: both come in the same order.
    fn take_wire(&mut self) {
        let mut hops: Vec<_> = self.places.iter().collect();
        hops.sort();
        for ((id, _), place) in hops {
            let (Some(wire), Some(entry)) = (self.wire.get_mut(id), self.entries.get_mut(*place)) else { continue };
            let status = entry.exchange.status.map(u64::from);
            if wire.front().is_some_and(|(on_wire, _)| *on_wire == status)
                && let Some((_, headers)) = wire.pop_front()
            {
                entry.exchange.keep(headers);
            }
        }
    }

    /// What is shown, and how much is not.
    #[must_use]
    pub fn finish(mut self, began: f64) -> (Vec<Entry>, usize) {
        self.take_wire();
        // Firefox reports resources from its memory cache as if they were fetched again.
        let repeated = |entry: &Entry| {
            let untimed = entry.exchange.timings.total.is_none() && entry.error.is_none() && !entry.exchange.open;
            entry.cached || untimed
        };
        let beyond = self.requests - self.entries.len();
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
        let (all, mut place, mut bytes_left) = (self.entries.len(), 0, HEADER_BYTES);
        self.entries.retain_mut(|entry| {
            place += 1;
            let document = entry.exchange.role == Role::Document;
            bytes_left = bytes_left.saturating_sub(size_of(&entry.exchange.headers));
            if bytes_left == 0 && !document {
                entry.exchange.headers.clear();
            }
            document || place <= SHOWN
        });
        let hidden = all - self.entries.len() + beyond;
        (self.entries, hidden)
    }
}

fn size_of(headers: &[Header]) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// A response's head, as both browsers report it. The headers of all responses have one limit.
struct Head {
    status: Option<Number>,
    reason: Text,
    version: Text,
    mime_type: Text,
}

impl Exchange {
    /// Has it been answered with a stream that ends when the page or the server likes?
    fn is_stream(&self) -> bool {
        let content_type = self.mime_type.as_deref().and_then(|mime| mime.split(';').next()).unwrap_or_default();
        self.status == Some(SWITCHING_PROTOCOLS) || content_type.trim().eq_ignore_ascii_case(EVENT_STREAM)
    }

    fn keep(&mut self, headers: KeptHeaders) {
        (self.headers, self.header_text_bytes) = (headers.headers, headers.bytes);
    }

    fn answered(&mut self, head: Head) {
        let known = |text: Text, bytes| Some(beginning(&text, bytes).to_owned()).filter(|text| !text.is_empty());
        self.status = whole(head.status.as_ref()).and_then(|status| u16::try_from(status).ok());
        beginning(&head.reason, PHRASE_BYTES).clone_into(&mut self.reason);
        self.version = known(head.version, WORD_BYTES);
        self.mime_type = known(head.mime_type, PHRASE_BYTES);
    }
}

/// A number that is a whole one, and not negative.
fn whole(number: Option<&Number>) -> Option<u64> {
    number?.as_u64()
}

#[cfg(test)]
mod tests;
