//! The network configuration of this host, as it is now: the addresses of its interfaces, `/etc/resolv.conf` and
//! `/etc/hosts`. Each is read again when it has changed, so that neither the policy nor the resolver works with what
//! was true at the start.

mod file;
mod interfaces;
mod resolv_conf;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use file::FollowedFile;
use hickory_resolver::Hosts;
pub use interfaces::addresses as interface_addresses;
use interfaces::{Interfaces, ReadAddresses};
pub use resolv_conf::{NameServer, ResolverConfig};

/// Where the configuration comes from.
pub struct Sources {
    pub resolv_conf: PathBuf,
    pub hosts: PathBuf,
    pub interfaces: ReadAddresses,
}

pub struct System {
    resolv_conf: FollowedFile<ResolverConfig>,
    hosts: FollowedFile<Hosts>,
    interfaces: Interfaces,
}

impl System {
    /// A host without `/etc/resolv.conf` resolves no names; it still probes addresses.
    #[must_use]
    pub fn of_this_host() -> Self {
        Self::follow(Sources {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            interfaces: interface_addresses,
        })
    }

    #[must_use]
    pub fn follow(sources: Sources) -> Self {
        Self {
            resolv_conf: FollowedFile::read(sources.resolv_conf, ResolverConfig::parse),
            hosts: FollowedFile::read(sources.hosts, parse_hosts),
            interfaces: Interfaces::read(sources.interfaces),
        }
    }

    #[must_use]
    pub fn resolver_config(&self) -> Arc<ResolverConfig> {
        let config = self.resolv_conf.last_read();
        if config.no_reload { config } else { self.resolv_conf.current() }
    }

    #[must_use]
    pub fn hosts(&self) -> Arc<Hosts> {
        self.hosts.current()
    }

    /// Is this an address of one of this host's interfaces, or the subnet-router anycast address of one of its links?
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        self.interfaces.hold(address)
    }
}

/// A host without interfaces, names and name servers.
impl Default for System {
    fn default() -> Self {
        Self {
            resolv_conf: FollowedFile::default(),
            hosts: FollowedFile::default(),
            interfaces: Interfaces::read(|| Ok(vec![])),
        }
    }
}

fn parse_hosts(text: &[u8]) -> Hosts {
    let mut hosts = Hosts::default();
    if let Err(error) = hosts.read_hosts_conf(text) {
        tracing::warn!(%error, "/etc/hosts");
    }
    hosts
}
