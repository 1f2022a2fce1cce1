//! The order in which the addresses of a name are tried (RFC 6724, section 6), by the source address that the kernel would
//! use for each.
//!
//! Without the rules that need what the kernel does not tell here: deprecated and home addresses (3, 4) and tunnels (7). Rule 9
//! compares prefixes of IPv6 addresses only: for IPv4 it would undo the order by which name servers balance load.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::packet::route::{DISCARD_PORT, is_no_route, source_address};

/// Prefix, its length, precedence and label (RFC 6724, section 2.1).
const POLICY_TABLE: [(Ipv6Addr, u32, u8, u8); 9] = [
    (Ipv6Addr::LOCALHOST, 128, 50, 0),
    (Ipv6Addr::UNSPECIFIED, 0, 40, 1),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, 35, 4),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, 30, 2),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, 5, 5),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, 3, 13),
    (Ipv6Addr::UNSPECIFIED, 96, 1, 3),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, 1, 11),
    (Ipv6Addr::new(0x3ffe, 0, 0, 0, 0, 0, 0, 0), 16, 1, 12),
];
/// Of a source address, the length of its prefix. The interface's own may differ; with this one, parts that identify a host
/// are not compared.
const SOURCE_PREFIX: u32 = 64;

/// Scopes have the numbers of multicast addresses (RFC 4291, section 2.7).
const LINK_LOCAL: u8 = 2;
const SITE_LOCAL: u8 = 5;
const GLOBAL: u8 = 14;

/// Whether and from where an address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    NoRoute,
    /// The look-up itself failed; connecting will report it.
    Unknown,
    Known(IpAddr),
}

/// Sorts addresses by this host's routes. Of equal ones the order stays as it was.
#[must_use]
pub fn sorted(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    if addresses.len() < 2 {
        return addresses;
    }
    by(addresses, |address| match source_address(SocketAddr::new(address, DISCARD_PORT)) {
        Ok(source) => Source::Known(source.ip()),
        Err(error) if is_no_route(&error) => Source::NoRoute,
        Err(_) => Source::Unknown,
    })
}

fn by(mut addresses: Vec<IpAddr>, source: impl Fn(IpAddr) -> Source) -> Vec<IpAddr> {
    addresses.sort_by_cached_key(|address| {
        let (precedence, label) = policy(*address);
        let source = source(*address);
        let differs = |of: fn(IpAddr) -> u8, own| matches!(source, Source::Known(source) if of(source) != own);
        let common = match (address, source) {
            (IpAddr::V6(address), Source::Known(IpAddr::V6(source))) => common_prefix(*address, source),
            _ => 0,
        };
        (
            // Rules 1, 2, 5, 6, 8 and 9.
            source == Source::NoRoute,
            differs(scope, scope(*address)),
            differs(|source| policy(source).1, label),
            Reverse(precedence),
            scope(*address),
            Reverse(common),
        )
    });
    addresses
}

/// Precedence and label: those of the longest prefix that fits.
fn policy(address: IpAddr) -> (u8, u8) {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let fits = |prefix: Ipv6Addr, length: u32| (bits.to_bits() ^ prefix.to_bits()).leading_zeros() >= length;
    let rows = POLICY_TABLE.iter().filter(|(prefix, length, ..)| fits(*prefix, *length));
    rows.max_by_key(|(_, length, ..)| *length).map_or((40, 1), |(.., precedence, label)| (*precedence, *label))
}

/// RFC 6724, sections 3.1 and 3.2.
fn scope(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) if address.is_loopback() || address.is_link_local() => LINK_LOCAL,
        IpAddr::V4(_) => GLOBAL,
        IpAddr::V6(address) => match address.octets() {
            [0xff, flags_and_scope, ..] => flags_and_scope & 0xf,
            [0xfe, second, ..] if second & 0xc0 == 0x80 => LINK_LOCAL,
            [0xfe, second, ..] if second & 0xc0 == 0xc0 => SITE_LOCAL,
            _ if address.is_loopback() => LINK_LOCAL,
            _ => GLOBAL,
        },
    }
}

/// Bits that both have in common at their beginning.
fn common_prefix(a: Ipv6Addr, b: Ipv6Addr) -> u32 {
    (a.to_bits() ^ b.to_bits()).leading_zeros().min(SOURCE_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sorts destinations, each with its source, or `-` without a route.
    fn order(pairs: &[(&str, &str)]) -> Vec<String> {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let source = |destination: IpAddr| {
            let (_, source) = pairs.iter().find(|(to, _)| address(to) == destination).expect("one of them");
            if *source == "-" { Source::NoRoute } else { Source::Known(address(source)) }
        };
        let sorted = by(pairs.iter().map(|(to, _)| address(to)).collect(), source);
        sorted.iter().map(ToString::to_string).collect()
    }

    /// RFC 6724, section 10.2, as far as its rules are here.
    #[test]
    fn the_examples_of_the_rfc() {
        for (pairs, first) in [
            // Prefer matching scope.
            ([("2001:db8:1::1", "2001:db8:1::2"), ("198.51.100.121", "169.254.13.78")], "2001:db8:1::1"),
            ([("2001:db8:1::1", "fe80::1"), ("198.51.100.121", "198.51.100.117")], "198.51.100.121"),
            // Prefer higher precedence.
            ([("10.1.2.3", "10.1.2.4"), ("2001:db8:1::1", "2001:db8:1::2")], "2001:db8:1::1"),
            // Prefer smaller scope.
            ([("2001:db8:1::1", "2001:db8:1::2"), ("fe80::1", "fe80::2")], "fe80::1"),
            // Longest matching prefix.
            ([("2001:db8:1::1", "2001:db8:1::2"), ("2001:db8:3ffe::1", "2001:db8:3f44::2")], "2001:db8:1::1"),
            // Prefer matching label.
            ([("2002:c633:6401::1", "2002:c633:6401::2"), ("2001:db8:1::1", "2002:c633:6401::2")], "2002:c633:6401::1"),
            ([("2002:c633:6401::1", "2002:c633:6401::2"), ("2001:db8:1::1", "2001:db8:1::2")], "2001:db8:1::1"),
        ] {
            let reversed = [pairs[1], pairs[0]];
            assert_eq!(order(&pairs)[0], first, "{pairs:?}");
            assert_eq!(order(&reversed)[0], first, "{reversed:?}");
        }
    }

    #[test]
    fn what_cannot_be_reached_comes_last() {
        let pairs = [("2001:db8::1", "-"), ("192.0.2.1", "192.0.2.9"), ("192.0.2.2", "192.0.2.9")];
        assert_eq!(order(&pairs), ["192.0.2.1", "192.0.2.2", "2001:db8::1"], "IPv4 as the name server had it");
    }

    /// A unique local address is of no use on the Internet, so that a host with no other one prefers IPv4.
    #[test]
    fn a_unique_local_source_is_for_unique_local_destinations() {
        let global = [("2001:db8::1", "fd00::9"), ("192.0.2.1", "10.0.0.9")];
        assert_eq!(order(&global), ["192.0.2.1", "2001:db8::1"]);
        let local = [("192.0.2.1", "192.0.2.9"), ("fd00::1", "fd00::9"), ("2001:db8::1", "2001:db8::9")];
        assert_eq!(order(&local), ["2001:db8::1", "192.0.2.1", "fd00::1"]);
    }

    #[test]
    fn this_hosts_own_routes_decide() {
        let loopback = ["127.0.0.1", "::1"].map(|a| a.parse::<IpAddr>().expect("an address"));
        let reachable = source_address(SocketAddr::new(loopback[1], DISCARD_PORT)).is_ok();
        let first = sorted(loopback.to_vec())[0];
        assert_eq!(first, loopback[usize::from(reachable)]);
    }
}
