//! One binary for all integration tests: linking wasmtime once takes long enough.
//!
//! - `api`      every route and every error row of the contract, receipts, waiting, cancelling, signals
//! - `asn`      the ASN database of a running server, and how it is fetched
//! - `cli`      the command line and the settings
//! - `compat`   payloads of the first version's clients, and the shape of their results
//! - `connections` clients that say nothing, or do not read
//! - `docs`     settings, options, links and commands of the documentation
//! - `events`   server-sent events of a receipt
//! - `operator` counters, OpenAPI, and an independent tool that tries it
//! - `hardening` TLS, rates, access log, capabilities
//! - `sandbox`  hostile plugins: what each costs is one failed test
//! - `loading`  hostile plugin files and caches
//! - `layout`   the sources: arrows between modules, sizes of files
//! - `lab`      real servers in network namespaces; the same questions put to ping, dig and curl
//!
//! The lab needs root. Without it its tests are skipped, which is said; `tests/run.sh` makes that an error under `CI`.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that is surprised fails")]
#![expect(clippy::needless_pass_by_value, reason = "options are written where they are used")]
#![expect(clippy::disallowed_types, reason = "the tests are the other side of the network")]

mod api;
mod asn;
mod cli;
mod compat;
mod connections;
mod docs;
mod events;
mod hardening;
mod lab;
mod layout;
mod loading;
mod operator;
mod sandbox;
mod support;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use support::lab::Lab;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = [
        api::trials(),
        asn::trials(),
        cli::trials(),
        compat::trials(),
        connections::trials(),
        docs::trials(),
        events::trials(),
        operator::trials(),
        hardening::trials(),
        sandbox::trials(),
        loading::trials(),
        layout::trials(),
    ]
    .concat_all();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let mut built = None;
    if is_root() {
        let lab = Arc::new(Lab::build());
        trials.extend(lab::trials(&lab));
        trials.extend(compat::lab_trials(&lab));
        built = Some(lab);
    } else {
        skipped("root", "the network lab and the tests of capabilities need root");
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(built);
    conclusion.exit_code()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Tests that are shown as ignored, not as passed, without root.
fn needing_root(trials: Vec<Trial>) -> Vec<Trial> {
    trials.into_iter().map(|trial| trial.with_ignored_flag(!is_root())).collect()
}

/// Says what is not tested here; `tests/run.sh` counts it, and CI does not accept it.
fn skipped(what: &str, why: &str) {
    eprintln!("\nSKIPPED {what}: {why}\n");
    if let Some(list) = std::env::var_os("SCOUTER_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(list);
        file.and_then(|mut file| writeln!(file, "{what}: {why}")).expect("the list of skips");
    }
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Trial>;
}

impl<const N: usize> ConcatAll for [Vec<Trial>; N] {
    fn concat_all(self) -> Vec<Trial> {
        self.into_iter().flatten().collect()
    }
}

/// Names each test after its function, so that the list and the code cannot differ.
#[macro_export]
macro_rules! trials {
    ($group:literal: $($test:ident),+ $(,)?) => {
        vec![$(libtest_mimic::Trial::test(concat!($group, "::", stringify!($test)), || { $test(); Ok(()) })),+]
    };
    ($group:literal, $lab:expr => $($test:ident),+ $(,)?) => {
        vec![$({
            let lab = std::sync::Arc::clone($lab);
            libtest_mimic::Trial::test(concat!($group, "::", stringify!($test)), move || { $test(&lab); Ok(()) })
        }),+]
    };
}
