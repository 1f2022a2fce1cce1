//! A plugin's description of itself. `describe` is called at the start, before any test: it computes within the limits
//! of a run, on the guests' threads, and without network.

use std::sync::Arc;

use anyhow::ensure;
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, ResourceType};

use super::engine::DESCRIBE_WALL;
use super::guest::{self, Guest};
use super::imports::{PluginPre, wit};

/// Its `describe` called an import.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("describe calls '{0}', and may call nothing: imports are there for tests only")]
struct Refused(String);

/// A linker whose imports all refuse, but for WASI, which has nothing behind it: languages call it before `describe`.
fn refusing(component: &Component) -> anyhow::Result<Linker<Guest>> {
    let engine = component.engine();
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    for (import, item) in component.component_type().imports(engine) {
        if import.starts_with("wasi:") {
            continue;
        }
        match item.ty {
            ComponentItem::ComponentInstance(instance) => {
                let mut stubs = linker.instance(import)?;
                for (name, export) in instance.exports(engine) {
                    stub(&mut stubs, name, &export.ty, format!("{import}#{name}"))?;
                }
            }
            item => stub(&mut linker.root(), import, &item, import.to_owned())?,
        }
    }
    Ok(linker)
}

fn stub(linker: &mut LinkerInstance<Guest>, name: &str, item: &ComponentItem, call: String) -> wasmtime::Result<()> {
    match item {
        ComponentItem::ComponentFunc(_) => {
            linker.func_new(name, move |_, _, _, _| Err(wasmtime::Error::new(Refused(call.clone()))))
        }
        // A handle is made by a call, and no call is answered.
        ComponentItem::Resource(_) => linker.resource(name, ResourceType::host::<()>(), |_, _| Ok(())),
        _ => Ok(()),
    }
}

/// Asks a plugin what it is. Must be called on the guests' runtime.
pub async fn describe(engine: Engine, component: Component) -> anyhow::Result<wit::test::Description> {
    let pre = PluginPre::new(refusing(&component)?.instantiate_pre(&component)?)?;
    let state = Guest::default();
    let cpu = Arc::clone(&state.budget.cpu);
    let mut store = guest::store(&engine, state);
    let described = cpu.of(async move {
        let plugin = pre.instantiate_async(&mut store).await?;
        plugin.scouter_probe_test().call_describe(&mut store).await
    });
    let described = tokio::time::timeout(DESCRIBE_WALL, described).await;
    ensure!(described.is_ok(), "it takes longer than {} s", DESCRIBE_WALL.as_secs());
    described?.map_err(|error| match error.downcast_ref::<Refused>() {
        Some(refused) => anyhow::Error::new(refused.clone()),
        None => anyhow::Error::from(error),
    })
}
