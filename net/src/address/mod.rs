//! Names to addresses, by this host's own configuration, without a cache: a measurement that asks for a name
//! includes the asking.
//!
//! hickory-resolver reads the configuration and the hosts file. The asking is done by [`crate::dns`]: hickory's resolver
//! joins equal questions that are under way, so that of two tests at once one would be shown the other's answer and
//! time, and a resolver of its own for each lookup costs more CPU than the rest of a request (0.7 ms, measured under load).

pub mod dial;

use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use hickory_resolver::Hosts;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};

use crate::Family;
use crate::dns::name::ascii_name;
use crate::dns::{self, AskError, Question, Request, Transport};
use crate::packet::route::has_route;
use crate::policy::{Permitted, Policy};

/// A lookup ends after this, whatever the configuration says.
const TIMEOUT: Duration = Duration::from_secs(5);
/// One name server has this long before the next one is asked.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Names of addresses are an extra: nobody waits for them longer than this.
const REVERSE_TIMEOUT: Duration = Duration::from_secs(1);
const REVERSE_AT_ONCE: usize = 256;
/// Addresses handed over for one name.
const ADDRESSES: usize = 64;

/// `/etc/resolv.conf` and `/etc/hosts` as they were at the start.
#[derive(Default)]
pub struct SystemConfig {
    pub nameservers: Vec<IpAddr>,
    /// Domains to look for short names in, each with a dot at its end.
    search: Vec<String>,
    /// Names with fewer dots are looked for in the search list first (resolv.conf(5)).
    ndots: usize,
    hosts: Hosts,
}

impl SystemConfig {
    /// A host without the files resolves no names; it still probes addresses.
    #[must_use]
    pub fn read() -> Self {
        let hosts = Hosts::from_system().unwrap_or_default();
        let (config, options) = match hickory_resolver::system_conf::read_system_conf() {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "names cannot be looked up: /etc/resolv.conf");
                return Self { hosts, ..Self::default() };
            }
        };
        let domain = config.domain().filter(|_| config.search().is_empty());
        let search =
            config.search().iter().chain(domain).map(|name| format!("{}.", name.to_ascii().trim_end_matches('.')));
        Self {
            nameservers: config.name_servers().iter().map(|server| server.ip).collect(),
            search: search.filter(|name| name != ".").collect(),
            ndots: options.ndots,
            hosts,
        }
    }
}

pub struct Resolver {
    config: SystemConfig,
    servers: Vec<Permitted>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("Unable to resolve '{name}': {reason}.")]
    Unresolved { name: String, reason: String },
    #[error("the name lookup took longer than {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// What one name came to: addresses, or why there are none.
type Found = Result<Vec<IpAddr>, String>;

impl Resolver {
    #[must_use]
    pub fn new(config: SystemConfig, policy: &Policy) -> Self {
        let servers =
            config.nameservers.iter().filter_map(|server| policy.permit_question(*server, 53, None).ok()).collect();
        Self { config, servers }
    }

    /// The name servers of `/etc/resolv.conf`, in order.
    #[must_use]
    pub fn nameservers(&self) -> &[IpAddr] {
        &self.config.nameservers
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
        match tokio::time::timeout(TIMEOUT, self.search(&ascii, family)).await {
            Err(_) => Err(LookupError::Timeout),
            Ok(Err(reason)) => Err(unresolved(&reason)),
            Ok(Ok(mut addresses)) => {
                addresses.truncate(ADDRESSES);
                Ok(in_order(addresses))
            }
        }
    }

    /// The names of addresses, all asked for at once: from the hosts file, else from the name servers in turn, within
    /// a second in all.
    pub async fn reverse(&self, addresses: &[IpAddr]) -> Vec<Option<String>> {
        let ends = tokio::time::Instant::now() + REVERSE_TIMEOUT;
        let ask = |address: IpAddr| async move { tokio::time::timeout_at(ends, self.name_of(address)).await.ok()? };
        futures_util::stream::iter(addresses.iter().copied().map(ask)).buffered(REVERSE_AT_ONCE).collect().await
    }

    async fn name_of(&self, address: IpAddr) -> Option<String> {
        let reversed = Name::from(address);
        let fixed = self.config.hosts.lookup_static_host(&Query::query(reversed.clone(), RecordType::PTR));
        let records = fixed.iter().flat_map(hickory_resolver::lookup::Lookup::answers);
        let named = records.filter(|r| r.record_type() == RecordType::PTR).map(|r| r.data.to_string()).next();
        if let Some(name) = named {
            return Some(name.trim_end_matches('.').to_owned());
        }
        for server in &self.servers {
            let mut request = question(&reversed.to_ascii(), "PTR");
            request.timeout = REVERSE_TIMEOUT / 2;
            match dns::ask_in_clear(*server, &request).await {
                Ok(answer) if matches!(answer.rcode, 0 | 3) => {
                    let name = answer.answers.into_iter().find(|record| record.rtype == "PTR");
                    return name.map(|record| record.data.trim_end_matches('.').to_owned());
                }
                _ => {}
            }
        }
        None
    }

    /// The hosts file, then the name and what the search list makes of it, in the order of resolv.conf(5).
    async fn search(&self, name: &str, family: Family) -> Found {
        let static_addresses = self.hosts(name, family);
        if !static_addresses.is_empty() {
            return Ok(static_addresses);
        }
        let bare = name.trim_end_matches('.');
        let mut candidates = vec![];
        if name == bare {
            candidates.extend(self.config.search.iter().map(|domain| format!("{bare}.{domain}")));
        }
        let absolute = format!("{bare}.");
        if bare.matches('.').count() >= self.config.ndots || candidates.is_empty() {
            candidates.insert(0, absolute);
        } else {
            candidates.push(absolute);
        }
        let mut failure = None;
        for candidate in candidates {
            match self.ask_servers(&candidate, family).await {
                Ok(addresses) => return Ok(addresses),
                // The first failure is that of the name as it was most likely meant.
                Err(reason) => failure = failure.or(Some(reason)),
            }
        }
        Err(failure.unwrap_or_default())
    }

    fn hosts(&self, name: &str, family: Family) -> Vec<IpAddr> {
        let Ok(name) = Name::from_ascii(name) else { return vec![] };
        let mut addresses = vec![];
        for (rtype, wanted) in [(RecordType::AAAA, family != Family::V4), (RecordType::A, family != Family::V6)] {
            let found = self.config.hosts.lookup_static_host(&Query::query(name.clone(), rtype)).filter(|_| wanted);
            let records = found.iter().flat_map(hickory_resolver::lookup::Lookup::answers);
            addresses.extend(records.filter_map(|record| record.data.ip_addr()));
        }
        addresses
    }

    /// Each server in turn, until one has something to say about the name.
    async fn ask_servers(&self, name: &str, family: Family) -> Found {
        let mut failure = Err("this host has no name server".to_owned());
        for server in &self.servers {
            let (v6, v4) = tokio::join!(
                ask(*server, name, "AAAA", family != Family::V4),
                ask(*server, name, "A", family != Family::V6),
            );
            let addresses: Vec<IpAddr> =
                [&v6, &v4].into_iter().flatten().flat_map(|said| said.addresses.clone()).collect();
            if !addresses.is_empty() {
                return Ok(addresses);
            }
            failure = match (v6, v4) {
                (Ok(v6), Ok(v4)) if v6.exists && v4.exists => {
                    return Err("the name has no address of the wanted family".into());
                }
                (Ok(_), Ok(_)) => return Err("the name does not exist (NXDOMAIN)".into()),
                (Err(reason), _) | (_, Err(reason)) => Err(reason),
            };
        }
        failure
    }
}

fn question(name: &str, rtype: &str) -> Request {
    Request {
        question: Question { name: name.to_owned(), rtype: rtype.to_owned(), class: "IN".into() },
        port: 53,
        transport: Transport::Udp,
        server_name: None,
        recursion_desired: true,
        dnssec_ok: false,
        timeout: SERVER_TIMEOUT,
    }
}

/// What a server said about one type of record.
struct Said {
    exists: bool,
    addresses: Vec<IpAddr>,
}

async fn ask(server: Permitted, name: &str, rtype: &str, wanted: bool) -> Result<Said, String> {
    if !wanted {
        return Ok(Said { exists: true, addresses: vec![] });
    }
    match dns::ask_in_clear(server, &question(name, rtype)).await {
        // A resolver gives the whole chain of aliases: the addresses at its end are among the answers.
        Ok(answer) if matches!(answer.rcode, 0 | 3) => {
            let addresses = answer.answers.iter().filter(|r| r.rtype == rtype).filter_map(|r| r.data.parse().ok());
            Ok(Said { exists: answer.rcode == 0, addresses: addresses.collect() })
        }
        Ok(answer) => Err(format!("name server {} answered {}", server.address(), answer.mnemonic)),
        Err(AskError::Timeout) => Err(format!("name server {} did not answer", server.address())),
        Err(error) => Err(format!("name server {}: {error}", server.address())),
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
