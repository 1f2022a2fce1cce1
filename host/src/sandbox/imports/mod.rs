//! The imports of a plugin: the bindings made from `wit/`, what one run may touch, and the linker.
//!
//! One file per import, named after its WIT file, and what they share. An import checks what the guest gave, asks the policy whether the
//! target may be reached and the budget whether the run may use that much, and hands the work to an engine of
//! `scouter-net`. What the network does is a typed error and never a trap; a limit of the sandbox is a trap.

mod asn;
mod browser;
mod dns;
// Events of a series, in batches.
mod events;
mod hops;
mod http;
mod icmp;
mod report;
mod resolver;
mod weight;

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime_wasi::{WasiCtxView, WasiView};

use scouter_net::address::attempts::Attempt;
use scouter_net::policy::{Denied, Names, Permitted, Policy};

use super::budget::{Exceeded, LimitHit, Use};
use super::cpu::CpuTime;
use super::guest::{Guest, HasGuest};
use super::migrate::Placement;
use super::progress::Progress;
use crate::services::Services;
use weight::Weigh;

pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "plugin",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "scouter:probe/icmp.echoes": crate::sandbox::imports::icmp::Echoes,
            "scouter:probe/hops.trace": crate::sandbox::imports::hops::Trace,
        },
        additional_derives: [Clone],
    });
}

pub use bindings::PluginPre;

/// The interfaces, by their names in WIT.
pub(crate) mod wit {
    pub use super::bindings::exports::scouter::probe::test;
    pub use super::bindings::scouter::probe::{asn, browser, dns, hops, http, icmp, net, report, resolver};
}

/// Everything one run may touch. Dropped with the run, and with it every socket it had.
pub struct RunState {
    guest: Guest,
    services: Arc<Services>,
    partial: Arc<Progress>,
    /// Under which names an address was found in this run: the operator may have opened or closed names.
    names: HashMap<IpAddr, Names>,
}

impl HasGuest for RunState {
    fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

/// Work of an engine ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("a network engine panicked")]
    Panicked,
    #[error("the server is stopping")]
    Stopping,
}

impl From<tokio::task::JoinError> for EngineError {
    fn from(error: tokio::task::JoinError) -> Self {
        if error.is_panic() { Self::Panicked } else { Self::Stopping }
    }
}

/// Does network work on the I/O runtime and waits for it; dropping the future stops the work. A run that is there
/// already does it in place, does not move meanwhile, and is not charged for its CPU time.
async fn on_io<T, F>(io: &Handle, guest: &CpuTime, placement: &Placement, work: F) -> Result<T, EngineError>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    if Handle::try_current().is_ok_and(|here| here.id() == io.id()) {
        let work = guest.except(AssertUnwindSafe(work).catch_unwind());
        return placement.stay_for(work).await.map_err(|_| EngineError::Panicked);
    }
    Ok(AbortOnDropHandle::new(io.spawn(work)).await?)
}

impl RunState {
    pub(crate) fn new(services: Arc<Services>, partial: Arc<Progress>) -> Self {
        Self { guest: Guest::default(), services, partial, names: HashMap::new() }
    }

    /// As [`on_io`], on the runtime of this server.
    async fn on_io<T, F>(&mut self, work: F) -> wasmtime::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        on_io(&self.services.io, &self.guest.budget.cpu, &self.guest.placement, work)
            .await
            .map_err(wasmtime::Error::new)
    }

    /// Asks the policy about an address that the guest names.
    fn permit(
        &self,
        address: IpAddr,
        ask: impl FnOnce(&Policy, IpAddr, Option<&Names>) -> Result<Permitted, Denied>,
    ) -> Result<Permitted, wit::net::NetError> {
        let names = self.names.get(&address.to_canonical());
        ask(&self.services.policy, address, names).map_err(|denied| wit::net::NetError::Denied(denied.to_string()))
    }

    /// Counts what a call is going to use of the network.
    fn take(&mut self, need: Use) -> Result<(), Exceeded> {
        self.guest.budget.take(need)
    }

    /// Waits until a call may send so many packets. Sessions pace themselves, by the rate that they are given.
    async fn pace(&mut self, packets: u32) {
        self.guest.budget.pace(packets).await;
    }

    /// Counts one host call and what it carries in.
    fn call(&mut self, given: &impl Weigh) -> Result<(), LimitHit> {
        self.guest.budget.call(given.weight())
    }

    /// Counts what a host call carries back.
    fn give<T: Weigh>(&mut self, answer: T) -> wasmtime::Result<T> {
        self.guest.budget.carried(answer.weight())?;
        Ok(answer)
    }

    fn push<T: Send + 'static>(&mut self, resource: T) -> wasmtime::Result<Resource<T>> {
        Ok(self.guest.table.push(resource)?)
    }
}

weight::plain!(wit::net::Family);

impl Weigh for wit::net::NetError {
    fn referred(&self) -> usize {
        match self {
            Self::Denied(why)
            | Self::Unresolved(why)
            | Self::Unreachable(why)
            | Self::Invalid(why)
            | Self::Unavailable(why) => why.referred(),
            Self::Timeout | Self::Refused => 0,
        }
    }
}

impl From<Exceeded> for wit::net::NetError {
    fn from(exceeded: Exceeded) -> Self {
        Self::Unavailable(exceeded.to_string())
    }
}

/// An address as a guest writes it.
fn parse_address(text: &str) -> Result<IpAddr, wit::net::NetError> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(60).collect();
        wit::net::NetError::Invalid(format!("'{}' is not an IP address", shown.escape_debug()))
    })
}

/// The first `most` of a list, with their places; what is no address is left out.
fn parse_addresses(texts: &[String], most: usize) -> Vec<(usize, IpAddr)> {
    texts.iter().take(most).enumerate().filter_map(|(place, text)| Some((place, text.parse().ok()?))).collect()
}

impl WasiView for RunState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.guest.wasi()
    }
}

impl wit::net::Host for RunState {}

weight::records! {
    wit::net::ConnectionAttempt { address, started, elapsed, error }
}

impl From<Attempt> for wit::net::ConnectionAttempt {
    fn from(attempt: Attempt) -> Self {
        let ns = |length: Duration| u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Self {
            address: attempt.address.ip().to_string(),
            started: ns(attempt.started),
            elapsed: ns(attempt.elapsed),
            error: attempt.error,
        }
    }
}

/// Everything a plugin can import.
///
/// # Errors
/// When two imports have one name, which is a mistake in this program.
pub fn linker(engine: &Engine) -> anyhow::Result<Linker<RunState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    bindings::Plugin::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    Ok(linker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_an_engine_is_an_error_of_the_engine() {
        let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        for io in [Handle::current(), other.handle().clone()] {
            let (cpu, placement) = (CpuTime::default(), Placement::default());
            assert_eq!(on_io(&io, &cpu, &placement, async { 1 }).await, Ok(1));
            let panicked: Result<(), _> =
                on_io(&io, &cpu, &placement, async { panic!("a mistake of an engine") }).await;
            assert_eq!(panicked, Err(EngineError::Panicked));
        }
        other.shutdown_background();
    }
}
