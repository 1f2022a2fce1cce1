//! ICMP echo. Raw sockets with one shared receiver per family when `CAP_NET_RAW` is there, a datagram ICMP socket
//! per series when not; kernel receive timestamps either way.
//!
//! Why not surge-ping: it stamps replies in user space, matches them without a token in the payload, and in datagram
//! mode two series to one host collide on their sequence numbers. Why not a raw socket for each series: each of them
//! gets a copy of every ICMP packet, and a default buffer holds 256 (1,000 at once: 744,000 dropped by the kernel).

mod datagram;
mod raw;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::packet::receiver::Receiver;
use crate::packet::route::has_route;
use crate::packet::{Mode, StartError, icmp};
use crate::policy::Permitted;
use crate::series::{Event, Rate, Schedule, Series};

/// What to send.
#[derive(Debug, Clone)]
pub struct Plan {
    pub count: u16,
    pub interval: Duration,
    pub timeout: Duration,
    pub payload_size: u16,
    pub ttl: Option<u8>,
    pub dont_fragment: bool,
}

/// What a message says about an echo request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Bytes of the ICMP message.
    Reply { ttl: Option<u8>, length: u16 },
    /// An ICMP error that quotes the request. A reply may still come, over another path.
    Error(icmp::Kind),
}

/// Sequence number of a request, from 0.
#[must_use]
pub fn seq(index: u32) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

/// What a family can do on this machine.
enum Way {
    Raw(Arc<raw::Raw>),
    /// And why not raw.
    Datagram(String),
    /// And why not.
    None(String),
}

/// The engine: both families.
pub struct Ping {
    v4: Way,
    v6: Way,
    secret: Arc<icmp::Secret>,
}

/// A series under way; dropping it ends it.
pub struct Session {
    mode: Mode,
    _task: AbortOnDropHandle<()>,
}

impl Session {
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

impl Ping {
    /// Finds out what this machine allows. Must be called on the I/O runtime.
    #[must_use]
    pub fn open() -> Self {
        let secret = Arc::new(icmp::Secret::random());
        let open = |v6| match raw::Raw::open(v6, Arc::clone(&secret)) {
            Ok(raw) => Way::Raw(raw),
            Err(raw) => match crate::packet::datagram::probe(v6) {
                Ok(()) => Way::Datagram(format!("no raw socket: {raw}; needs CAP_NET_RAW")),
                Err(datagram) => Way::None(format!(
                    "no ICMPv{} socket: raw ({raw}; needs CAP_NET_RAW), datagram ({datagram}; needs net.ipv4.ping_group_range to cover this group)",
                    if v6 { 6 } else { 4 }
                )),
            },
        };
        Self { v4: open(false), v6: open(true), secret }
    }

    /// For IPv4 and IPv6: `raw`, `datagram` or nothing, and why it is not better.
    #[must_use]
    pub fn modes(&self) -> [(Option<&'static str>, Option<&str>); 2] {
        [&self.v4, &self.v6].map(|way| match way {
            Way::Raw(_) => (Some("raw"), None),
            Way::Datagram(why) => (Some("datagram"), Some(why.as_str())),
            Way::None(why) => (None, Some(why.as_str())),
        })
    }

    /// Messages that the shared receivers had no room for, since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let raw = [false, true].into_iter().filter_map(|v6| self.raw(v6));
        raw.map(|raw| u64::from(raw.receiver.dropped())).sum()
    }

    /// The shared receivers of IPv4 and IPv6, where raw mode is in use.
    #[must_use]
    pub(crate) fn receivers(&self) -> [Option<Arc<Receiver>>; 2] {
        [false, true].map(|v6| self.raw(v6).map(|raw| Arc::clone(&raw.receiver)))
    }

    fn raw(&self, v6: bool) -> Option<&Arc<raw::Raw>> {
        match if v6 { &self.v6 } else { &self.v4 } {
            Way::Raw(raw) => Some(raw),
            _ => None,
        }
    }

    /// Starts a series. Must be called on the I/O runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        &self,
        target: Permitted,
        plan: &Plan,
        rate: Rate,
    ) -> Result<(Session, mpsc::UnboundedReceiver<Event<What>>), StartError> {
        // Asked first, so that both modes say it in the same way: it is this host's trouble and nobody's loss.
        if !has_route(target.address()) {
            return Err(StartError::Unreachable("This host has no route to the target.".into()));
        }
        let way = if target.address().is_ipv4() { &self.v4 } else { &self.v6 };
        let (events, received) = mpsc::unbounded_channel();
        let schedule = Schedule { count: plan.count.into(), interval: plan.interval, timeout: plan.timeout };
        let series = Series::new(schedule, rate, events);
        let (mode, task) = match way {
            Way::Raw(raw) => {
                let link = raw.attach(target, plan)?;
                (Mode::Raw, tokio::spawn(series.run(link)))
            }
            Way::Datagram(_) => {
                let link = datagram::Datagram::open(target, plan, Arc::clone(&self.secret))?;
                (Mode::Datagram, tokio::spawn(series.run(link)))
            }
            Way::None(why) => return Err(StartError::Unavailable(why.clone())),
        };
        Ok((Session { mode, _task: AbortOnDropHandle::new(task) }, received))
    }
}
