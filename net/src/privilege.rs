//! Which privileges each thread has: in this one place. Raw sockets need `CAP_NET_RAW`, and a port below 1024 needs
//! `CAP_NET_BIND_SERVICE`; no other capability is needed. Both are used before the server listens, but for the raw
//! sockets of TCP traces, which have a thread that opens them. Linux keeps capabilities for each thread, so every other
//! thread drops what it has when it begins, and the first one when the server listens.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What a thread may do, and what the programs that it starts may have.
#[derive(Debug, Clone, Copy)]
pub struct Privileges {
    own: &'static [Capability],
    /// The bounding set (capabilities(7)): what root starts has all of it.
    programs: &'static [Capability],
}

/// Of the thread that opens raw sockets.
pub const RAW_SOCKETS: Privileges =
    Privileges { own: &[Capability::CAP_NET_RAW], programs: &[Capability::CAP_NET_RAW] };
/// Of the threads that start browsers: a sandbox of Firefox's is a user namespace, in which root can only be named by who
/// has this (since Linux 5.12). Programs of other users have nothing in any case.
pub const BROWSERS: Privileges = Privileges { own: &[], programs: &[Capability::CAP_SETFCAP] };
/// Of all others.
pub const NOTHING: Privileges = Privileges { own: &[], programs: &[] };

/// Makes use of what this process may have but was not started with: a file capability `cap_net_raw+p` only permits.
///
/// # Errors
/// When the kernel refuses.
pub fn raise() -> Result<(), CapsError> {
    caps::set(None, CapSet::Effective, &caps::read(None, CapSet::Permitted)?)
}

/// Leaves this thread, and all that it starts, no more than `kept` of what it has.
///
/// # Errors
/// When the kernel refuses.
pub fn keep(kept: Privileges) -> Result<(), CapsError> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        // What root starts has everything again that the bounding set leaves it.
        for capability in caps::runtime::thread_all_supported() {
            if !kept.programs.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    let permitted = caps::read(None, CapSet::Permitted)?;
    let left: CapsHashSet = permitted.into_iter().filter(|capability| kept.own.contains(capability)).collect();
    caps::set(None, CapSet::Effective, &left)?;
    caps::set(None, CapSet::Permitted, &left)?;
    caps::clear(None, CapSet::Inheritable)?;
    // Kernels before 4.3 have no such set.
    if caps::runtime::ambient_set_supported().is_ok() { caps::clear(None, CapSet::Ambient) } else { Ok(()) }
}

/// [`keep`] for a thread that goes on in any case: a privilege that cannot be dropped is in the log.
pub fn drop_or_warn(kept: Privileges) {
    if let Err(error) = keep(kept) {
        tracing::warn!(%error, "a thread keeps the capabilities that it was started with");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<CapsHashSet> {
        let sets = [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient];
        sets.into_iter().map(|set| caps::read(None, set).expect("known")).collect()
    }

    #[test]
    fn a_thread_that_drops_all_has_nothing_and_others_have_theirs() {
        let before = all();
        let inside = std::thread::spawn(|| {
            keep(NOTHING).expect("dropped");
            raise().expect("nothing to raise");
            all()
        });
        assert!(inside.join().expect("ended").iter().all(CapsHashSet::is_empty));
        assert_eq!(before, all());
    }
}
