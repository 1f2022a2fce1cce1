//! How late the I/O threads serve a socket that is ready.
//!
//! Phases of HTTP, TLS and DNS over streams end when a task sees its socket ready. Between the arrival of the packet
//! and that moment lie the kernel's scheduler, the I/O driver and the tasks before it in the queue: this host's own
//! load, which must not be reported as the target's time. A `timerfd` is a socket to the I/O driver, and the moment of
//! its expiry is known: how late its task runs is how late every task was at that time. The timer runs only during
//! measurements (500 wake-ups per second: 1–3 % of a core).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::task::AbortOnDropHandle;

/// The word for it in results.
pub const DEGRADED: &str = "host_scheduling_delay";
/// A result is degraded when the host may have added more than this to a phase, and more than a tenth of it. Wake-ups
/// on an idle machine take 0.05–0.3 ms; a tenth is where a reader would draw another conclusion.
pub const TOLERATED: Duration = Duration::from_millis(1);
const TOLERATED_SHARE: u32 = 10;

/// A delay of twice this is never missed.
const PERIOD: Duration = Duration::from_millis(2);
/// Shorter delays are not recorded.
const RECORDED: Duration = Duration::from_micros(250);
/// Of delays; 16 s of a runtime that is always late.
const HISTORY: usize = 8192;

/// Measures the runtime that it was opened on.
pub struct LagMonitor {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

/// Keeps the monitor running. Times are counted from here.
pub struct LagWatch {
    shared: Arc<Shared>,
    start: Duration,
}

struct Shared {
    timer: AsyncFd<Timer>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watches: usize,
    /// The expiry that the task waits for, on the monotonic clock.
    next: Duration,
    /// From an expiry to its task.
    delays: VecDeque<(Duration, Duration)>,
}

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

impl LagMonitor {
    /// Must be called on the runtime that is to be measured.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn open() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Timer(TimerFd::new(timerfd::ClockId::CLOCK_MONOTONIC, flags)?);
        #[expect(unsafe_code, reason = "a Timer owns its descriptor and always gives the same one, as is asked for")]
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        let shared = Arc::new(Shared { timer, state: Mutex::default() });
        let task = tokio::spawn(run(Arc::downgrade(&shared)));
        Ok(Self { shared, _task: AbortOnDropHandle::new(task) })
    }

    #[must_use]
    pub fn watch(&self) -> LagWatch {
        let start = now();
        let mut state = self.shared.state.lock();
        state.watches += 1;
        if state.watches == 1 {
            state.delays.clear();
            state.next = start + PERIOD;
            let every = Expiration::IntervalDelayed(state.next.into(), PERIOD.into());
            // It fails for arguments that do not exist; the monitor then reports no delay.
            let _ = self.shared.timer.get_ref().0.set(every, TimerSetTimeFlags::TFD_TIMER_ABSTIME);
        }
        drop(state);
        LagWatch { shared: Arc::clone(&self.shared), start }
    }
}

async fn run(shared: Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        let Ok(mut ready) = shared.timer.readable().await else { return };
        let mut count = [0; 8];
        match nix::unistd::read(&shared.timer.get_ref().0, &mut count) {
            Ok(_) => shared.state.lock().expired(u64::from_ne_bytes(count), now()),
            Err(_) => ready.clear_ready(),
        }
    }
}

impl State {
    fn expired(&mut self, times: u64, now: Duration) {
        if now.saturating_sub(self.next) >= RECORDED {
            if self.delays.len() == HISTORY {
                self.delays.pop_front();
            }
            self.delays.push_back((self.next, now));
        }
        self.next = self.next.saturating_add(PERIOD.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX)));
    }

    fn longest(&self, from: Duration, to: Duration, now: Duration) -> Duration {
        // One that has expired while its task still waits: the caller may have been served before it.
        let waiting = (now.saturating_sub(self.next) >= RECORDED).then_some((self.next, now));
        let within = |&(expired, served): &(Duration, Duration)| served.min(to).saturating_sub(expired.max(from));
        self.delays.iter().rev().chain(&waiting).map(within).max().unwrap_or_default()
    }
}

impl LagWatch {
    /// The longest time for which a ready socket waited for a thread, between two moments since the watch began. Zero
    /// below a quarter of a millisecond.
    #[must_use]
    pub fn longest(&self, from: Duration, to: Duration) -> Duration {
        self.shared.state.lock().longest(self.start + from, self.start + to, now())
    }

    /// As [`degrades`](Self::degrades), of a phase of this length that ends now.
    #[must_use]
    pub fn degrades_last(&self, length: Duration) -> bool {
        let to = now().saturating_sub(self.start);
        self.degrades(to.saturating_sub(length), to)
    }

    /// May this host have changed the length of a phase by more than is tolerated?
    #[must_use]
    pub fn degrades(&self, from: Duration, to: Duration) -> bool {
        let longest = self.longest(from, to);
        longest > TOLERATED && longest > to.saturating_sub(from) / TOLERATED_SHARE
    }
}

impl Drop for LagWatch {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.watches -= 1;
        if state.watches == 0 {
            let _ = self.shared.timer.get_ref().0.unset();
            state.next = Duration::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_thread_that_is_held_is_noticed_by_who_runs_first_and_by_who_runs_last() {
        let monitor = LagMonitor::open().expect("a timer");
        let watch = monitor.watch();
        let start = Instant::now();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let from = start.elapsed();
        std::thread::sleep(Duration::from_millis(50));
        let to = start.elapsed();
        // Its own task did not run yet.
        assert!(watch.longest(from, to) > Duration::from_millis(40), "{:?}", watch.longest(from, to));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(watch.longest(from, to) > Duration::from_millis(40), "{:?}", watch.longest(from, to));
        assert!(watch.degrades(from, to) && watch.degrades(Duration::ZERO, to));
        assert!(watch.degrades_last(start.elapsed()) && !watch.degrades_last(Duration::from_millis(1)));
        assert!(!watch.degrades(Duration::ZERO, Duration::from_hours(1)), "less than a tenth");
    }

    #[tokio::test]
    async fn the_timer_is_off_between_measurements() {
        let monitor = LagMonitor::open().expect("a timer");
        let set = || monitor.shared.timer.get_ref().0.get().expect("read").is_some();
        assert!(!set());
        let (one, two) = (monitor.watch(), monitor.watch());
        drop(one);
        assert!(set());
        drop(two);
        assert!(!set());
        tokio::time::sleep(Duration::from_millis(10)).await;
        let third = monitor.watch();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(set() && third.shared.state.lock().next < now() + PERIOD * 2);
    }

    #[test]
    fn delays_count_as_far_as_they_lie_in_the_phase() {
        let ms = Duration::from_millis;
        let mut state = State { next: ms(10), ..State::default() };
        state.expired(15, ms(40));
        state.expired(1, ms(40));
        assert_eq!(state.delays, [(ms(10), ms(40))], "the second was in time");
        let longest = |from, to| state.longest(ms(from), ms(to), ms(41));
        assert_eq!([longest(0, 9), longest(0, 100), longest(20, 35), longest(35, 50)], [0, 30, 15, 5].map(ms));
    }
}
