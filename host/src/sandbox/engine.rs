//! The wasmtime engine: one for the process, with the clock that lets guests be interrupted.

use std::num::NonZeroUsize;
use std::time::Duration;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails};

use super::budget;

/// Bytes of stack for wasm frames, and for wasm and host frames together.
pub const WASM_STACK: usize = 512 << 10;
const FIBER_STACK: usize = 1 << 20;

/// Runs at once for which a pool is mapped: it reserves 17 GiB of addresses for each, of 128 TiB that a process has.
const POOLED: u32 = 2000;
/// Bytes of a run's memory, of each of its tables and of its stack that are cleared rather than given back to the system.
const RESIDENT: usize = 256 << 10;

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
    // One memory of at most 4 GiB: bulk operations look at the epoch once each, so their length must be bounded.
    config.wasm_memory64(false).wasm_multi_memory(false);
    config.wasm_backtrace_max_frames(NonZeroUsize::new(16));
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    Ok(config)
}

/// For so many runs at once.
///
/// # Errors
/// When this machine cannot run compiled wasm.
pub fn new(runs: usize) -> anyhow::Result<Engine> {
    let mut config = config()?;
    // And one that describes itself.
    match u32::try_from(runs.saturating_add(1)).ok().filter(|runs| *runs <= POOLED) {
        Some(runs) => config.allocation_strategy(pool(runs)),
        None => config.allocation_strategy(InstanceAllocationStrategy::OnDemand),
    };
    let engine = Engine::new(&config)?;
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

/// Memories, tables and stacks of `runs` at once, mapped when the server starts. To map and unmap them for each run costs
/// more than half of a short test: every unmapping interrupts the other processors (`bench sandbox`). Wasmtime clears
/// what a run has touched before the next one gets it.
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
        .max_memory_size(budget::MEMORY_BYTES)
        .table_elements(budget::TABLE_ELEMENTS)
        .linear_memory_keep_resident(RESIDENT)
        .table_keep_resident(RESIDENT)
        .async_stack_keep_resident(RESIDENT);
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
