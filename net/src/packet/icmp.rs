//! ICMP messages as bytes (RFC 792, RFC 4443). Pure: no sockets, no clocks.

use std::net::SocketAddr;

use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;

use super::quoted::{self, Extensions, Quoted};
use crate::Family;

/// Bytes of an ICMP header.
pub const HEADER: usize = 8;

const V4_ECHO_REPLY: u8 = 0;
const V4_UNREACHABLE: u8 = 3;
const V4_ECHO_REQUEST: u8 = 8;
const V4_TIME_EXCEEDED: u8 = 11;
const V4_PARAMETER_PROBLEM: u8 = 12;
const V6_UNREACHABLE: u8 = 1;
const V6_PACKET_TOO_BIG: u8 = 2;
const V6_TIME_EXCEEDED: u8 = 3;
const V6_PARAMETER_PROBLEM: u8 = 4;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

/// The ICMP types that a receiver accepts: echo replies, and errors that can quote a packet.
#[must_use]
pub fn accepted_types(family: Family) -> &'static [u8] {
    match family {
        Family::V4 => &[V4_ECHO_REPLY, V4_UNREACHABLE, V4_TIME_EXCEEDED, V4_PARAMETER_PROBLEM],
        Family::V6 => &[V6_ECHO_REPLY, V6_UNREACHABLE, V6_PACKET_TOO_BIG, V6_TIME_EXCEEDED, V6_PARAMETER_PROBLEM],
    }
}

fn echo_request_type(family: Family) -> u8 {
    match family {
        Family::V4 => V4_ECHO_REQUEST,
        Family::V6 => V6_ECHO_REQUEST,
    }
}

fn echo_reply_type(family: Family) -> u8 {
    match family {
        Family::V4 => V4_ECHO_REPLY,
        Family::V6 => V6_ECHO_REPLY,
    }
}

/// An echo request with this payload. The kernel fills in the `ICMPv6` checksum, and on datagram sockets the identifier.
#[must_use]
pub fn echo_request(family: Family, identifier: u16, seq: u16, payload: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER + payload.size_hint().0);
    packet.extend([echo_request_type(family), 0, 0, 0]);
    packet.extend(identifier.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(payload);
    if family == Family::V4 {
        let checksum = pnet_packet::util::checksum(&packet, 1);
        packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

/// The flow that a message belongs to, as far as this host chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowKey {
    /// Identifier of echo requests and replies.
    Icmp(u16),
    /// Source address and port of the quoted datagram: two sockets may have one port on different addresses.
    Udp(SocketAddr),
    /// Source address and port of the quoted segment.
    Tcp(SocketAddr),
}

/// An ICMP message that can answer a probe.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    EchoReply { identifier: u16, seq: u16, payload: &'a [u8] },
    Error(Error<'a>),
}

/// An ICMP error and the packet that it quotes.
#[derive(Debug, PartialEq, Eq)]
pub struct Error<'a> {
    pub kind: ErrorKind,
    pub quoted: Quoted<'a>,
    pub extensions: Extensions,
}

impl Message<'_> {
    /// None when the quoted packet has a protocol that this crate does not send, or is cut before the key.
    #[must_use]
    pub fn flow(&self, family: Family) -> Option<FlowKey> {
        let quoted = match self {
            Self::EchoReply { identifier, .. } => return Some(FlowKey::Icmp(*identifier)),
            Self::Error(error) => error.quoted,
        };
        let port = || quoted.transport.first_chunk().map(|port| u16::from_be_bytes(*port));
        let source = || port().map(|port| SocketAddr::new(quoted.source, port));
        match quoted.protocol {
            protocol if protocol == ip_protocol(family) => {
                parse_echo_request(family, quoted.transport).map(|(identifier, _)| FlowKey::Icmp(identifier))
            }
            protocol if protocol == IpNextHeaderProtocols::Udp.0 => source().map(FlowKey::Udp),
            protocol if protocol == IpNextHeaderProtocols::Tcp.0 => source().map(FlowKey::Tcp),
            _ => None,
        }
    }
}

/// The IP protocol number of ICMP.
#[must_use]
pub fn ip_protocol(family: Family) -> u8 {
    match family {
        Family::V4 => IpNextHeaderProtocols::Icmp.0,
        Family::V6 => IpNextHeaderProtocols::Icmpv6.0,
    }
}

/// Type and code of an ICMP error, with the name that the RFCs give them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorKind {
    /// Such as `time exceeded in transit`.
    pub description: &'static str,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// Next-hop MTU in bytes (RFC 1191, RFC 4443 section 3.2).
    pub mtu: Option<u32>,
}

/// Parses an ICMP message without IP header. None for other types, and when the message is truncated.
#[must_use]
pub fn parse(family: Family, message: &[u8]) -> Option<Message<'_>> {
    let (header, rest) = message.split_first_chunk::<HEADER>()?;
    let [icmp_type, code, _, _, i0, i1, s0, s1] = *header;
    if icmp_type == echo_reply_type(family) {
        let (identifier, seq) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1]));
        return (code == 0).then_some(Message::EchoReply { identifier, seq, payload: rest });
    }
    let kind = error_kind(family, icmp_type, code, [i0, i1, s0, s1])?;
    // RFC 4884: the length of the quoted packet, in words of 32 bits in ICMPv4 and of 64 bits in ICMPv6.
    let length = match (family, icmp_type) {
        (Family::V4, V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM) => usize::from(i1) * 4,
        (Family::V6, V6_UNREACHABLE | V6_TIME_EXCEEDED) => usize::from(i0) * 8,
        _ => 0,
    };
    let (quoted, extensions) = quoted::split(family, rest, length)?;
    Some(Message::Error(Error { kind, quoted, extensions }))
}

/// Identifier and sequence number of an echo request, of which the first 8 bytes suffice.
#[must_use]
pub fn parse_echo_request(family: Family, message: &[u8]) -> Option<(u16, u16)> {
    let [kind, 0, _, _, i0, i1, s0, s1] = *message.first_chunk::<HEADER>()? else { return None };
    (kind == echo_request_type(family)).then(|| (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1])))
}

/// Splits a packet from a raw IPv4 socket into the TTL of its IP header and the message behind it.
#[must_use]
pub fn strip_ipv4(packet: &[u8]) -> Option<(u8, &[u8])> {
    let ip = Ipv4Packet::new(packet)?;
    let header = usize::from(ip.get_header_length()) * 4;
    let ttl = ip.get_ttl();
    if header < 20 { None } else { Some((ttl, packet.get(header..)?)) }
}

/// Names an ICMP error; `rest` is the second word of its header. None for types that are not errors.
#[must_use]
pub fn error_kind(family: Family, icmp_type: u8, icmp_code: u8, rest: [u8; 4]) -> Option<ErrorKind> {
    let mut mtu = None;
    let description = match family {
        Family::V4 => match (icmp_type, icmp_code) {
            (V4_UNREACHABLE, 0) => "network unreachable",
            (V4_UNREACHABLE, 1) => "host unreachable",
            (V4_UNREACHABLE, 2) => "protocol unreachable",
            (V4_UNREACHABLE, 3) => "port unreachable",
            (V4_UNREACHABLE, 4) => {
                // RFC 1191: the lower half; 0 from routers that predate it.
                mtu = Some(u32::from(u16::from_be_bytes([rest[2], rest[3]]))).filter(|mtu| *mtu > 0);
                "fragmentation needed"
            }
            (V4_UNREACHABLE, 5) => "source route failed",
            (V4_UNREACHABLE, 6) => "destination network unknown",
            (V4_UNREACHABLE, 7) => "destination host unknown",
            (V4_UNREACHABLE, 8) => "source host isolated",
            (V4_UNREACHABLE, 9) => "network administratively prohibited",
            (V4_UNREACHABLE, 10) => "host administratively prohibited",
            (V4_UNREACHABLE, 11) => "network unreachable for type of service",
            (V4_UNREACHABLE, 12) => "host unreachable for type of service",
            (V4_UNREACHABLE, 13) => "communication administratively prohibited",
            (V4_UNREACHABLE, 14) => "host precedence violation",
            (V4_UNREACHABLE, 15) => "precedence cutoff in effect",
            (V4_UNREACHABLE, _) => "destination unreachable",
            (V4_TIME_EXCEEDED, 0) => "time exceeded in transit",
            (V4_TIME_EXCEEDED, _) => "fragment reassembly time exceeded",
            (V4_PARAMETER_PROBLEM, _) => "parameter problem",
            _ => return None,
        },
        Family::V6 => match (icmp_type, icmp_code) {
            (V6_UNREACHABLE, 0) => "no route to destination",
            (V6_UNREACHABLE, 1) => "administratively prohibited",
            (V6_UNREACHABLE, 2) => "beyond scope of source address",
            (V6_UNREACHABLE, 3) => "address unreachable",
            (V6_UNREACHABLE, 4) => "port unreachable",
            (V6_UNREACHABLE, 5) => "source address failed ingress/egress policy",
            (V6_UNREACHABLE, 6) => "reject route to destination",
            (V6_UNREACHABLE, _) => "destination unreachable",
            (V6_PACKET_TOO_BIG, _) => {
                mtu = Some(u32::from_be_bytes(rest));
                "packet too big"
            }
            (V6_TIME_EXCEEDED, 0) => "time exceeded in transit",
            (V6_TIME_EXCEEDED, _) => "fragment reassembly time exceeded",
            (V6_PARAMETER_PROBLEM, _) => "parameter problem",
            _ => return None,
        },
    };
    Some(ErrorKind { description, icmp_type, icmp_code, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply_to(family: Family, mut request: Vec<u8>) -> Vec<u8> {
        request[0] = echo_reply_type(family);
        request
    }

    #[test]
    fn requests_and_replies_round_trip() {
        for family in Family::BOTH {
            let request = echo_request(family, 0xabcd, 9, b"data".iter().copied());
            assert_eq!(parse_echo_request(family, &request), Some((0xabcd, 9)));
            let reply = reply_to(family, request);
            assert_eq!(
                parse(family, &reply),
                Some(Message::EchoReply { identifier: 0xabcd, seq: 9, payload: b"data" })
            );
        }
        let odd = echo_request(Family::V4, 1, 2, b"odd".iter().copied());
        assert_eq!(pnet_packet::util::checksum(&odd, usize::MAX), 0);
    }

    #[test]
    fn an_error_is_matched_by_what_it_quotes() {
        let mut ip = vec![0x45, 0, 0, 84, 0, 0, 0x40, 0, 1, 1, 0, 0, 10, 0, 0, 1, 192, 0, 2, 9];
        ip.extend(echo_request(Family::V4, 5, 6, b"xxxxxxxx".iter().copied()));
        let mut message = vec![V4_UNREACHABLE, 4, 0, 0, 0, 0, 0x05, 0x78];
        message.extend(&ip);
        let parsed = parse(Family::V4, &message).expect("an error");
        assert_eq!(parsed.flow(Family::V4), Some(FlowKey::Icmp(5)));
        let Message::Error(error) = parsed else { panic!("not an error") };
        assert_eq!(parse_echo_request(Family::V4, error.quoted.transport), Some((5, 6)));
        assert_eq!((error.kind.mtu, error.kind.description), (Some(1400), "fragmentation needed"));
        message[8 + 9] = 17;
        assert_eq!(
            parse(Family::V4, &message).expect("an error").flow(Family::V4),
            Some(FlowKey::Udp(([10, 0, 0, 1], 0x0800).into()))
        );
        message[8 + 9] = 47;
        assert_eq!(parse(Family::V4, &message).expect("an error").flow(Family::V4), None, "we send no such packets");
    }

    #[test]
    fn no_prefix_or_flip_of_a_message_panics() {
        let mut ip = vec![0x60, 0, 0, 0, 0, 16, 44, 64];
        ip.extend([0x20; 32]);
        ip.extend([58, 0, 0, 1, 0, 0, 0, 9]);
        ip.extend(echo_request(Family::V6, 5, 6, b"xxxxxxxx".iter().copied()));
        let mut v6 = vec![V6_TIME_EXCEEDED, 0, 0, 0, 0, 0, 0, 0];
        v6.extend(&ip);
        let mut v4 = vec![V4_TIME_EXCEEDED, 0, 0, 0, 0, 0, 0, 0, 0x4f, 0, 0, 84, 0, 0, 0, 0, 1, 1];
        v4.extend([0; 60]);
        for (family, message) in [(Family::V6, v6), (Family::V4, v4)] {
            for cut in 0..=message.len() {
                let _ = parse(family, &message[..cut]).map(|message| message.flow(family));
                let _ = strip_ipv4(&message[..cut]);
            }
            for bit in 0..message.len() * 8 {
                let mut flipped = message.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let _ = parse(family, &flipped).map(|message| message.flow(family));
                let _ = strip_ipv4(&flipped);
            }
        }
    }
}
