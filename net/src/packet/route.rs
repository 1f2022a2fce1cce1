//! Routing table look-ups.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::Family;

/// Any port serves: a look-up depends on the address.
const DISCARD_PORT: u16 = 9;

/// The source address that the kernel chooses for this destination. Connecting a UDP socket looks up the route and
/// sends nothing.
///
/// # Errors
/// Without a route, see [`is_no_route`]; or when no socket can be opened.
pub fn source_address(destination: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(Family::of(destination.ip()).unspecified())?;
    socket.connect(destination)?;
    Ok(socket.local_addr()?.ip())
}

/// Does the error mean that there is no route, or no address of this family to send from?
#[must_use]
pub fn is_no_route(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH};
    error.raw_os_error().is_some_and(|code| [EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH].contains(&code))
}

/// Does this host have a route to the address? True when the look-up itself fails: the send reports that error then.
#[must_use]
pub fn has_route(address: IpAddr) -> bool {
    source_address(SocketAddr::new(address, DISCARD_PORT)).err().is_none_or(|error| !is_no_route(&error))
}
