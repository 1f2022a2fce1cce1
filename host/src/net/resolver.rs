//! Names to addresses, by this host's own configuration, without a cache: a measurement that asks for a name
//! includes the asking.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::op::ResponseCode;

use super::Family;

/// A lookup ends after this, whatever the configuration says.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses handed over for one name.
const ADDRESSES: usize = 64;

pub struct Resolver {
    any: TokioResolver,
    v4: TokioResolver,
    v6: TokioResolver,
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
        let with = |strategy| -> anyhow::Result<TokioResolver> {
            let mut builder = TokioResolver::builder_tokio()?;
            let options = builder.options_mut();
            options.cache_size = 0;
            options.ip_strategy = strategy;
            options.timeout = Duration::from_secs(2);
            options.attempts = 1;
            // A truncated or failing UDP answer is asked again over TCP, as the C library does.
            options.try_tcp_on_error = true;
            // The source port is half of what protects an answer from forgery.
            options.os_port_selection = true;
            Ok(builder.build()?)
        };
        let nameservers = match hickory_resolver::system_conf::read_system_conf() {
            Ok((config, _)) => config.name_servers().iter().map(|server| server.ip).collect(),
            Err(_) => vec![],
        };
        Ok(Self {
            any: with(LookupIpStrategy::Ipv6AndIpv4)?,
            v4: with(LookupIpStrategy::Ipv4Only)?,
            v6: with(LookupIpStrategy::Ipv6Only)?,
            nameservers,
        })
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
        let resolver = match family {
            Family::Any => &self.any,
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let found = tokio::time::timeout(TIMEOUT, resolver.lookup_ip(ascii.as_str())).await;
        let addresses: Vec<IpAddr> = match found {
            Err(_) | Ok(Err(NetError::Timeout)) => return Err(LookupError::Timeout),
            Ok(Err(error)) => return Err(unresolved(&reason_of(&error))),
            Ok(Ok(found)) => found.iter().take(ADDRESSES).collect(),
        };
        if addresses.is_empty() { Err(unresolved("it has no address of the wanted family")) } else { Ok(addresses) }
    }
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
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
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
        for bad in ["", ".", "a..b", "a b", "a\0b", "a\nb", "💥..x", long_label.as_str(), long_name.as_str(), "http://x", "a/b", "a%b", "-\u{7f}"] {
            assert_eq!(ascii_name(bad), None, "{bad:?}");
        }
    }
}
