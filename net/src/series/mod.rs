//! One series of probes: paces them, matches arrivals by index, measures round-trip times and reports events. Pings and
//! traces are series; building a probe and recognising its answer is the work of their [`Channel`].

mod channel;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::packet::socket::Timestamp;

use crate::rate::Rate;
pub use channel::{Arrival, ArrivalSink, Channel};

/// How long after its timeout a probe is still waited for: an answer whose kernel timestamp is in time is not lost
/// because this process read it late.
pub const GRACE: Duration = Duration::from_millis(50);
/// Duplicates reported in one series; and, counted apart, late answers and messages that do not settle. A flood of one
/// kind must neither fill the memory nor suppress the other.
const MAX_EXTRA_EVENTS: u32 = 100;

/// The task of a series; dropping it ends the series.
pub struct SeriesTask(Option<AbortOnDropHandle<()>>);

impl SeriesTask {
    /// Must be called on the I/O runtime.
    pub fn spawn<R: Send + 'static>(series: Series<R>, channel: impl Channel<Response = R>) -> Self {
        Self(Some(AbortOnDropHandle::new(tokio::spawn(series.run(channel)))))
    }

    /// Waits for the end of the series: did it panic? Then the end of its events says nothing about the target.
    pub async fn has_panicked(&mut self) -> bool {
        let Some(task) = self.0.take() else { return false };
        task.await.is_err_and(|error| error.is_panic())
    }
}

/// Pace and timeout of a series.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Number of probes; their indices count from 0.
    pub count: u32,
    /// From one probe to the next.
    pub interval: Duration,
    /// For each probe, from its departure.
    pub timeout: Duration,
}

/// How a message relates to its probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The first answer, within the timeout.
    Answer,
    /// A further message after the answer.
    Duplicate,
    /// After the probe's timeout.
    Late,
    /// A message that does not settle its probe.
    NotSettling,
}

/// What happens in a series, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<R> {
    /// The probe left this host.
    Sent(u32),
    /// This host could not send the probe.
    SendFailed {
        index: u32,
        reason: String,
    },
    Received {
        index: u32,
        verdict: Verdict,
        source: IpAddr,
        rtt: Duration,
        response: R,
    },
    /// No answer within the timeout.
    Lost(u32),
    /// Packets that this host has dropped so far, so that probes may be lost here. Before the losses that it may explain.
    Overflow(u32),
}

/// The state machine of one series.
pub struct Series<R> {
    schedule: Schedule,
    rate: Rate,
    events: UnboundedSender<Event<R>>,
    probes: BTreeMap<u32, SentProbe>,
    /// Indices in order of departure; those that no longer wait are removed when they reach the front.
    waiting: VecDeque<u32>,
    duplicates_left: u32,
    others_left: u32,
    /// Dropped packets that were reported.
    overflow: u32,
}

struct SentProbe {
    departure: Timestamp,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Waiting,
    Answered,
    Lost,
    Unwanted,
}

impl<R: Send> Series<R> {
    #[must_use]
    pub fn new(schedule: Schedule, rate: Rate, events: UnboundedSender<Event<R>>) -> Self {
        Self {
            schedule,
            rate,
            events,
            probes: BTreeMap::new(),
            waiting: VecDeque::new(),
            duplicates_left: MAX_EXTRA_EVENTS,
            others_left: MAX_EXTRA_EVENTS,
            overflow: 0,
        }
    }

    /// Runs until each wanted probe is answered, lost or could not be sent.
    pub async fn run(mut self, mut channel: impl Channel<Response = R>) {
        let mut next = 0;
        let mut next_at = Instant::now();
        loop {
            self.abandon_unwanted(&channel);
            while next < self.schedule.count && !channel.is_wanted(next) {
                next += 1;
            }
            let all_sent = next >= self.schedule.count;
            let oldest = self.oldest_departure();
            if all_sent && oldest.is_none() {
                break;
            }
            // Without a timer: tokio's are rounded up to the next millisecond.
            if !all_sent && next_at <= Instant::now() {
                if let Err(wait) = self.rate.check() {
                    next_at = Instant::now() + wait;
                    continue;
                }
                self.send(next, &mut channel).await;
                next += 1;
                // After a delay of this process the pace goes on: missed probes are not sent in a burst.
                next_at = (next_at + self.schedule.interval).max(Instant::now());
                continue;
            }
            let expires_at = oldest.map_or_else(Instant::now, |sent| (sent + self.schedule.timeout + GRACE).into());
            tokio::select! {
                biased;
                // Sending has priority: a flood of arrivals must not delay it.
                () = sleep_until(next_at), if !all_sent => {}
                // Arrivals are processed before probes expire.
                arrival = channel.arrival() => if let Some(arrival) = arrival {
                    self.learn_departure(arrival.index, &mut channel);
                    self.process(arrival);
                },
                () = sleep_until(expires_at), if oldest.is_some() => {
                    self.report_overflow(channel.overflow());
                    self.expire(&mut channel);
                }
            }
        }
        self.report_overflow(channel.overflow());
    }

    fn report_overflow(&mut self, packets: u32) {
        if packets > self.overflow {
            self.overflow = packets;
            self.report(Event::Overflow(packets));
        }
    }

    async fn send(&mut self, index: u32, channel: &mut impl Channel<Response = R>) {
        match channel.send(index).await {
            Ok(departure) => {
                self.probes.insert(index, SentProbe { departure, state: State::Waiting });
                self.waiting.push_back(index);
                self.report(Event::Sent(index));
            }
            Err(reason) => self.report(Event::SendFailed { index, reason }),
        }
    }

    /// When the oldest probe that still waits left.
    fn oldest_departure(&mut self) -> Option<std::time::Instant> {
        while let Some(index) = self.waiting.front() {
            match self.probes.get(index) {
                Some(probe) if probe.state == State::Waiting => return Some(probe.departure.monotonic),
                _ => self.waiting.pop_front(),
            };
        }
        None
    }

    fn abandon_unwanted(&mut self, channel: &impl Channel<Response = R>) {
        for index in &self.waiting {
            if let Some(probe) = self.probes.get_mut(index)
                && probe.state == State::Waiting
                && !channel.is_wanted(*index)
            {
                probe.state = State::Unwanted;
            }
        }
    }

    fn report(&self, event: Event<R>) {
        // The receiver is gone when the test has just been cancelled.
        let _ = self.events.send(event);
    }

    fn process(&mut self, arrival: Arrival<R>) {
        let Arrival { index, source, timestamp, settles, response } = arrival;
        let Some(probe) = self.probes.get_mut(&index) else { return };
        let rtt = probe.departure.elapsed_until(timestamp);
        let verdict = match probe.state {
            State::Unwanted => return,
            _ if !settles => Verdict::NotSettling,
            State::Waiting if rtt <= self.schedule.timeout => {
                probe.state = State::Answered;
                Verdict::Answer
            }
            State::Waiting => {
                probe.state = State::Lost;
                self.report(Event::Lost(index));
                Verdict::Late
            }
            State::Lost => Verdict::Late,
            State::Answered => Verdict::Duplicate,
        };
        let left = match verdict {
            Verdict::Answer => None,
            Verdict::Duplicate => Some(&mut self.duplicates_left),
            Verdict::Late | Verdict::NotSettling => Some(&mut self.others_left),
        };
        match left {
            Some(0) => return,
            Some(left) => *left -= 1,
            None => {}
        }
        self.report(Event::Received { index, verdict, source, rtt, response });
    }

    /// Before a round-trip time or timeout of the probe is told: did it leave later than its send returned?
    fn learn_departure(&mut self, index: u32, channel: &mut impl Channel<Response = R>) {
        if let Some(probe) = self.probes.get_mut(&index)
            && let Some(departure) = channel.late_departure(index)
        {
            probe.departure = departure;
        }
    }

    fn expire(&mut self, channel: &mut impl Channel<Response = R>) {
        let timeout = self.schedule.timeout + GRACE;
        for index in &self.waiting {
            if let Some(probe) = self.probes.get_mut(index)
                && probe.state == State::Waiting
                && probe.departure.monotonic.elapsed() >= timeout
            {
                if let Some(departure) = channel.late_departure(*index) {
                    probe.departure = departure;
                    if departure.monotonic.elapsed() < timeout {
                        continue;
                    }
                }
                probe.state = State::Lost;
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

    /// A network that handles each probe as a function says.
    struct Script {
        answers: mpsc::UnboundedReceiver<Arrival<()>>,
        network: mpsc::UnboundedSender<Arrival<()>>,
        behave: Behaviour,
        up_to: u32,
        dropped: u32,
    }

    impl Channel for Script {
        type Response = ();

        async fn send(&mut self, index: u32) -> Result<Timestamp, String> {
            let departure = Timestamp::now();
            (self.behave)(index, &self.network)?;
            Ok(departure)
        }
        async fn arrival(&mut self) -> Option<Arrival<()>> {
            self.answers.recv().await
        }
        fn overflow(&self) -> u32 {
            self.dropped
        }
        fn is_wanted(&self, index: u32) -> bool {
            index < self.up_to
        }
    }

    fn reply(index: u32) -> Arrival<()> {
        let timestamp = Some(Timestamp::now().wall());
        Arrival { index, source: "192.0.2.1".parse().expect("address"), timestamp, settles: true, response: () }
    }

    async fn events_of(schedule: Schedule, per_second: u32, up_to: u32, behave: Behaviour) -> Vec<Event<()>> {
        let (network, answers) = mpsc::unbounded_channel();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let rate = Rate::new(NonZeroU32::new(per_second).expect("some"), NonZeroU32::MIN);
        Series::new(schedule, rate, sender).run(Script { answers, network, behave, up_to, dropped: 0 }).await;
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
        let count = |wanted: Verdict| {
            let fits = |e: &&Event<()>| matches!(e, Event::Received { verdict, .. } if *verdict == wanted);
            events.iter().filter(fits).count()
        };
        assert_eq!(count(Verdict::Answer), 2);
        // The series ends with its last answer: of the second probe's duplicates none is waited for.
        assert!(count(Verdict::Duplicate) >= 1);
        assert!(!events.iter().any(|e| matches!(e, Event::Lost(_))));
        assert_eq!(events.iter().filter(|e| matches!(e, Event::Sent(_))).count(), 2);
    }

    #[tokio::test]
    async fn silence_is_loss_and_a_failed_send_is_not() {
        let events = events(2, |index, _| if index == 0 { Err("no route".into()) } else { Ok(()) }).await;
        assert_eq!(events, [Event::SendFailed { index: 0, reason: "no route".into() }, Event::Sent(1), Event::Lost(1)]);
    }

    #[tokio::test]
    async fn what_this_host_dropped_is_known_before_the_losses_that_it_may_explain() {
        let (network, answers) = mpsc::unbounded_channel();
        let (sender, mut received) = mpsc::unbounded_channel();
        let schedule = Schedule { count: 2, interval: Duration::ZERO, timeout: Duration::from_millis(1) };
        let series = Series::new(schedule, Rate::new(NonZeroU32::MIN, NonZeroU32::new(2).expect("some")), sender);
        series.run(Script { answers, network, behave: |_, _| Ok(()), up_to: 2, dropped: 7 }).await;
        let mut events = vec![];
        while let Some(event) = received.recv().await {
            events.push(event);
        }
        assert_eq!(events, [Event::Sent(0), Event::Sent(1), Event::Overflow(7), Event::Lost(0), Event::Lost(1)]);
    }

    #[tokio::test]
    async fn a_message_that_does_not_settle_leaves_its_probe_waiting() {
        let events = events(1, |index, network| {
            network.send(Arrival { settles: false, ..reply(index) }).expect("open");
            Ok(())
        })
        .await;
        assert!(matches!(events[1], Event::Received { verdict: Verdict::NotSettling, .. }), "{events:?}");
        assert_eq!(events[2], Event::Lost(0));
    }

    /// A probe that waits in a queue of this host, and is answered when it has left.
    struct Queued(Option<Timestamp>);

    impl Channel for Queued {
        type Response = ();

        async fn send(&mut self, _: u32) -> Result<Timestamp, String> {
            Ok(Timestamp::now())
        }
        async fn arrival(&mut self) -> Option<Arrival<()>> {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.0 = Some(Timestamp::now());
            Some(reply(0))
        }
        fn late_departure(&mut self, _: u32) -> Option<Timestamp> {
            self.0.take()
        }
        fn overflow(&self) -> u32 {
            0
        }
    }

    #[tokio::test]
    async fn time_in_a_queue_of_this_host_is_no_part_of_the_round_trip() {
        let (sender, mut received) = mpsc::unbounded_channel();
        let schedule = Schedule { count: 1, interval: Duration::ZERO, timeout: Duration::from_mins(1) };
        Series::new(schedule, Rate::new(NonZeroU32::MIN, NonZeroU32::MIN), sender).run(Queued(None)).await;
        assert_eq!(received.recv().await, Some(Event::Sent(0)));
        let answer = received.recv().await.expect("an answer");
        assert!(matches!(answer, Event::Received { rtt, .. } if rtt < Duration::from_millis(150)), "{answer:?}");
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
    async fn unwanted_probes_are_neither_sent_nor_waited_for() {
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

    #[tokio::test]
    async fn a_panic_of_a_channel_is_known_when_the_events_end() {
        for (behave, panics) in [((|_, _| panic!("a mistake")) as Behaviour, true), (|_, _| Ok(()), false)] {
            let (network, answers) = mpsc::unbounded_channel();
            let (sender, mut events) = mpsc::unbounded_channel();
            let schedule = Schedule { count: 1, interval: Duration::ZERO, timeout: Duration::from_millis(1) };
            let series = Series::new(schedule, Rate::new(NonZeroU32::MIN, NonZeroU32::MIN), sender);
            let mut task = SeriesTask::spawn(series, Script { answers, network, behave, up_to: 1, dropped: 0 });
            while events.recv().await.is_some() {}
            assert_eq!((task.has_panicked().await, task.has_panicked().await), (panics, false));
        }
    }
}
