//! Memory that was freed goes back to the system.
//!
//! glibc keeps freed memory for later allocations, above all in the arenas of other threads than the main one, and a
//! server that was flooded once stays as large as it was then. Measured: twelve requests, four of them concurrent, that each make
//! and free two million blocks of 16 to 111 bytes; resident memory in MiB while idle, at the peak, and 10 s after it:
//!
//! | allocator | idle | peak | after |
//! | --- | --- | --- | --- |
//! | glibc 2.36 | 5 | 399 | 307 |
//! | glibc with two arenas (`M_ARENA_MAX`) | 5 | 378 | 307 |
//! | mimalloc 0.1 | 12 | 403 | 346 |
//! | jemalloc (tikv-jemallocator 0.6) | 6 | 531 | 297 |
//! | jemalloc with `background_thread` and a decay of 1 s | 7 | 374 | 12 |
//! | glibc with `malloc_trim` | 5 | 399 | 6 |
//!
//! `malloc_trim` takes the locks of the allocator, and its time grows with what is free: it is called only when freed
//! memory that is still resident has grown.

use std::time::Duration;

/// Looked at this often.
const EVERY: Duration = Duration::from_secs(5);
/// Freed memory is given back when there is so much more of it than there was at least, in bytes.
const GROWTH: u64 = 8 << 20;

/// Returns memory to the system, until the process ends.
pub async fn trim() {
    let mut tick = tokio::time::interval(EVERY);
    let mut kept = Baseline::default();
    loop {
        tick.tick().await;
        let look = move || {
            let before = not_in_use();
            if kept.is_due(before) {
                release();
                kept = Baseline { least: not_in_use() };
                tracing::debug!(before, after = kept.least, "freed memory given back to the system");
            }
            kept
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(now) => kept = now,
            Err(error) => tracing::error!(%error, "freed memory is not given back any more"),
        }
    }
}

/// How much memory that is not in use stays resident without being freed memory: stacks, linear memories of guests. It is
/// not known by itself, so the least that was seen since memory was given back stands for it.
#[derive(Debug, Clone, Copy, Default)]
struct Baseline {
    least: u64,
}

impl Baseline {
    fn is_due(&mut self, not_in_use: u64) -> bool {
        self.least = self.least.min(not_in_use);
        not_in_use > self.least + GROWTH
    }
}

/// Bytes of anonymous memory that are resident and not allocated by `malloc`; 0 when it is not known.
///
/// Not `fordblks`, the allocator's own count of free bytes: those that were given back stay in it.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "a function of the C library without a safe wrapper")]
fn not_in_use() -> u64 {
    // SAFETY: mallinfo2(3) may be called at any time, by any thread.
    let info = unsafe { nix::libc::mallinfo2() };
    let allocated = u64::try_from(info.uordblks + info.hblkhd).unwrap_or(u64::MAX);
    resident().unwrap_or(0).saturating_sub(allocated)
}

/// `RssAnon` of `proc_pid_status(5)`, in bytes.
#[cfg(target_env = "gnu")]
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "a function of the C library without a safe wrapper")]
fn release() {
    // SAFETY: malloc_trim(3) may be called at any time, by any thread.
    unsafe { nix::libc::malloc_trim(0) };
}

/// musl gives back what it frees.
#[cfg(not(target_env = "gnu"))]
fn not_in_use() -> u64 {
    0
}

#[cfg(not(target_env = "gnu"))]
fn release() {}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_is_given_back_when_what_was_freed_has_grown() {
        // Since memory was given back 20 MiB are no freed memory.
        let mut kept = Baseline { least: 20 * MIB };
        for (not_in_use, due) in [(20, false), (28, false), (29, true), (12, false), (20, false), (21, true)] {
            assert_eq!(kept.is_due(not_in_use * MIB), due, "{not_in_use} MiB");
        }
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn freed_memory_is_seen_and_given_back() {
        // Of a size that glibc keeps; more than all other tests, which run meanwhile.
        let mut blocks: Vec<Vec<u8>> = (0..128 * 1024).map(|_| vec![1; 1024]).collect();
        let used = not_in_use();
        // What stands above the freed blocks keeps the heap from shrinking by itself.
        let _last = blocks.pop();
        drop(blocks);
        let freed = not_in_use();
        assert!(freed > used + 64 * MIB, "{used}, then {freed}");
        release();
        let after = not_in_use();
        assert!(after < freed - 64 * MIB, "{freed}, then {after}");
    }
}
