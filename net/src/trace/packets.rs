//! The packets of a trace as bytes, and which of them an answer is to. Pure: no sockets, no clocks.
//!
//! Routers quote as little as the first 8 bytes behind the IP header, so these must tell the probes apart, without
//! touching what paths are chosen by (ports; for ICMP type, code, checksum and identifier):
//!
//! | carrier | probes differ in | kept the same by |
//! | --- | --- | --- |
//! | ICMP | sequence number | two bytes of data that make up for it in the checksum |
//! | UDP | checksum, by random data | |
//! | TCP | initial sequence number, random | |

use std::collections::HashMap;
use std::net::IpAddr;

use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::tcp::{self, TcpFlags, TcpPacket};
use pnet_packet::udp::{self, UdpPacket};
use rand::Rng;

use crate::dns::Query;
use crate::packet::icmp;
use crate::packet::quoted::Quoted;

const TOKEN: usize = 16;
/// So much of a quoted packet's data is needed to know a probe by it alone.
const ENOUGH: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub ttl: u8,
    pub flow: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Icmp,
    Tcp,
    Udp,
}

/// What all packets of a trace have in common.
#[derive(Clone)]
pub struct Shape {
    pub transport: Transport,
    pub source: IpAddr,
    pub target: IpAddr,
    pub port: u16,
    /// Bytes of data.
    pub size: usize,
    /// The data is this question, with an identifier of its own in each probe.
    pub question: Option<Query>,
}

impl Shape {
    #[must_use]
    pub fn v6(&self) -> bool {
        self.target.is_ipv6()
    }

    #[must_use]
    pub fn packet_size(&self) -> u32 {
        let ip = if self.v6() { 40 } else { 20 };
        let header = if self.transport == Transport::Tcp { 20 } else { 8 };
        ip + header + u32::try_from(self.size).unwrap_or(u32::MAX)
    }

    fn protocol(&self) -> u8 {
        match (self.transport, self.v6()) {
            (Transport::Icmp, false) => IpNextHeaderProtocols::Icmp.0,
            (Transport::Icmp, true) => IpNextHeaderProtocols::Icmpv6.0,
            (Transport::Tcp, _) => IpNextHeaderProtocols::Tcp.0,
            (Transport::Udp, _) => IpNextHeaderProtocols::Udp.0,
        }
    }

    /// Can probes of one flow be told apart by 8 bytes, with nothing changed that paths are chosen by?
    #[must_use]
    pub fn can_hold_a_flow(&self) -> bool {
        self.transport == Transport::Tcp || self.size >= 2
    }
}

/// One probe.
struct Packet {
    ttl: u8,
    lane: usize,
    /// ICMP: sequence number. TCP: initial sequence number. UDP: checksum.
    number: u32,
    token: [u8; TOKEN],
    /// ICMP: what makes the checksum that of its flow.
    balance: [u8; 2],
}

pub struct Packets {
    pub shape: Shape,
    pub constant_flow: bool,
    /// Each probe has a lane of its own, with its number.
    each: bool,
    /// Source port or ICMP identifier of each lane.
    lanes: Vec<u16>,
    sent: Vec<Packet>,
    by_number: HashMap<(usize, u32), u32>,
    by_data: HashMap<[u8; 2], u32>,
}

/// How many source ports or identifiers a trace needs, and whether its flows are constant.
#[must_use]
pub fn lanes(shape: &Shape, probes: &[Probe], own_port_each: bool) -> (usize, bool) {
    let flows = probes.iter().map(|probe| usize::from(probe.flow) + 1).max().unwrap_or(1);
    let udp_without_data = shape.transport == Transport::Udp && !shape.can_hold_a_flow();
    let each = udp_without_data || (own_port_each && shape.transport != Transport::Icmp);
    if each { (probes.len(), false) } else { (flows, shape.can_hold_a_flow()) }
}

impl Packets {
    /// `lanes` are the source ports or identifiers that are ours.
    #[must_use]
    pub fn new(shape: Shape, probes: &[Probe], lanes: Vec<u16>, constant_flow: bool) -> Self {
        let each = lanes.len() == probes.len() && !constant_flow && shape.transport != Transport::Icmp;
        let mut packets = Self {
            shape,
            constant_flow,
            each,
            lanes,
            sent: Vec::with_capacity(probes.len()),
            by_number: HashMap::new(),
            by_data: HashMap::new(),
        };
        let mut random = rand::rng();
        let first_seq: u16 = random.random();
        let sums: Vec<u16> = (0..packets.lanes.len()).map(|_| random.random()).collect();
        for (index, probe) in (0_u32..).zip(probes) {
            let lane = if each { index as usize } else { usize::from(probe.flow) };
            // Another try when two probes would look the same: rare, and soon over.
            for try_left in (0..64).rev() {
                let packet = packets.packet(index, probe.ttl, lane, first_seq, &sums);
                if try_left == 0 || !packets.is_taken(&packet) {
                    packets.insert(index, packet);
                    break;
                }
            }
        }
        packets
    }

    fn packet(&self, index: u32, ttl: u8, lane: usize, first_seq: u16, sums: &[u16]) -> Packet {
        let mut random = rand::rng();
        let mut packet = Packet { ttl, lane, number: 0, token: random.random(), balance: [0; 2] };
        match self.shape.transport {
            Transport::Icmp => {
                // Counted on, so that no two are the same.
                #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
                let seq = first_seq.wrapping_add(index as u16);
                packet.number = seq.into();
                // The one's complement sum of the message without its checksum.
                let sum = !pnet_packet::util::checksum(&self.bytes_of(&packet), 1);
                packet.balance = difference(sums.get(lane).copied().unwrap_or(0), sum).to_be_bytes();
            }
            Transport::Tcp => packet.number = random.random(),
            Transport::Udp => packet.number = u16_at(&self.bytes_of(&packet), 6).into(),
        }
        packet
    }

    /// The beginning of a datagram's data, which tells probes apart too.
    fn beginning(&self, packet: &Packet) -> Option<[u8; 2]> {
        (self.shape.transport == Transport::Udp).then(|| self.data(packet).first_chunk().copied())?
    }

    fn is_taken(&self, packet: &Packet) -> bool {
        // Acknowledgements count the data in or not: neither may point to another probe.
        let reach =
            if self.shape.transport == Transport::Tcp { u32::try_from(self.shape.size).unwrap_or(0) } else { 0 };
        let numbers = [0, reach, reach.wrapping_neg()].map(|step| (packet.lane, packet.number.wrapping_add(step)));
        numbers.iter().any(|number| self.by_number.contains_key(number))
            || (!self.each && self.beginning(packet).is_some_and(|data| self.by_data.contains_key(&data)))
    }

    fn insert(&mut self, index: u32, packet: Packet) {
        if let Some(data) = self.beginning(&packet) {
            self.by_data.insert(data, index);
        }
        self.by_number.insert((packet.lane, packet.number), index);
        self.sent.push(packet);
    }

    #[must_use]
    pub fn ttl(&self, index: u32) -> Option<u8> {
        Some(self.sent.get(index as usize)?.ttl)
    }

    #[must_use]
    pub fn lane(&self, index: u32) -> Option<usize> {
        Some(self.sent.get(index as usize)?.lane)
    }

    /// What follows the IP header. The checksum of `ICMPv6` is the kernel's to fill in.
    #[must_use]
    pub fn bytes(&self, index: u32) -> Vec<u8> {
        self.sent.get(index as usize).map(|packet| self.bytes_of(packet)).unwrap_or_default()
    }

    /// What follows the UDP header.
    #[must_use]
    pub fn payload(&self, index: u32) -> Vec<u8> {
        self.sent.get(index as usize).map(|packet| self.data(packet)).unwrap_or_default()
    }

    fn data(&self, packet: &Packet) -> Vec<u8> {
        if let Some(question) = &self.shape.question {
            return question.with_id([packet.token[0], packet.token[1]]);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a pattern that wraps")]
        let mut data: Vec<u8> = (0..self.shape.size).map(|i| packet.token.get(i).copied().unwrap_or(i as u8)).collect();
        if self.shape.transport == Transport::Icmp
            && let Some(at) = balance_at(self.shape.size)
        {
            data[at..at + 2].copy_from_slice(&packet.balance);
        }
        data
    }

    fn bytes_of(&self, packet: &Packet) -> Vec<u8> {
        let data = self.data(packet);
        let lane = self.lanes.get(packet.lane).copied().unwrap_or(0);
        match self.shape.transport {
            Transport::Icmp =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "it is a sequence number of 16 bits")]
                icmp::echo_request(self.shape.v6(), lane, packet.number as u16, &data)
            }
            Transport::Udp => {
                let length = u16::try_from(8 + data.len()).unwrap_or(u16::MAX);
                let mut bytes = [lane, self.shape.port, length, 0].map(u16::to_be_bytes).concat();
                bytes.extend(data);
                let sum = UdpPacket::new(&bytes).map_or(0, |udp| match (self.shape.source, self.shape.target) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => udp::ipv4_checksum(&udp, &from, &to),
                    (IpAddr::V6(from), IpAddr::V6(to)) => udp::ipv6_checksum(&udp, &from, &to),
                    _ => 0,
                });
                // Zero would say that there is none (RFC 768).
                let sum = if sum == 0 { u16::MAX } else { sum };
                bytes[6..8].copy_from_slice(&sum.to_be_bytes());
                bytes
            }
            Transport::Tcp => {
                let mut bytes = [lane, self.shape.port].map(u16::to_be_bytes).concat();
                bytes.extend(packet.number.to_be_bytes());
                bytes.extend([0, 0, 0, 0, 5 << 4, TcpFlags::SYN, 0xfa, 0xf0, 0, 0, 0, 0]);
                bytes.extend(data);
                let sum = TcpPacket::new(&bytes).map_or(0, |tcp| match (self.shape.source, self.shape.target) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => tcp::ipv4_checksum(&tcp, &from, &to),
                    (IpAddr::V6(from), IpAddr::V6(to)) => tcp::ipv6_checksum(&tcp, &from, &to),
                    _ => 0,
                });
                bytes[16..18].copy_from_slice(&sum.to_be_bytes());
                bytes
            }
        }
    }

    /// Which probe a router quotes.
    #[must_use]
    pub fn quoted(&self, quoted: &Quoted<'_>) -> Option<u32> {
        if quoted.target != self.shape.target || quoted.protocol != self.shape.protocol() {
            return None;
        }
        let head: &[u8; 8] = quoted.transport.first_chunk()?;
        if self.shape.transport == Transport::Icmp {
            let (identifier, _) = icmp::request_in(self.shape.v6(), quoted.transport)?;
            return self.quoted_echo(identifier, quoted.transport);
        }
        let lane = self.lanes.iter().position(|port| *port == u16_at(head, 0))?;
        if u16_at(head, 2) != self.shape.port {
            return None;
        }
        if self.shape.transport == Transport::Tcp {
            return self.by_number.get(&(lane, u32::from_be_bytes([head[4], head[5], head[6], head[7]]))).copied();
        }
        // Where addresses are translated on the way, checksums are too; the data is not.
        let data = &quoted.transport[8..];
        if self.each {
            return u32::try_from(lane).ok().filter(|index| icmp::may_quote(&self.payload(*index), data));
        }
        let by_data = || self.data_of(lane, data).filter(|_| data.len() >= ENOUGH.min(self.shape.size));
        let by_sum = || self.by_number.get(&(lane, u16_at(head, 6).into())).copied();
        by_data().or_else(|| by_sum().filter(|index| icmp::may_quote(&self.payload(*index), data)))
    }

    /// The probe with data that begins like this.
    fn data_of(&self, lane: usize, data: &[u8]) -> Option<u32> {
        let index = *self.by_data.get(data.first_chunk()?)?;
        let packet = self.sent.get(index as usize).filter(|packet| packet.lane == lane)?;
        let sent = self.data(packet);
        let common = sent.len().min(data.len());
        (sent[..common] == data[..common]).then_some(index)
    }

    /// The probe with this identifier and sequence number.
    #[must_use]
    pub fn echo(&self, identifier: u16, seq: u16) -> Option<u32> {
        let lane = self.lanes.iter().position(|lane| *lane == identifier)?;
        self.by_number.get(&(lane, seq.into())).copied()
    }

    /// The probe of this flow whose message is quoted.
    #[must_use]
    pub fn quoted_echo(&self, identifier: u16, message: &[u8]) -> Option<u32> {
        let (_, seq) = icmp::request_in(self.shape.v6(), message)?;
        let index = self.echo(identifier, seq)?;
        let sent = self.data(self.sent.get(index as usize)?);
        icmp::may_quote(&sent, message.get(icmp::HEADER..)?).then_some(index)
    }

    /// Which probe an echo reply answers.
    #[must_use]
    pub fn echo_reply(&self, identifier: u16, seq: u16, data: &[u8]) -> Option<u32> {
        let index = self.echo(identifier, seq)?;
        let sent = self.data(self.sent.get(index as usize)?);
        // A reply may be cut short, but not before the end of the token.
        let common = sent.len().min(data.len());
        (common >= sent.len().min(TOKEN) && sent[..common] == data[..common]).then_some(index)
    }

    /// Which probe a TCP segment from the target to `port` acknowledges. A SYN's data need not be taken.
    #[must_use]
    pub fn acknowledged(&self, port: u16, acknowledgement: u32) -> Option<u32> {
        let lane = self.lanes.iter().position(|lane| *lane == port)?;
        let syn = acknowledgement.wrapping_sub(1);
        let with_data = syn.wrapping_sub(u32::try_from(self.shape.size).ok()?);
        let by = |number| self.by_number.get(&(lane, number)).copied();
        by(syn).or_else(|| by(with_data))
    }

    /// Which probe a datagram from the target answers, and with which DNS response code.
    #[must_use]
    pub fn answered(&self, lane: usize, data: &[u8]) -> Option<(u32, Option<u8>)> {
        let Some(question) = &self.shape.question else {
            // A service may send back what it got; what another one says cannot be laid to any one probe.
            return self.data_of(lane, data).filter(|_| data.len() >= ENOUGH).map(|index| (index, None));
        };
        let id = *data.first_chunk()?;
        let index = *self.by_data.get(&id)?;
        let ours = self.sent.get(index as usize).is_some_and(|packet| packet.lane == lane);
        (ours && question.accepts_as(id, data)).then(|| (index, data.get(3).map(|flags| flags & 0xf)))
    }
}

/// Where in data of this size the bytes are that balance an ICMP checksum: at an even place, behind the token.
fn balance_at(size: usize) -> Option<usize> {
    Some(size.checked_sub(2)?.min(TOKEN) & !1)
}

/// What must be added to `sum` to get `wanted`, in one's complement (RFC 1071).
fn difference(wanted: u16, sum: u16) -> u16 {
    let difference = u32::from(wanted) + u32::from(!sum);
    #[expect(clippy::cast_possible_truncation, reason = "the carry is folded in")]
    {
        ((difference & 0xffff) + (difference >> 16)) as u16
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Question;

    fn shape(transport: Transport, v6: bool, size: usize) -> Shape {
        let (source, target) = if v6 { ("fd80::1", "2001:db8::9") } else { ("10.80.1.1", "192.0.2.9") };
        let address = |text: &str| text.parse().expect("an address");
        Shape { transport, source: address(source), target: address(target), port: 80, size, question: None }
    }

    fn probes(ttls: u8, flows: u16) -> Vec<Probe> {
        (0..flows).flat_map(|flow| (1..=ttls).map(move |ttl| Probe { ttl, flow })).collect()
    }

    fn packets(shape: Shape, ttls: u8, flows: u16) -> Packets {
        let probes = probes(ttls, flows);
        let (count, constant) = lanes(&shape, &probes, false);
        let ports = (0..count).map(|lane| 40_000 + u16::try_from(lane).expect("few")).collect();
        Packets::new(shape, &probes, ports, constant)
    }

    fn quote(packets: &Packets, bytes: &[u8], length: usize) -> Option<u32> {
        let transport = &bytes[..length.min(bytes.len())];
        packets.quoted(&Quoted { target: packets.shape.target, protocol: packets.shape.protocol(), transport })
    }

    #[test]
    fn each_probe_is_known_by_eight_bytes_and_by_more() {
        for v6 in [false, true] {
            for transport in [Transport::Icmp, Transport::Tcp, Transport::Udp] {
                for size in [0, 1, 2, 3, 17, 18, 19, 56, 1472] {
                    let packets = packets(shape(transport, v6, size), 32, 8);
                    assert_eq!(packets.sent.len(), 256);
                    for index in 0..256 {
                        let bytes = packets.bytes(index);
                        for length in [8, 10, 12, 28, 2000] {
                            let found = quote(&packets, &bytes, length);
                            assert_eq!(found, Some(index), "{transport:?} v6 {v6} size {size} quoted {length}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_paths_are_chosen_by_is_the_same_in_all_probes_of_a_flow_and_differs_between_flows() {
        for (transport, same) in [(Transport::Icmp, 0..6), (Transport::Tcp, 0..4), (Transport::Udp, 0..4)] {
            for size in [2, 3, 16, 56, 57] {
                let packets = packets(shape(transport, false, size), 32, 3);
                assert!(packets.constant_flow);
                let of_flow = |flow: u32| -> Vec<Vec<u8>> {
                    (0..32).map(|ttl| packets.bytes(flow * 32 + ttl)[same.clone()].to_vec()).collect()
                };
                for flow in 0..3 {
                    let heads = of_flow(flow);
                    assert!(heads.iter().all(|head| *head == heads[0]), "{transport:?} {size}: {heads:?}");
                }
                assert_ne!(of_flow(0)[0], of_flow(1)[0]);
            }
        }
    }

    #[test]
    fn checksums_are_right() {
        let address = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("an address");
        let (from, to) = (address("10.80.1.1"), address("192.0.2.9"));
        let pseudo = |protocol: u8, bytes: &[u8]| {
            let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
            let head = [from.octets().as_slice(), &to.octets(), &[0, protocol], &length].concat();
            pnet_packet::util::checksum(&[head, bytes.to_vec()].concat(), usize::MAX)
        };
        for size in [0, 1, 56, 57] {
            let icmp = packets(shape(Transport::Icmp, false, size), 3, 1);
            assert_eq!(pnet_packet::util::checksum(&icmp.bytes(2), usize::MAX), 0);
            assert_eq!(pseudo(17, &packets(shape(Transport::Udp, false, size), 3, 1).bytes(2)), 0);
            assert_eq!(pseudo(6, &packets(shape(Transport::Tcp, false, size), 3, 1).bytes(2)), 0);
        }
    }

    #[test]
    fn another_target_port_or_protocol_is_not_ours() {
        let ours = packets(shape(Transport::Udp, false, 56), 3, 1);
        let bytes = ours.bytes(1);
        let quoted = |target: &str, protocol, transport| {
            ours.quoted(&Quoted { target: target.parse().expect("an address"), protocol, transport })
        };
        assert_eq!(quoted("192.0.2.9", 17, &bytes), Some(1));
        assert_eq!(quoted("192.0.2.8", 17, &bytes), None);
        assert_eq!(quoted("192.0.2.9", 6, &bytes), None);
        let mut other = bytes.clone();
        other[3] ^= 1;
        assert_eq!(quoted("192.0.2.9", 17, &other), None, "another port");
        assert_eq!(quoted("192.0.2.9", 17, &bytes[..7]), None, "too short");
    }

    #[test]
    fn a_checksum_that_was_translated_does_not_matter_where_data_is_quoted() {
        let packets = packets(shape(Transport::Udp, false, 56), 32, 1);
        let mut bytes = packets.bytes(7);
        bytes[7] ^= 0x55;
        assert_eq!(quote(&packets, &bytes, 28), Some(7));
        bytes[8..].fill(0);
        assert_ne!(quote(&packets, &bytes, 28), Some(7), "padding is not data, and the checksum is wrong");
        // A router that quotes 8 bytes and pads with zeros.
        let mut padded = packets.bytes(7);
        padded[8..].fill(0);
        assert_eq!(quote(&packets, &padded, 128), Some(7));
    }

    #[test]
    fn an_echo_of_the_same_numbers_with_other_data_is_not_ours() {
        let packets = packets(shape(Transport::Icmp, false, 56), 32, 1);
        let mut bytes = packets.bytes(7);
        bytes[12] ^= 1;
        assert_eq!(quote(&packets, &bytes, 64), None);
        assert_eq!(quote(&packets, &bytes, 8), Some(7), "nothing is quoted that could differ");
        bytes[8..].fill(0);
        assert_eq!(quote(&packets, &bytes, 128), Some(7), "padding");
    }

    #[test]
    fn replies_are_laid_to_the_probe_they_answer() {
        let icmp = packets(shape(Transport::Icmp, false, 56), 4, 2);
        let request = icmp.bytes(6);
        let (identifier, seq) = icmp::request_in(false, &request).expect("a request");
        assert_eq!(icmp.echo_reply(identifier, seq, &request[8..]), Some(6));
        assert_eq!(icmp.echo_reply(identifier, seq, &request[8..30]), Some(6), "cut short, with its token");
        assert_eq!(icmp.echo_reply(identifier, seq, &request[8..20]), None, "without it");
        assert_eq!(icmp.echo_reply(identifier ^ 1, seq, &request[8..]), None, "another flow");
        let tcp = packets(shape(Transport::Tcp, false, 56), 4, 1);
        let number = u32::from_be_bytes(tcp.bytes(3)[4..8].try_into().expect("four"));
        for (more, found) in [(1, Some(3)), (57, Some(3)), (0, None), (2, None), (58, None)] {
            assert_eq!(tcp.acknowledged(40_000, number.wrapping_add(more)), found, "{more}");
        }
        assert_eq!(tcp.acknowledged(40_001, number.wrapping_add(1)), None);
        let udp = packets(shape(Transport::Udp, false, 56), 4, 1);
        assert_eq!(udp.answered(0, &udp.payload(2)), Some((2, None)), "an echo service");
        assert_eq!(udp.answered(0, b"hello"), None);
    }

    #[test]
    fn dns_answers_are_known_by_identifier_and_question() {
        let question = |name: &str| {
            Query::of(&Question { name: name.into(), rtype: "A".into(), class: "IN".into() }).expect("a question")
        };
        let mut shape = shape(Transport::Udp, false, 0);
        let asked = question("www.example.com");
        shape.size = asked.bytes.len();
        shape.question = Some(asked);
        let packets = packets(shape, 32, 1);
        let mut answer = packets.payload(9);
        assert_eq!(packets.answered(0, &answer), None, "our own question is no answer");
        answer[2] |= 0x80;
        answer[3] |= 3;
        assert_eq!(packets.answered(0, &answer), Some((9, Some(3))));
        assert_eq!(packets.answered(1, &answer), None, "it came to another port");
        let mut other = question("other.example.com").with_id([answer[0], answer[1]]);
        other[2] |= 0x80;
        assert_eq!(packets.answered(0, &other), None, "another question");
    }
}
