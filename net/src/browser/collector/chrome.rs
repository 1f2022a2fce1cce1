//! Chrome's events: its `DevTools` protocol. (In WebDriver BiDi it reports too little: the end of a body is the end of
//! its headers there, an unknown time is 0, and redirects get each other's status.) A redirect may show the headers of
//! the one before; those of the events with the headers as they were on the wire are right.

use serde::Deserialize;
use serde_json::value::Value;
use serde_json::{Map, Number};

use super::super::message::{Event, LongText, Text, first};
use super::{Collector, ConsoleMessage, HOPS, Head, Header, REQUESTS, RequestStart, whole};

/// What Chrome calls a 407 that did not come from an HTTP proxy of its own, of which there is none here.
const PROXY_AUTH: &str = "net::ERR_UNEXPECTED_PROXY_AUTH";
/// Of a message: how much of what was logged is read.
const ARGUMENTS: usize = 100;

/// Of a request: Chrome's monotonic seconds, and seconds since the epoch.
#[derive(Debug, Default)]
pub(super) struct Clock {
    pub sent: f64,
    pub wall: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestWillBeSent {
    request_id: Text,
    loader_id: Text,
    frame_id: Text,
    r#type: Text,
    request: Request,
    timestamp: f64,
    wall_time: f64,
    redirect_response: Option<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    url: LongText,
    method: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResponseReceived {
    request_id: Text,
    response: Response,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtraInfo {
    request_id: Text,
    status_code: Option<Number>,
    headers: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Response {
    status: Option<Number>,
    status_text: Text,
    protocol: Text,
    mime_type: Text,
    headers: Map<String, Value>,
    connection_id: Option<Number>,
    encoded_data_length: Option<Number>,
    from_disk_cache: bool,
    timing: Option<Timing>,
}

/// Seconds, and milliseconds after them; -1: did not happen.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Timing {
    request_time: f64,
    connect_start: f64,
    connect_end: f64,
    ssl_start: f64,
    ssl_end: f64,
    send_start: f64,
    send_end: f64,
    #[serde(default = "never")]
    receive_headers_start: f64,
    receive_headers_end: f64,
}

fn never() -> f64 {
    -1.0
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadingEnded {
    request_id: Text,
    timestamp: f64,
    encoded_data_length: Option<Number>,
    error_text: Text,
    blocked_reason: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LifecycleEvent {
    frame_id: Text,
    loader_id: Text,
    name: Text,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConsoleApiCalled {
    r#type: Text,
    #[serde(deserialize_with = "first::<_, _, ARGUMENTS>")]
    args: Vec<RemoteObject>,
    stack_trace: Option<StackTrace>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ExceptionThrown {
    exception_details: ExceptionDetails,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ExceptionDetails {
    text: Text,
    url: Text,
    line_number: Option<Number>,
    exception: Option<RemoteObject>,
    stack_trace: Option<StackTrace>,
}

/// What a page logged. Chrome bounds the preview of an object, so that an array of any length comes as its first values.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RemoteObject {
    r#type: Text,
    subtype: Text,
    value: Primitive,
    unserializable_value: Text,
    description: Text,
    preview: Option<Preview>,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Primitive {
    Text(Text),
    Number(Number),
    Bool(bool),
    #[default]
    Other,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Preview {
    subtype: Text,
    overflow: bool,
    #[serde(deserialize_with = "first::<_, _, ARGUMENTS>")]
    properties: Vec<Property>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Property {
    name: Text,
    r#type: Text,
    value: Text,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StackTrace {
    #[serde(deserialize_with = "first::<_, _, 1>")]
    call_frames: Vec<CallFrame>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CallFrame {
    url: Text,
    line_number: Option<Number>,
}

/// An event of the `DevTools` protocol.
#[derive(Debug)]
pub enum DevToolsEvent {
    Crashed,
    RequestWillBeSent(Box<RequestWillBeSent>),
    ExtraInfo(ExtraInfo),
    ResponseReceived(Box<ResponseReceived>),
    LoadingFinished(LoadingEnded),
    LoadingFailed(LoadingEnded),
    LifecycleEvent(LifecycleEvent),
}

/// None: the collector does not use it.
pub(super) fn read(event: &Event<'_>) -> Option<super::BrowserEvent> {
    Some(super::BrowserEvent::Chrome(match event.method {
        "Inspector.targetCrashed" => DevToolsEvent::Crashed,
        "Network.requestWillBeSent" => DevToolsEvent::RequestWillBeSent(event.params()?),
        "Network.responseReceivedExtraInfo" => DevToolsEvent::ExtraInfo(event.params()?),
        "Network.responseReceived" => DevToolsEvent::ResponseReceived(event.params()?),
        "Network.loadingFinished" => DevToolsEvent::LoadingFinished(event.params()?),
        "Network.loadingFailed" => DevToolsEvent::LoadingFailed(event.params()?),
        "Page.lifecycleEvent" => DevToolsEvent::LifecycleEvent(event.params()?),
        "Runtime.consoleAPICalled" => {
            return Some(super::BrowserEvent::Console(event.params::<ConsoleApiCalled>()?.into()));
        }
        "Runtime.exceptionThrown" => {
            return Some(super::BrowserEvent::Console(event.params::<ExceptionThrown>()?.into()));
        }
        _ => return None,
    }))
}

impl From<ConsoleApiCalled> for ConsoleMessage {
    fn from(called: ConsoleApiCalled) -> Self {
        let level = match &*called.r#type {
            "error" | "assert" => "error",
            "warning" => "warn",
            "debug" | "trace" => "debug",
            _ => "info",
        };
        let (url, line) = called.stack_trace.map(place_of).unwrap_or_default();
        Self { level: level.into(), text: formatted(&called.args), url, line }
    }
}

impl From<ExceptionThrown> for ConsoleMessage {
    fn from(thrown: ExceptionThrown) -> Self {
        let details = thrown.exception_details;
        let own = (details.url.known(), line_of(details.line_number.as_ref()));
        let (url, line) = details.stack_trace.map(place_of).filter(|(url, _)| url.is_some()).unwrap_or(own);
        // An error describes itself with its stack.
        let what = details.exception.map_or(details.text.0, |exception| shown(&exception));
        let text = what.split("\n    at ").next().unwrap_or(&what).to_owned();
        Self { level: "error".into(), text, url, line }
    }
}

impl Collector {
    pub(super) fn chrome(&mut self, event: DevToolsEvent) {
        match event {
            DevToolsEvent::Crashed => self.crashed = true,
            DevToolsEvent::RequestWillBeSent(sent) => self.request_will_be_sent(*sent),
            DevToolsEvent::ExtraInfo(extra) => self.extra_info(extra),
            DevToolsEvent::ResponseReceived(received) => {
                if let Some(place) = self.place(&received.request_id) {
                    self.chrome_response(place, received.response);
                }
            }
            DevToolsEvent::LoadingFinished(ended) => self.loading_ended(ended, false),
            DevToolsEvent::LoadingFailed(ended) => self.loading_ended(ended, true),
            DevToolsEvent::LifecycleEvent(happened) => {
                if *happened.name == *"load" && *happened.frame_id == self.top {
                    self.loaded = Some(happened.loader_id.0);
                }
            }
        }
    }

    /// Of the request as it is after its latest redirect.
    pub(super) fn place(&self, id: &Text) -> Option<usize> {
        let hops = self.hops.get(&**id).copied().unwrap_or(0);
        self.places.get(&(id.0.clone(), hops)).copied()
    }

    fn request_will_be_sent(&mut self, sent: RequestWillBeSent) {
        let id = sent.request_id;
        if let Some(response) = sent.redirect_response {
            // The end of the hop before, of which there is no event of its own.
            if let Some(place) = self.place(&id) {
                self.chrome_response(place, response);
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.done = true;
                }
                self.chrome_end(place, sent.timestamp);
                *self.hops.entry(id.0.clone()).or_default() += 1;
            }
        }
        let document = *sent.r#type == *"Document";
        let top = document && *sent.frame_id == self.top;
        let destination = match &*sent.r#type {
            "Document" if top => "document".into(),
            "Document" => "iframe".into(),
            "Stylesheet" => "style".into(),
            "XHR" => "xmlhttprequest".into(),
            "Other" => String::new(),
            other => other.to_lowercase(),
        };
        if top {
            self.latest = Some(sent.loader_id.0);
        }
        let hops = self.hops.get(&*id).copied().unwrap_or(0);
        let (started, url, method) = (sent.wall_time * 1e3, &sent.request.url, &sent.request.method);
        let place = self.begin(RequestStart { key: (id.0, hops), top, started, url, method, destination });
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            entry.chrome = Clock { sent: sent.timestamp, wall: sent.wall_time };
        }
    }

    fn extra_info(&mut self, extra: ExtraInfo) {
        let known = self.wire.contains_key(&*extra.request_id) || self.wire.len() < REQUESTS;
        if known && self.wire.get(&*extra.request_id).is_none_or(|hops| hops.len() < HOPS) {
            let headers = self.bounded(lines(&extra.headers));
            let response = (whole(extra.status_code.as_ref()), headers);
            self.wire.entry(extra.request_id.0).or_default().push_back(response);
        }
    }

    fn loading_ended(&mut self, ended: LoadingEnded, failed: bool) {
        let Some(place) = self.place(&ended.request_id) else { return };
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.done = true;
        if failed && *ended.error_text == *PROXY_AUTH {
            if entry.top {
                self.failed = self.latest.clone();
            }
            // The target has answered. Its headers are those of the wire.
            entry.exchange.status = Some(407);
        } else if failed {
            let blocked = ended.blocked_reason.known().map(|why| format!("BLOCKED: {why}"));
            entry.error = Some(blocked.unwrap_or(ended.error_text.0));
            if entry.top && entry.exchange.status.is_none() {
                self.failed = self.latest.clone();
            }
        } else {
            let bytes = whole(ended.encoded_data_length.as_ref());
            entry.exchange.body_bytes =
                bytes.zip(entry.exchange.header_bytes).and_then(|(bytes, head)| bytes.checked_sub(head));
        }
        self.chrome_end(place, ended.timestamp);
    }

    pub(super) fn chrome_end(&mut self, place: usize, at: f64) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let total = (at - entry.chrome.sent) * 1e3;
        let timings = &mut entry.exchange.timings;
        timings.total = (entry.chrome.sent > 0.0).then_some(total.max(0.0));
        // Until the response it stood for the time up to the first byte.
        timings.download = timings.download.and_then(|until| Some((timings.total? - until).max(0.0)));
    }

    pub(super) fn chrome_response(&mut self, place: usize, response: Response) {
        let headers = self.bounded(lines(&response.headers));
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.connection = whole(response.connection_id.as_ref()).filter(|id| *id > 0);
        entry.cached = response.from_disk_cache;
        let exchange = &mut entry.exchange;
        exchange.answered(Head {
            status: response.status,
            reason: response.status_text,
            version: response.protocol,
            mime_type: response.mime_type,
        });
        // So far: the response's head.
        exchange.header_bytes = whole(response.encoded_data_length.as_ref()).filter(|bytes| *bytes > 0);
        exchange.keep(headers);
        let Some(timing) = response.timing.filter(|_| entry.chrome.sent > 0.0) else { return };
        let mark = |at: f64| (at >= 0.0).then_some(at);
        let span = |from: f64, to: f64| Some((mark(to)? - mark(from)?).max(0.0));
        let after_sent = (timing.request_time - entry.chrome.sent) * 1e3;
        entry.connect_at = mark(timing.connect_start).map(|at| entry.chrome.wall * 1e3 + after_sent + at);
        let first = mark(timing.receive_headers_start).or(mark(timing.receive_headers_end));
        let timings = &mut entry.exchange.timings;
        timings.tls = span(timing.ssl_start, timing.ssl_end);
        let connect = span(timing.connect_start, timing.connect_end);
        timings.connect = connect.map(|whole| whole - timings.tls.unwrap_or(0.0));
        timings.send = span(timing.send_start, timing.send_end);
        timings.wait = first.and_then(|first| Some((first - mark(timing.send_end)?).max(0.0)));
        timings.download = first.map(|first| after_sent + first);
    }
}

/// The headers are an object; several of one name come in one value, on lines of their own.
fn lines(headers: &Map<String, Value>) -> Vec<Header> {
    let lines = headers.iter().flat_map(|(name, value)| {
        value.as_str().unwrap_or_default().lines().map(|line| (name.to_lowercase(), line.to_owned()))
    });
    lines.collect()
}

fn place_of(stack: StackTrace) -> (Option<String>, Option<u32>) {
    let frame = stack.call_frames.into_iter().next().unwrap_or_default();
    (frame.url.known(), line_of(frame.line_number.as_ref()))
}

/// Counted from 0 there.
fn line_of(number: Option<&Number>) -> Option<u32> {
    u32::try_from(whole(number)? + 1).ok()
}

/// As the console prints it (WHATWG Console, section 2.3): the first argument may be a format for those after it.
fn formatted(args: &[RemoteObject]) -> String {
    let mut rest = args.iter();
    let mut text = String::new();
    if let Some(RemoteObject { value: Primitive::Text(format), .. }) = args.first() {
        rest.next();
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            match chars.peek() {
                Some('%') if c == '%' => text.push_str(if chars.next().is_some() { "%" } else { "" }),
                Some('s' | 'd' | 'i' | 'f' | 'o' | 'O' | 'c') if c == '%' && rest.len() > 0 => {
                    let style = chars.next() == Some('c');
                    let argument = rest.next().map(shown).unwrap_or_default();
                    text.push_str(if style { "" } else { &argument });
                }
                _ => text.push(c),
            }
        }
    }
    for (place, argument) in rest.enumerate() {
        if place > 0 || !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&shown(argument));
    }
    text
}

fn shown(object: &RemoteObject) -> String {
    match &object.value {
        Primitive::Text(text) if !text.is_empty() || *object.r#type == *"string" => text.0.clone(),
        Primitive::Number(number) => number.to_string(),
        Primitive::Bool(value) => value.to_string(),
        _ if !object.unserializable_value.is_empty() => object.unserializable_value.0.clone(),
        _ => match &object.preview {
            Some(preview) if matches!(&*object.subtype, "" | "array") && *object.r#type == *"object" => {
                previewed(preview)
            }
            _ => [&object.description, &object.subtype, &object.r#type]
                .into_iter()
                .find_map(|text| text.clone().known())
                .unwrap_or_default(),
        },
    }
}

fn previewed(preview: &Preview) -> String {
    let array = *preview.subtype == *"array";
    let each = preview.properties.iter().map(|property| {
        let value =
            if *property.r#type == *"string" { format!("{:?}", &*property.value) } else { property.value.0.clone() };
        if array { value } else { format!("{}: {value}", &*property.name) }
    });
    let mut all: Vec<String> = each.collect();
    if preview.overflow {
        all.push("…".into());
    }
    let all = all.join(", ");
    if array { format!("[{all}]") } else { format!("{{{all}}}") }
}
