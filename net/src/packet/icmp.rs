//! ICMP messages as bytes (RFC 792, RFC 4443). Pure: no sockets, no clocks.

use std::net::IpAddr;

use hmac::{Hmac, Mac};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::quoted::{self, Extensions, Quoted};

pub const HEADER: usize = 8;
const TOKEN: usize = 16;

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

/// The types that a receiver lets through its filter, of each family.
pub const WANTED_V4: [u8; 4] = [V4_ECHO_REPLY, V4_UNREACHABLE, V4_TIME_EXCEEDED, V4_PARAMETER_PROBLEM];
pub const WANTED_V6: [u8; 5] =
    [V6_ECHO_REPLY, V6_UNREACHABLE, V6_PACKET_TOO_BIG, V6_TIME_EXCEEDED, V6_PARAMETER_PROBLEM];

/// Makes the tokens: nobody off the path can forge a reply.
pub struct Secret([u8; 32]);

impl Secret {
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// For one request of one series. `series` never repeats in a process, identifiers do.
    fn token(&self, series: u64, target: IpAddr, seq: u16) -> [u8; TOKEN] {
        // The key has the length that HMAC takes as it is; should that ever fail, the token matches nothing.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return rand::random() };
        mac.update(&series.to_be_bytes());
        mac.update(&seq.to_be_bytes());
        mac.update(target.to_string().as_bytes());
        let mut token = [0; TOKEN];
        token.copy_from_slice(&mac.finalize().into_bytes()[..TOKEN]);
        token
    }

    /// The data of a request: the token, as much of it as fits, then a counting pattern.
    #[must_use]
    pub fn data(&self, series: u64, target: IpAddr, seq: u16, size: usize) -> Vec<u8> {
        let token = self.token(series, target, seq);
        #[expect(clippy::cast_possible_truncation, reason = "a pattern that wraps")]
        (0..size).map(|i| token.get(i).copied().unwrap_or(i as u8)).collect()
    }

    /// Does the data of a reply begin with the token? `size` is what the request carried.
    #[must_use]
    pub fn verifies(&self, series: u64, target: IpAddr, seq: u16, size: usize, data: &[u8]) -> bool {
        let token = self.token(series, target, seq);
        let expected = &token[..size.min(TOKEN)];
        data.get(..expected.len()).is_some_and(|got| got.ct_eq(expected).into())
    }
}

/// Can quoted data be the beginning of what was sent? Another program's request may have the same numbers, and a
/// forger's too. What is all zeros is a router's padding, and nothing at all says nothing.
#[must_use]
pub fn may_quote(sent: &[u8], quoted: &[u8]) -> bool {
    let common = sent.len().min(quoted.len()).min(TOKEN);
    sent[..common] == quoted[..common] || quoted.iter().all(|byte| *byte == 0)
}

/// An echo request. The kernel fills in the `ICMPv6` checksum, and for datagram sockets the identifier.
#[must_use]
pub fn echo_request(v6: bool, identifier: u16, seq: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER + data.len());
    packet.extend([if v6 { V6_ECHO_REQUEST } else { V4_ECHO_REQUEST }, 0, 0, 0]);
    packet.extend(identifier.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(data);
    if !v6 {
        let sum = pnet_packet::util::checksum(&packet, 1);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// What a message is known by: the identifier of an echo request, or the source port of a quoted packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    Echo(u16),
    Udp(u16),
    Tcp(u16),
}

/// What an ICMP message says that concerns us.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Reply { identifier: u16, seq: u16, data: &'a [u8] },
    Error(Error<'a>),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Error<'a> {
    pub kind: Kind,
    pub quoted: Quoted<'a>,
    pub extensions: Extensions,
}

impl Message<'_> {
    /// Whose it may be.
    #[must_use]
    pub fn key(&self, v6: bool) -> Option<Key> {
        let quoted = match self {
            Self::Reply { identifier, .. } => return Some(Key::Echo(*identifier)),
            Self::Error(error) => error.quoted,
        };
        let source_port = || quoted.transport.first_chunk().map(|port| u16::from_be_bytes(*port));
        let icmp = if v6 { IpNextHeaderProtocols::Icmpv6 } else { IpNextHeaderProtocols::Icmp };
        match quoted.protocol {
            protocol if protocol == icmp.0 => {
                request_in(v6, quoted.transport).map(|(identifier, _)| Key::Echo(identifier))
            }
            protocol if protocol == IpNextHeaderProtocols::Udp.0 => source_port().map(Key::Udp),
            protocol if protocol == IpNextHeaderProtocols::Tcp.0 => source_port().map(Key::Tcp),
            _ => None,
        }
    }
}

/// An ICMP error's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub words: &'static str,
    pub icmp_type: u8,
    pub icmp_code: u8,
    pub mtu: Option<u32>,
}

/// Parses an ICMP message (without IP header). None: not for us, or not whole.
#[must_use]
pub fn parse(v6: bool, message: &[u8]) -> Option<Message<'_>> {
    let (header, rest) = message.split_first_chunk::<HEADER>()?;
    let [icmp_type, code, _, _, i0, i1, s0, s1] = *header;
    if icmp_type == if v6 { V6_ECHO_REPLY } else { V4_ECHO_REPLY } {
        let (identifier, seq) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1]));
        return (code == 0).then_some(Message::Reply { identifier, seq, data: rest });
    }
    let kind = error_kind(v6, icmp_type, code, [i0, i1, s0, s1])?;
    // RFC 4884: the length of the quoted packet in words of 32 bits, in ICMPv6 of 64 bits, where there is room for it.
    let length = match (v6, icmp_type) {
        (false, V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM) => usize::from(i1) * 4,
        (true, V6_UNREACHABLE | V6_TIME_EXCEEDED) => usize::from(i0) * 8,
        _ => 0,
    };
    let (quoted, extensions) = quoted::split(v6, rest, length)?;
    Some(Message::Error(Error { kind, quoted, extensions }))
}

/// Identifier and sequence number of an echo request's first bytes.
#[must_use]
pub fn request_in(v6: bool, icmp: &[u8]) -> Option<(u16, u16)> {
    let [kind, 0, _, _, i0, i1, s0, s1] = *icmp.first_chunk::<HEADER>()? else { return None };
    (kind == if v6 { V6_ECHO_REQUEST } else { V4_ECHO_REQUEST })
        .then(|| (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1])))
}

/// The IP header in front of what a raw IPv4 socket hands over: its TTL, and the message behind it.
#[must_use]
pub fn strip_ipv4(packet: &[u8]) -> Option<(u8, &[u8])> {
    let ip = Ipv4Packet::new(packet)?;
    let header = usize::from(ip.get_header_length()) * 4;
    let ttl = ip.get_ttl();
    if header < 20 { None } else { Some((ttl, packet.get(header..)?)) }
}

/// The meaning of an ICMP error, for every type that can quote one of our packets. None for others.
#[must_use]
pub fn error_kind(v6: bool, icmp_type: u8, icmp_code: u8, rest: [u8; 4]) -> Option<Kind> {
    let mut mtu = None;
    let words = if v6 {
        match (icmp_type, icmp_code) {
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
        }
    } else {
        match (icmp_type, icmp_code) {
            (V4_UNREACHABLE, 0) => "network unreachable",
            (V4_UNREACHABLE, 1) => "host unreachable",
            (V4_UNREACHABLE, 2) => "protocol unreachable",
            (V4_UNREACHABLE, 3) => "port unreachable",
            (V4_UNREACHABLE, 4) => {
                // RFC 1191: the lower half; 0 from routers older than it.
                mtu = Some(u32::from(u16::from_be_bytes([rest[2], rest[3]]))).filter(|mtu| *mtu > 0);
                "fragmentation needed"
            }
            (V4_UNREACHABLE, 5) => "source route failed",
            (V4_UNREACHABLE, 9) => "network administratively prohibited",
            (V4_UNREACHABLE, 10) => "host administratively prohibited",
            (V4_UNREACHABLE, 13) => "communication administratively prohibited",
            (V4_UNREACHABLE, _) => "destination unreachable",
            (V4_TIME_EXCEEDED, 0) => "time exceeded in transit",
            (V4_TIME_EXCEEDED, _) => "fragment reassembly time exceeded",
            (V4_PARAMETER_PROBLEM, _) => "parameter problem",
            _ => return None,
        }
    };
    Some(Kind { words, icmp_type, icmp_code, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply_to(v6: bool, mut request: Vec<u8>) -> Vec<u8> {
        request[0] = if v6 { V6_ECHO_REPLY } else { V4_ECHO_REPLY };
        request
    }

    #[test]
    fn a_reply_is_known_by_its_token_and_a_forged_one_is_not() {
        let (secret, other) = (Secret::random(), Secret::random());
        let target: IpAddr = "192.0.2.1".parse().expect("address");
        for size in [16, 56, 1472] {
            let data = secret.data(7, target, 3, size);
            assert_eq!(data.len(), size);
            assert!(secret.verifies(7, target, 3, size, &data));
            assert!(!secret.verifies(8, target, 3, size, &data), "another series");
            assert!(!secret.verifies(7, target, 4, size, &data), "another sequence number");
            assert!(!other.verifies(7, target, 3, size, &data), "another process");
            assert!(!secret.verifies(7, target, 3, size, &data[..15]), "cut short");
        }
        assert!(secret.verifies(7, target, 3, 0, &[]), "no room for a token: identifier, sequence and source decide");
    }

    #[test]
    fn requests_and_replies_round_trip() {
        for v6 in [false, true] {
            let request = echo_request(v6, 0xabcd, 9, b"data");
            assert_eq!(request_in(v6, &request), Some((0xabcd, 9)));
            let reply = reply_to(v6, request);
            assert_eq!(parse(v6, &reply), Some(Message::Reply { identifier: 0xabcd, seq: 9, data: b"data" }));
        }
        assert_eq!(
            pnet_packet::util::checksum(&echo_request(false, 1, 2, b"odd"), 1),
            u16::from_be_bytes([echo_request(false, 1, 2, b"odd")[2], echo_request(false, 1, 2, b"odd")[3]])
        );
    }

    #[test]
    fn an_error_is_matched_by_what_it_quotes() {
        let mut ip = vec![0x45, 0, 0, 84, 0, 0, 0x40, 0, 1, 1, 0, 0, 10, 0, 0, 1, 192, 0, 2, 9];
        ip.extend(echo_request(false, 5, 6, b"xxxxxxxx"));
        let mut message = vec![V4_UNREACHABLE, 4, 0, 0, 0, 0, 0x05, 0x78];
        message.extend(&ip);
        let parsed = parse(false, &message).expect("an error");
        assert_eq!(parsed.key(false), Some(Key::Echo(5)));
        let Message::Error(error) = parsed else { panic!("not an error") };
        assert_eq!(request_in(false, error.quoted.transport), Some((5, 6)));
        assert_eq!((error.kind.mtu, error.kind.words), (Some(1400), "fragmentation needed"));
        message[8 + 9] = 17;
        assert_eq!(parse(false, &message).expect("an error").key(false), Some(Key::Udp(0x0800)));
        message[8 + 9] = 47;
        assert_eq!(parse(false, &message).expect("an error").key(false), None, "we send no such packets");
    }

    #[test]
    fn no_prefix_or_flip_of_a_message_panics() {
        let mut ip = vec![0x60, 0, 0, 0, 0, 16, 44, 64];
        ip.extend([0x20; 32]);
        ip.extend([58, 0, 0, 1, 0, 0, 0, 9]);
        ip.extend(echo_request(true, 5, 6, b"xxxxxxxx"));
        let mut v6 = vec![V6_TIME_EXCEEDED, 0, 0, 0, 0, 0, 0, 0];
        v6.extend(&ip);
        let mut v4 = vec![V4_TIME_EXCEEDED, 0, 0, 0, 0, 0, 0, 0, 0x4f, 0, 0, 84, 0, 0, 0, 0, 1, 1];
        v4.extend([0; 60]);
        for (is_v6, message) in [(true, v6), (false, v4)] {
            for cut in 0..=message.len() {
                let _ = parse(is_v6, &message[..cut]).map(|message| message.key(is_v6));
                let _ = strip_ipv4(&message[..cut]);
            }
            for bit in 0..message.len() * 8 {
                let mut flipped = message.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let _ = parse(is_v6, &flipped).map(|message| message.key(is_v6));
                let _ = strip_ipv4(&flipped);
            }
        }
    }
}
