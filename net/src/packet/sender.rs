//! Raw sockets that only send, with the kernel's timestamp of each departure.

use std::collections::{BTreeMap, HashMap};
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use parking_lot::Mutex;
use socket2::{Protocol, Socket, Type};

use super::datagram::may_be_pending;
use super::header::{self, FlowLabel, Header};
use super::options::{self, Fragmentation};
use super::socket::{self, Timestamp};
use crate::Family;

/// How long a send waits for a full send buffer.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it looks. The sockets are not registered with the reactor, which every departure timestamp would wake.
const RETRY: Duration = Duration::from_millis(1);
/// Sends of one packet, each after a pending error. Any host can flood this one with what makes them.
const ATTEMPTS: usize = 16;
/// The smallest MTU of an IPv6 link (RFC 8200, section 5), in bytes.
const MIN_V6_MTU: usize = 1280;
/// Packets whose departures are awaited, of one socket. Those of the oldest stay unknown.
const MAX_AWAITED: usize = 4096;

/// One packet.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// What follows the IP header.
    pub transport: &'a [u8],
    /// The port has no meaning here.
    pub to: SocketAddr,
    /// The kernel chooses it when it is None, or unspecified.
    pub source: Option<IpAddr>,
    /// 1–255; the system's default when None.
    pub ttl: Option<u8>,
    pub label: FlowLabel,
}

/// When a packet left.
#[derive(Debug, Clone, Copy)]
pub struct Departure {
    /// The clock before the send while the kernel's timestamp is awaited, and when there is none.
    at: Timestamp,
    /// Did the packet wait in a queue of this host?
    is_unknown: bool,
    awaited: Option<Awaited>,
}

/// A packet that waited in a queue of this host when its send returned.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    /// The kernel's number of the send (`SOF_TIMESTAMPING_OPT_ID`).
    id: u32,
    is_whole: bool,
}

/// The kernel's timestamp of a send.
#[derive(Clone, Copy)]
enum Stamp {
    Taken,
    /// The packet waits in a queue. None: the number of its timestamp is not certain, so that it stays unknown.
    Awaited(Option<u32>),
}

impl Departure {
    fn new(at: Timestamp, stamp: Stamp, is_whole: bool) -> Self {
        match stamp {
            Stamp::Taken => Self { at, is_unknown: false, awaited: None },
            Stamp::Awaited(id) => Self { at, is_unknown: true, awaited: id.map(|id| Awaited { id, is_whole }) },
        }
    }
}

/// The packets of one series whose departures are not known yet, by index.
#[derive(Default)]
pub struct AwaitedDepartures(HashMap<u32, Departure>);

impl AwaitedDepartures {
    /// The departure of a packet as far as it is known now.
    pub fn add(&mut self, index: u32, departure: Departure) -> Timestamp {
        if departure.is_unknown {
            self.0.insert(index, departure);
        }
        departure.at
    }

    /// May this packet still be in a queue of this host, as far as is known?
    pub fn contains(&self, index: u32) -> bool {
        self.0.contains_key(&index)
    }

    /// The departure of a packet that was awaited, once it is known.
    pub fn find(&mut self, index: u32, sender: &RawSender) -> Option<Timestamp> {
        let departure = sender.departure(self.0.get(&index)?)?;
        self.0.remove(&index);
        Some(departure)
    }
}

/// Raw sockets that only send packets of one protocol. Shared by all series: one packet and its departure timestamp at a
/// time.
pub struct RawSender {
    family: Family,
    protocol: u8,
    fragmentation: Fragmentation,
    /// For packets with their IP header. `IPPROTO_RAW`: an ICMP error goes to the raw sockets of the protocol that it
    /// quotes, so those about our packets are no pending errors here.
    whole: Departing,
    /// For packets that the kernel gives an IP header, and fragments.
    built: Departing,
}

/// A socket whose sends have departure timestamps.
struct Departing {
    socket: Socket,
    /// Held from a send to the read of its timestamp.
    departures: Mutex<Departures>,
}

struct Departures {
    /// The number that the kernel gives the next send, or one of the `uncertain` numbers behind it.
    next_id: u32,
    /// Sends that failed, each of which may have used a number.
    uncertain: u32,
    /// Timestamps of packets that waited in a queue: None until they come.
    awaited: BTreeMap<u32, Option<Duration>>,
    /// Buffer of control messages.
    control: Vec<u8>,
}

impl Departing {
    fn open(family: Family, protocol: Protocol, fragmentation: Fragmentation) -> std::io::Result<Self> {
        let socket = Socket::new(family.domain(), Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        options::attach_reject_filter(&socket)?;
        options::set_fragmentation(&socket, family, fragmentation)?;
        options::enable_transmit_timestamps(&socket)?;
        Ok(Self { socket, departures: Mutex::new(Departures::new()) })
    }

    fn send(&self, packet: &[u8], to: SocketAddr, control: &[ControlMessage<'_>]) -> nix::Result<(Timestamp, Stamp)> {
        let (parts, address) = ([IoSlice::new(packet)], SockaddrStorage::from(to));
        let mut departures = self.departures.lock();
        let before = Timestamp::now();
        if let Err(error) = sendmsg(self.socket.as_raw_fd(), &parts, control, MsgFlags::MSG_DONTWAIT, Some(&address)) {
            departures.failed(&self.socket);
            return Err(error);
        }
        Ok(match departures.read(&self.socket, before.wall()) {
            Ok(at) => (before.corrected_by(at).unwrap_or(before), Stamp::Taken),
            Err(id) => (before, Stamp::Awaited(id)),
        })
    }
}

impl RawSender {
    /// # Errors
    /// As from socket(2): `EPERM` without `CAP_NET_RAW`.
    pub fn open(family: Family, protocol: Protocol, fragmentation: Fragmentation) -> std::io::Result<Self> {
        let whole = Departing::open(family, Protocol::from(nix::libc::IPPROTO_RAW), fragmentation)?;
        // Without it the kernel says nothing of an IPv4 packet that a full queue of this host drops (raw(7)).
        options::enable_error_queue(&whole.socket, family)?;
        let built = Departing::open(family, protocol, fragmentation)?;
        if family == Family::V6 {
            options::enable_flow_labels(&built.socket)?;
        }
        let protocol = u8::try_from(i32::from(protocol)).map_err(std::io::Error::other)?;
        Ok(Self { family, protocol, fragmentation, whole, built })
    }

    /// Sends one packet and returns when it left. Waits up to 1 s for a full send buffer.
    ///
    /// # Errors
    /// A description of this host's failure.
    pub async fn send(&self, outgoing: Outgoing<'_>) -> Result<Departure, String> {
        let deadline = tokio::time::Instant::now() + SEND_TIMEOUT;
        loop {
            match self.try_send(&outgoing) {
                Err(Errno::EAGAIN) if tokio::time::Instant::now() < deadline => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(options::describe_send_error(error)),
                Ok(departure) => return Ok(departure),
            }
        }
    }

    /// The departure of a packet whose timestamp came after its send. None while it has not come.
    fn departure(&self, sent: &Departure) -> Option<Timestamp> {
        let Awaited { id, is_whole } = sent.awaited?;
        let departing = if is_whole { &self.whole } else { &self.built };
        sent.at.corrected_by(departing.departures.lock().late(&departing.socket, id)?)
    }

    fn try_send(&self, outgoing: &Outgoing<'_>) -> nix::Result<Departure> {
        let mut to = outgoing.to;
        // The kernel takes another number than 0 for the protocol of a raw IPv6 socket.
        to.set_port(0);
        // Also of a whole packet: the kernel chooses the route by it and not by the header, and refuses an address that is no
        // longer this host's.
        let (v4_from, v6_from) = options::packet_info(outgoing.source.filter(|source| !source.is_unspecified()));
        let mut messages: Vec<_> = v4_from.as_ref().map(ControlMessage::Ipv4PacketInfo).into_iter().collect();
        messages.extend(v6_from.as_ref().map(ControlMessage::Ipv6PacketInfo));
        let Some(packet) = self.whole_packet(outgoing) else { return self.send_built(outgoing, to, messages) };
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.whole.send(&packet, to, &messages) {
                Ok((at, stamp)) => return Ok(Departure::new(at, stamp, true)),
                // Larger than the interface takes: the kernel fragments only what it gives a header.
                Err(Errno::EMSGSIZE) if self.fragmentation != Fragmentation::Forbidden => {
                    return self.send_built(outgoing, to, messages);
                }
                // The error of an ICMP message that quotes a packet of protocol 255, which nobody here sent; or this host's
                // own refusal, which is the same each time.
                Err(error) if may_be_pending(error) && attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The packet with its header. None when the kernel has to make that.
    fn whole_packet(&self, outgoing: &Outgoing<'_>) -> Option<Vec<u8>> {
        let source = match self.family {
            Family::V4 => outgoing.source.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
            // The checksums cover it.
            Family::V6 => outgoing.source.filter(|source| !source.is_unspecified())?,
        };
        // The kernel fragments by the path MTU that it has cached, and answers a larger whole packet with an ICMP error of
        // its own.
        let by_path_mtu = self.family == Family::V6 && self.fragmentation == Fragmentation::Allowed;
        if by_path_mtu && header::size(self.family) + outgoing.transport.len() > MIN_V6_MTU {
            return None;
        }
        let header = Header {
            source,
            target: outgoing.to.ip(),
            protocol: self.protocol,
            ttl: outgoing.ttl?,
            label: outgoing.label,
            dont_fragment: self.fragmentation == Fragmentation::Forbidden,
        };
        header.packet(outgoing.transport)
    }

    fn send_built<'a>(
        &self,
        outgoing: &Outgoing<'_>,
        mut to: SocketAddr,
        from: impl IntoIterator<Item = ControlMessage<'a>>,
    ) -> nix::Result<Departure> {
        if let SocketAddr::V6(to) = &mut to {
            to.set_flowinfo(outgoing.label.flowinfo());
        }
        let ttl = outgoing.ttl.map(i32::from);
        let mut messages: Vec<ControlMessage<'_>> = from.into_iter().collect();
        messages.extend(ttl.as_ref().map(|ttl| options::ttl_message(self.family, ttl)));
        let (at, stamp) = self.built.send(outgoing.transport, to, &messages)?;
        Ok(Departure::new(at, stamp, false))
    }
}

/// Is this number, or one counted after it, the other?
fn is_from(id: u32, first: u32) -> bool {
    id.wrapping_sub(first) < 1 << 31
}

impl Departures {
    fn new() -> Self {
        Self { next_id: 0, uncertain: 0, awaited: BTreeMap::new(), control: socket::control_buffer() }
    }

    /// The next timestamp of the error queue, and the number of its send.
    fn stamp(&mut self, socket: &Socket) -> Option<(u32, Duration)> {
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        loop {
            let received = socket::receive(socket, flags, &mut [], &mut self.control).ok()?;
            if let Some(stamp) = received.send_id.zip(received.timestamp) {
                return Some(stamp);
            }
        }
    }

    /// Takes the timestamp of a packet that waited.
    fn keep(&mut self, id: u32, at: Duration) {
        if let Some(awaited) = self.awaited.get_mut(&id) {
            *awaited = Some(at);
        }
        // Numbers up to this one are used.
        if is_from(id, self.next_id) {
            let beyond = id.wrapping_sub(self.next_id) + 1;
            self.next_id = self.next_id.wrapping_add(beyond);
            self.uncertain = self.uncertain.saturating_sub(beyond);
        }
    }

    /// A send that failed may have used a number. What it left in the error queue would take the space of timestamps.
    fn failed(&mut self, socket: &Socket) {
        while let Some((id, at)) = self.stamp(socket) {
            self.keep(id, at);
        }
        self.uncertain = self.uncertain.saturating_add(1);
    }

    /// When the kernel passed the packet that was just sent to the driver; `before` is the wall clock before the send, which
    /// is earlier by any interruption of this process in between. When the packet still waits in the queue of the
    /// interface: its number, if that is certain.
    fn read(&mut self, socket: &Socket, before: Duration) -> Result<Duration, Option<u32>> {
        while let Some((id, at)) = self.stamp(socket) {
            let is_older = self.uncertain > 0 && at < before;
            if is_from(id, self.next_id) && !is_older {
                (self.next_id, self.uncertain) = (id.wrapping_add(1), 0);
                return Ok(at);
            }
            self.keep(id, at);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        if self.uncertain > 0 {
            return Err(None);
        }
        if self.awaited.len() >= MAX_AWAITED {
            self.awaited.pop_first();
        }
        self.awaited.insert(id, None);
        Err(Some(id))
    }

    /// The timestamp of a packet that waited, once.
    fn late(&mut self, socket: &Socket, id: u32) -> Option<Duration> {
        while let Some((id, at)) = self.stamp(socket) {
            self.keep(id, at);
        }
        (*self.awaited.get(&id)?)?;
        self.awaited.remove(&id)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loopback UDP sockets number their sends alike, without privilege.
    fn stamped(address: &str) -> Socket {
        let peer = std::net::UdpSocket::bind(address).expect("bound");
        let socket = std::net::UdpSocket::bind(address).expect("bound");
        socket.connect(peer.local_addr().expect("an address")).expect("connected");
        let socket = Socket::from(socket);
        options::enable_transmit_timestamps(&socket).expect("enabled");
        // Kept open: a closed port would make errors.
        std::mem::forget(peer);
        socket
    }

    fn send(socket: &Socket) -> Timestamp {
        let before = Timestamp::now();
        socket.send(b"x").expect("sent");
        before
    }

    #[test]
    fn each_send_reads_its_own_departure() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (socket, mut departures) = (stamped(address), Departures::new());
            for id in 0..100 {
                let before = send(&socket);
                let departure = departures.read(&socket, before.wall()).expect("a timestamp");
                assert!(before.corrected_by(departure).is_some() && departures.next_id == id + 1);
            }
            let before = Timestamp::now().wall();
            assert_eq!(departures.read(&socket, before), Err(Some(100)), "each timestamp is read once");
        }
    }

    #[test]
    fn a_departure_that_comes_late_is_that_of_its_own_send() {
        let (socket, mut departures) = (stamped("127.0.0.1:0"), Departures::new());
        // As if they waited in a queue when the send returned.
        assert_eq!(
            [departures.read(&socket, Duration::ZERO), departures.read(&socket, Duration::ZERO)],
            [Err(Some(0)), Err(Some(1))]
        );
        let (first, second) = (send(&socket), send(&socket));
        let third = send(&socket);
        let of_third = departures.read(&socket, third.wall()).expect("a timestamp");
        assert!(third.corrected_by(of_third).is_some(), "late timestamps are not those of the next send");
        let late = [0, 1].map(|id| departures.late(&socket, id).expect("it has come"));
        assert!(first.wall() <= late[0] && late[0] <= second.wall() && second.wall() <= late[1] && late[1] <= of_third);
        assert_eq!(departures.late(&socket, 0), None, "once");
        assert!(departures.awaited.is_empty());
    }

    #[test]
    fn sends_that_failed_with_and_without_a_number_confuse_no_departures() {
        let (socket, mut departures) = (stamped("127.0.0.1:0"), Departures::new());
        for numbers in 0..3 {
            // Of three that fail, so many have used a number: their packets are gone before they have a timestamp.
            for _ in 0..numbers {
                send(&socket);
            }
            while departures.stamp(&socket).is_some() {}
            (0..3).for_each(|_| departures.failed(&socket));
            // A packet that waits: its number is not certain, and its timestamp not that of the next.
            assert_eq!(departures.read(&socket, Duration::ZERO), Err(None));
            send(&socket);
            let before = send(&socket);
            let departure = departures.read(&socket, before.wall()).expect("a timestamp");
            assert!(before.corrected_by(departure).is_some(), "{numbers} numbers used");
            assert_eq!(departures.uncertain, 0);
        }
    }

    #[test]
    fn what_is_awaited_for_ever_is_bounded() {
        let (socket, mut departures) = (stamped("127.0.0.1:0"), Departures::new());
        for _ in 0..MAX_AWAITED + 10 {
            let _ = departures.read(&socket, Duration::ZERO);
        }
        assert_eq!(departures.awaited.len(), MAX_AWAITED);
    }
}
