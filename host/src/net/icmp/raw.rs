//! Raw mode: per family one receiving socket with a thread of its own that drains it without pause, and two sending
//! sockets that receive nothing (one of them forbids fragmentation), shared by all series.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::session::{Arrival, Link, What};
use super::wire::{self, Message, Secret};
use super::{Plan, StartError, options};
use crate::net::packet::{self, Stamp};
use crate::policy::Permitted;
use crate::receipts::lock;

/// Asked of the kernel for the receiver: room for 20,000 packets while the thread is not scheduled.
const RECEIVE_ROOM: usize = 16 << 20;
/// Messages of one series that wait for it; what comes while it is full counts as dropped here.
const SERIES_ROOM: usize = 4096;

pub struct Raw {
    v6: bool,
    secret: Arc<Secret>,
    plain: AsyncFd<Socket>,
    unfragmented: AsyncFd<Socket>,
    series: Mutex<Table>,
    /// Packets that the receiving socket dropped since the start.
    dropped: AtomicU32,
    count: AtomicU64,
}

#[derive(Default)]
struct Table {
    by_identifier: HashMap<u16, Entry>,
    next: u16,
}

struct Entry {
    series: u64,
    target: IpAddr,
    payload_size: usize,
    arrivals: mpsc::Sender<Arrival>,
    dropped: Arc<AtomicU32>,
}

impl Raw {
    pub fn open(v6: bool, secret: Arc<Secret>) -> std::io::Result<Arc<Self>> {
        let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let sender = |forbid| -> std::io::Result<AsyncFd<Socket>> {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            options::filter(&socket, v6, &[])?;
            options::fragmentation(&socket, v6, forbid)?;
            packet::watched(socket, Interest::WRITABLE)
        };
        let receiver = Socket::new(domain, Type::RAW, Some(protocol))?;
        options::filter(&receiver, v6, if v6 { &wire::WANTED_V6 } else { &wire::WANTED_V4 })?;
        options::tell_all(&receiver, v6)?;
        // Past the system's limit with CAP_NET_ADMIN, up to it without.
        if setsockopt(&receiver, sockopt::RcvBufForce, &RECEIVE_ROOM).is_err() {
            receiver.set_recv_buffer_size(RECEIVE_ROOM)?;
        }
        // So that the thread notices when the engine is gone.
        receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
        let raw = Arc::new(Self {
            v6,
            secret,
            plain: sender(false)?,
            unfragmented: sender(true)?,
            series: Mutex::default(),
            dropped: AtomicU32::new(0),
            count: AtomicU64::new(0),
        });
        let engine = Arc::downgrade(&raw);
        std::thread::Builder::new().name(format!("icmp{}", if v6 { 6 } else { 4 })).spawn(move || {
            let (mut buffer, mut control) = (vec![0; 65_536], packet::control_room());
            while let Some(engine) = engine.upgrade() {
                if let Ok(received) = packet::receive(&receiver, MsgFlags::empty(), &mut buffer, &mut control) {
                    engine.dropped.fetch_max(received.dropped, Ordering::Relaxed);
                    engine.dispatch(&received, &buffer[..received.length.min(buffer.len())]);
                }
            }
        })?;
        Ok(raw)
    }

    fn dispatch(&self, received: &packet::Received, packet: &[u8]) {
        let Some(source) = received.source else { return };
        let (ttl, message) = if self.v6 {
            (received.ttl, packet)
        } else {
            let Some((ttl, message)) = wire::strip_ipv4(packet) else { return };
            (Some(ttl), message)
        };
        let Some(parsed) = wire::parse(self.v6, message) else { return };
        let table = lock(&self.series);
        let (entry, arrival) = match parsed {
            Message::Reply { identifier, seq, data } => {
                let Some(entry) = table.by_identifier.get(&identifier) else { return };
                // Without room for a token the source is all that tells ours from a forger's.
                let trusted = self.secret.verifies(entry.series, entry.target, seq, entry.payload_size, data)
                    && (source == entry.target || entry.payload_size >= 16);
                if !trusted {
                    return;
                }
                let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
                (entry, Arrival { seq, source, at: received.at, what: What::Reply { ttl, length } })
            }
            Message::Error { identifier, seq, target, kind } => {
                let Some(entry) = table.by_identifier.get(&identifier).filter(|entry| entry.target == target) else {
                    return;
                };
                (entry, Arrival { seq, source, at: received.at, what: What::Error(kind) })
            }
        };
        if entry.arrivals.try_send(arrival).is_err() {
            entry.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Joins a series: its identifier comes from the set of free ones, in turn, so that one is used again as late as
    /// possible; random ones collide at some hundred series (the birthday problem).
    pub fn attach(self: &Arc<Self>, target: Permitted, plan: &Plan) -> Result<RawLink, StartError> {
        let series = self.count.fetch_add(1, Ordering::Relaxed);
        let (sender, arrivals) = mpsc::channel(SERIES_ROOM);
        let dropped = Arc::new(AtomicU32::new(0));
        let entry = Entry {
            series,
            target: target.address(),
            payload_size: plan.payload_size.into(),
            arrivals: sender,
            dropped: Arc::clone(&dropped),
        };
        let mut table = lock(&self.series);
        let first = table.next;
        let mut identifier = first;
        while table.by_identifier.contains_key(&identifier) {
            identifier = identifier.wrapping_add(1);
            if identifier == first {
                return Err(StartError::Unavailable("all 65,536 ICMP identifiers are in use".into()));
            }
        }
        table.next = identifier.wrapping_add(1);
        table.by_identifier.insert(identifier, entry);
        drop(table);
        Ok(RawLink {
            raw: Arc::clone(self),
            series,
            identifier,
            target: target.address(),
            payload_size: plan.payload_size.into(),
            ttl: plan.ttl,
            dont_fragment: plan.dont_fragment,
            arrivals,
            dropped,
            dropped_before: self.dropped.load(Ordering::Relaxed),
        })
    }

    fn send(&self, socket: &Socket, packet: &[u8], target: IpAddr, ttl: Option<u8>) -> nix::Result<Stamp> {
        let address = SockaddrStorage::from(SocketAddr::new(target, 0));
        let ttl = ttl.map(i32::from);
        let control: Vec<ControlMessage> = ttl
            .iter()
            .map(|ttl| if self.v6 { ControlMessage::Ipv6HopLimit(ttl) } else { ControlMessage::Ipv4Ttl(ttl) })
            .collect();
        let parts = [IoSlice::new(packet)];
        let stamp = Stamp::now();
        sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&address))?;
        Ok(stamp)
    }
}

/// One series' end of the shared sockets. Dropping it frees the identifier.
pub struct RawLink {
    raw: Arc<Raw>,
    series: u64,
    identifier: u16,
    target: IpAddr,
    payload_size: usize,
    ttl: Option<u8>,
    dont_fragment: bool,
    arrivals: mpsc::Receiver<Arrival>,
    dropped: Arc<AtomicU32>,
    dropped_before: u32,
}

impl Drop for RawLink {
    fn drop(&mut self) {
        lock(&self.raw.series).by_identifier.remove(&self.identifier);
    }
}

impl Link for RawLink {
    async fn send(&mut self, seq: u16) -> Result<Stamp, String> {
        let data = self.raw.secret.data(self.series, self.target, seq, self.payload_size);
        let packet = wire::echo_request(self.raw.v6, self.identifier, seq, &data);
        let socket = if self.dont_fragment { &self.raw.unfragmented } else { &self.raw.plain };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
        loop {
            match self.raw.send(socket.get_ref(), &packet, self.target, self.ttl) {
                Err(nix::Error::EAGAIN) => {
                    // The send queue is full for a moment: wait for room, as a blocking send would.
                    let Ok(Ok(mut ready)) = tokio::time::timeout_at(deadline, socket.writable()).await else {
                        return Err(options::send_failure(nix::Error::EAGAIN));
                    };
                    ready.clear_ready();
                }
                Err(error) => return Err(options::send_failure(error)),
                Ok(stamp) => return Ok(stamp),
            }
        }
    }

    async fn arrival(&mut self) -> Arrival {
        match self.arrivals.recv().await {
            Some(arrival) => arrival,
            // The table holds the sender as long as this link lives.
            None => std::future::pending().await,
        }
    }

    fn overflow(&self) -> u32 {
        let kernel = self.raw.dropped.load(Ordering::Relaxed).wrapping_sub(self.dropped_before);
        kernel.saturating_add(self.dropped.load(Ordering::Relaxed))
    }
}
