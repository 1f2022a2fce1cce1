//! What callers keep: open, record, watch, get, expire, with a budget in number and in bytes.
//!
//! Running receipts are in a map of their own and are never evicted (the queue bounds them). Finished ones are in a
//! moka cache; the oldest go first when there are too many or they hold too many bytes.

mod events;
mod readers;

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::policy::EvictionPolicy;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model;
use crate::plan::Plan;
use events::Update;
pub use events::{Event, Since, Unread};
pub use readers::Reader;
use readers::{Readers, RemovedBytes};

/// Bytes of receipts that were removed and still being read, beyond which no new ones are made.
const REMOVED_BYTES: u64 = 64 << 20;

/// 128 random bits as 32 lower-case hexadecimal digits.
pub type ReceiptId = String;

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// From the making of a receipt to its end.
    pub lifetime: Duration,
    /// Finished receipts kept.
    pub receipts: u64,
    /// Bytes of results in one receipt.
    pub receipt_bytes: usize,
    /// Bytes of all finished receipts.
    pub total_bytes: u64,
}

pub struct Receipts {
    budget: Budget,
    running: Mutex<HashMap<ReceiptId, Arc<Receipt>>>,
    finished: moka::sync::Cache<ReceiptId, Arc<Receipt>>,
    finished_weight: Arc<AtomicU64>,
    removed: RemovedBytes,
}

/// One payload's results as they come.
pub struct Receipt {
    pub id: ReceiptId,
    made: Instant,
    types: Vec<(String, usize)>,
    results: Mutex<Vec<TestResult>>,
    /// Bytes of results.
    bytes: AtomicUsize,
    /// Bytes of everything else that is kept: the receipt itself, names of types, the newest event of each test.
    frame: usize,
    finished: watch::Sender<usize>,
    /// For watchers: each test's newest event, the number of events, and the same number as a channel to wait on.
    updates: Mutex<Vec<Update>>,
    happened: AtomicU64,
    newest: watch::Sender<u64>,
    readers: Readers,
    /// Cancelled when the caller deletes the receipt or the server stops.
    pub cancel: CancellationToken,
}

#[derive(Debug)]
struct TestResult {
    type_index: usize,
    /// Held once, however many responses have it.
    json: Option<Bytes>,
}

impl Receipts {
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        let finished_weight = Arc::new(AtomicU64::new(0));
        let evicted = Arc::clone(&finished_weight);
        let share = budget.share();
        let removed = RemovedBytes::default();
        let left = removed.clone();
        let finished = moka::sync::Cache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(budget.total_bytes)
            .weigher(move |_: &ReceiptId, receipt: &Arc<Receipt>| receipt.weight(share))
            .expire_after(EndOfLife { lifetime: budget.lifetime })
            .eviction_listener(move |_, receipt: Arc<Receipt>, _| {
                evicted.fetch_sub(receipt.weight(share).into(), Ordering::Relaxed);
                receipt.leave(&left);
            })
            .build();
        Self { budget, running: Mutex::default(), finished, finished_weight, removed }
    }

    /// A new receipt for this plan. One without tests is finished immediately.
    #[must_use]
    pub fn open(&self, plan: &Plan) -> Arc<Receipt> {
        let receipt = Arc::new(Receipt {
            id: hex::encode(rand::random::<[u8; 16]>()),
            made: Instant::now(),
            types: plan.types.clone(),
            results: Mutex::new(
                plan.tests.iter().map(|t| TestResult { type_index: t.type_index, json: None }).collect(),
            ),
            bytes: AtomicUsize::new(0),
            frame: frame(plan),
            finished: watch::Sender::new(0),
            updates: Mutex::new(vec![Update::default(); plan.tests.len()]),
            happened: AtomicU64::new(0),
            newest: watch::Sender::new(0),
            readers: Readers::default(),
            cancel: CancellationToken::new(),
        });
        self.running.lock().insert(receipt.id.clone(), Arc::clone(&receipt));
        if plan.tests.is_empty() {
            self.retire(&receipt);
        }
        receipt
    }

    /// Puts a finished test in its place. When it would pass the receipt's byte budget, `too_large` is put there.
    pub fn record(
        &self,
        receipt: &Arc<Receipt>,
        index: usize,
        json: Box<RawValue>,
        too_large: impl FnOnce(usize) -> Box<RawValue>,
    ) {
        // All of it in one step: two tests that end together must not set the count back, and `done` is the event after
        // both.
        let mut results = receipt.results.lock();
        let held = receipt.bytes.load(Ordering::Relaxed);
        let fits = held + json.get().len() <= self.budget.receipt_bytes;
        let json = events::line(if fits { json } else { too_large(self.budget.receipt_bytes) });
        receipt.bytes.fetch_add(json.len(), Ordering::Relaxed);
        if let Some(slot) = results.get_mut(index) {
            slot.json = Some(json.clone());
        }
        receipt.finished(index, json);
        let finished = results.iter().filter(|r| r.json.is_some()).count();
        // The receipt moves before its watchers wake: a client that gets `done` finds the receipt.
        if finished == receipt.total() {
            self.retire(receipt);
        }
        receipt.finished.send_replace(finished);
        if finished == receipt.total() {
            receipt.update_end();
        }
    }

    fn retire(&self, receipt: &Arc<Receipt>) {
        let mut running = self.running.lock();
        // Deleted meanwhile: it must not come back.
        if running.contains_key(&receipt.id) {
            let weight = receipt.weight(self.budget.share());
            self.finished_weight.fetch_add(weight.into(), Ordering::Relaxed);
            self.finished.insert(receipt.id.clone(), Arc::clone(receipt));
            running.remove(&receipt.id);
        }
        drop(running);
        // moka evicts in batches; a burst of large results must not pass the budget meanwhile.
        if self.finished_weight.load(Ordering::Relaxed) > self.budget.total_bytes {
            self.finished.run_pending_tasks();
        }
    }

    /// None when unknown, deleted, evicted or expired.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Receipt>> {
        let running = self.running.lock().get(id).cloned();
        running.or_else(|| self.finished.get(id)).filter(|receipt| receipt.made.elapsed() < self.budget.lifetime)
    }

    /// Forgets a receipt and cancels what still runs for it. False when there was none.
    #[must_use]
    pub fn delete(&self, id: &str) -> bool {
        let found = self.get(id).is_some();
        let running = self.running.lock().remove(id);
        match &running {
            Some(receipt) => {
                receipt.leave(&self.removed);
                receipt.cancel.cancel();
            }
            None => drop(self.finished.remove(id)),
        }
        found
    }

    pub fn cancel_all(&self) {
        for receipt in self.running.lock().values() {
            receipt.cancel.cancel();
        }
    }

    /// Drops what has expired. To be called every second or so: neither map does it by itself.
    pub fn expire(&self) {
        self.finished.run_pending_tasks();
        self.running.lock().retain(|_, receipt| {
            let alive = receipt.made.elapsed() < self.budget.lifetime;
            if !alive {
                receipt.leave(&self.removed);
                receipt.cancel.cancel();
            }
            alive
        });
    }

    /// Do responses hold so many results of removed receipts that no new ones should be made? Each budget counts
    /// what is kept, and those are kept by their readers alone.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.removed.bytes() > REMOVED_BYTES
    }

    /// Receipts kept: running, finished; and the bytes of the finished ones.
    #[must_use]
    pub fn counts(&self) -> (usize, u64, u64) {
        (self.running.lock().len(), self.finished.entry_count(), self.finished_weight.load(Ordering::Relaxed))
    }
}

impl Budget {
    /// What each receipt weighs at least, so that `receipts` of them fill the budget in bytes.
    fn share(self) -> u32 {
        u32::try_from(self.total_bytes / self.receipts.max(1)).unwrap_or(u32::MAX).max(1)
    }
}

/// Bytes that a receipt holds before its first result.
fn frame(plan: &Plan) -> usize {
    /// The receipt, its id in two places, and the maps' entries.
    const RECEIPT: usize = 1024;
    /// Of each type and of each test, besides the type's name.
    const TYPE: usize = 64;
    const TEST: usize = 256;
    // The event of each test has the name of its type, with up to six characters for one (JSON escapes).
    let types = plan.types.iter().map(|(name, tests)| TYPE + name.len() + tests * (TEST + 6 * name.len()));
    RECEIPT + types.sum::<usize>()
}

struct EndOfLife {
    lifetime: Duration,
}

impl moka::Expiry<ReceiptId, Arc<Receipt>> for EndOfLife {
    fn expire_after_create(&self, _: &ReceiptId, receipt: &Arc<Receipt>, _: Instant) -> Option<Duration> {
        Some(self.lifetime.saturating_sub(receipt.made.elapsed()))
    }
}

impl Receipt {
    #[must_use]
    pub fn total(&self) -> usize {
        self.types.iter().map(|(_, count)| count).sum()
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        *self.finished.borrow() < self.total()
    }

    fn held(&self) -> usize {
        self.frame + self.bytes.load(Ordering::Relaxed)
    }

    fn weight(&self, share: u32) -> u32 {
        u32::try_from(self.held()).unwrap_or(u32::MAX).max(share)
    }

    fn leave(&self, removed: &RemovedBytes) {
        self.readers.leave(removed, self.held() as u64);
    }

    /// Waits until every test is finished, or the time is up.
    pub async fn wait(&self, at_most: Duration) {
        let total = self.total();
        let mut finished = self.finished.subscribe();
        // The sender lives as long as `self`: only the time can run out.
        let _ = tokio::time::timeout(at_most, finished.wait_for(|count| *count >= total)).await;
    }

    /// The body of `GET /tests`: finished tests by type, in the order of submission. The results in it are shared with
    /// the receipt, not copied.
    #[must_use]
    pub fn pieces(&self) -> Vec<Bytes> {
        let results = self.results.lock();
        let finished = results.iter().filter(|r| r.json.is_some()).count();
        let (mut types, mut shared) = (vec![], vec![]);
        for (type_index, (name, count)) in self.types.iter().enumerate() {
            let tests = results.iter().filter(|r| r.type_index == type_index).filter_map(|r| r.json.clone());
            let before = shared.len();
            shared.extend(tests);
            let tests = shared.len() - before;
            // A type shows up with its first finished test, as clients of the first version expect.
            if tests > 0 || *count == 0 {
                types.push((name.as_str(), vec![RawValue::NULL; tests]));
            }
        }
        let progress = model::Progress { finished, total: results.len() };
        let is_running = progress.finished < progress.total;
        let receipt = model::Receipt { receipt: &self.id, is_running, results: model::Results(types), progress };
        model::spliced(&receipt, shared)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{Action, PlannedTest};

    fn budget() -> Budget {
        Budget { lifetime: Duration::from_mins(10), receipts: 10, receipt_bytes: 100, total_bytes: 20_000 }
    }

    fn plan(types: &[(&str, usize)]) -> Plan {
        let tests = types.iter().enumerate().flat_map(|(type_index, (_, count))| {
            (0..*count).map(move |_| PlannedTest {
                type_index,
                id: json!("x"),
                action: Action::Refuse { plugin: None, message: String::new() },
            })
        });
        Plan { types: types.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect(), tests: tests.collect() }
    }

    fn raw(value: &Value) -> Box<RawValue> {
        RawValue::from_string(value.to_string()).expect("JSON")
    }

    fn body(receipt: &Receipt) -> Value {
        serde_json::from_slice(&receipt.pieces().concat()).expect("JSON")
    }

    #[test]
    fn results_appear_as_tests_finish_in_the_order_of_submission() {
        let receipts = Receipts::new(budget());
        let receipt = receipts.open(&plan(&[("b", 2), ("a", 1)]));
        assert_eq!(body(&receipt)["results"], json!({}));
        receipts.record(&receipt, 1, raw(&json!(1)), |_| raw(&json!(null)));
        assert_eq!(body(&receipt)["results"], json!({"b": [1]}));
        receipts.record(&receipt, 0, raw(&json!(0)), |_| raw(&json!(null)));
        assert_eq!(body(&receipt)["results"], json!({"b": [0, 1]}));
        assert_eq!(body(&receipt)["progress"], json!({"finished": 2, "total": 3}));
        assert!(receipt.is_running());
        receipts.record(&receipt, 2, raw(&json!(2)), |_| raw(&json!(null)));
        assert!(!receipt.is_running());
        assert_eq!(body(&receipt)["is_running"], json!(false));
        assert!(receipts.get(&receipt.id).is_some());
    }

    #[test]
    fn a_receipt_without_tests_is_done_at_once() {
        let receipts = Receipts::new(budget());
        let receipt = receipts.open(&plan(&[("ping", 0)]));
        assert!(!receipt.is_running());
        assert_eq!(body(&receipt)["results"], json!({"ping": []}));
        assert_eq!(receipts.counts().0, 0);
    }

    #[test]
    fn a_result_over_the_receipts_budget_is_replaced() {
        let receipts = Receipts::new(budget());
        let receipt = receipts.open(&plan(&[("a", 2)]));
        receipts.record(&receipt, 0, raw(&json!("x".repeat(90))), |_| raw(&json!("too large")));
        receipts.record(&receipt, 1, raw(&json!("y".repeat(90))), |max| raw(&json!(format!("over {max}"))));
        assert_eq!(body(&receipt)["results"]["a"][1], json!("over 100"));
    }

    #[test]
    fn finished_receipts_are_evicted_and_running_ones_are_not() {
        let receipts = Receipts::new(budget());
        let running = receipts.open(&plan(&[("a", 1)]));
        let first = receipts.open(&plan(&[]));
        for _ in 0..100 {
            let _ = receipts.open(&plan(&[]));
        }
        receipts.expire();
        assert!(receipts.get(&first.id).is_none());
        assert!(receipts.get(&running.id).is_some());
        let (_, finished, weight) = receipts.counts();
        assert!(finished <= 10 && weight <= 20_000, "{finished} receipts, {weight} bytes");
    }

    #[test]
    fn names_of_types_weigh_as_results_do() {
        let budget = Budget { receipts: 1_000_000, total_bytes: 100_000, ..budget() };
        let receipts = Receipts::new(budget);
        let name = "n".repeat(64);
        let types: Vec<(&str, usize)> = (0..10).map(|_| (name.as_str(), 0)).collect();
        for _ in 0..1000 {
            let _ = receipts.open(&plan(&types));
        }
        receipts.expire();
        let (_, finished, weight) = receipts.counts();
        // Each holds its ten names at least.
        assert!(finished > 0 && finished * 640 < 100_000 && weight <= 100_000, "{finished} receipts, {weight} bytes");
    }

    #[test]
    fn an_expired_receipt_is_unknown() {
        let receipts = Receipts::new(Budget { lifetime: Duration::ZERO, ..budget() });
        let done = receipts.open(&plan(&[]));
        let running = receipts.open(&plan(&[("a", 1)]));
        assert!(receipts.get(&done.id).is_none() && receipts.get(&running.id).is_none());
        receipts.expire();
        assert!(running.cancel.is_cancelled());
        assert_eq!(receipts.counts().0, 0);
    }

    #[test]
    fn deleting_cancels_and_a_late_result_does_not_bring_it_back() {
        let receipts = Receipts::new(budget());
        let receipt = receipts.open(&plan(&[("a", 1)]));
        assert!(receipts.delete(&receipt.id));
        assert!(receipt.cancel.is_cancelled());
        receipts.record(&receipt, 0, raw(&json!(1)), |_| raw(&json!(null)));
        assert!(receipts.get(&receipt.id).is_none());
        assert!(!receipts.delete(&receipt.id));
    }

    #[test]
    fn results_that_are_read_after_their_end_are_counted_until_they_have_been() {
        let budget = Budget { receipts: 2, receipt_bytes: 40 << 20, total_bytes: 100 << 20, ..budget() };
        let receipts = Receipts::new(budget);
        let large = raw(&json!("x".repeat(39 << 20)));
        let finished = || {
            let receipt = receipts.open(&plan(&[("a", 1)]));
            receipts.record(&receipt, 0, large.clone(), |_| raw(&json!(null)));
            receipt
        };
        let (first, second) = (finished(), finished());
        // Two responses hold the first one's results.
        let readers = [(); 2].map(|()| Reader::new(Arc::clone(&first)));
        let other = Reader::new(Arc::clone(&second));
        assert!(receipts.delete(&first.id));
        assert!(!receipts.is_full() && receipts.removed.bytes() > 39 << 20, "{}", receipts.removed.bytes());
        assert!(receipts.delete(&second.id));
        assert!(receipts.is_full());
        let [one, another] = readers;
        drop(one);
        assert!(receipts.is_full(), "the other response holds the same");
        drop(another);
        assert!(!receipts.is_full());
        drop(other);
        assert_eq!(receipts.removed.bytes(), 0);
        // One that runs, and one without readers.
        let running = receipts.open(&plan(&[("a", 1)]));
        let reader = Reader::new(Arc::clone(&running));
        assert!(receipts.delete(&running.id) && receipts.removed.bytes() > 0);
        drop(reader);
        assert!(receipts.delete(&finished().id));
        assert_eq!(receipts.removed.bytes(), 0);
    }
}
