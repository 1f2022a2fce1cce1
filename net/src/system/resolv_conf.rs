//! `/etc/resolv.conf`, as resolv.conf(5) has it.

use std::net::IpAddr;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use resolv_conf::{Config, ScopedIp};

use crate::name::ascii_name;

/// glibc takes no greater values, and some files hold absurd ones.
const MAX_ATTEMPTS: u32 = 5;
const MAX_TIMEOUT: u32 = 30;
const MAX_NDOTS: u32 = 15;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServer {
    pub address: IpAddr,
    /// The interface of a link-local address: its name or index (RFC 4007, section 11).
    zone: Option<String>,
}

impl NameServer {
    /// The index of the interface; 0 when the address has no zone, or there is no such interface now.
    #[must_use]
    pub fn scope_id(&self) -> u32 {
        let Some(zone) = &self.zone else { return 0 };
        zone.parse().ok().or_else(|| if_nametoindex(zone.as_str()).ok()).unwrap_or(0)
    }
}

impl From<&ScopedIp> for NameServer {
    fn from(server: &ScopedIp) -> Self {
        let zone = match server {
            ScopedIp::V6(_, zone) => zone.clone(),
            ScopedIp::V4(_) => None,
        };
        Self { address: server.into(), zone }
    }
}

/// What [`Default`] gives has no name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the options of the file")]
pub struct ResolverConfig {
    pub name_servers: Vec<NameServer>,
    /// Domains that complete short names, each with a dot at its end.
    pub search: Vec<String>,
    /// Names with fewer dots are completed before they are looked up as they are.
    pub ndots: usize,
    /// How often each name server is asked.
    pub attempts: usize,
    /// For one answer of one name server.
    pub timeout: Duration,
    /// Each lookup begins with another name server.
    pub rotate: bool,
    /// `use-vc`: TCP from the start.
    pub tcp: bool,
    /// No questions for IPv6 addresses unless only these are wanted.
    pub no_aaaa: bool,
    /// The file is not read again.
    pub no_reload: bool,
}

impl ResolverConfig {
    /// Invalid lines are logged and ignored.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let (config, errors) = Config::parse_with_errors(text);
        for error in errors {
            tracing::warn!(%error, "/etc/resolv.conf");
        }
        if config.nameservers.is_empty() {
            tracing::warn!("names cannot be looked up: /etc/resolv.conf has no name server");
        }
        let search = config.get_last_search_or_domain().filter_map(|domain| ascii_name(domain));
        let limit = |value: u32, most| usize::try_from(value.min(most)).unwrap_or(usize::MAX);
        Self {
            name_servers: config.nameservers.iter().map(NameServer::from).collect(),
            search: search.map(|domain| format!("{}.", domain.trim_end_matches('.'))).collect(),
            ndots: limit(config.ndots, MAX_NDOTS),
            attempts: limit(config.attempts.max(1), MAX_ATTEMPTS),
            timeout: Duration::from_secs(config.timeout.clamp(1, MAX_TIMEOUT).into()),
            rotate: config.rotate,
            tcp: config.use_vc,
            no_aaaa: config.no_aaaa,
            no_reload: config.no_reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_followed_is_read() {
        let config = ResolverConfig::parse(
            b"# made by hand\nnameserver 192.0.2.1\nnameserver fe80::1%lo\nnameserver fe80::2%7\nnonsense\n\
              search a.example b.example. -- .\noptions ndots:2 timeout:3 attempts:4 rotate use-vc no-aaaa no-reload\n",
        );
        let servers: Vec<_> = config.name_servers.iter().map(|s| (s.address.to_string(), s.scope_id())).collect();
        assert_eq!(servers, [("192.0.2.1".into(), 0), ("fe80::1".into(), 1), ("fe80::2".into(), 7)]);
        assert_eq!(config.search, ["a.example.", "b.example.", "--."]);
        assert_eq!((config.ndots, config.attempts, config.timeout), (2, 4, Duration::from_secs(3)));
        assert!(config.rotate && config.tcp && config.no_aaaa && config.no_reload);
    }

    #[test]
    fn defaults_and_limits_are_those_of_glibc() {
        let config = ResolverConfig::parse(b"domain one.example\n");
        assert_eq!(config.search, ["one.example."]);
        assert_eq!((config.ndots, config.attempts, config.timeout), (1, 2, Duration::from_secs(5)));
        let config = ResolverConfig::parse(b"options attempts:0 timeout:0 ndots:99\n");
        assert_eq!((config.ndots, config.attempts, config.timeout), (15, 1, Duration::from_secs(1)));
        let config = ResolverConfig::parse(b"options attempts:4294967295 timeout:4294967295\n");
        assert_eq!((config.attempts, config.timeout), (5, Duration::from_secs(30)));
    }
}
