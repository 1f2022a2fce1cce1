//! Which privileges each thread has: in this one place. Raw sockets need `CAP_NET_RAW`, and a port below 1024 needs
//! `CAP_NET_BIND_SERVICE`; plugins need nothing, and nothing else is needed by anybody. Linux keeps capabilities for each
//! thread, so every thread of a runtime drops what it has when it begins, and the first one when the server listens.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities,
};

/// What the threads of the network may do.
pub const NETWORK: CapabilitySet = CapabilitySet::NET_RAW;
/// What the threads that run plugins may do, and all others.
pub const NOTHING: CapabilitySet = CapabilitySet::empty();

/// What programs that root starts may have besides: a sandbox of Firefox's is a user namespace, in which root can only be
/// named by who has this (since Linux 5.12). Programs of other users have nothing in any case.
const CHILDREN: CapabilitySet = CapabilitySet::SETFCAP;

/// The highest capability that this program knows of; a newer kernel's ones are in no set that it keeps.
const LAST: u32 = 40;

/// Makes use of what this process may have but was not started with: a file capability `cap_net_raw+p` only permits.
///
/// # Errors
/// When the kernel refuses.
pub fn raise() -> Result<(), Errno> {
    let now = capabilities(None)?;
    set_capabilities(None, CapabilitySets { effective: now.permitted, ..now })
}

/// Leaves this thread, and all that it starts, nothing but `kept` of what it has.
///
/// # Errors
/// When the kernel refuses.
pub fn keep(kept: CapabilitySet) -> Result<(), Errno> {
    let now = capabilities(None)?;
    // What root starts has everything again that the bounding set leaves it.
    let bound = if kept.is_empty() { kept } else { kept | CHILDREN };
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..=LAST {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if !bound.contains(capability) {
                match remove_capability_from_bounding_set(capability) {
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    let left = now.permitted & kept;
    set_capabilities(None, CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() })?;
    // Kernels before 4.3 have no such set.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error),
    }
}

/// [`keep`] for a thread that goes on in any case: who may not drop a privilege has it still, which the log says.
pub fn drop_or_warn(kept: CapabilitySet) {
    if let Err(error) = keep(kept) {
        tracing::warn!(%error, "a thread keeps the capabilities that it was started with");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_drops_all_has_nothing_and_others_have_theirs() {
        let before = capabilities(None).expect("known");
        let inside = std::thread::spawn(|| {
            keep(NOTHING).expect("dropped");
            raise().expect("nothing to raise");
            capabilities(None).expect("known")
        });
        let inside = inside.join().expect("ended");
        assert!(inside.effective.is_empty() && inside.permitted.is_empty() && inside.inheritable.is_empty());
        let after = capabilities(None).expect("known");
        assert_eq!((before.effective, before.permitted), (after.effective, after.permitted));
    }
}
