//! What 1 to 10,000 tests cost that wait for the network all at once: memory, processor time, and the time of everybody else.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use serde_json::{Value, json};

use crate::Run;
use crate::client::{ANY, Request, load};
use crate::peers::Blackbox;
use crate::plot::{Line, LinePanel, OURS, THEIRS, lines};
use crate::process::{cpu, resident};
use crate::report::Promise;
use crate::stats::{Spread, digits, median};
use crate::support::lab::Lab;

/// Nothing comes back from here.
const SILENT: &str = "198.51.100.1";
const TIMEOUT_MS: u32 = 10_000;
/// Long enough for all to be sent, and soon enough for none to be over.
const SETTLED: Duration = Duration::from_secs(4);
const LOOKED_AT: Duration = Duration::from_secs(3);

struct Waited {
    at_once: usize,
    running: f64,
    /// Over idle, MiB.
    mib: f64,
    /// Mappings of memory, of which a process may have `vm.max_map_count`.
    mappings: f64,
    /// Of processor time in a second of waiting.
    cpu_ms: f64,
    /// From POST to its answer, of ours.
    accepted_ms: f64,
    /// Of `GET /healthz` meanwhile.
    health_ms: f64,
    /// From POST to the end of the last test, of ours.
    done_ms: f64,
}

pub fn waiting(run: &mut Run) {
    let counts = run.pick(vec![1, 10, 100, 1000, 10_000], vec![100, 10_000]);
    // A connection of the load generator's and one of the peer's for each.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, 65_536, 65_536);
    let (mut ours, mut theirs) = (vec![], vec![]);
    for at_once in counts {
        // A server that ends under its load takes the client's answer with it; what fewer tests cost is known all the same.
        ours.push(catch_unwind(|| our(&run.lab, at_once)).unwrap_or_else(|_| Waited::nothing(at_once)));
        theirs.push(their(&run.lab, at_once));
    }
    report(run, &ours, &theirs);
}

impl Waited {
    fn nothing(at_once: usize) -> Self {
        let none = f64::NAN;
        Self {
            at_once,
            running: none,
            mib: none,
            mappings: none,
            cpu_ms: none,
            accepted_ms: none,
            health_ms: none,
            done_ms: none,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn mappings(pid: u32) -> f64 {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default().lines().count() as f64
}

fn health(lab: &Lab, request: &Request) -> f64 {
    median(&load(&lab.probe, request, 1, Duration::from_secs(1)).latencies)
}

/// The value of a metric that has one.
fn metric(text: &str, name: &str) -> f64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(f64::NAN)
}

fn our(lab: &Lab, at_once: usize) -> Waited {
    let most = at_once.to_string();
    let server = lab.server(&[
        ("SCOUTER_MAX_PROCESS_COUNT", most.as_str()),
        ("SCOUTER_MAX_TEST_COUNT", &most),
        ("SCOUTER_MAX_QUEUE", &(at_once + 1).to_string()),
        ("SCOUTER_LOG", "info,access=warn"),
    ]);
    server.run(&json!({"ping": [{"dst": "10.77.0.2", "count": 1}]}));
    std::thread::sleep(Duration::from_secs(1));
    let idle = resident(server.pid());
    let test = json!({"dst": SILENT, "count": 1, "timeout_ms": TIMEOUT_MS});
    let body = json!({"ping": vec![test; at_once]}).to_string();
    let started = Instant::now();
    let answer = server.request("POST", "/api/v1.0/tests", Some(&body));
    let accepted_ms = started.elapsed().as_secs_f64() * 1e3;
    let receipt = answer.body["receipt"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
    std::thread::sleep(SETTLED.saturating_sub(started.elapsed()));
    let running = metric(server.get("/metrics").body.as_str().unwrap_or_default(), "scouter_tests_running");
    let used = cpu(server.pid());
    std::thread::sleep(LOOKED_AT);
    let cpu_ms = (cpu(server.pid()) - used) * 1e3 / LOOKED_AT.as_secs_f64();
    let (mib, mappings) = (resident(server.pid()) - idle, mappings(server.pid()));
    let health_ms = health(lab, &Request::get(server.address, "/healthz", ANY));
    let done = loop {
        let body = server.get(&format!("/api/v1.0/tests?receipt={receipt}&wait=30")).body;
        if body["is_running"] == json!(false) {
            break body;
        }
    };
    let done_ms = started.elapsed().as_secs_f64() * 1e3;
    let results = done["results"]["ping"].as_array().map_or(0, Vec::len);
    assert_eq!(results, at_once, "every test has its result");
    Waited { at_once, running, mib, mappings, cpu_ms, accepted_ms, health_ms, done_ms }
}

/// The same of a peer whose probes wait in a connection each.
fn their(lab: &Lab, at_once: usize) -> Waited {
    let blackbox = Blackbox::start(lab);
    load(&lab.probe, &Request::get(blackbox.address, &Blackbox::path("icmp", "10.77.0.2"), ANY), 1, Duration::ZERO);
    std::thread::sleep(Duration::from_secs(1));
    let idle = resident(blackbox.pid());
    let request = Request::get(blackbox.address, &Blackbox::path("icmp", SILENT), ANY);
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| load(&lab.probe, &request, at_once, Duration::ZERO));
        std::thread::sleep(SETTLED);
        let used = cpu(blackbox.pid());
        std::thread::sleep(LOOKED_AT);
        let cpu_ms = (cpu(blackbox.pid()) - used) * 1e3 / LOOKED_AT.as_secs_f64();
        let (mib, mappings) = (resident(blackbox.pid()) - idle, mappings(blackbox.pid()));
        let health_ms = health(lab, &Request::get(blackbox.address, "/-/healthy", ANY));
        let answers = clients.join().expect("clients end");
        // Those that still waited when memory was taken: a probe that fails early has not waited for its timeout.
        let taken_ms = (SETTLED + LOOKED_AT).as_secs_f64() * 1e3;
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let running = answers.latencies.iter().filter(|ms| **ms >= taken_ms).count() as f64;
        Waited {
            at_once,
            running,
            mib,
            mappings,
            cpu_ms,
            accepted_ms: f64::NAN,
            health_ms,
            done_ms: answers.seconds * 1e3,
        }
    })
}

fn report(run: &mut Run, ours: &[Waited], theirs: &[Waited]) {
    run.report.section(
        "Waiting tests",
        "Pings into a black hole with a timeout of 10 s, all at once: ours in one payload, blackbox_exporter's in a connection each. Memory is over \
         idle; it and processor time are taken between the fourth and the seventh second.",
    );
    let panel = |title: &str, of: fn(&Waited) -> f64| {
        let line = |name: &str, colour, waited: &[Waited]| Line {
            name: name.into(),
            colour,
            points: waited
                .iter()
                .map(|waited| Some(of(waited)).filter(|value| *value > 0.0))
                .map(|value| value.map(|value| Spread { low: value, median: value, high: value }))
                .collect(),
        };
        LinePanel {
            title: title.into(),
            steps: ours.iter().map(|waited| digits_of(waited.at_once)).collect(),
            lines: vec![line("Scouter", OURS, ours), line("blackbox_exporter", THEIRS, theirs)],
        }
    };
    let panels = [
        panel("memory over idle, MiB", |w| w.mib),
        panel("CPU of a second, ms", |w| w.cpu_ms),
        panel("GET /healthz meanwhile, ms", |w| w.health_ms),
    ];
    run.report.plot(
        "waiting",
        "What waiting tests cost",
        lines("What waiting tests cost", "waiting", &panels, 3, true),
    );
    let both = |of: fn(&Waited) -> f64, n: usize| format!("{} / {}", digits(of(&ours[n])), digits(of(&theirs[n])));
    let rows = ours.iter().enumerate().map(|(n, own)| {
        vec![
            digits_of(own.at_once),
            format!("{} / {}", whole(own.running), whole(theirs[n].running)),
            both(|w| w.mib, n),
            format!("{} / {}", whole(own.mappings), whole(theirs[n].mappings)),
            both(|w| w.cpu_ms, n),
            both(|w| w.health_ms, n),
            digits(own.accepted_ms),
            both(|w| w.done_ms, n),
        ]
    });
    let head = [
        "tests",
        "waiting, ours / theirs",
        "MiB over idle",
        "mappings",
        "CPU ms a second",
        "GET /healthz, ms",
        "POST answered, ms",
        "all over, ms",
    ];
    run.report.table(&head, rows.collect());
    for own in ours {
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let all = own.at_once as f64;
        let waiting = own.running >= all;
        let what = format!("{} tests: all waiting at once", digits_of(own.at_once));
        let got = if own.running.is_nan() { "the server ended".into() } else { whole(own.running) };
        run.report.figure(&what, &got, Promise::holds(waiting, &whole(all)));
        // 64 MiB for a thousand, as before; few have their share of what all share.
        let limit = 64.0 * (all / 1000.0).max(0.25);
        let what = format!("{} tests: memory over idle", digits_of(own.at_once));
        run.report.figure(&what, &format!("{} MiB", digits(own.mib)), Promise::at_most(own.mib, limit, "MiB"));
    }
    let side = |waited: &[Waited]| -> Vec<Value> {
        let one = |w: &Waited| {
            json!({"tests": w.at_once, "running": w.running, "mib_over_idle": w.mib, "mappings": w.mappings, "cpu_ms_per_s": w.cpu_ms, "accepted_ms": w.accepted_ms,
                "health_ms": w.health_ms, "done_ms": w.done_ms})
        };
        waited.iter().map(one).collect()
    };
    run.report.raw("waiting_ours", json!(side(ours)));
    run.report.raw("waiting_theirs", json!(side(theirs)));
}

/// A count, with its thousands apart.
fn whole(count: f64) -> String {
    if count < 1000.0 { format!("{count:.0}") } else { digits(count) }
}

#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn digits_of(count: usize) -> String {
    whole(count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# TYPE a gauge\na_b 1\na 17\n";
        assert!((metric(text, "a") - 17.0).abs() < f64::EPSILON);
        assert!(metric(text, "c").is_nan());
    }
}
