//! From the start of the process to its first answered request: cold, when every plugin has to be compiled first, and warm,
//! when they are in the cache.

use std::time::Instant;

use serde_json::json;

use crate::Run;
use crate::peers::Blackbox;
use crate::report::Promise;
use crate::stats::{Spread, median};

pub fn start(run: &mut Run) {
    let (cold_rounds, warm_rounds) = run.pick((5, 15), (2, 5));
    let (mut cold, mut warm, mut theirs, mut loading) = (vec![], vec![], vec![], vec![]);
    let ms = |started: Instant| started.elapsed().as_secs_f64() * 1e3;
    for round in 0..warm_rounds {
        if round < cold_rounds {
            let folder = tempfile::tempdir().expect("a folder");
            let started = Instant::now();
            let cache = folder.path().to_str().expect("UTF-8");
            let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn"), ("SCOUTER_CACHE_DIR", cache)]);
            assert_eq!(server.get("/api/v1.0/status").status, 200);
            cold.push(ms(started));
        }
        let started = Instant::now();
        let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
        assert_eq!(server.get("/api/v1.0/status").status, 200);
        let took = ms(started);
        let log = server.log();
        let load = log.split("ms=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        drop(server);
        let started = Instant::now();
        drop(Blackbox::start(&run.lab));
        // The first fills whatever the rest finds.
        if round > 0 {
            warm.push(took);
            loading.extend(load);
            theirs.push(ms(started));
        }
    }
    run.report.section(
        "Start",
        "From the start of the process to its first answered request. Cold: the folder of compiled plugins is empty. Warm: it is full. \
         blackbox_exporter has nothing to compile.",
    );
    let text = |samples: &[f64]| format!("{} ms", Spread::of(samples).text());
    let (warm_ms, load_ms) = (median(&warm), median(&loading));
    run.report.figure("cold start", &text(&cold), Promise::Nothing);
    run.report.figure("warm start", &text(&warm), Promise::at_most(warm_ms, 300.0, "ms"));
    run.report.figure("loading every plugin from the cache", &text(&loading), Promise::at_most(load_ms, 100.0, "ms"));
    run.report.figure("blackbox_exporter", &text(&theirs), Promise::Nothing);
    run.report
        .raw("start", json!({"cold_ms": cold, "warm_ms": warm, "loading_ms": loading, "blackbox_exporter_ms": theirs}));
}
