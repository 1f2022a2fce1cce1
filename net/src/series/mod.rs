//! One series of probes: paces them, matches arrivals by index, measures round-trip times and reports events. Pings and
//! traces are series; building a probe and recognising its answer is the work of their [`Channel`].

mod channel;
mod pace;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::packet::socket::Timestamp;

use crate::rate::Rate;
pub use channel::{Arrival, ArrivalSink, Channel};
pub use pace::{Pace, Steady};

/// How long after its timeout a probe is still waited for: an answer whose kernel timestamp is in time is not lost
/// because this process read it late.
pub const GRACE: Duration = Duration::from_millis(50);
/// A probe that is not worth waiting for any more is waited for so much longer: what has come for it is read first.
const SETTLE: Duration = Duration::from_millis(1);
/// Duplicates reported in one series; and, counted apart, late answers and messages that do not settle. A flood of one
/// kind must neither fill the memory nor suppress the other.
const MAX_EXTRA_EVENTS: u32 = 100;

/// The task of a series; dropping it ends the series.
pub struct SeriesTask(Option<AbortOnDropHandle<()>>);

impl SeriesTask {
    /// Must be called on the I/O runtime.
    pub fn spawn<R: Send + 'static, P: Pace<R>>(series: Series<R, P>, channel: impl Channel<Response = R>) -> Self {
        Self(Some(AbortOnDropHandle::new(tokio::spawn(series.run(channel)))))
    }

    /// Waits for the end of the series: did it panic? Then the end of its events says nothing about the target.
    pub async fn has_panicked(&mut self) -> bool {
        let Some(task) = self.0.take() else { return false };
        task.await.is_err_and(|error| error.is_panic())
    }
}

/// How many probes a series has, and how long it waits for each.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Number of probes; their indices count from 0.
    pub count: u32,
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
    /// No answer within the timeout, or for as long as it was worth waiting for one.
    Lost(u32),
    /// Packets that this host has dropped so far, so that probes may be lost here. Before the losses that it may explain.
    Overflow(u32),
}

/// The state machine of one series.
pub struct Series<R, P = Steady> {
    schedule: Schedule,
    pace: P,
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

impl<R: Send, P: Pace<R>> Series<R, P> {
    #[must_use]
    pub fn new(schedule: Schedule, pace: P, rate: Rate, events: UnboundedSender<Event<R>>) -> Self {
        Self {
            schedule,
            pace,
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
        let mut not_before = Instant::now();
        // When it was seen that nothing is worth waiting for any more.
        let mut over = None;
        loop {
            self.abandon_unwanted(&channel);
            while next < self.schedule.count && !self.is_wanted(next, &channel) {
                next += 1;
            }
            let all_sent = next >= self.schedule.count;
            let oldest = self.oldest_departure();
            if all_sent && oldest.is_none() {
                break;
            }
            let now = Instant::now();
            let due = (!all_sent).then(|| self.pace.due(next).map_or(not_before, |due| due.max(not_before)));
            // Without a timer: tokio's are rounded up to the next millisecond.
            if due.is_some_and(|due| due <= now) {
                if let Err(wait) = self.rate.check() {
                    not_before = now + wait;
                    continue;
                }
                self.send(next, &mut channel).await;
                next += 1;
                continue;
            }
            let mut wake = oldest.map(|sent| (sent + self.schedule.timeout + GRACE).into());
            if all_sent && let Some(end) = self.end_of_patience(&mut channel) {
                if end <= now && over.is_some_and(|over: Instant| over + SETTLE <= now) {
                    self.report_overflow(channel.overflow());
                    self.expire(&mut channel, |_| true);
                    break;
                }
                // Once the last moment has passed, what has come is read first.
                let end = if end <= now {
                    *over.get_or_insert(now) + SETTLE
                } else {
                    over = None;
                    end
                };
                wake = Some(wake.map_or(end, |wake: Instant| wake.min(end)));
            }
            let wake_at = due.into_iter().chain(wake).min().unwrap_or(now);
            tokio::select! {
                biased;
                // Sending has priority: a flood of arrivals must not delay it.
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
                // Arrivals are processed before probes expire.
                arrival = channel.arrival() => if let Some(arrival) = arrival {
                    over = None;
                    self.learn_departure(arrival.index, &mut channel);
                    self.process(arrival);
                },
                () = sleep_until(wake_at) => {
                    self.report_overflow(channel.overflow());
                    let longest = self.schedule.timeout + GRACE;
                    self.expire(&mut channel, |probe| probe.departure.monotonic.elapsed() >= longest);
                }
            }
        }
        self.report_overflow(channel.overflow());
    }

    fn is_wanted(&self, index: u32, channel: &impl Channel<Response = R>) -> bool {
        channel.is_wanted(index) && self.pace.is_wanted(index)
    }

    /// Until when something is worth waiting for; None: that is each probe's timeout.
    fn end_of_patience(&mut self, channel: &mut impl Channel<Response = R>) -> Option<Instant> {
        let mut end = None;
        for place in 0..self.waiting.len() {
            let index = *self.waiting.get(place)?;
            if self.probes.get(&index).is_none_or(|probe| probe.state != State::Waiting) {
                continue;
            }
            let patience = self.pace.patience(index)?;
            self.learn_departure(index, channel);
            if channel.may_be_queued(index) {
                return None;
            }
            let probe = self.probes.get(&index)?;
            let until: Instant = (probe.departure.monotonic + patience).into();
            end = end.max(Some(until));
        }
        end
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
                self.pace.sent(index, true);
                self.report(Event::Sent(index));
            }
            Err(reason) => {
                self.pace.sent(index, false);
                self.report(Event::SendFailed { index, reason });
            }
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
                && !(channel.is_wanted(*index) && self.pace.is_wanted(*index))
            {
                probe.state = State::Unwanted;
                self.pace.settled(*index);
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
                self.pace.answered(index, source, rtt, &response);
                Verdict::Answer
            }
            State::Waiting => {
                probe.state = State::Lost;
                self.pace.settled(index);
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

    /// Reports probes that still wait, and that this is true of, as lost.
    fn expire(&mut self, channel: &mut impl Channel<Response = R>, is_over: impl Fn(&SentProbe) -> bool) {
        for index in &self.waiting {
            if let Some(probe) = self.probes.get_mut(index)
                && probe.state == State::Waiting
                && is_over(probe)
            {
                if let Some(departure) = channel.late_departure(*index) {
                    probe.departure = departure;
                    if !is_over(probe) {
                        continue;
                    }
                }
                probe.state = State::Lost;
                self.pace.settled(*index);
                let _ = self.events.send(Event::Lost(*index));
            }
        }
    }
}
