//! A SOCKS5 proxy on loopback (RFC 1928) through which a browser reaches the network. It looks the name up once, asks the
//! policy, and dials that very address, so that no answer of a name server and no redirect leads past the policy; and it
//! keeps a record of each connection, because the browser sees only the proxy.
//!
//! Only that browser may use it: connections of other processes on this host are refused, since the policy may open
//! more than others on this host may reach. Neither browser can be given a password for a SOCKS proxy, so the process
//! that made the connection decides.

pub mod message;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::supervisor::ParentPipe;
use crate::FamilyFilter;
use crate::address::attempts::{Attempt, Attempts};
use crate::address::dial::{self, PlanError};
use crate::address::{Resolved, Resolver};
use crate::name::canonical_host;
use crate::os_error::is_local;
use crate::policy::{Names, Policy};
use message::{Invalid, Target};

/// A handshake with the proxy takes no time; a connection to the target may.
const HANDSHAKE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(30);
/// What one page may load, over all of its connections, in both directions.
const PAGE_BYTES: u64 = 64 << 20;
/// Connections that one page may make, and have concurrently. Requests are bounded where they are seen, and that bound
/// must be passed first, with a connection for each of them; this one is for what is no request, such as websockets.
pub const CONNECTIONS: usize = 4000;
pub const AT_ONCE: usize = 256;
const CHUNK: usize = 64 << 10;

/// Why a connection did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    Denied(String),
    Name(String),
    Connect(String),
    Timeout(String),
    /// This host's own trouble.
    Unavailable(String),
    TooMany,
}

impl Cause {
    /// RFC 1928, section 6.
    fn reply(&self) -> u8 {
        match self {
            Self::Unavailable(_) => 1,
            Self::Denied(_) | Self::TooMany => 2,
            Self::Name(_) => 4,
            Self::Connect(_) => 5,
            Self::Timeout(_) => 6,
        }
    }
}

/// One connection that the browser asked for.
#[derive(Debug, Clone)]
pub struct Record {
    pub host: String,
    pub port: u16,
    /// Milliseconds since the epoch at which the browser asked.
    pub asked_ms: f64,
    /// Of the name lookup; None for a literal address.
    pub dns_ms: Option<f64>,
    /// Of the TCP handshake.
    pub connect_ms: Option<f64>,
    pub address: Option<IpAddr>,
    /// The attempts to connect, in the order in which they began; their times count from when the browser asked.
    pub attempts: Vec<Attempt>,
    pub cause: Option<Cause>,
}

/// What one page does on the network, and how it is stopped.
#[derive(Default)]
pub struct Visit {
    records: Mutex<Vec<Record>>,
    /// In both directions.
    bytes: AtomicU64,
    /// From targets.
    received: AtomicU64,
    open: AtomicUsize,
    /// When the page wanted one connection more than it may make.
    crowded: OnceLock<Instant>,
    /// Which limit of this host the page has passed. Set before its connections break: what breaks then is not the
    /// target's doing.
    limit: OnceLock<String>,
    /// The supervisor does not answer, so that no connection is known to be the browser's.
    pub unsupervised: AtomicBool,
    /// Dropping the visit cancels it; so does passing a limit.
    over: CancellationToken,
}

impl Visit {
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().clone()
    }

    /// Bytes that came from targets.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Has the page passed a limit, and which?
    pub fn limit(&self) -> Option<&str> {
        self.limit.get().map(String::as_str)
    }

    /// For how long has the page wanted more connections than it may make? They wait: events of its
    /// requests arrive later than its connections, and decide which limit the page has passed.
    pub fn crowded(&self) -> Option<Duration> {
        self.crowded.get().map(Instant::elapsed)
    }

    pub fn stop(&self, limit: String) {
        let _ = self.limit.set(limit);
        self.over.cancel();
    }

    /// As [`count`](Self::count), for bytes that came from a target.
    fn receive(&self, bytes: usize) -> bool {
        self.received.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.count(bytes)
    }

    /// False: they are too many.
    fn count(&self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= PAGE_BYTES {
            return true;
        }
        self.stop(format!("it loads more than {} MiB", PAGE_BYTES >> 20));
        false
    }
}

/// The page that may use the proxy now.
type Visiting = Arc<Mutex<Option<Arc<Visit>>>>;

/// Connections are refused while no page is being loaded.
pub struct SocksProxy {
    /// Of the operator's range; for pages.
    pub port: u16,
    /// Of the kernel's choice. All of a browser but its pages is led here, and nothing is served: what it does on its own
    /// account (updates, suggestions, telemetry) gets no further.
    pub own_port: u16,
    visiting: Visiting,
    /// Who knows which connections are the browser's.
    browser: Arc<OnceLock<Arc<ParentPipe>>>,
    _serve: [AbortOnDropHandle<()>; 2],
}

impl SocksProxy {
    /// `lease` is dropped when the port is closed again.
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub async fn open<T: Send + 'static>(
        port: u16,
        lease: T,
        resolver: Arc<Resolver>,
        policy: Arc<Policy>,
    ) -> Result<Self, (std::io::Error, T)> {
        let bound = async {
            let page = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
            let own = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let own_port = own.local_addr()?.port();
            Ok((page, own, own_port))
        };
        let (page, own, own_port) = match bound.await {
            Ok(bound) => bound,
            Err(error) => return Err((error, lease)),
        };
        let (visiting, browser) = (Visiting::default(), Arc::default());
        let listener =
            Listener { port, visiting: Arc::clone(&visiting), browser: Arc::clone(&browser), resolver, policy };
        let serve = [tokio::spawn(listener.serve(page, lease)), tokio::spawn(refuse(own))];
        Ok(Self { port, own_port, visiting, browser, _serve: serve.map(AbortOnDropHandle::new) })
    }

    /// From now on the proxy serves the browser that this supervisor has started.
    pub fn serve(&self, browser: Arc<ParentPipe>) {
        let _ = self.browser.set(browser);
    }

    /// Serves one page.
    #[must_use]
    pub fn admit(&self) -> Admission<'_> {
        let visit = Arc::<Visit>::default();
        *self.visiting.lock() = Some(Arc::clone(&visit));
        Admission { visiting: &self.visiting, visit }
    }
}

/// While it is held, the page is served. Afterwards its connections are closed.
pub struct Admission<'a> {
    visiting: &'a Visiting,
    pub visit: Arc<Visit>,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        *self.visiting.lock() = None;
        self.visit.over.cancel();
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn refuse(listener: TcpListener) {
    loop {
        drop(accept(&listener).await);
    }
}

/// What each connection needs.
#[derive(Clone)]
struct Listener {
    port: u16,
    visiting: Visiting,
    browser: Arc<OnceLock<Arc<ParentPipe>>>,
    resolver: Arc<Resolver>,
    policy: Arc<Policy>,
}

impl Listener {
    async fn serve<T: Send>(self, listener: TcpListener, lease: T) {
        // Dropped in this order.
        let held = (listener, lease);
        loop {
            let (stream, peer) = accept(&held.0).await;
            let Some(visit) = self.visiting.lock().clone() else { continue };
            let Some(browser) = self.browser.get().cloned() else { continue };
            let own = self.clone();
            tokio::spawn(async move {
                let over = visit.over.clone();
                let served = async {
                    let started = Instant::now();
                    let is_browser = browser.owns(peer.port(), own.port).await;
                    tracing::trace!(took = ?started.elapsed(), is_browser, "owner of a connection");
                    match is_browser {
                        Some(true) => own.connection(stream, &visit).await,
                        Some(false) => {
                            tracing::debug!(port = own.port, %peer, "SOCKS connection of another process refused");
                        }
                        None => visit.unsupervised.store(true, Ordering::Relaxed),
                    }
                };
                let _ = over.run_until_cancelled(served).await;
            });
        }
    }

    async fn connection(&self, mut browser: TcpStream, visit: &Visit) {
        // Small writes leave immediately: a delayed one would be measured as the target's time.
        let _ = browser.set_nodelay(true);
        let asked = tokio::time::timeout(HANDSHAKE, handshake(&mut browser)).await;
        let Ok(Ok(Target { host, port })) = asked else { return };
        // Browsers write one address in different ways.
        let host = canonical_host(&host);
        let mut record = Record {
            host: host.clone(),
            port,
            asked_ms: unix_ms(),
            dns_ms: None,
            connect_ms: None,
            address: None,
            attempts: vec![],
            cause: None,
        };
        let place = {
            let mut records = visit.records.lock();
            (records.len() < CONNECTIONS).then(|| {
                records.push(record.clone());
                records.len() - 1
            })
        };
        let Some(place) = place else {
            visit.crowded.get_or_init(Instant::now);
            // Until the page is stopped.
            return std::future::pending().await;
        };
        let open = visit.open.fetch_add(1, Ordering::Relaxed);
        let connected = if open >= AT_ONCE { Err(Cause::TooMany) } else { self.connect(&mut record).await };
        record.cause = connected.as_ref().err().cloned();
        tracing::debug!(host, port, address = ?record.address, cause = ?record.cause, "SOCKS connection");
        if let Some(kept) = visit.records.lock().get_mut(place) {
            *kept = record;
        }
        let reply = connected.as_ref().err().map_or(0, Cause::reply);
        let answered = browser.write_all(&message::reply(reply)).await;
        if let (Ok(()), Ok(mut target)) = (answered, connected) {
            let (mut from_browser, mut to_browser) = browser.split();
            let (mut from_target, mut to_target) = target.split();
            let there = pass(&mut from_browser, &mut to_target, |bytes| visit.count(bytes));
            let back = pass(&mut from_target, &mut to_browser, |bytes| visit.receive(bytes));
            // What breaks on one side must look broken on the other one, not ended.
            if tokio::try_join!(there, back).is_err() {
                for stream in [&browser, &target] {
                    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
                }
            }
        }
        visit.open.fetch_sub(1, Ordering::Relaxed);
    }

    async fn connect(&self, record: &mut Record) -> Result<TcpStream, Cause> {
        let literal = record.host.parse::<IpAddr>().ok();
        let started = Instant::now();
        let found = if let Some(address) = literal {
            Resolved { addresses: vec![address], names: Names::default() }
        } else {
            let found = self.resolver.lookup(&record.host, FamilyFilter::Any).await;
            record.dns_ms = Some(ms(started.elapsed()));
            found.map_err(|error| Cause::Name(error.to_string()))?
        };
        let open = dial::plan(&self.policy, &found).map_err(|error| match error {
            PlanError::Denied(denied) => Cause::Denied(denied.to_string()),
            PlanError::NoRoute => Cause::Unavailable(error.to_string()),
        })?;
        let attempts = Attempts::since(started);
        let connected = tokio::time::timeout(CONNECT, dial::tcp(&open, record.port, &attempts)).await;
        record.attempts = attempts.list();
        record.address = attempts.remote().map(|address| address.ip());
        record.connect_ms = attempts.connected().map(|(from, to)| ms(to.saturating_sub(from)));
        match connected {
            Ok(Ok((stream, _))) => Ok(stream),
            Ok(Err(Some((error, address)))) => {
                let reason = format!("Failed to connect to {address}: {error}");
                Err(if is_local(&error.0) { Cause::Unavailable(reason) } else { Cause::Connect(reason) })
            }
            Ok(Err(None)) => Err(Cause::Connect("no address to connect to".into())),
            Err(_) => Err(Cause::Timeout(format!("No connection to {} within {} s", record.host, CONNECT.as_secs()))),
        }
    }
}

/// RFC 1928, sections 3 and 4: no authentication, CONNECT. A client waits for each answer, so that nothing may follow.
async fn handshake(stream: &mut TcpStream) -> std::io::Result<Target> {
    read(stream, message::GREETING_BYTES, |bytes| Ok(message::greeting(bytes)?.map(|length| ((), length)))).await?;
    stream.write_all(&message::ACCEPTED).await?;
    read(stream, message::REQUEST_BYTES, message::request).await
}

async fn read<T>(
    stream: &mut TcpStream,
    most: usize,
    parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, Invalid>,
) -> std::io::Result<T> {
    let invalid = |_| std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut bytes = Vec::with_capacity(most);
    loop {
        if bytes.len() >= most || stream.read_buf(&mut bytes).await? == 0 {
            return Err(invalid(Invalid));
        }
        if let Some((parsed, length)) = parse(&bytes).map_err(invalid)? {
            return if length == bytes.len() { Ok(parsed) } else { Err(invalid(Invalid)) };
        }
    }
}

/// Hands bytes on until their end, and the end too. `may` counts them.
async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    may: impl Fn(usize) -> bool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            count if may(count) => to.write_all(&buffer[..count]).await?,
            _ => return Err(std::io::Error::other("the page is over its limit")),
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Now, in milliseconds since the epoch.
pub fn unix_ms() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_came_is_known_when_a_page_is_stopped() {
        let visit = Visit::default();
        let (mut from_target, mut target) = tokio::io::duplex(CHUNK);
        let (mut to_browser, mut browser) = tokio::io::duplex(CHUNK);
        tokio::spawn(async move { while target.write_all(&[0; 4096]).await.is_ok() {} });
        tokio::spawn(async move { while browser.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {} });
        assert!(visit.count(1000), "to the target");
        let passed = pass(&mut from_target, &mut to_browser, |bytes| visit.receive(bytes)).await;
        assert!(passed.is_err() && visit.limit().is_some());
        assert!((PAGE_BYTES - 1000..PAGE_BYTES + 100_000).contains(&visit.received()), "{}", visit.received());
    }
}
