//! Listens and serves. Not `axum::serve`: it builds hyper without a timer, so that the limit on reading a request's
//! head does nothing, and a thousand slow clients hold a thousand connections for ever.

mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use tls::Identity;

/// A request's head must have arrived after this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 1024;

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
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
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
    connections: Arc<Semaphore>,
}

/// Serves until `stop`; then finishes the requests that are being answered.
pub async fn serve(
    listening: Listening,
    router: Router,
    identity: Option<Arc<Identity>>,
    max_connections: usize,
    stop: CancellationToken,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(20)));
    let connections = Arc::new(Semaphore::new(max_connections));
    let shared = Arc::new(Shared { http, router, identity, connections });
    let listeners = listening.listeners.into_iter();
    futures_util::future::join_all(listeners.map(|listener| accept(listener, &shared, &stop))).await;
}

async fn accept(listener: TcpListener, shared: &Arc<Shared>, stop: &CancellationToken) {
    let graceful = GracefulShutdown::new();
    loop {
        // The permit first: over the limit the kernel's queue holds the rest.
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            both = async {
                let permit = Arc::clone(&shared.connections).acquire_owned().await;
                (permit, listener.accept().await)
            } => both,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: a moment later some are free again.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Answers leave at once; only a closed connection makes this fail.
        let _ = stream.set_nodelay(true);
        let (shared, watcher) = (Arc::clone(shared), graceful.watcher());
        tokio::spawn(async move {
            let Some(identity) = &shared.identity else {
                connection(stream, from, &shared, watcher).await;
                return drop(permit);
            };
            match tokio::time::timeout(HEAD_TIMEOUT, identity.acceptor().accept(stream)).await {
                Ok(Ok(stream)) => connection(stream, from, &shared, watcher).await,
                Ok(Err(error)) => tracing::debug!(%from, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%from, "no TLS handshake in time"),
            }
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn connection<S>(stream: S, from: SocketAddr, shared: &Shared, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = shared.router.clone().map_request(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        request.map(axum::body::Body::new)
    });
    let connection = shared.http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned();
    // A client that goes away in the middle is none of the server's errors.
    let _ = watcher.watch(connection).await;
}
