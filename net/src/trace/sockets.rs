//! Datagram mode: without `CAP_NET_RAW` the kernel builds the packets, and hands the errors that they cause back
//! through the error queues of the sockets that sent them.
//!
//! A datagram ICMP socket gets back the header of its own request, so one of them serves a flow. UDP and TCP sockets
//! do not: what is left when a router quotes 8 bytes is the socket itself, so each probe has one, and with it a port
//! of its own.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::packets::{self, Packets, Probe, Shape, Transport};
use super::{Answer, Facts, Mouth, What};
use crate::packet::datagram::{connected, send_now};
use crate::packet::icmp::{self, Message};
use crate::packet::options::Fragments;
use crate::packet::socket::{self, Inbox, Received, Stamp};
use crate::packet::{Mode, StartError, options};
use crate::series::{Arrival, GRACE, Link};

/// The kernel repeats a SYN after this (RFC 6298, section 2): an answer from then on may be to the repetition.
const REPEATED: Duration = Duration::from_millis(900);

pub struct SocketLink {
    packets: Arc<Packets>,
    /// ICMP: one for each flow.
    flows: Vec<Arc<AsyncFd<Socket>>>,
    timeout: Duration,
    permits: Arc<Semaphore>,
    mouth: Arc<Mouth>,
    arrivals: mpsc::Receiver<Arrival<What>>,
    kept: watch::Receiver<u8>,
    readers: JoinSet<()>,
}

impl SocketLink {
    pub fn open(
        permits: Arc<Semaphore>,
        shape: Shape,
        probes: &[Probe],
        timeout: Duration,
        kept: watch::Receiver<u8>,
    ) -> Result<Self, StartError> {
        let (mouth, arrivals) = Mouth::new();
        let mouth = Arc::new(mouth);
        let (count, constant_flow) = packets::lanes(&shape, probes, true);
        let (transport, target) = (shape.transport, shape.target);
        // Ports and identifiers are the kernel's; here a lane is known by its number.
        let lanes = (0..count).map(|lane| u16::try_from(lane).unwrap_or(u16::MAX)).collect();
        let packets = Arc::new(Packets::new(shape, probes, lanes, constant_flow));
        let (mut flows, mut readers) = (vec![], JoinSet::new());
        if transport == Transport::Icmp {
            for lane in 0..count {
                let socket =
                    socket::watched(connected(target, Fragments::AtLink)?, Interest::READABLE | Interest::ERROR);
                let socket = Arc::new(socket.map_err(|error| super::unavailable("ICMP", &error))?);
                let inbox = Inbox::new(Arc::clone(&socket), packets.shape.size + 2048);
                readers.spawn(read_echoes(inbox, lane, Arc::clone(&packets), Arc::clone(&mouth)));
                flows.push(socket);
            }
        }
        Ok(Self { packets, flows, timeout, permits, mouth, arrivals, kept, readers })
    }

    pub fn facts(&self) -> Facts {
        super::facts(Mode::Datagram, &self.packets)
    }

    /// A socket of the probe's own. Waits while too many are open, over all traces.
    async fn own_socket(&self, ttl: u8) -> Result<(Socket, OwnedSemaphorePermit), String> {
        let shape = &self.packets.shape;
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return Err("stopping".into()) };
        let domain = if shape.v6() { Domain::IPV6 } else { Domain::IPV4 };
        let (kind, protocol) = match shape.transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            _ => (Type::DGRAM, Protocol::UDP),
        };
        let open = || -> std::io::Result<Socket> {
            let socket = Socket::new(domain, kind, Some(protocol))?;
            socket.set_nonblocking(true)?;
            options::tell_all(&socket, shape.v6())?;
            options::tell_errors(&socket, shape.v6())?;
            options::fragments(&socket, shape.v6(), Fragments::AtLink)?;
            options::ttl(&socket, shape.v6(), ttl)?;
            socket.bind(&SocketAddr::new(shape.source, 0).into())?;
            Ok(socket)
        };
        open().map(|socket| (socket, permit)).map_err(|error| format!("no socket: {error}"))
    }

    async fn send_datagram(&mut self, index: u32, ttl: u8) -> Result<Stamp, String> {
        let (socket, permit) = self.own_socket(ttl).await?;
        let to = SocketAddr::new(self.packets.shape.target, self.packets.shape.port);
        let words = |error: std::io::Error| failure(&error);
        socket.connect(&to.into()).map_err(words)?;
        let socket = Arc::new(socket::watched(socket, Interest::READABLE | Interest::ERROR).map_err(words)?);
        let stamp = Stamp::now();
        socket.get_ref().send(&self.packets.payload(index)).map_err(words)?;
        let (packets, mouth) = (Arc::clone(&self.packets), Arc::clone(&self.mouth));
        let mut inbox = Inbox::new(socket, 4096);
        self.read_for(self.timeout, permit, async move {
            loop {
                mouth.dropped(inbox.newly_dropped());
                let (received, data) = inbox.next().await;
                let answer = match error_of(&packets.shape, &received) {
                    // What comes back is the data, as far as it is quoted; the kernel has matched the ports.
                    Some(_) if !icmp::may_quote(&packets.payload(index), data) => None,
                    Some((source, answer)) => Some((source, answer)),
                    None if received.error.is_some() => None,
                    None => {
                        let rcode = packets.answered(index as usize, data).map(|(_, rcode)| rcode);
                        // Whatever comes to this port from the target answers this probe; a DNS answer says more.
                        let answer = match rcode {
                            Some(Some(rcode)) => Some(Answer::Dns { rcode }),
                            _ if packets.shape.question.is_some() => None,
                            _ => Some(Answer::Datagram),
                        };
                        answer.map(|answer| (received.source.unwrap_or(packets.shape.target), answer))
                    }
                };
                if let Some((source, answer)) = answer {
                    mouth.tell(index, source, received.at, answer);
                }
            }
        });
        Ok(stamp)
    }

    async fn send_connect(&mut self, index: u32, ttl: u8) -> Result<Stamp, String> {
        let (socket, permit) = self.own_socket(ttl).await?;
        let to = SocketAddr::new(self.packets.shape.target, self.packets.shape.port);
        // Closing resets: nothing is left half open, and nothing in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO)).map_err(|error| failure(&error))?;
        let stamp = Stamp::now();
        if let Err(error) = socket.connect(&to.into())
            && error.raw_os_error() != Some(nix::libc::EINPROGRESS)
            && error.kind() != std::io::ErrorKind::ConnectionRefused
        {
            return Err(failure(&error));
        }
        let socket = socket::watched(socket, Interest::READABLE | Interest::WRITABLE | Interest::ERROR);
        let socket = socket.map_err(|error| failure(&error))?;
        let (packets, mouth) = (Arc::clone(&self.packets), Arc::clone(&self.mouth));
        self.read_for(self.timeout, permit, async move {
            if let Some((source, at, what)) = connection(&socket, &packets.shape, stamp).await {
                mouth.tell(index, source, at, what);
            }
        });
        Ok(stamp)
    }

    /// Reads until the probe's time is up, and gives the permit back with the socket.
    fn read_for(
        &mut self,
        timeout: Duration,
        permit: OwnedSemaphorePermit,
        read: impl Future<Output = ()> + Send + 'static,
    ) {
        // Those that have ended are taken out, so that the set does not grow.
        while self.readers.try_join_next().is_some() {}
        self.readers.spawn(async move {
            let _ = tokio::time::timeout(timeout + GRACE, read).await;
            drop(permit);
        });
    }
}

/// Why a probe did not leave.
fn failure(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => options::send_failure(nix::Error::from_raw(number)),
        None => error.to_string(),
    }
}

/// What the error queue says.
fn error_of(shape: &Shape, received: &Received) -> Option<(IpAddr, Answer)> {
    let error = received.error?;
    let kind = icmp::error_kind(shape.v6(), error.icmp_type, error.icmp_code, error.info.to_be_bytes())?;
    Some((error.source, Answer::Icmp(kind, None)))
}

/// How a connection attempt ended.
async fn connection(socket: &AsyncFd<Socket>, shape: &Shape, sent: Stamp) -> Option<(IpAddr, Option<Duration>, What)> {
    let (mut buffer, mut control) = (vec![0; 256], socket::control_room());
    loop {
        let mut ready = socket.ready(Interest::READABLE | Interest::WRITABLE | Interest::ERROR).await.ok()?;
        let timed = sent.steady.elapsed() < REPEATED;
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        if let Ok(received) = socket::receive(socket.get_ref(), flags, &mut buffer, &mut control)
            && let Some((source, answer)) = error_of(shape, &received)
        {
            return Some((source, received.at, What { answer, timed }));
        }
        match socket.get_ref().take_error() {
            Ok(Some(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Some((shape.target, None, What { answer: Answer::Reset, timed }));
            }
            Ok(None) if socket.get_ref().peer_addr().is_ok() => {
                // The kernel's own measurement of the handshake.
                let (rtt, repeated) = options::handshake(&socket.as_fd()).ok()?;
                let what = What { answer: Answer::SynAck, timed: !repeated };
                return Some((shape.target, Some(sent.wall() + rtt), what));
            }
            // The error of an ICMP message that came since the queue was read: it is there now.
            Ok(Some(_)) => {}
            _ => ready.clear_ready(),
        }
    }
}

async fn read_echoes(mut inbox: Inbox, lane: usize, packets: Arc<Packets>, mouth: Arc<Mouth>) {
    let v6 = packets.shape.v6();
    let identifier = u16::try_from(lane).unwrap_or(u16::MAX);
    loop {
        mouth.dropped(inbox.newly_dropped());
        let (received, message) = inbox.next().await;
        // Of an error: was that where the quoted request went?
        let from_target = received.source == Some(packets.shape.target);
        let found = if received.error.is_some() {
            // What comes back is the request. The kernel has matched its identifier, and nothing else of it.
            let index = packets.quoted_echo(identifier, message).filter(|_| from_target);
            index.zip(error_of(&packets.shape, &received))
        } else {
            match icmp::parse(v6, message) {
                Some(Message::Reply { seq, data, .. }) if from_target => {
                    let index = packets.echo_reply(identifier, seq, data);
                    index.map(|index| (index, (packets.shape.target, Answer::EchoReply)))
                }
                _ => None,
            }
        };
        if let Some((index, (source, answer))) = found {
            mouth.tell(index, source, received.at, answer);
        }
    }
}

impl Link for SocketLink {
    type What = What;

    async fn send(&mut self, index: u32) -> Result<Stamp, String> {
        let (Some(ttl), Some(lane)) = (self.packets.ttl(index), self.packets.lane(index)) else {
            return Err("no such probe".into());
        };
        match self.packets.shape.transport {
            Transport::Tcp => self.send_connect(index, ttl).await,
            Transport::Udp => self.send_datagram(index, ttl).await,
            Transport::Icmp => {
                let socket = self.flows.get(lane).ok_or("no such flow")?;
                let packet = self.packets.bytes(index);
                let ttl = i32::from(ttl);
                let control = [if self.packets.shape.v6() {
                    ControlMessage::Ipv6HopLimit(&ttl)
                } else {
                    ControlMessage::Ipv4Ttl(&ttl)
                }];
                send_now(&**socket, |fd| {
                    let parts = [std::io::IoSlice::new(&packet)];
                    sendmsg::<()>(fd.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, None).map(drop)
                })
            }
        }
    }

    async fn arrival(&mut self) -> Option<Arrival<What>> {
        super::next_arrival(&mut self.arrivals, &mut self.kept).await
    }

    fn overflow(&self) -> u32 {
        self.mouth.overflow()
    }

    fn wanted(&self, index: u32) -> bool {
        self.packets.ttl(index).is_some_and(|ttl| ttl <= *self.kept.borrow())
    }
}
