//! Time and correctness of traces: a short path, the lab's with its silent router, a black hole, routers with equal cost, and
//! round trips of 40 and 200 ms, each by every tracer in turns.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::plot::{Bar, BarPanel, OTHER, OURS, WRONG, bars};
use crate::report::Promise;
use crate::stats::{Spread, digits, median};
use crate::support::chain::{V4, V6};
use crate::support::delay::Detour;
use crate::tracers::{Right, Tracer, is_right};

struct Case {
    name: String,
    dst: String,
    right: Right,
    expected: Vec<Option<String>>,
    tracers: Vec<Tracer>,
}

/// A tracer in a case.
struct Row {
    case: usize,
    tracer: Tracer,
    ms: Vec<f64>,
    wrong: usize,
}

/// Slower than this, three rounds say enough.
const SLOW_MS: f64 = 1500.0;

/// The same for each protocol: ours; traceroute as it comes, and as fast as it can be asked to be; mtr and trippy, one round.
/// traceroute's own way over UDP is its default and has no flag.
fn every_tracer() -> Vec<Tracer> {
    let mut all = vec![];
    let flags: [(&str, &[&str], &[&str], &str); 3] =
        [("ICMP", &["-I"], &[], "--icmp"), ("UDP", &[], &["-u"], "--udp"), ("TCP", &["-T"], &["-T"], "--tcp")];
    for (proto, traceroute, mtr, trip) in flags {
        all.push(Tracer::scouter(proto, 1));
        all.push(Tracer::program(proto, "traceroute", &[&["-n"], traceroute].concat()));
        all.push(Tracer::program(proto, "traceroute", &[&["-n", "-q", "1", "-N", "32"], traceroute].concat()));
        all.push(Tracer::program(proto, "mtr", &[&["-n", "-r", "-c", "1", "-G", "1"], mtr].concat()));
        all.push(Tracer::program(proto, "trip", &["-m", "json", "-C", "1", trip]));
    }
    all
}

fn every_path() -> Vec<Tracer> {
    let program = |name, arguments: &[&'static str]| Tracer::program("UDP", name, arguments);
    vec![
        Tracer::scouter("UDP", 8),
        program("traceroute", &["-n"]),
        program("traceroute", &["-n", "-q", "8", "-N", "32"]),
        program("mtr", &["-n", "-r", "-c", "8", "-i", "0.1", "-G", "1", "-u"]),
        program("trip", &["-m", "json", "-C", "8", "-i", "100ms", "--udp"]),
    ]
}

fn into_nothing(quick: bool) -> Vec<Tracer> {
    let program = |name, arguments: &[&'static str]| Tracer::program("ICMP", name, arguments);
    let mut all = vec![
        Tracer::scouter("ICMP", 1),
        Tracer::scouter("UDP", 1),
        Tracer::scouter("TCP", 1),
        program("traceroute", &["-n", "-m", "32", "-q", "1", "-N", "32", "-w", "1", "-I"]),
        program("mtr", &["-n", "-r", "-m", "32", "-c", "1", "-G", "1"]),
        program("trip", &["-m", "json", "-t", "32", "-C", "1"]),
    ];
    // Half a minute, each time.
    all.extend((!quick).then(|| program("traceroute", &["-n", "-m", "32", "-I"])));
    all
}

fn cases(detours: &[(&str, Detour)], quick: bool) -> Vec<Case> {
    let chain = || V4.iter().map(|hop| hop.map(str::to_owned)).collect::<Vec<_>>();
    let to = |dst: &str| {
        let mut path = chain();
        path[7] = Some(dst.to_owned());
        path
    };
    let case = |name: &str, dst: &str, right, expected, tracers| Case {
        name: name.into(),
        dst: dst.into(),
        right,
        expected,
        tracers,
    };
    let mut all = vec![
        case(LAB, "10.81.0.2", Right::Path, to("10.81.0.2"), every_tracer()),
        case(
            "8 hops, the fourth silent, IPv6",
            "fd81::2",
            Right::Path,
            V6.map(|hop| hop.map(str::to_owned)).to_vec(),
            every_tracer(),
        ),
        case(
            "2 hops, all answer",
            "10.80.2.2",
            Right::Path,
            vec![Some("10.80.1.2".into()), Some("10.80.2.2".into())],
            every_tracer(),
        ),
        case("every router of equal cost", "10.81.0.2", Right::EveryPath, to("10.81.0.2"), every_path()),
        case(
            "black hole behind 6 hops",
            "10.81.1.9",
            Right::Nothing,
            chain()[..DROPPED_AFTER].to_vec(),
            into_nothing(quick),
        ),
    ];
    for (rtt, detour) in detours {
        let over = |mut path: Vec<Option<String>>| {
            path[0] = Some(detour.first_hop());
            path
        };
        let dst = detour.target();
        all.push(case(
            &format!("8 hops, the fourth silent, RTT {rtt}"),
            &dst,
            Right::Path,
            over(to(&dst)),
            every_tracer(),
        ));
        let hole = detour.black_hole();
        let name = format!("black hole behind 6 hops, RTT {rtt}");
        all.push(case(&name, &hole, Right::Nothing, over(chain())[..DROPPED_AFTER].to_vec(), into_nothing(quick)));
    }
    all
}

const LAB: &str = "8 hops, the fourth silent";
/// r7 drops a packet before it looks at its TTL: six routers are seen.
const DROPPED_AFTER: usize = 6;

pub fn traces(run: &mut Run) {
    let rounds = run.pick(10, 1);
    let half = [(0, "40 ms", 20), (1, "200 ms", 100)];
    let detours = half.map(|(number, rtt, ms)| {
        let ms = Duration::from_millis(ms);
        (rtt, Detour::build(&run.lab, number, ms, ms))
    });
    let cases = cases(&detours, run.quick);
    let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let tracers =
        cases.iter().enumerate().flat_map(|(number, case)| case.tracers.iter().map(move |tracer| (number, tracer)));
    let mut rows: Vec<Row> = tracers
        .filter(|(_, tracer)| tracer.is_there())
        .map(|(case, tracer)| Row { case, tracer: tracer.clone(), ms: vec![], wrong: 0 })
        .collect();
    for round in 0..rounds {
        for row in &mut rows {
            if round >= 3 && median(&row.ms) > SLOW_MS {
                continue;
            }
            let case = &cases[row.case];
            let (ms, hops) = row.tracer.trace(&run.lab.probe, &server, &case.dst);
            row.ms.push(ms);
            if !is_right(case.right, &case.expected, &hops) {
                row.wrong += 1;
                println!("wrong: {}: {}: {hops:?}", case.name, row.tracer.label());
            }
        }
    }
    drop(server);
    report(run, &cases, &rows);
}

fn report(run: &mut Run, cases: &[Case], rows: &[Row]) {
    run.report.section(
        "Traces",
        "From asking to the answer, or from the start of a program to its end, in turns. Right is an answer with the source of every hop that \
         answers, none where the router is silent, and the target (or nothing, behind the black hole) at the end. Programs run with `-n`; ours looks up the \
         routers' names as well. The second traceroute of each carrier sends one probe for each hop, and 32 at once, as ours does. \
         A link with a delay is two TUN devices and threads that hold packets back. What takes longer than 1.5 s runs three times.",
    );
    let colour = |row: &Row| match row {
        Row { wrong: 1.., .. } => WRONG,
        row if row.tracer.is_ours() => OURS,
        _ => OTHER,
    };
    let of = |case: usize| rows.iter().filter(move |row| row.case == case);
    let panels: Vec<BarPanel> = cases
        .iter()
        .enumerate()
        .map(|(number, case)| BarPanel {
            title: case.name.clone(),
            bars: of(number)
                .map(|row| Bar { label: row.tracer.label(), colour: colour(row), value: Spread::of(&row.ms) })
                .collect(),
        })
        .collect();
    let legend = [("Scouter", OURS), ("a peer", OTHER), ("not always right", WRONG)];
    run.report.plot("traces", "Time of a trace", bars("Time of a trace", "ms", &legend, &panels, true));
    let table = rows.iter().map(|row| {
        let right = format!("{} of {}", row.ms.len() - row.wrong, row.ms.len());
        vec![cases[row.case].name.clone(), row.tracer.label(), Spread::of(&row.ms).text(), right]
    });
    run.report.table(&["path", "by", "ms", "right"], table.collect());
    promises(run, cases, rows);
    let raw: Vec<Value> = rows
        .iter()
        .map(|row| json!({"path": cases[row.case].name, "by": row.tracer.label(), "ms": row.ms, "wrong": row.wrong}))
        .collect();
    run.report.raw("traces", json!(raw));
}

fn promises(run: &mut Run, cases: &[Case], rows: &[Row]) {
    for row in rows.iter().filter(|row| row.tracer.is_ours()) {
        let what = format!("{}: {}: right", cases[row.case].name, row.tracer.label());
        let right = row.ms.len() - row.wrong;
        let all = row.ms.len();
        run.report.judge(&what, &format!("{right} of {all}"), Promise::holds(row.wrong == 0, "all"));
    }
    // A timeout of a second is what nothing may cost, and half of one for all the rest.
    for row in rows.iter().filter(|row| row.tracer.is_ours() && cases[row.case].right == Right::Nothing) {
        let ms = median(&row.ms);
        let what = format!("{}: {}", cases[row.case].name, row.tracer.label());
        run.report.figure(&what, &format!("{} ms", digits(ms)), Promise::at_most(ms, 1500.0, "ms"));
    }
    for proto in ["ICMP", "UDP", "TCP"] {
        let lab = || rows.iter().filter(|row| cases[row.case].name == LAB && row.wrong == 0);
        let fastest = |ours: bool| {
            let of = lab().filter(|row| row.tracer.is_ours() == ours && row.tracer.proto == proto);
            of.map(|row| median(&row.ms)).fold(f64::NAN, f64::min)
        };
        let (ours, theirs) = (fastest(true), fastest(false));
        let got = format!("{} / {} ms, {}×", digits(ours), digits(theirs), digits(ours / theirs));
        let what = format!("the lab's path, {proto}: ours / the fastest peer's with equal answers");
        run.report.figure(&what, &got, Promise::at_most(ours / theirs, 1.1, "×"));
    }
}
