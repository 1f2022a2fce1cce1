//! How far a reported round trip is from what happened: each tool's numbers beside the kernel's timestamps of the same
//! packets, from a capture on the probe's interface. ICMP echoes, TCP handshakes and DNS questions, tools in turns.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::capture::Capture;
use crate::machine::trip;
use crate::peers::{Blackbox, once};
use crate::plot::{Bar, BarPanel, OTHER, OURS, THEIRS, bars};
use crate::report::Promise;
use crate::stats::{Spread, digits, median};
use crate::support::lab::Lab;
use crate::support::server::Server;

const TARGET: &str = "10.77.0.2";
/// Probes of each tool in each round.
const EACH: usize = 20;
/// Between one probe and the next.
const APART: Duration = Duration::from_millis(20);

/// What tools are run with.
struct Beside<'a> {
    lab: &'a Lab,
    server: Server,
    blackbox: Blackbox,
}

/// Round trips that a tool reports, in milliseconds and in the order of its probes.
type Tool = (&'static str, fn(&Beside) -> Vec<f64>);

struct Kind {
    name: &'static str,
    filter: &'static str,
    tools: &'static [Tool],
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "ICMP echo",
        filter: "icmp",
        tools: &[
            ("Scouter ping", ours_icmp),
            ("ping", ping),
            ("fping", fping),
            ("mtr", mtr),
            ("traceroute -I", traceroute),
            ("trippy", trippy),
            ("blackbox_exporter", |beside| beside.scrape("icmp", TARGET, "probe_icmp_duration_seconds{phase=\"rtt\"}")),
        ],
    },
    Kind {
        name: "TCP handshake",
        filter: "tcp port 80 and tcp[tcpflags] & tcp-syn != 0",
        tools: &[
            ("Scouter http_request", ours_tcp),
            ("curl", curl),
            ("blackbox_exporter", |beside| {
                beside.scrape("http", "http://10.77.0.2/echo", "probe_http_duration_seconds{phase=\"connect\"}")
            }),
        ],
    },
    Kind {
        name: "DNS question",
        filter: "udp port 53",
        tools: &[
            ("Scouter dns_lookup", ours_dns),
            ("dig", dig),
            ("dnsperf", dnsperf),
            ("blackbox_exporter", |beside| {
                beside.scrape("dns", TARGET, "probe_dns_duration_seconds{phase=\"request\"}")
            }),
        ],
    },
];

fn seconds(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().map(|seconds| seconds * 1e3)
}

/// Apart as all probes are: right after another one, caches are warm and the packet is faster.
fn several(probe: impl Fn() -> Option<f64>) -> Vec<f64> {
    let apart = || {
        std::thread::sleep(APART);
        probe()
    };
    (0..EACH).filter_map(|_| apart()).collect()
}

fn ours_icmp(beside: &Beside) -> Vec<f64> {
    let test = beside.server.test("ping", &json!({"dst": TARGET, "count": EACH, "interval_ms": 20}));
    let replies = test["result"]["replies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut replies: Vec<_> =
        replies.iter().filter_map(|r| Some((r["seq"].as_u64()?, r["rtt_ms"].as_f64()?))).collect();
    replies.sort_by_key(|(sequence, _)| *sequence);
    replies.into_iter().map(|(_, ms)| ms).collect()
}

fn ours_tcp(beside: &Beside) -> Vec<f64> {
    let options = json!({"url": "http://10.77.0.2/echo"});
    several(|| beside.server.test("http_request", &options)["result"]["timings"]["connect"].as_f64())
}

fn ours_dns(beside: &Beside) -> Vec<f64> {
    let options = json!({"qname": "www.lab.test", "ns": TARGET});
    several(|| Some(beside.server.test("dns_lookup", &options)["result"]["elapsed_time"].as_f64()? * 1e3))
}

impl Beside<'_> {
    fn program(&self, program: &str, arguments: &[&str]) -> String {
        once(&self.lab.probe, Path::new(program), arguments).text
    }

    fn scrape(&self, module: &str, target: &str, metric: &str) -> Vec<f64> {
        let url = format!("http://{}{}", self.blackbox.address, Blackbox::path(module, target));
        let text = || self.lab.probe.inside(|| ureq::get(&url).call().ok()?.body_mut().read_to_string().ok());
        several(|| text()?.lines().find_map(|line| seconds(line.strip_prefix(metric)?)))
    }
}

/// The number in front of ` ms` after `mark`, on each line that has it.
fn after(text: &str, mark: &str) -> Vec<f64> {
    text.lines().filter_map(|line| line.split(mark).nth(1)?.split(' ').next()?.parse().ok()).collect()
}

fn ping(beside: &Beside) -> Vec<f64> {
    after(&beside.program("ping", &["-n", "-c", &EACH.to_string(), "-i", "0.02", TARGET]), "time=")
}

fn fping(beside: &Beside) -> Vec<f64> {
    after(&beside.program("fping", &["-c", &EACH.to_string(), "-p", "20", TARGET]), "64 bytes, ")
}

fn mtr(beside: &Beside) -> Vec<f64> {
    let text = beside.program("mtr", &["--raw", "-n", "-m", "1", "-c", &EACH.to_string(), "-i", "0.02", TARGET]);
    // `p HOP MICROSECONDS SEQUENCE`
    let microseconds = |line: &str| line.strip_prefix("p 0 ")?.split(' ').next()?.parse::<f64>().ok();
    text.lines().filter_map(microseconds).map(|us| us / 1e3).collect()
}

fn traceroute(beside: &Beside) -> Vec<f64> {
    let run = || beside.program("traceroute", &["-I", "-n", "-q", "10", "-N", "1", "-z", "20", "-m", "1", TARGET]);
    let hop = |text: String| -> Vec<f64> {
        let words: Vec<&str> = text.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        words.windows(2).filter(|pair| pair[1] == "ms").filter_map(|pair| pair[0].parse().ok()).collect()
    };
    (0..EACH / 10).flat_map(|_| hop(run())).collect()
}

fn trippy(beside: &Beside) -> Vec<f64> {
    let Some(trip) = trip() else { return vec![] };
    let arguments = ["-m", "json", "-C", "1", "-t", "1", "-i", "20ms", "-T", "20ms", "-g", "10ms", TARGET];
    let run = || once(&beside.lab.probe, &trip, &arguments).text;
    let last = |text: String| serde_json::from_str::<Value>(&text).ok()?["hops"][0]["last"].as_str()?.parse().ok();
    (0..EACH / 4).filter_map(|_| last(run())).collect()
}

fn curl(beside: &Beside) -> Vec<f64> {
    let format = "%{time_namelookup} %{time_connect}\n";
    several(|| {
        let text = beside.program("curl", &["-s", "-o", "/dev/null", "-w", format, "http://10.77.0.2/echo"]);
        let (name, connect) = text.trim().split_once(' ')?;
        Some(seconds(connect)? - seconds(name)?)
    })
}

fn dig(beside: &Beside) -> Vec<f64> {
    several(|| {
        let text = beside.program("dig", &["-u", "@10.77.0.2", "www.lab.test", "A"]);
        let us = text.lines().find_map(|line| line.strip_prefix(";; Query time: ")?.strip_suffix(" usec"))?;
        us.parse::<f64>().ok().map(|us| us / 1e3)
    })
}

fn dnsperf(beside: &Beside) -> Vec<f64> {
    let file = beside.lab.path("questions");
    std::fs::write(&file, "www.lab.test A\n").expect("written");
    let (file, count) = (file.display().to_string(), EACH.to_string());
    let text = beside.program("dnsperf", &["-v", "-q", "1", "-Q", "50", "-n", &count, "-s", TARGET, "-d", &file]);
    // `> NOERROR www.lab.test A 0.000123`
    text.lines().filter_map(|line| seconds(line.strip_prefix("> NOERROR")?.split_whitespace().last()?)).collect()
}

/// What a tool reported beside what was captured.
struct Judged {
    kind: &'static str,
    tool: &'static str,
    pairs: Vec<(f64, f64)>,
}

impl Judged {
    /// Microseconds.
    fn errors(&self) -> Vec<f64> {
        self.pairs.iter().map(|(captured, reported)| (reported - captured).abs() * 1e3).collect()
    }

    fn bias(&self) -> f64 {
        median(&self.pairs.iter().map(|(captured, reported)| (reported - captured) * 1e3).collect::<Vec<_>>())
    }
}

pub fn rtt(run: &mut Run) {
    let rounds = run.pick(15, 2);
    let (server, blackbox) = (run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]), Blackbox::start(&run.lab));
    let beside = Beside { lab: &run.lab, server, blackbox };
    let mut judged: Vec<Judged> = KINDS
        .iter()
        .flat_map(|kind| kind.tools.iter().map(|(tool, _)| Judged { kind: kind.name, tool, pairs: vec![] }))
        .collect();
    for round in 0..=rounds {
        let tools = KINDS.iter().flat_map(|kind| kind.tools.iter().map(move |tool| (kind, tool)));
        for ((kind, (tool, probe)), judged) in tools.zip(&mut judged) {
            let capture = Capture::start(&run.lab, "veth0", kind.filter);
            let reported = probe(&beside);
            let captured = capture.round_trips(reported.len());
            // The first finds caches empty everywhere, and a neighbour's address to be asked for.
            if round > 0 {
                assert_eq!(reported.len(), captured.len(), "{tool}: reported {reported:?}, captured {captured:?}");
                judged.pairs.extend(captured.into_iter().zip(reported));
            }
        }
    }
    drop(beside);
    report(run, &judged);
}

fn report(run: &mut Run, judged: &[Judged]) {
    run.report.section(
        "RTT error",
        &format!(
            "How far a reported time is from the packets' own: tcpdump on the probe's interface, whose timestamps are the kernel's. To a \
             neighbour, {EACH} probes of each tool in each round, 20 ms apart, in turns. Bars: median and middle half of the absolute error. trippy prints \
             hundredths of a millisecond."
        ),
    );
    let panels: Vec<BarPanel> = KINDS
        .iter()
        .map(|kind| BarPanel {
            title: kind.name.into(),
            bars: judged
                .iter()
                .filter(|judged| judged.kind == kind.name && !judged.pairs.is_empty())
                .map(|judged| Bar {
                    label: judged.tool.into(),
                    colour: match judged.tool {
                        "blackbox_exporter" => THEIRS,
                        tool if tool.starts_with("Scouter") => OURS,
                        _ => OTHER,
                    },
                    value: Spread::quartiles(&judged.errors()),
                })
                .collect(),
        })
        .collect();
    run.report.plot("rtt_error", "RTT error", bars("RTT error against a packet capture", "µs", &[], &panels, true));
    let rows = judged.iter().map(|judged| {
        let captured: Vec<f64> = judged.pairs.iter().map(|(captured, _)| captured * 1e3).collect();
        vec![
            judged.kind.to_owned(),
            judged.tool.to_owned(),
            judged.pairs.len().to_string(),
            digits(median(&captured)),
            Spread::quartiles(&judged.errors()).text(),
            digits(judged.bias()),
        ]
    });
    let head =
        ["what", "tool", "samples", "captured, median µs", "error µs, median (middle half)", "too long by, median µs"];
    run.report.table(&head, rows.collect());
    for kind in &KINDS {
        let of = |judged: &Judged| median(&judged.errors());
        let mut all = judged.iter().filter(|judged| judged.kind == kind.name);
        let Some(ours) = all.next().map(of) else { continue };
        let best = all.map(of).fold(f64::NAN, f64::min);
        let what = format!("{}: median RTT error, ours / the best peer's", kind.name);
        let got = format!("{} / {} µs", digits(ours), digits(best));
        run.report.figure(&what, &got, Promise::holds(ours <= best, "≤ every peer's"));
    }
    let raw: Vec<Value> = judged
        .iter()
        .map(|judged| {
            let us = |ms: f64| (ms * 1e6).round() / 1e3;
            let pairs: Vec<[f64; 2]> = judged.pairs.iter().map(|(c, r)| [us(*c), us(*r)]).collect();
            json!({"what": judged.kind, "tool": judged.tool, "captured_and_reported_us": pairs})
        })
        .collect();
    run.report.raw("rtt_error", json!(raw));
}
