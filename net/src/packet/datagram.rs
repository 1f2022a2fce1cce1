//! Datagram ICMP sockets, for processes without `CAP_NET_RAW`: the kernel picks the identifier and passes each socket
//! its own replies.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use socket2::{Socket, Type};

use super::StartError;
use super::options::{self, Fragmentation};
use super::socket::Timestamp;
use crate::Family;

/// Sends of one packet, each after a pending error of an earlier one.
const ATTEMPTS: usize = 8;

/// Opens a datagram ICMP socket that is connected to the target and has an error queue.
///
/// # Errors
/// See [`StartError`].
pub fn open_connected(mut target: SocketAddr, fragmentation: Fragmentation) -> Result<Socket, StartError> {
    target.set_port(0);
    let family = Family::of(target.ip());
    let open = || -> std::io::Result<Socket> {
        let socket = open(family)?;
        socket.set_nonblocking(true)?;
        options::enable_receive_metadata(&socket, family)?;
        options::enable_error_queue(&socket, family)?;
        options::set_fragmentation(&socket, family, fragmentation)?;
        Ok(socket)
    };
    let socket = open().map_err(|error| unavailable(&error, family))?;
    socket.connect(&target.into()).map_err(|_| StartError::no_route())?;
    Ok(socket)
}

pub fn unavailable(error: &std::io::Error, family: Family) -> StartError {
    StartError::Unavailable(format!(
        "no ICMPv{family} socket: {error}; needs CAP_NET_RAW, or net.ipv4.ping_group_range to cover this group"
    ))
}

fn open(family: Family) -> std::io::Result<Socket> {
    Socket::new(family.domain(), Type::DGRAM, Some(family.icmp()))
}

/// Checks that this process may open such sockets.
///
/// # Errors
/// As from socket(2): `EACCES` outside of `net.ipv4.ping_group_range`.
pub fn check_permitted(family: Family) -> std::io::Result<()> {
    open(family).map(drop)
}

/// The errors that ICMP errors and redirects become (linux/icmp.c, `icmp_err_convert` and `ping_err`; linux/icmpv6.c,
/// `icmpv6_err_convert`). This host's own refusals are among them too: a route that prohibits, an interface's MTU.
#[must_use]
pub fn may_be_pending(error: Errno) -> bool {
    use Errno::{
        EACCES, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EMSGSIZE, ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPROTO,
        EREMOTEIO,
    };
    [
        ENETUNREACH,
        EHOSTUNREACH,
        ENOPROTOOPT,
        ECONNREFUSED,
        EMSGSIZE,
        EOPNOTSUPP,
        EHOSTDOWN,
        ENONET,
        EACCES,
        EPROTO,
        EREMOTEIO,
    ]
    .contains(&error)
}

/// Sends on a connected socket with an error queue. Any call on such a socket may return the pending error of an earlier
/// packet (`SO_ERROR`) and then has not sent. That error is gone with the call, and its ICMP message is in the error queue:
/// the send is repeated. What this host itself refuses, it refuses each time.
///
/// # Errors
/// A description of this host's failure.
pub fn send_past_pending_errors(
    socket: &impl AsRawFd,
    mut transmit: impl FnMut(i32) -> nix::Result<()>,
) -> Result<Timestamp, String> {
    let mut last = Errno::EAGAIN;
    for _ in 0..ATTEMPTS {
        let departure = Timestamp::now();
        match transmit(socket.as_raw_fd()) {
            Ok(()) => return Ok(departure),
            Err(error) => last = error,
        }
        if !may_be_pending(last) {
            break;
        }
    }
    Err(options::describe_send_error(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(results: &[nix::Result<()>]) -> (Result<(), String>, usize) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let mut attempts = 0;
        let sent = send_past_pending_errors(&socket, |_| {
            attempts += 1;
            results[(attempts - 1).min(results.len() - 1)]
        });
        (sent.map(drop), attempts)
    }

    #[test]
    fn an_error_that_was_pending_is_not_that_of_the_next_packet() {
        use Errno::{EACCES, EHOSTDOWN, EMSGSIZE, ENONET, ENOPROTOOPT};
        for pending in [EACCES, EHOSTDOWN, EMSGSIZE, ENONET, ENOPROTOOPT] {
            assert_eq!(send(&[Err(pending), Ok(())]), (Ok(()), 2), "{pending}");
        }
        assert_eq!(send(&[Err(EACCES), Err(ENONET), Ok(())]), (Ok(()), 3), "two, one after the other");
    }

    #[test]
    fn what_this_host_refuses_each_time_is_its_own_failure() {
        let refused = |error| Err(options::describe_send_error(error));
        for own in [Errno::EACCES, Errno::EMSGSIZE, Errno::EHOSTUNREACH] {
            assert_eq!(send(&[Err(own)]), (refused(own), ATTEMPTS), "{own}");
        }
        for own in [Errno::EPERM, Errno::ENOBUFS, Errno::EINVAL] {
            assert_eq!(send(&[Err(own), Ok(())]), (refused(own), 1), "no ICMP error becomes {own}");
        }
    }

    #[test]
    fn a_datagram_is_sent_although_the_one_before_was_refused() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        socket.connect(closed).expect("connected");
        options::enable_error_queue(&socket, Family::V4).expect("enabled");
        let send = |fd| nix::sys::socket::send(fd, b"x", nix::sys::socket::MsgFlags::MSG_DONTWAIT).map(drop);
        assert_eq!(send(socket.as_raw_fd()), Ok(()));
        assert_eq!(send(socket.as_raw_fd()), Err(Errno::ECONNREFUSED), "the error of the first");
        assert_eq!(send(socket.as_raw_fd()), Ok(()));
        assert!(send_past_pending_errors(&socket, send).is_ok());
    }
}
