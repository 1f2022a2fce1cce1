//! Events of a series of probes, in batches: each batch is one host call.

use std::time::Duration;

use scouter_net::series::Event;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

/// Events of one batch.
const MOST: usize = 256;

/// Events that wait to be read.
pub struct Events<R> {
    unread: UnboundedReceiver<Event<R>>,
    every: Duration,
    /// When the next batch is due, once it has an event.
    due: Instant,
}

impl<R> Events<R> {
    /// Batches are at least `every` apart, but for the last one.
    pub fn every(every: Duration, events: UnboundedReceiver<Event<R>>) -> Self {
        Self { unread: events, every, due: Instant::now() + every }
    }

    /// Waits for events; true: no event follows. Events are kept when the future is dropped only as far as they are unread:
    /// a run that is stopped reads no more.
    pub async fn next(&mut self) -> (Vec<Event<R>>, bool) {
        let mut batch = vec![];
        let complete = loop {
            let next = if batch.is_empty() {
                self.unread.recv().await
            } else {
                match timeout_at(self.due, self.unread.recv()).await {
                    Ok(next) => next,
                    Err(_) => break false,
                }
            };
            match next {
                None => break true,
                Some(event) => batch.push(event),
            }
            if batch.len() == MOST {
                break false;
            }
        };
        self.due = Instant::now() + self.every;
        (batch, complete)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn events_of_a_while_are_one_batch_and_the_last_one_does_not_wait() {
        let (sender, events) = mpsc::unbounded_channel::<Event<()>>();
        let mut events = Events::every(Duration::from_millis(100), events);
        let started = Instant::now();
        tokio::spawn(async move {
            for at in [0, 50, 250, 260, 400, 410] {
                tokio::time::sleep_until(started + Duration::from_millis(at)).await;
                sender.send(Event::Sent(u32::try_from(at).expect("small"))).expect("open");
            }
        });
        let mut batches = vec![];
        loop {
            let (batch, complete) = events.next().await;
            let at: Vec<_> = batch.iter().map(|event| if let Event::Sent(at) = event { *at } else { 0 }).collect();
            batches.push((started.elapsed().as_millis(), at));
            if complete {
                break;
            }
        }
        assert_eq!(batches, [(100, vec![0, 50]), (250, vec![250]), (350, vec![260]), (410, vec![400, 410])]);
    }

    #[tokio::test]
    async fn without_a_pause_a_batch_is_what_has_happened() {
        let (sender, events) = mpsc::unbounded_channel::<Event<()>>();
        let mut events = Events::every(Duration::ZERO, events);
        for index in 0..300 {
            sender.send(Event::Sent(index)).expect("open");
        }
        assert_eq!([events.next().await.0.len(), events.next().await.0.len()], [MOST, 300 - MOST]);
        drop(sender);
        assert_eq!(events.next().await, (vec![], true));
    }
}
