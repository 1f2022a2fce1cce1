//! How fast one test may send.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Limits the packets per second of one test, over all of its series. Clones share the limit.
#[derive(Clone)]
pub struct Rate {
    limiter: Arc<DefaultDirectRateLimiter>,
    burst: NonZeroU32,
    /// Packets that one probe counts as: the fragments that it leaves in.
    cost: NonZeroU32,
}

impl Rate {
    /// A token bucket: `per_second` packets per second on average, and bursts of `burst` packets.
    #[must_use]
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let limiter = Arc::new(RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst)));
        Self { limiter, burst, cost: NonZeroU32::MIN }
    }

    /// The same limit, for probes that count as so many packets. More than a burst counts as a burst.
    #[must_use]
    pub fn costing(&self, packets: NonZeroU32) -> Self {
        Self { cost: packets.min(self.burst), ..self.clone() }
    }

    /// Takes the packets of one probe.
    ///
    /// # Errors
    /// The time to wait, when there are not enough.
    pub fn check(&self) -> Result<(), Duration> {
        match self.limiter.check_n(self.cost) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(full)) => Err(full.wait_time_from(DefaultClock::default().now())),
            // More than a burst, which `costing` rules out.
            Err(_) => Err(Duration::from_secs(1)),
        }
    }

    /// Waits until so many packets may be sent.
    pub async fn wait(&self, packets: u32) {
        let mut left = packets;
        while let Some(count) = NonZeroU32::new(left.min(self.burst.get())) {
            let part = self.costing(count);
            while let Err(wait) = part.check() {
                tokio::time::sleep(wait).await;
            }
            left -= count.get();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_probes_and_other_packets_share_one_rate() {
        let some = |number| NonZeroU32::new(number).expect("some");
        let rate = Rate::new(some(1000), some(48));
        let started = std::time::Instant::now();
        let large = rate.costing(some(44));
        assert!(large.check().is_ok() && large.check().is_err(), "two large ones exceed the burst");
        rate.wait(104).await;
        assert!(started.elapsed() >= Duration::from_millis(100), "{:?}", started.elapsed());
    }
}
