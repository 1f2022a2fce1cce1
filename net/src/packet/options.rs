//! Socket options of ICMP sockets that no crate has a safe name for.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{TimestampingFlag, setsockopt, sockopt};
use socket2::SockFilter;

// linux/icmp.h and linux/icmpv6.h: both filters are options number 1 of their level.
const SOL_RAW: libc::c_int = 255;
const FILTER: libc::c_int = 1;

fn set<T: Copy>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: T) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| nix::Error::EINVAL)?;
    #[expect(unsafe_code, reason = "no crate has these options; the pointer and the length are those of `value`")]
    let done = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
    nix::Error::result(done).map(drop)
}

/// A raw socket gets a copy of every packet of its protocol: one that only sends must not fill its queue with them.
/// The program in front of it (socket(7), `SO_ATTACH_FILTER`) keeps 0 bytes of each.
pub fn receive_nothing(socket: &socket2::Socket) -> std::io::Result<()> {
    socket.attach_filter(&[step(libc::BPF_RET | libc::BPF_K, 0, 0, 0)])
}

fn step(code: u32, k: u32, if_true: u8, if_false: u8) -> SockFilter {
    SockFilter::new(u16::try_from(code).unwrap_or(0), if_true, if_false, k)
}

/// Lets only packets to one TCP port into a raw TCP socket.
pub fn only_to_port(socket: &socket2::Socket, v6: bool, port: u16) -> std::io::Result<()> {
    let (load, test) = (libc::BPF_LD | libc::BPF_H, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    // The kernel hands such a socket IPv4 packets with their header in front, IPv6 ones without.
    let mut program = vec![];
    if v6 {
        program.push(step(load | libc::BPF_ABS, 2, 0, 0));
    } else {
        program.push(step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0));
        program.push(step(load | libc::BPF_IND, 2, 0, 0));
    }
    program.push(step(test, port.into(), 0, 1));
    program.push(step(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0));
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
    socket.attach_filter(&program)
}

/// The source address as a control message says it.
#[must_use]
pub fn packet_info(from: Option<IpAddr>) -> (Option<libc::in_pktinfo>, Option<libc::in6_pktinfo>) {
    let none = libc::in_addr { s_addr: 0 };
    match from {
        None => (None, None),
        Some(IpAddr::V4(from)) => {
            let from = libc::in_addr { s_addr: u32::from(from).to_be() };
            (Some(libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: none }), None)
        }
        Some(IpAddr::V6(from)) => {
            let from = libc::in6_addr { s6_addr: from.octets() };
            (None, Some(libc::in6_pktinfo { ipi6_addr: from, ipi6_ifindex: 0 }))
        }
    }
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

/// What happens to a packet that is too large for a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragments {
    /// It is dropped, wherever that is; and the path MTU that the kernel has learnt from others' packets is not asked.
    Forbidden,
    /// This host and IPv4 routers fragment it; this host also when it has learnt that the path needs it.
    Allowed,
    /// As allowed, but this host looks at its own link only: each trace finds the narrow link anew.
    AtLink,
}

/// # Errors
/// When the kernel does not know the option.
pub fn fragments(socket: &impl AsFd, v6: bool, fragments: Fragments) -> nix::Result<()> {
    if v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, libc::c_int::from(fragments == Fragments::Forbidden))?;
        let discover = match fragments {
            Fragments::Forbidden => libc::IPV6_PMTUDISC_PROBE,
            Fragments::Allowed => libc::IPV6_PMTUDISC_DONT,
            Fragments::AtLink => libc::IPV6_PMTUDISC_OMIT,
        };
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)
    } else {
        let discover = match fragments {
            Fragments::Forbidden => libc::IP_PMTUDISC_PROBE,
            Fragments::Allowed => libc::IP_PMTUDISC_DONT,
            Fragments::AtLink => libc::IP_PMTUDISC_OMIT,
        };
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

/// The moment at which each packet is given to the link comes to the error queue
/// (Documentation/networking/timestamping.rst).
pub fn tell_departures(socket: &impl AsFd) -> nix::Result<()> {
    let software = TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE;
    // Without the packet itself.
    setsockopt(socket, sockopt::Timestamping, &(software | TimestampingFlag::SOF_TIMESTAMPING_OPT_TSONLY))
}

/// ICMP errors that quote the socket's packets come to its error queue (ip(7), `IP_RECVERR`).
pub fn tell_errors(socket: &impl AsFd, v6: bool) -> nix::Result<()> {
    if v6 { setsockopt(socket, sockopt::Ipv6RecvErr, &true) } else { setsockopt(socket, sockopt::Ipv4RecvErr, &true) }
}

/// Time to live or hop limit of everything that the socket sends.
pub fn ttl(socket: &socket2::Socket, v6: bool, ttl: u8) -> std::io::Result<()> {
    if v6 { socket.set_unicast_hops_v6(ttl.into()) } else { socket.set_ttl_v4(ttl.into()) }
}

/// The round-trip time of a TCP handshake as the kernel measured it, and whether the SYN was repeated (tcp(7), `TCP_INFO`).
pub fn handshake(socket: &impl AsFd) -> nix::Result<(Duration, bool)> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(|_| nix::Error::EINVAL)?;
    let fd = socket.as_fd().as_raw_fd();
    #[expect(unsafe_code, reason = "no crate has this option; pointer and length are those of `info`")]
    let done =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length) };
    nix::Error::result(done)?;
    #[expect(unsafe_code, reason = "it was zeroed, and all of its fields are integers")]
    let info = unsafe { info.assume_init() };
    Ok((Duration::from_micros(info.tcpi_rtt.into()), info.tcpi_total_retrans > 0))
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
