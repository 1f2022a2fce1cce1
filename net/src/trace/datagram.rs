//! Datagram mode: without `CAP_NET_RAW` the kernel builds the packets, and returns the ICMP errors that they cause
//! through the error queues of the sockets that sent them.
//!
//! The error queue of a datagram ICMP socket contains the header of the request, so one socket serves a flow. Those of
//! UDP and TCP sockets do not: when a router quotes 8 bytes, only the socket identifies the probe, so each probe has a
//! socket, and with it a port, of its own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send, sendmsg};
use socket2::{Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::matching::ProbeTable;
use super::probe::{Flows, ProbePacket, Template, Transport};
use super::{ProbeResponse, ResponseKind, TraceProperties, arrival};
use crate::packet::datagram::{open_connected, send_past_pending_errors};
use crate::packet::icmp::{self, Message};
use crate::packet::options::Fragmentation;
use crate::packet::socket::{self, Received, SocketReader, Timestamp};
use crate::packet::token::may_quote;
use crate::packet::{Mode, StartError, options};
use crate::series::{Arrival, ArrivalSink, Channel, GRACE};

/// The kernel retransmits a SYN after 1 s (RFC 6298, section 2): an answer from about then on may be to the
/// retransmission.
const RETRANSMISSION: Duration = Duration::from_millis(900);
/// Bytes kept of a datagram from the target.
const DATAGRAM_CAPACITY: usize = 4096;
/// Bytes read beyond the length of a request, which show a reply that is longer.
const EXCESS: usize = 2048;

/// One trace on sockets of its own.
pub struct DatagramChannel {
    probes: Arc<ProbeTable>,
    /// ICMP: one socket for each flow.
    flows: Vec<Arc<AsyncFd<Socket>>>,
    /// TCP and UDP: one socket for each probe, until its answer is there.
    of_probes: HashMap<u32, Weak<AsyncFd<Socket>>>,
    timeout: Duration,
    permits: Arc<Semaphore>,
    sink: Arc<ArrivalSink<ProbeResponse>>,
    arrivals: mpsc::Receiver<Arrival<ProbeResponse>>,
    ttl_limit: watch::Receiver<u8>,
    readers: JoinSet<()>,
}

impl DatagramChannel {
    pub fn open(
        permits: Arc<Semaphore>,
        template: Template,
        packets: &[ProbePacket],
        timeout: Duration,
        ttl_limit: watch::Receiver<u8>,
    ) -> Result<Self, StartError> {
        let (sink, arrivals) = ArrivalSink::new();
        let sink = Arc::new(sink);
        let flows = Flows::of(&template, packets, true);
        let (transport, target) = (template.transport, template.target);
        // The kernel chooses ports and identifiers; here the index of a flow stands for them.
        let indices: Vec<u16> = (0..flows.count()).map(|flow| u16::try_from(flow).unwrap_or(u16::MAX)).collect();
        let probes = Arc::new(ProbeTable::new(template, packets, flows, indices.clone()));
        let (mut flows, mut readers) = (vec![], JoinSet::new());
        if transport == Transport::Icmp {
            for identifier in indices {
                let socket = open_connected(target, Fragmentation::InterfaceMtu)?;
                let socket = socket::register(socket, Interest::READABLE | Interest::ERROR);
                let socket = Arc::new(socket.map_err(|error| StartError::no_socket("ICMP", &error))?);
                let reader = SocketReader::new(Arc::clone(&socket), probes.template.payload_size + EXCESS);
                readers.spawn(read_echoes(reader, identifier, Arc::clone(&probes), Arc::clone(&sink)));
                flows.push(socket);
            }
        }
        Ok(Self { probes, flows, of_probes: HashMap::new(), timeout, permits, sink, arrivals, ttl_limit, readers })
    }

    pub fn properties(&self) -> TraceProperties {
        super::properties(Mode::Datagram, &self.probes)
    }

    /// Opens a socket for one probe. Waits while all traces together have the most that they may have.
    async fn open_socket(&self, ttl: u8) -> Result<(Socket, OwnedSemaphorePermit), String> {
        let template = &self.probes.template;
        let family = template.family();
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            return Err("the engine is shutting down".into());
        };
        let (kind, protocol) = match template.transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            _ => (Type::DGRAM, Protocol::UDP),
        };
        let open = || -> std::io::Result<Socket> {
            let socket = Socket::new(family.domain(), kind, Some(protocol))?;
            socket.set_nonblocking(true)?;
            options::enable_receive_metadata(&socket, family)?;
            options::enable_error_queue(&socket, family)?;
            options::set_fragmentation(&socket, family, Fragmentation::InterfaceMtu)?;
            options::enable_too_big_errors(&socket, family)?;
            options::set_ttl(&socket, family, ttl)?;
            socket.bind(&template.source.into())?;
            Ok(socket)
        };
        open().map(|socket| (socket, permit)).map_err(|error| format!("no socket: {error}"))
    }

    async fn send_datagram(&mut self, index: u32, ttl: u8) -> Result<Timestamp, String> {
        let (socket, permit) = self.open_socket(ttl).await?;
        socket.connect(&self.destination().into()).map_err(|error| describe(&error))?;
        let socket =
            socket::register(socket, Interest::READABLE | Interest::ERROR).map_err(|error| describe(&error))?;
        let payload = self.probes.payload(index);
        let family = self.probes.template.family();
        // An error of an earlier probe, whose socket had the same port, may be pending already.
        let departure = send_past_pending_errors(&socket, |fd| {
            let sent = send(fd, &payload, MsgFlags::MSG_DONTWAIT);
            if sent == Err(nix::Error::EMSGSIZE) {
                // Larger than the interface takes: the next attempt is in fragments.
                options::set_fragmentation(socket.get_ref(), family, Fragmentation::InterfaceMtu)?;
            }
            sent.map(drop)
        })?;
        let (probes, sink) = (Arc::clone(&self.probes), Arc::clone(&self.sink));
        let socket = Arc::new(socket);
        self.of_probes.insert(index, Arc::downgrade(&socket));
        let mut reader = SocketReader::new(socket, DATAGRAM_CAPACITY);
        self.read_answer(permit, async move {
            loop {
                let (received, payload) = reader.next().await;
                if let Some((source, response)) = datagram_response(&probes, index, &received, payload) {
                    sink.push(arrival(index, source, received.timestamp, response));
                    break;
                }
            }
        });
        Ok(departure)
    }

    async fn send_syn(&mut self, index: u32, ttl: u8) -> Result<Timestamp, String> {
        let (socket, permit) = self.open_socket(ttl).await?;
        // SO_LINGER 0: closing sends RST, so that nothing stays half open or in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO)).map_err(|error| describe(&error))?;
        let departure = Timestamp::now();
        if let Err(error) = socket.connect(&self.destination().into())
            && error.raw_os_error() != Some(nix::libc::EINPROGRESS)
            && error.kind() != std::io::ErrorKind::ConnectionRefused
        {
            return Err(describe(&error));
        }
        let socket = socket::register(socket, Interest::READABLE | Interest::WRITABLE | Interest::ERROR);
        let socket = Arc::new(socket.map_err(|error| describe(&error))?);
        self.of_probes.insert(index, Arc::downgrade(&socket));
        let (probes, sink) = (Arc::clone(&self.probes), Arc::clone(&self.sink));
        self.read_answer(permit, async move {
            if let Some((source, timestamp, response)) = handshake(&socket, &probes.template, departure).await {
                sink.push(arrival(index, source, timestamp, response));
            }
        });
        Ok(departure)
    }

    fn destination(&self) -> SocketAddr {
        self.probes.template.target
    }

    /// Reads until the probe's answer, or its timeout, and returns the permit when the socket is closed.
    fn read_answer(&mut self, permit: OwnedSemaphorePermit, read: impl Future<Output = ()> + Send + 'static) {
        // Removes readers that have ended.
        while self.readers.try_join_next().is_some() {}
        let timeout = self.timeout;
        self.readers.spawn(async move {
            let _ = tokio::time::timeout(timeout + GRACE, read).await;
            drop(permit);
        });
    }
}

/// Why this host could not send a probe.
fn describe(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => options::describe_send_error(nix::Error::from_raw(code)),
        None => error.to_string(),
    }
}

/// The ICMP error that was read from the error queue, and its source.
fn queued_error(template: &Template, received: &Received) -> Option<(IpAddr, ResponseKind)> {
    let error = received.error?;
    let kind = icmp::error_kind(template.family(), error.icmp_type, error.icmp_code, error.info.to_be_bytes())?;
    Some((error.source, ResponseKind::Icmp(kind, None)))
}

/// How a message to the UDP socket of one probe answers that probe, if it does.
fn datagram_response(
    probes: &ProbeTable,
    index: u32,
    received: &Received,
    payload: &[u8],
) -> Option<(IpAddr, ResponseKind)> {
    if received.error.is_some() {
        // The error queue returns the quoted payload; the kernel has matched the ports.
        return queued_error(&probes.template, received).filter(|_| may_quote(&probes.payload(index), payload));
    }
    // Any datagram from the target to this port answers this probe; only a DNS answer is checked.
    let response = match probes.datagram_answer(index as usize, payload) {
        Some((_, Some(rcode))) => ResponseKind::Dns { rcode },
        _ if probes.template.question.is_some() => return None,
        _ => ResponseKind::Datagram,
    };
    Some((received.source.unwrap_or(probes.template.target.ip()), response))
}

/// How a TCP handshake ended: source, timestamp and response.
async fn handshake(
    socket: &AsyncFd<Socket>,
    template: &Template,
    departure: Timestamp,
) -> Option<(IpAddr, Option<Duration>, ProbeResponse)> {
    let (mut buffer, mut control) = (vec![0; 256], socket::control_buffer());
    loop {
        let mut ready = socket.ready(Interest::READABLE | Interest::WRITABLE | Interest::ERROR).await.ok()?;
        let rtt_valid = departure.monotonic.elapsed() < RETRANSMISSION;
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        if let Ok(received) = socket::receive(socket.get_ref(), flags, &mut buffer, &mut control)
            && let Some((source, kind)) = queued_error(template, &received)
        {
            return Some((source, received.timestamp, ProbeResponse { kind, rtt_valid }));
        }
        match socket.get_ref().take_error() {
            Ok(Some(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Some((template.target.ip(), None, ProbeResponse { kind: ResponseKind::Reset, rtt_valid }));
            }
            Ok(None) if socket.get_ref().peer_addr().is_ok() => {
                // The kernel's own measurement of the handshake.
                let (rtt, is_retransmitted) = options::tcp_handshake(&socket.as_fd()).ok()?;
                let response = ProbeResponse { kind: ResponseKind::SynAck, rtt_valid: !is_retransmitted };
                return Some((template.target.ip(), Some(departure.wall() + rtt), response));
            }
            // The error of an ICMP message that arrived after the error queue was read: the next read finds it.
            Ok(Some(_)) => {}
            _ => ready.clear_ready(),
        }
    }
}

async fn read_echoes(
    mut reader: SocketReader,
    identifier: u16,
    probes: Arc<ProbeTable>,
    sink: Arc<ArrivalSink<ProbeResponse>>,
) {
    let target = probes.template.target.ip();
    loop {
        let (received, message) = reader.next().await;
        // For an error: the quoted request went to the target.
        if received.source != Some(target) {
            continue;
        }
        let answer = if received.error.is_some() {
            // The error queue returns the quoted request; the kernel has matched only its identifier.
            probes.quoted_echo(identifier, message).zip(queued_error(&probes.template, &received))
        } else {
            match icmp::parse(probes.template.family(), message) {
                Some(Message::EchoReply { seq, payload, .. }) => {
                    let index = probes.echo_reply(identifier, seq, payload);
                    index.map(|index| (index, (target, ResponseKind::EchoReply)))
                }
                _ => None,
            }
        };
        if let Some((index, (source, response))) = answer {
            sink.push(arrival(index, source, received.timestamp, response));
        }
    }
}

impl Channel for DatagramChannel {
    type Response = ProbeResponse;

    async fn send(&mut self, index: u32) -> Result<Timestamp, String> {
        let Some(probe) = self.probes.probe(index) else { return Err("no such probe".into()) };
        let (ttl, flow) = (probe.ttl, probe.flow);
        match self.probes.template.transport {
            Transport::Tcp => self.send_syn(index, ttl).await,
            Transport::Udp => self.send_datagram(index, ttl).await,
            Transport::Icmp => {
                let socket = self.flows.get(flow).ok_or("no such flow")?;
                let packet = self.probes.bytes(index);
                let ttl = i32::from(ttl);
                let control = [options::ttl_message(self.probes.template.family(), &ttl)];
                send_past_pending_errors(&**socket, |fd| {
                    let parts = [std::io::IoSlice::new(&packet)];
                    sendmsg::<()>(fd.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, None).map(drop)
                })
            }
        }
    }

    async fn arrival(&mut self) -> Option<Arrival<ProbeResponse>> {
        super::next_arrival(&mut self.arrivals, &mut self.ttl_limit).await
    }

    fn may_be_queued(&self, index: u32) -> bool {
        if let Some(socket) = self.of_probes.get(&index) {
            return socket.upgrade().is_some_and(|socket| options::has_queued(socket.get_ref()));
        }
        let flow = self.probes.probe(index).and_then(|probe| self.flows.get(probe.flow));
        flow.is_some_and(|socket| options::has_queued(socket.get_ref()))
    }

    fn overflow(&self) -> u32 {
        // The socket of a UDP probe receives from the target only, and its first answer ends it.
        let sockets = self.flows.iter().map(|socket| options::dropped(socket.get_ref()));
        sockets.fold(self.sink.dropped(), u32::saturating_add)
    }

    fn is_wanted(&self, index: u32) -> bool {
        super::is_within(&self.probes, index, &self.ttl_limit)
    }
}
