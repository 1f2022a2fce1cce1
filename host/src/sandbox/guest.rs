//! What every guest has, whether it runs a test or describes itself: a budget, its handles, and WASI with nothing behind
//! it.

use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::budget::{self, Budget};
use super::log::Log;
use super::migrate::Placement;

pub struct Guest {
    pub budget: Budget,
    pub table: ResourceTable,
    /// Standard output and standard error.
    pub log: Log,
    pub placement: Placement,
    wasi: WasiCtx,
}

impl Default for Guest {
    fn default() -> Self {
        let log = Log::default();
        let mut wasi = WasiCtx::builder();
        // Nothing of the host: no files, environment, arguments, network. The refusals are wasmtime's defaults, written
        // out because a change of a default must not open anything.
        wasi.stdout(log.clone()).stderr(log.clone());
        wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false).max_random_size(4096);
        let mut table = ResourceTable::new();
        table.set_max_capacity(budget::HOST_HANDLES);
        Self { budget: Budget::default(), table, log, placement: Placement::default(), wasi: wasi.build() }
    }
}

impl Guest {
    pub fn wasi(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// The state of a store: a guest, and what it may reach besides.
pub trait HasGuest: Send + 'static {
    fn guest(&mut self) -> &mut Guest;
}

impl HasGuest for Guest {
    fn guest(&mut self) -> &mut Guest {
        self
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi()
    }
}

/// A store within the limits of [`budget`].
pub fn store<T: HasGuest>(engine: &Engine, state: T) -> Store<T> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.guest().budget);
    store.set_hostcall_fuel(budget::CALL_BYTES);
    store.set_max_component_handles(budget::COMPONENT_HANDLES);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|mut store| {
        let guest = store.data_mut().guest();
        guest.budget.check_cpu()?;
        // The clock ticks whenever it likes: also early in a run.
        if guest.budget.cpu.used() < budget::BRIEF {
            return Ok(UpdateDeadline::Continue(1));
        }
        guest.placement.set_computed();
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    store
}
