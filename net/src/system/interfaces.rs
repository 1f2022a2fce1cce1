//! The addresses of this host's interfaces.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;
use parking_lot::RwLock;

/// An address that an interface is given is known this long after at the latest.
const MAX_AGE: Duration = Duration::from_secs(1);
/// From this prefix length on a link has no subnet-router anycast address (RFC 6164).
const POINT_TO_POINT: u32 = 127;

pub type ReadAddresses = fn() -> io::Result<Vec<IpAddr>>;

/// Read again at most once a second, by the next caller: asking costs a hash and a clock.
pub struct Interfaces {
    read: ReadAddresses,
    known: RwLock<CachedAddresses>,
}

struct CachedAddresses {
    addresses: HashSet<IpAddr>,
    read_at: Instant,
}

impl Interfaces {
    pub fn read(read: ReadAddresses) -> Self {
        let addresses = read().unwrap_or_else(|error| {
            tracing::warn!(%error, "the addresses of this host's interfaces are unknown and may be probed");
            vec![]
        });
        let known = CachedAddresses { addresses: addresses.into_iter().collect(), read_at: Instant::now() };
        Self { read, known: RwLock::new(known) }
    }

    pub fn hold(&self, address: IpAddr) -> bool {
        {
            let known = self.known.read();
            if known.read_at.elapsed() < MAX_AGE {
                return known.addresses.contains(&address);
            }
        }
        let mut known = self.known.write();
        if known.read_at.elapsed() >= MAX_AGE {
            // Out of descriptors or memory: what was known is the best guess.
            if let Ok(addresses) = (self.read)() {
                known.addresses = addresses.into_iter().collect();
            }
            known.read_at = Instant::now();
        }
        known.addresses.contains(&address)
    }
}

/// # Errors
/// When the kernel cannot be asked.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses = vec![];
    for interface in getifaddrs()? {
        let Some(address) = interface.address.as_ref().and_then(ip) else { continue };
        addresses.push(address);
        addresses.extend(subnet_router_anycast(address, &interface));
    }
    Ok(addresses)
}

/// RFC 4291, section 2.6.1: the first address of a link, which this host has too when it is a router, as
/// container hosts are.
fn subnet_router_anycast(address: IpAddr, interface: &InterfaceAddress) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let Some(IpAddr::V6(mask)) = interface.netmask.as_ref().and_then(ip) else { return None };
    let mask = u128::from(mask);
    (mask.leading_ones() < POINT_TO_POINT).then(|| Ipv6Addr::from(u128::from(address) & mask).into())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_interface_of_every_host() {
        let interfaces = Interfaces::read(addresses);
        assert!(interfaces.hold("127.0.0.1".parse().expect("an address")));
        assert!(!interfaces.hold("192.0.2.1".parse().expect("an address")));
    }
}
