//! Events of a receipt: each test's newest partial result, each finished test, and at the end the whole body.
//!
//! Watchers have no queues. Each event has a number; a watcher asks for events newer than the last one that it sent, and
//! of a test's partial results gets the newest only. So a watcher that is slow, late, or reconnects misses only partial
//! results that newer ones have replaced, and ten thousand of them hold no more memory than one.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{Reader, Receipt};
use crate::model;
use crate::sandbox::Partial;

/// One server-sent event. Its JSON consists of buffers that all watchers share.
#[derive(Debug, Clone)]
pub struct Event {
    pub number: u64,
    pub kind: &'static str,
    pub data: Vec<Bytes>,
}

/// An event for watchers.
#[derive(Debug)]
pub struct Since {
    /// In order.
    pub events: Vec<Event>,
    /// The number to continue from: not every number is that of an event.
    pub up_to: u64,
    /// Is the last of them `done`?
    pub done: bool,
}

/// A test's newest event, and the partial result that will be the next one.
#[derive(Debug, Default, Clone)]
pub(super) struct Update {
    number: u64,
    /// JSON in pieces; empty before the first event.
    data: Vec<Bytes>,
    finished: bool,
    /// The newest partial result, as long as nobody parses it.
    unread: Option<Partial>,
    /// One is being parsed.
    reading: bool,
}

/// A partial result to be parsed, on a thread that may take the time. Until then no other one of the test is: the next
/// event must not be older than the last.
pub struct Unread {
    receipt: Reader,
    index: usize,
    partial: Partial,
}

impl Unread {
    /// Is it parsed in some tens of microseconds?
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.partial.is_small()
    }

    /// Parses it. It is an event for all watchers, also when a newer one has come meanwhile.
    pub fn publish(self) {
        if let Some(json) = self.partial.json() {
            let receipt = self.receipt.receipt();
            let pieces = receipt.pieces_of(self.index, Some(RawValue::NULL), None, line(json));
            receipt.publish(self.index, pieces, false);
        }
    }
}

impl Drop for Unread {
    /// Whether or not it was published.
    fn drop(&mut self) {
        let receipt = self.receipt.receipt();
        let mut updates = receipt.updates.lock();
        let Some(slot) = updates.get_mut(self.index) else { return };
        slot.reading = false;
        if slot.unread.is_some() {
            let number = receipt.next_number();
            drop(updates);
            receipt.wake(number);
        }
    }
}

/// JSON on one line: JSON may have line ends between values, the data of an event must not.
pub(super) fn line(json: Box<RawValue>) -> Bytes {
    let text = String::from(Box::<str>::from(json));
    if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], " ").into() } else { text.into() }
}

impl Receipt {
    /// A test's result so far. It becomes an event once it is parsed.
    pub fn partial(&self, index: usize, partial: &Partial) {
        let mut updates = self.updates.lock();
        let Some(slot) = updates.get_mut(index).filter(|slot| !slot.finished) else { return };
        // Watchers are awake already when one is unread, and will be when the one that is being parsed is published.
        let is_news = slot.unread.replace(partial.clone()).is_none() && !slot.reading;
        if is_news {
            let number = self.next_number();
            drop(updates);
            self.wake(number);
        }
    }

    pub(super) fn finished(&self, index: usize, json: Bytes) {
        let data = self.pieces_of(index, None, Some(RawValue::NULL), json);
        self.publish(index, data, true);
    }

    fn pieces_of(&self, index: usize, result: Option<&RawValue>, test: Option<&RawValue>, json: Bytes) -> Vec<Bytes> {
        let (name, place) = self.place_of(index);
        model::spliced(&model::Event { r#type: name, index: place, result, test }, [json])
    }

    fn publish(&self, index: usize, data: Vec<Bytes>, finished: bool) {
        let mut updates = self.updates.lock();
        // A partial result after the final one is out of date.
        let Some(slot) = updates.get_mut(index).filter(|slot| !slot.finished) else { return };
        let number = self.next_number();
        (slot.number, slot.data, slot.finished) = (number, data, finished);
        if finished {
            slot.unread = None;
        }
        drop(updates);
        self.wake(number);
    }

    /// To be called with the updates locked: they are numbered in the order in which they are seen.
    fn next_number(&self) -> u64 {
        self.happened.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The number never decreases: of two concurrent updates, the watcher that waits for the later one must not miss it.
    fn wake(&self, number: u64) {
        self.newest.send_if_modified(|newest| {
            let newer = number > *newest;
            *newest = number.max(*newest);
            newer
        });
    }

    /// The event `done`.
    pub(super) fn update_end(&self) {
        self.wake(self.happened.load(Ordering::Relaxed) + 1);
    }

    /// The type of a test, and its place among those of its type.
    fn place_of(&self, index: usize) -> (&str, usize) {
        let mut before = 0;
        for (name, count) in &self.types {
            if index < before + count {
                return (name, index - before);
            }
            before += count;
        }
        ("", 0)
    }

    /// Where a watcher with this `Last-Event-ID` continues. A number that this receipt has not used yet belongs to another
    /// receipt, or to none: the watcher starts at the beginning.
    #[must_use]
    pub fn resume(&self, last: u64) -> u64 {
        let end = u64::from(!self.is_running());
        if last > self.happened.load(Ordering::Relaxed) + end { 0 } else { last }
    }

    /// What has happened after this number.
    #[must_use]
    pub fn since(&self, number: u64) -> Since {
        let done = !self.is_running();
        let updates = self.updates.lock();
        let newer = updates.iter().filter(|slot| slot.number > number);
        let event = |slot: &Update| Event {
            number: slot.number,
            kind: if slot.finished { "test" } else { "partial" },
            data: slot.data.clone(),
        };
        let mut events: Vec<Event> = newer.map(event).collect();
        let mut up_to = self.happened.load(Ordering::Relaxed).max(number);
        drop(updates);
        events.sort_by_key(|event| event.number);
        if done {
            up_to = self.happened.load(Ordering::Relaxed) + 1;
            events.push(Event { number: up_to, kind: "done", data: self.pieces() });
        }
        Since { events, up_to, done }
    }

    /// Waits for an event after this number. False when the receipt was deleted or has expired.
    pub async fn changed_since(&self, number: u64) -> bool {
        let mut newest = self.newest.subscribe();
        tokio::select! {
            happened = newest.wait_for(|newest| *newest > number) => happened.is_ok(),
            () = self.cancel.cancelled() => false,
        }
    }
}

impl Reader {
    /// Takes the partial results that are not parsed yet, each of them once.
    #[must_use]
    pub fn take_unread(&self) -> Vec<Unread> {
        let mut updates = self.receipt().updates.lock();
        let unread = updates.iter_mut().enumerate().filter(|(_, slot)| !slot.reading).filter_map(|(index, slot)| {
            let partial = slot.unread.take()?;
            slot.reading = true;
            Some(Unread { receipt: self.clone(), index, partial })
        });
        unread.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::super::{Budget, Receipts};
    use super::*;
    use crate::plan::{Action, Plan, PlannedTest};

    fn partial_result(text: &str) -> Partial {
        Partial::new(text.into())
    }

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.into()).expect("JSON")
    }

    fn reader(receipt: &Arc<Receipt>) -> Reader {
        Reader::new(Arc::clone(receipt))
    }

    fn events_since(receipt: &Arc<Receipt>, since: u64) -> Vec<(u64, &'static str, String)> {
        let text = |event: Event| String::from_utf8(event.data.concat()).expect("UTF-8");
        reader(receipt).take_unread().into_iter().for_each(Unread::publish);
        receipt.since(since).events.into_iter().map(|event| (event.number, event.kind, text(event))).collect()
    }

    #[test]
    fn late_and_slow_watchers_get_the_newest_event_of_each_test() {
        let budget =
            Budget { lifetime: Duration::from_mins(1), receipts: 10, receipt_bytes: 1000, total_bytes: 10_000 };
        let receipts = Arc::new(Receipts::new(budget));
        let test = |type_index| PlannedTest {
            type_index,
            id: json!("x"),
            action: Action::Refuse { plugin: None, message: String::new() },
        };
        let plan = Plan { types: vec![("a".into(), 1), ("b".into(), 2)], tests: vec![test(0), test(1), test(1)] };
        let receipt = receipts.open(&plan);
        assert_eq!(events_since(&receipt, 0), []);
        receipt.partial(2, &partial_result("{\"n\":\n1}"));
        receipt.partial(2, &partial_result("{\"n\":\n2}"));
        receipt.partial(1, &partial_result("3"));
        receipt.partial(0, &partial_result("{}"));
        assert!(receipt.since(0).events.is_empty(), "nothing is parsed yet");
        let late = reader(&receipt).take_unread();
        receipt.partial(2, &partial_result("{\"n\":\n3}"));
        assert!(reader(&receipt).take_unread().is_empty(), "an older one of that test is being parsed");
        late.into_iter().for_each(Unread::publish);
        let partial = |n, text: &str| (n, "partial", text.to_owned());
        let newest = partial(7, r#"{"type":"b","index":1,"result":{"n":3}}"#);
        assert_eq!(events_since(&receipt, 0), [partial(4, r#"{"type":"a","index":0,"result":{}}"#), newest]);
        assert_eq!(events_since(&receipt, 4).len(), 1);
        receipts.record(&receipt, 2, raw("{\"m\": 5}"), |_| raw("null"));
        receipt.partial(2, &partial_result("{}"));
        let test = (8, "test", r#"{"type":"b","index":1,"test":{"m": 5}}"#.to_owned());
        assert_eq!(events_since(&receipt, 7), [test]);
        receipts.record(&receipt, 0, raw("1"), |_| raw("null"));
        receipts.record(&receipt, 1, raw("1"), |_| raw("null"));
        let all = events_since(&receipt, 3);
        let kinds: Vec<_> = all.iter().map(|(_, kind, _)| *kind).collect();
        assert_eq!(kinds, ["test", "test", "test", "done"]);
        assert_eq!(all[3].2.as_bytes(), receipt.pieces().concat());
        assert_eq!(events_since(&receipt, all[2].0).len(), 1, "`done` comes after the events of all tests");
        assert_eq!([0, 5, 11, 12, u64::MAX].map(|last| receipt.resume(last)), [0, 5, 11, 0, 0]);
    }

    #[test]
    fn tests_that_end_at_once_have_an_event_each_before_the_last_one() {
        let budget =
            Budget { lifetime: Duration::from_mins(1), receipts: 10, receipt_bytes: 1000, total_bytes: 10_000 };
        let receipts = Receipts::new(budget);
        let refuse = || PlannedTest {
            type_index: 0,
            id: json!("x"),
            action: Action::Refuse { plugin: None, message: String::new() },
        };
        for _ in 0..2000 {
            let receipt =
                receipts.open(&Plan { types: vec![("a".into(), 4)], tests: (0..4).map(|_| refuse()).collect() });
            let seen = std::thread::scope(|scope| {
                for index in 0..4 {
                    let (receipts, receipt) = (&receipts, &receipt);
                    scope.spawn(move || receipts.record(receipt, index, raw("1"), |_| raw("null")));
                }
                // With `done` come the events of every test.
                loop {
                    let since = receipt.since(0);
                    if since.done {
                        break since.events.len();
                    }
                }
            });
            assert!(!receipt.is_running());
            assert_eq!(seen, 5);
        }
    }
}
