//! Memory: idle, and at its peak under the loads of [`rates`](crate::rates), ours and `blackbox_exporter`'s in turns.
//!
//! We keep what was measured for whoever comes back with the receipt; a peer that answers once keeps nothing (but its last
//! 100). So there are two of ours: one as it is delivered, which keeps 10,000 receipts, and one that keeps 16. The promise
//! is about the second, and the difference is what kept results weigh.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::client::load;
use crate::peers::Blackbox;
use crate::plot::{Bar, BarPanel, OTHER, OURS, THEIRS, bars};
use crate::process::{forget_peak, peak, resident};
use crate::rates::{AT_ONCE, Side, WORKS, many_ports, ours};
use crate::report::Promise;
use crate::stats::{Spread, digits};

struct Weighed {
    name: &'static str,
    colour: &'static str,
    side: Side,
    idle: f64,
    /// MiB at the peak of each concurrency.
    peaks: Vec<f64>,
    kept: Option<u64>,
}

pub fn memory(run: &mut Run) {
    let time = run.pick(Duration::from_secs(3), Duration::from_millis(400));
    many_ports(&run.lab);
    let side = |name, colour, side| Weighed { name, colour, side, idle: 0.0, peaks: vec![], kept: None };
    let mut all = [
        side("Scouter, 16 receipts kept", OURS, ours(&run.lab, &[("SCOUTER_MAX_RECEIPTS", "16")])),
        side("Scouter, 10,000 receipts kept", OTHER, ours(&run.lab, &[])),
        side("blackbox_exporter", THEIRS, Side::Theirs(Blackbox::start(&run.lab))),
    ];
    std::thread::sleep(Duration::from_secs(6));
    for weighed in &mut all {
        weighed.idle = resident(weighed.side.pid());
        forget_peak(weighed.side.pid());
    }
    for at_once in AT_ONCE {
        for work in &WORKS {
            for weighed in &mut all {
                load(&run.lab.probe, &weighed.side.request(work), at_once, time);
            }
        }
        for weighed in &mut all {
            weighed.peaks.push(peak(weighed.side.pid()));
        }
    }
    for weighed in &mut all {
        if let Side::Ours(server) = &weighed.side {
            weighed.kept = server.get("/api/v1.0/status").body["receipts"]["finished"].as_u64();
        }
    }
    report(run, &all);
}

fn report(run: &mut Run, all: &[Weighed; 3]) {
    run.report.section(
        "Memory",
        "Resident memory of each server under the loads of the table above, one concurrency after the other; a peak is the highest so far \
         (`VmHWM`). Receipts live 600 s; what they hold is bounded by `SCOUTER_MAX_RECEIPTS` and `SCOUTER_MAX_RESULT_BYTES`.",
    );
    let even = |value: f64| Spread { low: value, median: value, high: value };
    let panel = |title: String, of: &dyn Fn(&Weighed) -> f64| BarPanel {
        title,
        bars: all.iter().map(|w| Bar { label: w.name.into(), colour: w.colour, value: even(of(w)) }).collect(),
    };
    let mut panels = vec![panel("idle".into(), &|w| w.idle)];
    for (number, at_once) in AT_ONCE.iter().enumerate() {
        panels.push(panel(format!("peak up to {at_once} at once"), &|w| w.peaks[number]));
    }
    run.report.plot("memory", "Resident memory, MiB", bars("Resident memory", "MiB", &[], &panels, false));
    let [few, many, theirs] = all;
    let mib = |value: f64| format!("{} MiB", digits(value));
    run.report.figure("Scouter, idle", &mib(few.idle), Promise::at_most(few.idle, 80.0, "MiB"));
    run.report.figure("blackbox_exporter, idle", &mib(theirs.idle), Promise::Nothing);
    for (number, at_once) in AT_ONCE.iter().enumerate() {
        let (ours, kept, theirs) = (few.peaks[number], many.peaks[number], theirs.peaks[number]);
        let ratio = ours / theirs;
        let promise = if *at_once <= 64 { Promise::at_most(ratio, 1.5, "×") } else { Promise::Nothing };
        let got = format!("{} / {} MiB, {}×", digits(ours), digits(theirs), digits(ratio));
        run.report.figure(&format!("peak up to {at_once} at once, ours / theirs, kept results apart"), &got, promise);
        let what = format!("peak up to {at_once} at once, ours with kept results");
        run.report.figure(&what, &format!("{}, {} more", mib(kept), mib(kept - ours)), Promise::Nothing);
    }
    let raw: Vec<Value> = all
        .iter()
        .map(|w| json!({"server": w.name, "idle_mib": w.idle, "at_once": AT_ONCE, "peak_mib": w.peaks, "receipts": w.kept}))
        .collect();
    run.report.raw("memory", json!(raw));
}
