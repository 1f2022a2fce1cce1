//! Datagram ICMP sockets, for processes without `CAP_NET_RAW`: the kernel picks the identifier and hands each socket its
//! own replies.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use super::options::{self, Fragments};
use super::socket::Stamp;

/// A datagram ICMP socket towards a target, with its error queue.
///
/// # Errors
/// See [`StartError`].
pub fn connected(target: IpAddr, fragments: Fragments) -> Result<Socket, StartError> {
    let v6 = target.is_ipv6();
    let open = || -> std::io::Result<Socket> {
        let socket = socket(v6)?;
        socket.set_nonblocking(true)?;
        options::tell_all(&socket, v6)?;
        options::tell_errors(&socket, v6)?;
        options::fragments(&socket, v6, fragments)?;
        Ok(socket)
    };
    let socket = open().map_err(|error| unavailable(&error, v6))?;
    socket
        .connect(&SocketAddr::new(target, 0).into())
        .map_err(|_| StartError::Unreachable("this host has no route to the target".into()))?;
    Ok(socket)
}

pub fn unavailable(error: &std::io::Error, v6: bool) -> StartError {
    StartError::Unavailable(format!(
        "no ICMPv{} socket: {error}; needs CAP_NET_RAW, or net.ipv4.ping_group_range to cover this group",
        if v6 { 6 } else { 4 }
    ))
}

fn socket(v6: bool) -> std::io::Result<Socket> {
    let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    Socket::new(domain, Type::DGRAM, Some(protocol))
}

/// May this process use such sockets?
pub fn probe(v6: bool) -> std::io::Result<()> {
    socket(v6).map(|_| ())
}

/// Sends on a connected socket. A pending error of an earlier packet is delivered by the next call on the socket,
/// whatever it is: that one did not send. Once more then; the error itself is read from its queue.
///
/// # Errors
/// In words.
pub fn send_now(socket: &impl AsRawFd, mut transmit: impl FnMut(i32) -> nix::Result<()>) -> Result<Stamp, String> {
    use nix::errno::Errno::{ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EPROTO};
    for _ in 0..3 {
        let stamp = Stamp::now();
        match transmit(socket.as_raw_fd()) {
            Ok(()) => return Ok(stamp),
            Err(EHOSTUNREACH | ECONNREFUSED | ENETUNREACH | EPROTO) => {}
            Err(error) => return Err(options::send_failure(error)),
        }
    }
    Err(options::send_failure(EHOSTUNREACH))
}
