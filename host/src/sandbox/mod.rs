//! Test types: components loaded from folders, audited, compiled, described, and run within limits. The only module that
//! knows wasmtime.

// What one run may use.
pub mod budget;
// Machine code, kept between starts.
mod cache;
// Machine code from a component, by a child process.
mod compile;
// CPU time of a guest.
mod cpu;
// What a plugin says about itself.
mod describe;
// The wasmtime engine.
mod engine;
// The state of every guest.
mod guest;
// One file per import of `wit/`.
mod imports;
// Results, read within limits.
mod json;
// A guest's standard output.
mod log;
// On which threads a run is polled.
mod migrate;
// Partial results.
mod progress;
// One run.
mod run;
// JSON Schemas of options and results.
pub mod schema;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use wasmtime::Engine;
use wasmtime::component::Linker;

use imports::{PluginPre, RunState};
use schema::{OptionsSchema, ResultSchema};

pub use compile::child_main as compile_main;
pub use progress::{Partial, Progress};
pub use run::{Outcome, RunError};

/// Every test type by name.
#[derive(Debug, Default)]
pub struct Plugins {
    by_name: BTreeMap<String, Arc<Plugin>>,
    /// Files that are not served, and why.
    pub refused: Vec<(PathBuf, String)>,
}

/// One test type.
pub struct Plugin {
    /// Name of the test type: the file's name without `.wasm`.
    pub name: String,
    pub version: String,
    pub summary: String,
    pub options: OptionsSchema,
    pub result: Arc<ResultSchema>,
    /// What the component imports: what it may do.
    pub imports: Vec<String>,
    /// Of the file, hexadecimal.
    pub sha256: String,
    pre: PluginPre<RunState>,
    engine: Engine,
    history: migrate::RunHistory,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).field("version", &self.version).finish_non_exhaustive()
    }
}

impl Plugins {
    /// Loads every `.wasm` file of the folders, in order; the first of a name wins. A file that cannot be served is
    /// listed in [`Plugins::refused`]: one bad plugin never keeps the others from serving. Guests describe themselves on
    /// `guests`, whose threads have no capabilities. `runs`: concurrent runs of all plugins.
    ///
    /// # Errors
    /// When a folder cannot be read, or the machine cannot run wasm at all.
    pub async fn load(folders: &[PathBuf], cache: Option<&Path>, guests: &Handle, runs: usize) -> anyhow::Result<Self> {
        let started = Instant::now();
        let engine = engine::new(runs)?;
        let loader = Loader { linker: imports::linker(&engine)?, engine, cache: cache::Cache::open(cache), guests };
        let mut plugins = Self::default();
        for folder in folders {
            let entries = std::fs::read_dir(folder)
                .with_context(|| format!("plugin folder '{}' (SCOUTER_PLUGIN_DIR) cannot be read", folder.display()))?;
            let mut files = entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
                .with_context(|| format!("plugin folder '{}'", folder.display()))?;
            files.retain(|path| path.extension().is_some_and(|e| e == "wasm"));
            files.sort();
            for path in files {
                match loader.load(&path).await {
                    Ok(plugin) => plugins.add(path, plugin),
                    Err(error) => plugins.refuse(path, &format!("{error:#}")),
                }
            }
        }
        loader.cache.prune();
        tracing::info!(
            loaded = plugins.by_name.len(),
            refused = plugins.refused.len(),
            ms = started.elapsed().as_millis(),
            "plugins"
        );
        Ok(plugins)
    }

    fn add(&mut self, path: PathBuf, plugin: Plugin) {
        if let Some(first) = self.by_name.get(&plugin.name) {
            let reason = format!("a plugin named '{}' (version {}) is loaded already", first.name, first.version);
            self.refuse(path, &reason);
        } else {
            self.by_name.insert(plugin.name.clone(), Arc::new(plugin));
        }
    }

    fn refuse(&mut self, path: PathBuf, reason: &str) {
        // Parts of it come from the file: they must not write to a terminal or a log on their own.
        let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect();
        tracing::warn!(file = %path.display(), reason, "plugin refused");
        self.refused.push((path, reason));
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.by_name.get(name)
    }

    /// Steps that a check of any test's options takes for each value at most; None when that is not known.
    #[must_use]
    pub fn steps_of_value(&self) -> Option<usize> {
        let steps = |most: usize, plugin: &Arc<Plugin>| Some(most.max(plugin.options.steps_of_value?));
        self.by_name.values().try_fold(1, steps)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Plugin>> {
        self.by_name.values()
    }
}

/// A file name is a test type's name: `[a-z][a-z0-9_]{0,63}`. ASCII only, so that no two look alike.
fn test_type_of(path: &Path) -> anyhow::Result<String> {
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let valid = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    ensure!(valid, "the file's name is no name of a test type: lower-case letters, digits and '_', 64 at most");
    Ok(name.to_owned())
}

/// What loading a plugin needs.
struct Loader<'a> {
    engine: Engine,
    linker: Linker<RunState>,
    cache: cache::Cache,
    guests: &'a Handle,
}

impl Loader<'_> {
    async fn load(&self, path: &Path) -> anyhow::Result<Plugin> {
        let name = test_type_of(path)?;
        let bytes = compile::read_plugin(path)?;
        let component = self.cache.component(&self.engine, &bytes)?;
        let imports: Vec<String> =
            component.component_type().imports(&self.engine).map(|(import, _)| import.to_owned()).collect();
        // The linker knows what is offered: names, versions (an import of 1.0.1 is satisfied by 1.0.0) and types.
        let linked = self.linker.instantiate_pre(&component).map_err(anyhow::Error::from);
        let pre = PluginPre::new(linked.context("it needs what this host does not offer")?)
            .map_err(|error| anyhow::Error::from(error).context("not a scouter:probe plugin"))?;
        let description = self.guests.spawn(describe::describe(self.engine.clone(), component)).await?;
        let description = description.context("describe")?;
        let text = |what: &str, text: String, most: usize| {
            ensure!(!text.is_empty() && text.len() <= most, "its {what} is empty or over {most} bytes");
            ensure!(!text.chars().any(char::is_control), "its {what} contains control characters");
            Ok(text)
        };
        let options = OptionsSchema::parse(&description.options_schema).map_err(anyhow::Error::msg)?;
        let result = ResultSchema::parse(&description.result_schema).map_err(anyhow::Error::msg)?;
        Ok(Plugin {
            name,
            version: text("version", description.version, 64)?,
            summary: text("summary", description.summary, 500)?,
            options,
            result: Arc::new(result),
            imports,
            sha256: hex::encode(Sha256::digest(&bytes)),
            pre,
            engine: self.engine.clone(),
            history: migrate::RunHistory::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_a_test_type_or_refused() {
        assert_eq!(test_type_of(Path::new("/x/dns_lookup.wasm")).expect("valid"), "dns_lookup");
        for bad in ["PING.wasm", "pıng.wasm", "9p.wasm", ".wasm", "a-b.wasm", "a b.wasm", "_a.wasm"] {
            assert!(test_type_of(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(test_type_of(Path::new(&format!("{}.wasm", "a".repeat(65)))).is_err());
    }
}
