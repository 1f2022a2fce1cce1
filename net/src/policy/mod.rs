//! The target policy: which addresses may be reached. Every import asks it about the address that is about to be used.
//!
//! Only the policy makes a [`Permitted`], and the engines take nothing else: code that forgets to ask does not compile.

mod names;
mod rule;
mod special;

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::system::System;

pub use names::Names;
pub use rule::Rule;

/// DNS over UDP and TCP (53), TLS and QUIC (853).
const DNS_PORTS: [u16; 2] = [53, 853];

/// An address that the policy was asked about, in its canonical form (an IPv4-mapped one is IPv4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permitted {
    address: IpAddr,
    /// The interface of a link-local address (RFC 4007); 0 when there is none.
    scope_id: u32,
}

impl Permitted {
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    #[must_use]
    pub fn socket_address(self, port: u16) -> SocketAddr {
        match self.address {
            IpAddr::V4(_) => SocketAddr::new(self.address, port),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, self.scope_id).into(),
        }
    }
}

/// The policy's denial of an address. Its text is for the author of the test.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Target '{target}' is not allowed: {reason}.")]
pub struct Denied {
    pub target: String,
    pub reason: String,
}

/// ALLOW and DENY rules on top of the default: globally reachable addresses of other hosts.
#[derive(Clone, Default)]
pub struct Policy {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    system: Arc<System>,
    /// Of all clones.
    refusals: Arc<AtomicU64>,
}

impl Policy {
    #[must_use]
    pub fn new(allow: Vec<Rule>, deny: Vec<Rule>, system: Arc<System>) -> Self {
        Self { allow, deny, system, refusals: Arc::default() }
    }

    /// May this address be reached? `names`: under which it was found, if any.
    ///
    /// # Errors
    /// [`Denied`], with the rule that refuses it.
    pub fn permit(&self, address: IpAddr, names: Option<&Names>) -> Result<Permitted, Denied> {
        let address = address.to_canonical();
        self.evaluate(address, names).map(|()| Permitted { address, scope_id: 0 }).map_err(|reason| {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            let name = names.and_then(Names::last);
            let target = name.map_or_else(|| address.to_string(), |name| format!("{name} ({address})"));
            Denied { target, reason }
        })
    }

    /// The reason why not.
    fn evaluate(&self, address: IpAddr, names: Option<&Names>) -> Result<(), String> {
        let forms = special::forms(address);
        let chosen = || names.into_iter().flat_map(Names::chosen);
        let denies = |rule: &&Rule| {
            forms.iter().any(|form| rule.covers_address(*form)) || chosen().any(|name| rule.covers_name(name))
        };
        if let Some(rule) = self.deny.iter().find(denies) {
            return Err(format!("the operator denies {rule}"));
        }
        // Whatever a name leads to is what is reached.
        for name in names.into_iter().flat_map(Names::passed) {
            if let Some(rule) = self.deny.iter().find(|rule| rule.covers_name(name)) {
                return Err(format!("it leads to {name}, and the operator denies {rule}"));
            }
        }
        let opened = |form: IpAddr| self.allow.iter().any(|rule| rule.covers_address(form));
        if opened(address) {
            return Ok(());
        }
        // An alias opens nothing: any zone may alias an open name, and answer for that one too.
        let name_opened = chosen().any(|name| self.allow.iter().any(|rule| rule.covers_name(name)));
        // An address that carries an IPv4 one reaches that one: both must be open.
        for form in forms {
            let Some(closed) = self.closed(form).filter(|_| !opened(form)) else { continue };
            let reason = if form == address {
                format!("it is {}", closed.reason)
            } else {
                format!("it leads to {form}, which is {}", closed.reason)
            };
            match (name_opened, closed.opened_by_name) {
                (true, true) => {}
                (true, false) => return Err(format!("{reason}, and a rule for a name does not open it")),
                (false, _) => return Err(reason),
            }
        }
        Ok(())
    }

    /// Why an address is closed unless a rule opens it.
    fn closed(&self, address: IpAddr) -> Option<special::Closed> {
        let closed = special::closed(address);
        // A private address of this host is private in the first place, and yet no name opens it.
        match closed {
            Some(special::Closed { opened_by_name: false, .. }) => closed,
            _ if self.system.holds(address) => {
                Some(closed.map_or(special::OWN, |closed| special::Closed { opened_by_name: false, ..closed }))
            }
            _ => closed,
        }
    }

    /// As [`permit`](Self::permit), for a DNS question: this host's own name servers may always be asked, on the ports
    /// of DNS. On another port something else may listen, and a name server is often on loopback.
    ///
    /// # Errors
    /// [`Denied`], with the rule that refuses it.
    pub fn permit_question(&self, server: IpAddr, port: u16, names: Option<&Names>) -> Result<Permitted, Denied> {
        let server = server.to_canonical();
        if DNS_PORTS.contains(&port)
            && let Some(own) = self.name_servers().into_iter().find(|own| own.address == server)
        {
            return Ok(own);
        }
        self.permit(server, names)
    }

    /// The name servers of this host, as `/etc/resolv.conf` has them now.
    #[must_use]
    pub fn name_servers(&self) -> Vec<Permitted> {
        let config = self.system.resolver_config();
        let servers = config.name_servers.iter();
        servers
            .map(|server| Permitted { address: server.address.to_canonical(), scope_id: server.scope_id() })
            .collect()
    }

    /// Addresses refused since the start.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// The rules, for the start-up lines.
    #[must_use]
    pub fn summary(&self) -> String {
        let list = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut text = String::from("globally reachable addresses of other hosts");
        if !self.allow.is_empty() {
            text = format!("{text}, and {}", list(&self.allow));
        }
        if !self.deny.is_empty() {
            text = format!("{text}; never {}", list(&self.deny));
        }
        text
    }
}

#[cfg(test)]
mod tests;
