//! `scouter plugins`: the test types and their options.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{escape, show};
use crate::config::Engine;
use crate::services::Runtimes;

#[derive(Debug, Args)]
pub struct Plugins {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When plugins cannot be loaded at all.
pub fn plugins(engine: &Engine, list: &Plugins) -> anyhow::Result<ExitCode> {
    let runtimes = Runtimes::new(Some(1))?;
    let (_, plugins) = super::load(&runtimes, engine, 1)?;
    if list.json {
        let all: Vec<Value> = plugins
            .iter()
            .map(|p| serde_json::json!({"name": p.name, "version": p.version, "summary": p.summary, "options": p.options.json(), "imports": p.imports}))
            .collect();
        let _ = writeln!(std::io::stdout(), "{}", escape::json(&serde_json::to_string_pretty(&all)?));
    } else {
        for plugin in plugins.iter() {
            show::plugin(plugin);
        }
    }
    for (path, reason) in &plugins.refused {
        eprintln!("{}", escape::line(&format!("{}: {reason}", path.display())));
    }
    runtimes.end();
    Ok(ExitCode::SUCCESS)
}
