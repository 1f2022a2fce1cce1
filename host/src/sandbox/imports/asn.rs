//! `asn`: which autonomous system announces an address.

use super::{RunState, wit};
use wit::asn::AutonomousSystem;

/// Addresses in one call.
pub const ADDRESSES: usize = 1024;

impl wit::asn::Host for RunState {
    async fn lookup(&mut self, addresses: Vec<String>) -> wasmtime::Result<Vec<Option<AutonomousSystem>>> {
        self.call(addresses.iter().map(String::len).sum())?;
        let asked = super::parse_addresses(&addresses, ADDRESSES);
        let services = self.services.clone();
        let (places, known): (Vec<usize>, Vec<_>) = asked.into_iter().unzip();
        let systems = self.on_io(async move { services.net.asn.lookup(&known).await }).await?;
        let mut found = vec![None; addresses.len()];
        for (place, system) in places.into_iter().zip(systems) {
            found[place] = system.map(|s| AutonomousSystem { number: s.number, name: s.name, network: s.network });
        }
        let bytes = |s: &AutonomousSystem| s.name.as_ref().map_or(0, String::len) + s.network.len();
        self.carried(found.iter().flatten().map(bytes).sum())?;
        Ok(found)
    }
}
