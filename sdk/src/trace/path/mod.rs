//! The path assembled from the events of a trace.

use std::collections::BTreeMap;

use super::Parameters;
use super::hop::{self, FlowPath, Hop, Icmp, OtherSource, SendError, StopReason, StoppedBy};
use crate::IpVersion;
use crate::bindings::scouter::probe::asn::AutonomousSystem;
use crate::bindings::scouter::probe::hops::{HopEvent, HopResponse, IcmpMessage, ProbePacket, Protocol, ResponseKind};
use crate::stats::ms;

/// A path that grows with each event.
#[derive(Debug)]
pub struct Path {
    target: String,
    first_ttl: u8,
    max_ttl: u8,
    packets: Vec<ProbePacket>,
    /// State of each packet.
    states: Vec<State>,
    /// End of each flow, once it is known.
    ends: Vec<Option<End>>,
    /// Names and autonomous systems by address.
    owners: BTreeMap<String, Owner>,
    /// Further responses at each TTL.
    extras: BTreeMap<u8, Extras>,
    send_errors: Vec<SendError>,
    /// This host dropped packets, so a timeout may not be the network's.
    overflow: bool,
}

#[derive(Debug)]
struct Owner {
    hostname: String,
    asn: Option<u32>,
    as_name: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Extras {
    duplicates: u32,
    late: u32,
}

#[derive(Debug)]
enum State {
    Waiting,
    NotSent,
    TimedOut,
    Answered(HopResponse),
}

/// The response that ends a flow.
#[derive(Debug, Clone, Copy)]
struct End {
    ttl: u8,
    packet: usize,
    /// It came from the target.
    reached: bool,
}

impl Path {
    /// A path without responses. Its packets go up the TTLs once in each round, with all flows at each TTL.
    #[must_use]
    pub fn new(parameters: &Parameters) -> Self {
        let (first_ttl, max_ttl, flows) = (parameters.first_ttl, parameters.max_ttl, parameters.flows);
        // A SYN that repeats the ports of another one may be taken for its retransmission.
        let ports_of_rounds = matches!(parameters.protocol, Protocol::Tcp(_));
        let packets = (0..parameters.probes).flat_map(|round| {
            let first_flow = if ports_of_rounds { round * flows } else { 0 };
            (first_ttl..=max_ttl)
                .flat_map(move |ttl| (0..flows).map(move |flow| ProbePacket { ttl, flow: first_flow + flow, round }))
        });
        let packets: Vec<_> = packets.collect();
        Self {
            target: parameters.target.clone(),
            first_ttl,
            max_ttl,
            states: packets.iter().map(|_| State::Waiting).collect(),
            packets,
            ends: vec![None; flows.into()],
            owners: BTreeMap::new(),
            extras: BTreeMap::new(),
            send_errors: vec![],
            overflow: false,
        }
    }

    /// The packets to send, in order.
    #[must_use]
    pub fn packets(&self) -> &[ProbePacket] {
        &self.packets
    }

    /// Adds an event. True when the path has grown: a TTL has its first response, or a flow its end.
    pub fn add(&mut self, event: HopEvent) -> bool {
        match event {
            HopEvent::Sent(_) => {}
            HopEvent::Overflow(_) => self.overflow = true,
            HopEvent::TimedOut(packet) => self.set(packet, State::TimedOut),
            HopEvent::SendFailed(failure) => {
                self.send_errors.push(SendError { ttl: self.ttl(failure.packet), reason: failure.reason });
                self.set(failure.packet, State::NotSent);
            }
            HopEvent::Duplicate(response) => self.extras_at(response.packet).duplicates += 1,
            HopEvent::Late(response) => self.extras_at(response.packet).late += 1,
            HopEvent::Response(response) => return self.answered(response),
        }
        false
    }

    fn set(&mut self, packet: u32, state: State) {
        if let Some(slot) = self.states.get_mut(packet as usize) {
            *slot = state;
        }
    }

    fn ttl(&self, packet: u32) -> u8 {
        self.packets.get(packet as usize).map_or(0, |packet| packet.ttl)
    }

    fn extras_at(&mut self, packet: u32) -> &mut Extras {
        let ttl = self.ttl(packet);
        self.extras.entry(ttl).or_default()
    }

    fn answered(&mut self, response: HopResponse) -> bool {
        let packet = response.packet as usize;
        let Some(ProbePacket { ttl, flow, .. }) = self.packets.get(packet).copied() else { return false };
        let flow = flow % self.flow_count();
        let first = !self.at(ttl).any(|(_, state)| matches!(state, State::Answered(_)));
        let end = match &response.kind {
            ResponseKind::Icmp(icmp) if !is_unreachable(icmp, &response.source) => None,
            ResponseKind::Icmp(_) => Some(response.source == self.target),
            _ => Some(true),
        };
        self.set(response.packet, State::Answered(response));
        let mut ended = false;
        if let (Some(reached), Some(slot)) = (end, self.ends.get_mut(usize::from(flow))) {
            // The target's nearest response is its distance; a router's error counts while the target is silent.
            let better = slot.is_none_or(|old| (reached, old.ttl) > (old.reached, ttl));
            if better {
                *slot = Some(End { ttl, packet, reached });
                ended = true;
            }
        }
        first || ended
    }

    /// The last TTL of the path, once every flow has its end.
    #[must_use]
    pub fn end_ttl(&self) -> Option<u8> {
        let ends: Option<Vec<u8>> = self.ends.iter().map(|end| end.map(|end| end.ttl)).collect();
        ends?.into_iter().max()
    }

    /// Whether the target itself responded.
    #[must_use]
    pub fn reached(&self) -> bool {
        self.ends.iter().flatten().any(|end| end.reached)
    }

    /// Whether this host dropped packets.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.overflow
    }

    /// Packets that this host could not send.
    #[must_use]
    pub fn send_errors(&self) -> &[SendError] {
        &self.send_errors
    }

    fn response(&self, packet: usize) -> Option<&HopResponse> {
        match self.states.get(packet)? {
            State::Answered(response) => Some(response),
            _ => None,
        }
    }

    /// The target's response.
    #[must_use]
    pub fn target_response(&self) -> Option<&ResponseKind> {
        let end = self.ends.iter().flatten().find(|end| end.reached)?;
        self.response(end.packet).map(|response| &response.kind)
    }

    /// The end of the path.
    #[must_use]
    pub fn stopped_by(&self) -> StoppedBy {
        let reached = self.ends.iter().flatten().filter(|end| end.reached).min_by_key(|end| end.ttl);
        let all_ended = self.ends.iter().all(Option::is_some);
        let unreachable = || self.ends.iter().flatten().max_by_key(|end| end.ttl).filter(|_| all_ended);
        let Some(end) = reached.or_else(unreachable) else {
            return StoppedBy { reason: StopReason::MaxTtl, ttl: self.max_ttl, src: None, icmp: None };
        };
        let response = self.response(end.packet);
        StoppedBy {
            reason: if end.reached { StopReason::Target } else { StopReason::Unreachable },
            ttl: end.ttl,
            src: response.map(|response| response.source.clone()),
            icmp: response.and_then(|response| Icmp::of(&response.kind)),
        }
    }

    fn at(&self, ttl: u8) -> impl Iterator<Item = (usize, &State)> {
        self.states.iter().enumerate().filter(move |(index, _)| self.packets.get(*index).is_some_and(|p| p.ttl == ttl))
    }

    /// The hops that are known so far: to the end of the path, or to the last TTL with a response.
    #[must_use]
    pub fn known_hops(&self) -> Vec<Hop> {
        let answered = |ttl: &u8| self.at(*ttl).any(|(_, state)| matches!(state, State::Answered(_)));
        let last = self.end_ttl().or_else(|| (self.first_ttl..=self.max_ttl).rev().find(answered));
        self.hops_to(last)
    }

    /// The whole path: one hop for each TTL, to the target or the last TTL.
    #[must_use]
    pub fn hops(&self) -> Vec<Hop> {
        self.hops_to(Some(self.end_ttl().unwrap_or(self.max_ttl)))
    }

    fn hops_to(&self, last: Option<u8>) -> Vec<Hop> {
        last.map(|last| (self.first_ttl..=last).map(|ttl| self.hop(ttl)).collect()).unwrap_or_default()
    }

    fn hop(&self, ttl: u8) -> Hop {
        let mut hop = Hop { ttl, ..Hop::default() };
        let mut unknown = self.overflow;
        for (_, state) in self.at(ttl) {
            match state {
                State::Waiting | State::NotSent => unknown = true,
                State::TimedOut => hop.rtts_ms.push(None),
                State::Answered(response) => self.add_response(&mut hop, response),
            }
        }
        hop.rtt_ms = hop.rtts_ms.iter().flatten().copied().min_by(f64::total_cmp);
        hop.no_response = match hop.src {
            Some(_) => Some(false),
            None if unknown => None,
            None => Some(true),
        };
        let extras = self.extras.get(&ttl).copied().unwrap_or_default();
        (hop.duplicates, hop.late) = (extras.duplicates, extras.late);
        hop
    }

    fn add_response(&self, hop: &mut Hop, response: &HopResponse) {
        let rtt = response.rtt_ns.map(ms);
        let owner = self.owners.get(&response.source);
        let (asn, as_name) = (owner.and_then(|owner| owner.asn), owner.and_then(|owner| owner.as_name.clone()));
        let hostname = owner.map(|owner| owner.hostname.clone());
        match &hop.src {
            Some(src) if *src == response.source => hop.rtts_ms.push(rtt),
            Some(_) => match hop.others.iter_mut().find(|other| other.src == response.source) {
                Some(other) => other.rtts_ms.push(rtt),
                None => hop.others.push(OtherSource {
                    asn,
                    as_name,
                    src: response.source.clone(),
                    hostname,
                    rtts_ms: vec![rtt],
                    answer: hop::name(&response.kind),
                    icmp: Icmp::of(&response.kind),
                    mpls: hop::labels(&response.kind),
                }),
            },
            None => {
                hop.rtts_ms.push(rtt);
                hop.src = Some(response.source.clone());
                (hop.asn, hop.as_name, hop.hostname) = (asn, as_name, hostname);
                hop.answer = Some(hop::name(&response.kind));
                hop.icmp = Icmp::of(&response.kind);
                hop.mpls = hop::labels(&response.kind);
                hop.extensions = hop::extensions(&response.kind);
            }
        }
    }

    /// Flows of each round.
    fn flow_count(&self) -> u16 {
        u16::try_from(self.ends.len()).unwrap_or(u16::MAX).max(1)
    }

    /// The path of each flow, when there are several.
    #[must_use]
    pub fn flows(&self) -> Vec<FlowPath> {
        if self.ends.len() < 2 {
            return vec![];
        }
        let flow = |(flow, end): (u16, &Option<End>)| {
            let last = end.map_or(self.max_ttl, |end| end.ttl);
            let src = |ttl: u8| {
                let mut packets = self.at(ttl).map(|(packet, _)| packet);
                packets.find_map(|packet| {
                    let response = self.response(packet)?;
                    (self.packets.get(packet)?.flow % self.flow_count() == flow).then(|| response.source.clone())
                })
            };
            let srcs = (self.first_ttl..=last).map(src).collect();
            FlowPath { flow, reached: end.is_some_and(|end| end.reached), srcs }
        };
        (0..).zip(&self.ends).map(flow).collect()
    }

    /// The sources of all responses, each once.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let sources = (0..self.states.len()).filter_map(|packet| Some(self.response(packet)?.source.clone()));
        let mut addresses: Vec<String> = sources.collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Sets names and autonomous systems of addresses.
    pub fn set_owners(
        &mut self,
        owners: impl IntoIterator<Item = (String, (Option<String>, Option<AutonomousSystem>))>,
    ) {
        for (address, (hostname, system)) in owners {
            let (asn, as_name) = system.map_or((None, None), |system| (Some(system.number), system.name));
            self.owners.insert(address, Owner { hostname: hostname.unwrap_or_default(), asn, as_name });
        }
    }
}

/// Whether the error ends the path: destination unreachable and parameter problem, for IPv6 also packet too big.
fn is_unreachable(icmp: &IcmpMessage, source: &str) -> bool {
    match IpVersion::of(source) {
        IpVersion::V4 => matches!(icmp.icmp_type, 3 | 12),
        IpVersion::V6 => matches!(icmp.icmp_type, 1 | 2 | 4),
    }
}

#[cfg(test)]
mod tests;
