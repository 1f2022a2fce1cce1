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
        self.call(name.len())?;
        let is_name = name.parse::<std::net::IpAddr>().is_err();
        if is_name {
            if let Err(exceeded) = self.take(Use { names: 1, packets: PACKETS_OF.lookup, target: None }) {
                return Ok(Err(exceeded.into()));
            }
            self.pace(PACKETS_OF.lookup).await;
        }
        let (services, asked) = (self.services.clone(), name.clone());
        let found = self.on_io(async move { services.net.resolver.lookup(&asked, family.into()).await }).await?;
        let addresses = match found {
            Ok(addresses) => addresses,
            Err(error) => return Ok(Err(error.into())),
        };
        if is_name {
            self.names.extend(addresses.iter().map(|address| (address.to_canonical(), name.clone())));
        }
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        self.carried(addresses.iter().map(String::len).sum())?;
        Ok(Ok(addresses))
    }

    async fn reverse(&mut self, addresses: Vec<String>) -> wasmtime::Result<Vec<Option<String>>> {
        self.call(addresses.iter().map(String::len).sum())?;
        let most = super::asn::ADDRESSES.min(self.guest.budget.names_left());
        let (places, asked): (Vec<usize>, Vec<_>) = super::parse_addresses(&addresses, most).into_iter().unzip();
        let count = u32::try_from(asked.len()).unwrap_or(u32::MAX);
        let packets = count.saturating_mul(PACKETS_OF.reverse);
        if self.take(Use { names: count, packets, target: None }).is_err() {
            return Ok(vec![None; addresses.len()]);
        }
        self.pace(packets).await;
        let services = self.services.clone();
        let names = self.on_io(async move { services.net.resolver.reverse(&asked).await }).await?;
        let mut found = vec![None; addresses.len()];
        for (place, name) in places.into_iter().zip(names) {
            found[place] = name;
        }
        self.carried(found.iter().flatten().map(String::len).sum())?;
        Ok(found)
    }

    async fn nameservers(&mut self) -> wasmtime::Result<Vec<String>> {
        self.call(0)?;
        Ok(self.services.net.resolver.nameservers().iter().map(ToString::to_string).collect())
    }
}
