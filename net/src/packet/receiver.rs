//! The receiver of raw mode: per family one socket with a thread of its own that drains it without pause, shared by
//! all series of pings and traces. Each series says by which key its messages are known, and judges them itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};

use super::icmp::{self, Key, Message};
use super::socket;
use super::{StartError, options};

/// Asked of the kernel: room for 20,000 packets while the thread is not scheduled.
const ROOM: usize = 16 << 20;

/// A message as it arrived.
pub struct Heard<'a> {
    pub source: IpAddr,
    /// The kernel's receive timestamp, since the epoch.
    pub at: Option<Duration>,
    pub ttl: Option<u8>,
    /// Bytes of the ICMP message.
    pub length: usize,
    pub message: Message<'a>,
}

/// Who wants to hear of a key. Called on the receiver's thread: must not block.
pub trait Listener: Send + Sync {
    fn heard(&self, heard: &Heard<'_>);
}

pub struct Receiver {
    v6: bool,
    table: Mutex<Table>,
    /// Packets that the socket dropped since the start.
    dropped: AtomicU32,
}

#[derive(Default)]
struct Table {
    listeners: HashMap<Key, Arc<dyn Listener>>,
    next_identifier: u16,
}

impl Receiver {
    pub fn open(v6: bool) -> std::io::Result<Arc<Self>> {
        let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        options::filter(&socket, v6, if v6 { &icmp::WANTED_V6 } else { &icmp::WANTED_V4 })?;
        options::tell_all(&socket, v6)?;
        // Past the system's limit with CAP_NET_ADMIN, up to it without.
        if setsockopt(&socket, sockopt::RcvBufForce, &ROOM).is_err() {
            socket.set_recv_buffer_size(ROOM)?;
        }
        // So that the thread notices when the engine is gone.
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let receiver = Arc::new(Self { v6, table: Mutex::default(), dropped: AtomicU32::new(0) });
        let weak = Arc::downgrade(&receiver);
        std::thread::Builder::new().name(format!("icmp{}", if v6 { 6 } else { 4 })).spawn(move || {
            crate::privilege::drop_or_warn(crate::privilege::NOTHING);
            let (mut buffer, mut control) = (vec![0; 65_536], socket::control_room());
            while let Some(receiver) = weak.upgrade() {
                if let Ok(received) = socket::receive(&socket, MsgFlags::empty(), &mut buffer, &mut control) {
                    receiver.dropped.fetch_max(received.dropped, Ordering::Relaxed);
                    receiver.dispatch(&received, &buffer[..received.length.min(buffer.len())]);
                }
            }
        })?;
        Ok(receiver)
    }

    fn dispatch(&self, received: &socket::Received, packet: &[u8]) {
        let Some(source) = received.source else { return };
        let (ttl, bytes) = if self.v6 {
            (received.ttl, packet)
        } else {
            let Some((ttl, message)) = icmp::strip_ipv4(packet) else { return };
            (Some(ttl), message)
        };
        let Some(message) = icmp::parse(self.v6, bytes) else { return };
        let Some(key) = message.key(self.v6) else { return };
        let listener = self.table.lock().listeners.get(&key).map(Arc::clone);
        // The kernel has not looked at it yet (RFC 792); of ICMPv6 it has.
        let whole = || self.v6 || pnet_packet::util::checksum(bytes, usize::MAX) == 0;
        if let Some(listener) = listener.filter(|_| whole()) {
            listener.heard(&Heard { source, at: received.at, ttl, length: bytes.len(), message });
        }
    }

    /// Packets that the socket dropped since the start; wraps.
    pub fn dropped(&self) -> u32 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// For a key that nobody else can have: a port that the caller has bound.
    pub fn claim(self: &Arc<Self>, key: Key, listener: Arc<dyn Listener>) -> Claim {
        self.table.lock().listeners.insert(key, listener);
        Claim { receiver: Arc::clone(self), key }
    }

    /// An identifier for echo requests comes from the set of free ones, in turn, so that one is used again as late as
    /// possible; random ones collide at some hundred series (the birthday problem).
    pub fn claim_identifier(self: &Arc<Self>, listener: Arc<dyn Listener>) -> Result<(u16, Claim), StartError> {
        let mut table = self.table.lock();
        let first = table.next_identifier;
        let mut identifier = first;
        while table.listeners.contains_key(&Key::Echo(identifier)) {
            identifier = identifier.wrapping_add(1);
            if identifier == first {
                return Err(StartError::Unavailable("all 65,536 ICMP identifiers are in use".into()));
            }
        }
        table.next_identifier = identifier.wrapping_add(1);
        table.listeners.insert(Key::Echo(identifier), listener);
        drop(table);
        Ok((identifier, Claim { receiver: Arc::clone(self), key: Key::Echo(identifier) }))
    }
}

/// Dropping it frees the key.
pub struct Claim {
    receiver: Arc<Receiver>,
    key: Key,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.receiver.table.lock().listeners.remove(&self.key);
    }
}
