//! What the host lends to plugins: the bindings made from `wit/`, what one run may touch, and the linker.
//!
//! One file per import, named after its WIT file. An import parses what the guest gave, asks the policy, and hands the
//! work to an engine under `net/`. It never traps for what the network does: errors are typed. It does trap when the
//! run passes a limit.

mod asn;
mod browser;
mod dns;
mod hops;
mod http;
mod icmp;
mod report;
mod resolver;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use scouter_net::policy::{Denied, Permitted, Policy};
use scouter_net::series::{self, Rate};

use super::limits::{self, LimitHit, Usage};
use super::progress::Progress;
use crate::services::Services;

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
    pub(crate) usage: Usage,
    services: Arc<Services>,
    partial: Arc<Progress>,
    /// Under which name an address was looked up in this run: the operator may have opened or closed names.
    names: HashMap<IpAddr, String>,
    targets: HashSet<IpAddr>,
    sessions: usize,
    rate: Rate,
    table: ResourceTable,
    wasi: WasiCtx,
    log: MemoryOutputPipe,
}

impl RunState {
    pub(crate) fn new(services: Arc<Services>, partial: Arc<Progress>) -> Self {
        let log = MemoryOutputPipe::new(limits::LOG_BYTES);
        let mut wasi = WasiCtx::builder();
        // Nothing of the host: no files, environment, arguments, network. The refusals are wasmtime's defaults, said
        // again because a change of a default must not open anything.
        wasi.stdout(log.clone()).stderr(log.clone());
        wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false).max_random_size(4096);
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits::HOST_HANDLES);
        Self {
            usage: Usage::default(),
            services,
            partial,
            names: HashMap::new(),
            targets: HashSet::new(),
            sessions: 0,
            rate: series::rate(limits::PACKETS_PER_SECOND, limits::PACKET_BURST),
            table,
            wasi: wasi.build(),
            log,
        }
    }

    /// What the guest wrote to standard output and standard error.
    pub(crate) fn log(&self) -> bytes::Bytes {
        self.log.contents()
    }

    /// Does network work on the I/O runtime and waits for it; dropping the run stops it.
    async fn on_io<T, F>(&mut self, work: F) -> wasmtime::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.usage.computed()?;
        let done = AbortOnDropHandle::new(self.services.io.spawn(work)).await;
        self.usage.resumed();
        done.map_err(wasmtime::Error::new)
    }

    /// Asks the policy about an address that the guest names, and counts the target.
    fn permit(
        &mut self,
        address: IpAddr,
        ask: impl FnOnce(&Policy, IpAddr, Option<&str>) -> Result<Permitted, Denied>,
    ) -> Result<Permitted, wit::net::NetError> {
        let name = self.names.get(&address.to_canonical()).map(String::as_str);
        let permitted = ask(&self.services.policy, address, name)
            .map_err(|denied| wit::net::NetError::Denied(denied.to_string()))?;
        self.targets.insert(permitted.address());
        if self.targets.len() > limits::TARGETS {
            return Err(wit::net::NetError::Invalid(format!(
                "one test may reach {} addresses at most",
                limits::TARGETS
            )));
        }
        Ok(permitted)
    }

    /// Counts packets before they are sent.
    fn packets(&mut self, count: u32) -> Result<(), wit::net::NetError> {
        self.usage.packets = self.usage.packets.saturating_add(count);
        if self.usage.packets > limits::PACKETS {
            return Err(wit::net::NetError::Invalid(format!("one test may send {} packets at most", limits::PACKETS)));
        }
        Ok(())
    }

    /// Is there room for another session?
    fn room(&self) -> Result<(), wit::net::NetError> {
        if self.sessions < limits::SESSIONS {
            return Ok(());
        }
        Err(wit::net::NetError::Unavailable(format!("one test may hold {} sessions at most", limits::SESSIONS)))
    }

    fn call(&mut self, bytes: usize) -> Result<(), LimitHit> {
        self.usage.call(bytes)
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
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl wit::net::Host for RunState {}

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

/// Is this import one of ours, or of WASI 0.2 as far as it is given (with nothing behind it)?
#[must_use]
pub fn is_offered(import: &str) -> bool {
    let ours = ["net", "report", "resolver", "icmp", "hops", "dns", "http", "asn", "browser"];
    let wasi = ["io", "clocks", "random", "cli", "filesystem", "sockets"];
    let Some((package, rest)) = import.split_once('/') else { return false };
    let (name, version) = rest.split_once('@').unwrap_or((rest, ""));
    match package {
        "scouter:probe" => ours.contains(&name) && version == "1.0.0",
        _ => package.strip_prefix("wasi:").is_some_and(|p| wasi.contains(&p)) && version.starts_with("0.2."),
    }
}
