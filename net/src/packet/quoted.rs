//! The body of an ICMP error: the beginning of the packet that caused it, and extensions (RFC 4884). Pure and fuzzed:
//! any host can send one.

use std::net::IpAddr;

use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::ipv6::Ipv6Packet;

use crate::Family;

/// Extension objects parsed in one message; the rest is ignored.
const MAX_OBJECTS: usize = 32;
/// Where extensions begin when the length field is zero (RFC 4884, section 5.5), in bytes.
const LEGACY_QUOTE_LENGTH: usize = 128;

/// The packet that caused an ICMP error, as far as it is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted<'a> {
    pub source: IpAddr,
    pub target: IpAddr,
    pub protocol: u8,
    /// What follows the IP header: often no more than 8 bytes.
    pub transport: &'a [u8],
}

/// One entry of an MPLS label stack (RFC 4950, RFC 3032).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MplsLabel {
    /// 20 bits.
    pub value: u32,
    /// 3 bits (RFC 5462).
    pub traffic_class: u8,
    pub bottom_of_stack: bool,
    pub ttl: u8,
}

/// Any other extension object (RFC 4884, section 7), as on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionObject {
    pub class: u8,
    pub class_type: u8,
    pub data: Vec<u8>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extensions {
    pub labels: Vec<MplsLabel>,
    pub others: Vec<ExtensionObject>,
}

/// Splits the body that follows the 8-byte ICMP header. `length` is the header's length field in bytes, or 0. None when
/// the quoted IP header is incomplete, or belongs to a later fragment, which has no ports.
#[must_use]
pub fn split(family: Family, body: &[u8], length: usize) -> Option<(Quoted<'_>, Extensions)> {
    let (datagram, extensions) = if length > 0 && length <= body.len() {
        (&body[..length], extensions(&body[length..]))
    } else {
        // No length: extensions may follow after 128 bytes; their checksum decides.
        match body.split_at_checked(LEGACY_QUOTE_LENGTH).map(|(datagram, rest)| (datagram, extensions(rest))) {
            Some((datagram, Some(found))) => (datagram, Some(found)),
            _ => (body, None),
        }
    };
    let quoted = match family {
        Family::V4 => quoted_v4(datagram),
        Family::V6 => quoted_v6(datagram),
    };
    Some((quoted?, extensions.unwrap_or_default()))
}

fn quoted_v4(datagram: &[u8]) -> Option<Quoted<'_>> {
    let ip = Ipv4Packet::new(datagram)?;
    let header = usize::from(ip.get_header_length()) * 4;
    let whole = ip.get_version() == 4 && header >= 20 && ip.get_fragment_offset() == 0;
    let (source, target) = (ip.get_source().into(), ip.get_destination().into());
    let transport = datagram.get(header..).filter(|_| whole)?;
    Some(Quoted { source, target, protocol: ip.get_next_level_protocol().0, transport })
}

fn quoted_v6(datagram: &[u8]) -> Option<Quoted<'_>> {
    let ip = Ipv6Packet::new(datagram)?;
    let mut next = ip.get_next_header();
    let mut transport = datagram.get(40..)?;
    // This host fragmented a packet above the MTU: the first fragment carries the transport header.
    if next == IpNextHeaderProtocols::Ipv6Frag {
        let [protocol, _, offset_high, offset_low, ..] = *transport else { return None };
        if u16::from_be_bytes([offset_high, offset_low]) >> 3 != 0 {
            return None;
        }
        next = IpNextHeaderProtocol::new(protocol);
        transport = transport.get(8..)?;
    }
    let (source, target) = (ip.get_source().into(), ip.get_destination().into());
    (ip.get_version() == 6).then_some(Quoted { source, target, protocol: next.0, transport })
}

/// None when the bytes are no extension structure.
fn extensions(bytes: &[u8]) -> Option<Extensions> {
    let [version, _, sum_high, sum_low, ..] = *bytes else { return None };
    // A checksum of zero means that there is none (RFC 4884, section 7).
    let no_checksum = [sum_high, sum_low] == [0, 0];
    if version >> 4 != 2 || !(no_checksum || pnet_packet::util::checksum(bytes, usize::MAX) == 0) {
        return None;
    }
    let mut found = Extensions::default();
    let mut rest = &bytes[4..];
    for _ in 0..MAX_OBJECTS {
        let [length_high, length_low, class, class_type, ..] = *rest else { break };
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        let Some((object, after)) = rest.split_at_checked(length).filter(|(object, _)| object.len() >= 4) else {
            break;
        };
        let data = &object[4..];
        if (class, class_type) == (1, 1) {
            found.labels.extend(data.chunks_exact(4).map(label));
        } else {
            found.others.push(ExtensionObject { class, class_type, data: data.to_vec() });
        }
        rest = after;
    }
    Some(found)
}

fn label(entry: &[u8]) -> MplsLabel {
    let word = entry.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    #[expect(clippy::cast_possible_truncation, reason = "traffic class and TTL are the low bits of the shifted word")]
    MplsLabel {
        value: word >> 12,
        traffic_class: (word >> 9) as u8 & 7,
        bottom_of_stack: word & 0x100 != 0,
        ttl: word as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: [u8; 28] = [
        0x45, 0, 0, 84, 0, 0, 0, 0, 1, 17, 0, 0, 10, 0, 0, 1, 192, 0, 2, 9, // IP
        0x80, 1, 0x82, 0x9a, 0, 64, 0xab, 0xcd, // UDP
    ];

    fn with_sum(mut structure: Vec<u8>) -> Vec<u8> {
        let sum = pnet_packet::util::checksum(&structure, 1);
        structure[2..4].copy_from_slice(&sum.to_be_bytes());
        structure
    }

    fn stack() -> Vec<u8> {
        with_sum(vec![
            0x20, 0, 0, 0, //
            0, 12, 1, 1, 0x05, 0xdc, 0x10, 0x01, 0x00, 0x01, 0x0f, 0xff, // two labels
            0, 8, 2, 5, 9, 9, 9, 9, // something else (RFC 5837)
        ])
    }

    #[test]
    fn a_quoted_packet_is_read_as_far_as_it_goes() {
        let (quoted, extensions) = split(Family::V4, &V4, 0).expect("whole");
        assert_eq!(quoted.source.to_string(), "10.0.0.1");
        assert_eq!((quoted.target.to_string().as_str(), quoted.protocol), ("192.0.2.9", 17));
        assert_eq!(quoted.transport, &V4[20..]);
        assert_eq!(extensions, Extensions::default());
        for cut in 0..20 {
            assert_eq!(split(Family::V4, &V4[..cut], 0), None, "{cut}");
        }
        let mut fragment = V4;
        fragment[7] = 1;
        assert_eq!(split(Family::V4, &fragment, 0), None, "a later fragment holds no ports");
    }

    #[test]
    fn labels_are_found_where_the_length_says_and_where_old_routers_put_them() {
        for (length, said) in [(128, 128), (128, 0), (160, 160)] {
            let mut body = V4.to_vec();
            body.resize(length, 0);
            body.extend(stack());
            let (quoted, extensions) = split(Family::V4, &body, said).expect("whole");
            assert_eq!(quoted.transport.len(), length - 20, "padding is not part of the structure");
            let expected = [
                MplsLabel { value: 24001, traffic_class: 0, bottom_of_stack: false, ttl: 1 },
                MplsLabel { value: 16, traffic_class: 7, bottom_of_stack: true, ttl: 255 },
            ];
            assert_eq!(extensions.labels, expected);
            assert_eq!(extensions.others, [ExtensionObject { class: 2, class_type: 5, data: vec![9; 4] }]);
        }
    }

    #[test]
    fn payload_that_looks_like_a_structure_is_none() {
        let mut body = V4.to_vec();
        body.resize(128, 0);
        let mut wrong = stack();
        wrong[9] ^= 1;
        body.extend(wrong);
        let (quoted, extensions) = split(Family::V4, &body, 0).expect("whole");
        assert_eq!(extensions, Extensions::default());
        assert_eq!(quoted.transport.len(), body.len() - 20, "it is payload then");
    }
}
