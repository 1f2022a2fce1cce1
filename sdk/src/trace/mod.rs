//! The path to a target, put together from probes with a limited time to live: which probes to send, what each
//! answer means for the path, and the path as results show it.

mod hop;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::bindings::scouter::probe::hops::{Answer, Heard, HopEvent, IcmpMessage, Probe, Trace, TracePlan};
use crate::bindings::scouter::probe::icmp::Mode;
use crate::bindings::scouter::probe::net::NetError;
use crate::bindings::scouter::probe::{asn, resolver};
use crate::stats::ms;

pub use hop::{Extension, Flow, Hop, Icmp, Label, Other, Reason, Stop, Unsent};
use hop::{extensions, labels, words};

/// What every trace finds, as results show it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Found {
    /// The address that was traced.
    pub address: String,
    /// 4 or 6.
    pub family: u8,
    /// Bytes of data in each probe.
    pub payload_size: u16,
    /// Bytes of each IP packet.
    pub packet_size: u32,
    /// One hop for each time to live, until the target or the last one.
    pub trace: Vec<Hop>,
    /// The path of each flow, when several were explored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<Flow>,
    /// The target itself answered.
    pub reached: bool,
    /// Why the path ends where it does; unknown while it grows.
    pub stopped_by: Option<Stop>,
    /// How the probes were sent: `raw` or `datagram`.
    pub mode: &'static str,
    /// All probes of a flow took one path, as far as routers balance by flow.
    pub constant_flow: bool,
    /// Probes that the probing host could not send.
    pub errors: Vec<Unsent>,
    /// Why the picture is worse than the network, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<&'static str>,
}

/// Follows a path to its end: sends its probes as `plan` says, gives up what lies behind the target, shows the path
/// to `watch` as it grows, and looks up who is on it.
///
/// # Errors
/// What the trace could not be started for.
pub fn follow(mut path: Path, plan: &TracePlan, mut watch: impl FnMut(&Found)) -> Result<(Found, Path), NetError> {
    let trace = Trace::start(plan)?;
    let facts = trace.facts();
    let mut found = Found {
        family: if plan.target.contains(':') { 6 } else { 4 },
        address: plan.target.clone(),
        payload_size: facts.payload_size,
        packet_size: facts.packet_size,
        trace: vec![],
        paths: vec![],
        reached: false,
        stopped_by: None,
        mode: match facts.mode {
            Mode::Raw => "raw",
            Mode::Datagram => "datagram",
        },
        constant_flow: facts.constant_flow,
        errors: vec![],
        degraded: None,
    };
    while let Some(event) = trace.next() {
        if path.add(event) {
            if let Some(ttl) = path.keep() {
                trace.keep(ttl);
            }
            found.trace = path.so_far();
            found.reached = path.reached();
            watch(&found);
        }
    }
    path.look_up();
    found.trace = path.whole();
    if path.ends.len() > 1 {
        found.paths = path.flows();
    }
    found.reached = path.reached();
    found.stopped_by = Some(path.stopped_by());
    found.degraded = path.overflow.then_some("host_receive_overflow");
    found.errors.clone_from(&path.unsent);
    Ok((found, path))
}

/// A path that grows with each event.
#[derive(Debug)]
pub struct Path {
    target: String,
    first_ttl: u8,
    max_ttl: u8,
    probes: Vec<Probe>,
    states: Vec<State>,
    ends: Vec<Option<End>>,
    names: BTreeMap<String, Named>,
    extras: BTreeMap<u8, (u32, u32)>,
    unsent: Vec<Unsent>,
    /// This host dropped packets: silence may not be the network's.
    overflow: bool,
}

#[derive(Debug, Default)]
struct Named {
    hostname: Option<String>,
    asn: Option<u32>,
    as_name: Option<String>,
}

#[derive(Debug)]
enum State {
    Waiting,
    Unsent,
    Silent,
    Answered(Heard),
}

/// Where a flow ends.
#[derive(Debug, Clone, Copy)]
struct End {
    ttl: u8,
    probe: usize,
    reached: bool,
}

impl Path {
    /// `rounds` probes for each TTL from `first_ttl` to `max_ttl` and each of `flows`. A round goes up the path before
    /// the next one begins, so that no router gets many probes at once: they bound what they answer.
    #[must_use]
    pub fn new(target: &str, first_ttl: u8, max_ttl: u8, rounds: u16, flows: u16) -> Self {
        let ttls = move |flow| (first_ttl..=max_ttl).map(move |ttl| Probe { ttl, flow });
        let probes: Vec<Probe> = (0..rounds).flat_map(|_| (0..flows).flat_map(ttls)).collect();
        Self {
            target: target.to_owned(),
            first_ttl,
            max_ttl,
            states: probes.iter().map(|_| State::Waiting).collect(),
            probes,
            ends: vec![None; flows.into()],
            names: BTreeMap::new(),
            extras: BTreeMap::new(),
            unsent: vec![],
            overflow: false,
        }
    }

    /// What to send, in this order.
    #[must_use]
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// Takes an event in. True when it is news: a TTL has its first answer, or a flow its end.
    pub fn add(&mut self, event: HopEvent) -> bool {
        match event {
            HopEvent::Sent(_) => false,
            HopEvent::Overflow(_) => {
                self.overflow = true;
                false
            }
            HopEvent::Silent(probe) => {
                self.set(probe, State::Silent);
                false
            }
            HopEvent::SendFailed(failure) => {
                let ttl = self.probes.get(failure.probe as usize).map_or(0, |probe| probe.ttl);
                self.unsent.push(Unsent { ttl, reason: failure.reason });
                self.set(failure.probe, State::Unsent);
                false
            }
            HopEvent::Duplicate(heard) => {
                self.extra(heard.probe).0 += 1;
                false
            }
            HopEvent::Late(heard) => {
                self.extra(heard.probe).1 += 1;
                false
            }
            HopEvent::Answered(heard) => self.answered(heard),
        }
    }

    fn set(&mut self, probe: u32, state: State) {
        if let Some(slot) = self.states.get_mut(probe as usize) {
            *slot = state;
        }
    }

    fn extra(&mut self, probe: u32) -> &mut (u32, u32) {
        let ttl = self.probes.get(probe as usize).map_or(0, |probe| probe.ttl);
        self.extras.entry(ttl).or_default()
    }

    fn answered(&mut self, heard: Heard) -> bool {
        let index = heard.probe as usize;
        let Some(Probe { ttl, flow }) = self.probes.get(index).copied() else { return false };
        let first = !self.at(ttl).any(|(_, state)| matches!(state, State::Answered(_)));
        let end = match &heard.answer {
            Answer::Icmp(icmp) if !is_unreachable(icmp, &heard.source) => None,
            Answer::Icmp(_) => Some(heard.source == self.target),
            _ => Some(true),
        };
        self.set(heard.probe, State::Answered(heard));
        let mut ended = false;
        if let (Some(reached), Some(slot)) = (end, self.ends.get_mut(usize::from(flow))) {
            // The nearest answer of the target is where it is; what a router says counts while the target is silent.
            let better = slot.is_none_or(|old| (reached, old.ttl) > (old.reached, ttl));
            if better {
                *slot = Some(End { ttl, probe: index, reached });
                ended = true;
            }
        }
        first || ended
    }

    /// The highest TTL that is still of interest, once every flow has its end.
    #[must_use]
    pub fn keep(&self) -> Option<u8> {
        let ends: Option<Vec<u8>> = self.ends.iter().map(|end| end.map(|end| end.ttl)).collect();
        ends?.into_iter().max()
    }

    /// Did the target itself answer?
    #[must_use]
    pub fn reached(&self) -> bool {
        self.ends.iter().flatten().any(|end| end.reached)
    }

    /// What the target answered.
    #[must_use]
    pub fn last_answer(&self) -> Option<&Answer> {
        let end = self.ends.iter().flatten().find(|end| end.reached)?;
        match self.states.get(end.probe)? {
            State::Answered(heard) => Some(&heard.answer),
            _ => None,
        }
    }

    /// Why the path ends where it does.
    #[must_use]
    pub fn stopped_by(&self) -> Stop {
        let reached = self.ends.iter().flatten().filter(|end| end.reached).min_by_key(|end| end.ttl);
        let all_ended = self.ends.iter().all(Option::is_some);
        let refused = || self.ends.iter().flatten().max_by_key(|end| end.ttl).filter(|_| all_ended);
        let Some(end) = reached.or_else(refused) else {
            return Stop { reason: Reason::MaxTtl, ttl: self.max_ttl, src: None, icmp: None };
        };
        let heard = match self.states.get(end.probe) {
            Some(State::Answered(heard)) => Some(heard),
            _ => None,
        };
        Stop {
            reason: if end.reached { Reason::Target } else { Reason::Unreachable },
            ttl: end.ttl,
            src: heard.map(|heard| heard.source.clone()),
            icmp: heard.and_then(|heard| Icmp::of(&heard.answer)),
        }
    }

    fn at(&self, ttl: u8) -> impl Iterator<Item = (usize, &State)> {
        self.states.iter().enumerate().filter(move |(index, _)| self.probes.get(*index).is_some_and(|p| p.ttl == ttl))
    }

    /// The path as it is known: up to the end, or while it is not known, to the last TTL that was answered.
    #[must_use]
    pub fn so_far(&self) -> Vec<Hop> {
        let heard = |ttl: &u8| self.at(*ttl).any(|(_, state)| matches!(state, State::Answered(_)));
        let last = self.keep().or_else(|| (self.first_ttl..=self.max_ttl).rev().find(heard));
        self.hops(last)
    }

    /// The whole path: one hop for each TTL until the target, or the last TTL.
    #[must_use]
    pub fn whole(&self) -> Vec<Hop> {
        self.hops(Some(self.keep().unwrap_or(self.max_ttl)))
    }

    fn hops(&self, last: Option<u8>) -> Vec<Hop> {
        last.map(|last| (self.first_ttl..=last).map(|ttl| self.hop(ttl)).collect()).unwrap_or_default()
    }

    fn hop(&self, ttl: u8) -> Hop {
        let mut hop = Hop { ttl, ..Hop::default() };
        let (mut waiting, mut unknown) = (false, false);
        for (_, state) in self.at(ttl) {
            match state {
                State::Waiting => waiting = true,
                State::Unsent => unknown = true,
                State::Silent => hop.rtts_ms.push(None),
                State::Answered(heard) => self.take(&mut hop, heard),
            }
        }
        hop.rtt_ms = hop.rtts_ms.iter().flatten().copied().min_by(f64::total_cmp);
        hop.no_response = match hop.src {
            Some(_) => Some(false),
            None if waiting || unknown || self.overflow => None,
            None => Some(true),
        };
        (hop.duplicates, hop.late) = self.extras.get(&ttl).copied().unwrap_or_default();
        hop
    }

    fn take(&self, hop: &mut Hop, heard: &Heard) {
        let rtt = heard.rtt_ns.map(ms);
        let named = self.names.get(&heard.source);
        let (asn, as_name) = (named.and_then(|n| n.asn), named.and_then(|n| n.as_name.clone()));
        let hostname = named.and_then(|n| n.hostname.clone());
        match &hop.src {
            Some(src) if *src == heard.source => hop.rtts_ms.push(rtt),
            Some(_) => match hop.others.iter_mut().find(|other| other.src == heard.source) {
                Some(other) => other.rtts_ms.push(rtt),
                None => hop.others.push(Other {
                    asn,
                    as_name,
                    src: heard.source.clone(),
                    hostname,
                    rtts_ms: vec![rtt],
                    answer: words(&heard.answer),
                    icmp: Icmp::of(&heard.answer),
                    mpls: labels(&heard.answer),
                }),
            },
            None => {
                hop.rtts_ms.push(rtt);
                hop.src = Some(heard.source.clone());
                (hop.asn, hop.as_name, hop.hostname) = (asn, as_name, hostname);
                hop.answer = Some(words(&heard.answer));
                hop.icmp = Icmp::of(&heard.answer);
                hop.mpls = labels(&heard.answer);
                hop.extensions = extensions(&heard.answer);
            }
        }
    }

    /// The path of each flow.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        let flow = |(flow, end): (u16, &Option<End>)| {
            let last = end.map_or(self.max_ttl, |end| end.ttl);
            let src = |ttl: u8| {
                self.at(ttl).find_map(|(index, state)| match state {
                    State::Answered(heard) if self.probes.get(index).is_some_and(|p| p.flow == flow) => {
                        Some(heard.source.clone())
                    }
                    _ => None,
                })
            };
            let srcs = (self.first_ttl..=last).map(src).collect();
            Flow { flow, reached: end.is_some_and(|end| end.reached), srcs }
        };
        (0..).zip(&self.ends).map(flow).collect()
    }

    /// Looks up names and autonomous systems of every address that answered, all at once.
    pub fn look_up(&mut self) {
        let heard = self.states.iter().filter_map(|state| match state {
            State::Answered(heard) => Some(heard.source.clone()),
            _ => None,
        });
        let mut addresses: Vec<String> = heard.collect();
        addresses.sort_unstable();
        addresses.dedup();
        let (hostnames, systems) = (resolver::reverse(&addresses), asn::lookup(&addresses));
        for ((address, hostname), system) in addresses.into_iter().zip(hostnames).zip(systems) {
            let (asn, as_name) = system.map_or((None, None), |system| (Some(system.number), system.name));
            self.names.insert(address, Named { hostname, asn, as_name });
        }
    }
}

/// Does the error say that there is no going on, whichever TTL the probe had?
fn is_unreachable(icmp: &IcmpMessage, source: &str) -> bool {
    let v6 = source.contains(':');
    if v6 { matches!(icmp.icmp_type, 1 | 2 | 4) } else { matches!(icmp.icmp_type, 3 | 12) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exceeded(probe: u32, source: &str) -> HopEvent {
        error(probe, source, 11, 0)
    }

    fn error(probe: u32, source: &str, icmp_type: u8, icmp_code: u8) -> HopEvent {
        let icmp = IcmpMessage {
            kind: format!("type {icmp_type} code {icmp_code}"),
            icmp_type,
            icmp_code,
            mtu: None,
            mpls: None,
            extensions: None,
        };
        heard(probe, source, Answer::Icmp(icmp))
    }

    fn heard(probe: u32, source: &str, answer: Answer) -> HopEvent {
        let rtt_ns = Some(1_000_000 * u64::from(probe + 1));
        HopEvent::Answered(Heard { probe, source: source.into(), rtt_ns, answer })
    }

    fn srcs(hops: &[Hop]) -> Vec<Option<&str>> {
        hops.iter().map(|hop| hop.src.as_deref()).collect()
    }

    #[test]
    fn a_path_ends_at_the_nearest_answer_of_the_target() {
        let mut path = Path::new("t", 1, 5, 1, 1);
        assert!(path.add(exceeded(0, "a")));
        assert!(path.add(heard(3, "t", Answer::EchoReply)));
        assert_eq!((path.keep(), path.reached()), (Some(4), true));
        assert!(path.add(heard(2, "t", Answer::EchoReply)));
        assert!(path.add(heard(4, "t", Answer::EchoReply)), "the first answer at its TTL is shown while it grows");
        assert_eq!(path.keep(), Some(3));
        path.add(HopEvent::Silent(1));
        let hops = path.whole();
        assert_eq!(srcs(&hops), [Some("a"), None, Some("t")]);
        assert_eq!([hops[0].no_response, hops[1].no_response], [Some(false), Some(true)]);
        assert_eq!((path.stopped_by().reason, path.stopped_by().ttl), (Reason::Target, 3));
    }

    #[test]
    fn a_router_that_answers_twice_is_shown_twice_and_a_loop_to_the_end() {
        let mut path = Path::new("t", 1, 4, 1, 1);
        for (probe, source) in [(0, "a"), (1, "b"), (2, "a"), (3, "b")] {
            path.add(exceeded(probe, source));
        }
        assert_eq!(srcs(&path.whole()), [Some("a"), Some("b"), Some("a"), Some("b")]);
        assert_eq!((path.keep(), path.reached(), path.stopped_by().reason), (None, false, Reason::MaxTtl));
    }

    #[test]
    fn a_router_s_refusal_ends_the_path_and_is_not_the_target() {
        let mut path = Path::new("t", 1, 9, 1, 1);
        path.add(exceeded(0, "a"));
        path.add(error(2, "b", 3, 1));
        path.add(error(1, "b", 3, 13));
        assert_eq!((path.keep(), path.reached()), (Some(2), false));
        let stop = path.stopped_by();
        assert_eq!((stop.reason, stop.ttl, stop.icmp.map(|icmp| icmp.code)), (Reason::Unreachable, 2, Some(13)));
        let mut path = Path::new("t", 1, 9, 1, 1);
        path.add(error(4, "t", 3, 3));
        assert!(path.reached(), "the target's own port unreachable");
    }

    #[test]
    fn several_probes_and_flows_are_kept_apart() {
        let mut path = Path::new("t", 1, 2, 2, 2);
        let ttls: Vec<(u8, u16)> = path.probes().iter().map(|probe| (probe.ttl, probe.flow)).collect();
        assert_eq!(ttls, [(1, 0), (2, 0), (1, 1), (2, 1), (1, 0), (2, 0), (1, 1), (2, 1)]);
        for (probe, source) in [(0, "a"), (2, "b"), (4, "a"), (6, "b")] {
            path.add(exceeded(probe, source));
        }
        path.add(heard(1, "t", Answer::SynAck));
        assert_eq!(path.keep(), None, "the other flow goes on");
        path.add(heard(3, "t", Answer::Reset));
        assert_eq!(path.keep(), Some(2));
        path.add(HopEvent::Silent(5));
        let hops = path.whole();
        assert_eq!((hops[0].rtts_ms.len(), hops[0].others.len(), hops[0].rtt_ms), (2, 1, Some(1.0)));
        assert_eq!(
            (hops[0].others[0].src.as_str(), &hops[0].others[0].rtts_ms[..]),
            ("b", &[Some(3.0), Some(7.0)][..])
        );
        assert_eq!(hops[1].rtts_ms, [Some(2.0), Some(4.0), None]);
        let flows = path.flows();
        assert_eq!(flows[1].srcs, [Some("b".to_owned()), Some("t".to_owned())]);
        assert!(flows.iter().all(|flow| flow.reached));
    }

    #[test]
    fn what_the_host_could_not_do_is_not_called_silence() {
        let mut path = Path::new("t", 1, 3, 1, 1);
        path.add(HopEvent::SendFailed(crate::bindings::scouter::probe::hops::SendFailure {
            probe: 0,
            reason: "no room".into(),
        }));
        path.add(HopEvent::Silent(1));
        let hops = path.whole();
        assert_eq!([hops[0].no_response, hops[1].no_response, hops[2].no_response], [None, Some(true), None]);
        path.add(HopEvent::Overflow(7));
        assert_eq!(path.whole()[1].no_response, None);
        assert_eq!(path.unsent, [Unsent { ttl: 1, reason: "no room".into() }]);
    }
}
