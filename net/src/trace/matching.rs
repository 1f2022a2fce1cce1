//! The probes of a trace, and which of them a message answers. Pure: no sockets, no clocks.

use std::collections::HashMap;

use crate::packet::icmp;
use crate::packet::quoted::Quoted;
use crate::packet::token::{TOKEN, may_quote};

use super::probe::{Flows, ProbeFields, ProbeId, ProbePacket, Template, Transport, u16_at};

/// Quoted payload bytes that suffice to identify a probe of UDP without its checksum.
const MIN_QUOTED_PAYLOAD: usize = 4;
/// Attempts to give a probe bytes that no other probe of the trace has.
const ATTEMPTS: u32 = 64;

/// All probes of a trace, by index and by what answers refer to.
pub struct ProbeTable {
    pub template: Template,
    flows: Flows,
    /// Source port or ICMP identifier of each flow.
    ports: Vec<u16>,
    probes: Vec<ProbeFields>,
    by_id: HashMap<(usize, ProbeId), u32>,
    /// UDP: by the first two bytes of the payload; a DNS message ID.
    by_payload: HashMap<[u8; 2], u32>,
}

impl ProbeTable {
    /// `ports` are the source ports or identifiers of the flows, which this trace owns.
    #[must_use]
    pub fn new(template: Template, packets: &[ProbePacket], flows: Flows, ports: Vec<u16>) -> Self {
        let probes = Vec::with_capacity(packets.len());
        let mut table = Self { template, flows, ports, probes, by_id: HashMap::new(), by_payload: HashMap::new() };
        let first_seq: u16 = rand::random();
        let checksums: Vec<u16> = (0..table.ports.len()).map(|_| rand::random()).collect();
        for (index, packet) in (0_u32..).zip(packets) {
            let flow = match flows {
                Flows::Shared(_) => usize::from(packet.flow),
                Flows::PerProbe(_) => index as usize,
            };
            #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
            let seq = first_seq.wrapping_add(index as u16);
            let checksum = checksums.get(flow).copied().unwrap_or(0);
            for attempts_left in (0..ATTEMPTS).rev() {
                let probe = table.template.probe(packet.ttl, flow, table.port(flow), seq, checksum);
                if attempts_left == 0 || !table.is_ambiguous(&probe) {
                    table.insert(index, probe);
                    break;
                }
            }
        }
        table
    }

    fn port(&self, flow: usize) -> u16 {
        self.ports.get(flow).copied().unwrap_or(0)
    }

    fn flow_of(&self, port: u16) -> Option<usize> {
        self.ports.iter().position(|own| *own == port)
    }

    /// The first bytes of a datagram's payload, which distinguish probes too.
    fn payload_prefix(&self, probe: &ProbeFields) -> Option<[u8; 2]> {
        (self.template.transport == Transport::Udp).then(|| self.template.payload(probe).first_chunk().copied())?
    }

    /// Would an answer to this probe also fit another one?
    fn is_ambiguous(&self, probe: &ProbeFields) -> bool {
        let by_id = match probe.id {
            // Acknowledgements include the payload or not: neither may refer to another probe.
            ProbeId::TcpIsn(isn) => {
                let size = u32::try_from(self.template.payload_size).unwrap_or(0);
                let isns = [0, size, size.wrapping_neg()].map(|offset| ProbeId::TcpIsn(isn.wrapping_add(offset)));
                isns.iter().any(|id| self.by_id.contains_key(&(probe.flow, *id)))
            }
            id => self.by_id.contains_key(&(probe.flow, id)),
        };
        let by_payload = || self.payload_prefix(probe).is_some_and(|prefix| self.by_payload.contains_key(&prefix));
        by_id || (matches!(self.flows, Flows::Shared(_)) && by_payload())
    }

    fn insert(&mut self, index: u32, probe: ProbeFields) {
        if let Some(prefix) = self.payload_prefix(&probe) {
            self.by_payload.insert(prefix, index);
        }
        self.by_id.insert((probe.flow, probe.id), index);
        self.probes.push(probe);
    }

    /// Do all probes of one flow have in common what paths are chosen by?
    #[must_use]
    pub fn has_constant_flows(&self) -> bool {
        matches!(self.flows, Flows::Shared(_)) && self.template.keeps_flow_constant()
    }

    #[must_use]
    pub fn probe(&self, index: u32) -> Option<&ProbeFields> {
        self.probes.get(index as usize)
    }

    /// What follows the IP header.
    #[must_use]
    pub fn bytes(&self, index: u32) -> Vec<u8> {
        self.probe(index).map(|probe| self.template.bytes(probe, self.port(probe.flow))).unwrap_or_default()
    }

    /// What follows the ICMP, TCP or UDP header.
    #[must_use]
    pub fn payload(&self, index: u32) -> Vec<u8> {
        self.probe(index).map(|probe| self.template.payload(probe)).unwrap_or_default()
    }

    /// The probe that an ICMP error quotes.
    #[must_use]
    pub fn quoted(&self, quoted: &Quoted<'_>) -> Option<u32> {
        if quoted.target != self.template.target.ip() || quoted.protocol != self.template.protocol() {
            return None;
        }
        let head: &[u8; 8] = quoted.transport.first_chunk()?;
        if self.template.transport == Transport::Icmp {
            let (identifier, _) = icmp::parse_echo_request(self.template.family(), quoted.transport)?;
            return self.quoted_echo(identifier, quoted.transport);
        }
        let flow = self.flow_of(u16_at(head, 0))?;
        if u16_at(head, 2) != self.template.target.port() {
            return None;
        }
        if self.template.transport == Transport::Tcp {
            let isn = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            return self.by_id.get(&(flow, ProbeId::TcpIsn(isn))).copied();
        }
        let payload = &quoted.transport[8..];
        if matches!(self.flows, Flows::PerProbe(_)) {
            return u32::try_from(flow).ok().filter(|index| may_quote(&self.payload(*index), payload));
        }
        // Address translation on the path changes checksums, but not the payload.
        let enough = MIN_QUOTED_PAYLOAD.min(self.template.payload_size);
        let by_payload = || self.with_payload(flow, payload).filter(|_| payload.len() >= enough);
        let by_checksum = || self.by_id.get(&(flow, ProbeId::UdpChecksum(u16_at(head, 6)))).copied();
        by_payload().or_else(|| by_checksum().filter(|index| may_quote(&self.payload(*index), payload)))
    }

    /// The probe whose payload begins like this.
    fn with_payload(&self, flow: usize, payload: &[u8]) -> Option<u32> {
        let index = *self.by_payload.get(payload.first_chunk()?)?;
        let probe = self.probe(index).filter(|probe| probe.flow == flow)?;
        let sent = self.template.payload(probe);
        let common = sent.len().min(payload.len());
        (sent[..common] == payload[..common]).then_some(index)
    }

    fn echo(&self, identifier: u16, seq: u16) -> Option<u32> {
        self.by_id.get(&(self.flow_of(identifier)?, ProbeId::IcmpSeq(seq))).copied()
    }

    /// The probe of this identifier whose message is quoted.
    #[must_use]
    pub fn quoted_echo(&self, identifier: u16, message: &[u8]) -> Option<u32> {
        let (_, seq) = icmp::parse_echo_request(self.template.family(), message)?;
        let index = self.echo(identifier, seq)?;
        may_quote(&self.payload(index), message.get(icmp::HEADER..)?).then_some(index)
    }

    /// The probe that an echo reply answers.
    #[must_use]
    pub fn echo_reply(&self, identifier: u16, seq: u16, payload: &[u8]) -> Option<u32> {
        let index = self.echo(identifier, seq)?;
        let sent = self.payload(index);
        // A reply may be truncated, but not within the token.
        let common = sent.len().min(payload.len());
        (common >= sent.len().min(TOKEN) && sent[..common] == payload[..common]).then_some(index)
    }

    /// The probe that a TCP segment from the target to `port` acknowledges. The target need not accept a SYN's payload.
    #[must_use]
    pub fn acknowledged(&self, port: u16, acknowledgement: u32) -> Option<u32> {
        let flow = self.flow_of(port)?;
        let without_payload = acknowledgement.wrapping_sub(1);
        let with_payload = without_payload.wrapping_sub(u32::try_from(self.template.payload_size).ok()?);
        let by = |isn| self.by_id.get(&(flow, ProbeId::TcpIsn(isn))).copied();
        by(without_payload).or_else(|| by(with_payload))
    }

    /// The probe that a datagram from the target answers, and the response code of a DNS message (4 bits).
    #[must_use]
    pub fn datagram_answer(&self, flow: usize, payload: &[u8]) -> Option<(u32, Option<u8>)> {
        let Some(question) = &self.template.question else {
            // An echo service returns the payload; any other datagram refers to no probe in particular.
            let echoed = self.with_payload(flow, payload).filter(|_| payload.len() >= MIN_QUOTED_PAYLOAD);
            return echoed.map(|index| (index, None));
        };
        let id = *payload.first_chunk()?;
        let index = *self.by_payload.get(&id)?;
        let is_ours = self.probe(index).is_some_and(|probe| probe.flow == flow);
        (is_ours && question.accepts_as(id, payload)).then(|| (index, payload.get(3).map(|flags| flags & 0xf)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::UDP_PAYLOAD;
    use super::*;
    use crate::Family;
    use crate::dns::{Query, Question};

    fn template(transport: Transport, family: Family, payload_size: usize) -> Template {
        let (source, target) = match family {
            Family::V4 => ("10.80.1.1:0", "192.0.2.9:80"),
            Family::V6 => ("[fd80::1]:0", "[2001:db8::9]:80"),
        };
        let address = |text: &str| text.parse().expect("an address");
        Template { transport, source: address(source), target: address(target), payload_size, question: None }
    }

    fn plan(ttls: u8, flows: u16) -> Vec<ProbePacket> {
        (0..flows).flat_map(|flow| (1..=ttls).map(move |ttl| ProbePacket { ttl, flow, round: 0 })).collect()
    }

    fn table(template: Template, ttls: u8, flows: u16) -> ProbeTable {
        let packets = plan(ttls, flows);
        let flows = Flows::of(&template, &packets, false);
        let ports = (0..flows.count()).map(|flow| 40_000 + u16::try_from(flow).expect("few")).collect();
        ProbeTable::new(template, &packets, flows, ports)
    }

    fn quote(table: &ProbeTable, bytes: &[u8], length: usize) -> Option<u32> {
        let transport = &bytes[..length.min(bytes.len())];
        let (source, target) = (table.template.source.ip(), table.template.target.ip());
        table.quoted(&Quoted { source, target, protocol: table.template.protocol(), transport })
    }

    #[test]
    fn each_probe_is_known_by_eight_bytes_and_by_more() {
        for family in Family::BOTH {
            for transport in [Transport::Icmp, Transport::Tcp, Transport::Udp] {
                for size in [0, 1, 2, 3, 17, 18, 19, 56, 1472] {
                    let size = if transport == Transport::Udp { UDP_PAYLOAD.max(size) } else { size };
                    let table = table(template(transport, family, size), 32, 8);
                    assert_eq!(table.probes.len(), 256);
                    for index in 0..256 {
                        let bytes = table.bytes(index);
                        for length in [8, 10, 12, 28, 2000] {
                            let found = quote(&table, &bytes, length);
                            assert_eq!(found, Some(index), "{transport:?} IPv{family} size {size} quoted {length}");
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
                let table = table(template(transport, Family::V4, size), 32, 3);
                assert!(table.has_constant_flows());
                let of_flow = |flow: u32| -> Vec<Vec<u8>> {
                    (0..32).map(|ttl| table.bytes(flow * 32 + ttl)[same.clone()].to_vec()).collect()
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
            let icmp = table(template(Transport::Icmp, Family::V4, size), 3, 1);
            assert_eq!(pnet_packet::util::checksum(&icmp.bytes(2), usize::MAX), 0);
            assert_eq!(pseudo(17, &table(template(Transport::Udp, Family::V4, size), 3, 1).bytes(2)), 0);
            assert_eq!(pseudo(6, &table(template(Transport::Tcp, Family::V4, size), 3, 1).bytes(2)), 0);
        }
    }

    #[test]
    fn another_target_port_or_protocol_is_not_ours() {
        let ours = table(template(Transport::Udp, Family::V4, 56), 3, 1);
        let bytes = ours.bytes(1);
        let quoted = |target: &str, protocol, transport| {
            ours.quoted(&Quoted {
                source: ours.template.source.ip(),
                target: target.parse().expect("an address"),
                protocol,
                transport,
            })
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
        let table = table(template(Transport::Udp, Family::V4, 56), 32, 1);
        let mut bytes = table.bytes(7);
        bytes[7] ^= 0x55;
        assert_eq!(quote(&table, &bytes, 28), Some(7));
        bytes[8..].fill(0);
        assert_ne!(quote(&table, &bytes, 28), Some(7), "padding is not data, and the checksum is wrong");
        // A router that quotes 8 bytes and pads with zeros.
        let mut padded = table.bytes(7);
        padded[8..].fill(0);
        assert_eq!(quote(&table, &padded, 128), Some(7));
    }

    #[test]
    fn an_echo_of_the_same_numbers_with_other_data_is_not_ours() {
        let table = table(template(Transport::Icmp, Family::V4, 56), 32, 1);
        let mut bytes = table.bytes(7);
        bytes[12] ^= 1;
        assert_eq!(quote(&table, &bytes, 64), None);
        assert_eq!(quote(&table, &bytes, 8), Some(7), "nothing is quoted that could differ");
        bytes[8..].fill(0);
        assert_eq!(quote(&table, &bytes, 128), Some(7), "padding");
    }

    #[test]
    fn each_reply_is_matched_to_its_probe() {
        let icmp = table(template(Transport::Icmp, Family::V4, 56), 4, 2);
        let request = icmp.bytes(6);
        let (identifier, seq) = icmp::parse_echo_request(Family::V4, &request).expect("a request");
        assert_eq!(icmp.echo_reply(identifier, seq, &request[8..]), Some(6));
        assert_eq!(icmp.echo_reply(identifier, seq, &request[8..30]), Some(6), "cut short, with its token");
        assert_eq!(icmp.echo_reply(identifier, seq, &request[8..20]), None, "without it");
        assert_eq!(icmp.echo_reply(identifier ^ 1, seq, &request[8..]), None, "another flow");
        let tcp = table(template(Transport::Tcp, Family::V4, 56), 4, 1);
        let number = u32::from_be_bytes(tcp.bytes(3)[4..8].try_into().expect("four"));
        for (more, found) in [(1, Some(3)), (57, Some(3)), (0, None), (2, None), (58, None)] {
            assert_eq!(tcp.acknowledged(40_000, number.wrapping_add(more)), found, "{more}");
        }
        assert_eq!(tcp.acknowledged(40_001, number.wrapping_add(1)), None);
        let udp = table(template(Transport::Udp, Family::V4, 56), 4, 1);
        assert_eq!(udp.datagram_answer(0, &udp.payload(2)), Some((2, None)), "an echo service");
        assert_eq!(udp.datagram_answer(0, b"hello"), None);
    }

    #[test]
    fn dns_answers_are_known_by_identifier_and_question() {
        let question = |name: &str| {
            Query::of(&Question { name: name.into(), rtype: "A".into(), class: "IN".into() }).expect("a question")
        };
        let mut template = template(Transport::Udp, Family::V4, 0);
        let asked = question("www.example.com");
        template.payload_size = asked.bytes.len();
        template.question = Some(asked);
        let table = table(template, 32, 1);
        let mut answer = table.payload(9);
        assert_eq!(table.datagram_answer(0, &answer), None, "our own question is no answer");
        answer[2] |= 0x80;
        answer[3] |= 3;
        assert_eq!(table.datagram_answer(0, &answer), Some((9, Some(3))));
        assert_eq!(table.datagram_answer(1, &answer), None, "it came to another port");
        let mut other = question("other.example.com").with_id([answer[0], answer[1]]);
        other[2] |= 0x80;
        assert_eq!(table.datagram_answer(0, &other), None, "another question");
    }
}
