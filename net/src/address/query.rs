//! Questions to the name servers of this host: who is asked, how often, and how long the answers are waited for
//! (resolv.conf(5), RFC 8305).

use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::FamilyFilter;
use crate::dns::{self, AskError, Edns, QueryBits, Question, Request, Transport};
use crate::metered::Received;
use crate::policy::Permitted;
use crate::system::ResolverConfig;

/// The answer about one family is waited for this long after the one about the other (RFC 8305, section 3, where it is
/// waited for IPv6 only: there a later IPv4 address still joins the connection attempts, which here it could not).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Why a name has no addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupFailure {
    #[error("this host has no name server")]
    NoNameServer,
    #[error("the name does not exist (NXDOMAIN)")]
    NoSuchName,
    #[error("the name has no address of the wanted family")]
    NoAddress,
    #[error("name server {server} did not answer")]
    NoAnswer { server: IpAddr },
    #[error("name server {server}{problem}")]
    ServerFailure { server: IpAddr, problem: String },
}

/// The name servers of one lookup, in order, and how they are asked.
pub struct NameServers {
    servers: Vec<Permitted>,
    attempts: usize,
    /// For one answer.
    timeout: Duration,
    transport: Transport,
    no_aaaa: bool,
}

/// A resolver follows so many aliases at most; most of them fewer.
const ALIASES: usize = 16;

/// What the answers about a name hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// IPv6 first.
    pub addresses: Vec<IpAddr>,
    /// Names that the answers went on to.
    pub aliases: Vec<String>,
}

/// What one answer holds of one type.
struct Records {
    name_exists: bool,
    data: Vec<String>,
    aliases: Vec<String>,
}

/// What is known of a name so far; None is not known yet, an empty list says that there is nothing or that it is not wanted.
struct Known {
    aaaa: Option<Vec<IpAddr>>,
    a: Option<Vec<IpAddr>>,
    aliases: Vec<String>,
    nxdomain: bool,
}

impl NameServers {
    /// The configured timeout is cut so that each server has been asked as often as configured when the budget is spent.
    pub fn new(servers: Vec<Permitted>, config: &ResolverConfig, budget: Duration) -> Self {
        let questions = u32::try_from(servers.len() * config.attempts).unwrap_or(u32::MAX).max(1);
        Self {
            servers,
            attempts: config.attempts,
            timeout: config.timeout.min(budget / questions),
            transport: if config.tcp { Transport::Tcp } else { Transport::Udp },
            no_aaaa: config.no_aaaa,
        }
    }

    /// The addresses of a complete name. Each server in turn, and those that were silent again.
    pub async fn addresses_of(&self, name: &str, family: FamilyFilter) -> Result<Answers, LookupFailure> {
        let mut known = Known::wanted(family, self.no_aaaa);
        let mut failure = LookupFailure::NoNameServer;
        let mut servers = self.servers.clone();
        for _ in 0..self.attempts {
            let mut silent = vec![];
            for server in servers {
                let Err(missed) = self.ask_for_missing(server, name, &mut known).await else {
                    return known.addresses();
                };
                if matches!(missed, LookupFailure::NoAnswer { .. }) {
                    silent.push(server);
                }
                failure = missed;
            }
            servers = silent;
        }
        Err(failure)
    }

    /// The first name that an address (as a name) has.
    pub async fn name_of(&self, reversed: &str) -> Option<String> {
        for _ in 0..self.attempts {
            for server in &self.servers {
                if let Ok(records) = self.records(*server, reversed, "PTR").await {
                    return records.data.into_iter().next();
                }
            }
        }
        None
    }

    /// Asks one server for what is not known yet.
    ///
    /// # Errors
    /// When that left the addresses unknown: the last reason.
    async fn ask_for_missing(&self, server: Permitted, name: &str, known: &mut Known) -> Result<(), LookupFailure> {
        let mut questions: FuturesUnordered<_> =
            known.missing().map(|rtype| async move { (rtype, self.records(server, name, rtype).await) }).collect();
        let mut deadline = None;
        let mut failure = LookupFailure::NoAnswer { server: server.address() };
        loop {
            let next = questions.next();
            let answer = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, next).await.ok().flatten(),
                None => next.await,
            };
            match answer {
                Some((rtype, Ok(records))) => known.add(rtype, &records),
                Some((_, Err(reason))) => failure = reason,
                None => break,
            }
            if known.suffices() {
                deadline.get_or_insert_with(|| Instant::now() + RESOLUTION_DELAY);
            }
        }
        if known.suffices() || known.missing().next().is_none() { Ok(()) } else { Err(failure) }
    }

    async fn records(&self, server: Permitted, name: &str, rtype: &str) -> Result<Records, LookupFailure> {
        let request = Request {
            question: Question { name: name.to_owned(), rtype: rtype.to_owned(), class: "IN".into() },
            port: 53,
            transport: self.transport,
            server_name: None,
            bits: QueryBits::RECURSION,
            edns: Some(Edns::default()),
            timeout: self.timeout,
        };
        let failure = |problem: String| LookupFailure::ServerFailure { server: server.address(), problem };
        match dns::ask_unencrypted(server, &request, &Received::default()).await {
            // A resolver gives the whole chain of aliases: the addresses at its end are among the answers.
            Ok(answer) if matches!(answer.rcode, 0 | 3) => {
                let of = |wanted: &str| {
                    let records = answer.answers.iter().filter(|record| record.rtype == wanted);
                    records.map(|record| record.data.clone()).collect::<Vec<_>>()
                };
                let aliases = of("CNAME");
                if aliases.len() > ALIASES {
                    return Err(failure(format!(" answered with more than {ALIASES} aliases")));
                }
                Ok(Records { name_exists: answer.rcode == 0, data: of(rtype), aliases })
            }
            Ok(answer) => Err(failure(format!(" answered {}", answer.mnemonic))),
            Err(AskError::Timeout) => Err(LookupFailure::NoAnswer { server: server.address() }),
            Err(error) => Err(failure(format!(": {error}"))),
        }
    }
}

impl Known {
    fn wanted(family: FamilyFilter, no_aaaa: bool) -> Self {
        let unless = |unwanted: bool| unwanted.then(Vec::new);
        Self {
            aaaa: unless(family == FamilyFilter::V4 || (family == FamilyFilter::Any && no_aaaa)),
            a: unless(family == FamilyFilter::V6),
            aliases: vec![],
            nxdomain: false,
        }
    }

    fn missing(&self) -> impl Iterator<Item = &'static str> + use<> {
        let missing = [("AAAA", self.aaaa.is_none()), ("A", self.a.is_none())];
        missing.into_iter().filter(|(_, missing)| *missing).map(|(rtype, _)| rtype)
    }

    fn add(&mut self, rtype: &str, records: &Records) {
        let addresses = records.data.iter().filter_map(|data| data.parse().ok()).collect();
        *if rtype == "A" { &mut self.a } else { &mut self.aaaa } = Some(addresses);
        self.nxdomain |= !records.name_exists;
        self.aliases.extend(records.aliases.iter().cloned());
    }

    /// An answer need not be waited for when there are addresses, or the name does not exist for any type.
    fn suffices(&self) -> bool {
        self.nxdomain || [&self.aaaa, &self.a].into_iter().flatten().any(|addresses| !addresses.is_empty())
    }

    fn addresses(self) -> Result<Answers, LookupFailure> {
        let addresses = [self.aaaa, self.a].into_iter().flatten().flatten().collect::<Vec<_>>();
        match (addresses.is_empty(), self.nxdomain) {
            (false, _) => Ok(Answers { addresses, aliases: self.aliases }),
            (true, true) => Err(LookupFailure::NoSuchName),
            (true, false) => Err(LookupFailure::NoAddress),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::Policy;

    #[test]
    fn every_attempt_fits_into_the_budget() {
        let policy = Policy::new(vec!["any".parse().expect("a rule")], vec![], Arc::default());
        let server = policy.permit(IpAddr::from([192, 0, 2, 53]), None).expect("open");
        let timeout = |servers: usize, text: &[u8]| {
            let config = ResolverConfig::parse(text);
            NameServers::new(vec![server; servers], &config, Duration::from_secs(4)).timeout
        };
        assert_eq!(timeout(1, b""), Duration::from_secs(2), "two attempts of 5 s by default");
        assert_eq!(timeout(2, b""), Duration::from_secs(1));
        assert_eq!(timeout(1, b"options timeout:1"), Duration::from_secs(1));
        assert_eq!(timeout(1, b"options timeout:9 attempts:1"), Duration::from_secs(4));
        assert_eq!(timeout(0, b""), Duration::from_secs(4));
    }

    #[test]
    fn what_is_known_decides_what_is_asked_and_waited_for() {
        let records = |name_exists, data: &[&str]| Records {
            name_exists,
            data: data.iter().map(|d| (*d).into()).collect(),
            aliases: vec!["www.example.".into()],
        };
        let missing = |known: &Known| known.missing().collect::<Vec<_>>();
        let mut known = Known::wanted(FamilyFilter::Any, false);
        assert_eq!((missing(&known), known.suffices()), (vec!["AAAA", "A"], false));
        known.add("AAAA", &records(true, &[]));
        assert_eq!((missing(&known), known.suffices()), (vec!["A"], false));
        known.add("A", &records(true, &["192.0.2.1", "no address"]));
        assert_eq!((missing(&known), known.suffices()), (vec![], true));
        let answers = known.addresses().expect("addresses");
        assert_eq!(answers.addresses, [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(answers.aliases, ["www.example.", "www.example."], "of both answers");

        let mut known = Known::wanted(FamilyFilter::V6, true);
        assert_eq!(missing(&known), ["AAAA"], "IPv6 alone is asked for in spite of no-aaaa");
        known.add("AAAA", &records(true, &[]));
        assert_eq!(known.addresses(), Err(LookupFailure::NoAddress));

        let mut known = Known::wanted(FamilyFilter::Any, true);
        assert_eq!(missing(&known), ["A"]);
        known.add("A", &records(false, &[]));
        assert!(known.suffices(), "a name that does not exist has nothing of any type");
        assert_eq!(known.addresses(), Err(LookupFailure::NoSuchName));
    }
}
