//! Routing table look-ups.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::SockRef;

use crate::Family;
use crate::policy::Permitted;

/// Any port but 0 serves: a look-up depends on the address, and on the interface of a link-local one.
pub const DISCARD_PORT: u16 = 9;

/// How the kernel sends to a destination.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// With port 0, and with the interface when it is link-local.
    pub source: SocketAddr,
    /// The system's default TTL or hop limit; for IPv6 that of the route, which the kernel does not tell for IPv4.
    pub ttl: Option<u8>,
}

/// Connecting a UDP socket looks up the route and sends nothing.
///
/// # Errors
/// Without a route, see [`is_no_route`]; or when no socket can be opened.
pub fn lookup(destination: SocketAddr) -> io::Result<Route> {
    let (socket, source) = connect(destination)?;
    let socket = SockRef::from(&socket);
    let ttl = match Family::of(destination.ip()) {
        Family::V4 => socket.ttl_v4(),
        Family::V6 => socket.unicast_hops_v6(),
    };
    Ok(Route { source, ttl: ttl.ok().and_then(|ttl| u8::try_from(ttl).ok()) })
}

/// The source address that the kernel chooses for this destination.
///
/// # Errors
/// As [`lookup`].
pub fn source_address(destination: SocketAddr) -> io::Result<SocketAddr> {
    connect(destination).map(|(_, source)| source)
}

fn connect(destination: SocketAddr) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = UdpSocket::bind(Family::of(destination.ip()).unspecified())?;
    socket.connect(destination)?;
    let mut source = socket.local_addr()?;
    source.set_port(0);
    Ok((socket, source))
}

/// Does the error mean that there is no route, or no address of this family to send from?
#[must_use]
pub fn is_no_route(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH};
    error.raw_os_error().is_some_and(|code| [EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH].contains(&code))
}

/// Does this host have a route to the target? True when the look-up itself fails: the send reports that error then.
#[must_use]
pub fn has_route(target: Permitted) -> bool {
    source_address(target.socket_address(DISCARD_PORT)).err().is_none_or(|error| !is_no_route(&error))
}
