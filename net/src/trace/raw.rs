//! Raw mode: whole packets through shared raw sockets; errors from the shared ICMP receiver; the target's own answers
//! from it (ICMP), from the UDP sockets whose ports the probes have, or from raw TCP sockets that let nothing else in.
//! A TCP port is bound and never connected: the kernel itself resets what answers there, so nothing stays half open.

use std::net::SocketAddr;
use std::sync::Arc;

use pnet_packet::tcp::{TcpFlags, TcpPacket};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::packets::{self, Packets, Probe, Shape, Transport};
use super::{Answer, Facts, Mouth, Senders, What, unavailable};
use crate::packet::icmp::{self, Key, Message};
use crate::packet::receiver::{Claim, Heard, Listener};
use crate::packet::socket::{self, Inbox, Stamp};
use crate::packet::{Mode, StartError, options};
use crate::series::{Arrival, Link};

/// One trace's end of the shared sockets, and the ports that are its own.
pub struct RawLink {
    pub facts: Facts,
    senders: Arc<Senders>,
    judge: Arc<Judge>,
    arrivals: mpsc::Receiver<Arrival<What>>,
    kept: watch::Receiver<u8>,
    dropped_before: u32,
    _claims: Vec<Claim>,
    /// Bound TCP ports, so that nobody else has them.
    _reserved: Vec<Socket>,
    _readers: JoinSet<()>,
}

/// Which probe a message answers, if one of ours.
struct Judge {
    packets: std::sync::OnceLock<Packets>,
    mouth: Mouth,
}

impl Listener for Judge {
    fn heard(&self, heard: &Heard<'_>) {
        let Some(packets) = self.packets.get() else { return };
        let (index, answer) = match &heard.message {
            Message::Reply { identifier, seq, data } if heard.source == packets.shape.target => {
                (packets.echo_reply(*identifier, *seq, data), Answer::EchoReply)
            }
            Message::Reply { .. } => return,
            Message::Error(error) => {
                (packets.quoted(&error.quoted), Answer::Icmp(error.kind, Some(error.extensions.clone())))
            }
        };
        if let Some(index) = index {
            self.mouth.tell(index, heard.source, heard.at, answer);
        }
    }
}

impl RawLink {
    pub fn open(
        senders: Arc<Senders>,
        shape: Shape,
        probes: &[Probe],
        kept: watch::Receiver<u8>,
    ) -> Result<Self, StartError> {
        let (mouth, arrivals) = Mouth::new();
        let judge = Arc::new(Judge { packets: std::sync::OnceLock::new(), mouth });
        let (count, constant_flow) = packets::lanes(&shape, probes, false);
        let receiver = &senders.receiver;
        let (mut claims, mut lanes, mut reserved, mut readers) = (vec![], vec![], vec![], JoinSet::new());
        for lane in 0..count {
            let listener = Arc::clone(&judge) as Arc<dyn Listener>;
            let (number, claim) = match shape.transport {
                Transport::Icmp => receiver.claim_identifier(listener)?,
                Transport::Udp => {
                    let (port, socket) = udp(&shape).map_err(|error| unavailable("UDP", &error))?;
                    let socket = socket::watched(socket, Interest::READABLE | Interest::ERROR);
                    let socket = Arc::new(socket.map_err(|error| unavailable("UDP", &error))?);
                    readers.spawn(read_datagrams(Inbox::new(socket, 4096), lane, Arc::clone(&judge)));
                    (port, receiver.claim(Key::Udp(port), listener))
                }
                Transport::Tcp => {
                    let (port, holder, socket) = tcp(&shape).map_err(|error| unavailable("TCP", &error))?;
                    reserved.push(holder);
                    let socket = socket::watched(socket, Interest::READABLE | Interest::ERROR);
                    let socket = Arc::new(socket.map_err(|error| unavailable("TCP", &error))?);
                    readers.spawn(read_segments(Inbox::new(socket, 256), Arc::clone(&judge)));
                    (port, receiver.claim(Key::Tcp(port), listener))
                }
            };
            lanes.push(number);
            claims.push(claim);
        }
        let dropped_before = receiver.dropped();
        // The judge hears of its keys from now on; nothing was sent before.
        let packets = Packets::new(shape, probes, lanes, constant_flow);
        let facts = super::facts(Mode::Raw, &packets);
        let _ = judge.packets.set(packets);
        Ok(Self {
            facts,
            senders,
            judge,
            arrivals,
            kept,
            dropped_before,
            _claims: claims,
            _reserved: reserved,
            _readers: readers,
        })
    }
}

/// A UDP socket towards the target, for its port and for what comes back to it.
fn udp(shape: &Shape) -> std::io::Result<(u16, Socket)> {
    let domain = if shape.v6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    options::tell_all(&socket, shape.v6())?;
    socket.bind(&SocketAddr::new(shape.source, 0).into())?;
    // Only what the target sends from that very port. Port 0 cannot be connected to, and nothing comes from it.
    if shape.port != 0 {
        socket.connect(&SocketAddr::new(shape.target, shape.port).into())?;
    }
    Ok((port_of(&socket)?, socket))
}

/// A bound TCP port, and a raw socket that gets what the target sends to it.
fn tcp(shape: &Shape) -> std::io::Result<(u16, Socket, Socket)> {
    let domain = if shape.v6() { Domain::IPV6 } else { Domain::IPV4 };
    let holder = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    holder.bind(&SocketAddr::new(shape.source, 0).into())?;
    let port = port_of(&holder)?;
    let raw = Socket::new(domain, Type::RAW, Some(Protocol::TCP))?;
    raw.set_nonblocking(true)?;
    // The filter first: until then the socket gets a copy of every segment that reaches this host.
    options::only_to_port(&raw, shape.v6(), port)?;
    options::tell_all(&raw, shape.v6())?;
    raw.connect(&SocketAddr::new(shape.target, 0).into())?;
    Ok((port, holder, raw))
}

fn port_of(socket: &Socket) -> std::io::Result<u16> {
    let address = socket.local_addr()?.as_socket();
    address.map(|address| address.port()).ok_or_else(|| std::io::Error::other("the socket has no port"))
}

async fn read_datagrams(mut inbox: Inbox, lane: usize, judge: Arc<Judge>) {
    loop {
        judge.mouth.dropped(inbox.newly_dropped());
        let (received, data) = inbox.next().await;
        let Some(packets) = judge.packets.get() else { continue };
        if let Some((index, rcode)) = packets.answered(lane, data) {
            let answer = rcode.map_or(Answer::Datagram, |rcode| Answer::Dns { rcode });
            judge.mouth.tell(index, received.source.unwrap_or(packets.shape.target), received.at, answer);
        }
    }
}

async fn read_segments(mut inbox: Inbox, judge: Arc<Judge>) {
    loop {
        judge.mouth.dropped(inbox.newly_dropped());
        let (received, bytes) = inbox.next().await;
        let Some(packets) = judge.packets.get() else { continue };
        let segment = if packets.shape.v6() { Some(bytes) } else { icmp::strip_ipv4(bytes).map(|(_, rest)| rest) };
        let Some(segment) = segment.and_then(TcpPacket::new) else { continue };
        let flags = segment.get_flags();
        let answer = match flags & (TcpFlags::SYN | TcpFlags::ACK | TcpFlags::RST) {
            set if set & TcpFlags::RST != 0 => Answer::Reset,
            set if set == TcpFlags::SYN | TcpFlags::ACK => Answer::SynAck,
            _ => continue,
        };
        let source = received.source.unwrap_or(packets.shape.target);
        if segment.get_source() != packets.shape.port || source != packets.shape.target {
            continue;
        }
        if let Some(index) = packets.acknowledged(segment.get_destination(), segment.get_acknowledgement()) {
            judge.mouth.tell(index, source, received.at, answer);
        }
    }
}

impl Link for RawLink {
    type What = What;

    async fn send(&mut self, index: u32) -> Result<Stamp, String> {
        let Some(packets) = self.judge.packets.get() else { return Err("not ready".into()) };
        let sender = match packets.shape.transport {
            Transport::Icmp => &self.senders.icmp,
            Transport::Tcp => &self.senders.tcp,
            Transport::Udp => &self.senders.udp,
        };
        sender.send(&packets.bytes(index), packets.shape.target, packets.ttl(index), Some(packets.shape.source)).await
    }

    async fn arrival(&mut self) -> Option<Arrival<What>> {
        super::next_arrival(&mut self.arrivals, &mut self.kept).await
    }

    fn overflow(&self) -> u32 {
        let kernel = self.senders.receiver.dropped().wrapping_sub(self.dropped_before);
        kernel.saturating_add(self.judge.mouth.overflow())
    }

    fn wanted(&self, index: u32) -> bool {
        let ttl = self.judge.packets.get().and_then(|packets| packets.ttl(index));
        ttl.is_some_and(|ttl| ttl <= *self.kept.borrow())
    }
}
