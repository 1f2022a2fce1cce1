//! ICMP echo. Raw sockets with one shared receiver per family where `CAP_NET_RAW` is available, otherwise a datagram
//! ICMP socket for each series; kernel receive timestamps either way.
//!
//! Why not surge-ping: it stamps replies in user space, matches them without a token in the payload, and in datagram
//! mode two series to one host collide on their sequence numbers. Why not a raw socket for each series: each of them
//! gets a copy of every ICMP packet, and a default buffer holds 256 (1,000 concurrent series: 744,000 dropped by the kernel).

mod datagram;
mod echo;
mod raw;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::Family;
use crate::packet::receiver::IcmpReceiver;
use crate::packet::route::{self, DISCARD_PORT, is_no_route};
use crate::packet::token::TokenKey;
use crate::packet::{Mode, StartError, icmp};
use crate::policy::Permitted;
use crate::rate::Rate;
use crate::series::{Event, Schedule, Series, SeriesTask, Steady};

pub use echo::seq;

/// Parameters of a series.
#[derive(Debug, Clone)]
pub struct PingParameters {
    /// Requests to send.
    pub count: u16,
    /// From one request to the next.
    pub interval: Duration,
    /// For each reply.
    pub timeout: Duration,
    /// Bytes after the 8-byte ICMP header.
    pub payload_size: u16,
    /// TTL or hop limit, 1–255; the system's default when None.
    pub ttl: Option<u8>,
    /// Forbids fragmentation, here and on the path; sets the DF bit in IPv4.
    pub dont_fragment: bool,
}

/// A message that answers an echo request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EchoResponse {
    /// `length` is that of the ICMP message, in bytes. `ttl` is None when the kernel did not report it.
    Reply { ttl: Option<u8>, length: u16 },
    /// An ICMP error that quotes the request. A reply may still come, over another path.
    Error(icmp::ErrorKind),
}

/// How one family is served on this machine.
enum SocketMode {
    Raw(Arc<raw::RawSockets>),
    /// With the reason why raw sockets are not available.
    Datagram(String),
    /// With the reason why neither is available.
    Unavailable(String),
}

/// The engine: both families.
pub struct Ping {
    v4: SocketMode,
    v6: SocketMode,
    key: Arc<TokenKey>,
}

/// A series under way; dropping it ends it.
pub struct Session {
    mode: Mode,
    task: SeriesTask,
}

impl Session {
    /// Once the events have ended: did the engine panic?
    pub async fn has_panicked(&mut self) -> bool {
        self.task.has_panicked().await
    }

    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

impl Ping {
    /// Opens the sockets that this process may open. Must be called on the I/O runtime.
    #[must_use]
    pub fn open() -> Self {
        let key = Arc::new(TokenKey::random());
        let open = |family| match raw::RawSockets::open(family, Arc::clone(&key)) {
            Ok(raw) => SocketMode::Raw(raw),
            Err(raw) => match crate::packet::datagram::check_permitted(family) {
                Ok(()) => SocketMode::Datagram(format!("no raw socket: {raw}; needs CAP_NET_RAW")),
                Err(datagram) => SocketMode::Unavailable(format!(
                    "no ICMPv{family} socket: raw ({raw}; needs CAP_NET_RAW), datagram ({datagram}; needs net.ipv4.ping_group_range to cover this group)"
                )),
            },
        };
        Self { v4: open(Family::V4), v6: open(Family::V6), key }
    }

    /// For IPv4 and IPv6: `raw`, `datagram` or None, and why it is not better.
    #[must_use]
    pub fn modes(&self) -> [(Option<&'static str>, Option<&str>); 2] {
        Family::BOTH.map(|family| match self.mode(family) {
            SocketMode::Raw(_) => (Some("raw"), None),
            SocketMode::Datagram(reason) => (Some("datagram"), Some(reason.as_str())),
            SocketMode::Unavailable(reason) => (None, Some(reason.as_str())),
        })
    }

    /// Packets that the shared receivers dropped since the start, because their buffers were full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let receivers = Family::BOTH.into_iter().filter_map(|family| self.receiver(family));
        receivers.map(|receiver| u64::from(receiver.dropped())).sum()
    }

    /// The shared receiver of a family, in raw mode.
    pub(crate) fn receiver(&self, family: Family) -> Option<&Arc<IcmpReceiver>> {
        match self.mode(family) {
            SocketMode::Raw(raw) => Some(&raw.receiver),
            _ => None,
        }
    }

    fn mode(&self, family: Family) -> &SocketMode {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Starts a series. Must be called on the I/O runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        &self,
        target: Permitted,
        parameters: &PingParameters,
        rate: Rate,
    ) -> Result<(Session, mpsc::UnboundedReceiver<Event<EchoResponse>>), StartError> {
        // Checked first, so that both modes report it alike: a failure of this host is no loss of packets.
        // When the look-up itself fails, the send reports that error.
        let route = match route::lookup(target.socket_address(DISCARD_PORT)) {
            Err(error) if is_no_route(&error) => return Err(StartError::no_route()),
            route => route.ok(),
        };
        let (events, received) = mpsc::unbounded_channel();
        let PingParameters { count, interval, timeout, .. } = *parameters;
        let series = Series::new(Schedule { count: count.into(), timeout }, Steady::new(interval), rate, events);
        let (mode, task) = match self.mode(Family::of(target.address())) {
            SocketMode::Raw(raw) => {
                (Mode::Raw, SeriesTask::spawn(series, raw.open_channel(target, parameters, route)?))
            }
            SocketMode::Datagram(_) => {
                let channel = datagram::DatagramChannel::open(target, parameters, &self.key)?;
                (Mode::Datagram, SeriesTask::spawn(series, channel))
            }
            SocketMode::Unavailable(reason) => return Err(StartError::Unavailable(reason.clone())),
        };
        Ok((Session { mode, task }, received))
    }
}
