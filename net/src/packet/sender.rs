//! Raw sockets that only send, with the kernel's timestamp of each departure.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::options::{self, Fragments};
use super::socket::{self, Stamp};

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
        let turn = Mutex::new(socket::control_room());
        Ok(Self { v6, socket: socket::watched(socket, Interest::WRITABLE)?, turn })
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
        let mut room = self.turn.lock();
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
        while let Ok(told) = socket::receive(self.socket.get_ref(), flags, &mut [], room) {
            last = told.at.or(last);
        }
        last
    }
}
