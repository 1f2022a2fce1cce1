//! Measures what Scouter promises, in the lab of the tests, beside its peers. `make bench` builds and runs it, as root;
//! arguments pick measurements by name. What comes out is printed as it comes, and written as a report; what falls short of
//! a promise makes the command fail when the report is there.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement that is surprised ends")]
#![expect(clippy::format_push_string, reason = "a page reads better than its writing")]
#![expect(clippy::disallowed_types, reason = "the lab is the other side of the network")]

mod browsers;
mod capture;
mod client;
mod commands;
mod endurance;
mod figures;
mod machine;
mod memory;
mod pages;
mod paths;
mod peers;
mod phases;
mod plot;
mod process;
mod rates;
mod recording;
mod report;
mod rtt;
mod signals;
mod start;
mod stats;
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../../tests/support/mod.rs"]
mod support;
mod tracers;
mod traces;
mod waiting;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use clap::builder::PossibleValuesParser;

use report::{Promise, Report};
use support::lab::Lab;

/// Measures Scouter and its peers in the lab of the tests. As root, on a quiet machine.
#[derive(Parser)]
#[command(after_help = after_help())]
struct Arguments {
    /// Measurements to make; all of them when none is named.
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(names()), hide_possible_values = true)]
    names: Vec<String>,
    /// Fewer and shorter rounds: some minutes instead of about an hour, and wider spreads.
    #[arg(long)]
    quick: bool,
    /// Folder for measurements.md, and for the folder `measurements` with its pictures and numbers.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// What a measurement needs, and where it says what came out.
pub struct Run {
    pub lab: Lab,
    pub report: Report,
    pub quick: bool,
}

impl Run {
    /// The first in a full run, the second with `--quick`.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

struct Measure {
    name: &'static str,
    about: &'static str,
    run: fn(&mut Run),
}

const fn measure(name: &'static str, about: &'static str, run: fn(&mut Run)) -> Measure {
    Measure { name, about, run }
}

/// In the order of the report.
const ALL: &[Measure] = &[
    measure("rates", "probes per second and CPU, beside blackbox_exporter and dnsperf", rates::rates),
    measure("memory", "idle and at peak, beside blackbox_exporter", memory::memory),
    measure("commands", "one probe at a time, beside ping, fping, dig and curl", commands::commands),
    measure("traces", "time and correctness, beside traceroute, mtr and trippy", traces::traces),
    measure("rtt", "RTT error against a packet capture, beside every peer's", rtt::rtt),
    measure("waiting", "what 1 to 10,000 waiting tests cost", waiting::waiting),
    measure("start", "cold and warm start", start::start),
    measure("pages", "a page cold and warm, beside bare chromedriver", pages::pages),
    measure("page_phases", "phases of a page's document, beside curl", pages::page_phases),
    measure("after_pages", "memory after browsers have been stopped", pages::after_pages),
    measure("phases", "phases of http_request, beside curl", phases::phases),
    measure("hundred", "RTTs of 100 traces at once", paths::hundred),
    measure("trace_cpu", "CPU of a trace", paths::trace_cpu),
    measure("sandbox", "a plugin that does nothing", figures::sandbox),
    measure("auth", "what the time of a wrong secret tells", figures::auth),
    measure("neighbours", "an API beside plugins that spin", figures::neighbours),
    measure("status", "GET /status under load", figures::status),
    measure("minute", "1,000 payloads a second for a minute", endurance::minute),
    measure("loris", "1,000 slow connections", endurance::loris),
    measure("cancelled", "10,000 tests, half of them cancelled", endurance::cancelled),
    measure("signals", "SIGTERM and SIGKILL at 1,000 moments", signals::signals),
];

/// The picture in README: not a measurement, and only made when asked for.
const RECORDING: &str = "recording";

fn names() -> Vec<&'static str> {
    ALL.iter().map(|measure| measure.name).chain([RECORDING]).collect()
}

fn after_help() -> String {
    let lines: Vec<String> = ALL.iter().map(|measure| format!("  {:<12} {}", measure.name, measure.about)).collect();
    format!(
        "Measurements:\n{}\n  {RECORDING:<12} the picture in README (not a measurement; only by name)",
        lines.join("\n")
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench: the lab needs root");
        return ExitCode::FAILURE;
    }
    let wanted = |name: &str| arguments.names.iter().any(|wanted| wanted == name);
    let report = Report::new(machine::Machine::look(), arguments.quick);
    let mut run = Run { lab: Lab::build(), report, quick: arguments.quick };
    if wanted(RECORDING) {
        recording::recording(&mut run);
    }
    for measure in ALL {
        if arguments.names.is_empty() || wanted(measure.name) {
            let started = Instant::now();
            // One that is surprised does not take the figures of all others with it.
            if catch_unwind(AssertUnwindSafe(|| (measure.run)(&mut run))).is_err() {
                run.report.figure(measure.name, "ended early", Promise::holds(false, "it ends with figures"));
            }
            println!("({}: {} s)", measure.name, started.elapsed().as_secs());
        }
    }
    // Why a promise falls short, by whoever has looked; no run finds that out.
    if let Ok(findings) = std::fs::read_to_string(support::root().join("bench/findings.md")) {
        run.report.section("Findings", findings.trim());
    }
    finish(&run.report, &arguments)
}

fn finish(report: &Report, arguments: &Arguments) -> ExitCode {
    if let Err(error) = report.write(&arguments.out) {
        eprintln!("bench: --out {}: {error}", arguments.out.display());
        return ExitCode::FAILURE;
    }
    println!("\nThe report is {}.", arguments.out.join("measurements.md").display());
    let short = report.shortfalls();
    if short.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("\n{} of what is promised fell short:", short.len());
    for line in short {
        eprintln!("  {line}");
    }
    ExitCode::FAILURE
}
