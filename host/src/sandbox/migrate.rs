//! Where a run is polled. Most runs wait for the network and compute for some tenths of a millisecond: they stay on the
//! I/O thread that began them, next to their sockets, and no thread wakes another one. A run that still computes when
//! the epoch clock ticks moves to the guests' threads until it ends.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// Runs that begin on the guests' threads after one that had to move there. Those that are under way move before they go
/// on: a plugin holds an I/O thread until the epoch clock ticks, and not again for a hundred runs.
const PENALTY: u32 = 100;

/// Whether a run has computed until the epoch clock ticked.
#[derive(Debug, Default, Clone)]
pub struct Computes(Arc<AtomicBool>);

impl Computes {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// CPU time in nanoseconds that the runs of a plugin may take on average where they begin on the I/O threads: many short runs add up.
const BRIEF_ON_AVERAGE: u64 = 300_000;
/// Runs that an average is of, the last ones counting most.
const AVERAGED: u64 = 16;

/// Whether earlier runs of a plugin computed for long.
#[derive(Debug, Default)]
pub struct RunHistory {
    /// Runs that begin on the guests' threads from now on.
    penalty: AtomicU32,
    /// CPU time of the last runs, in nanoseconds.
    average: AtomicU64,
}

impl RunHistory {
    /// Counts a run that begins.
    fn computes(&self) -> bool {
        let left = self.penalty.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.is_ok() || self.average.load(Ordering::Relaxed) > BRIEF_ON_AVERAGE
    }

    /// Counts the CPU time of a run that has ended.
    pub fn add(&self, used: Duration) {
        let used = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
        let add = |average: u64| Some(average - average / AVERAGED + used / AVERAGED);
        let _ = self.average.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Runs it here until it computes, then on `guests`. Dropping this stops the run wherever it is.
    ///
    /// # Errors
    /// When the run panics on `guests`, or that runtime ends.
    pub async fn run<F>(&self, run: F, computes: &Computes, guests: &Handle) -> Result<F::Output, JoinError>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let mut run = Box::pin(run);
        if !self.computes() {
            let ended = poll_fn(|context| {
                if self.penalty.load(Ordering::Relaxed) > 0 {
                    return Poll::Ready(None);
                }
                match run.as_mut().poll(context) {
                    Poll::Ready(output) => Poll::Ready(Some(output)),
                    Poll::Pending if computes.is_set() => {
                        self.penalty.store(PENALTY, Ordering::Relaxed);
                        Poll::Ready(None)
                    }
                    Poll::Pending => Poll::Pending,
                }
            });
            if let Some(output) = ended.await {
                return Ok(output);
            }
        }
        AbortOnDropHandle::new(guests.spawn(run)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(name: &'static str) -> tokio::runtime::Runtime {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        threads.worker_threads(1).thread_name(name).enable_all().build().expect("a runtime")
    }

    fn here() -> String {
        std::thread::current().name().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_run_moves_when_it_computes_and_the_next_ones_begin_there() {
        let (io, guests) = (threads("io"), threads("guest"));
        let history = Arc::new(RunHistory::default());
        let run = |computing: bool| {
            let (history, guests) = (Arc::clone(&history), guests.handle().clone());
            let task = io.spawn(async move {
                let computes = Computes::default();
                let ticks = computes.clone();
                let run = async move {
                    let mut places = vec![here()];
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    places.push(here());
                    if computing {
                        ticks.set();
                    }
                    tokio::task::yield_now().await;
                    places.push(here());
                    places
                };
                history.run(run, &computes, &guests).await.expect("no panic")
            });
            io.block_on(task).expect("no panic")
        };
        assert_eq!(run(false), ["io", "io", "io"]);
        assert_eq!(run(true), ["io", "io", "guest"]);
        for _ in 0..PENALTY {
            assert_eq!(run(false), ["guest"; 3]);
        }
        assert_eq!(run(false), ["io", "io", "io"]);
        // One that waits when another one computes does not go on here.
        let (waiting, guest) = (Arc::clone(&history), guests.handle().clone());
        let waiting = io.spawn(async move {
            let run = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                here()
            };
            waiting.run(run, &Computes::default(), &guest).await.expect("no panic")
        });
        assert_eq!(run(true), ["io", "io", "guest"]);
        assert_eq!(io.block_on(waiting).expect("no panic"), "guest");
        io.shutdown_background();
        guests.shutdown_background();
    }

    #[test]
    fn many_runs_that_are_not_quite_brief_begin_elsewhere() {
        let history = RunHistory::default();
        (0..100).for_each(|_| history.add(Duration::from_micros(200)));
        assert!(!history.computes());
        history.add(Duration::from_millis(1));
        assert!(!history.computes(), "one of many");
        (0..10).for_each(|_| history.add(Duration::from_millis(1)));
        assert!(history.computes());
        (0..100).for_each(|_| history.add(Duration::from_micros(200)));
        assert!(!history.computes());
    }
}
