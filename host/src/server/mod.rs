//! Listens and serves. Not `axum::serve`: it limits neither connections nor the time that they may take.

mod connections;
mod response;
mod socket;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use crate::api::{ApiError, SharedBody};
use connections::{Connections, Limits, Requests, TICK};
use response::ResponseBody;
use socket::Socket;
pub use tls::Identity;

const BACKLOG: i32 = 1024;
/// Requests under way on one HTTP/2 connection (RFC 9113, section 5.1.2, advises no fewer).
const STREAMS: u32 = 100;
/// What HTTP/2 may send before it is read: of one request's body, and of all on a connection.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
/// What one connection (HTTP/1) or stream (HTTP/2) buffers; over HTTP/1 also the longest head of a request.
const BUFFER: usize = 64 << 10;
/// Answered even on a connection beyond the limit.
const ALWAYS: [&str; 2] = ["/healthz", "/readyz"];

/// Sockets that listen.
pub struct Listening {
    listeners: Vec<TcpListener>,
    pub addresses: Vec<SocketAddr>,
}

impl Listening {
    /// Listens on every address that this machine has; an address family that it does not have is left out.
    ///
    /// # Errors
    /// When an address cannot be listened on, or none is left.
    pub fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let mut listeners = vec![];
        for address in addresses {
            match listen(*address) {
                Ok(listener) => listeners.push(listener),
                Err(error)
                    if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
                        || (address.ip().is_unspecified() && error.kind() == io::ErrorKind::AddrNotAvailable) =>
                {
                    tracing::warn!(%address, "not listening: this machine does not have that address family");
                }
                Err(error) => anyhow::bail!("cannot listen on {address} (SCOUTER_LISTEN, API_PORT): {error}"),
            }
        }
        anyhow::ensure!(!listeners.is_empty(), "nothing to listen on (SCOUTER_LISTEN)");
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        Ok(Self { listeners, addresses })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `0.0.0.0` and `::` side by side, whatever the system's default.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What all connections share.
struct Shared {
    http: auto::Builder<TokioExecutor>,
    router: Router,
    /// None: without TLS.
    identity: Option<Arc<Identity>>,
    connections: Arc<Connections>,
    stop: CancellationToken,
}

/// Serves until `stop`; then finishes the requests that are under way.
pub async fn serve(
    listening: Listening,
    router: Router,
    identity: Option<Arc<Identity>>,
    max_connections: usize,
    stop: CancellationToken,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // hyper's own limit on a head's time is also its limit on the time between requests, and begins only once it knows
    // the version of HTTP: deadlines are those of `connections`.
    http.http1().header_read_timeout(None).max_buf_size(BUFFER);
    http.http2()
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER);
    let connections = Arc::new(Connections::new(Limits::new(max_connections)));
    let _sweep = AbortOnDropHandle::new(tokio::spawn(sweep(Arc::clone(&connections))));
    let shared = Arc::new(Shared { http, router, identity, connections, stop });
    let listeners = listening.listeners.into_iter();
    futures_util::future::join_all(listeners.map(|listener| accept(listener, &shared))).await;
}

async fn sweep(connections: Arc<Connections>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        connections.sweep(Instant::now());
    }
}

async fn accept(listener: TcpListener, shared: &Arc<Shared>) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: a moment later there is one again.
                tracing::warn!(%error, "accept");
                shared.connections.evict(Instant::now());
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(ticket) = shared.connections.admit(Instant::now()) else {
            tracing::debug!(%from, "too many connections, all of them busy");
            continue;
        };
        let (shared, watcher) = (Arc::clone(shared), graceful.watcher());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = ticket.connection.closed() => {}
                () = handshake(stream, from, &shared, ticket.requests(), watcher) => {}
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// TLS, where the server speaks it; then HTTP.
async fn handshake(stream: TcpStream, from: SocketAddr, shared: &Shared, requests: Requests, watcher: Watcher) {
    let socket = Socket::new(stream, Arc::clone(&requests.connection));
    let Some(identity) = &shared.identity else { return connection(socket, from, shared, requests, watcher).await };
    tokio::select! {
        () = shared.stop.cancelled() => {}
        accepted = identity.acceptor().accept(socket) => match accepted {
            Ok(stream) => connection(stream, from, shared, requests, watcher).await,
            Err(error) => tracing::debug!(%from, %error, "no TLS handshake"),
        },
    }
}

async fn connection<S>(stream: S, from: SocketAddr, shared: &Shared, requests: Requests, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = shared.router.clone();
    let service = service_fn(move |request| respond(request, from, router.clone(), requests.clone()));
    let connection = shared.http.serve_connection(TokioIo::new(stream), service).into_owned();
    // A client that goes away in the middle is none of the server's errors.
    let _ = watcher.watch(connection).await;
}

async fn respond(
    mut request: Request<Incoming>,
    from: SocketAddr,
    router: Router,
    requests: Requests,
) -> Result<http::Response<ResponseBody>, ConnectionClosed> {
    let version = request.version();
    let exchange = requests.begin(version);
    let reserved = requests.connection.reserved();
    if !exchange.turn().await {
        return Err(ConnectionClosed);
    }
    request.extensions_mut().insert(ConnectInfo(from));
    let mut response = if reserved && !ALWAYS.contains(&request.uri().path()) {
        ApiError::Overloaded.into_response()
    } else {
        let Ok(response) = router.oneshot(request.map(axum::body::Body::new)).await;
        response
    };
    if reserved && version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let (head, body) = response.into_parts();
    let body = ResponseBody::new(body, head.extensions.get::<SharedBody>(), exchange);
    Ok(Response::from_parts(head, body))
}

/// The connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed")]
struct ConnectionClosed;
