//! What one run may use, metered in one place: memory, CPU time, calls, and what its imports do to the network.
//!
//! Two kinds of ends. A limit of the sandbox ([`LimitHit`]) stops the run. A limit of the network ([`Exceeded`]) refuses
//! one call, as a typed error that the plugin may handle; what was within the limit stays usable.
//!
//! `docs/limits.md` is the table of these numbers; a test compares it.

#[cfg(test)]
mod document;

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use scouter_net::rate::Rate;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::ResourceLimiter;

use super::cpu::CpuTime;

/// Ticks of the epoch clock. A guest yields when it ticks, on an I/O thread once it has used [`BRIEF`].
pub const TICK: Duration = Duration::from_millis(2);

/// CPU time of a run that may stay on an I/O thread. It is looked at when the epoch clock ticks.
pub const BRIEF: Duration = Duration::from_millis(1);

/// CPU time of the guest's thread while the guest is on it: waiting costs nothing.
pub const CPU: Duration = Duration::from_secs(1);

/// Linear memory of one run, over all of its memories.
pub const MEMORY_BYTES: usize = 64 << 20;

pub const MEMORIES: u32 = 4;
pub const TABLES: u32 = 16;
pub const TABLE_ELEMENTS: usize = 20_000;
pub const INSTANCES: u32 = 32;

/// Handles that a guest may hold, in the component's own table and in the host's.
pub const COMPONENT_HANDLES: usize = 1_000;
pub const HOST_HANDLES: usize = 256;

/// What one call may carry from the guest to the host; wasmtime counts list elements too.
pub const CALL_BYTES: usize = 1 << 20;

/// Calls of host imports in one run, and the bytes they carry in both directions.
pub const HOST_CALLS: u32 = 10_000;
pub const HOST_CALL_BYTES: usize = 8 << 20;

/// Standard output and standard error of one run, together: a guest's only way to log.
pub const LOG_BYTES: usize = 64 << 10;

/// The result, and each partial result.
pub const RESULT_BYTES: usize = 512 << 10;

/// Values of all kinds in the result, and in each partial result. A page with the 2,000 requests that are listed at most
/// has 40,000 without their headers.
pub const RESULT_VALUES: usize = 50_000;

/// Concurrent sessions (series of probes under way).
pub const SESSIONS: usize = 32;

/// Distinct targets of one run: addresses of probes and questions, hosts of URLs and the addresses that they led to.
pub const TARGETS: usize = 64;

/// Names looked up in one run: each name and each address of a reverse lookup is one.
pub const NAMES: u32 = 1_024;

/// Packets that one run may cause. A probe counts as the fragments that leave; a larger exchange counts as [`PACKETS_OF`]
/// says, which is a bound and no account.
pub const PACKETS: u32 = 10_000;

/// Bytes of IP in one packet: what is larger leaves in fragments, or in several segments.
const PACKET_BYTES: u32 = 1_500;

/// Packets of one run in a second, over all of its imports, and the burst. The largest probe
/// (65,000 bytes of data, 44 fragments) fits into a burst.
pub const PACKETS_PER_SECOND: NonZeroU32 = NonZeroU32::new(1_000).unwrap();
pub const PACKET_BURST: NonZeroU32 = NonZeroU32::new(48).unwrap();

/// Bytes that one run may receive over its connections and in DNS answers, whatever came of them. The exchange that passes
/// it is the last one.
pub const RECEIVED_BYTES: u64 = 256 << 20;

/// A plugin file.
pub const FILE_BYTES: u64 = 32 << 20;

/// Packets that one call of an import counts as.
pub struct PacketsOf {
    /// A name's A and AAAA questions, to two name servers.
    pub lookup: u32,
    /// An address's PTR question.
    pub reverse: u32,
    /// A DNS question over UDP, and over TCP after truncation.
    pub question: u32,
    /// A DNS question over a connection.
    pub connected_question: u32,
    /// An HTTP exchange, besides its request body.
    pub exchange: u32,
    /// A page in a browser.
    pub page: u32,
}

pub const PACKETS_OF: PacketsOf =
    PacketsOf { lookup: 4, reverse: 1, question: 2, connected_question: 16, exchange: 16, page: 1_000 };

/// Which limit stopped a run.
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
    #[error("it wrote more than {} KiB to its log", LOG_BYTES >> 10)]
    Log,
}

/// Which limit refused a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error("one test may reach {TARGETS} targets at most")]
    Targets,
    #[error("one test may look up {NAMES} names at most")]
    Names,
    #[error("one test may send {PACKETS} packets at most")]
    Packets,
    #[error("one test may receive {} MiB at most", RECEIVED_BYTES >> 20)]
    Received,
    #[error("one test may hold {SESSIONS} sessions at most")]
    Sessions,
}

/// Whom a call is going to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    Address(IpAddr),
    /// The host of a URL: its addresses are known only when it has been looked up, inside of the exchange.
    Host(String),
}

/// What one call is going to use of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Use {
    pub target: Option<Target>,
    pub names: u32,
    pub packets: u32,
}

impl Use {
    /// `count` probes of `bytes` each, IP headers included, to one address.
    #[must_use]
    pub fn probes(target: IpAddr, count: u32, bytes: u32) -> Self {
        let packets = count.saturating_mul(fragments(bytes).get());
        Self { target: Some(Target::Address(target)), names: 0, packets }
    }
}

/// Packets that an IP datagram of this size leaves in.
fn fragments(bytes: u32) -> NonZeroU32 {
    NonZeroU32::new(bytes.div_ceil(PACKET_BYTES)).unwrap_or(NonZeroU32::MIN)
}

/// Packets that this much data of a connection leaves in.
#[must_use]
pub fn segments(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).div_ceil(PACKET_BYTES)
}

/// The meters of one run.
pub struct Budget {
    pub cpu: Arc<CpuTime>,
    memory: usize,
    calls: u32,
    call_bytes: usize,
    targets: HashSet<Target>,
    names: u32,
    packets: u32,
    received: u64,
    sessions: Arc<Semaphore>,
    rate: Rate,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            cpu: Arc::default(),
            memory: 0,
            calls: 0,
            call_bytes: 0,
            targets: HashSet::new(),
            names: 0,
            packets: 0,
            received: 0,
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            rate: Rate::new(PACKETS_PER_SECOND, PACKET_BURST),
        }
    }
}

impl Budget {
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

    /// # Errors
    /// When the guest has used its CPU time.
    pub fn check_cpu(&self) -> Result<(), LimitHit> {
        if self.cpu.used() > CPU { Err(LimitHit::Cpu) } else { Ok(()) }
    }

    /// Counts what a call is going to use, or refuses it: then nothing is counted.
    ///
    /// # Errors
    /// The limit that it would pass.
    pub fn take(&mut self, need: Use) -> Result<(), Exceeded> {
        let new_target = need.target.filter(|target| !self.targets.contains(target));
        if new_target.is_some() && self.targets.len() >= TARGETS {
            return Err(Exceeded::Targets);
        }
        let names = self.names.saturating_add(need.names);
        if names > NAMES {
            return Err(Exceeded::Names);
        }
        let packets = self.packets.saturating_add(need.packets);
        if packets > PACKETS {
            return Err(Exceeded::Packets);
        }
        if self.received >= RECEIVED_BYTES {
            return Err(Exceeded::Received);
        }
        self.targets.extend(new_target);
        (self.names, self.packets) = (names, packets);
        Ok(())
    }

    /// Names that may still be looked up.
    #[must_use]
    pub fn names_left(&self) -> usize {
        usize::try_from(NAMES - self.names).unwrap_or(0)
    }

    /// Counts what an exchange received, and the address that it led to.
    pub fn received(&mut self, bytes: u64, from: Option<IpAddr>) {
        self.received = self.received.saturating_add(bytes);
        self.targets.extend(from.map(|address| Target::Address(address.to_canonical())));
    }

    /// Bytes that may still be received.
    #[must_use]
    pub fn received_left(&self) -> u64 {
        RECEIVED_BYTES.saturating_sub(self.received)
    }

    /// A session, as long as this is held.
    ///
    /// # Errors
    /// [`Exceeded::Sessions`].
    pub fn session(&self) -> Result<OwnedSemaphorePermit, Exceeded> {
        Arc::clone(&self.sessions).try_acquire_owned().map_err(|_| Exceeded::Sessions)
    }

    /// Bounds how fast a session sends probes of this size, together with everything else of the run.
    #[must_use]
    pub fn rate(&self, probe_bytes: u32) -> Rate {
        self.rate.costing(fragments(probe_bytes))
    }

    /// Waits until so many packets may be sent.
    pub fn pace(&self, packets: u32) -> impl Future<Output = ()> + Send + 'static {
        let rate = self.rate.clone();
        async move { rate.wait(packets).await }
    }
}

impl ResourceLimiter for Budget {
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
        INSTANCES as usize
    }

    fn tables(&self) -> usize {
        TABLES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_target_too_many_is_refused_and_the_others_stay_usable() {
        let mut budget = Budget::default();
        for last in 0..64 {
            assert_eq!(budget.take(Use::probes(address(last), 1, 84)), Ok(()), "{last}");
        }
        assert_eq!(budget.take(Use::probes(address(64), 1, 84)), Err(Exceeded::Targets));
        assert_eq!(budget.take(Use::probes(address(0), 1, 84)), Ok(()), "a known target");
        let host = Use { target: Some(Target::Host("x.example".into())), ..Use::default() };
        assert_eq!(budget.take(host), Err(Exceeded::Targets));
    }

    #[test]
    fn what_is_refused_is_not_counted() {
        let mut budget = Budget::default();
        assert_eq!(budget.take(Use { names: 1_000, packets: 9_000, target: None }), Ok(()));
        assert_eq!(budget.take(Use { names: 25, ..Use::default() }), Err(Exceeded::Names));
        assert_eq!(budget.take(Use { names: 24, packets: 1_001, target: None }), Err(Exceeded::Packets));
        assert_eq!(budget.take(Use { names: 24, packets: 1_000, target: None }), Ok(()));
        assert_eq!(budget.names_left(), 0);
    }

    #[test]
    fn a_large_probe_counts_as_its_fragments() {
        for (bytes, packets) in [(0, 1), (84, 1), (1_500, 1), (1_501, 2), (65_028, 44)] {
            assert_eq!(Use::probes(address(1), 10, bytes).packets, 10 * packets, "{bytes}");
        }
        assert!(fragments(65_535) <= PACKET_BURST, "the largest one is one burst");
        let mut budget = Budget::default();
        assert_eq!(budget.take(Use::probes(address(1), 1_000, 65_028)), Err(Exceeded::Packets));
    }

    #[test]
    fn what_was_received_ends_further_exchanges() {
        let mut budget = Budget::default();
        budget.received(RECEIVED_BYTES - 1, Some(address(1)));
        assert_eq!(budget.received_left(), 1);
        assert_eq!(budget.take(Use::default()), Ok(()));
        budget.received(1, None);
        assert_eq!(budget.take(Use::default()), Err(Exceeded::Received));
    }

    #[test]
    fn an_ended_session_leaves_capacity_for_another() {
        let budget = Budget::default();
        let mut held: Vec<_> = (0..SESSIONS).map(|_| budget.session().expect("within the limit")).collect();
        assert_eq!(budget.session().map(drop), Err(Exceeded::Sessions));
        held.pop();
        assert!(budget.session().is_ok());
    }
}
