//! The probe packets of a trace as bytes. Pure: no sockets, no clocks.
//!
//! Routers may quote only the first 8 bytes behind the IP header, so these must distinguish the probes, without
//! changing what paths are chosen by (ports; for ICMP type, code, checksum and identifier). This is Paris traceroute
//! (Augustin et al., 2006):
//!
//! | protocol | probes differ in | flow kept constant by |
//! | --- | --- | --- |
//! | ICMP | sequence number | checksum compensation: two bytes of the payload |
//! | UDP | checksum, by a random payload | the same ports |
//! | TCP | initial sequence number, random | the same ports |

use std::net::{IpAddr, SocketAddr};

use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::tcp::{self, TcpFlags, TcpPacket};
use pnet_packet::udp::{self, UdpPacket};
use rand::Rng;

use crate::Family;
use crate::dns::Query;
use crate::packet::icmp;
use crate::packet::token::TOKEN;

/// Bytes of payload of a UDP probe at least, where this crate builds it: they tell the probes of a flow apart.
pub const UDP_PAYLOAD: usize = 2;

/// Bytes of a SYN's header, with the option that says how long segments may be: some firewalls drop a SYN without it.
const SYN_HEADER: u32 = 24;

/// One probe of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbePacket {
    /// Time to live or hop limit, 1–255.
    pub ttl: u8,
    /// Probes of one flow take one path where routers balance by flow. Counts from 0.
    pub flow: u16,
    /// Probes of a later round leave when those of the earlier ones are over. Counts from 0, and never falls.
    pub round: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Icmp,
    Tcp,
    Udp,
}

/// Which flows the probes of a trace use, and how many: each flow has a source port or ICMP identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// The flows of the plan; probes of one flow share its port or identifier.
    Shared(usize),
    /// A port for each probe.
    PerProbe(usize),
}

impl Flows {
    /// `port_per_probe`: the sockets distinguish probes of TCP and UDP by port only.
    #[must_use]
    pub fn of(template: &Template, packets: &[ProbePacket], port_per_probe: bool) -> Self {
        if port_per_probe && template.transport != Transport::Icmp {
            return Self::PerProbe(packets.len());
        }
        Self::Shared(packets.iter().map(|packet| usize::from(packet.flow) + 1).max().unwrap_or(1))
    }

    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Shared(count) | Self::PerProbe(count) => count,
        }
    }
}

/// What all packets of a trace have in common.
#[derive(Clone)]
pub struct Template {
    pub transport: Transport,
    /// With port 0.
    pub source: SocketAddr,
    /// The port is 0 for ICMP.
    pub target: SocketAddr,
    /// Bytes of payload.
    pub payload_size: usize,
    /// The payload is this question, with a message ID for each probe.
    pub question: Option<Query>,
}

/// The field of the first 8 bytes that distinguishes a probe from the others of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeId {
    IcmpSeq(u16),
    /// Initial sequence number.
    TcpIsn(u32),
    UdpChecksum(u16),
}

/// All that decides the bytes of one probe.
pub struct ProbeFields {
    pub ttl: u8,
    /// Index of its flow.
    pub flow: usize,
    pub id: ProbeId,
    /// The beginning of the payload.
    token: [u8; TOKEN],
    /// ICMP: the payload bytes that give all probes of a flow one checksum.
    compensation: [u8; 2],
}

impl Template {
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.target.ip())
    }

    /// Bytes of the IP packet, before fragmentation.
    #[must_use]
    pub fn packet_size(&self) -> u32 {
        let ip_header = match self.family() {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        let header = if self.transport == Transport::Tcp { SYN_HEADER } else { 8 };
        ip_header + header + u32::try_from(self.payload_size).unwrap_or(u32::MAX)
    }

    /// The IP protocol number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Icmp => icmp::ip_protocol(self.family()),
            Transport::Tcp => IpNextHeaderProtocols::Tcp.0,
            Transport::Udp => IpNextHeaderProtocols::Udp.0,
        }
    }

    /// Can 8 bytes distinguish probes of one flow without changing what paths are chosen by? ICMP and UDP need two bytes of
    /// payload for it, which UDP always has here.
    #[must_use]
    pub fn keeps_flow_constant(&self) -> bool {
        self.transport == Transport::Tcp || self.payload_size >= 2
    }

    /// Decides the bytes of a probe. `port` is its source port or identifier, `seq` its ICMP sequence number, and
    /// `checksum` the ICMP checksum of its flow.
    #[must_use]
    pub fn probe(&self, ttl: u8, flow: usize, port: u16, seq: u16, checksum: u16) -> ProbeFields {
        let mut random = rand::rng();
        let id = match self.transport {
            Transport::Icmp => ProbeId::IcmpSeq(seq),
            Transport::Tcp => ProbeId::TcpIsn(random.random()),
            Transport::Udp => ProbeId::UdpChecksum(0),
        };
        let mut probe = ProbeFields { ttl, flow, id, token: random.random(), compensation: [0; 2] };
        match self.transport {
            Transport::Icmp => {
                let sum = !pnet_packet::util::checksum(&self.bytes(&probe, port), 1);
                probe.compensation = ones_complement_difference(checksum, sum).to_be_bytes();
            }
            Transport::Udp => probe.id = ProbeId::UdpChecksum(u16_at(&self.bytes(&probe, port), 6)),
            Transport::Tcp => {}
        }
        probe
    }

    /// What follows the ICMP, TCP or UDP header.
    #[must_use]
    pub fn payload(&self, probe: &ProbeFields) -> Vec<u8> {
        if let Some(question) = &self.question {
            return question.with_id([probe.token[0], probe.token[1]]);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a pattern that wraps")]
        let mut payload: Vec<u8> =
            (0..self.payload_size).map(|i| probe.token.get(i).copied().unwrap_or(i as u8)).collect();
        if self.transport == Transport::Icmp
            && let Some(at) = compensation_offset(self.payload_size)
        {
            payload[at..at + 2].copy_from_slice(&probe.compensation);
        }
        payload
    }

    /// What follows the IP header. `port` is the source port or identifier. The kernel fills in the `ICMPv6` checksum.
    #[must_use]
    pub fn bytes(&self, probe: &ProbeFields, port: u16) -> Vec<u8> {
        let payload = self.payload(probe);
        match probe.id {
            ProbeId::IcmpSeq(seq) => icmp::echo_request(self.family(), port, seq, payload.into_iter()),
            ProbeId::TcpIsn(isn) => self.syn(port, isn, &payload),
            ProbeId::UdpChecksum(_) => self.datagram(port, &payload),
        }
    }

    fn syn(&self, port: u16, isn: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [port, self.target.port()].map(u16::to_be_bytes).concat();
        bytes.extend(isn.to_be_bytes());
        // Acknowledgement 0, header of 6 words, window 64,240, checksum 0, urgent pointer 0.
        bytes.extend([0, 0, 0, 0, 6 << 4, TcpFlags::SYN, 0xfa, 0xf0, 0, 0, 0, 0]);
        // Maximum segment size (RFC 9293, section 3.7.1): that of Ethernet.
        let mss: u16 = if self.target.is_ipv4() { 1460 } else { 1440 };
        bytes.extend([2, 4]);
        bytes.extend(mss.to_be_bytes());
        bytes.extend(payload);
        let checksum = TcpPacket::new(&bytes).map_or(0, |segment| match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => tcp::ipv4_checksum(&segment, &from, &to),
            (IpAddr::V6(from), IpAddr::V6(to)) => tcp::ipv6_checksum(&segment, &from, &to),
            _ => 0,
        });
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn datagram(&self, port: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
        let mut bytes = [port, self.target.port(), length, 0].map(u16::to_be_bytes).concat();
        bytes.extend(payload);
        let checksum = UdpPacket::new(&bytes).map_or(0, |datagram| match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => udp::ipv4_checksum(&datagram, &from, &to),
            (IpAddr::V6(from), IpAddr::V6(to)) => udp::ipv6_checksum(&datagram, &from, &to),
            _ => 0,
        });
        // Zero means that there is no checksum (RFC 768).
        let checksum = if checksum == 0 { u16::MAX } else { checksum };
        bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

/// Where the compensation of an ICMP checksum lies in a payload of this size: at an even offset, after the token.
fn compensation_offset(size: usize) -> Option<usize> {
    Some(size.checked_sub(2)?.min(TOKEN) & !1)
}

/// What must be added to `sum` to get `wanted`, in one's complement (RFC 1071).
fn ones_complement_difference(wanted: u16, sum: u16) -> u16 {
    let difference = u32::from(wanted) + u32::from(!sum);
    #[expect(clippy::cast_possible_truncation, reason = "the carry is folded in")]
    {
        ((difference & 0xffff) + (difference >> 16)) as u16
    }
}

/// A big-endian field; 0 behind the end.
pub fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    bytes.get(offset..offset + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}
