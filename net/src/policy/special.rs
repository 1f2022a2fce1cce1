//! Addresses that are closed unless the operator opens them, and the addresses that others lead to. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is closed by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Follows "it is".
    pub reason: &'static str,
    /// Does a rule for a name open it? It does for private networks, which is what such a rule is for. It does not for
    /// what is reached without a network: the owner of the name's zone would choose what it opens.
    pub opened_by_name: bool,
}

const fn network(reason: &'static str) -> Closed {
    Closed { reason, opened_by_name: true }
}

const fn host(reason: &'static str) -> Closed {
    Closed { reason, opened_by_name: false }
}

/// An address of an interface of this host: the way around the firewall in front of it.
pub const OWN: Closed = host("an address of this host");
const METADATA: Closed = host("a cloud's metadata address");

/// Instance metadata outside link-local addresses: credentials for any client.
const METADATA_V4: [Ipv4Addr; 3] = [
    // Alibaba Cloud, Azure, Oracle Cloud
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// The address, and the IPv4 addresses that it leads to when it carries some (RFC 6052, RFC 3056, RFC 4380).
pub fn forms(address: IpAddr) -> Vec<IpAddr> {
    let mut forms = vec![address];
    if let IpAddr::V6(v6) = address {
        let s = v6.segments();
        let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
        match s {
            // NAT64, IPv4-compatible, IPv4-translated (RFC 2765)
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0 | 0xffff, 0, high, low] if !v6.is_loopback() => {
                forms.push(v4(high, low));
            }
            // Local NAT64 (RFC 8215): which of the prefix lengths of RFC 6052 is in use only the translator knows.
            [0x64, 0xff9b, 1, ..] => {
                let o = v6.octets();
                for [a, b, c, d] in [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]] {
                    forms.push(Ipv4Addr::new(o[a], o[b], o[c], o[d]).into());
                }
            }
            [0x2002, high, low, ..] => forms.push(v4(high, low)),
            // Teredo: the server's address in clear, the client's with every bit inverted.
            [0x2001, 0, server_high, server_low, _, _, high, low] => {
                forms.push(v4(server_high, server_low));
                forms.push(v4(!high, !low));
            }
            _ => {}
        }
    }
    forms
}

/// What the IANA special-purpose registries (RFC 6890, as of 2026) and clouds say of an address; None when it is
/// globally reachable.
pub fn closed(address: IpAddr) -> Option<Closed> {
    match address {
        IpAddr::V4(v4) => closed_v4(v4),
        IpAddr::V6(v6) => closed_v6(v6),
    }
}

fn closed_v4(a: Ipv4Addr) -> Option<Closed> {
    if METADATA_V4.contains(&a) {
        return Some(METADATA);
    }
    Some(match a.octets() {
        [0, ..] => host("an address of \"this network\" (RFC 791)"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => network("a private address (RFC 1918)"),
        [100, 64..=127, ..] => network("shared address space (RFC 6598)"),
        [127, ..] => host("a loopback address"),
        [169, 254, ..] => host("a link-local address (RFC 3927)"),
        // Port Control Protocol and TURN anycast are the two reachable ones of the block.
        [192, 0, 0, 9 | 10] => return None,
        [192, 0, 0, _] => network("an address for IETF protocol assignments (RFC 6890)"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => network("a documentation address (RFC 5737)"),
        [192, 88, 99, _] => network("a 6to4 relay anycast address (RFC 7526)"),
        [198, 18 | 19, ..] => network("a benchmarking address (RFC 2544)"),
        [224..=239, ..] => host("a multicast address"),
        [255, 255, 255, 255] => host("the broadcast address"),
        [240..=255, ..] => network("a reserved address (RFC 1112)"),
        _ => return None,
    })
}

#[expect(clippy::match_same_arms, reason = "a more special range stands before the range that holds it")]
fn closed_v6(a: Ipv6Addr) -> Option<Closed> {
    Some(match a.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => host("the unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => host("a loopback address"),
        [0, 0, 0, 0, 0, 0, ..] => network("an IPv4-compatible address (RFC 4291)"),
        // NAT64: the IPv4 address inside decides.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => return None,
        [0x64, 0xff9b, 1, ..] => network("a local NAT64 address (RFC 8215)"),
        [0x100, 0, 0, 0 | 1, ..] => network("a discard-only address (RFC 6666)"),
        // Teredo and 6to4: the addresses inside decide.
        [0x2001, 0, ..] | [0x2002, ..] => return None,
        [0x2001, 1, 0, 0, 0, 0, 0, 1..=3] | [0x2001, 3, ..] | [0x2001, 4, 0x112, ..] => return None,
        [0x2001, 2, 0, ..] => network("a benchmarking address (RFC 5180)"),
        [0x2001, 0x20..=0x3f, ..] => return None,
        [0x2001, 0..=0x1ff, ..] => network("an address for IETF protocol assignments (RFC 2928)"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => network("a documentation address (RFC 3849, RFC 9637)"),
        [0x5f00, ..] => network("a segment routing address (RFC 9602)"),
        // Amazon, Google, Scaleway, Oracle
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, _]
        | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
        | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42]
        | [0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe] => METADATA,
        [0xfc00..=0xfdff, ..] => network("a unique local address (RFC 4193)"),
        [0xfe80..=0xfebf, ..] => host("a link-local address (RFC 4291)"),
        [0xfec0..=0xfeff, ..] => network("a site-local address (RFC 3879)"),
        [0xff00..=0xffff, ..] => host("a multicast address"),
        [0x2000..=0x3fff, ..] => return None,
        _ => network("not in the range that is allocated for global use (RFC 4291)"),
    })
}
