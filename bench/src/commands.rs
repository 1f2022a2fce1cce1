//! One probe at a time, each from scratch: the command-line programs that do nothing else, and the two servers asked over a
//! connection that is there.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::client::load;
use crate::peers::{Blackbox, once};
use crate::plot::{Bar, BarPanel, OTHER, OURS, THEIRS, bars};
use crate::process::cpu;
use crate::rates::{Side, WORKS, many_ports, ours};
use crate::report::Promise;
use crate::stats::{Spread, digits, median};

/// A program beside a kind of probe.
const PROGRAMS: [(&str, &str, &[&str]); 5] = [
    ("ICMP", "ping", &["-n", "-q", "-c", "1", "10.77.0.2"]),
    ("ICMP", "fping", &["-q", "-c", "1", "10.77.0.2"]),
    ("DNS", "dig", &["@10.77.0.2", "www.lab.test", "A"]),
    ("HTTP", "curl", &["-s", "-o", "/dev/null", "http://10.77.0.2/echo"]),
    ("HTTPS", "curl", &["-s", "-o", "/dev/null", "--http1.1", "--cacert", "CA", "https://10.77.0.2/echo"]),
];

/// Who probed, how, milliseconds from asking to answer, and of processor time each.
struct Row {
    kind: &'static str,
    who: &'static str,
    ms: Vec<f64>,
    cpu_ms: Vec<f64>,
}

pub fn commands(run: &mut Run) {
    let (rounds, each) = run.pick((20, Duration::from_millis(200)), (5, Duration::from_millis(100)));
    many_ports(&run.lab);
    let (ours, theirs) = (ours(&run.lab, &[]), Side::Theirs(Blackbox::start(&run.lab)));
    let ca = run.lab.path("ca.pem").display().to_string();
    let works = || WORKS.iter().filter(|work| work.to == "an address");
    let mut rows: Vec<Row> = vec![];
    for work in works() {
        let names = ["Scouter", "blackbox_exporter"].into_iter();
        let programs = PROGRAMS.iter().filter(|(kind, ..)| *kind == work.kind).map(|(_, name, _)| *name);
        rows.extend(names.chain(programs).map(|who| Row { kind: work.kind, who, ms: vec![], cpu_ms: vec![] }));
    }
    for _ in 0..rounds {
        for row in &mut rows {
            let side = match row.who {
                "Scouter" => Some(&ours),
                "blackbox_exporter" => Some(&theirs),
                _ => None,
            };
            if let (Some(side), Some(work)) = (side, works().find(|work| work.kind == row.kind)) {
                let before = cpu(side.pid());
                let answers = load(&run.lab.probe, &side.request(work), 1, each);
                assert_eq!(answers.bad, 0, "{} {}: {:?}", row.who, row.kind, answers.complaint);
                #[expect(clippy::cast_precision_loss, reason = "hundreds")]
                row.cpu_ms.push((cpu(side.pid()) - before) * 1e3 / answers.latencies.len() as f64);
                row.ms.extend(answers.latencies);
            } else if let Some((_, program, arguments)) =
                PROGRAMS.iter().find(|(kind, program, _)| *kind == row.kind && *program == row.who)
            {
                let arguments: Vec<&str> =
                    arguments.iter().map(|word| if *word == "CA" { &ca } else { *word }).collect();
                let ran = once(&run.lab.probe, Path::new(program), &arguments);
                assert!(ran.ok, "{program}: {}", ran.text);
                row.ms.push(ran.ms);
                row.cpu_ms.push(ran.cpu_ms);
            }
        }
    }
    report(run, &rows);
}

fn report(run: &mut Run, rows: &[Row]) {
    run.report.section(
        "One probe at a time",
        "From the request, or the start of the program, to the answer or its end; one probe to an address, in turns. A program starts for each \
         of its probes, as it does for whoever calls it. Bars: median and middle half.",
    );
    let panels: Vec<BarPanel> = ["HTTP", "HTTPS", "DNS", "ICMP"]
        .into_iter()
        .map(|kind| BarPanel {
            title: kind.into(),
            bars: rows
                .iter()
                .filter(|row| row.kind == kind)
                .map(|row| Bar {
                    label: row.who.into(),
                    colour: match row.who {
                        "Scouter" => OURS,
                        "blackbox_exporter" => THEIRS,
                        _ => OTHER,
                    },
                    value: Spread::quartiles(&row.ms),
                })
                .collect(),
        })
        .collect();
    run.report.plot(
        "one_probe",
        "Time of one probe",
        bars("One probe, from asking to answer", "ms", &[], &panels, true),
    );
    let table = rows.iter().map(|row| {
        vec![row.kind.to_owned(), row.who.to_owned(), Spread::quartiles(&row.ms).text(), digits(median(&row.cpu_ms))]
    });
    run.report.table(&["probe", "by", "ms, median (middle half)", "CPU ms"], table.collect());
    if let Some(row) = rows.iter().find(|row| (row.kind, row.who) == ("ICMP", "Scouter")) {
        let ms = median(&row.ms);
        let what = "a ping of one packet to a neighbour, from POST to answer, median";
        run.report.figure(what, &format!("{} ms", digits(ms)), Promise::at_most(ms, 0.6, "ms"));
    }
    let raw: Vec<Value> = rows
        .iter()
        .map(|row| {
            let ms = Spread::quartiles(&row.ms);
            json!({"probe": row.kind, "by": row.who, "samples": row.ms.len(), "ms": [ms.low, ms.median, ms.high], "cpu_ms": row.cpu_ms})
        })
        .collect();
    run.report.raw("one_probe", json!(raw));
}
