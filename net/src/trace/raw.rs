//! Raw mode: whole packets through shared raw sockets. ICMP messages come from the shared receiver; other answers of the
//! target from the UDP sockets that are bound to the probes' ports, or from raw TCP sockets with a filter for those
//! ports. A TCP port is bound and never connected: the kernel resets what answers there, so nothing stays half open.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use pnet_packet::tcp::{TcpFlags, TcpPacket};
use socket2::{Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::matching::ProbeTable;
use super::probe::{Flows, ProbePacket, Template, Transport};
use super::{ProbeResponse, ResponseKind, TraceProperties, arrival};
use crate::Family;
use crate::packet::header::FlowLabel;
use crate::packet::icmp::{self, FlowKey, Message};
use crate::packet::opener::Opener;
use crate::packet::options::Fragmentation;
use crate::packet::receiver::{Claim, Demultiplexer, IcmpReceiver, ReceivedMessage};
use crate::packet::sender::{AwaitedDepartures, Outgoing, RawSender};
use crate::packet::socket::{self, SocketReader, Timestamp};
use crate::packet::{Mode, StartError, options};
use crate::series::{Arrival, ArrivalSink, Channel};

/// Bytes kept of a datagram from the target.
const DATAGRAM_CAPACITY: usize = 4096;
/// Bytes kept of an IP packet with a TCP segment: both headers with all options.
const SEGMENT_CAPACITY: usize = 256;

/// The shared raw sockets of one family.
pub struct RawSockets {
    receiver: Arc<IcmpReceiver>,
    icmp: RawSender,
    udp: RawSender,
    tcp: RawSender,
    opener: Arc<Opener>,
}

impl RawSockets {
    pub fn open(family: Family, receiver: Arc<IcmpReceiver>, opener: Arc<Opener>) -> std::io::Result<Self> {
        let open = |protocol| RawSender::open(family, protocol, Fragmentation::InterfaceMtu);
        Ok(Self { receiver, icmp: open(family.icmp())?, udp: open(Protocol::UDP)?, tcp: open(Protocol::TCP)?, opener })
    }
}

impl RawSockets {
    fn sender(&self, transport: Transport) -> &RawSender {
        match transport {
            Transport::Icmp => &self.icmp,
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        }
    }
}

/// One trace on the shared sockets, with the ports that it owns.
pub struct RawChannel {
    pub properties: TraceProperties,
    sockets: Arc<RawSockets>,
    demultiplexer: Arc<TraceDemultiplexer>,
    arrivals: mpsc::Receiver<Arrival<ProbeResponse>>,
    ttl_limit: watch::Receiver<u8>,
    /// Of each flow.
    labels: Vec<FlowLabel>,
    awaited: AwaitedDepartures,
    dropped_before: u32,
    _claims: Vec<Claim>,
    /// Bound TCP ports, so that no other socket gets them.
    _reserved: Vec<Socket>,
    /// Of UDP and TCP: what the target itself answers.
    receiving: Vec<Arc<AsyncFd<Socket>>>,
    _readers: JoinSet<()>,
}

/// Decides which probe of one trace a message answers.
struct TraceDemultiplexer {
    /// Set once all ports are known; no probe is sent before.
    probes: OnceLock<ProbeTable>,
    sink: ArrivalSink<ProbeResponse>,
}

impl Demultiplexer for TraceDemultiplexer {
    fn receive(&self, received: &ReceivedMessage<'_>) {
        let Some(probes) = self.probes.get() else { return };
        let (index, response) = match &received.message {
            Message::EchoReply { identifier, seq, payload } if received.source == probes.template.target.ip() => {
                (probes.echo_reply(*identifier, *seq, payload), ResponseKind::EchoReply)
            }
            Message::EchoReply { .. } => return,
            Message::Error(error) => {
                (probes.quoted(&error.quoted), ResponseKind::Icmp(error.kind, Some(error.extensions.clone())))
            }
        };
        if let Some(index) = index {
            self.sink.push(arrival(index, received.source, received.timestamp, response));
        }
    }
}

impl RawChannel {
    pub async fn open(
        sockets: Arc<RawSockets>,
        template: Template,
        packets: &[ProbePacket],
        ttl_limit: watch::Receiver<u8>,
    ) -> Result<Self, StartError> {
        let (sink, arrivals) = ArrivalSink::new();
        let demultiplexer = Arc::new(TraceDemultiplexer { probes: OnceLock::new(), sink });
        let flows = Flows::of(&template, packets, false);
        let receiver = &sockets.receiver;
        let (mut claims, mut ports, mut reserved) = (vec![], vec![], vec![]);
        let (mut receiving, mut readers) = (vec![], JoinSet::new());
        for flow in 0..flows.count() {
            let owner = Arc::clone(&demultiplexer) as Arc<dyn Demultiplexer>;
            let (port, claim) = match template.transport {
                Transport::Icmp => receiver.claim_identifier(owner)?,
                Transport::Udp => {
                    let unavailable = |error| StartError::no_socket("UDP", &error);
                    let (port, socket) = open_udp(&template).map_err(unavailable)?;
                    let socket = register(socket).map_err(unavailable)?;
                    let reader = SocketReader::new(Arc::clone(&socket), DATAGRAM_CAPACITY);
                    receiving.push(socket);
                    readers.spawn(read_datagrams(reader, flow, Arc::clone(&demultiplexer)));
                    (port, receiver.claim(FlowKey::Udp(SocketAddr::new(template.source.ip(), port)), owner))
                }
                Transport::Tcp => {
                    let unavailable = |error| StartError::no_socket("TCP", &error);
                    let (port, holder, socket) = open_tcp(&template, &sockets.opener).await.map_err(unavailable)?;
                    reserved.push(holder);
                    let socket = register(socket).map_err(unavailable)?;
                    let reader = SocketReader::new(Arc::clone(&socket), SEGMENT_CAPACITY);
                    receiving.push(socket);
                    readers.spawn(read_segments(reader, Arc::clone(&demultiplexer)));
                    (port, receiver.claim(FlowKey::Tcp(SocketAddr::new(template.source.ip(), port)), owner))
                }
            };
            ports.push(port);
            claims.push(claim);
        }
        let labels = ports.iter().map(|_| FlowLabel::random()).collect();
        let dropped_before = receiver.dropped();
        let probes = ProbeTable::new(template, packets, flows, ports);
        let properties = super::properties(Mode::Raw, &probes);
        let _ = demultiplexer.probes.set(probes);
        Ok(Self {
            properties,
            sockets,
            demultiplexer,
            arrivals,
            ttl_limit,
            labels,
            awaited: AwaitedDepartures::default(),
            dropped_before,
            _claims: claims,
            _reserved: reserved,
            receiving,
            _readers: readers,
        })
    }
}

fn register(socket: Socket) -> std::io::Result<Arc<AsyncFd<Socket>>> {
    socket::register(socket, Interest::READABLE | Interest::ERROR).map(Arc::new)
}

/// A UDP socket towards the target, and its port.
fn open_udp(template: &Template) -> std::io::Result<(u16, Socket)> {
    let family = template.family();
    let socket = Socket::new(family.domain(), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    options::enable_receive_metadata(&socket, family)?;
    socket.bind(&template.source.into())?;
    // Connected, the socket receives from that address and port only. Port 0 cannot be connected to, nor send.
    if template.target.port() != 0 {
        socket.connect(&template.target.into())?;
    }
    Ok((port_of(&socket)?, socket))
}

/// A bound TCP port with the socket that holds it, and a raw socket that receives what the target sends to that port.
async fn open_tcp(template: &Template, opener: &Opener) -> std::io::Result<(u16, Socket, Socket)> {
    let family = template.family();
    let holder = Socket::new(family.domain(), Type::STREAM, Some(Protocol::TCP))?;
    holder.bind(&template.source.into())?;
    let port = port_of(&holder)?;
    let raw = opener.raw_tcp(family).await?;
    options::attach_port_filter(&raw, family, port)?;
    options::enable_receive_metadata(&raw, family)?;
    let mut target = template.target;
    target.set_port(0);
    raw.connect(&target.into())?;
    Ok((port, holder, raw))
}

fn port_of(socket: &Socket) -> std::io::Result<u16> {
    let address = socket.local_addr()?.as_socket();
    address.map(|address| address.port()).ok_or_else(|| std::io::Error::other("the socket has no port"))
}

async fn read_datagrams(mut reader: SocketReader, flow: usize, demultiplexer: Arc<TraceDemultiplexer>) {
    let sink = &demultiplexer.sink;
    loop {
        let (received, payload) = reader.next().await;
        let Some(probes) = demultiplexer.probes.get() else { continue };
        if let Some((index, rcode)) = probes.datagram_answer(flow, payload) {
            let response = rcode.map_or(ResponseKind::Datagram, |rcode| ResponseKind::Dns { rcode });
            let source = received.source.unwrap_or(probes.template.target.ip());
            sink.push(arrival(index, source, received.timestamp, response));
        }
    }
}

async fn read_segments(mut reader: SocketReader, demultiplexer: Arc<TraceDemultiplexer>) {
    let sink = &demultiplexer.sink;
    loop {
        let (received, bytes) = reader.next().await;
        let Some(probes) = demultiplexer.probes.get() else { continue };
        let segment = match probes.template.family() {
            Family::V4 => icmp::strip_ipv4(bytes).map(|(_, segment)| segment),
            Family::V6 => Some(bytes),
        };
        let Some(segment) = segment.and_then(TcpPacket::new) else { continue };
        let response = match segment.get_flags() & (TcpFlags::SYN | TcpFlags::ACK | TcpFlags::RST) {
            flags if flags & TcpFlags::RST != 0 => ResponseKind::Reset,
            flags if flags == TcpFlags::SYN | TcpFlags::ACK => ResponseKind::SynAck,
            _ => continue,
        };
        let source = received.source.unwrap_or(probes.template.target.ip());
        if segment.get_source() != probes.template.target.port() || source != probes.template.target.ip() {
            continue;
        }
        if let Some(index) = probes.acknowledged(segment.get_destination(), segment.get_acknowledgement()) {
            sink.push(arrival(index, source, received.timestamp, response));
        }
    }
}

impl Channel for RawChannel {
    type Response = ProbeResponse;

    async fn send(&mut self, index: u32) -> Result<Timestamp, String> {
        let Some(probes) = self.demultiplexer.probes.get() else { return Err("the trace has no probes".into()) };
        let sender = self.sockets.sender(probes.template.transport);
        let (source, target) = (probes.template.source, probes.template.target);
        let probe = probes.probe(index).ok_or("no such probe")?;
        let label = *self.labels.get(probe.flow).ok_or("no such flow")?;
        let (transport, source, ttl) = (&probes.bytes(index), Some(source.ip()), Some(probe.ttl));
        let departure = sender.send(Outgoing { transport, to: target, source, ttl, label }).await?;
        Ok(self.awaited.add(index, departure))
    }

    async fn arrival(&mut self) -> Option<Arrival<ProbeResponse>> {
        super::next_arrival(&mut self.arrivals, &mut self.ttl_limit).await
    }

    fn late_departure(&mut self, index: u32) -> Option<Timestamp> {
        let transport = self.demultiplexer.probes.get()?.template.transport;
        self.awaited.find(index, self.sockets.sender(transport))
    }

    fn may_be_queued(&self, index: u32) -> bool {
        self.awaited.contains(index)
    }

    fn overflow(&self) -> u32 {
        let receiver = self.sockets.receiver.dropped().wrapping_sub(self.dropped_before);
        let sockets = self.receiving.iter().map(|socket| options::dropped(socket.get_ref()));
        sockets.fold(receiver.saturating_add(self.demultiplexer.sink.dropped()), u32::saturating_add)
    }

    fn is_wanted(&self, index: u32) -> bool {
        self.demultiplexer.probes.get().is_some_and(|probes| super::is_within(probes, index, &self.ttl_limit))
    }
}
