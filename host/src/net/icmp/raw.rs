//! Raw mode: two sending sockets of each family that receive nothing (one of them forbids fragmentation), and the
//! receiver, all of them shared by all series.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::options::Fragments;
use super::receiver::{Claim, Heard, Listener, Receiver};
use super::wire::{self, Message, Secret};
use super::{Plan, StartError, What, options};
use crate::net::packet::{self, Stamp};
use crate::net::series::{Arrival, Link};
use crate::policy::Permitted;

/// Messages of one series that wait for it; what comes while it is full counts as dropped here.
pub const SERIES_ROOM: usize = 4096;

pub struct Raw {
    v6: bool,
    secret: Arc<Secret>,
    plain: Sender,
    unfragmented: Sender,
    pub receiver: Arc<Receiver>,
    count: AtomicU64,
}

/// A raw socket that only sends.
pub struct Sender {
    v6: bool,
    socket: AsyncFd<Socket>,
    /// Whose turn it is to send, and to read when the kernel passed the packet on: room for what it says.
    turn: Mutex<Vec<u8>>,
}

impl Sender {
    pub fn open(v6: bool, protocol: Protocol, fragments: Fragments) -> std::io::Result<Self> {
        let socket = Socket::new(if v6 { Domain::IPV6 } else { Domain::IPV4 }, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        options::receive_nothing(&socket)?;
        options::fragments(&socket, v6, fragments)?;
        options::tell_departures(&socket)?;
        let turn = Mutex::new(packet::control_room());
        Ok(Self { v6, socket: packet::watched(socket, Interest::WRITABLE)?, turn })
    }

    /// Sends one packet, waiting for room in the send queue as a blocking send would. The address it is sent from is
    /// the kernel's choice, unless `from` says it.
    pub async fn send(
        &self,
        packet: &[u8],
        to: IpAddr,
        ttl: Option<u8>,
        from: Option<IpAddr>,
    ) -> Result<Stamp, String> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
        loop {
            match self.send_now(packet, to, ttl, from) {
                Err(nix::Error::EAGAIN) => {
                    let Ok(Ok(mut ready)) = tokio::time::timeout_at(deadline, self.socket.writable()).await else {
                        return Err(options::send_failure(nix::Error::EAGAIN));
                    };
                    ready.clear_ready();
                }
                Err(error) => return Err(options::send_failure(error)),
                Ok(stamp) => return Ok(stamp),
            }
        }
    }

    fn send_now(&self, packet: &[u8], to: IpAddr, ttl: Option<u8>, from: Option<IpAddr>) -> nix::Result<Stamp> {
        let address = SockaddrStorage::from(SocketAddr::new(to, 0));
        let ttl = ttl.map(i32::from);
        let (v4_from, v6_from) = options::packet_info(from);
        let mut control = vec![];
        if let Some(ttl) = &ttl {
            control.push(if self.v6 { ControlMessage::Ipv6HopLimit(ttl) } else { ControlMessage::Ipv4Ttl(ttl) });
        }
        control.extend(v4_from.as_ref().map(ControlMessage::Ipv4PacketInfo));
        control.extend(v6_from.as_ref().map(ControlMessage::Ipv6PacketInfo));
        let parts = [IoSlice::new(packet)];
        let mut room = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Of packets that waited in a queue of the link.
        self.departure(&mut room);
        let stamp = Stamp::now();
        sendmsg(self.socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&address))?;
        Ok(self.departure(&mut room).and_then(|at| stamp.corrected(at)).unwrap_or(stamp))
    }

    /// When the kernel gave the last packet to the link: this process may have been interrupted before, and then the
    /// time from its own stamp would be too long.
    fn departure(&self, room: &mut [u8]) -> Option<Duration> {
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let mut last = None;
        while let Ok(told) = packet::receive(self.socket.get_ref(), flags, &mut [], room) {
            last = told.at.or(last);
        }
        last
    }
}

impl Raw {
    pub fn open(v6: bool, secret: Arc<Secret>) -> std::io::Result<Arc<Self>> {
        let protocol = if v6 { Protocol::ICMPV6 } else { Protocol::ICMPV4 };
        Ok(Arc::new(Self {
            v6,
            secret,
            plain: Sender::open(v6, protocol, Fragments::Allowed)?,
            unfragmented: Sender::open(v6, protocol, Fragments::Forbidden)?,
            receiver: Receiver::open(v6)?,
            count: AtomicU64::new(0),
        }))
    }

    pub fn attach(self: &Arc<Self>, target: Permitted, plan: &Plan) -> Result<RawLink, StartError> {
        let series = self.count.fetch_add(1, Ordering::Relaxed);
        let (sender, arrivals) = mpsc::channel(SERIES_ROOM);
        let listener = Arc::new(Judge {
            secret: Arc::clone(&self.secret),
            series,
            target: target.address(),
            payload_size: plan.payload_size.into(),
            arrivals: sender,
            dropped: AtomicU32::new(0),
        });
        let (identifier, claim) = self.receiver.claim_identifier(Arc::clone(&listener) as _)?;
        Ok(RawLink {
            raw: Arc::clone(self),
            identifier,
            judge: listener,
            ttl: plan.ttl,
            dont_fragment: plan.dont_fragment,
            arrivals,
            dropped_before: self.receiver.dropped(),
            _claim: claim,
        })
    }
}

/// Tells the messages of one series from those of forgers.
struct Judge {
    secret: Arc<Secret>,
    series: u64,
    target: IpAddr,
    payload_size: usize,
    arrivals: mpsc::Sender<Arrival<What>>,
    dropped: AtomicU32,
}

impl Listener for Judge {
    fn heard(&self, heard: &Heard<'_>) {
        let (seq, aside, what) = match &heard.message {
            Message::Reply { seq, data, .. } => {
                // Without room for a token the source is all that tells ours from a forger's.
                let trusted = self.secret.verifies(self.series, self.target, *seq, self.payload_size, data)
                    && (heard.source == self.target || self.payload_size >= 16);
                if !trusted {
                    return;
                }
                let length = u16::try_from(heard.length).unwrap_or(u16::MAX);
                (*seq, false, What::Reply { ttl: heard.ttl, length })
            }
            Message::Error(error) => {
                if error.quoted.target != self.target {
                    return;
                }
                let quoted = error.quoted.transport;
                let Some((_, seq)) = wire::request_in(self.target.is_ipv6(), quoted) else { return };
                let sent = self.secret.data(self.series, self.target, seq, self.payload_size);
                if !quoted.get(wire::HEADER..).is_some_and(|data| wire::may_quote(&sent, data)) {
                    return;
                }
                (seq, true, What::Error(error.kind))
            }
        };
        let Some(index) = u32::from(seq).checked_sub(1) else { return };
        let arrival = Arrival { index, source: heard.source, at: heard.at, aside, what };
        if self.arrivals.try_send(arrival).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One series' end of the shared sockets.
pub struct RawLink {
    raw: Arc<Raw>,
    identifier: u16,
    judge: Arc<Judge>,
    ttl: Option<u8>,
    dont_fragment: bool,
    arrivals: mpsc::Receiver<Arrival<What>>,
    dropped_before: u32,
    _claim: Claim,
}

impl Link for RawLink {
    type What = What;

    async fn send(&mut self, index: u32) -> Result<Stamp, String> {
        let (judge, seq) = (&self.judge, super::seq(index));
        let data = self.raw.secret.data(judge.series, judge.target, seq, judge.payload_size);
        let packet = wire::echo_request(self.raw.v6, self.identifier, seq, &data);
        let sender = if self.dont_fragment { &self.raw.unfragmented } else { &self.raw.plain };
        sender.send(&packet, judge.target, self.ttl, None).await
    }

    async fn arrival(&mut self) -> Option<Arrival<What>> {
        // The judge holds the sender as long as this link lives.
        self.arrivals.recv().await
    }

    fn overflow(&self) -> u32 {
        let kernel = self.raw.receiver.dropped().wrapping_sub(self.dropped_before);
        kernel.saturating_add(self.judge.dropped.load(Ordering::Relaxed))
    }
}
