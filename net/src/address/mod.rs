//! Names to addresses, by this host's own configuration, without a cache: a measurement that asks for a name
//! includes the asking.
//!
//! hickory-resolver parses and searches the hosts file. The questions are asked by [`crate::dns`], because hickory's resolver
//! joins equal questions that are under way, so that one of two concurrent tests would report the other's answer and
//! time, and a resolver of its own for each lookup costs more CPU than the rest of a request (0.7 ms, measured under load).
//! Its completion of short names cannot be had without its resolver.

pub mod attempts;
pub mod dial;
mod order;
mod query;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};

use crate::FamilyFilter;
use crate::name::ascii_name;
use crate::policy::{Names, Permitted, Policy};
use crate::system::{ResolverConfig, System};
use query::{Answers, LookupFailure, NameServers};

/// A lookup ends after this, whatever the configuration says.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What of it all questions together may take: the rest is for saying which name server did not answer.
const QUESTIONS: Duration = Duration::from_millis(4500);
/// Names of addresses are an extra: no result waits for them longer than this.
const REVERSE_TIMEOUT: Duration = Duration::from_secs(1);
const CONCURRENT_REVERSE_LOOKUPS: usize = 256;
/// Addresses handed over for one name.
const MAX_ADDRESSES: usize = 64;

pub struct Resolver {
    system: Arc<System>,
    policy: Policy,
    /// Counts lookups: where `rotate` begins.
    rotation: AtomicUsize,
}

/// The result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// In the order in which they are to be tried (RFC 6724).
    pub addresses: Vec<IpAddr>,
    /// Under which names. None of a literal address.
    pub names: Names,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("Unable to resolve '{name}': {reason}.")]
    Unresolved { name: String, reason: String },
    #[error("the name lookup took longer than {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl Resolver {
    #[must_use]
    pub fn new(system: Arc<System>, policy: Policy) -> Self {
        Self { system, policy, rotation: AtomicUsize::default() }
    }

    /// The name servers of `/etc/resolv.conf`, in order.
    #[must_use]
    pub fn nameservers(&self) -> Vec<IpAddr> {
        self.policy.name_servers().into_iter().map(Permitted::address).collect()
    }

    /// Those to ask, in the order of this lookup, within `budget` altogether.
    fn name_servers(&self, config: &ResolverConfig, budget: Duration) -> NameServers {
        let mut servers = self.policy.name_servers();
        if config.rotate && !servers.is_empty() {
            let first = self.rotation.fetch_add(1, Ordering::Relaxed) % servers.len();
            servers.rotate_left(first);
        }
        NameServers::new(servers, config, budget)
    }

    /// The addresses of a name; a literal address (IPv6 also in brackets) is given back. An IPv4-mapped address is the
    /// IPv4 one: that is what is reached.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn lookup(&self, name: &str, family: FamilyFilter) -> Result<Resolved, LookupError> {
        let unresolved = |reason: &str| {
            let shown: String = name.chars().take(255).collect();
            LookupError::Unresolved { name: shown.escape_debug().to_string(), reason: reason.into() }
        };
        let literal = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        if let Ok(address) = literal.parse::<IpAddr>() {
            let address = address.to_canonical();
            let fits = fits(address, family);
            let wanted = if family == FamilyFilter::V4 { "an IPv4 address" } else { "an IPv6 address" };
            let found = Resolved { addresses: vec![address], names: Names::default() };
            return if fits { Ok(found) } else { Err(unresolved(&format!("it is not {wanted}"))) };
        }
        let ascii = ascii_name(name).ok_or_else(|| unresolved("it is not a valid name"))?;
        match tokio::time::timeout(TIMEOUT, self.search(&ascii, family)).await {
            Err(_) => Err(LookupError::Timeout),
            Ok(Err(failure)) => Err(unresolved(&failure.to_string())),
            Ok(Ok((looked_up, answers))) => {
                let addresses = canonical(answers.addresses, family);
                if addresses.is_empty() {
                    return Err(unresolved(&LookupFailure::NoAddress.to_string()));
                }
                let names = Names::new(name, &looked_up, &answers.aliases);
                Ok(Resolved { addresses: order::sorted(addresses), names })
            }
        }
    }

    /// The names of addresses, looked up concurrently: from the hosts file, else from the name servers in turn, within
    /// a second in all.
    pub async fn reverse(&self, addresses: &[IpAddr]) -> Vec<Option<String>> {
        let deadline = tokio::time::Instant::now() + REVERSE_TIMEOUT;
        let lookup =
            |address: IpAddr| async move { tokio::time::timeout_at(deadline, self.name_of(address)).await.ok()? };
        futures_util::stream::iter(addresses.iter().copied().map(lookup))
            .buffered(CONCURRENT_REVERSE_LOOKUPS)
            .collect()
            .await
    }

    async fn name_of(&self, address: IpAddr) -> Option<String> {
        let reversed = Name::from(address);
        let in_hosts_file = self.system.hosts().lookup_static_host(&Query::query(reversed.clone(), RecordType::PTR));
        let records = in_hosts_file.iter().flat_map(hickory_resolver::lookup::Lookup::answers);
        let named = records.filter(|r| r.record_type() == RecordType::PTR).map(|r| r.data.to_string()).next();
        let name = if let Some(name) = named {
            name
        } else {
            let servers = self.name_servers(&self.system.resolver_config(), REVERSE_TIMEOUT);
            servers.name_of(&reversed.to_ascii()).await?
        };
        Some(name.trim_end_matches('.').to_owned())
    }

    /// The hosts file, then the name and what the search list makes of it, in the order of resolv.conf(5). The name that
    /// there is, and what is known of it.
    async fn search(&self, name: &str, family: FamilyFilter) -> Result<(String, Answers), LookupFailure> {
        let addresses = self.hosts(name, family);
        if !addresses.is_empty() {
            return Ok((name.to_owned(), Answers { addresses, aliases: vec![] }));
        }
        let config = self.system.resolver_config();
        let servers = self.name_servers(&config, QUESTIONS);
        let mut first_failure = None;
        for candidate in candidates(name, &config) {
            match servers.addresses_of(&candidate, family).await {
                Ok(answers) => return Ok((candidate, answers)),
                // Who does not answer this one does not answer the next one either.
                Err(failure @ LookupFailure::NoAnswer { .. }) => return Err(first_failure.unwrap_or(failure)),
                // The first failure is that of the name as it was most likely meant.
                Err(failure) => first_failure = first_failure.or(Some(failure)),
            }
        }
        Err(first_failure.unwrap_or(LookupFailure::NoNameServer))
    }

    fn hosts(&self, name: &str, family: FamilyFilter) -> Vec<IpAddr> {
        let Ok(name) = Name::from_ascii(name) else { return vec![] };
        let hosts = self.system.hosts();
        let mut addresses = vec![];
        for (rtype, wanted) in
            [(RecordType::AAAA, family != FamilyFilter::V4), (RecordType::A, family != FamilyFilter::V6)]
        {
            let found = hosts.lookup_static_host(&Query::query(name.clone(), rtype)).filter(|_| wanted);
            let records = found.iter().flat_map(hickory_resolver::lookup::Lookup::answers);
            addresses.extend(records.filter_map(|record| record.data.ip_addr()));
        }
        addresses
    }
}

fn fits(address: IpAddr, family: FamilyFilter) -> bool {
    match family {
        FamilyFilter::Any => true,
        FamilyFilter::V4 => address.is_ipv4(),
        FamilyFilter::V6 => address.is_ipv6(),
    }
}

/// Each address once, IPv4-mapped ones as IPv4, of the wanted family.
fn canonical(addresses: Vec<IpAddr>, family: FamilyFilter) -> Vec<IpAddr> {
    let mut kept: Vec<IpAddr> = vec![];
    for address in addresses.into_iter().map(|address| address.to_canonical()) {
        if fits(address, family) && kept.len() < MAX_ADDRESSES && !kept.contains(&address) {
            kept.push(address);
        }
    }
    kept
}

/// Complete names to look up, the likeliest first.
fn candidates(name: &str, config: &ResolverConfig) -> Vec<String> {
    let bare = name.trim_end_matches('.');
    let mut candidates = vec![];
    if name == bare {
        candidates.extend(config.search.iter().map(|domain| format!("{bare}.{domain}")));
    }
    let absolute = format!("{bare}.");
    if bare.matches('.').count() >= config.ndots {
        candidates.insert(0, absolute);
    } else {
        candidates.push(absolute);
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_what_they_map_to() {
        let of = |family| {
            let addresses = ["::ffff:192.0.2.1", "2001:db8::1", "192.0.2.1"].map(|a| a.parse().expect("an address"));
            canonical(addresses.to_vec(), family).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(FamilyFilter::Any), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(of(FamilyFilter::V4), ["192.0.2.1"]);
        assert_eq!(of(FamilyFilter::V6), ["2001:db8::1"]);
    }

    #[test]
    fn short_names_are_completed_as_resolv_conf_says() {
        let config = ResolverConfig::parse(b"search a.test b.test\noptions ndots:2\n");
        let of = |name| candidates(name, &config);
        assert_eq!(of("www"), ["www.a.test.", "www.b.test.", "www."]);
        assert_eq!(of("www.x"), ["www.x.a.test.", "www.x.b.test.", "www.x."]);
        assert_eq!(of("www.x.y"), ["www.x.y.", "www.x.y.a.test.", "www.x.y.b.test."]);
        assert_eq!(of("www."), ["www."]);
    }
}
