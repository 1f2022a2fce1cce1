//! `resolver`: names to addresses, as this host does it.

use scouter_net::FamilyFilter;
use scouter_net::address::LookupError;

use super::{RunState, wit};
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
        let (services, asked) = (self.services.clone(), name.clone());
        let found = self.on_io(async move { services.net.resolver.lookup(&asked, family.into()).await }).await?;
        let addresses = match found {
            Ok(addresses) => addresses,
            Err(error) => return Ok(Err(error.into())),
        };
        if name.parse::<std::net::IpAddr>().is_err() {
            self.names.extend(addresses.iter().map(|address| (address.to_canonical(), name.clone())));
        }
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        self.usage.carried(addresses.iter().map(String::len).sum())?;
        Ok(Ok(addresses))
    }

    async fn reverse(&mut self, addresses: Vec<String>) -> wasmtime::Result<Vec<Option<String>>> {
        self.call(addresses.iter().map(String::len).sum())?;
        let (places, asked): (Vec<usize>, Vec<_>) =
            super::parse_addresses(&addresses, super::asn::ADDRESSES).into_iter().unzip();
        let services = self.services.clone();
        let names = self.on_io(async move { services.net.resolver.reverse(&asked).await }).await?;
        let mut found = vec![None; addresses.len()];
        for (place, name) in places.into_iter().zip(names) {
            found[place] = name;
        }
        self.usage.carried(found.iter().flatten().map(String::len).sum())?;
        Ok(found)
    }

    async fn nameservers(&mut self) -> wasmtime::Result<Vec<String>> {
        self.call(0)?;
        Ok(self.services.net.resolver.nameservers().iter().map(ToString::to_string).collect())
    }
}
