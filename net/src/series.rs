//! One series of probes: paces, matches by index, measures, and says what happened. Pings and traces are series; what
//! a probe is, and how its answer is known, is the link's business.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until};

use crate::packet::socket::Stamp;

/// Messages of one series that wait for it; what comes while it is full counts as dropped here.
pub const SERIES_ROOM: usize = 4096;

/// How long after its timeout a probe is still waited for, so that an answer that the kernel stamped in time is not
/// called lost because this process was slow to read it.
pub const GRACE: Duration = Duration::from_millis(50);
/// Duplicates reported in one series, and late answers and asides: a flood of one must not fill the memory, nor hide
/// the other.
const EXTRAS: u32 = 100;

/// What bounds the packets that one test sends in a second, over all of its series.
pub type Rate = Arc<DefaultDirectRateLimiter>;

/// `burst` packets at once, and `per_second` of them in the long run.
#[must_use]
pub fn rate(per_second: std::num::NonZeroU32, burst: std::num::NonZeroU32) -> Rate {
    Arc::new(RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst)))
}

/// When to send, and how long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Probes, numbered from 0.
    pub count: u32,
    pub interval: Duration,
    /// For each probe.
    pub timeout: Duration,
}

/// How a series reaches the network.
pub trait Link: Send + 'static {
    type What: Send;

    /// Sends one probe. The stamp is read just before the packet goes to the kernel.
    fn send(&mut self, index: u32) -> impl Future<Output = Result<Stamp, String>> + Send;
    /// The next message that belongs to this series; None when [`wanted`](Self::wanted) has changed. Must lose nothing
    /// when dropped.
    fn arrival(&mut self) -> impl Future<Output = Option<Arrival<Self::What>>> + Send;
    /// Packets that this host dropped for want of room since the series began.
    fn overflow(&self) -> u32;
    /// Is anybody still interested in this probe?
    fn wanted(&self, _index: u32) -> bool {
        true
    }
}

/// A message that belongs to the series.
#[derive(Debug, Clone)]
pub struct Arrival<W> {
    pub index: u32,
    pub source: IpAddr,
    /// The kernel's receive timestamp, since the epoch.
    pub at: Option<Duration>,
    /// It does not settle its probe: what the probe waits for may still come.
    pub aside: bool,
    pub what: W,
}

/// What a message is to its probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Answer,
    /// A further one after the answer.
    Duplicate,
    /// After the probe's time was up.
    Late,
    Aside,
}

/// What happens in a series, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<W> {
    Sent(u32),
    SendFailed { index: u32, reason: String },
    Heard { index: u32, standing: Standing, source: IpAddr, rtt: Duration, what: W },
    Lost(u32),
    Overflow(u32),
}

pub struct Series<W> {
    schedule: Schedule,
    rate: Rate,
    events: UnboundedSender<Event<W>>,
    requests: BTreeMap<u32, Request>,
    /// In the order in which they were sent; those that no longer wait are taken out when they come to the front.
    waiting: VecDeque<u32>,
    duplicates_left: u32,
    others_left: u32,
}

struct Request {
    sent: Stamp,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Waiting,
    Answered,
    Lost,
    Unwanted,
}

impl<W: Send> Series<W> {
    #[must_use]
    pub fn new(schedule: Schedule, rate: Rate, events: UnboundedSender<Event<W>>) -> Self {
        Self {
            schedule,
            rate,
            events,
            requests: BTreeMap::new(),
            waiting: VecDeque::new(),
            duplicates_left: EXTRAS,
            others_left: EXTRAS,
        }
    }

    /// Runs to the end: every probe answered or lost.
    pub async fn run(mut self, mut link: impl Link<What = W>) {
        let mut next = 0;
        let mut next_at = Instant::now();
        loop {
            self.forget_unwanted(&link);
            while next < self.schedule.count && !link.wanted(next) {
                next += 1;
            }
            let all_sent = next >= self.schedule.count;
            let oldest = self.oldest();
            if all_sent && oldest.is_none() {
                break;
            }
            let give_up_at = oldest.map_or_else(Instant::now, |sent| (sent + self.schedule.timeout + GRACE).into());
            tokio::select! {
                biased;
                // Sending comes first: a flood of arrivals must not hold it up.
                () = sleep_until(next_at), if !all_sent => {
                    if let Err(full) = self.rate.check() {
                        next_at = Instant::now() + full.wait_time_from(DefaultClock::default().now());
                        continue;
                    }
                    self.send(next, &mut link).await;
                    next += 1;
                    // A process that was held up goes on at its pace: what it missed is not sent in one burst.
                    next_at = (next_at + self.schedule.interval).max(Instant::now());
                }
                // What has arrived is looked at before anything is called lost.
                arrival = link.arrival() => if let Some(arrival) = arrival {
                    self.arrived(arrival);
                },
                () = sleep_until(give_up_at), if oldest.is_some() => self.give_up(),
            }
        }
        if link.overflow() > 0 {
            self.say(Event::Overflow(link.overflow()));
        }
    }

    async fn send(&mut self, index: u32, link: &mut impl Link<What = W>) {
        match link.send(index).await {
            Ok(sent) => {
                self.requests.insert(index, Request { sent, state: State::Waiting });
                self.waiting.push_back(index);
                self.say(Event::Sent(index));
            }
            Err(reason) => self.say(Event::SendFailed { index, reason }),
        }
    }

    /// When the oldest probe that still waits was sent.
    fn oldest(&mut self) -> Option<std::time::Instant> {
        while let Some(index) = self.waiting.front() {
            match self.requests.get(index) {
                Some(request) if request.state == State::Waiting => return Some(request.sent.steady),
                _ => self.waiting.pop_front(),
            };
        }
        None
    }

    fn forget_unwanted(&mut self, link: &impl Link<What = W>) {
        for index in &self.waiting {
            if let Some(request) = self.requests.get_mut(index)
                && request.state == State::Waiting
                && !link.wanted(*index)
            {
                request.state = State::Unwanted;
            }
        }
    }

    fn say(&self, event: Event<W>) {
        // Nobody listens when the test has just been stopped.
        let _ = self.events.send(event);
    }

    fn arrived(&mut self, arrival: Arrival<W>) {
        let Arrival { index, source, at, aside, what } = arrival;
        let Some(request) = self.requests.get_mut(&index) else { return };
        let rtt = request.sent.until(at);
        let standing = match request.state {
            State::Unwanted => return,
            _ if aside => Standing::Aside,
            State::Waiting if rtt <= self.schedule.timeout => {
                request.state = State::Answered;
                Standing::Answer
            }
            State::Waiting => {
                request.state = State::Lost;
                self.say(Event::Lost(index));
                Standing::Late
            }
            State::Lost => Standing::Late,
            State::Answered => Standing::Duplicate,
        };
        let left = match standing {
            Standing::Answer => None,
            Standing::Duplicate => Some(&mut self.duplicates_left),
            Standing::Late | Standing::Aside => Some(&mut self.others_left),
        };
        match left {
            Some(0) => return,
            Some(left) => *left -= 1,
            None => {}
        }
        self.say(Event::Heard { index, standing, source, rtt, what });
    }

    fn give_up(&mut self) {
        let timeout = self.schedule.timeout + GRACE;
        for index in &self.waiting {
            if let Some(request) = self.requests.get_mut(index)
                && request.state == State::Waiting
                && request.sent.steady.elapsed() >= timeout
            {
                request.state = State::Lost;
                let _ = self.events.send(Event::Lost(*index));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use tokio::sync::mpsc;

    use super::*;

    type Behaviour = fn(u32, &mpsc::UnboundedSender<Arrival<()>>) -> Result<(), String>;

    /// A network that does what a script says with each probe.
    struct Script {
        answers: mpsc::UnboundedReceiver<Arrival<()>>,
        network: mpsc::UnboundedSender<Arrival<()>>,
        behave: Behaviour,
        up_to: u32,
    }

    impl Link for Script {
        type What = ();

        async fn send(&mut self, index: u32) -> Result<Stamp, String> {
            let stamp = Stamp::now();
            (self.behave)(index, &self.network)?;
            Ok(stamp)
        }
        async fn arrival(&mut self) -> Option<Arrival<()>> {
            self.answers.recv().await
        }
        fn overflow(&self) -> u32 {
            0
        }
        fn wanted(&self, index: u32) -> bool {
            index < self.up_to
        }
    }

    fn reply(index: u32) -> Arrival<()> {
        let at = Some(Stamp::now().wall());
        Arrival { index, source: "192.0.2.1".parse().expect("address"), at, aside: false, what: () }
    }

    async fn events_of(schedule: Schedule, per_second: u32, up_to: u32, behave: Behaviour) -> Vec<Event<()>> {
        let (network, answers) = mpsc::unbounded_channel();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let rate = rate(NonZeroU32::new(per_second).expect("some"), NonZeroU32::MIN);
        Series::new(schedule, rate, sender).run(Script { answers, network, behave, up_to }).await;
        let mut events = vec![];
        while let Some(event) = receiver.recv().await {
            events.push(event);
        }
        events
    }

    async fn events(count: u32, behave: Behaviour) -> Vec<Event<()>> {
        let schedule = Schedule { count, interval: Duration::from_millis(10), timeout: Duration::from_millis(100) };
        events_of(schedule, 1000, count, behave).await
    }

    #[tokio::test]
    async fn each_probe_is_answered_once_and_further_answers_are_duplicates() {
        let events = events(2, |index, network| {
            for _ in 0..=index + 1 {
                network.send(reply(index)).expect("open");
            }
            network.send(reply(77)).expect("open");
            Ok(())
        })
        .await;
        let heard = |wanted: Standing| {
            let fits = |e: &&Event<()>| matches!(e, Event::Heard { standing, .. } if *standing == wanted);
            events.iter().filter(fits).count()
        };
        assert_eq!(heard(Standing::Answer), 2);
        // The series ends with its last answer: of the second probe's duplicates none is waited for.
        assert!(heard(Standing::Duplicate) >= 1);
        assert!(!events.iter().any(|e| matches!(e, Event::Lost(_))));
        assert_eq!(events.iter().filter(|e| matches!(e, Event::Sent(_))).count(), 2);
    }

    #[tokio::test]
    async fn silence_is_loss_and_a_failed_send_is_not() {
        let events = events(2, |index, _| if index == 0 { Err("no route".into()) } else { Ok(()) }).await;
        assert_eq!(events, [Event::SendFailed { index: 0, reason: "no route".into() }, Event::Sent(1), Event::Lost(1)]);
    }

    #[tokio::test]
    async fn an_aside_settles_nothing() {
        let events = events(1, |index, network| {
            network.send(Arrival { aside: true, ..reply(index) }).expect("open");
            Ok(())
        })
        .await;
        assert!(matches!(events[1], Event::Heard { standing: Standing::Aside, .. }), "{events:?}");
        assert_eq!(events[2], Event::Lost(0));
    }

    #[tokio::test]
    async fn a_flood_of_duplicates_is_bounded() {
        let events = events(2, |_, network| {
            for _ in 0..10_000 {
                network.send(reply(0)).expect("open");
            }
            Ok(())
        })
        .await;
        assert!(events.len() < 200, "{} events", events.len());
    }

    #[tokio::test]
    async fn what_nobody_wants_is_neither_sent_nor_waited_for() {
        let schedule = Schedule { count: 5, interval: Duration::ZERO, timeout: Duration::from_mins(1) };
        let answer = |index, network: &mpsc::UnboundedSender<_>| network.send(reply(index)).map_err(|e| e.to_string());
        let sent = events_of(schedule, 1000, 2, answer).await;
        assert_eq!(sent.iter().filter(|e| matches!(e, Event::Sent(_))).count(), 2, "{sent:?}");
    }

    #[tokio::test]
    async fn no_series_sends_faster_than_its_rate() {
        let schedule = Schedule { count: 11, interval: Duration::ZERO, timeout: Duration::from_millis(1) };
        let started = std::time::Instant::now();
        let sent = events_of(schedule, 100, 11, |_, _| Ok(())).await;
        assert!(started.elapsed() >= Duration::from_millis(100), "{:?}", started.elapsed());
        assert_eq!(sent.iter().filter(|e| matches!(e, Event::Sent(_))).count(), 11);
    }
}
