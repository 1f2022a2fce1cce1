//! The receiver of raw mode: for each family one ICMP socket, drained continuously and shared by all series. A message
//! goes to the series that owns its flow, and that series decides which probe it answers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use parking_lot::Mutex;
use socket2::{Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::task::AbortOnDropHandle;

use super::icmp::{self, FlowKey, Message};
use super::socket;
use super::{StartError, options};
use crate::Family;

/// Receive buffer in bytes: about 20,000 packets that arrive while the process is not scheduled.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Messages read without a pause for other tasks: some tenths of a millisecond.
const BURST: usize = 64;
/// The longest IP packet, in bytes.
const MAX_PACKET: usize = 65_536;

/// An ICMP message and its metadata.
pub struct ReceivedMessage<'a> {
    pub source: IpAddr,
    /// Kernel receive timestamp, since the Unix epoch.
    pub timestamp: Option<Duration>,
    pub ttl: Option<u8>,
    /// Bytes of the ICMP message.
    pub length: usize,
    pub message: Message<'a>,
}

/// Demultiplexes the messages of one series: decides which probe each answers, if any. Called by the receiver's task:
/// must not block.
pub trait Demultiplexer: Send + Sync {
    fn receive(&self, received: &ReceivedMessage<'_>);
}

/// The shared receiver of one family.
pub struct IcmpReceiver {
    shared: Arc<Shared>,
    socket: Arc<AsyncFd<Socket>>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    family: Family,
    flows: Mutex<FlowTable>,
}

#[derive(Default)]
struct FlowTable {
    owners: HashMap<FlowKey, Arc<dyn Demultiplexer>>,
    next_identifier: u16,
}

impl FlowTable {
    /// Round-robin, so that an identifier is reused as late as possible; random ones would collide among a few hundred
    /// series (birthday problem). Never 0: Linux sends an echo reply of nothing but zeros with the checksum 0 instead of
    /// 0xffff, which is wrong (seen with identifier 0, sequence number 0 and no payload).
    fn free_identifier(&mut self) -> Option<u16> {
        let first = self.next_identifier.max(1);
        let mut identifier = first;
        while self.owners.contains_key(&FlowKey::Icmp(identifier)) {
            identifier = identifier.wrapping_add(1).max(1);
            if identifier == first {
                return None;
            }
        }
        self.next_identifier = identifier.wrapping_add(1);
        Some(identifier)
    }
}

impl Shared {
    async fn receive(self: Arc<Self>, socket: Arc<AsyncFd<Socket>>) {
        let (mut buffer, mut control) = (vec![0; MAX_PACKET], socket::control_buffer());
        // The socket is registered as long as the runtime lives.
        'ready: while let Ok(mut ready) = socket.readable().await {
            for _ in 0..BURST {
                match socket::receive(socket.get_ref(), MsgFlags::empty(), &mut buffer, &mut control) {
                    Ok(received) => self.dispatch(&received, &buffer[..received.length.min(buffer.len())]),
                    Err(nix::Error::EAGAIN) => {
                        ready.clear_ready();
                        continue 'ready;
                    }
                    // An error that was pending is read.
                    Err(_) => {}
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn dispatch(&self, received: &socket::Received, packet: &[u8]) {
        let Some(source) = received.source else { return };
        let (ttl, bytes) = match self.family {
            Family::V4 => {
                let Some((ttl, message)) = icmp::strip_ipv4(packet) else { return };
                (Some(ttl), message)
            }
            Family::V6 => (received.ttl, packet),
        };
        let Some(message) = icmp::parse(self.family, bytes) else { return };
        let Some(flow) = message.flow(self.family) else { return };
        let owner = self.flows.lock().owners.get(&flow).map(Arc::clone);
        // The kernel verifies checksums for raw ICMPv6 sockets, not for raw ICMPv4 sockets.
        let is_intact = || self.family == Family::V6 || pnet_packet::util::checksum(bytes, usize::MAX) == 0;
        if let Some(owner) = owner.filter(|_| is_intact()) {
            let timestamp = received.timestamp;
            owner.receive(&ReceivedMessage { source, timestamp, ttl, length: bytes.len(), message });
        }
    }
}

impl IcmpReceiver {
    /// Opens the socket and starts its task. Must be called on the I/O runtime.
    ///
    /// # Errors
    /// As from socket(2): `EPERM` without `CAP_NET_RAW`.
    pub fn open(family: Family) -> std::io::Result<Arc<Self>> {
        let socket = Socket::new(family.domain(), Type::RAW, Some(family.icmp()))?;
        options::set_icmp_filter(&socket, family, icmp::accepted_types(family))?;
        options::enable_receive_metadata(&socket, family)?;
        // SO_RCVBUFFORCE exceeds net.core.rmem_max with CAP_NET_ADMIN; SO_RCVBUF is capped by it.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        socket.set_nonblocking(true)?;
        let socket = Arc::new(socket::register(socket, Interest::READABLE)?);
        let shared = Arc::new(Shared { family, flows: Mutex::default() });
        let task = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&shared).receive(Arc::clone(&socket))));
        Ok(Arc::new(Self { shared, socket, _task: task }))
    }

    /// Packets that the socket dropped since it was opened, because its receive buffer was full; wraps.
    pub fn dropped(&self) -> u32 {
        options::dropped(self.socket.get_ref())
    }

    /// Passes messages of this flow to `owner`. The caller has bound the port, so that no other process can have the
    /// flow.
    pub fn claim(self: &Arc<Self>, flow: FlowKey, owner: Arc<dyn Demultiplexer>) -> Claim {
        self.shared.flows.lock().owners.insert(flow, owner);
        Claim { receiver: Arc::clone(self), flow }
    }

    /// Allocates a free identifier of echo requests, 1–65535.
    ///
    /// # Errors
    /// When all are in use.
    pub fn claim_identifier(self: &Arc<Self>, owner: Arc<dyn Demultiplexer>) -> Result<(u16, Claim), StartError> {
        let mut flows = self.shared.flows.lock();
        let identifier = flows
            .free_identifier()
            .ok_or_else(|| StartError::Unavailable("all 65,535 ICMP identifiers are in use".into()))?;
        let flow = FlowKey::Icmp(identifier);
        flows.owners.insert(flow, owner);
        drop(flows);
        Ok((identifier, Claim { receiver: Arc::clone(self), flow }))
    }
}

/// Ownership of a flow; dropping it frees the flow.
pub struct Claim {
    receiver: Arc<IcmpReceiver>,
    flow: FlowKey,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.receiver.shared.flows.lock().owners.remove(&self.flow);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Nothing;

    impl Demultiplexer for Nothing {
        fn receive(&self, _: &ReceivedMessage<'_>) {}
    }

    #[test]
    fn identifiers_are_unique_and_never_zero() {
        let mut flows = FlowTable::default();
        for expected in 1..=u16::MAX {
            assert_eq!(flows.free_identifier(), Some(expected));
            flows.owners.insert(FlowKey::Icmp(expected), Arc::new(Nothing));
        }
        assert_eq!(flows.free_identifier(), None);
        flows.owners.remove(&FlowKey::Icmp(7));
        assert_eq!(flows.free_identifier(), Some(7));
    }

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Demultiplexer for Count {
        fn receive(&self, _: &ReceivedMessage<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn one_port_of_two_addresses_is_two_flows() {
        let shared = Arc::new(Shared { family: Family::V4, flows: Mutex::default() });
        let task = AbortOnDropHandle::new(tokio::spawn(async {}));
        let socket = Socket::from(std::net::UdpSocket::bind("127.0.0.1:0").expect("bound"));
        let socket = Arc::new(socket::register(socket, Interest::READABLE).expect("registered"));
        let shared_by_all = Arc::new(IcmpReceiver { shared: Arc::clone(&shared), socket, _task: task });
        let owners = [1, 2].map(|host| {
            let owner = Arc::new(Count::default());
            let flow = FlowKey::Udp(([10, 0, 0, host], 40_000).into());
            (Arc::clone(&owner), shared_by_all.claim(flow, owner))
        });
        let received = socket::Received {
            length: 0,
            source: Some([192, 0, 2, 1].into()),
            ttl: None,
            timestamp: None,
            send_id: None,
            error: None,
        };
        // Time exceeded, about a datagram of the second address.
        let quoted =
            [0x45, 0, 0, 28, 0, 0, 0, 0, 1, 17, 0, 0, 10, 0, 0, 2, 192, 0, 2, 9, 0x9c, 0x40, 0x82, 0x9a, 0, 8, 1, 2];
        let mut message = [&[11, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        let sum = pnet_packet::util::checksum(&message, 1);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let header = [0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 10, 0, 0, 2];
        shared.dispatch(&received, &[&header[..], &message].concat());
        assert_eq!(owners.map(|(owner, _claim)| owner.0.load(Ordering::Relaxed)), [0, 1]);
    }
}
