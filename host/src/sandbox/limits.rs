//! What one run may use. Every number here is enforced; a run that passes one ends with a typed reason and costs one
//! failed test, nothing else.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use wasmtime::ResourceLimiter;

/// Ticks of the epoch clock; also the longest time a guest computes without yielding.
pub const TICK: Duration = Duration::from_millis(5);

/// CPU time of one run: waiting for the network costs nothing.
pub const CPU: Duration = Duration::from_secs(1);

/// Linear memory of one run, over all of its memories.
pub const MEMORY_BYTES: usize = 64 << 20;

const MEMORIES: usize = 4;
const TABLES: usize = 16;
const TABLE_ELEMENTS: usize = 20_000;
const INSTANCES: usize = 32;

/// Handles that a guest may hold, in the component's own table and in the host's.
pub const COMPONENT_HANDLES: usize = 1_000;
pub const HOST_HANDLES: usize = 256;

/// What one call may carry from the guest to the host; wasmtime counts list elements too.
pub const CALL_BYTES: usize = 1 << 20;

/// Calls of host imports in one run, and the bytes they carry in both directions.
pub const HOST_CALLS: u32 = 10_000;
pub const HOST_CALL_BYTES: usize = 8 << 20;

/// Standard output and standard error of one run, together with nothing else: a guest's only way to log.
pub const LOG_BYTES: usize = 64 << 10;

/// The result, and each partial result.
pub const RESULT_BYTES: usize = 512 << 10;

/// Sessions (open sockets) at once, packets and distinct targets in one run.
pub const SESSIONS: usize = 32;
pub const PACKETS: u32 = 10_000;
pub const TARGETS: usize = 64;

/// Packets of one run in a second, over all of its sessions, and how many of them at once.
pub const PACKETS_PER_SECOND: NonZeroU32 = NonZeroU32::new(1_000).unwrap();
pub const PACKET_BURST: NonZeroU32 = NonZeroU32::new(32).unwrap();

/// A plugin file.
pub const FILE_BYTES: u64 = 32 << 20;

/// Which limit ended a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitHit {
    #[error("it used more than {} ms of CPU time", CPU.as_millis())]
    Cpu,
    #[error("it asked for more than {} MiB of memory", MEMORY_BYTES >> 20)]
    Memory,
    #[error("it made more than {HOST_CALLS} host calls")]
    HostCalls,
    #[error("its host calls carried more than {} MiB", HOST_CALL_BYTES >> 20)]
    HostCallBytes,
}

/// The counters of one run.
#[derive(Debug)]
pub struct Usage {
    memory: usize,
    calls: u32,
    call_bytes: usize,
    cpu: Duration,
    /// When the guest last began to compute.
    since: Instant,
    pub packets: u32,
}

impl Default for Usage {
    fn default() -> Self {
        Self { memory: 0, calls: 0, call_bytes: 0, cpu: Duration::ZERO, since: Instant::now(), packets: 0 }
    }
}

impl Usage {
    /// Counts one host call and the bytes it carries in.
    ///
    /// # Errors
    /// The limit that is passed.
    pub fn call(&mut self, bytes: usize) -> Result<(), LimitHit> {
        self.calls += 1;
        if self.calls > HOST_CALLS {
            return Err(LimitHit::HostCalls);
        }
        self.carried(bytes)
    }

    /// Counts bytes that a host call carries back.
    ///
    /// # Errors
    /// The limit that is passed.
    pub fn carried(&mut self, bytes: usize) -> Result<(), LimitHit> {
        self.call_bytes = self.call_bytes.saturating_add(bytes);
        if self.call_bytes > HOST_CALL_BYTES { Err(LimitHit::HostCallBytes) } else { Ok(()) }
    }

    /// Charges the guest for computing until now. Never more than a tick at a time: between two ticks it either
    /// computed at most that long or was not running at all (another guest had the thread).
    ///
    /// # Errors
    /// When the budget is spent.
    pub fn computed(&mut self) -> Result<(), LimitHit> {
        let now = Instant::now();
        self.cpu += now.duration_since(self.since).min(TICK);
        self.since = now;
        if self.cpu > CPU { Err(LimitHit::Cpu) } else { Ok(()) }
    }

    /// The guest begins to compute again after waiting.
    pub fn resumed(&mut self) {
        self.since = Instant::now();
    }
}

impl ResourceLimiter for Usage {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.memory.saturating_add(desired.saturating_sub(current));
        if total > MEMORY_BYTES {
            return Err(wasmtime::Error::new(LimitHit::Memory));
        }
        self.memory = total;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}
