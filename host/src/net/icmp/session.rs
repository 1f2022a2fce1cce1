//! One series of echo requests: paces, matches by sequence number, measures, and says what happened.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::wire::Kind;
use super::{ErrorMessage, Event, Plan, Reply};
use crate::net::packet::Stamp;

/// How long after its timeout a request is still waited for, so that a reply that the kernel stamped in time is not
/// called lost because this process was slow to read it.
const GRACE: Duration = Duration::from_millis(50);
/// Duplicates reported in one series, and late replies and errors: a flood of one must not fill the memory, nor hide
/// the other.
const EXTRAS: u32 = 100;

/// How a series reaches the network.
pub trait Link: Send + 'static {
    /// Sends one request. The stamp is read just before the packet goes to the kernel.
    fn send(&mut self, seq: u16) -> impl Future<Output = Result<Stamp, String>> + Send;
    /// The next message that belongs to this series. Must lose nothing when dropped.
    fn arrival(&mut self) -> impl Future<Output = Arrival> + Send;
    /// Packets that this host dropped for want of room since the series began.
    fn overflow(&self) -> u32;
}

/// A message that belongs to the series.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub seq: u16,
    pub source: IpAddr,
    /// The kernel's receive timestamp, since the epoch.
    pub at: Option<Duration>,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    Reply { ttl: Option<u8>, length: u16 },
    Error(Kind),
}

pub struct Series {
    pub plan: Plan,
    events: UnboundedSender<Event>,
    requests: BTreeMap<u16, Request>,
    duplicates_left: u32,
    others_left: u32,
}

struct Request {
    sent: Stamp,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Waiting,
    Answered,
    Lost,
}

impl Series {
    #[must_use]
    pub fn new(plan: Plan, events: UnboundedSender<Event>) -> Self {
        Self { plan, events, requests: BTreeMap::new(), duplicates_left: EXTRAS, others_left: EXTRAS }
    }

    /// Runs to the end: every request answered or lost.
    pub async fn run(mut self, mut link: impl Link) {
        // A process that was held up goes on at its pace: what it missed is not sent in one burst.
        let mut pace = interval(self.plan.interval);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_seq = 1;
        loop {
            let all_sent = next_seq > self.plan.count;
            let oldest = self.requests.values().find(|r| r.state == State::Waiting).map(|r| r.sent.steady);
            if all_sent && oldest.is_none() {
                break;
            }
            let give_up_at = oldest.map_or_else(Instant::now, |sent| (sent + self.plan.timeout + GRACE).into());
            tokio::select! {
                biased;
                // Sending comes first: a flood of arrivals must not hold it up.
                _ = pace.tick(), if !all_sent => {
                    match link.send(next_seq).await {
                        Ok(sent) => {
                            self.requests.insert(next_seq, Request { sent, state: State::Waiting });
                            self.say(Event::Sent(next_seq));
                        }
                        Err(reason) => self.say(Event::SendFailed { seq: next_seq, reason }),
                    }
                    next_seq += 1;
                }
                // What has arrived is looked at before anything is called lost.
                arrival = link.arrival() => self.arrived(&arrival),
                () = sleep_until(give_up_at), if oldest.is_some() => self.give_up(),
            }
        }
        if link.overflow() > 0 {
            self.say(Event::Overflow(link.overflow()));
        }
    }

    fn say(&self, event: Event) {
        // Nobody listens when the test has just been stopped.
        let _ = self.events.send(event);
    }

    fn say_extra(&mut self, event: Event) {
        let left = if matches!(event, Event::Duplicate(_)) { &mut self.duplicates_left } else { &mut self.others_left };
        if *left > 0 {
            *left -= 1;
            self.say(event);
        }
    }

    fn arrived(&mut self, arrival: &Arrival) {
        let Some(request) = self.requests.get_mut(&arrival.seq) else { return };
        let seq = arrival.seq;
        let rtt = request.sent.until(arrival.at);
        match arrival.what {
            What::Error(Kind { words, icmp_type, icmp_code, mtu }) => {
                let message = ErrorMessage { seq, source: arrival.source, kind: words, icmp_type, icmp_code, mtu };
                self.say_extra(Event::Error(message));
            }
            What::Reply { ttl, length } => {
                let reply = Reply { seq, source: arrival.source, ttl, length, rtt };
                match request.state {
                    State::Waiting if rtt <= self.plan.timeout => {
                        request.state = State::Answered;
                        self.say(Event::Reply(reply));
                    }
                    State::Waiting => {
                        request.state = State::Lost;
                        self.say(Event::Lost(seq));
                        self.say_extra(Event::Late(reply));
                    }
                    State::Lost => self.say_extra(Event::Late(reply)),
                    State::Answered => self.say_extra(Event::Duplicate(reply)),
                }
            }
        }
    }

    fn give_up(&mut self) {
        let timeout = self.plan.timeout + GRACE;
        for (seq, request) in &mut self.requests {
            if request.state == State::Waiting && request.sent.steady.elapsed() >= timeout {
                request.state = State::Lost;
                let _ = self.events.send(Event::Lost(*seq));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// A network that does what a script says with each request.
    struct Script {
        answers: mpsc::UnboundedReceiver<Arrival>,
        network: mpsc::UnboundedSender<Arrival>,
        behave: fn(u16, &mpsc::UnboundedSender<Arrival>) -> Result<(), String>,
    }

    impl Link for Script {
        async fn send(&mut self, seq: u16) -> Result<Stamp, String> {
            let stamp = Stamp::now();
            (self.behave)(seq, &self.network)?;
            Ok(stamp)
        }
        async fn arrival(&mut self) -> Arrival {
            self.answers.recv().await.expect("open")
        }
        fn overflow(&self) -> u32 {
            0
        }
    }

    fn reply(seq: u16, rtt_ms: u64) -> Arrival {
        let at = Some(Stamp::now().wall() + Duration::from_millis(rtt_ms));
        Arrival {
            seq,
            source: "192.0.2.1".parse().expect("address"),
            at,
            what: What::Reply { ttl: Some(64), length: 64 },
        }
    }

    async fn events(count: u16, behave: fn(u16, &mpsc::UnboundedSender<Arrival>) -> Result<(), String>) -> Vec<Event> {
        let plan = Plan {
            count,
            interval: Duration::from_millis(10),
            timeout: Duration::from_millis(100),
            payload_size: 56,
            ttl: None,
            dont_fragment: false,
        };
        let (network, answers) = mpsc::unbounded_channel();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        Series::new(plan, sender).run(Script { answers, network, behave }).await;
        let mut events = vec![];
        while let Some(event) = receiver.recv().await {
            events.push(event);
        }
        events
    }

    #[tokio::test]
    async fn each_request_is_answered_once_and_further_replies_are_duplicates() {
        let events = events(2, |seq, network| {
            for _ in 0..=seq {
                network.send(reply(seq, 0)).expect("open");
            }
            network.send(reply(77, 0)).expect("open");
            Ok(())
        })
        .await;
        let count = |f: fn(&Event) -> bool| events.iter().filter(|e| f(e)).count();
        assert_eq!(count(|e| matches!(e, Event::Reply(_))), 2);
        // The series ends with its last answer: of the second request's duplicates none is waited for.
        assert!(count(|e| matches!(e, Event::Duplicate(_))) >= 1);
        assert_eq!(count(|e| matches!(e, Event::Lost(_))), 0);
        assert_eq!(count(|e| matches!(e, Event::Sent(_))), 2);
    }

    #[tokio::test]
    async fn silence_is_loss_and_a_failed_send_is_not() {
        let events = events(2, |seq, _| if seq == 1 { Err("no route".into()) } else { Ok(()) }).await;
        assert_eq!(events, [Event::SendFailed { seq: 1, reason: "no route".into() }, Event::Sent(2), Event::Lost(2)]);
    }

    #[tokio::test]
    async fn a_flood_of_duplicates_is_bounded() {
        let events = events(2, |seq, network| {
            for _ in 0..10_000 {
                network.send(reply(seq.min(1), 0)).expect("open");
            }
            Ok(())
        })
        .await;
        assert!(events.len() < 200, "{} events", events.len());
    }
}
