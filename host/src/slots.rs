//! Execution slots: which tests run, and what each slot has done, as `GET /status` shows it. A slot is held by a guard, so
//! that a panic frees it like any other end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

/// What an execution slot has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slot {
    pub busy: bool,
    pub requests: u64,
    pub exceptions: u64,
    pub sandboxes: u64,
    pub running: Duration,
    /// Unix time of the newest sandbox.
    pub last_spawn: u64,
    pub bytes: u64,
}

pub struct Slots(Mutex<State>);

struct State {
    free: BTreeSet<usize>,
    slots: Vec<Slot>,
}

/// A slot in use; free again when it is dropped.
pub struct Occupied<'a> {
    slots: &'a Slots,
    index: usize,
    since: Instant,
    exception: bool,
    bytes: u64,
}

impl Slots {
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self(Mutex::new(State { free: (0..count).collect(), slots: vec![Slot::default(); count] }))
    }

    /// The first free slot. None: there are more tests than slots, which permits rule out.
    pub fn occupy(&self) -> Option<Occupied<'_>> {
        let mut state = self.0.lock();
        let index = state.free.pop_first()?;
        let slot = state.slots.get_mut(index)?;
        slot.busy = true;
        slot.sandboxes += 1;
        slot.last_spawn = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Some(Occupied { slots: self, index, since: Instant::now(), exception: false, bytes: 0 })
    }

    #[must_use]
    pub fn all(&self) -> Vec<Slot> {
        self.0.lock().slots.clone()
    }
}

impl Occupied<'_> {
    /// How the test ended: by the plugin's fault or not, with a result of so many bytes.
    pub fn ended(mut self, exception: bool, bytes: usize) {
        (self.exception, self.bytes) = (exception, bytes as u64);
    }
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        let mut state = self.slots.0.lock();
        state.free.insert(self.index);
        if let Some(slot) = state.slots.get_mut(self.index) {
            slot.busy = false;
            slot.requests += 1;
            slot.exceptions += u64::from(self.exception);
            slot.running += self.since.elapsed();
            slot.bytes += self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_panic_frees_its_slot() {
        let slots = Slots::new(1);
        let run = AssertUnwindSafe(|| {
            let _slot = slots.occupy().expect("free");
            assert!(slots.all()[0].busy && slots.occupy().is_none());
            panic!("a mistake");
        });
        assert!(catch_unwind(run).is_err());
        let slot = slots.all()[0].clone();
        assert_eq!((slot.busy, slot.requests, slot.exceptions), (false, 1, 0));
        slots.occupy().expect("free again").ended(true, 7);
        let slot = slots.all()[0].clone();
        assert_eq!((slot.busy, slot.requests, slot.exceptions, slot.bytes), (false, 2, 1, 7));
    }
}
