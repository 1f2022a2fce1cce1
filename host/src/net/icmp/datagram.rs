//! Datagram mode, for processes without `CAP_NET_RAW`: the kernel picks the identifier and hands each socket its own
//! replies; errors come through the error queue (`IP_RECVERR`).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::session::{Arrival, Link, What};
use super::wire::{self, Message, Secret};
use super::{Plan, StartError, options};
use crate::net::packet::{self, Stamp};
use crate::policy::Permitted;

static SERIES: AtomicU64 = AtomicU64::new(1 << 63);

pub struct Datagram {
    socket: AsyncFd<Socket>,
    v6: bool,
    secret: Arc<Secret>,
    series: u64,
    target: IpAddr,
    payload_size: usize,
    buffer: Vec<u8>,
    control: Vec<u8>,
    dropped: u32,
}

fn socket(v6: bool) -> std::io::Result<Socket> {
    let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    Socket::new(domain, Type::DGRAM, Some(protocol))
}

/// May this process use such sockets?
pub fn probe(v6: bool) -> std::io::Result<()> {
    socket(v6).map(|_| ())
}

impl Datagram {
    pub fn open(target: Permitted, plan: &Plan, secret: Arc<Secret>) -> Result<Self, StartError> {
        let target = target.address();
        let v6 = target.is_ipv6();
        let unavailable = |error: std::io::Error| StartError::Unavailable(format!("no ICMP socket: {error}"));
        let open = || -> std::io::Result<Socket> {
            let socket = socket(v6)?;
            socket.set_nonblocking(true)?;
            options::tell_all(&socket, v6)?;
            options::fragmentation(&socket, v6, plan.dont_fragment)?;
            if v6 {
                setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            } else {
                setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            }
            if let Some(ttl) = plan.ttl {
                if v6 {
                    socket.set_unicast_hops_v6(ttl.into())?;
                } else {
                    socket.set_ttl_v4(ttl.into())?;
                }
            }
            Ok(socket)
        };
        let socket = open().map_err(unavailable)?;
        socket
            .connect(&SocketAddr::new(target, 0).into())
            .map_err(|_| StartError::Unreachable("this host has no route to the target".into()))?;
        Ok(Self {
            socket: packet::watched(socket, Interest::READABLE | Interest::ERROR).map_err(unavailable)?,
            v6,
            secret,
            series: SERIES.fetch_add(1, Ordering::Relaxed),
            target,
            payload_size: plan.payload_size.into(),
            // A reply is as long as its request; some more shows one that is not.
            buffer: vec![0; usize::from(plan.payload_size) + 2048],
            control: packet::control_room(),
            dropped: 0,
        })
    }

    /// What lies ready, if it is ours.
    fn read(&mut self, flags: MsgFlags) -> nix::Result<Option<Arrival>> {
        let flags = flags | MsgFlags::MSG_DONTWAIT;
        let received = packet::receive(self.socket.get_ref(), flags, &mut self.buffer, &mut self.control)?;
        self.dropped = self.dropped.max(received.dropped);
        let message = &self.buffer[..received.length.min(self.buffer.len())];
        let (at, ttl) = (received.at, received.ttl);
        if let Some(error) = received.error {
            // The error queue hands back the request that the error quotes.
            let request = wire::request_in(self.v6, message);
            let kind = wire::error_kind(self.v6, error.icmp_type, error.icmp_code, error.info.to_be_bytes());
            return Ok(request.zip(kind).map(|((_, seq), kind)| Arrival {
                seq,
                source: error.source,
                at,
                what: What::Error(kind),
            }));
        }
        Ok(match wire::parse(self.v6, message) {
            Some(Message::Reply { seq, data, .. })
                if self.secret.verifies(self.series, self.target, seq, self.payload_size, data) =>
            {
                let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
                let source = received.source.unwrap_or(self.target);
                Some(Arrival { seq, source, at, what: What::Reply { ttl, length } })
            }
            _ => None,
        })
    }
}

impl Link for Datagram {
    async fn send(&mut self, seq: u16) -> Result<Stamp, String> {
        let data = self.secret.data(self.series, self.target, seq, self.payload_size);
        let packet = wire::echo_request(self.v6, 0, seq, &data);
        let fd = self.socket.as_raw_fd();
        // A pending error of an earlier request is delivered by the next call on the socket, whatever it is: that one
        // did not send. Once more then; the error itself is read from its queue.
        for _ in 0..3 {
            let stamp = Stamp::now();
            match send(fd, &packet, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => return Ok(stamp),
                Err(
                    nix::Error::EHOSTUNREACH | nix::Error::ECONNREFUSED | nix::Error::ENETUNREACH | nix::Error::EPROTO,
                ) => {}
                Err(error) => return Err(options::send_failure(error)),
            }
        }
        Err(options::send_failure(nix::Error::EHOSTUNREACH))
    }

    async fn arrival(&mut self) -> Arrival {
        loop {
            for flags in [MsgFlags::empty(), MsgFlags::MSG_ERRQUEUE] {
                // Any call may fail with the pending error of an earlier request; only EAGAIN means that all is read.
                let mut failures = 0;
                while failures < 16 {
                    match self.read(flags) {
                        Ok(Some(arrival)) => return arrival,
                        Ok(None) => {}
                        Err(nix::Error::EAGAIN) => break,
                        Err(_) => failures += 1,
                    }
                }
            }
            match self.socket.ready(Interest::READABLE | Interest::ERROR).await {
                // Cleared before the socket is read again: what comes in between is seen by that read.
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => std::future::pending().await,
            }
        }
    }

    fn overflow(&self) -> u32 {
        self.dropped
    }
}
