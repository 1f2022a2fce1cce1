//! Measures what Scouter promises, in the lab of the tests. `make bench` builds and runs it, as root; arguments pick
//! measurements by name. Each line says what was measured, what came out, and what was promised.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement that is surprised ends")]
#![expect(clippy::disallowed_types, reason = "the lab is the other side of the network")]

mod endurance;
mod figures;
mod load;
mod pages;
mod paths;
mod recording;
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../../tests/support/mod.rs"]
mod support;

use support::lab::Lab;

/// One measurement.
type Measure = (&'static str, fn(&Lab));

const ALL: &[Measure] = &[
    ("sandbox", figures::sandbox),
    ("auth", figures::auth),
    ("start", figures::start),
    ("waiting", figures::waiting),
    ("neighbours", figures::neighbours),
    ("rtt", figures::rtt),
    ("phases", figures::phases),
    ("silence", paths::silence),
    ("hundred", paths::hundred),
    ("trace_cpu", paths::trace_cpu),
    ("pages", pages::pages),
    ("page_phases", pages::page_phases),
    ("after_pages", pages::after_pages),
    ("status", load::status),
    ("tests", load::tests),
    ("minute", endurance::minute),
    ("loris", endurance::loris),
    ("cancelled", endurance::cancelled),
    ("signals", endurance::signals),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    assert!(nix::unistd::geteuid().is_root(), "the lab needs root");
    let lab = Lab::build();
    // Not a measurement: only when it is asked for.
    if wanted.iter().any(|w| w == "recording") {
        recording::recording(&lab);
    }
    for (name, measure) in ALL {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            measure(&lab);
        }
    }
}

/// One line of the report.
fn report(what: &str, got: &str, promised: &str) {
    println!("{what:<58} {got:>22}   {promised}");
}
