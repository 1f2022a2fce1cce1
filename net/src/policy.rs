//! Which addresses may be reached. Asked by every import, decided here, about the address that is about to be used.
//!
//! `Policy::permit` is the only maker of `Permitted`, and the engines under `net/` take nothing else:
//! code that forgets to ask does not compile.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;

/// DNS over UDP and TCP; over TLS and QUIC.
const DNS_PORTS: [u16; 2] = [53, 853];

/// An address that the policy was asked about, in its canonical form (an IPv4-mapped one is IPv4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permitted(IpAddr);

impl Permitted {
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.0
    }
}

/// The refusal: which address, and why. Its text is for the person who wrote the test.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Target '{target}' is not allowed: {reason}.")]
pub struct Denied {
    pub target: String,
    pub reason: String,
}

/// What the operator opened and closed, on top of the rule that only globally reachable addresses may be probed.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    nameservers: Vec<IpAddr>,
    /// How often it has said no, over all clones.
    refusals: Arc<AtomicU64>,
}

/// One entry of `SCOUTER_TARGETS_ALLOW` or `SCOUTER_TARGETS_DENY`.
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
            return Ok(Self::Net(net.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.into()));
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let name = canonical_name(name);
        let looks_like_a_name = name.len() <= 253
            && name.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            });
        // `10.0.0.0/33` or `1.2.3` must not pass as a name that never matches.
        let ends_in_digits = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
        if !looks_like_a_name || ends_in_digits {
            return Err(format!("'{text}' is neither an address, a CIDR block, a name, '*.name' nor 'any'"));
        }
        Ok(if below { Self::Below(name) } else { Self::Name(name) })
    }
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
    fn covers_address(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Net(net) => net.contains(&address),
            Self::Name(_) | Self::Below(_) => false,
        }
    }

    fn covers_name(&self, name: &str) -> bool {
        match self {
            Self::Any | Self::Net(_) => false,
            Self::Name(own) => own == name,
            Self::Below(parent) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }
}

impl Policy {
    #[must_use]
    pub fn new(allow: Vec<Rule>, deny: Vec<Rule>, nameservers: Vec<IpAddr>) -> Self {
        Self { allow, deny, nameservers, refusals: Arc::default() }
    }

    /// May this address be reached, as an address of `name` when it was looked up under one?
    ///
    /// # Errors
    /// [`Denied`], with the rule that refuses it.
    pub fn permit(&self, address: IpAddr, name: Option<&str>) -> Result<Permitted, Denied> {
        let name = name.map(canonical_name);
        let address = address.to_canonical();
        let denied = |reason: String| {
            let target = match &name {
                Some(name) => format!("{name} ({address})"),
                None => address.to_string(),
            };
            self.refusals.fetch_add(1, Ordering::Relaxed);
            Err(Denied { target, reason })
        };
        let forms = with_embedded(address);
        for form in &forms {
            if let Some(rule) = self.deny.iter().find(|rule| rule.covers_address(*form)) {
                return denied(format!("the operator denies {rule}"));
            }
        }
        if let Some(name) = &name {
            if let Some(rule) = self.deny.iter().find(|rule| rule.covers_name(name)) {
                return denied(format!("the operator denies {rule}"));
            }
            if self.allow.iter().any(|rule| rule.covers_name(name)) {
                return Ok(Permitted(address));
            }
        }
        if self.allow.iter().any(|rule| rule.covers_address(address)) {
            return Ok(Permitted(address));
        }
        // An address that carries an IPv4 one reaches that one: both must be open.
        for form in &forms {
            let opened = self.allow.iter().any(|rule| rule.covers_address(*form));
            if let (false, Some(kind)) = (opened, not_global(*form)) {
                return denied(if *form == address {
                    format!("it is {kind}")
                } else {
                    format!("it leads to {form}, which is {kind}")
                });
            }
        }
        Ok(Permitted(address))
    }

    /// As [`permit`](Self::permit), for a DNS question: this host's own name servers may always be asked, on the ports
    /// of DNS. On another port something else may listen, and a name server is often on loopback.
    ///
    /// # Errors
    /// [`Denied`], with the rule that refuses it.
    pub fn permit_question(&self, server: IpAddr, port: u16, name: Option<&str>) -> Result<Permitted, Denied> {
        let server = server.to_canonical();
        if DNS_PORTS.contains(&port) && self.nameservers.contains(&server) {
            return Ok(Permitted(server));
        }
        self.permit(server, name)
    }

    /// Addresses refused since the start.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// The rules in words, for the start-up lines.
    #[must_use]
    pub fn summary(&self) -> String {
        let list = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut text = String::from("globally reachable addresses");
        if !self.allow.is_empty() {
            text = format!("{text}, and {}", list(&self.allow));
        }
        if !self.deny.is_empty() {
            text = format!("{text}; never {}", list(&self.deny));
        }
        text
    }
}

fn canonical_name(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The address, and the IPv4 address that it leads to when it carries one (RFC 6052, RFC 3056, RFC 4380).
fn with_embedded(address: IpAddr) -> Vec<IpAddr> {
    let mut forms = vec![address];
    if let IpAddr::V6(v6) = address {
        let s = v6.segments();
        let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
        match s {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] if !v6.is_loopback() => {
                forms.push(v4(high, low));
            }
            [0x2002, high, low, ..] => forms.push(v4(high, low)),
            // Teredo: the server's address in clear, the client's with every bit turned.
            [0x2001, 0, server_high, server_low, _, _, high, low] => {
                forms.push(v4(server_high, server_low));
                forms.push(v4(!high, !low));
            }
            _ => {}
        }
    }
    forms
}

/// Why an address is not globally reachable: the IANA special-purpose registries (RFC 6890), as of 2026.
fn not_global(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(a: Ipv4Addr) -> Option<&'static str> {
    let [b0, b1, b2, b3] = a.octets();
    Some(match (b0, b1, b2, b3) {
        (0, ..) => "an address of \"this network\" (RFC 791)",
        (10, ..) | (172, 16..=31, ..) | (192, 168, ..) => "a private address (RFC 1918)",
        (100, 64..=127, ..) => "shared address space (RFC 6598)",
        (127, ..) => "a loopback address",
        (169, 254, ..) => "a link-local address (RFC 3927)",
        // Port Control Protocol and TURN anycast are the two reachable ones of the block.
        (192, 0, 0, 9 | 10) => return None,
        (192, 0, 0, _) => "an address for IETF protocol assignments (RFC 6890)",
        (192, 0, 2, _) | (198, 51, 100, _) | (203, 0, 113, _) => "a documentation address (RFC 5737)",
        (192, 88, 99, _) => "a 6to4 relay anycast address (RFC 7526)",
        (198, 18 | 19, ..) => "a benchmarking address (RFC 2544)",
        (224..=239, ..) => "a multicast address",
        (255, 255, 255, 255) => "the broadcast address",
        (240..=255, ..) => "a reserved address (RFC 1112)",
        _ => return None,
    })
}

#[expect(clippy::match_same_arms, reason = "a more special range stands before the range that holds it")]
fn special_v6(a: Ipv6Addr) -> Option<&'static str> {
    let s = a.segments();
    Some(match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => "the unspecified address",
        [0, 0, 0, 0, 0, 0, 0, 1] => "a loopback address",
        [0, 0, 0, 0, 0, 0, ..] => "an IPv4-compatible address (RFC 4291)",
        // NAT64: judged by the IPv4 address inside.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => return None,
        [0x64, 0xff9b, 1, ..] => "a local NAT64 address (RFC 8215)",
        [0x100, 0, 0, 0 | 1, ..] => "a discard-only address (RFC 6666)",
        // Teredo and 6to4: judged by the addresses inside.
        [0x2001, 0, ..] | [0x2002, ..] => return None,
        [0x2001, 1, 0, 0, 0, 0, 0, 1..=3] | [0x2001, 3, ..] | [0x2001, 4, 0x112, ..] => return None,
        [0x2001, 2, 0, ..] => "a benchmarking address (RFC 5180)",
        [0x2001, 0x20..=0x3f, ..] => return None,
        [0x2001, 0..=0x1ff, ..] => "an address for IETF protocol assignments (RFC 2928)",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "a documentation address (RFC 3849, RFC 9637)",
        [0x5f00, ..] => "a segment routing address (RFC 9602)",
        [0xfc00..=0xfdff, ..] => "a unique local address (RFC 4193)",
        [0xfe80..=0xfebf, ..] => "a link-local address (RFC 4291)",
        [0xfec0..=0xfeff, ..] => "a site-local address (RFC 3879)",
        [0xff00..=0xffff, ..] => "a multicast address",
        [0x2000..=0x3fff, ..] => return None,
        _ => "not in the range that is allocated for global use (RFC 4291)",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &str, deny: &str) -> Policy {
        let rules = |text: &str| {
            text.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().expect("a rule")).collect::<Vec<Rule>>()
        };
        Policy::new(rules(allow), rules(deny), vec!["192.0.2.53".parse().expect("address")])
    }

    fn permits(policy: &Policy, address: &str, name: Option<&str>) -> bool {
        policy.permit(address.parse().expect("an address"), name).is_ok()
    }

    #[test]
    fn only_globally_reachable_addresses_are_open_by_default() {
        let closed = "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.169.254 \
            172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 \
            198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 \
            ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::10.1.1.1 \
            64:ff9b:1::1 64:ff9b:1::8.8.8.8 100::1 100:0:0:1::1 2001::1 2001:2::1 2001:10::1 2001:db8::1 \
            2002:7f00:1:: 2002:a00:1::1 2002:c0a8:101::1 \
            2001:0:808:808:0:0:80ff:fffe 2001:0:7f00:1:0:0:f7f7:f7f7 3fff::1 3fff:fff::1 5f00::1 fc00::1 fd00:ec2::254 \
            fe80::1 febf::1 fec0::1 feff::1 ff02::1 ff0e::1 4000::1 1::1 8000::1 ::ffff:0:127.0.0.1";
        for address in closed.split_whitespace() {
            assert!(!permits(&policy("", ""), address, None), "{address} must be refused");
        }
        let open = "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 192.0.0.9 198.17.0.1 198.20.0.1 \
            223.255.255.255 2600::1 2a00:1450::1 2001:4860:4860::8888 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1 \
            2001:20::1 3ffe::1";
        for address in open.split_whitespace() {
            assert!(permits(&policy("", ""), address, None), "{address} must be allowed");
        }
    }

    #[test]
    fn deny_wins_over_allow_in_every_form_of_an_address() {
        let policy = policy("10.0.0.0/8,any", "10.9.0.0/16");
        assert!(permits(&policy, "10.1.0.1", None));
        for denied in ["10.9.0.1", "::ffff:10.9.0.1", "64:ff9b::10.9.0.1", "2002:a09:1::1"] {
            assert!(!permits(&policy, denied, None), "{denied}");
        }
    }

    #[test]
    fn an_allowed_block_opens_the_forms_that_lead_into_it() {
        let policy = policy("10.0.0.0/8", "");
        assert!(permits(&policy, "::ffff:10.0.0.1", None));
        assert!(permits(&policy, "64:ff9b::10.0.0.1", None));
        assert!(!permits(&policy, "64:ff9b::127.0.0.1", None));
        assert!(!permits(&policy, "192.168.0.1", None));
    }

    #[test]
    fn names_open_and_close_the_addresses_found_under_them() {
        let policy = policy("intranet.example,*.lab.example", "bad.lab.example");
        assert!(permits(&policy, "10.0.0.1", Some("Intranet.Example.")));
        assert!(!permits(&policy, "10.0.0.1", None));
        assert!(!permits(&policy, "10.0.0.1", Some("x.intranet.example")));
        assert!(permits(&policy, "10.0.0.1", Some("a.b.lab.example")));
        assert!(!permits(&policy, "10.0.0.1", Some("lab.example")));
        assert!(!permits(&policy, "10.0.0.1", Some("evillab.example")));
        assert!(!permits(&policy, "8.8.8.8", Some("bad.lab.example")));
    }

    #[test]
    fn own_name_servers_may_be_asked_but_not_probed() {
        let policy = policy("", "");
        let server = "192.0.2.53".parse().expect("address");
        assert!(policy.permit_question(server, 53, None).is_ok() && policy.permit_question(server, 853, None).is_ok());
        assert!(policy.permit_question(server, 8000, None).is_err(), "something else may listen there");
        assert!(policy.permit(server, None).is_err());
    }

    #[test]
    fn a_rule_that_means_nothing_is_an_error() {
        for bad in ["", "10.0.0.0/33", "1.2.3", "exa mple", "*.", "http://x", "::/129", "a..b"] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }
}
