//! Raw sockets that only send, with the kernel's timestamp of each departure.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use parking_lot::Mutex;
use socket2::{Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::options::{self, Fragmentation};
use super::socket::{self, Timestamp};
use crate::Family;

/// How long a send waits for a full send buffer.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// A raw socket that only sends. Shared by all series: one packet and its departure timestamp at a time.
pub struct RawSender {
    family: Family,
    socket: AsyncFd<Socket>,
    /// Held from a send to the read of its timestamp.
    departures: Mutex<Departures>,
}

struct Departures {
    /// The number that the kernel gives the next send.
    next_id: u32,
    /// Buffer of control messages.
    control: Vec<u8>,
}

impl RawSender {
    /// Must be called on the I/O runtime.
    ///
    /// # Errors
    /// As from socket(2): `EPERM` without `CAP_NET_RAW`.
    pub fn open(family: Family, protocol: Protocol, fragmentation: Fragmentation) -> std::io::Result<Self> {
        let socket = Socket::new(family.domain(), Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        options::attach_reject_filter(&socket)?;
        options::set_fragmentation(&socket, family, fragmentation)?;
        options::enable_transmit_timestamps(&socket)?;
        let departures = Mutex::new(Departures { next_id: 0, control: socket::control_buffer() });
        Ok(Self { family, socket: socket::register(socket, Interest::WRITABLE)?, departures })
    }

    /// Sends one packet (without IP header) and returns when it left. The port of `to` has no meaning here. Waits up to 1 s for a full send buffer. `ttl` 1–255;
    /// the system's default when None. The kernel chooses the source address when `from` is None.
    ///
    /// # Errors
    /// A description of this host's failure.
    pub async fn send(
        &self,
        packet: &[u8],
        mut to: SocketAddr,
        ttl: Option<u8>,
        from: Option<IpAddr>,
    ) -> Result<Timestamp, String> {
        // The kernel takes another number than 0 for the protocol of a raw IPv6 socket.
        to.set_port(0);
        let deadline = tokio::time::Instant::now() + SEND_TIMEOUT;
        loop {
            match self.try_send(packet, to, ttl, from) {
                Err(nix::Error::EAGAIN) => {
                    let Ok(Ok(mut ready)) = tokio::time::timeout_at(deadline, self.socket.writable()).await else {
                        return Err(options::describe_send_error(nix::Error::EAGAIN));
                    };
                    ready.clear_ready();
                }
                Err(error) => return Err(options::describe_send_error(error)),
                Ok(departure) => return Ok(departure),
            }
        }
    }

    fn try_send(&self, packet: &[u8], to: SocketAddr, ttl: Option<u8>, from: Option<IpAddr>) -> nix::Result<Timestamp> {
        let address = SockaddrStorage::from(to);
        let ttl = ttl.map(i32::from);
        let (v4_from, v6_from) = options::packet_info(from);
        let mut messages = vec![];
        messages.extend(ttl.as_ref().map(|ttl| options::ttl_message(self.family, ttl)));
        messages.extend(v4_from.as_ref().map(ControlMessage::Ipv4PacketInfo));
        messages.extend(v6_from.as_ref().map(ControlMessage::Ipv6PacketInfo));
        let parts = [IoSlice::new(packet)];
        let mut departures = self.departures.lock();
        let before = Timestamp::now();
        sendmsg(self.socket.as_raw_fd(), &parts, &messages, MsgFlags::MSG_DONTWAIT, Some(&address))?;
        Ok(departures.read(self.socket.get_ref()).and_then(|at| before.corrected_by(at)).unwrap_or(before))
    }
}

impl Departures {
    /// When the kernel passed the last packet to the driver. The clock before the send is earlier by any interruption
    /// of this process in between. None when the packet still waits in the queue of the interface: its timestamp is
    /// skipped by a later call.
    fn read(&mut self, socket: &Socket) -> Option<Duration> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        while let Ok(received) = socket::receive(socket, flags, &mut [], &mut self.control) {
            // A send that failed late may have used a number too: nothing is newer than the last packet.
            let Some(ahead) = received.send_id.map(|sent| sent.wrapping_sub(id)).filter(|ahead| *ahead < 1 << 31)
            else {
                continue;
            };
            self.next_id = self.next_id.wrapping_add(ahead);
            return received.timestamp;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_send_reads_its_own_departure() {
        // Loopback UDP sockets number their sends alike, without privilege.
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let peer = std::net::UdpSocket::bind(address).expect("bound");
            let socket = std::net::UdpSocket::bind(address).expect("bound");
            socket.connect(peer.local_addr().expect("an address")).expect("connected");
            let socket = Socket::from(socket);
            options::enable_transmit_timestamps(&socket).expect("enabled");
            let mut departures = Departures { next_id: 0, control: socket::control_buffer() };
            for id in 0..100 {
                let before = Timestamp::now();
                socket.send(b"x").expect("sent");
                let departure = departures.read(&socket).expect("a timestamp");
                assert!(before.corrected_by(departure).is_some() && departures.next_id == id + 1);
            }
            // A timestamp that comes after its send was given up is not that of the next send.
            socket.send(b"late").expect("sent");
            departures.next_id += 1;
            let before = Timestamp::now();
            socket.send(b"x").expect("sent");
            assert!(departures.read(&socket).is_some_and(|departure| departure >= before.wall()));
            assert_eq!((departures.read(&socket), departures.next_id), (None, 103), "each timestamp is read once");
        }
    }
}
