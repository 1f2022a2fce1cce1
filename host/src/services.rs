//! What every run shares: the engines, the policy, the counters and the two runtimes.

use std::time::Duration;

use scouter_net::policy::Policy;
use scouter_net::{Net, privilege};
use tokio::runtime::Handle;
use tokio::task::JoinError;

use crate::metrics::Metrics;

/// Network work happens on the I/O runtime. A run begins there, and moves to the guests' runtime when it computes, so
/// that a guest that spins disturbs neither the API nor any measurement.
pub struct Services {
    pub io: Handle,
    pub guests: Handle,
    pub net: Net,
    pub policy: Policy,
    pub metrics: Metrics,
}

impl Services {
    /// Does work that takes CPU time at the priority of the guests, away from the threads of the network. A thread for it
    /// is started from one of the guests', so that it inherits their empty bounding set.
    ///
    /// # Errors
    /// When the work panics, or the server ends.
    pub async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
        self.guests.spawn(async { tokio::task::spawn_blocking(work).await }).await?
    }
}

/// Two runtimes: `io` for the API, the network and plugins that hardly compute; `guests` for plugins that do, at low
/// priority. No thread of either has a capability.
pub struct Runtimes {
    pub io: tokio::runtime::Runtime,
    pub guests: tokio::runtime::Runtime,
}

const IO_EVENT_INTERVAL: u32 = 7;
const GUEST_THREADS: usize = 2;
const GUEST_NICE: i32 = 10;

impl Runtimes {
    /// `threads`: of the I/O runtime; the number of cores when None.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(threads: Option<u64>) -> anyhow::Result<Self> {
        let mut io = tokio::runtime::Builder::new_multi_thread();
        if let Some(threads) = threads {
            io.worker_threads(usize::try_from(threads)?);
        }
        // How many tasks run before sockets are looked at again. While tasks are always ready the usual 61 would add the time
        // of 61 of them to every measurement.
        io.event_interval(IO_EVENT_INTERVAL);
        let io = io.thread_name("io").on_thread_start(|| privilege::drop_or_warn(privilege::BROWSERS));
        let io = io.enable_all().build()?;
        let guests = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(GUEST_THREADS)
            .thread_name("guest")
            .on_thread_start(|| {
                // On Linux this is the thread's own priority. Without it plugins compete as equals, no worse.
                let _ = rustix::process::setpriority_process(None, GUEST_NICE);
                privilege::drop_or_warn(privilege::NOTHING);
            })
            .enable_all()
            .build()?;
        Ok(Self { io, guests })
    }

    /// Ends both without waiting for what a blocking call still holds.
    pub fn end(self) {
        self.guests.shutdown_background();
        self.io.shutdown_timeout(Duration::from_millis(100));
    }
}
