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
/// on, or when the network work within them has ended: a plugin holds an I/O thread until the epoch clock ticks, and not again for a hundred runs.
const PENALTY: u32 = 100;

/// What decides whether one run moves.
#[derive(Debug, Default, Clone)]
pub struct Placement(Arc<Reasons>);

#[derive(Debug, Default)]
struct Reasons {
    /// It has computed until the epoch clock ticked.
    computed: AtomicBool,
    /// Network work is done within it. On the guests' threads, which have a low priority, that work would be late, and what
    /// it starts (tasks, browsers) would have that priority too.
    on_network: AtomicBool,
    /// It stays for its network work only.
    due: AtomicBool,
}

/// Network work has ended, or was dropped.
struct NetworkWork<'a>(&'a Reasons);

impl Drop for NetworkWork<'_> {
    fn drop(&mut self) {
        self.0.on_network.store(false, Ordering::Relaxed);
    }
}

impl Placement {
    pub fn set_computed(&self) {
        self.0.computed.store(true, Ordering::Relaxed);
    }

    /// Does network work within the run, which does not move until it has ended.
    pub async fn stay_for<F: Future>(&self, work: F) -> F::Output {
        self.0.on_network.store(true, Ordering::Relaxed);
        let working = NetworkWork(&self.0);
        let output = work.await;
        drop(working);
        if self.0.due.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        output
    }

    fn may_move(&self) -> bool {
        !self.0.on_network.load(Ordering::Relaxed)
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
    pub async fn run<F>(&self, run: F, placement: &Placement, guests: &Handle) -> Result<F::Output, JoinError>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let mut run = Box::pin(run);
        if !self.computes() {
            let ended = poll_fn(|context| {
                if self.penalty.load(Ordering::Relaxed) > 0 {
                    if placement.may_move() {
                        return Poll::Ready(None);
                    }
                    placement.0.due.store(true, Ordering::Relaxed);
                }
                match run.as_mut().poll(context) {
                    Poll::Ready(output) => Poll::Ready(Some(output)),
                    Poll::Pending if placement.0.computed.load(Ordering::Relaxed) && placement.may_move() => {
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
                let placement = Placement::default();
                let ticks = placement.clone();
                let run = async move {
                    let mut places = vec![here()];
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    places.push(here());
                    if computing {
                        ticks.set_computed();
                    }
                    tokio::task::yield_now().await;
                    places.push(here());
                    places
                };
                history.run(run, &placement, &guests).await.expect("no panic")
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
            waiting.run(run, &Placement::default(), &guest).await.expect("no panic")
        });
        // Unless it waits in network work, which ends where it began.
        let (history, guest) = (Arc::clone(&history), guests.handle().clone());
        let on_network = io.spawn(async move {
            let placement = Placement::default();
            let stays = placement.clone();
            let run = async move {
                let network = async {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    [here(), tokio::spawn(async { here() }).await.expect("no panic")]
                };
                let network = stays.stay_for(network).await;
                (network, here())
            };
            history.run(run, &placement, &guest).await.expect("no panic")
        });
        assert_eq!(run(true), ["io", "io", "guest"]);
        assert_eq!(io.block_on(waiting).expect("no panic"), "guest");
        let expected = (["io", "io"].map(ToOwned::to_owned), "guest".to_owned());
        assert_eq!(io.block_on(on_network).expect("no panic"), expected);
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
