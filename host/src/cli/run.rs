//! `scouter run`: one test, here and now, without a server.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::show::Watcher;
use crate::config::Engine;
use crate::plan::payload::Payload;
use crate::plan::{Action, Plan};
use crate::queue::Limits;
use crate::runner::Runner;
use crate::sandbox::Progress;
use crate::services::Runtimes;

#[derive(Debug, Args)]
pub struct Run {
    /// Type of the test, such as `ping`
    #[arg(value_name = "TYPE")]
    test_type: String,
    /// Options of the test; a value that is JSON is taken as such, anything else as text
    #[arg(value_name = "OPTION=VALUE")]
    options: Vec<String>,
    /// Print the finished test as JSON, as the API has it (the default when the output is not a terminal)
    #[arg(long)]
    json: bool,
    /// Print a readable table even when the output is not a terminal
    #[arg(long, conflicts_with = "json")]
    table: bool,
}

/// `key=value` as the payload has it: JSON where it is JSON, text where it is not.
fn options(pairs: &[String]) -> anyhow::Result<Map<String, Value>> {
    let mut options = Map::new();
    for pair in pairs {
        let (name, value) = pair
            .split_once('=')
            .with_context(|| format!("'{pair}' is not an option: write it as option=value, such as count=3"))?;
        // Numbers stay text: an address or a name may look like one, and the schema turns digits into numbers.
        let value = match serde_json::from_str(value) {
            Ok(json @ (Value::Bool(_) | Value::Array(_) | Value::Object(_))) => json,
            _ => Value::String(value.to_owned()),
        };
        if options.insert(name.to_owned(), value).is_some() {
            anyhow::bail!("option '{name}' is given more than once");
        }
    }
    Ok(options)
}

/// # Errors
/// When the test cannot be run at all.
pub fn run(engine: &Engine, run: Run) -> anyhow::Result<ExitCode> {
    let options = options(&run.options)?;
    let runtimes = Runtimes::new(None)?;
    let (services, plugins) = super::load(&runtimes, engine, 1)?;
    if plugins.get(&run.test_type).is_none() {
        let known: Vec<&str> = plugins.iter().map(|plugin| plugin.name.as_str()).collect();
        let refused =
            plugins.refused.iter().find(|(path, _)| path.file_stem().is_some_and(|s| s == run.test_type.as_str()));
        if let Some((_, reason)) = refused {
            anyhow::bail!("test type '{}' was not loaded: {reason}", run.test_type);
        }
        anyhow::bail!("there is no test type '{}'; there is: {}", run.test_type, known.join(", "));
    }
    let waiting = Limits { tests: 1, bytes: usize::MAX };
    let runner = Runner::new(Arc::clone(&services), 1, waiting, engine.test_timeout());
    let payload = Payload(vec![(run.test_type, vec![options])]);
    let Some(planned) = Plan::new(payload, &plugins).tests.pop() else { anyhow::bail!("nothing to run") };
    let (plugin, options) = match planned.action {
        Action::Run { plugin, options } => (plugin, options),
        Action::Refuse { message, .. } => anyhow::bail!(message),
    };
    let table = run.table || (!run.json && std::io::stdout().is_terminal());
    let id = planned.id;
    let (cancel, partial) = (CancellationToken::new(), Arc::new(Progress::default()));
    let running = {
        let (cancel, partial) = (cancel.clone(), Arc::clone(&partial));
        async move { runner.run(&id, &plugin, &options, Duration::ZERO, &cancel, partial, None).await }
    };
    // Not on this thread, which has its capabilities yet: this one shows how far it has come.
    let mut running = runtimes.io.spawn(running);
    let done = runtimes.io.block_on(async {
        let mut watcher = Watcher::new(table);
        loop {
            tokio::select! {
                biased;
                json = &mut running => return Ok::<_, anyhow::Error>(watcher.finish(&json?)),
                () = partial.changed() => watcher.progress(partial.newest().and_then(|partial| partial.json()).as_deref()),
                _ = tokio::signal::ctrl_c() => cancel.cancel(),
            }
        }
    });
    runtimes.io.block_on(services.net.browsers.end());
    runtimes.end();
    Ok(if done? { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_json_where_they_are_json() {
        let pairs =
            ["dst=192.0.2.1", "count=3", "headers={\"a\": \"b\"}", "ignore_ssl=true", "url=http://x/?a=b", "empty="];
        let options = options(&pairs.map(String::from)).expect("valid");
        let expected = serde_json::json!({"dst": "192.0.2.1", "count": "3", "headers": {"a": "b"}, "ignore_ssl": true, "url": "http://x/?a=b", "empty": ""});
        assert_eq!(Value::Object(options), expected);
        assert!(super::options(&["novalue".into()]).is_err());
        assert!(super::options(&["dst=a".into(), "dst=b".into()]).is_err());
    }
}
