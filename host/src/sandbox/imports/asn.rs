//! `asn`: which autonomous system announces an address.

use super::weight::records;
use super::{RunState, wit};
use wit::asn::AutonomousSystem;

/// Addresses in one call.
pub const ADDRESSES: usize = 1024;

impl wit::asn::Host for RunState {
    async fn lookup(&mut self, addresses: Vec<String>) -> wasmtime::Result<Vec<Option<AutonomousSystem>>> {
        self.call(&addresses)?;
        let asked = super::parse_addresses(&addresses, ADDRESSES);
        let services = self.services.clone();
        let (places, known): (Vec<usize>, Vec<_>) = asked.into_iter().unzip();
        let systems = self.on_io(async move { services.net.asn.lookup(&known).await }).await?;
        let mut found = vec![None; addresses.len()];
        for (place, system) in places.into_iter().zip(systems) {
            found[place] = system.map(|s| AutonomousSystem { number: s.number, name: s.name, network: s.network });
        }
        self.give(found)
    }
}

records! { AutonomousSystem { number, name, network } }
