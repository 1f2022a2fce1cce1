//! What the routing table says of an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Connecting a UDP socket asks the routing table and sends nothing. When it cannot be asked, whoever sends will hear why.
#[must_use]
pub fn has_route(address: IpAddr) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH};
    let any: SocketAddr =
        if address.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let asked = UdpSocket::bind(any).and_then(|socket| socket.connect((address, 9)));
    let none = [EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH];
    asked.err().and_then(|error| error.raw_os_error()).is_none_or(|number| !none.contains(&number))
}
