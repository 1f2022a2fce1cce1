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

async fn events_of(
    (schedule, pace): (Schedule, Steady),
    per_second: u32,
    up_to: u32,
    behave: Behaviour,
) -> Vec<Event<()>> {
    let (network, answers) = mpsc::unbounded_channel();
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let rate = Rate::new(NonZeroU32::new(per_second).expect("some"), NonZeroU32::MIN);
    let script = Script { answers, network, behave, up_to, dropped: 0 };
    Series::new(schedule, pace, rate, sender).run(script).await;
    let mut events = vec![];
    while let Some(event) = receiver.recv().await {
        events.push(event);
    }
    events
}

async fn events(count: u32, behave: Behaviour) -> Vec<Event<()>> {
    let schedule = (Schedule { count, timeout: Duration::from_millis(100) }, Steady::new(Duration::from_millis(10)));
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
    let schedule = Schedule { count: 2, timeout: Duration::from_millis(1) };
    let series = Series::new(
        schedule,
        Steady::new(Duration::ZERO),
        Rate::new(NonZeroU32::MIN, NonZeroU32::new(2).expect("some")),
        sender,
    );
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
    let schedule = (Schedule { count: 5, timeout: Duration::from_mins(1) }, Steady::new(Duration::ZERO));
    let answer = |index, network: &mpsc::UnboundedSender<_>| network.send(reply(index)).map_err(|e| e.to_string());
    let sent = events_of(schedule, 1000, 2, answer).await;
    assert_eq!(sent.iter().filter(|e| matches!(e, Event::Sent(_))).count(), 2, "{sent:?}");
}

#[tokio::test]
async fn no_series_sends_faster_than_its_rate() {
    let schedule = (Schedule { count: 11, timeout: Duration::from_millis(1) }, Steady::new(Duration::ZERO));
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
        let schedule = Schedule { count: 1, timeout: Duration::from_millis(1) };
        let series =
            Series::new(schedule, Steady::new(Duration::ZERO), Rate::new(NonZeroU32::MIN, NonZeroU32::MIN), sender);
        let mut task = SeriesTask::spawn(series, Script { answers, network, behave, up_to: 1, dropped: 0 });
        while events.recv().await.is_some() {}
        assert_eq!((task.has_panicked().await, task.has_panicked().await), (panics, false));
    }
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
    let schedule = Schedule { count: 1, timeout: Duration::from_mins(1) };
    let rate = Rate::new(NonZeroU32::MIN, NonZeroU32::MIN);
    Series::new(schedule, Steady::new(Duration::ZERO), rate, sender).run(Queued(None)).await;
    assert_eq!(received.recv().await, Some(Event::Sent(0)));
    let answer = received.recv().await.expect("an answer");
    assert!(matches!(answer, Event::Received { rtt, .. } if rtt < Duration::from_millis(150)), "{answer:?}");
}
