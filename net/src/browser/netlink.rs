//! Browsers are not told that this host's network changes. A browser listens for it over netlink (`rtnetlink(7)`), and ends
//! all requests of a page when any interface gets or loses an address: when a container starts on the host, say. Chrome
//! then fails them with `ERR_NETWORK_CHANGED`. What a page reaches does not depend on it: it goes through the SOCKS
//! proxy on loopback.

use std::collections::BTreeMap;

use anyhow::Context;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// From now on this thread, and every process that it starts, gets `EAFNOSUPPORT` for `socket(AF_NETLINK, …)`, as where the
/// kernel has no netlink. It can gain no privileges by starting programs either (`PR_SET_NO_NEW_PRIVS`): without that,
/// the kernel takes filters from privileged threads only.
///
/// # Errors
/// When the kernel has no filters of system calls, or does not allow them.
pub fn refuse() -> anyhow::Result<()> {
    let family = u64::try_from(super::owner::AF_NETLINK)?;
    let netlink = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)?;
    let rules = BTreeMap::from([(nix::libc::SYS_socket, vec![SeccompRule::new(vec![netlink])?])]);
    let error = u32::try_from(rustix::io::Errno::AFNOSUPPORT.raw_os_error())?;
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(error), architecture)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program).context("a filter of system calls")
}
