//! Names to addresses, by this host's own configuration, without a cache: a measurement that asks for a name
//! includes the asking.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::{Hosts, TokioResolver};

use super::Family;

/// A lookup ends after this, whatever the configuration says.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses handed over for one name.
const ADDRESSES: usize = 64;

pub struct Resolver {
    config: ResolverConfig,
    options: ResolverOpts,
    hosts: Arc<Hosts>,
    nameservers: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("Unable to resolve '{name}': {reason}.")]
    Unresolved { name: String, reason: String },
    #[error("the name lookup took longer than {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl Resolver {
    /// Reads `/etc/resolv.conf` and `/etc/hosts`.
    ///
    /// # Errors
    /// When they cannot be understood.
    pub fn open() -> anyhow::Result<Self> {
        // A host without the file resolves what /etc/hosts has and nothing else; it still probes addresses.
        let (config, mut options) = hickory_resolver::system_conf::read_system_conf().unwrap_or_default();
        options.cache_size = 0;
        options.timeout = Duration::from_secs(2);
        options.attempts = 1;
        // A truncated or failing UDP answer is asked again over TCP, as the C library does.
        options.try_tcp_on_error = true;
        // The source port is half of what protects an answer from forgery.
        options.os_port_selection = true;
        options.use_hosts_file = ResolveHosts::Never;
        let nameservers = config.name_servers().iter().map(|server| server.ip).collect();
        Ok(Self { config, options, hosts: Arc::new(Hosts::from_system().unwrap_or_default()), nameservers })
    }

    /// One for each lookup: a shared one would give two tests that ask for one name at once one answer (hickory joins
    /// equal questions under way), and one test's measurement would be the other's.
    fn resolver(&self, family: Family) -> Result<TokioResolver, NetError> {
        let mut builder = TokioResolver::builder_with_config(self.config.clone(), TokioRuntimeProvider::default());
        *builder.options_mut() = self.options.clone();
        builder.options_mut().ip_strategy = match family {
            Family::Any => LookupIpStrategy::Ipv6AndIpv4,
            Family::V4 => LookupIpStrategy::Ipv4Only,
            Family::V6 => LookupIpStrategy::Ipv6Only,
        };
        let mut resolver = builder.build()?;
        resolver.set_hosts(Arc::clone(&self.hosts));
        Ok(resolver)
    }

    /// The name servers of `/etc/resolv.conf`, in order.
    #[must_use]
    pub fn nameservers(&self) -> &[IpAddr] {
        &self.nameservers
    }

    /// The addresses of a name; a literal address (IPv6 also in brackets) is given back as it is.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn lookup(&self, name: &str, family: Family) -> Result<Vec<IpAddr>, LookupError> {
        let unresolved = |reason: &str| {
            let shown: String = name.chars().take(255).collect();
            LookupError::Unresolved { name: shown.escape_debug().to_string(), reason: reason.into() }
        };
        let literal = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        if let Ok(address) = literal.parse::<IpAddr>() {
            let fits = match family {
                Family::Any => true,
                Family::V4 => address.is_ipv4(),
                Family::V6 => address.is_ipv6(),
            };
            let wanted = if family == Family::V4 { "an IPv4 address" } else { "an IPv6 address" };
            return if fits { Ok(vec![address]) } else { Err(unresolved(&format!("it is not {wanted}"))) };
        }
        let ascii = ascii_name(name).ok_or_else(|| unresolved("it is not a valid name"))?;
        let resolver = self.resolver(family).map_err(|error| unresolved(&error.to_string()))?;
        let found = tokio::time::timeout(TIMEOUT, resolver.lookup_ip(ascii.as_str())).await;
        let addresses: Vec<IpAddr> = match found {
            Err(_) | Ok(Err(NetError::Timeout)) => return Err(LookupError::Timeout),
            Ok(Err(error)) => return Err(unresolved(&reason_of(&error))),
            Ok(Ok(found)) => found.iter().take(ADDRESSES).collect(),
        };
        if addresses.is_empty() {
            return Err(unresolved("it has no address of the wanted family"));
        }
        Ok(in_order(addresses))
    }
}

/// IPv6 first, unless this host has no route to it (RFC 6724, rule 1: avoid unusable destinations).
fn in_order(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut v6, mut v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    match v6.first() {
        Some(first) if !v4.is_empty() && !has_route(*first) => {
            v4.extend(v6);
            v4
        }
        _ => {
            v6.extend(v4);
            v6
        }
    }
}

/// Connecting a UDP socket asks the routing table and sends nothing.
fn has_route(address: IpAddr) -> bool {
    let any: SocketAddr =
        if address.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    UdpSocket::bind(any).and_then(|socket| socket.connect((address, 9))).is_ok()
}

fn reason_of(error: &NetError) -> String {
    if error.is_nx_domain() {
        return "the name does not exist (NXDOMAIN)".into();
    }
    if error.is_no_records_found() {
        return "the name has no address".into();
    }
    match error {
        NetError::Dns(hickory_resolver::net::DnsError::ResponseCode(code)) if *code != ResponseCode::NoError => {
            format!("the name server answered {code}")
        }
        other => other.to_string(),
    }
}

/// The name as it goes on the wire: internationalised labels encoded (UTS 46), lengths checked (RFC 1035 2.3.4).
#[must_use]
pub fn ascii_name(name: &str) -> Option<String> {
    let ascii = if name.is_ascii() { name.to_owned() } else { idna_to_ascii(name)? };
    let bare = ascii.strip_suffix('.').unwrap_or(&ascii);
    let valid = !bare.is_empty()
        && bare.len() <= 253
        && bare.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    valid.then_some(ascii)
}

/// UTS 46, without a deny list: which ASCII characters a name may hold is the caller's business.
#[must_use]
pub fn idna_to_ascii(name: &str) -> Option<String> {
    idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::EMPTY).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_and_their_lengths_checked() {
        assert_eq!(ascii_name("example.com."), Some("example.com.".into()));
        assert_eq!(ascii_name("_dmarc.example.com"), Some("_dmarc.example.com".into()));
        assert_eq!(ascii_name("bücher.example"), Some("xn--bcher-kva.example".into()));
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = ["a".repeat(60).as_str(); 5].join(".");
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a\0b",
            "a\nb",
            "💥..x",
            long_label.as_str(),
            long_name.as_str(),
            "http://x",
            "a/b",
            "a%b",
            "-\u{7f}",
        ] {
            assert_eq!(ascii_name(bad), None, "{bad:?}");
        }
    }
}
