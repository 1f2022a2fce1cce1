//! The command line: `scouter` (or `scouter serve`), `scouter run TYPE key=value…`, `scouter plugins`.

mod escape;
mod health;
mod plugins;
mod run;
mod serve;
mod show;

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{ALIASES, Engine, LogFormat, Serve};
use crate::metrics::Metrics;
use crate::sandbox::Plugins;
use crate::services::{Runtimes, Services};
use scouter_net::Net;
use scouter_net::policy::Policy;
use scouter_net::privilege;
use scouter_net::system::System;

/// Remote network troubleshooting: tests as sandboxed WebAssembly components behind a REST API.
///
/// Without a command it serves the API.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
    #[command(flatten)]
    engine: Engine,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the REST API (the default)
    Serve(Box<Serve>),
    /// Run one test here, without a server; exit status 1 when it failed
    Run(run::Run),
    /// List the test types and their options
    Plugins(plugins::Plugins),
    /// Ask the server on this machine whether it is well; exit status 2 when it is not
    Health(health::Health),
    /// Compile a component: wasm on standard input, machine code on standard output
    #[command(hide = true)]
    Compile,
    /// Find out whether a browser may have a sandbox of its own
    #[command(hide = true)]
    Unshare,
    /// Run a browser, and end everything that it started when it or the standard input ends
    #[command(hide = true)]
    Supervise {
        folder: std::path::PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<String>,
    },
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let done = match cli.command {
        Some(Command::Compile) => crate::sandbox::compile_main().map(|()| ExitCode::SUCCESS),
        Some(Command::Unshare) => scouter_net::browser::unshare_main().map(|()| ExitCode::SUCCESS),
        Some(Command::Health(asked)) => health::health(&asked),
        Some(Command::Supervise { folder, program }) => {
            scouter_net::browser::supervisor_main(&folder, &program).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Run(run)) => {
            log(&cli.engine, LevelFilter::ERROR);
            // What it may not do then says so itself.
            let _ = privilege::raise();
            run::run(&cli.engine, run)
        }
        Some(Command::Plugins(list)) => {
            log(&cli.engine, LevelFilter::WARN);
            plugins::plugins(&cli.engine, &list)
        }
        Some(Command::Serve(serve)) => {
            log(&cli.engine, LevelFilter::INFO);
            serve::serve(&cli.engine, &serve)
        }
        None => {
            log(&cli.engine, LevelFilter::INFO);
            serve::serve(&cli.engine, &cli.serve)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("scouter: {}", escape::line(&format!("{error:#}")));
        ExitCode::from(2)
    })
}

/// Parses the command line and the environment, older names of variables included.
fn parse() -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    for (flag, now, before) in ALIASES {
        if !is_given(now) && is_given(before) {
            let rename = |command: clap::Command| command.mut_arg(flag, |arg| arg.env(before));
            // What every command takes is there only once.
            let serve = command.find_subcommand("serve");
            if serve.is_some_and(|serve| serve.get_arguments().any(|arg| arg.get_id() == flag)) {
                command = command.mut_subcommand("serve", rename);
            }
            command = rename(command);
        }
    }
    let variables = variables(&command);
    without_empty(command)
        .try_get_matches()
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches))
        .map_err(|error| name_variable(error, &variables))
}

fn is_given(variable: impl AsRef<OsStr>) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// An empty variable says as much as none: compose files write `NAME: ${NAME:-}`. Only an empty secret is a mistake.
fn without_empty(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if name != "SCOUTER_API_SECRET" && std::env::var_os(name).is_some_and(|value| value.is_empty()) => {
            arg.env(Resettable::Reset)
        }
        _ => arg,
    });
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_empty))
}

/// How clap names a setting in errors, and the variable that sets it.
fn variables(command: &clap::Command) -> Vec<(String, String)> {
    let named = |arg: &clap::Arg| Some((format!("--{} ", arg.get_long()?), arg.get_env()?.to_str()?.to_owned()));
    command.get_arguments().filter_map(named).collect()
}

/// clap names the flag only; a bad value that came from the environment is looked for there.
fn name_variable(error: clap::Error, variables: &[(String, String)]) -> clap::Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (Some(flag), Some(value)) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue)) else {
        return error;
    };
    let from =
        variables.iter().find(|(long, _)| format!("{flag} ").starts_with(long.as_str())).map(|(_, variable)| variable);
    match from.and_then(|name| Some((name, std::env::var(name).ok()?))) {
        Some((name, set)) if set == value || set.split(',').any(|part| part == value) => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let kind = match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return error,
                kind => kind,
            };
            clap::Error::raw(kind, format!("environment variable {name}: {text}"))
        }
        _ => error,
    }
}

fn log(engine: &Engine, default: LevelFilter) {
    let filter = engine.log.clone().unwrap_or_else(|| Targets::new().with_default(default));
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match engine.log_format {
        LogFormat::Text => builder.with_target(false).finish().with(filter).init(),
        LogFormat::Json => builder.json().finish().with(filter).init(),
    }
}

/// Engines and plugins, for so many concurrent runs.
fn load(runtimes: &Runtimes, engine: &Engine, runs: usize) -> anyhow::Result<(Arc<Services>, Arc<Plugins>)> {
    runtimes.io.block_on(async {
        let system = Arc::new(System::of_this_host());
        let (allow, deny) = (engine.targets_allow.clone(), engine.targets_deny.clone());
        let policy = Policy::new(allow, deny, Arc::clone(&system));
        let net = Net::open(system, &policy, engine.asn_file(), engine.browsers())?;
        net.asn.follow();
        let services = Arc::new(Services {
            io: runtimes.io.handle().clone(),
            guests: runtimes.guests.handle().clone(),
            net,
            policy,
            metrics: Metrics::default(),
        });
        let plugins =
            Plugins::load(&engine.plugin_dirs()?, engine.cache_folder().as_deref(), runtimes.guests.handle(), runs)
                .await?;
        Ok((services, Arc::new(plugins)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
