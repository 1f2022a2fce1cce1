//! CPU time of a guest: what the kernel counted for the thread while the guest was on it.
//!
//! Wall time would charge a guest for time in which the kernel ran something else. A guest is a future that moves between
//! threads only where it waits, so each poll is on one thread from its beginning to its end: the difference of the
//! thread's clock over a poll is the guest's. What the host does inside of a poll for the guest (copying arguments,
//! parsing JSON) is charged too; the work of the network engines is not.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// CPU time of one guest so far.
#[derive(Debug, Default)]
pub struct CpuTime {
    /// Nanoseconds of finished polls.
    finished: AtomicU64,
    /// The thread's clock when the poll under way began, in nanoseconds; 0 between polls.
    began: AtomicU64,
}

/// CPU time of this thread, in nanoseconds.
fn thread_time() -> u64 {
    // The kernel has had this clock since 2.6.12; a failure would charge nothing, and the deadline would remain.
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

impl CpuTime {
    /// Of the polls that have ended. May be asked anywhere, also while another thread polls.
    #[must_use]
    pub fn finished(&self) -> Duration {
        Duration::from_nanos(self.finished.load(Ordering::Relaxed))
    }

    /// So far. Within a poll it must be asked on the thread that polls.
    #[must_use]
    pub fn used(&self) -> Duration {
        let running = match self.began.load(Ordering::Relaxed) {
            0 => 0,
            began => thread_time().saturating_sub(began),
        };
        Duration::from_nanos(self.finished.load(Ordering::Relaxed) + running)
    }

    /// The same future, with its CPU time counted here.
    pub fn of<F: Future>(self: Arc<Self>, future: F) -> Metered<F> {
        Metered { time: self, future: Box::pin(future) }
    }

    /// The same future, whose CPU time is not counted here although it is polled within the one that is.
    pub async fn except<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            let began = thread_time();
            let polled = future.as_mut().poll(context);
            // As if the poll around this one had begun so much later.
            self.began.fetch_add(thread_time().saturating_sub(began), Ordering::Relaxed);
            polled
        })
        .await
    }
}

/// See [`CpuTime::of`].
pub struct Metered<F> {
    time: Arc<CpuTime>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.time.began.store(thread_time().max(1), Ordering::Relaxed);
        let polled = self.future.as_mut().poll(context);
        let began = self.time.began.swap(0, Ordering::Relaxed);
        self.time.finished.fetch_add(thread_time().saturating_sub(began), Ordering::Relaxed);
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute_for(cpu: Duration) {
        let end = thread_time() + u64::try_from(cpu.as_nanos()).expect("fits");
        while thread_time() < end {
            std::hint::black_box(0);
        }
    }

    #[tokio::test]
    async fn computing_is_charged_and_not_having_the_processor_is_not() {
        let time = Arc::new(CpuTime::default());
        let work = async {
            // Blocked inside of a poll: what the kernel does to a thread that it does not schedule.
            std::thread::sleep(Duration::from_millis(200));
            compute_for(Duration::from_millis(20));
            let within = time.used();
            tokio::time::sleep(Duration::from_millis(50)).await;
            compute_for(Duration::from_millis(20));
            time.except(async {
                compute_for(Duration::from_millis(150));
                tokio::task::yield_now().await;
                compute_for(Duration::from_millis(150));
            })
            .await;
            within
        };
        let within = Arc::clone(&time).of(work).await;
        assert!((20..150).contains(&within.as_millis()), "{within:?} within the first poll");
        assert!((40..190).contains(&time.used().as_millis()), "{:?} in all", time.used());
    }
}
