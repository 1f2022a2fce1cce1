//! Places for waiting tests: as many as the limits in number and in bytes allow. A payload of one megabyte costs nothing
//! to post, and a thousand of them would wait in a gigabyte.

use std::sync::Arc;

use parking_lot::Mutex;

/// Limits of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub tests: usize,
    /// Bytes of options and ids, over all waiting tests.
    pub bytes: usize,
}

/// The waiting tests would be more than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    #[error("The queue of waiting tests is full. Max: {max}")]
    Tests { max: usize },
    #[error("The queue of waiting tests is full. Max: {max} bytes of options (SCOUTER_MAX_QUEUE_BYTES)")]
    Bytes { max: usize },
}

#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    held: Mutex<Held>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub tests: usize,
    pub bytes: usize,
}

/// The place of one waiting test; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    queue: Arc<Queue>,
    bytes: usize,
}

impl Queue {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, held: Mutex::default() }
    }

    /// Places for the tests of one payload, all or none. `at_once` of the tests need not wait: they do not count towards
    /// the limit in number.
    ///
    /// # Errors
    /// The limit that they would pass.
    pub fn reserve(self: &Arc<Self>, weights: &[usize], at_once: usize) -> Result<Vec<Place>, QueueFull> {
        let mut held = self.held.lock();
        let after = Held { tests: held.tests + weights.len(), bytes: held.bytes + weights.iter().sum::<usize>() };
        if after.tests > self.limits.tests + at_once {
            return Err(QueueFull::Tests { max: self.limits.tests });
        }
        if after.bytes > self.limits.bytes {
            return Err(QueueFull::Bytes { max: self.limits.bytes });
        }
        *held = after;
        Ok(weights.iter().map(|bytes| Place { queue: Arc::clone(self), bytes: *bytes }).collect())
    }

    #[must_use]
    pub fn held(&self) -> Held {
        *self.held.lock()
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.queue.held.lock();
        held.tests -= 1;
        held.bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_in_number_and_in_bytes_and_come_back() {
        let queue = Arc::new(Queue::new(Limits { tests: 3, bytes: 100 }));
        let first = queue.reserve(&[10, 10], 0).expect("places");
        assert_eq!(queue.held(), Held { tests: 2, bytes: 20 });
        assert_eq!(queue.reserve(&[1, 1], 0).expect_err("full"), QueueFull::Tests { max: 3 });
        assert_eq!(queue.reserve(&[81], 0).expect_err("full"), QueueFull::Bytes { max: 100 });
        assert_eq!(queue.held(), Held { tests: 2, bytes: 20 }, "all or none");
        let second = queue.reserve(&[1, 1], 1).expect("one runs immediately");
        drop(first);
        assert_eq!(queue.held(), Held { tests: 2, bytes: 2 });
        drop(second);
        assert_eq!(queue.held(), Held::default());
    }
}
