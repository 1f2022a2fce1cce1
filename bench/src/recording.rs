//! The picture in README: `scouter run traceroute` on a terminal, recorded by termtosvg (a Python package that
//! `setup.sh bench` installs) in the lab, along the chain of routers.

use std::process::Stdio;

use crate::Run;
use crate::report::Promise;
use crate::support::{plugins, root, scouter};

pub fn recording(run: &mut Run) {
    let arguments = "run traceroute dst=10.81.0.2 proto=UDP";
    let settings = format!(
        "SCOUTER_PLUGIN_DIR={} SCOUTER_TARGETS_ALLOW=10.80.0.0/15 SCOUTER_MMDB_PATH={}",
        plugins().display(),
        root().join("tests/support/asn.mmdb").display()
    );
    let script =
        format!("printf '$ scouter {arguments}\\n'; sleep 1; env {settings} {} {arguments}; sleep 4", scouter());
    let file = run.lab.path("recording.sh");
    std::fs::write(&file, script).expect("written");
    let picture = root().join("docs/traceroute.svg");
    // termtosvg wants a terminal of its own: script(1) makes one.
    let termtosvg = root().join("target/lab-venv/bin/termtosvg");
    let record =
        format!("{} {} -g 100x26 -t window_frame -c 'sh {}'", termtosvg.display(), picture.display(), file.display());
    let mut recorder = run.lab.probe.command("script");
    recorder.env("TERM", "xterm-256color").args(["-qec", &record, "/dev/null"]).stdin(Stdio::null());
    let output = recorder.output().expect("script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let size = std::fs::metadata(&picture).expect("a picture").len();
    run.report.section("Recording", "");
    run.report.figure("docs/traceroute.svg, recorded again", &format!("{} KiB", size >> 10), Promise::Nothing);
}
