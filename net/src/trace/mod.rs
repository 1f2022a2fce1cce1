//! Probes with a limited time to live, and what answers them.
//!
//! With `CAP_NET_RAW` the packets are built here and sent through raw sockets: all probes of a flow share addresses and
//! ports, and are told apart by what routers do not choose a path by. Without it the kernel builds them, and hands
//! back the errors that they cause through error queues (`IP_RECVERR`).

mod packets;
mod raw;
mod sockets;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use socket2::Protocol;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::dns::{AskError, Query};
use crate::packet::options::Fragments;
use crate::packet::receiver::Receiver;
use crate::packet::route::has_route;
use crate::packet::sender::Sender;
use crate::packet::{Mode, StartError, icmp, quoted};
use crate::policy::Permitted;
use crate::series::{Arrival, Event, Rate, SERIES_ROOM, Schedule, Series};
use packets::{Packets, Shape, Transport};

/// Sockets that all traces together may have open in datagram mode, where a probe needs one of its own.
const SOCKETS: usize = 512;

pub use packets::Probe;

/// What the probes are.
#[derive(Debug, Clone)]
pub enum Carrier {
    Icmp,
    Tcp(u16),
    Udp(u16),
    Dns(crate::dns::Question),
}

/// What to send.
#[derive(Debug, Clone)]
pub struct Plan {
    pub carrier: Carrier,
    pub probes: Vec<Probe>,
    pub payload_size: u16,
    pub interval: Duration,
    pub timeout: Duration,
}

/// What answered a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct What {
    pub answer: Answer,
    /// False: the answer may be to a repetition of the probe, and its time says nothing.
    pub timed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Extensions are unknown where the kernel does not hand them over.
    Icmp(icmp::Kind, Option<quoted::Extensions>),
    EchoReply,
    SynAck,
    Reset,
    Datagram,
    Dns {
        rcode: u8,
    },
}

impl From<Answer> for What {
    fn from(answer: Answer) -> Self {
        Self { answer, timed: true }
    }
}

/// What is known before the first answer.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub mode: Mode,
    pub payload_size: u16,
    pub packet_size: u32,
    pub constant_flow: bool,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum TraceError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Question(#[from] AskError),
}

/// Probes under way; dropping it ends them.
pub struct Trace {
    pub facts: Facts,
    keep: watch::Sender<u8>,
    _task: AbortOnDropHandle<()>,
}

impl Trace {
    /// Gives up probes with a higher TTL than this.
    pub fn keep(&self, max_ttl: u8) {
        self.keep.send_if_modified(|kept| {
            let lower = max_ttl < *kept;
            *kept = max_ttl.min(*kept);
            lower
        });
    }
}

/// What raw mode sends and hears through, of one family.
struct Senders {
    receiver: Arc<Receiver>,
    icmp: Sender,
    udp: Sender,
    tcp: Sender,
}

/// The engine: both families.
pub struct Traces {
    v4: Option<Arc<Senders>>,
    v6: Option<Arc<Senders>>,
    sockets: Arc<Semaphore>,
}

impl Traces {
    /// Must be called on the I/O runtime.
    #[must_use]
    pub(crate) fn open(receivers: &[Option<Arc<Receiver>>; 2]) -> Self {
        let senders = |v6| {
            let receiver = Arc::clone(receivers[usize::from(v6)].as_ref()?);
            let open = |protocol| Sender::open(v6, protocol, Fragments::AtLink).ok();
            let icmp = open(if v6 { Protocol::ICMPV6 } else { Protocol::ICMPV4 })?;
            Some(Arc::new(Senders { receiver, icmp, udp: open(Protocol::UDP)?, tcp: open(Protocol::TCP)? }))
        };
        Self { v4: senders(false), v6: senders(true), sockets: Arc::new(Semaphore::new(SOCKETS)) }
    }

    /// Starts sending. Must be called on the I/O runtime.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn start(
        &self,
        target: Permitted,
        plan: &Plan,
        rate: Rate,
    ) -> Result<(Trace, mpsc::UnboundedReceiver<Event<What>>), TraceError> {
        let address = target.address();
        if !has_route(address) {
            return Err(StartError::Unreachable("This host has no route to the target.".into()).into());
        }
        let raw = if address.is_ipv6() { &self.v6 } else { &self.v4 };
        let shape = shape(target, plan, raw.is_some())?;
        let schedule = Schedule {
            count: u32::try_from(plan.probes.len()).unwrap_or(u32::MAX),
            interval: plan.interval,
            timeout: plan.timeout,
        };
        let (events, received) = mpsc::unbounded_channel();
        let series = Series::new(schedule, rate, events);
        let (keep, kept) = watch::channel(u8::MAX);
        let (facts, task) = if let Some(senders) = raw {
            let link = raw::RawLink::open(Arc::clone(senders), shape, &plan.probes, kept)?;
            (link.facts, tokio::spawn(series.run(link)))
        } else {
            let permits = Arc::clone(&self.sockets);
            let link = sockets::SocketLink::open(permits, shape, &plan.probes, plan.timeout, kept)?;
            (link.facts(), tokio::spawn(series.run(link)))
        };
        Ok((Trace { facts, keep, _task: AbortOnDropHandle::new(task) }, received))
    }
}

/// How the packets of a plan look.
fn shape(target: Permitted, plan: &Plan, raw: bool) -> Result<Shape, TraceError> {
    let target = target.address();
    let (transport, port, question) = match &plan.carrier {
        Carrier::Icmp => (Transport::Icmp, 0, None),
        Carrier::Tcp(port) => (Transport::Tcp, *port, None),
        Carrier::Udp(port) => (Transport::Udp, *port, None),
        Carrier::Dns(question) => (Transport::Udp, crate::dns::Transport::Udp.port(), Some(Query::of(question)?)),
    };
    let asked = question.as_ref().map_or(plan.payload_size, |q| u16::try_from(q.bytes.len()).unwrap_or(u16::MAX));
    // A connecting socket sends no data.
    let size = if transport == Transport::Tcp && !raw { 0 } else { asked };
    let source = source_for(SocketAddr::new(target, port.max(1)))?;
    Ok(Shape { transport, source, target, port, size: size.into(), question })
}

/// The address that this host reaches the target from. Connecting a UDP socket sends nothing.
fn source_for(target: SocketAddr) -> Result<IpAddr, StartError> {
    let any = if target.is_ipv6() { SocketAddr::from(([0_u16; 8], 0)) } else { SocketAddr::from(([0_u8; 4], 0)) };
    let source = std::net::UdpSocket::bind(any).and_then(|socket| {
        socket.connect(target)?;
        socket.local_addr()
    });
    source.map(|address| address.ip()).map_err(|error| StartError::Unavailable(format!("no UDP socket: {error}")))
}

/// A socket could not be had.
fn unavailable(what: &str, error: &std::io::Error) -> StartError {
    StartError::Unavailable(format!("no {what} socket: {error}"))
}

fn facts(mode: Mode, packets: &Packets) -> Facts {
    Facts {
        mode,
        payload_size: u16::try_from(packets.shape.size).unwrap_or(u16::MAX),
        packet_size: packets.shape.packet_size(),
        constant_flow: packets.constant_flow,
    }
}

/// Hands what arrives to a trace, and counts what this host itself had to drop, so that silence is not laid to the
/// network then.
struct Mouth {
    arrivals: mpsc::Sender<Arrival<What>>,
    dropped: AtomicU32,
}

impl Mouth {
    fn new() -> (Self, mpsc::Receiver<Arrival<What>>) {
        let (arrivals, received) = mpsc::channel(SERIES_ROOM);
        (Self { arrivals, dropped: AtomicU32::new(0) }, received)
    }

    fn tell(&self, index: u32, source: IpAddr, at: Option<Duration>, what: impl Into<What>) {
        let arrival = Arrival { index, source, at, aside: false, what: what.into() };
        if self.arrivals.try_send(arrival).is_err() {
            self.dropped(1);
        }
    }

    fn dropped(&self, packets: u32) {
        self.dropped.fetch_add(packets, Ordering::Relaxed);
    }

    fn overflow(&self) -> u32 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The next message of a link, or None when what is kept has changed.
async fn next_arrival(
    arrivals: &mut mpsc::Receiver<Arrival<What>>,
    kept: &mut watch::Receiver<u8>,
) -> Option<Arrival<What>> {
    tokio::select! {
        arrival = arrivals.recv() => arrival,
        changed = kept.changed() => {
            if changed.is_err() {
                // Nobody can change it any more.
                return arrivals.recv().await;
            }
            None
        }
    }
}
