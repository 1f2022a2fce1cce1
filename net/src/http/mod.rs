//! One HTTP exchange with the true length of each of its phases.
//!
//! Why not reqwest: it has no place to vet the address that is about to be dialled (a literal address skips even its
//! resolver), and it does not tell the phases apart. This is hyper (HTTP/1, HTTP/2) and h3 (HTTP/3) on connections
//! that are made here: resolve, ask the policy, dial that very address.

mod body;
mod marks;
mod v3;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use url::Url;

use self::body::Taken;
use self::marks::{Marked, Marks};
use crate::Family;
use crate::address::dial::{self, DialError};
use crate::address::{LookupError, Resolver};
use crate::os_error::{description, is_local};
use crate::packet::route::has_route;
use crate::policy::{Permitted, Policy};
use crate::scope::ExchangeTasks;
use crate::tls::{Facts, QuicError, Tls, negotiated};

pub use marks::Timings;

/// Bounds on what a server may answer.
const HEADERS: usize = 100;
const HEADER_BYTES: usize = 64 << 10;
pub const BODY_BYTES: u64 = 64 << 20;
pub const DECODED_BYTES: u64 = 10 << 20;

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
    pub family: Family,
    pub verify_tls: bool,
    pub keep_body: usize,
    pub timeout: Duration,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub reason: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub remote: SocketAddr,
    pub timings: Timings,
    pub tls: Option<Facts>,
    pub body: Taken,
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

#[derive(Debug)]
pub struct Failure {
    pub kind: FailureKind,
    pub reason: String,
    pub remote: Option<IpAddr>,
    pub timings: Timings,
    pub tls: Option<Facts>,
}

/// A step's failure, before what is known about the whole exchange is added.
struct Step(FailureKind, String);

impl From<LookupError> for Step {
    fn from(error: LookupError) -> Self {
        // A lookup that takes too long is the name's failure, as curl has it (6), not the target's (28).
        Self(FailureKind::Name, error.to_string())
    }
}

impl From<DialError> for Step {
    fn from(error: DialError) -> Self {
        let kind = match &error {
            DialError::Denied(_) => FailureKind::Denied,
            DialError::Failed { error, .. } if is_local(error) => FailureKind::Unavailable,
            DialError::Failed { .. } => FailureKind::Connect,
        };
        Self(kind, error.to_string())
    }
}

impl From<QuicError> for Step {
    fn from(error: QuicError) -> Self {
        match error {
            QuicError::Certificate(words) => Self(FailureKind::Certificate, words),
            QuicError::Handshake(words) => Self(FailureKind::Handshake, format!("QUIC handshake failed: {words}")),
            QuicError::Host(error) => Self(FailureKind::Unavailable, format!("QUIC socket: {}", description(&error))),
            QuicError::Connect(words) => Self(FailureKind::Connect, format!("QUIC connection failed: {words}")),
        }
    }
}

/// Makes the exchange. Dropping the future closes what it had open.
///
/// # Errors
/// See [`Failure`].
pub async fn exchange(resolver: &Resolver, tls: &Tls, policy: &Policy, request: Request) -> Result<Response, Failure> {
    let marks = Arc::new(Marks::start());
    let done = tokio::time::timeout(request.timeout, attempt(resolver, tls, policy, &request, &marks)).await;
    let step = match done {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(step)) => step,
        Err(_) => Step(FailureKind::Timeout, format!("Operation timed out after {} ms", request.timeout.as_millis())),
    };
    let remote = marks.remote().map(|remote| remote.ip());
    Err(Failure { kind: step.0, reason: step.1, remote, timings: marks.timings(), tls: marks.tls() })
}

async fn attempt(
    resolver: &Resolver,
    tls: &Tls,
    policy: &Policy,
    request: &Request,
    marks: &Arc<Marks>,
) -> Result<Response, Step> {
    let invalid = |words: &str| Step(FailureKind::Invalid, words.into());
    let secure = request.url.scheme() == "https";
    let port = request.url.port_or_known_default().ok_or_else(|| invalid("the URL has no port"))?;
    let (host, literal) = match request.url.host() {
        Some(url::Host::Domain(name)) => (name.to_owned(), None),
        Some(url::Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address))),
        Some(url::Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address))),
        None => return Err(invalid("the URL has no host")),
    };
    let name = literal.is_none().then_some(host.as_str());
    let addresses = if let Some(address) = request.resolve.or(literal) {
        vec![address]
    } else {
        let found = resolver.lookup(&host, request.family).await?;
        marks.resolved();
        found
    };
    // A name opens only what it resolves to, not an address that the caller put in its place.
    let name_vetted = name.filter(|_| request.resolve.is_none());
    let open = dial::vet(policy, &addresses, name_vetted).map_err(DialError::from)?;
    // Without this a packet that never left would read as the target's silence.
    if !open.iter().any(|permitted| has_route(permitted.address())) {
        return Err(Step(FailureKind::Unavailable, "This host has no route to the target.".into()));
    }
    if request.version == Version::Http3 {
        return v3::exchange(tls, &open, port, &host, request, marks).await;
    }
    let (stream, remote) = dial::dial(&open, port).await?;
    marks.connected(remote);
    if !secure {
        return h1(Marked::new(stream, marks), request, marks, remote, None).await;
    }
    let alpn: &[&str] = match request.version {
        Version::Http2 => &["h2", "http/1.1"],
        Version::Http10 => &["http/1.0"],
        _ => &["http/1.1"],
    };
    let handshake =
        |error: &dyn std::fmt::Display| Step(FailureKind::Handshake, format!("TLS handshake failed: {error}"));
    let (config, witness) = tls.client(alpn, request.verify_tls).map_err(|e| handshake(&e))?;
    let server_name = ServerName::try_from(host).map_err(|e| handshake(&e))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(server_name, stream).await;
    let facts = witness.facts();
    marks.secured(facts.clone());
    let stream = connected.map_err(|error| match witness.refusal() {
        Some(refusal) => Step(FailureKind::Certificate, refusal),
        None => handshake(&error),
    })?;
    let facts = negotiated(stream.get_ref().1, facts.unwrap_or_default());
    marks.secured(Some(facts.clone()));
    if facts.alpn.as_deref() == Some("h2") {
        h2(Marked::new(stream, marks), request, marks, remote, facts).await
    } else {
        h1(Marked::new(stream, marks), request, marks, remote, Some(facts)).await
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

fn absolute(url: &Url) -> Result<Uri, Step> {
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    Uri::builder()
        .scheme(url.scheme())
        .authority(authority(url))
        .path_and_query(path)
        .build()
        .map_err(|error| Step(FailureKind::Invalid, format!("the URL cannot be sent: {error}")))
}

async fn h1<S>(
    io: Marked<S>,
    request: &Request,
    marks: &Arc<Marks>,
    remote: SocketAddr,
    tls: Option<Facts>,
) -> Result<Response, Step>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| hyper_step(&error, marks))?;
    let path = &request.url[url::Position::BeforePath..url::Position::AfterQuery];
    let uri = path.parse().map_err(|error| Step(FailureKind::Invalid, format!("the URL cannot be sent: {error}")))?;
    let version = if request.version == Version::Http10 { http::Version::HTTP_10 } else { http::Version::HTTP_11 };
    let mut message = message(request, uri, version);
    let host = http::HeaderValue::try_from(authority(&request.url))
        .map_err(|error| Step(FailureKind::Invalid, format!("the URL's host cannot be sent: {error}")))?;
    message.headers_mut().insert(http::header::HOST, host);
    let work = async {
        marks.asking();
        let response = sender.send_request(message).await.map_err(|error| hyper_step(&error, marks))?;
        marks.answering();
        take(response, request, marks, remote, tls).await
    };
    alongside(connection, work).await
}

async fn h2<S>(
    io: Marked<S>,
    request: &Request,
    marks: &Arc<Marks>,
    remote: SocketAddr,
    tls: Facts,
) -> Result<Response, Step>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (tied, _end) = ExchangeTasks::new();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(tied)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| hyper_step(&error, marks))?;
    let message = message(request, absolute(&request.url)?, http::Version::HTTP_2);
    let work = async {
        marks.asking();
        let response = sender.send_request(message).await.map_err(|error| hyper_step(&error, marks))?;
        marks.answering_now();
        take(response, request, marks, remote, Some(tls)).await
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

async fn take(
    response: http::Response<hyper::body::Incoming>,
    request: &Request,
    marks: &Arc<Marks>,
    remote: SocketAddr,
    tls: Option<Facts>,
) -> Result<Response, Step> {
    let (head, mut incoming) = response.into_parts();
    bounded(&head.headers)?;
    let mut taking = body::Taking::new(&head.headers, request.keep_body);
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| hyper_step(&error, marks))?;
        if let Ok(data) = frame.into_data() {
            taking.add(&data).await?;
        }
    }
    marks.finished();
    let version = match head.version {
        http::Version::HTTP_10 => Version::Http10,
        http::Version::HTTP_2 => Version::Http2,
        _ => Version::Http11,
    };
    Ok(Response {
        status: head.status.as_u16(),
        reason: reason_phrase(&head),
        version,
        headers: head.headers,
        remote,
        timings: marks.timings(),
        tls,
        body: taking.end().await,
    })
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

fn headers_too_large() -> Step {
    Step(FailureKind::TooLarge, format!("response headers pass {} KiB or {HEADERS} fields", HEADER_BYTES >> 10))
}

/// The codecs stop at about these bounds, each in its own way; this is the exact one.
fn bounded(headers: &HeaderMap) -> Result<(), Step> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > HEADER_BYTES || headers.len() > HEADERS { Err(headers_too_large()) } else { Ok(()) }
}

fn hyper_step(error: &hyper::Error, marks: &Marks) -> Step {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    if error.is_parse_too_large() {
        return headers_too_large();
    }
    if error.is_parse() {
        return Step(FailureKind::Receive, format!("the answer is not HTTP: {error}"));
    }
    if error.is_incomplete_message() && !marks.anything_read() {
        return Step(FailureKind::EmptyReply, "Empty reply from server".into());
    }
    Step(FailureKind::Receive, format!("Failure when receiving data from the peer: {cause}"))
}

fn h3_target(open: &[Permitted]) -> Result<Permitted, Step> {
    open.first().copied().ok_or_else(|| Step(FailureKind::Connect, "no address to connect to".into()))
}
