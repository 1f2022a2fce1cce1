//! IP headers of packets that this crate builds whole (RFC 791, RFC 8200). Pure: no sockets, no clocks.
//!
//! The kernel still fills in the identification and the checksum of an IPv4 header, and its source when that is
//! unspecified. It neither fragments such packets nor computes an `ICMPv6` checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet_packet::icmpv6::{Icmpv6Packet, checksum};
use pnet_packet::ip::IpNextHeaderProtocols;

use crate::Family;

/// Bytes of an IPv4 header without options.
const V4: usize = 20;
/// Bytes of an IPv6 header.
const V6: usize = 40;
/// The DF bit, with a fragment offset of 0.
const DONT_FRAGMENT: u16 = 1 << 14;

/// The label of an IPv6 flow (RFC 6437): 20 bits. Routers may balance by it. Never 0, which means that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLabel(u32);

impl FlowLabel {
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random_range(1..1 << 20))
    }

    /// As `sin6_flowinfo` has it: in network byte order, with a traffic class of 0 (ipv6(7)).
    #[must_use]
    pub fn flowinfo(self) -> u32 {
        self.0.to_be()
    }
}

/// The fields of an IP header that differ between packets.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// For IPv4, the kernel chooses it when it is unspecified.
    pub source: IpAddr,
    pub target: IpAddr,
    /// Of what follows the header.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv6 only.
    pub label: FlowLabel,
    /// IPv4 only: IPv6 routers do not fragment.
    pub dont_fragment: bool,
}

/// Bytes of a header of this family.
#[must_use]
pub fn size(family: Family) -> usize {
    match family {
        Family::V4 => V4,
        Family::V6 => V6,
    }
}

impl Header {
    /// The whole packet. None when it would be longer than IP can say, or when source and target are of two families.
    #[must_use]
    pub fn packet(&self, transport: &[u8]) -> Option<Vec<u8>> {
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => self.v4(source, target, transport),
            (IpAddr::V6(source), IpAddr::V6(target)) => self.v6(source, target, transport),
            _ => None,
        }
    }

    fn v4(&self, source: Ipv4Addr, target: Ipv4Addr, transport: &[u8]) -> Option<Vec<u8>> {
        let length = u16::try_from(V4 + transport.len()).ok()?.to_be_bytes();
        let [flags, offset] = if self.dont_fragment { DONT_FRAGMENT } else { 0 }.to_be_bytes();
        let mut packet = Vec::with_capacity(V4 + transport.len());
        packet.extend([0x45, 0, length[0], length[1], 0, 0, flags, offset, self.ttl, self.protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(target.octets());
        packet.extend(transport);
        Some(packet)
    }

    fn v6(&self, source: Ipv6Addr, target: Ipv6Addr, transport: &[u8]) -> Option<Vec<u8>> {
        let length = u16::try_from(transport.len()).ok()?.to_be_bytes();
        let mut packet = Vec::with_capacity(V6 + transport.len());
        packet.extend((6 << 28 | self.label.0).to_be_bytes());
        packet.extend([length[0], length[1], self.protocol, self.ttl]);
        packet.extend(source.octets());
        packet.extend(target.octets());
        packet.extend(transport);
        if self.protocol == IpNextHeaderProtocols::Icmpv6.0 {
            let sum = checksum(&Icmpv6Packet::new(transport)?, &source, &target);
            packet[V6 + 2..V6 + 4].copy_from_slice(&sum.to_be_bytes());
        }
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use pnet_packet::ipv4::Ipv4Packet;
    use pnet_packet::ipv6::Ipv6Packet;

    use super::*;
    use crate::packet::icmp;

    fn header(source: &str, target: &str, protocol: u8) -> Header {
        let address = |text: &str| text.parse().expect("an address");
        let (source, target) = (address(source), address(target));
        Header { source, target, protocol, ttl: 7, label: FlowLabel::random(), dont_fragment: false }
    }

    #[test]
    fn a_v4_header_says_what_follows_it() {
        for dont_fragment in [false, true] {
            let header = Header { dont_fragment, ..header("0.0.0.0", "192.0.2.9", 17) };
            let packet = header.packet(b"12345678").expect("a packet");
            let ip = Ipv4Packet::new(&packet).expect("a header");
            assert_eq!((ip.get_version(), ip.get_header_length(), ip.get_total_length()), (4, 5, 28));
            assert_eq!((ip.get_ttl(), ip.get_next_level_protocol().0, ip.get_fragment_offset()), (7, 17, 0));
            assert_eq!(
                (ip.get_source().to_string(), ip.get_destination().to_string()),
                ("0.0.0.0".into(), "192.0.2.9".into())
            );
            assert_eq!(ip.get_flags() & 2 != 0, dont_fragment);
            assert_eq!(&packet[20..], b"12345678");
        }
    }

    #[test]
    fn a_v6_header_has_the_label_of_its_flow_and_icmp_its_checksum() {
        for size in [0, 1, 56, 57] {
            let header = header("fd80::1", "2001:db8::9", icmp::ip_protocol(Family::V6));
            let request = icmp::echo_request(Family::V6, 5, 6, vec![0xab; size].into_iter());
            let packet = header.packet(&request).expect("a packet");
            let ip = Ipv6Packet::new(&packet).expect("a header");
            assert_eq!((ip.get_version(), ip.get_traffic_class(), ip.get_flow_label()), (6, 0, header.label.0));
            assert_eq!((usize::from(ip.get_payload_length()), ip.get_hop_limit()), (8 + size, 7));
            let pseudo = [&packet[8..40], &[0, 0, 0, 8 + u8::try_from(size).expect("short"), 0, 0, 0, 58]].concat();
            let sum = pnet_packet::util::checksum(&[&pseudo, &packet[40..]].concat(), usize::MAX);
            assert_eq!(sum, 0, "size {size}");
        }
        let labels: std::collections::BTreeSet<u32> = (0..100).map(|_| FlowLabel::random().0).collect();
        assert!(labels.len() > 90 && labels.iter().all(|label| (1..1 << 20).contains(label)), "{labels:?}");
    }

    #[test]
    fn what_ip_cannot_say_is_no_packet() {
        assert!(header("0.0.0.0", "192.0.2.9", 17).packet(&vec![0; 65_515]).is_some());
        assert!(header("0.0.0.0", "192.0.2.9", 17).packet(&vec![0; 65_516]).is_none());
        assert!(header("fd80::1", "fd80::2", 17).packet(&vec![0; 65_536]).is_none());
        assert!(header("0.0.0.0", "fd80::2", 17).packet(b"x").is_none());
    }
}
