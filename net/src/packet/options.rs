//! Socket options of probing sockets. Those that no crate wraps are set by number.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{ControlMessage, TimestampingFlag, setsockopt, sockopt};
use socket2::SockFilter;

use crate::Family;

// linux/icmp.h and linux/icmpv6.h: both filters are options number 1 of their level.
const SOL_RAW: libc::c_int = 255;
const FILTER: libc::c_int = 1;
// linux/in6.h.
const IPV6_FLOWINFO_SEND: libc::c_int = 33;
// linux/sock_diag.h: places of what SO_MEMINFO returns (memory of sent packets, dropped packets), and how many values that are.
const MEMINFO_WMEM_ALLOC: usize = 2;
const MEMINFO_DROPS: usize = 8;
const MEMINFO_VALUES: usize = 9;

fn set<T: Copy>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: T) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| nix::Error::EINVAL)?;
    #[expect(unsafe_code, reason = "no crate has these options; the pointer and the length are those of `value`")]
    let done = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
    nix::Error::result(done).map(drop)
}

/// Attaches a BPF program that accepts no packet (socket(7), `SO_ATTACH_FILTER`). A raw socket gets a copy of every
/// packet of its protocol, and a socket that only sends must not queue them.
pub fn attach_reject_filter(socket: &socket2::Socket) -> std::io::Result<()> {
    socket.attach_filter(&[instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0)])
}

fn instruction(code: u32, k: u32, if_true: u8, if_false: u8) -> SockFilter {
    SockFilter::new(u16::try_from(code).unwrap_or(0), if_true, if_false, k)
}

/// Attaches a BPF program that accepts only segments to one destination port into a raw TCP socket.
pub fn attach_port_filter(socket: &socket2::Socket, family: Family, port: u16) -> std::io::Result<()> {
    let (load, test) = (libc::BPF_LD | libc::BPF_H, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    // A raw IPv4 socket receives the IP header, a raw IPv6 socket does not.
    let mut program = match family {
        Family::V4 => vec![
            instruction(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
            instruction(load | libc::BPF_IND, 2, 0, 0),
        ],
        Family::V6 => vec![instruction(load | libc::BPF_ABS, 2, 0, 0)],
    };
    program.push(instruction(test, port.into(), 0, 1));
    program.push(instruction(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0));
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
    socket.attach_filter(&program)
}

/// The source address of one packet as a control message (ip(7), `IP_PKTINFO`; ipv6(7), `IPV6_PKTINFO`).
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

/// The TTL or hop limit of one packet as a control message.
#[must_use]
pub fn ttl_message(family: Family, ttl: &i32) -> ControlMessage<'_> {
    match family {
        Family::V4 => ControlMessage::Ipv4Ttl(ttl),
        Family::V6 => ControlMessage::Ipv6HopLimit(ttl),
    }
}

/// Accepts ICMP messages of these types only (raw(7), `ICMP_FILTER`; RFC 3542 section 3.2, `ICMP6_FILTER`).
pub fn set_icmp_filter(socket: &impl AsFd, family: Family, types: &[u8]) -> nix::Result<()> {
    let mut words = [u32::MAX; 8];
    for icmp_type in types {
        words[usize::from(icmp_type >> 5)] &= !(1 << (icmp_type & 31));
    }
    // A set bit blocks that type.
    match family {
        Family::V4 => set(socket, SOL_RAW, FILTER, words[0]),
        Family::V6 => set(socket, libc::IPPROTO_ICMPV6, FILTER, words),
    }
}

/// What happens to a packet that is larger than the MTU of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragmentation {
    /// The packet is dropped at that link. The path MTU that the kernel has cached is ignored.
    Forbidden,
    /// This host and IPv4 routers fragment the packet; this host also by the path MTU that the kernel has cached.
    Allowed,
    /// As [`Allowed`](Self::Allowed), but this host goes by the MTU of its own interface only: each trace finds the
    /// narrow link anew.
    InterfaceMtu,
}

/// # Errors
/// When the kernel does not know the option.
pub fn set_fragmentation(socket: &impl AsFd, family: Family, fragmentation: Fragmentation) -> nix::Result<()> {
    match family {
        Family::V4 => {
            let discovery = match fragmentation {
                Fragmentation::Forbidden => libc::IP_PMTUDISC_PROBE,
                Fragmentation::Allowed => libc::IP_PMTUDISC_DONT,
                Fragmentation::InterfaceMtu => libc::IP_PMTUDISC_OMIT,
            };
            set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discovery)
        }
        Family::V6 => {
            let forbidden = libc::c_int::from(fragmentation == Fragmentation::Forbidden);
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, forbidden)?;
            let discovery = match fragmentation {
                Fragmentation::Forbidden => libc::IPV6_PMTUDISC_PROBE,
                Fragmentation::Allowed => libc::IPV6_PMTUDISC_DONT,
                Fragmentation::InterfaceMtu => libc::IPV6_PMTUDISC_OMIT,
            };
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discovery)
        }
    }
}

/// Lets an IPv6 socket with [`Fragmentation::InterfaceMtu`] be told of packets that were too big for a link, which the kernel
/// keeps from UDP sockets that fragment by the interface's MTU: what is larger than that is refused then.
pub fn enable_too_big_errors(socket: &impl AsFd, family: Family) -> nix::Result<()> {
    match family {
        Family::V4 => Ok(()),
        Family::V6 => set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    }
}

/// Enables the control messages of received packets: kernel timestamp, and TTL or hop limit (`SO_TIMESTAMPNS`,
/// `IP_RECVTTL`).
pub fn enable_receive_metadata(socket: &impl AsFd, family: Family) -> nix::Result<()> {
    setsockopt(socket, sockopt::ReceiveTimestampns, &true)?;
    match family {
        Family::V4 => setsockopt(socket, sockopt::Ipv4RecvTtl, &true),
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true),
    }
}

/// Enables transmit timestamps, numbered by send and taken when the kernel passes a packet to the driver and read from the error queue
/// (Documentation/networking/timestamping.rst).
pub fn enable_transmit_timestamps(socket: &impl AsFd) -> nix::Result<()> {
    let software = TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE;
    // OPT_TSONLY: without a copy of the packet.
    let options = TimestampingFlag::SOF_TIMESTAMPING_OPT_TSONLY | TimestampingFlag::SOF_TIMESTAMPING_OPT_ID;
    setsockopt(socket, sockopt::Timestamping, &(software | options))
}

/// Lets the flow label of each packet be that of its destination's `sin6_flowinfo`.
pub fn enable_flow_labels(socket: &impl AsFd) -> nix::Result<()> {
    set(socket, libc::IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 1)
}

/// Enables the error queue for ICMP errors that quote the socket's packets (ip(7), `IP_RECVERR`).
pub fn enable_error_queue(socket: &impl AsFd, family: Family) -> nix::Result<()> {
    match family {
        Family::V4 => setsockopt(socket, sockopt::Ipv4RecvErr, &true),
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvErr, &true),
    }
}

/// Sets the TTL or hop limit of all packets that the socket sends, 1–255.
pub fn set_ttl(socket: &socket2::Socket, family: Family, ttl: u8) -> std::io::Result<()> {
    match family {
        Family::V4 => socket.set_ttl_v4(ttl.into()),
        Family::V6 => socket.set_unicast_hops_v6(ttl.into()),
    }
}

/// Packets that the socket has dropped since it was opened, because its receive buffer was full; wraps. `SO_MEMINFO`
/// (Linux 4.12) says it at once, `SO_RXQ_OVFL` only with a packet that comes after those that were dropped.
#[must_use]
pub fn dropped(socket: &impl AsFd) -> u32 {
    memory_info(socket)[MEMINFO_DROPS]
}

/// Is a packet that the socket has sent still in a queue of this host? The kernel charges its memory to the socket until the
/// driver has it. False on a kernel before 4.12.
#[must_use]
pub fn has_queued(socket: &impl AsFd) -> bool {
    memory_info(socket)[MEMINFO_WMEM_ALLOC] > 0
}

/// What `SO_MEMINFO` returns. An older kernel fills in none, or fewer.
fn memory_info(socket: &impl AsFd) -> [u32; MEMINFO_VALUES] {
    let mut values = [0_u32; MEMINFO_VALUES];
    let mut length = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or(0);
    let fd = socket.as_fd().as_raw_fd();
    #[expect(unsafe_code, reason = "no crate has this option; pointer and length are those of `values`")]
    let done = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, values.as_mut_ptr().cast(), &raw mut length)
    };
    if done == 0 { values } else { [0; MEMINFO_VALUES] }
}

/// The round-trip time of a TCP handshake as the kernel measured it (µs resolution), and whether the SYN was
/// retransmitted (tcp(7), `TCP_INFO`).
pub fn tcp_handshake(socket: &impl AsFd) -> nix::Result<(Duration, bool)> {
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

/// Why this host could not send a packet: a failure of this host, never of the target.
#[must_use]
pub fn describe_send_error(error: nix::Error) -> String {
    match error {
        nix::Error::EMSGSIZE => "larger than this host's interface takes, and fragmentation is forbidden".into(),
        nix::Error::EHOSTUNREACH | nix::Error::ENETUNREACH => "this host has no route to the target".into(),
        nix::Error::EPERM => "this host's own firewall forbids it".into(),
        nix::Error::EACCES => "this host's own routes or firewall prohibit it".into(),
        nix::Error::ENOBUFS | nix::Error::EAGAIN => "this host's send queue is full".into(),
        other => other.desc().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_full_buffer_dropped_is_known_before_the_next_packet() {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        setsockopt(&receiver, sockopt::RcvBuf, &4096).expect("set");
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        assert_eq!(dropped(&receiver), 0);
        for _ in 0..100 {
            sender.send_to(&[0; 1000], receiver.local_addr().expect("an address")).expect("sent");
        }
        let mut queued = 0;
        receiver.set_nonblocking(true).expect("set");
        let lost = dropped(&receiver);
        while receiver.recv(&mut [0; 1000]).is_ok() {
            queued += 1;
        }
        assert!(lost > 0 && queued > 0 && lost + queued == 100, "{lost} dropped, {queued} received");
    }
}
