//! Datagram ICMP sockets, for processes without `CAP_NET_RAW`: the kernel picks the identifier and passes each socket
//! its own replies.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{Socket, Type};

use super::StartError;
use super::options::{self, Fragmentation};
use super::socket::Timestamp;
use crate::Family;

/// Sends of one packet, each after a pending error of an earlier one.
const ATTEMPTS: u32 = 3;

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

/// Sends on a connected socket. Any call on such a socket may return the pending error of an earlier packet and then
/// has not sent: the send is repeated, and the error read from the error queue.
///
/// # Errors
/// A description of this host's failure.
pub fn send_past_pending_errors(
    socket: &impl AsRawFd,
    mut transmit: impl FnMut(i32) -> nix::Result<()>,
) -> Result<Timestamp, String> {
    use nix::errno::Errno::{ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EPROTO};
    for _ in 0..ATTEMPTS {
        let departure = Timestamp::now();
        match transmit(socket.as_raw_fd()) {
            Ok(()) => return Ok(departure),
            Err(EHOSTUNREACH | ECONNREFUSED | ENETUNREACH | EPROTO) => {}
            Err(error) => return Err(options::describe_send_error(error)),
        }
    }
    Err(options::describe_send_error(EHOSTUNREACH))
}
