//! The wasmtime engine: one for the process, with the clock that lets guests be interrupted.

use std::num::NonZeroUsize;
use std::time::Duration;

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails};

use super::budget;

/// Bytes of stack for wasm frames, and for wasm and host frames together: engines of the network run there too, and have as
/// much as a thread of their own would.
pub const WASM_STACK: usize = 512 << 10;
const FIBER_STACK: usize = WASM_STACK + (2 << 20);

/// Concurrent runs for which a pool is mapped: it reserves 17 GiB of addresses for each, of the 128 TiB that a process
/// usually has.
const POOLED: u32 = 2000;
/// Bytes of a run's memory that are cleared rather than given back to the system, when few runs are pooled; and of all
/// memories together.
const RESIDENT: usize = 256 << 10;
const RESIDENT_IN_ALL: usize = 64 << 20;
/// Memories that stay as a run of one plugin has left them, for the next run of that plugin, while runs of other plugins get
/// fresh ones. More of them than a server needs at once would only be memory: each has up to `RESIDENT` bytes.
const UNUSED_WARM: u32 = 8;
/// Of each table and stack.
const RESIDENT_SMALL: usize = 16 << 10;
/// Bytes of the host's records of an instance, and of a component's instances together.
const INSTANCE_BYTES: usize = 4 << 20;

/// The configuration is part of the key under which compiled plugins are cached: the server and its compiling child
/// must agree on it.
fn config() -> anyhow::Result<Config> {
    let mut config = Config::new();
    // What every processor of this kind can do, not what this one can: plugins that were compiled into an image run where
    // the image does.
    config.target(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH))?;
    config.wasm_component_model(true);
    // Guests are plain functions run on fibers: the young concurrent part of the runtime stays out.
    config.concurrency_support(false);
    config.epoch_interruption(true);
    config.max_wasm_stack(WASM_STACK);
    config.async_stack_size(FIBER_STACK);
    // Of stacks that are used again.
    config.async_stack_zeroing(true);
    // One memory of at most 4 GiB: bulk operations look at the epoch once each, so their length must be bounded.
    config.wasm_memory64(false).wasm_multi_memory(false);
    config.wasm_backtrace_max_frames(NonZeroUsize::new(16));
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    Ok(config)
}

/// For so many concurrent runs.
///
/// # Errors
/// When this machine cannot run compiled wasm.
pub fn new(runs: usize) -> anyhow::Result<Engine> {
    let mut config = config()?;
    // And one that describes itself.
    let pooled = u32::try_from(runs.saturating_add(1)).ok().filter(|runs| *runs <= POOLED);
    let pooled = pooled.and_then(|runs| {
        let engine = Engine::new(config.clone().allocation_strategy(pool(runs)));
        let warn = |error: &wasmtime::Error| {
            tracing::warn!(%error, "no pool of memory for plugins: each run maps its own, which takes longer");
        };
        engine.inspect_err(warn).ok()
    });
    let engine =
        pooled.map_or_else(|| Engine::new(config.allocation_strategy(InstanceAllocationStrategy::OnDemand)), Ok)?;
    // A thread of its own: a tokio timer would stand still with the runtime that guests keep busy.
    let clock = engine.weak();
    std::thread::Builder::new().name("epoch".into()).spawn(move || {
        scouter_net::privilege::drop_or_warn(scouter_net::privilege::NOTHING);
        while let Some(engine) = clock.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(budget::TICK);
        }
    })?;
    Ok(engine)
}

/// Memories, tables and stacks of `runs` concurrent runs, mapped when the server starts. To map and unmap them for each
/// run costs more than half of a short test: every unmapping interrupts the other processors (`bench sandbox`).
/// Wasmtime clears what a run has touched before the next one gets it. From Linux 6.7 on the kernel says what that is
/// (`PAGEMAP_SCAN`): those pages alone are cleared, and stay. Elsewhere the lowest `RESIDENT` bytes are cleared and the rest is
/// given back, which interrupts other processors.
fn pool(runs: u32) -> PoolingAllocationConfig {
    let (instances, memories, tables) = (budget::INSTANCES, budget::MEMORIES, budget::TABLES);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(runs)
        .total_core_instances(runs * instances)
        .total_memories(runs * memories)
        .total_tables(runs * tables)
        .total_stacks(runs)
        .max_core_instances_per_component(instances)
        .max_memories_per_component(memories)
        .max_tables_per_component(tables)
        .max_unused_warm_slots(UNUSED_WARM)
        .max_memory_size(budget::MEMORY_BYTES)
        .table_elements(budget::TABLE_ELEMENTS)
        .max_tables_per_module(tables)
        .max_memories_per_module(memories)
        .max_core_instance_size(INSTANCE_BYTES)
        .max_component_instance_size(INSTANCE_BYTES)
        .pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(RESIDENT.min(RESIDENT_IN_ALL / usize::try_from(runs).unwrap_or(usize::MAX)))
        .table_keep_resident(RESIDENT_SMALL)
        .async_stack_keep_resident(RESIDENT_SMALL);
    pool
}

/// An engine that only compiles: no clock, one thread, so that the child's CPU limit counts all of its work.
///
/// # Errors
/// When this machine cannot compile.
pub fn compiler() -> anyhow::Result<Engine> {
    let mut config = config()?;
    config.parallel_compilation(false);
    Ok(Engine::new(&config)?)
}

/// How long the compiling child may compute, and how long it may take in all.
pub const COMPILE_CPU: Duration = Duration::from_mins(1);
pub const COMPILE_WALL: Duration = Duration::from_mins(2);
pub const COMPILE_MEMORY: u64 = 4 << 30;

/// How long a plugin may take to describe itself.
pub const DESCRIBE_WALL: Duration = Duration::from_secs(10);
