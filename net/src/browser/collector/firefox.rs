//! Firefox's events: WebDriver BiDi.

use serde::Deserialize;
use serde_json::Number;

use super::super::message::{Event, LongText, Text, first};
use super::{Collector, ConsoleMessage, Entry, FRAMES, Head, Header, Key, RequestStart, SWITCHING_PROTOCOLS, whole};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContextCreated {
    context: Text,
    parent: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Loaded {
    context: Text,
    navigation: Text,
}

/// Without the values that were logged: a page may log an array of any length.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryAdded {
    level: Text,
    text: Text,
    source: Source,
    stack_trace: Option<StackTrace>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Source {
    context: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StackTrace {
    #[serde(deserialize_with = "first::<_, _, 1>")]
    call_frames: Vec<CallFrame>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CallFrame {
    url: Text,
    line_number: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Network {
    context: Text,
    navigation: Text,
    redirect_count: u64,
    timestamp: f64,
    request: Request,
    response: Option<Response>,
    error_text: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Request {
    #[serde(rename = "request")]
    id: Text,
    url: LongText,
    method: Text,
    destination: Text,
    initiator_type: Text,
    timings: Timings,
}

/// Milliseconds since the epoch, 0 for what did not happen.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Timings {
    request_time: f64,
    fetch_start: f64,
    connect_start: f64,
    tls_start: f64,
    tls_end: f64,
    connect_end: f64,
    request_start: f64,
    response_start: f64,
    response_end: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Response {
    status: Option<Number>,
    status_text: Text,
    protocol: Text,
    mime_type: Text,
    headers: Vec<BidiHeader>,
    headers_size: Option<Number>,
    body_size: Option<Number>,
    bytes_received: Option<Number>,
    from_cache: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BidiHeader {
    name: Text,
    value: HeaderValue,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HeaderValue {
    r#type: Text,
    value: String,
}

/// An event of WebDriver `BiDi`.
#[derive(Debug)]
pub enum BidiEvent {
    ContextCreated(ContextCreated),
    Load(Loaded),
    EntryAdded(EntryAdded),
    BeforeRequestSent(Box<Network>),
    ResponseStarted(Box<Network>),
    ResponseEnded(Box<Network>),
}

/// None: the collector does not use it.
pub(super) fn read(event: &Event<'_>) -> Option<BidiEvent> {
    Some(match event.method {
        "browsingContext.contextCreated" => BidiEvent::ContextCreated(event.params()?),
        "browsingContext.load" => BidiEvent::Load(event.params()?),
        "log.entryAdded" => BidiEvent::EntryAdded(event.params()?),
        "network.beforeRequestSent" => BidiEvent::BeforeRequestSent(event.params()?),
        "network.responseStarted" => BidiEvent::ResponseStarted(event.params()?),
        "network.responseCompleted" | "network.fetchError" => BidiEvent::ResponseEnded(event.params()?),
        _ => return None,
    })
}

impl Collector {
    pub(super) fn firefox(&mut self, event: BidiEvent) {
        match event {
            BidiEvent::ContextCreated(created) => {
                if self.contexts.contains(&*created.parent) && self.contexts.len() < FRAMES {
                    self.contexts.insert(created.context.0);
                }
            }
            BidiEvent::Load(loaded) => {
                if *loaded.context == self.top {
                    self.loaded = loaded.navigation.known();
                }
            }
            BidiEvent::EntryAdded(added) => self.entry_added(added),
            BidiEvent::BeforeRequestSent(network) => {
                if self.contexts.contains(&*network.context) {
                    self.before_request_sent(*network);
                }
            }
            BidiEvent::ResponseStarted(network) => self.response(*network, false),
            BidiEvent::ResponseEnded(network) => self.response(*network, true),
        }
    }

    fn before_request_sent(&mut self, network: Network) {
        let top = !network.navigation.is_empty() && *network.context == self.top;
        let key = key(&network);
        if top {
            self.latest = Some(network.navigation.0);
        }
        let Request { destination, initiator_type, url, method, .. } = network.request;
        let destination = destination.known().unwrap_or(initiator_type.0);
        self.begin(RequestStart { key, top, started: network.timestamp, url: &url, method: &method, destination });
    }

    fn response(&mut self, network: Network, done: bool) {
        let Some(place) = self.places.get(&key(&network)).copied() else { return };
        // They come with every event of the response.
        let known = self.entries.get(place).is_some_and(|entry| !entry.exchange.headers.is_empty());
        let headers = network.response.as_ref().filter(|_| !known).map(|response| headers(&response.headers));
        let headers = headers.map(|headers| self.bounded(headers));
        let Some(entry) = self.entries.get_mut(place) else { return };
        let mut cached = false;
        if let Some(response) = network.response {
            let exchange = &mut entry.exchange;
            exchange.answered(Head {
                status: response.status,
                reason: response.status_text,
                version: response.protocol,
                mime_type: response.mime_type,
            });
            if let Some(headers) = headers {
                exchange.keep(headers);
            }
            if exchange.status == Some(SWITCHING_PROTOCOLS) {
                exchange.destination = "websocket".into();
            }
            exchange.header_bytes = whole(response.headers_size.as_ref());
            exchange.body_bytes = whole(response.body_size.as_ref());
            cached = response.from_cache;
            entry.cached = cached;
            if whole(response.bytes_received.as_ref()) == Some(0) && network.request.timings.request_start <= 0.0 {
                entry.cached = true;
            }
        }
        entry.done |= done;
        if let Some(error) = network.error_text {
            entry.error = Some(error.0);
            if entry.top && !cached {
                self.failed = Some(network.navigation.0);
            }
        }
        times(entry, &network.request.timings);
    }

    fn entry_added(&mut self, added: EntryAdded) {
        if self.contexts.contains(&*added.source.context) {
            let frame = added.stack_trace.and_then(|stack| stack.call_frames.into_iter().next()).unwrap_or_default();
            // Counted from 0 there.
            let line = whole(frame.line_number.as_ref()).and_then(|line| u32::try_from(line + 1).ok());
            self.log(ConsoleMessage { level: added.level.0, text: added.text.0, url: frame.url.known(), line });
        }
    }
}

fn times(entry: &mut Entry, timings: &Timings) {
    let mark = |at: f64| (at > 0.0).then_some(at);
    let span = |from: f64, to: f64| Some((mark(to)? - mark(from)?).max(0.0));
    let began = mark(timings.fetch_start).or(mark(timings.request_time));
    let times = &mut entry.exchange.timings;
    entry.connect_at = mark(timings.connect_start);
    times.tls = span(timings.tls_start, timings.tls_end).or_else(|| span(timings.tls_start, timings.connect_end));
    let connect = span(timings.connect_start, timings.connect_end);
    times.connect = connect.map(|whole| (whole - times.tls.unwrap_or(0.0)).max(0.0));
    times.wait = span(timings.request_start, timings.response_start);
    times.download = span(timings.response_start, timings.response_end);
    let ends = [timings.response_end, timings.response_start, timings.request_start, timings.connect_end];
    let ended = ends.into_iter().find_map(mark);
    times.total = began.zip(ended).map(|(began, ended)| (ended - began).max(0.0));
    if let Some(began) = began {
        entry.started = began;
    }
}

fn key(network: &Network) -> Key {
    (network.request.id.0.clone(), network.redirect_count)
}

/// Names in lower case; values as text, or bytes that are not UTF-8 replaced.
fn headers(list: &[BidiHeader]) -> Vec<Header> {
    let one = |header: &BidiHeader| {
        let value = if *header.value.r#type == *"base64" {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD.decode(&header.value.value).ok()?;
            String::from_utf8_lossy(&bytes).into_owned()
        } else {
            header.value.value.clone()
        };
        Some((header.name.to_lowercase(), value))
    };
    list.iter().filter_map(one).collect()
}
