//! The wasmtime engine: one for the process, with the clock that lets guests be interrupted.

use std::num::NonZeroUsize;
use std::time::Duration;

use wasmtime::{Config, Engine, WasmBacktraceDetails};

use super::budget;

/// Bytes of stack for wasm frames, and for wasm and host frames together.
pub const WASM_STACK: usize = 512 << 10;
const FIBER_STACK: usize = 1 << 20;

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

/// # Errors
/// When this machine cannot run compiled wasm.
pub fn new() -> anyhow::Result<Engine> {
    let engine = Engine::new(&config()?)?;
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
