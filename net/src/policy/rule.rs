//! One entry of `SCOUTER_TARGETS_ALLOW` or `SCOUTER_TARGETS_DENY`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::name::{ascii_name, canonical_name};

/// Of `::ffff:0:0/96`, the IPv4-mapped addresses (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;
/// From this prefix length on a block around them holds nothing else that is in use.
const AROUND_MAPPED: u8 = 80;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    Any,
    Net(IpNet),
    /// That very name.
    Name(String),
    /// `*.example.com`: every name below it.
    Below(String),
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("any") {
            return Ok(Self::Any);
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return block(net, text);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return block(address.into(), text);
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // `10.0.0.0/33` or `1.2.3` must not pass as a name that never matches.
        let ends_in_digits = |name: &str| {
            let last = name.trim_end_matches('.').rsplit('.').next();
            last.is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()))
        };
        match ascii_name(name).filter(|ascii| !ends_in_digits(ascii)) {
            Some(_) if below => Ok(Self::Below(canonical_name(name))),
            // `any.` is a name that would be shown as the word for everything.
            Some(_) if canonical_name(name) != "any" => Ok(Self::Name(canonical_name(name))),
            _ => Err(format!("'{text}' is neither an address, a CIDR block, a name, '*.name' nor 'any'")),
        }
    }
}

/// Addresses are compared in their canonical form: an IPv4-mapped one is IPv4, so a block of them is an IPv4 block.
fn block(net: IpNet, text: &str) -> Result<Rule, String> {
    let IpNet::V6(v6) = net else { return Ok(Rule::Net(net.trunc())) };
    if let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(MAPPED_PREFIX)
        && let Ok(v4) = Ipv4Net::new(v4, prefix)
    {
        return Ok(Rule::Net(v4.trunc().into()));
    }
    let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    let meant_as_mapped = v6.addr().to_ipv4_mapped().is_some() || v6.prefix_len() >= AROUND_MAPPED;
    if meant_as_mapped && holds_all_mapped(v6, mapped) {
        return Err(format!(
            "'{text}' holds the IPv4-mapped addresses, which are compared as IPv4, and others: write the IPv4 block \
             (0.0.0.0/0 is all of them), and the IPv6 block without '::ffff:'"
        ));
    }
    Ok(Rule::Net(v6.trunc().into()))
}

fn holds_all_mapped(net: Ipv6Net, mapped: Ipv6Addr) -> bool {
    net.prefix_len() < MAPPED_PREFIX && net.contains(&mapped)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Net(net) => net.fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

impl Rule {
    pub(super) fn covers_address(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Net(net) => net.contains(&address),
            Self::Name(_) | Self::Below(_) => false,
        }
    }

    /// `name` is canonical.
    pub(super) fn covers_name(&self, name: &str) -> bool {
        match self {
            Self::Any | Self::Net(_) => false,
            Self::Name(own) => own == name,
            Self::Below(parent) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        text.parse::<Rule>().map(|rule| rule.to_string())
    }

    #[test]
    fn a_rule_that_means_nothing_is_an_error() {
        for bad in [
            "",
            "10.0.0.0/33",
            "1.2.3",
            "exa mple",
            "*.",
            "http://x",
            "::/129",
            "a..b",
            "fe80::1%lo",
            "[::1]",
            "any.",
            "ａｎｙ",
        ] {
            let error = shown(bad).expect_err(bad);
            assert!(error.contains("is neither an address, a CIDR block"), "{error}");
        }
    }

    #[test]
    fn mapped_blocks_are_ipv4_blocks() {
        for (written, meant) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:a00:0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("::ffff:192.0.2.1/128", "192.0.2.1/32"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("2001:db8::1/32", "2001:db8::/32"),
            // All of IPv6, or a part that has other addresses in it: they mean what they say.
            ("::/0", "::/0"),
            ("::/3", "::/3"),
            ("::/8", "::/8"),
            ("::/96", "::/96"),
            ("::ffff:0:10.0.0.0/104", "::ffff:0:a00:0/104"),
            ("64:ff9b::10.0.0.0/104", "64:ff9b::a00:0/104"),
        ] {
            assert_eq!(shown(written).as_deref(), Ok(meant), "{written}");
        }
    }

    #[test]
    fn blocks_that_hold_mapped_addresses_and_others_are_refused() {
        for bad in ["::ffff:10.0.0.0/95", "::ffff:0:0/80", "::ffff:0:0/0", "::/80", "::8000:0:0/81", "::ffff:1.2.3.4/8"]
        {
            let error = shown(bad).expect_err(bad);
            assert!(error.contains("holds the IPv4-mapped addresses"), "{error}");
        }
    }

    #[test]
    fn names_are_canonical() {
        for (written, meant) in [
            ("Intranet.Example.", "intranet.example"),
            ("*.Lab.Example", "*.lab.example"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("ＥＶＩＬ.example", "evil.example"),
        ] {
            assert_eq!(shown(written).as_deref(), Ok(meant), "{written}");
        }
    }
}
