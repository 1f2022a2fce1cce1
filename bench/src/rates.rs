//! Probes per second, and what each costs the server in processor time, at 1, 8, 64 and 512 at once: ours and
//! `blackbox_exporter`'s, in turns, on the same targets, under the same load generator.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::client::{Answers, PROBE, Request, TEST, load};
use crate::peers::{Blackbox, once};
use crate::plot::{Line, LinePanel, OURS, THEIRS, lines};
use crate::process::cpu;
use crate::report::Promise;
use crate::stats::{Spread, digits, median, ratios};
use crate::support::lab::Lab;
use crate::support::server::{SECRET, Server};

pub const AT_ONCE: [usize; 4] = [1, 8, 64, 512];
/// Up to here the promises go.
const PROMISED: usize = 64;

/// The same probe, as both are asked for it.
pub struct Work {
    pub kind: &'static str,
    pub to: &'static str,
    pub payload: fn() -> Value,
    pub module: &'static str,
    pub target: &'static str,
}

/// Names have one address each, of IPv4, and neither side remembers what a name led to.
pub static WORKS: [Work; 8] = [
    Work {
        kind: "HTTP",
        to: "an address",
        payload: || json!({"http_request": [{"url": "http://10.77.0.2/echo"}]}),
        module: "http",
        target: "http://10.77.0.2/echo",
    },
    Work {
        kind: "HTTPS",
        to: "an address",
        payload: || json!({"http_request": [{"url": "https://10.77.0.2/echo"}]}),
        module: "http",
        target: "https://10.77.0.2/echo",
    },
    Work {
        kind: "DNS",
        to: "an address",
        payload: || json!({"dns_lookup": [{"qname": "www.lab.test", "ns": "10.77.0.2"}]}),
        module: "dns",
        target: "10.77.0.2",
    },
    Work {
        kind: "ICMP",
        to: "an address",
        payload: || json!({"ping": [{"dst": "10.77.0.2", "count": 1}]}),
        module: "icmp",
        target: "10.77.0.2",
    },
    Work {
        kind: "HTTP",
        to: "a name",
        payload: || json!({"http_request": [{"url": "http://v4.lab.test/echo", "family": "4"}]}),
        module: "http",
        target: "http://v4.lab.test/echo",
    },
    Work {
        kind: "HTTPS",
        to: "a name",
        payload: || json!({"http_request": [{"url": "https://v4.lab.test/echo", "family": "4"}]}),
        module: "http",
        target: "https://v4.lab.test/echo",
    },
    Work {
        kind: "DNS",
        to: "a name",
        payload: || json!({"dns_lookup": [{"qname": "www.lab.test", "ns": "mail.lab.test"}]}),
        module: "dns",
        target: "mail.lab.test",
    },
    Work {
        kind: "ICMP",
        to: "a name",
        payload: || json!({"ping": [{"dst": "v4.lab.test", "count": 1, "family": "4"}]}),
        module: "icmp",
        target: "v4.lab.test",
    },
];

/// A server that can be asked for any [`Work`].
pub enum Side {
    Ours(Server),
    Theirs(Blackbox),
}

impl Side {
    pub fn pid(&self) -> u32 {
        match self {
            Self::Ours(server) => server.pid(),
            Self::Theirs(blackbox) => blackbox.pid(),
        }
    }

    pub fn request(&self, work: &Work) -> Request {
        match self {
            Self::Ours(server) => {
                let body = (work.payload)().to_string();
                Request::post(server.address, "/api/v1.0/tests?wait=20", SECRET, &body, TEST)
            }
            Self::Theirs(blackbox) => Request::get(blackbox.address, &Blackbox::path(work.module, work.target), PROBE),
        }
    }
}

pub fn ours(lab: &Lab, settings: &[(&str, &str)]) -> Side {
    let most = AT_ONCE[AT_ONCE.len() - 1].to_string();
    let settings =
        [&[("SCOUTER_MAX_PROCESS_COUNT", most.as_str()), ("SCOUTER_LOG", "info,access=warn")], settings].concat();
    Side::Ours(lab.server(&settings))
}

/// Thousands of connections a second to one address and port use up the ports, and the kernel's search for a free one is
/// then all that is measured: of both.
pub fn many_ports(lab: &Lab) {
    lab.probe.sh("sysctl -qw net.ipv4.ip_local_port_range='1024 65535' net.ipv4.tcp_tw_reuse=1");
}

/// What one side did in each round.
#[derive(Default)]
struct Rounds {
    per_second: Vec<f64>,
    cpu_ms: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    bad: usize,
}

impl Rounds {
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    fn add(&mut self, answers: &Answers, cpu: f64) {
        self.per_second.push(answers.per_second());
        self.cpu_ms.push(cpu * 1e3 / answers.latencies.len() as f64);
        self.p50_ms.push(answers.latency(50));
        self.p99_ms.push(answers.latency(99));
        self.bad += answers.bad;
        if let Some(complaint) = answers.complaint.as_ref().filter(|_| self.bad == answers.bad) {
            eprintln!("a probe failed: {complaint}");
        }
    }

    fn json(&self) -> Value {
        json!({"per_second": self.per_second, "cpu_ms": self.cpu_ms, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "bad": self.bad})
    }
}

/// One work at one concurrency.
struct Cell {
    work: &'static Work,
    at_once: usize,
    ours: Rounds,
    theirs: Rounds,
}

type Of = fn(&Rounds) -> &Vec<f64>;

impl Cell {
    fn what(&self) -> String {
        format!("{} to {}", self.work.kind, self.work.to)
    }

    /// Ours over theirs, and what was promised of it.
    fn rate(&self) -> (f64, Promise) {
        let ratio = median(&ratios(&self.ours.per_second, &self.theirs.per_second));
        (ratio, if self.at_once <= PROMISED { Promise::at_least(ratio, 1.3, "×") } else { Promise::Nothing })
    }

    fn cpu(&self) -> (f64, Promise) {
        let ratio = median(&ratios(&self.ours.cpu_ms, &self.theirs.cpu_ms));
        (ratio, if self.at_once <= PROMISED { Promise::at_most(ratio, 0.75, "×") } else { Promise::Nothing })
    }
}

pub fn rates(run: &mut Run) {
    let (rounds, time) = run.pick((5, Duration::from_secs(3)), (2, Duration::from_millis(400)));
    many_ports(&run.lab);
    let (ours, theirs) = (ours(&run.lab, &[]), Side::Theirs(Blackbox::start(&run.lab)));
    for work in &WORKS {
        for side in [&ours, &theirs] {
            load(&run.lab.probe, &side.request(work), 8, Duration::from_millis(200));
        }
    }
    let mut cells: Vec<Cell> = AT_ONCE
        .into_iter()
        .flat_map(|at_once| WORKS.iter().map(move |work| (work, at_once)))
        .map(|(work, at_once)| Cell { work, at_once, ours: Rounds::default(), theirs: Rounds::default() })
        .collect();
    let mut questions = vec![vec![]; AT_ONCE.len()];
    for round in 0..rounds {
        for cell in &mut cells {
            let mut sides = [(&ours, &mut cell.ours), (&theirs, &mut cell.theirs)];
            // Whoever comes second finds warmer caches, and fewer free ports.
            if round % 2 == 1 {
                sides.reverse();
            }
            for (side, rounds) in sides {
                let before = cpu(side.pid());
                let answers = load(&run.lab.probe, &side.request(cell.work), cell.at_once, time);
                rounds.add(&answers, cpu(side.pid()) - before);
            }
        }
        for (at_once, asked) in AT_ONCE.iter().zip(&mut questions) {
            asked.push(dnsperf(&run.lab, *at_once, time));
        }
    }
    drop((ours, theirs));
    report(run, &cells, &questions, rounds, time);
}

/// Questions a second of one program that does nothing else: what name server and network can do here.
fn dnsperf(lab: &Lab, at_once: usize, time: Duration) -> f64 {
    let file = lab.path("questions");
    std::fs::write(&file, "www.lab.test A\n").expect("written");
    let (file, at_once) = (file.display().to_string(), at_once.to_string());
    // It takes whole seconds.
    let seconds = time.as_secs().max(1).to_string();
    let arguments = ["-s", "10.77.0.2", "-d", &file, "-l", &seconds, "-q", &at_once];
    let ran = once(&lab.probe, "dnsperf".as_ref(), &arguments);
    let rate = ran.text.lines().find_map(|line| line.trim().strip_prefix("Queries per second:")?.trim().parse().ok());
    rate.unwrap_or_else(|| panic!("dnsperf: {}", ran.text))
}

fn report(run: &mut Run, cells: &[Cell], questions: &[Vec<f64>], rounds: usize, time: Duration) {
    let about = format!(
        "One test in each request, over connections that stay; `POST /tests?wait=…` of ours, `GET /probe` of blackbox_exporter. {rounds} rounds of {} s \
         each, in turns. Both resolve a name anew for each probe, to IPv4 addresses only; both speak HTTP/1.1, on a new connection each time. \
         CPU is user and system time of the server's process and its children, for each probe that succeeded. Ratios are of \
         neighbouring rounds. dnsperf, which does nothing but ask, with as many questions under way, shows what name server and network can do.",
        time.as_secs_f64()
    );
    run.report.section("Rate and CPU", &about);
    for (name, title, pick) in [
        ("rates", "Probes per second", (|rounds| &rounds.per_second) as Of),
        ("cpu", "Server CPU per probe, ms", |rounds| &rounds.cpu_ms),
    ] {
        run.report.plot(name, title, lines(title, "at once", &panels(cells, pick), 4, false));
    }
    let rows = cells.iter().map(|cell| {
        let both = |of: Of| format!("{} / {}", digits(median(of(&cell.ours))), digits(median(of(&cell.theirs))));
        let ratio = |of: Of, promise: &Promise| {
            let text = format!("{}×", Spread::of(&ratios(of(&cell.ours), of(&cell.theirs))).text());
            if matches!(promise, Promise::Said { kept: false, .. }) { format!("**{text}**") } else { text }
        };
        vec![
            cell.what(),
            cell.at_once.to_string(),
            both(|rounds| &rounds.per_second),
            ratio(|rounds| &rounds.per_second, &cell.rate().1),
            both(|rounds| &rounds.cpu_ms),
            ratio(|rounds| &rounds.cpu_ms, &cell.cpu().1),
            both(|rounds| &rounds.p50_ms),
            both(|rounds| &rounds.p99_ms),
            format!("{} / {}", cell.ours.bad, cell.theirs.bad),
        ]
    });
    let head = [
        "probe",
        "at once",
        "/s, ours / theirs",
        "ratio",
        "CPU ms, ours / theirs",
        "ratio",
        "p50 ms",
        "p99 ms",
        "failed",
    ];
    run.report.table(&head, rows.collect());
    let dnsperf = AT_ONCE.iter().zip(questions).map(|(n, asked)| vec![n.to_string(), Spread::of(asked).text()]);
    run.report.table(&["dnsperf, at once", "questions/s"], dnsperf.collect());
    for cell in cells {
        let what = format!("{}, {} at once", cell.what(), cell.at_once);
        let bad = cell.ours.bad;
        run.report.judge(&format!("{what}: failed probes"), &bad.to_string(), Promise::holds(bad == 0, "0"));
        for (name, (ratio, promise)) in [("rate", cell.rate()), ("CPU", cell.cpu())] {
            run.report.judge(&format!("{what}: {name}"), &format!("{}×", digits(ratio)), promise);
        }
    }
    let raw: Vec<Value> = cells
        .iter()
        .map(|cell| {
            json!({"probe": cell.work.kind, "to": cell.work.to, "at_once": cell.at_once, "ours": cell.ours.json(), "theirs": cell.theirs.json()})
        })
        .collect();
    run.report.raw("rates", json!(raw));
    let raw: Vec<Value> =
        AT_ONCE.iter().zip(questions).map(|(n, asked)| json!({"at_once": n, "per_second": asked})).collect();
    run.report.raw("dnsperf", json!(raw));
}

/// A panel for each work, the works in a row.
fn panels(cells: &[Cell], pick: Of) -> Vec<LinePanel> {
    let panel = |work: &'static Work| {
        let own = || cells.iter().filter(|cell| std::ptr::eq(cell.work, work));
        let line = |name: &str, colour, side: fn(&Cell) -> &Rounds| Line {
            name: name.into(),
            colour,
            points: own().map(|cell| Some(Spread::of(pick(side(cell))))).collect(),
        };
        LinePanel {
            title: format!("{} to {}", work.kind, work.to),
            steps: own().map(|cell| cell.at_once.to_string()).collect(),
            lines: vec![
                line("Scouter", OURS, |cell| &cell.ours),
                line("blackbox_exporter", THEIRS, |cell| &cell.theirs),
            ],
        }
    };
    WORKS.iter().map(panel).collect()
}
