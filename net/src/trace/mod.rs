//! Probes with a limited time to live, and their answers.
//!
//! With `CAP_NET_RAW` the packets are built here and sent through raw sockets: all probes of a flow share addresses and
//! ports, and differ in fields that routers do not choose a path by. Without it the kernel builds them, and returns the
//! ICMP errors that they cause through error queues (`IP_RECVERR`).

mod datagram;
mod matching;
mod pace;
mod probe;
mod raw;

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::Family;
use crate::dns::{AskError, Query};
use crate::lag::LagMonitor;
use crate::packet::opener::Opener;
use crate::packet::receiver::IcmpReceiver;
use crate::packet::route::{is_no_route, source_address};
use crate::packet::{Mode, StartError, icmp, quoted};
use crate::policy::Permitted;
use crate::rate::Rate;
use crate::series::{Arrival, Event, Schedule, Series, SeriesTask};
use matching::ProbeTable;
use pace::Adaptive;
use probe::{Template, Transport, UDP_PAYLOAD};

pub use probe::ProbePacket;

/// Sockets of all traces together in datagram mode, where each TCP or UDP probe needs its own.
const MAX_DATAGRAM_SOCKETS: usize = 512;

/// What the probes are.
#[derive(Debug, Clone)]
pub enum Protocol {
    /// Echo requests.
    Icmp,
    /// SYN segments to this port.
    Tcp(u16),
    /// Datagrams to this port.
    Udp(u16),
    /// DNS queries over UDP to port 53.
    Dns(crate::dns::Question),
}

/// Parameters of a trace.
#[derive(Debug, Clone)]
pub struct TraceParameters {
    pub protocol: Protocol,
    /// In the order in which they are sent.
    pub packets: Vec<ProbePacket>,
    /// Bytes behind the ICMP, TCP or UDP header; not used for DNS.
    pub payload_size: u16,
    /// From one probe to the next at least: a trace waits for what it learns from answers.
    pub interval: Duration,
    /// For each answer at most.
    pub timeout: Duration,
}

/// The answer to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResponse {
    pub kind: ResponseKind,
    /// False when the answer may be to a retransmission of the probe: its round-trip time is unknown (Karn's algorithm,
    /// RFC 6298, section 3).
    pub rtt_valid: bool,
}

/// What answered a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseKind {
    /// Extensions are None where the kernel does not pass them on.
    Icmp(icmp::ErrorKind, Option<quoted::Extensions>),
    EchoReply,
    SynAck,
    Reset,
    Datagram,
    Dns {
        /// 0–15.
        rcode: u8,
    },
}

impl From<ResponseKind> for ProbeResponse {
    fn from(kind: ResponseKind) -> Self {
        Self { kind, rtt_valid: true }
    }
}

/// What is known of a trace before the first answer.
#[derive(Debug, Clone, Copy)]
pub struct TraceProperties {
    pub mode: Mode,
    /// Bytes of payload in each probe.
    pub payload_size: u16,
    /// Bytes of each IP packet, before fragmentation.
    pub packet_size: u32,
    /// Do all probes of one flow have in common what paths are chosen by?
    pub constant_flow: bool,
}

/// Why a trace could not start.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TraceError {
    #[error(transparent)]
    Start(#[from] StartError),
    /// The DNS question cannot be encoded.
    #[error(transparent)]
    Question(#[from] AskError),
}

/// Probes under way; dropping it ends them.
pub struct Trace {
    pub properties: TraceProperties,
    ttl_limit: watch::Sender<u8>,
    task: SeriesTask,
}

impl Trace {
    /// Once the events have ended: did the engine panic?
    pub async fn has_panicked(&mut self) -> bool {
        self.task.has_panicked().await
    }

    /// Abandons probes with a higher TTL than this. A limit is never raised again.
    pub fn limit_ttl(&self, max_ttl: u8) {
        self.ttl_limit.send_if_modified(|limit| {
            let is_lower = max_ttl < *limit;
            *limit = max_ttl.min(*limit);
            is_lower
        });
    }
}

/// The engine: both families.
pub struct Tracer {
    v4: Option<Arc<raw::RawSockets>>,
    v6: Option<Arc<raw::RawSockets>>,
    datagram_sockets: Arc<Semaphore>,
}

impl Tracer {
    /// `receiver` is the shared receiver of a family, where there is one: raw mode needs it. Must be called on the I/O
    /// runtime, and on a thread with `CAP_NET_RAW`.
    #[must_use]
    pub(crate) fn open(receiver: impl Fn(Family) -> Option<Arc<IcmpReceiver>>) -> Self {
        let opener = OnceCell::new();
        let open = |family| {
            let receiver = receiver(family)?;
            let opener = opener.get_or_init(|| Opener::start().map(Arc::new)).as_ref().ok()?;
            raw::RawSockets::open(family, receiver, Arc::clone(opener)).ok().map(Arc::new)
        };
        Self {
            v4: open(Family::V4),
            v6: open(Family::V6),
            datagram_sockets: Arc::new(Semaphore::new(MAX_DATAGRAM_SOCKETS)),
        }
    }

    /// Starts sending. Must be called on the I/O runtime.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub async fn start(
        &self,
        target: Permitted,
        parameters: &TraceParameters,
        rate: Rate,
        lag: &LagMonitor,
    ) -> Result<(Trace, mpsc::UnboundedReceiver<Event<ProbeResponse>>), TraceError> {
        let raw = match Family::of(target.address()) {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let template = template(target, parameters, raw.is_some())?;
        let schedule = Schedule {
            count: u32::try_from(parameters.packets.len()).unwrap_or(u32::MAX),
            timeout: parameters.timeout,
        };
        let (events, received) = mpsc::unbounded_channel();
        let pace = Adaptive::new(&parameters.packets, target.address(), parameters.interval, Some(lag.watch()));
        let series = Series::new(schedule, pace, rate, events);
        let (ttl_limit, limit) = watch::channel(u8::MAX);
        let (properties, task) = if let Some(sockets) = raw {
            let channel = raw::RawChannel::open(Arc::clone(sockets), template, &parameters.packets, limit).await?;
            (channel.properties, SeriesTask::spawn(series, channel))
        } else {
            let permits = Arc::clone(&self.datagram_sockets);
            let (packets, timeout) = (&parameters.packets, parameters.timeout);
            let channel = datagram::DatagramChannel::open(permits, template, packets, timeout, limit)?;
            (channel.properties(), SeriesTask::spawn(series, channel))
        };
        Ok((Trace { properties, ttl_limit, task }, received))
    }
}

fn template(target: Permitted, parameters: &TraceParameters, raw: bool) -> Result<Template, TraceError> {
    let (transport, port, question) = match &parameters.protocol {
        Protocol::Icmp => (Transport::Icmp, 0, None),
        Protocol::Tcp(port) => (Transport::Tcp, *port, None),
        Protocol::Udp(port) => (Transport::Udp, *port, None),
        Protocol::Dns(question) => (Transport::Udp, crate::dns::Transport::Udp.port(), Some(Query::of(question)?)),
    };
    let payload_size = match &question {
        Some(question) => question.bytes.len(),
        // A connecting socket sends no payload.
        None if transport == Transport::Tcp && !raw => 0,
        None if transport == Transport::Udp && raw => UDP_PAYLOAD.max(parameters.payload_size.into()),
        None => parameters.payload_size.into(),
    };
    // Connecting to port 0 fails.
    let source = source_address(target.socket_address(port.max(1))).map_err(|error| {
        if is_no_route(&error) { StartError::no_route() } else { StartError::no_socket("UDP", &error) }
    })?;
    Ok(Template { transport, source, target: target.socket_address(port), payload_size, question })
}

fn properties(mode: Mode, probes: &ProbeTable) -> TraceProperties {
    TraceProperties {
        mode,
        payload_size: u16::try_from(probes.template.payload_size).unwrap_or(u16::MAX),
        packet_size: probes.template.packet_size(),
        constant_flow: probes.has_constant_flows(),
    }
}

fn arrival(
    index: u32,
    source: IpAddr,
    timestamp: Option<Duration>,
    response: impl Into<ProbeResponse>,
) -> Arrival<ProbeResponse> {
    Arrival { index, source, timestamp, settles: true, response: response.into() }
}

/// The next arrival of a channel, or None when the TTL limit has changed.
async fn next_arrival(
    arrivals: &mut mpsc::Receiver<Arrival<ProbeResponse>>,
    ttl_limit: &mut watch::Receiver<u8>,
) -> Option<Arrival<ProbeResponse>> {
    tokio::select! {
        arrival = arrivals.recv() => arrival,
        changed = ttl_limit.changed() => {
            if changed.is_err() {
                // The trace is gone: the limit is final.
                return arrivals.recv().await;
            }
            None
        }
    }
}

fn is_within(probes: &ProbeTable, index: u32, ttl_limit: &watch::Receiver<u8>) -> bool {
    probes.probe(index).is_some_and(|probe| probe.ttl <= *ttl_limit.borrow())
}
