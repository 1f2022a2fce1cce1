//! How a trace adapts to its path: a window of TTLs slides ahead of what has answered, silent hops are waited for as long as
//! their neighbours make plausible, and repeated probes respect the rate at which routers answer. Pure, but for the clock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::{ProbePacket, ProbeResponse, ResponseKind};
use crate::lag::LagWatch;
use crate::packet::icmp::ErrorKind;
use crate::series::Pace;

/// TTLs that are probed ahead of the highest one that has answered. Probes beyond the target are answered by the target, which
/// may have few answers: Linux gives 6 ICMP errors at once, then one a second (`icmp_ratelimit`).
const WINDOW: u8 = 6;
/// Time from one TTL to the next beyond the window: a part of the path may be silent.
const BEYOND_WINDOW: Duration = Duration::from_millis(10);
/// How long a silent probe is worth waiting for: this many times the round trip of another probe with the same TTL, or of the
/// nearest TTL behind it that has answered, as `traceroute -w MAX,HERE,NEAR` has it, and a little more.
const HERE: u32 = 3;
const NEAR: u32 = 10;
const LITTLE: Duration = Duration::from_millis(6);
/// And so many times the longest delay of this host's own meanwhile: the answer may be there, unread.
const HOST_DELAYS: u32 = 10;
/// The same before the next round begins, where nothing behind has answered: that may be silent for good.
const ROUND_PATIENCE: Duration = Duration::from_millis(50);
/// ICMP errors that one host is asked for in close succession, of the 6 that Linux gives at once; later rounds begin a second
/// after one another.
const BURST: usize = 5;
const ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// What has become of a probe.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Unsent,
    Waiting(Instant),
    Answered(Duration),
    /// Lost, not sent, or not needed.
    Settled,
}

/// The pace of one trace.
pub struct Adaptive {
    packets: Vec<ProbePacket>,
    interval: Duration,
    target: IpAddr,
    states: Vec<State>,
    /// Lowest TTL at which the path has ended, by flow.
    ends: BTreeMap<u16, u8>,
    /// The path has ended with an ICMP error.
    ends_with_errors: bool,
    /// How many flows the first round has.
    flows: usize,
    /// Longest round trip that is known of each TTL.
    round_trips: BTreeMap<u8, Duration>,
    /// The last probe that was to leave, and when.
    last: Option<(ProbePacket, Instant)>,
    /// When the round under way began.
    round_start: Option<Instant>,
    /// How late this host is. None in unit tests.
    lag: Option<LagWatch>,
    start: Instant,
}

impl Adaptive {
    /// `interval` is the least time from one packet to the next.
    #[must_use]
    pub fn new(packets: &[ProbePacket], target: IpAddr, interval: Duration, lag: Option<LagWatch>) -> Self {
        let of_first_round = packets.iter().filter(|packet| packet.round == 0);
        Self {
            packets: packets.to_vec(),
            interval,
            target,
            states: vec![State::Unsent; packets.len()],
            ends: BTreeMap::new(),
            ends_with_errors: false,
            flows: of_first_round.map(|packet| usize::from(packet.flow) + 1).max().unwrap_or(1),
            round_trips: BTreeMap::new(),
            last: None,
            round_start: None,
            lag,
            start: Instant::now(),
        }
    }

    fn packet(&self, index: u32) -> Option<ProbePacket> {
        self.packets.get(index as usize).copied()
    }

    fn set(&mut self, index: u32, state: State) {
        if let Some(slot) = self.states.get_mut(index as usize) {
            *slot = state;
        }
    }

    /// The last TTL that is of use: the highest one at which the path of a flow ends, once all of them have an end.
    fn end(&self) -> Option<u8> {
        let flows = self.ends.keys().filter(|flow| usize::from(**flow) < self.flows).count();
        if flows < self.flows { None } else { self.ends.values().copied().max() }
    }

    /// By what has answered; None: nothing says how long an answer may take.
    fn plausible(&self, ttl: u8) -> Option<Duration> {
        if let Some(here) = self.round_trips.get(&ttl) {
            return Some(*here * HERE + self.little());
        }
        let (_, near) = self.round_trips.range(ttl..).next()?;
        Some(*near * NEAR + self.little())
    }

    fn little(&self) -> Duration {
        let lag = self.lag.as_ref().map(|lag| lag.longest(Duration::ZERO, self.start.elapsed()));
        LITTLE + lag.unwrap_or_default() * HOST_DELAYS
    }

    /// When the probes of earlier rounds are answered, or were waited for long enough to go on.
    fn earlier_rounds_over(&self, round: u16) -> Option<Instant> {
        let waiting = self.packets.iter().zip(&self.states).filter(|(packet, _)| packet.round < round);
        let until = waiting.filter_map(|(packet, state)| {
            let State::Waiting(departure) = state else { return None };
            let before = || {
                let (_, near) = self.round_trips.range(..packet.ttl).next_back()?;
                Some((*near * NEAR + self.little()).max(ROUND_PATIENCE))
            };
            Some(*departure + self.plausible(packet.ttl).or_else(before).unwrap_or(ROUND_INTERVAL))
        });
        until.max()
    }

    /// The most ICMP errors that one host has been asked for before this round: a router is asked once by each flow in a round, the
    /// target by all that went as far as it or further.
    fn asked_before(&self, round: u16) -> usize {
        let router = usize::from(round) * self.flows;
        let Some(end) = self.end().filter(|_| self.ends_with_errors) else { return router };
        let sent = self.packets.iter().zip(&self.states).filter(|(_, state)| **state != State::Unsent);
        sent.filter(|(packet, _)| packet.ttl >= end).count().max(router)
    }

    fn highest_answered(&self) -> Option<u8> {
        self.round_trips.keys().next_back().copied()
    }
}

fn is_time_exceeded(error: &ErrorKind, source: IpAddr) -> bool {
    error.icmp_type == if source.is_ipv4() { 11 } else { 3 }
}

impl Pace<ProbeResponse> for Adaptive {
    fn due(&self, index: u32) -> Option<Instant> {
        let packet = self.packet(index)?;
        let (last, at) = self.last?;
        if packet.round > last.round {
            let many = self.asked_before(packet.round) + self.flows > BURST;
            let spaced = self.round_start.filter(|_| many).map(|start| start + ROUND_INTERVAL);
            return self.earlier_rounds_over(packet.round).max(spaced).max(Some(at + self.interval));
        }
        let first_ttl = self.packets.first().map_or(1, |first| first.ttl);
        let answered = self.highest_answered().unwrap_or(0).max(first_ttl.saturating_sub(1));
        // Where earlier rounds have been, the path is known.
        let beyond = packet.round == 0 && packet.ttl > answered.saturating_add(WINDOW) && packet.ttl > last.ttl;
        Some(at + if beyond { BEYOND_WINDOW.max(self.interval) } else { self.interval })
    }

    fn sent(&mut self, index: u32, success: bool) {
        let Some(packet) = self.packet(index) else { return };
        let now = Instant::now();
        if self.last.is_none_or(|(last, _)| last.round < packet.round) {
            self.round_start = Some(now);
        }
        self.last = Some((packet, now));
        self.set(index, if success { State::Waiting(now) } else { State::Settled });
    }

    fn answered(&mut self, index: u32, source: IpAddr, rtt: Duration, response: &ProbeResponse) {
        let Some(packet) = self.packet(index) else { return };
        self.set(index, State::Answered(rtt));
        let known = self.round_trips.entry(packet.ttl).or_insert(rtt);
        *known = rtt.max(*known);
        // All but an exceeded TTL ends the path: it is from the target, or says that there is no way to it.
        let end = match &response.kind {
            ResponseKind::Icmp(error, _) => source == self.target || !is_time_exceeded(error, source),
            _ => true,
        };
        if end {
            self.ends_with_errors |= matches!(response.kind, ResponseKind::Icmp(..));
            let end = self.ends.entry(packet.flow).or_insert(packet.ttl);
            *end = packet.ttl.min(*end);
        }
    }

    fn settled(&mut self, index: u32) {
        self.set(index, State::Settled);
    }

    fn is_wanted(&self, index: u32) -> bool {
        let Some(packet) = self.packet(index) else { return false };
        let of_flow = self.ends.get(&packet.flow).is_none_or(|end| packet.ttl <= *end);
        of_flow && self.end().is_none_or(|end| packet.ttl <= end)
    }

    fn patience(&self, index: u32) -> Option<Duration> {
        self.plausible(self.packet(index)?.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "192.0.2.9";

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn rounds(ttls: u8, rounds: u16) -> Vec<ProbePacket> {
        (0..rounds).flat_map(|round| (1..=ttls).map(move |ttl| ProbePacket { ttl, flow: 0, round })).collect()
    }

    fn trace(packets: &[ProbePacket]) -> Adaptive {
        Adaptive::new(packets, address(TARGET), Duration::from_micros(500), None)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A router's answer to the probe with this index, after some milliseconds.
    fn router(pace: &mut Adaptive, index: u32, after: u64) {
        let exceeded = ErrorKind { icmp_type: 11, icmp_code: 0, mtu: None, description: "time exceeded" };
        let response = ResponseKind::Icmp(exceeded, None).into();
        pace.answered(index, address("192.0.2.1"), ms(after), &response);
    }

    fn target(pace: &mut Adaptive, index: u32, after: u64) {
        pace.answered(index, address(TARGET), ms(after), &ResponseKind::EchoReply.into());
    }

    /// Sends this probe when it is due; how long it had to wait, in microseconds.
    async fn send(pace: &mut Adaptive, index: u32) -> u128 {
        let start = Instant::now();
        if let Some(due) = pace.due(index) {
            tokio::time::sleep_until(due).await;
        }
        pace.sent(index, true);
        start.elapsed().as_micros()
    }

    #[tokio::test(start_paused = true)]
    async fn ttls_beyond_the_window_wait_for_answers_before_them() {
        let mut pace = trace(&rounds(32, 1));
        for index in 0..6 {
            assert!(send(&mut pace, index).await <= 1_000, "{index} is within the window");
        }
        assert!(send(&mut pace, 6).await >= 10_000);
        router(&mut pace, 3, 1);
        for index in 7..10 {
            assert!(send(&mut pace, index).await <= 1_000, "{index}: TTL 4 has answered");
        }
        assert!(send(&mut pace, 10).await >= 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_behind_the_target_is_not_wanted() {
        let mut pace = trace(&rounds(32, 2));
        for index in 0..9 {
            send(&mut pace, index).await;
        }
        target(&mut pace, 8, 1);
        assert!(pace.is_wanted(8) && !pace.is_wanted(9));
        target(&mut pace, 7, 1);
        assert!(pace.is_wanted(7) && !pace.is_wanted(8));
        assert!(pace.is_wanted(32 + 7) && !pace.is_wanted(32 + 8), "in the next round too");
    }

    #[tokio::test(start_paused = true)]
    async fn each_flow_has_an_end_of_its_own() {
        let packets: Vec<_> =
            (1..=9).flat_map(|ttl| (0..2).map(move |flow| ProbePacket { ttl, flow, round: 0 })).collect();
        let mut pace = trace(&packets);
        // Of flow 0, at TTL 3.
        target(&mut pace, 4, 1);
        assert!(!pace.is_wanted(6) && pace.is_wanted(7) && pace.is_wanted(17));
        // Of flow 1, at TTL 5.
        target(&mut pace, 9, 1);
        assert!(!pace.is_wanted(11), "behind both");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_hop_is_waited_for_as_its_neighbours_make_plausible() {
        let mut pace = trace(&rounds(5, 1));
        for index in 0..5 {
            send(&mut pace, index).await;
        }
        router(&mut pace, 0, 10);
        assert_eq!(pace.patience(0), Some(ms(36)), "another probe at the same TTL");
        assert_eq!(pace.patience(1), None, "nothing behind it has answered");
        router(&mut pace, 4, 40);
        router(&mut pace, 3, 20);
        assert_eq!(pace.patience(1), Some(ms(206)), "the nearest behind it");
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_follow_each_other_as_routers_allow() {
        let mut pace = trace(&rounds(1, 10));
        let mut waited = vec![];
        for index in 0..10 {
            waited.push(send(&mut pace, index).await / 1_000);
            router(&mut pace, index, 1);
        }
        assert!(waited[..5].iter().all(|ms| *ms <= 1), "{waited:?}");
        assert!(waited[5..].iter().all(|ms| (990..=1_001).contains(ms)), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_was_asked_for_many_errors_has_time_for_more() {
        let mut pace = trace(&rounds(10, 2));
        for index in 0..10 {
            send(&mut pace, index).await;
        }
        for index in 4..10 {
            let unreachable = ErrorKind { icmp_type: 3, icmp_code: 3, mtu: None, description: "port unreachable" };
            pace.answered(index, address(TARGET), ms(1), &ResponseKind::Icmp(unreachable, None).into());
        }
        for index in 0..4 {
            router(&mut pace, index, 1);
        }
        assert!((900_000..=1_001_000).contains(&send(&mut pace, 10).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_waits_for_the_one_before() {
        let mut pace = trace(&rounds(2, 2));
        send(&mut pace, 0).await;
        send(&mut pace, 1).await;
        router(&mut pace, 1, 4);
        // TTL 1 is silent: 10 times 4 ms, and 6 ms.
        let waited = send(&mut pace, 2).await;
        assert!((44_000..=47_000).contains(&waited), "{waited}");
    }
}
