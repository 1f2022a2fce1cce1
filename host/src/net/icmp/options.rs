//! Socket options of ICMP sockets that no crate has a safe name for.

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

// linux/icmp.h and linux/icmpv6.h: both filters are options number 1 of their level.
const SOL_RAW: libc::c_int = 255;
const FILTER: libc::c_int = 1;

fn set<T: Copy>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: T) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| nix::Error::EINVAL)?;
    #[expect(unsafe_code, reason = "no crate has these options; the pointer and the length are those of `value`")]
    let done = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
    nix::Error::result(done).map(drop)
}

/// Lets `types` through and nothing else.
pub fn filter(socket: &impl AsFd, v6: bool, types: &[u8]) -> nix::Result<()> {
    let mut words = [u32::MAX; 8];
    for icmp_type in types {
        words[usize::from(icmp_type >> 5)] &= !(1 << (icmp_type & 31));
    }
    // A set bit blocks that type.
    if v6 { set(socket, libc::IPPROTO_ICMPV6, FILTER, words) } else { set(socket, SOL_RAW, FILTER, words[0]) }
}

/// Fragmentation forbidden on the way, or allowed everywhere. Either way the path MTU that the kernel has learnt from
/// others' packets decides nothing: the packet is sent as asked.
pub fn fragmentation(socket: &impl AsFd, v6: bool, forbidden: bool) -> nix::Result<()> {
    if v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, libc::c_int::from(forbidden))?;
        let discover = if forbidden { libc::IPV6_PMTUDISC_PROBE } else { libc::IPV6_PMTUDISC_DONT };
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)
    } else {
        let discover = if forbidden { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_DONT };
        set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)
    }
}

/// Everything that a receiver wants to be told with each packet.
pub fn tell_all(socket: &impl AsFd, v6: bool) -> nix::Result<()> {
    setsockopt(socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(socket, sockopt::RxqOvfl, &1)?;
    if v6 {
        setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true)
    } else {
        setsockopt(socket, sockopt::Ipv4RecvTtl, &true)
    }
}

/// What a failed send means, in words. None of it is the target's doing.
#[must_use]
pub fn send_failure(error: nix::Error) -> String {
    match error {
        nix::Error::EMSGSIZE => "larger than this host's interface takes, and fragmentation is forbidden".into(),
        nix::Error::EHOSTUNREACH | nix::Error::ENETUNREACH => "this host has no route to the target".into(),
        nix::Error::EPERM => "this host's own firewall forbids it".into(),
        nix::Error::ENOBUFS | nix::Error::EAGAIN => "this host's send queue is full".into(),
        other => other.desc().to_owned(),
    }
}
