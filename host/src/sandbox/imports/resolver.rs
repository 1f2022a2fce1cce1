//! `resolver`: names to addresses, as this host does it.

use scouter_net::FamilyFilter;
use scouter_net::address::LookupError;

use super::{RunState, wit};
use crate::sandbox::budget::{PACKETS_OF, Use};
use wit::net::NetError;

impl From<wit::net::Family> for FamilyFilter {
    fn from(family: wit::net::Family) -> Self {
        match family {
            wit::net::Family::Any => Self::Any,
            wit::net::Family::Ipv4 => Self::V4,
            wit::net::Family::Ipv6 => Self::V6,
        }
    }
}

impl From<LookupError> for NetError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Timeout => Self::Timeout,
            error @ LookupError::Unresolved { .. } => Self::Unresolved(error.to_string()),
        }
    }
}

impl wit::resolver::Host for RunState {
    async fn lookup(
        &mut self,
        name: String,
        family: wit::net::Family,
    ) -> wasmtime::Result<Result<Vec<String>, NetError>> {
        self.call(&name)?;
        let is_name = name.parse::<std::net::IpAddr>().is_err();
        if is_name {
            if let Err(exceeded) = self.take(Use { names: 1, packets: PACKETS_OF.lookup, target: None }) {
                return self.give(Err(exceeded.into()));
            }
            self.pace(PACKETS_OF.lookup).await;
        }
        let services = self.services.clone();
        let found = self.on_io(async move { services.net.resolver.lookup(&name, family.into()).await }).await?;
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.give(Err(error.into())),
        };
        for address in found.addresses.iter().filter(|_| is_name) {
            self.names.entry(address.to_canonical()).or_default().add(&found.names);
        }
        self.give(Ok(found.addresses.iter().map(ToString::to_string).collect()))
    }

    async fn reverse(&mut self, addresses: Vec<String>) -> wasmtime::Result<Vec<Option<String>>> {
        self.call(&addresses)?;
        let most = super::asn::ADDRESSES.min(self.guest.budget.names_left());
        let (places, asked): (Vec<usize>, Vec<_>) = super::parse_addresses(&addresses, most).into_iter().unzip();
        let count = u32::try_from(asked.len()).unwrap_or(u32::MAX);
        let packets = count.saturating_mul(PACKETS_OF.reverse);
        if self.take(Use { names: count, packets, target: None }).is_err() {
            return self.give(vec![None; addresses.len()]);
        }
        self.pace(packets).await;
        let services = self.services.clone();
        let names = self.on_io(async move { services.net.resolver.reverse(&asked).await }).await?;
        let mut found = vec![None; addresses.len()];
        for (place, name) in places.into_iter().zip(names) {
            found[place] = name;
        }
        self.give(found)
    }

    async fn nameservers(&mut self) -> wasmtime::Result<Vec<String>> {
        self.call(&())?;
        let servers: Vec<String> = self.services.net.resolver.nameservers().iter().map(ToString::to_string).collect();
        self.give(servers)
    }
}
