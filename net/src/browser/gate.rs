//! The gate: a SOCKS5 server on loopback (RFC 1928) through which a browser reaches the network. It looks the name up
//! once, asks the policy, and dials that very address, so that no answer of a name server and no redirect leads past the
//! policy; and it keeps a record of each connection, because the browser sees only the gate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::FamilyFilter;
use crate::address::Resolver;
use crate::address::dial::{self, DialError};
use crate::os_error::is_local;
use crate::packet::route::has_route;
use crate::policy::Policy;

/// A handshake with the gate takes no time; a connection to the target may.
const HANDSHAKE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(30);
/// What one page may load, over all of its connections, in both directions.
const PAGE_BYTES: u64 = 64 << 20;
/// Connections that one page may make, and have at once. Requests are bounded where they are seen, and that bound must
/// be passed first, with a connection for each of them; this one is for what is no request, such as websockets.
const CONNECTIONS: usize = 4000;
const AT_ONCE: usize = 256;
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
    pub cause: Option<Cause>,
}

/// What one page does on the network, and how it is stopped.
pub struct Visit {
    records: Mutex<Vec<Record>>,
    bytes: AtomicU64,
    open: AtomicUsize,
    /// Which limit of ours the page has passed. Said before its connections break: what breaks then is not the target's
    /// doing.
    limit: OnceLock<String>,
    /// Dropping the visit cancels it; so does passing a limit.
    over: CancellationToken,
}

impl Visit {
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().clone()
    }

    /// Has the page passed a limit, and which?
    pub fn limit(&self) -> Option<&str> {
        self.limit.get().map(String::as_str)
    }

    fn stop(&self, limit: String) {
        let _ = self.limit.set(limit);
        self.over.cancel();
    }

    fn count(&self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= PAGE_BYTES {
            return true;
        }
        self.stop(format!("it loads more than {} MiB", PAGE_BYTES >> 20));
        false
    }
}

/// Which way a browser takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A user context of the page's own leads here.
    Page,
    /// All else of the browser leads here, and what it does on its own account (updates, suggestions, telemetry) gets no
    /// further. Only the first page of a new browser does, where it is loaded in the browser's own context.
    Own,
}

/// Who may pass a door now.
type Visiting = Arc<Mutex<Option<Arc<Visit>>>>;

/// Nobody gets through while no page is being loaded.
pub struct Gate {
    /// Of the operator's range; for pages.
    pub port: u16,
    /// Of the kernel's choice; for the browser itself.
    pub own_port: u16,
    doors: [Visiting; 2],
    _serve: [AbortOnDropHandle<()>; 2],
}

impl Gate {
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
        let doors = [Visiting::default(), Visiting::default()];
        let serve = [
            serve(page, Some(lease), Arc::clone(&doors[0]), Arc::clone(&resolver), Arc::clone(&policy)),
            serve(own, None, Arc::clone(&doors[1]), resolver, policy),
        ];
        Ok(Self { port, own_port, doors, _serve: serve.map(|serve| AbortOnDropHandle::new(tokio::spawn(serve))) })
    }

    /// Opens a door for one page.
    pub fn admit(&self, door: Door) -> Admission<'_> {
        let visit = Arc::new(Visit {
            records: Mutex::default(),
            bytes: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            limit: OnceLock::new(),
            over: CancellationToken::new(),
        });
        let door = &self.doors[usize::from(door == Door::Own)];
        *door.lock() = Some(Arc::clone(&visit));
        Admission { door, visit }
    }
}

/// While it is held, the page gets through. Afterwards its connections are closed.
pub struct Admission<'a> {
    door: &'a Visiting,
    pub visit: Arc<Visit>,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        *self.door.lock() = None;
        self.visit.over.cancel();
    }
}

/// What comes while nobody may pass is closed at once.
async fn serve<T: Send>(
    listener: TcpListener,
    lease: Option<T>,
    visiting: Visiting,
    resolver: Arc<Resolver>,
    policy: Arc<Policy>,
) {
    // Dropped in this order.
    let held = (listener, lease);
    loop {
        let Ok((stream, _)) = held.0.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(visit) = visiting.lock().clone() else { continue };
        let (resolver, policy) = (Arc::clone(&resolver), Arc::clone(&policy));
        tokio::spawn(async move {
            let over = visit.over.clone();
            let _ = over.run_until_cancelled(connection(stream, &visit, &resolver, &policy)).await;
        });
    }
}

async fn connection(mut browser: TcpStream, visit: &Visit, resolver: &Resolver, policy: &Policy) {
    // Small writes at once: a delayed one would be measured as the target's time.
    let _ = browser.set_nodelay(true);
    let asked = tokio::time::timeout(HANDSHAKE, greet(&mut browser)).await;
    let Ok(Ok((host, port))) = asked else { return };
    let mut record = Record {
        host: host.clone(),
        port,
        asked_ms: unix_ms(),
        dns_ms: None,
        connect_ms: None,
        address: None,
        cause: None,
    };
    let open = visit.open.fetch_add(1, Ordering::Relaxed);
    let place = {
        let mut records = visit.records.lock();
        if records.len() >= CONNECTIONS {
            visit.stop(format!("it makes more than {CONNECTIONS} connections"));
            return;
        }
        records.push(record.clone());
        records.len() - 1
    };
    let connected = if open >= AT_ONCE { Err(Cause::TooMany) } else { connect(&mut record, resolver, policy).await };
    record.cause = connected.as_ref().err().cloned();
    tracing::debug!(host, port, address = ?record.address, cause = ?record.cause, "gate");
    if let Some(kept) = visit.records.lock().get_mut(place) {
        *kept = record;
    }
    let reply = connected.as_ref().err().map_or(0, Cause::reply);
    // The bound address is of no use to a browser: 0.0.0.0:0.
    let answered = browser.write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    if let (Ok(()), Ok(mut target)) = (answered, connected) {
        let (mut from_browser, mut to_browser) = browser.split();
        let (mut from_target, mut to_target) = target.split();
        let there = pass(&mut from_browser, &mut to_target, visit);
        let back = pass(&mut from_target, &mut to_browser, visit);
        // What breaks on one side must look broken on the other one, not ended.
        if tokio::try_join!(there, back).is_err() {
            for stream in [&browser, &target] {
                let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        }
    }
    visit.open.fetch_sub(1, Ordering::Relaxed);
}

/// Hands bytes on until their end, and the end too.
async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    visit: &Visit,
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            count if visit.count(count) => to.write_all(&buffer[..count]).await?,
            _ => return Err(std::io::Error::other("the page is over its limit")),
        }
    }
}

async fn connect(record: &mut Record, resolver: &Resolver, policy: &Policy) -> Result<TcpStream, Cause> {
    let literal = record.host.parse::<IpAddr>().ok();
    let started = Instant::now();
    let addresses = if let Some(address) = literal {
        vec![address]
    } else {
        let found = resolver.lookup(&record.host, FamilyFilter::Any).await;
        record.dns_ms = Some(ms(started.elapsed()));
        found.map_err(|error| Cause::Name(error.to_string()))?
    };
    let name = literal.is_none().then_some(record.host.as_str());
    let open = dial::vet(policy, &addresses, name).map_err(|denied| Cause::Denied(denied.to_string()))?;
    // Without this a packet that never left would read as the target's silence.
    if !open.iter().any(|permitted| has_route(permitted.address())) {
        return Err(Cause::Unavailable("This host has no route to the target.".into()));
    }
    let started = Instant::now();
    match tokio::time::timeout(CONNECT, dial::dial(&open, record.port)).await {
        Ok(Ok((stream, address))) => {
            record.connect_ms = Some(ms(started.elapsed()));
            record.address = Some(address.ip());
            Ok(stream)
        }
        Ok(Err(failed)) => {
            let words = failed.to_string();
            match failed {
                DialError::Denied(_) => Err(Cause::Denied(words)),
                DialError::Failed { error, .. } if is_local(&error) => Err(Cause::Unavailable(words)),
                DialError::Failed { address, .. } => {
                    record.address = Some(address.ip());
                    Err(Cause::Connect(words))
                }
            }
        }
        Err(_) => Err(Cause::Timeout(format!("No connection to {} within {} s", record.host, CONNECT.as_secs()))),
    }
}

/// RFC 1928, sections 3 and 4: no authentication, CONNECT.
async fn greet(stream: &mut TcpStream) -> std::io::Result<(String, u16)> {
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let [version, methods] = read::<2>(stream).await?;
    let mut offered = vec![0; methods.into()];
    stream.read_exact(&mut offered).await?;
    if version != 5 || !offered.contains(&0) {
        return Err(invalid());
    }
    stream.write_all(&[5, 0]).await?;
    let [version, command, _, kind] = read::<4>(stream).await?;
    if version != 5 || command != 1 {
        return Err(invalid());
    }
    let host = match kind {
        1 => IpAddr::from(Ipv4Addr::from(read::<4>(stream).await?)).to_string(),
        4 => IpAddr::from(Ipv6Addr::from(read::<16>(stream).await?)).to_string(),
        3 => {
            let [length] = read::<1>(stream).await?;
            let mut name = vec![0; length.into()];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| invalid())?
        }
        _ => return Err(invalid()),
    };
    Ok((host, u16::from_be_bytes(read::<2>(stream).await?)))
}

async fn read<const N: usize>(stream: &mut TcpStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Now, in milliseconds since the epoch.
pub fn unix_ms() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, ms)
}
