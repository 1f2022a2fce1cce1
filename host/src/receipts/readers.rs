//! Responses that hold a receipt's results. A receipt that was deleted, was evicted or has expired is kept in memory by
//! them and counts in no budget any more: what such receipts hold is counted here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Receipt;

/// Bytes of receipts that were removed and still being read.
#[derive(Debug, Default, Clone)]
pub(super) struct RemovedBytes(Arc<AtomicU64>);

impl RemovedBytes {
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The readers of one receipt.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    readers: usize,
    /// It was removed: where its bytes are counted, and how many.
    removed: Option<(RemovedBytes, u64)>,
    is_counted: bool,
}

impl Readers {
    /// The receipt leaves the store.
    pub fn leave(&self, removed: &RemovedBytes, bytes: u64) {
        let mut state = self.0.lock();
        if state.removed.is_none() {
            state.removed = Some((removed.clone(), bytes));
            state.count();
        }
    }
}

impl State {
    /// Counts the bytes of a removed receipt that has readers: a reader may come late, who got the receipt before.
    fn count(&mut self) {
        if let Some((removed, bytes)) = &self.removed
            && self.readers > 0
            && !self.is_counted
        {
            removed.0.fetch_add(*bytes, Ordering::Relaxed);
            self.is_counted = true;
        }
    }
}

/// A response, or a task for responses, that holds a receipt's results.
pub struct Reader(Arc<Receipt>);

impl Reader {
    #[must_use]
    pub fn new(receipt: Arc<Receipt>) -> Self {
        let mut state = receipt.readers.0.lock();
        state.readers += 1;
        state.count();
        drop(state);
        Self(receipt)
    }

    #[must_use]
    pub fn receipt(&self) -> &Receipt {
        &self.0
    }

    /// Was the receipt deleted, or has it expired, before its tests were finished?
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.0.cancel.is_cancelled() && self.0.readers.0.lock().removed.is_some()
    }
}

impl Clone for Reader {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.readers.0.lock();
        state.readers -= 1;
        if state.readers == 0
            && std::mem::take(&mut state.is_counted)
            && let Some((removed, bytes)) = &state.removed
        {
            removed.0.fetch_sub(*bytes, Ordering::Relaxed);
        }
    }
}
