//! One HTTP exchange and the duration of each of its phases.
//!
//! Why not reqwest: it has no place to vet the address that is about to be dialled (a literal address skips even its
//! resolver), and it does not time the phases separately. This is hyper (HTTP/1, HTTP/2) and h3 (HTTP/3) on connections
//! that are made here: resolve, ask the policy, dial that very address.

pub mod body;
mod redirect;
mod sent;
#[cfg(test)]
mod tests;
mod timeline;
mod v3;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::Url;

use self::body::{Body, BodyReader};
use self::timeline::{Timeline, Wire};
use crate::FamilyFilter;
use crate::address::attempts::Attempt;
use crate::address::dial::{self, PlanError, TcpError};
use crate::address::{LookupError, Resolved, Resolver};
use crate::lag::LagMonitor;
use crate::limits::{Exceeded, HEADER_BYTES, HEADERS, Pieces, check_headers};
use crate::metered::Metered;
use crate::os_error::{description, is_local};
use crate::policy::{Names, Policy};
use crate::scope::ExchangeTasks;
use crate::tls::quic::QuicError;
use crate::tls::{Refused, Tls, TlsDetails, admitted, negotiated};

pub use crate::limits;
pub use redirect::redirect;
pub use timeline::Timings;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
    Http2,
    Http3,
}

/// One request, checked: nothing in it can break out of its place on the wire.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    pub resolve: Option<IpAddr>,
    pub family: FamilyFilter,
    pub verify_tls: bool,
    pub keep_body: usize,
    /// Bytes of the body, before content decoding, at which it is cut.
    pub body_limit: u64,
    pub timeout: Duration,
}

/// What the response says before its body.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    pub reason: String,
    pub version: Version,
    pub headers: HeaderMap,
}

#[derive(Debug)]
pub struct Response {
    pub head: Head,
    pub remote: SocketAddr,
    /// The attempts to connect, in the order in which they began.
    pub attempts: Vec<Attempt>,
    pub timings: Timings,
    pub tls: Option<TlsDetails>,
    pub body: Body,
    /// Bytes that came over the connection: of the body, and of everything around it.
    pub received: u64,
}

/// Which step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    Invalid,
    Denied,
    /// This host's own trouble.
    Unavailable,
    Name,
    Connect,
    Timeout,
    Handshake,
    Certificate,
    EmptyReply,
    Send,
    Receive,
    TooLarge,
}

/// The parts of an exchange, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Dns,
    Connect,
    Tls,
    Send,
    Wait,
    Download,
}

/// A failure, and what was known when it happened.
#[derive(Debug)]
pub struct Failure {
    pub kind: FailureKind,
    pub reason: String,
    /// The one that it happened in. None: before the first.
    pub phase: Option<Phase>,
    /// Without its headers when they passed a limit.
    pub head: Option<Head>,
    /// Bytes of the body that came, before content decoding.
    pub body_bytes: u64,
    /// The address that was connected to, or tried last.
    pub remote: Option<IpAddr>,
    /// As for a [`Response`].
    pub attempts: Vec<Attempt>,
    pub timings: Timings,
    pub tls: Option<TlsDetails>,
    /// As for a [`Response`].
    pub received: u64,
}

/// The failure of a step, before what is known about the whole exchange is added.
struct StepError(FailureKind, String);

impl From<LookupError> for StepError {
    fn from(error: LookupError) -> Self {
        // A lookup that takes too long is the name's failure, as curl has it (6), not the target's (28).
        Self(FailureKind::Name, error.to_string())
    }
}

impl From<PlanError> for StepError {
    fn from(error: PlanError) -> Self {
        let kind = match &error {
            PlanError::Denied(_) => FailureKind::Denied,
            PlanError::NoRoute => FailureKind::Unavailable,
        };
        Self(kind, error.to_string())
    }
}

impl From<Option<(TcpError, SocketAddr)>> for StepError {
    fn from(failed: Option<(TcpError, SocketAddr)>) -> Self {
        let Some((error, address)) = failed else { return no_address() };
        let kind = if is_local(&error.0) { FailureKind::Unavailable } else { FailureKind::Connect };
        Self(kind, format!("Failed to connect to {address}: {error}"))
    }
}

fn no_address() -> StepError {
    StepError(FailureKind::Connect, "no address to connect to".into())
}

impl From<QuicError> for StepError {
    fn from(error: QuicError) -> Self {
        match error {
            QuicError::Certificate(words) => Self(FailureKind::Certificate, words),
            QuicError::Handshake(words) => Self(FailureKind::Handshake, format!("QUIC handshake failed: {words}")),
            QuicError::Host(error) => Self(FailureKind::Unavailable, format!("QUIC socket: {}", description(&error))),
            QuicError::Connect(words) => Self(FailureKind::Connect, format!("QUIC connection failed: {words}")),
        }
    }
}

impl From<Exceeded> for StepError {
    fn from(exceeded: Exceeded) -> Self {
        Self(FailureKind::TooLarge, exceeded.to_string())
    }
}

/// Makes the exchange. Dropping the future closes what it had open.
///
/// # Errors
/// See [`Failure`].
pub async fn exchange(
    resolver: &Resolver,
    tls: &Tls,
    policy: &Policy,
    lag: &LagMonitor,
    request: Request,
) -> Result<Response, Failure> {
    let timeline = Arc::new(Timeline::start(lag.watch()));
    let done = tokio::time::timeout(request.timeout, attempt(resolver, tls, policy, &request, &timeline)).await;
    let step = match done {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(step)) => step,
        Err(_) => {
            StepError(FailureKind::Timeout, format!("Operation timed out after {} ms", request.timeout.as_millis()))
        }
    };
    // Before anything else: what follows is this host's work.
    let (phase, timings, attempts) = (timeline.phase(), timeline.timings(), timeline.attempts().list());
    if let Some(presented) = timeline.presented()
        && let Some(details) = presented.verify().await
    {
        timeline.negotiated(&details);
    }
    Err(Failure {
        kind: step.0,
        reason: step.1,
        phase,
        head: timeline.take_head(),
        body_bytes: timeline.body_bytes(),
        remote: timeline.remote().map(|remote| remote.ip()),
        attempts,
        timings,
        tls: timeline.tls(),
        received: timeline.received(),
    })
}

async fn attempt(
    resolver: &Resolver,
    tls: &Tls,
    policy: &Policy,
    request: &Request,
    timeline: &Arc<Timeline>,
) -> Result<Response, StepError> {
    let invalid = |words: &str| StepError(FailureKind::Invalid, words.into());
    let secure = request.url.scheme() == "https";
    let port = request.url.port_or_known_default().ok_or_else(|| invalid("the URL has no port"))?;
    let (host, literal) = match request.url.host() {
        Some(url::Host::Domain(name)) => (name.to_owned(), None),
        Some(url::Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address))),
        // The certificate of an IPv4-mapped address is that of the IPv4 one, which is reached.
        Some(url::Host::Ipv6(address)) => {
            let address = address.to_canonical();
            (address.to_string(), Some(address))
        }
        None => return Err(invalid("the URL has no host")),
    };
    // A name opens only what it resolves to, not an address that the caller put in its place.
    let found = if let Some(address) = request.resolve.or(literal) {
        Resolved { addresses: vec![address], names: Names::default() }
    } else {
        timeline.resolving();
        let found = resolver.lookup(&host, request.family).await?;
        timeline.resolved();
        found
    };
    let open = dial::plan(policy, &found)?;
    if request.version == Version::Http3 {
        return v3::exchange(tls, &open, port, &host, request, timeline).await;
    }
    timeline.connecting();
    let (stream, remote) = dial::tcp(&open, port, timeline.attempts()).await?;
    let stream = Metered::new(stream, timeline.meter());
    if !secure {
        return h1(stream, request, timeline, remote, None).await;
    }
    let alpn: &[&str] = match request.version {
        Version::Http2 => &["h2", "http/1.1"],
        // Many servers do not know the name of version 1.0, and some of them end the handshake.
        Version::Http10 => &["http/1.1", "http/1.0"],
        _ => &["http/1.1"],
    };
    let handshake =
        |error: &dyn std::fmt::Display| StepError(FailureKind::Handshake, format!("TLS handshake failed: {error}"));
    let (config, presented) = tls.client(alpn).map_err(|e| handshake(&e))?;
    let server_name = ServerName::try_from(host).map_err(|e| handshake(&e))?;
    timeline.securing(presented.clone());
    let connected = TlsConnector::from(Arc::new(config)).connect(server_name, stream).await;
    // The time first: verifying a chain of certificates is this host's work.
    timeline.secured(None);
    let mut details = presented.verify().await;
    if let Ok(stream) = &connected {
        details = details.map(|details| negotiated(stream.get_ref().1, details));
    }
    timeline.secured(details.clone());
    let (stream, details) = admitted(connected, details, request.verify_tls).map_err(|refused| match refused {
        Refused::Certificate(reason) => StepError(FailureKind::Certificate, reason),
        Refused::Handshake(error) => handshake(&error),
    })?;
    if details.alpn.as_deref() == Some("h2") {
        h2(stream, request, timeline, remote, details).await
    } else {
        h1(stream, request, timeline, remote, Some(details)).await
    }
}

/// Host and port as the `host` header and `:authority` have them: the port only when it is not the scheme's own.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn message(request: &Request, uri: Uri, version: http::Version) -> http::Request<Full<Bytes>> {
    let mut message = http::Request::new(Full::new(request.body.clone().unwrap_or_default()));
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = uri;
    *message.version_mut() = version;
    *message.headers_mut() = request.headers.clone();
    message
}

fn absolute(url: &Url) -> Result<Uri, StepError> {
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    Uri::builder()
        .scheme(url.scheme())
        .authority(authority(url))
        .path_and_query(path)
        .build()
        .map_err(|error| StepError(FailureKind::Invalid, format!("the URL cannot be sent: {error}")))
}

async fn h1(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: &Request,
    timeline: &Arc<Timeline>,
    remote: SocketAddr,
    tls: Option<TlsDetails>,
) -> Result<Response, StepError> {
    // Metered again: one read of the socket can decrypt to many.
    let wire = Wire::http_1(timeline, request.body.as_ref().map_or(0, Bytes::len));
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .handshake(TokioIo::new(Metered::new(io, wire)))
        .await
        .map_err(|error| hyper_error(&error, timeline))?;
    let path = &request.url[url::Position::BeforePath..url::Position::AfterQuery];
    let uri =
        path.parse().map_err(|error| StepError(FailureKind::Invalid, format!("the URL cannot be sent: {error}")))?;
    let version = if request.version == Version::Http10 { http::Version::HTTP_10 } else { http::Version::HTTP_11 };
    let mut message = message(request, uri, version);
    let host = http::HeaderValue::try_from(authority(&request.url))
        .map_err(|error| StepError(FailureKind::Invalid, format!("the URL's host cannot be sent: {error}")))?;
    message.headers_mut().insert(http::header::HOST, host);
    let interim = Arc::clone(timeline);
    hyper::ext::on_informational(&mut message, move |response| interim.interim_response(response.headers()));
    let work = async {
        timeline.request_started();
        let response = sender.send_request(message).await.map_err(|error| hyper_error(&error, timeline))?;
        timeline.response_started();
        receive(response, request, timeline, remote, tls).await
    };
    alongside(connection, work).await
}

async fn h2(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: &Request,
    timeline: &Arc<Timeline>,
    remote: SocketAddr,
    tls: TlsDetails,
) -> Result<Response, StepError> {
    let (tied, _end) = ExchangeTasks::new();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(tied)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake(TokioIo::new(Metered::new(io, Wire::http_2(timeline))))
        .await
        .map_err(|error| hyper_error(&error, timeline))?;
    let message = message(request, absolute(&request.url)?, http::Version::HTTP_2);
    let work = async {
        timeline.request_started();
        let response = sender.send_request(message).await.map_err(|error| hyper_error(&error, timeline))?;
        timeline.response_started_now();
        receive(response, request, timeline, remote, Some(tls)).await
    };
    alongside(connection, work).await
}

/// Drives a connection while something is done over it, without a task of its own: dropping one drops both.
async fn alongside<T>(connection: impl Future, work: impl Future<Output = T>) -> T {
    let (mut connection, mut work) = (std::pin::pin!(connection), std::pin::pin!(work));
    tokio::select! {
        biased;
        done = &mut work => done,
        _ = &mut connection => work.await,
    }
}

async fn receive(
    response: http::Response<hyper::body::Incoming>,
    request: &Request,
    timeline: &Arc<Timeline>,
    remote: SocketAddr,
    tls: Option<TlsDetails>,
) -> Result<Response, StepError> {
    let (head, mut incoming) = response.into_parts();
    let version = match head.version {
        http::Version::HTTP_10 => Version::Http10,
        http::Version::HTTP_2 => Version::Http2,
        _ => Version::Http11,
    };
    let head = Head { status: head.status.as_u16(), reason: reason_phrase(&head), version, headers: head.headers };
    let mut body = begin(head, request, timeline, Pieces::default())?;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| hyper_error(&error, timeline))?;
        if let Ok(data) = frame.into_data() {
            timeline.body(data.len());
            if body.add(&data).await?.is_break() {
                break;
            }
        }
    }
    timeline.response_ended();
    ended(body, request, timeline, remote, tls).await
}

/// Keeps the head, whatever becomes of the body.
fn begin(head: Head, request: &Request, timeline: &Timeline, pieces: Pieces) -> Result<BodyReader, StepError> {
    let checked = check_headers(&head.headers);
    let body = BodyReader::new(&head.headers, request.keep_body, pieces.up_to(request.body_limit));
    let headers = if checked.is_ok() { head.headers } else { HeaderMap::new() };
    timeline.head(Head { headers, ..head });
    checked?;
    Ok(body)
}

async fn ended(
    body: BodyReader,
    request: &Request,
    timeline: &Timeline,
    remote: SocketAddr,
    tls: Option<TlsDetails>,
) -> Result<Response, StepError> {
    // Neither h3 nor hyper over HTTP/2 asks whether a stream that ended early has all of it (RFC 9110, section 8.6).
    if let Some(announced) =
        timeline.announced_body().filter(|_| request.method != http::Method::HEAD && !body.is_cut())
        && announced != timeline.body_bytes()
    {
        let came = timeline.body_bytes();
        return Err(receive_error(&format!("the body ended after {came} of {announced} bytes")));
    }
    // Still within the timeout: what the timeline has must stay there until nothing can fail.
    let body = body.end().await;
    let head = timeline.take_head().ok_or_else(|| StepError(FailureKind::Receive, "no response".into()))?;
    let (timings, attempts, received) = (timeline.timings(), timeline.attempts().list(), timeline.received());
    Ok(Response { head, remote, attempts, timings, tls, body, received })
}

/// The reason phrase on the wire, which HTTP/2 does not have (RFC 9113). hyper keeps it only when it differs from the
/// registered phrase.
fn reason_phrase(head: &http::response::Parts) -> String {
    match head.extensions.get::<hyper::ext::ReasonPhrase>() {
        _ if head.version == http::Version::HTTP_2 => String::new(),
        Some(phrase) => String::from_utf8_lossy(phrase.as_bytes()).into_owned(),
        None => head.status.canonical_reason().unwrap_or_default().to_owned(),
    }
}

fn hyper_error(error: &hyper::Error, timeline: &Timeline) -> StepError {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    if let Some(exceeded) = timeline.exceeded() {
        return exceeded.into();
    }
    if error.is_parse_too_large() {
        return Exceeded::Headers.into();
    }
    if error.is_parse() {
        return StepError(FailureKind::Receive, format!("the answer is not HTTP: {error}"));
    }
    if error.is_incomplete_message() && !timeline.anything_read() {
        return StepError(FailureKind::EmptyReply, "Empty reply from server".into());
    }
    receive_error(&cause)
}

fn receive_error(why: &dyn std::fmt::Display) -> StepError {
    StepError(FailureKind::Receive, format!("Failure when receiving data from the peer: {why}"))
}
