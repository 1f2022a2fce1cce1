//! What a page load costs beyond what the browser itself needs, and whether its phases are true.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Run;
use crate::browsers::Bare;
use crate::plot::{Bar, BarPanel, OTHER, OURS, bars};
use crate::process::resident;
use crate::report::Promise;
use crate::stats::{Spread, median};
use crate::support::server::{Server, children};

const PAGE: &str = "http://v4.lab.test/page/index.html";
const ROUNDS: usize = 10;

const SECTION: &str = "Pages";
const ABOUT: &str = "A page with seven resources in a real browser, in turns with chromedriver alone. Warm, chromedriver navigates in one session again \
    and again; cold, it starts, makes a session (with WebDriver BiDi, as a test needs it, and without), navigates and deletes the session. \
    Ours is from POST to the answer with every request of the page.";

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn load(server: &Server, driver: &str) -> (f64, Value) {
    let started = Instant::now();
    let test = server.test("browser_request", &json!({"url": PAGE, "driver": driver}));
    let took = ms(started);
    assert_eq!(test["failed"], json!(false), "{test}");
    (took, test["result"].clone())
}

/// Chrome warm and cold, beside chromedriver alone in turns; then Firefox.
pub fn pages(run: &mut Run) {
    let bare = Bare::start(&run.lab);
    let (mut navigate, mut warm) = (vec![], vec![]);
    let (mut cold_bare, mut cold_bidi, mut cold) = (vec![], vec![], vec![]);
    let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    load(&server, "chrome");
    let session = bare.session(false);
    let go = |session: &str| {
        let started = Instant::now();
        bare.ask("POST", &format!("/session/{session}/url"), &json!({"url": PAGE}));
        ms(started)
    };
    go(&session);
    for _ in 0..run.pick(ROUNDS, 3) {
        // The browser makes itself ready for its next page meanwhile.
        std::thread::sleep(Duration::from_millis(500));
        navigate.push(go(&session));
        warm.push(load(&server, "chrome").0);
    }
    bare.ask("DELETE", &format!("/session/{session}"), &json!({}));
    drop(server);
    for _ in 0..run.pick(ROUNDS, 3) {
        for (bidi, times) in [(false, &mut cold_bare), (true, &mut cold_bidi)] {
            let started = Instant::now();
            let alone = Bare::start(&run.lab);
            let session = alone.session(bidi);
            alone.ask("POST", &format!("/session/{session}/url"), &json!({"url": PAGE}));
            times.push(ms(started));
            alone.ask("DELETE", &format!("/session/{session}"), &json!({}));
        }
        let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
        cold.push(load(&server, "chrome").0);
    }
    drop(bare);
    let (firefox_warm, firefox_cold) = firefox(run);
    run.report.section(SECTION, ABOUT);
    let row = |label: &str, colour, samples: &[f64]| Bar { label: label.into(), colour, value: Spread::of(samples) };
    let panels = [
        BarPanel {
            title: "warm: the browser is there".into(),
            bars: vec![
                row("Scouter, Chrome", OURS, &warm),
                row("Scouter, Firefox", OURS, &firefox_warm),
                row("chromedriver navigates", OTHER, &navigate),
            ],
        },
        BarPanel {
            title: "cold: from the start of the browser".into(),
            bars: vec![
                row("Scouter, Chrome", OURS, &cold),
                row("Scouter, Firefox", OURS, &firefox_cold),
                row("chromedriver, a session with BiDi", OTHER, &cold_bidi),
                row("chromedriver, a session without", OTHER, &cold_bare),
            ],
        },
    ];
    run.report.plot("pages", "Time of a page", bars("Time of a page with seven resources", "ms", &[], &panels, false));
    let figure = |run: &mut Run, what: &str, ours: f64, text: String, most: f64| {
        run.report.figure(what, &text, Promise::at_most(ours, most.round(), "ms"));
    };
    let (bare_ms, warm_ms, cold_ms) = (median(&navigate), median(&warm), median(&cold));
    let got = format!("{warm_ms:.0} ms, bare {bare_ms:.0} ms");
    figure(run, "browser_request, warm Chrome", warm_ms, got, bare_ms * 1.3 + 150.0);
    for (session, samples) in [("a session with BiDi", &cold_bidi), ("a session without", &cold_bare)] {
        let bare_ms = median(samples);
        let got = format!("{cold_ms:.0} ms, bare {bare_ms:.0} ms");
        let what = format!("browser_request, cold Chrome, beside chromedriver and {session}");
        figure(run, &what, cold_ms, got, bare_ms * 1.2);
    }
    let ms = median(&firefox_warm);
    figure(run, "browser_request, warm Firefox", ms, format!("{ms:.0} ms"), warm_ms + 200.0);
    let ms = median(&firefox_cold);
    figure(run, "browser_request, cold Firefox", ms, format!("{ms:.0} ms"), 5200.0);
    let raw = json!({"warm_ms": warm, "navigate_ms": navigate, "cold_ms": cold, "bare_cold_bidi_ms": cold_bidi, "bare_cold_ms": cold_bare,
        "firefox_warm_ms": firefox_warm, "firefox_cold_ms": firefox_cold});
    run.report.raw("pages", raw);
}

fn firefox(run: &Run) -> (Vec<f64>, Vec<f64>) {
    let (mut warm, mut cold) = (vec![], vec![]);
    for _ in 0..run.pick(ROUNDS / 2, 2) {
        let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
        cold.push(load(&server, "firefox").0);
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(500));
            warm.push(load(&server, "firefox").0);
        }
    }
    (warm, cold)
}

/// The phases of a page's document, and curl's of the same resource, in turns; each over a new connection.
pub fn page_phases(run: &mut Run) {
    let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let format = "%{time_namelookup} %{time_connect} %{time_appconnect} %{time_pretransfer} %{time_starttransfer}\n";
    let ca = run.lab.path("ca.pem").display().to_string();
    for url in [PAGE, "https://v4.lab.test/page/index.html"] {
        let (mut ours, mut theirs) = (vec![vec![]; 4], vec![vec![]; 4]);
        for _ in 0..run.pick(ROUNDS, 3) {
            let once = ["-s", "-o", "/dev/null", "--http2", "--cacert", &ca, "-w", format];
            let output = run
                .lab
                .probe
                .output("curl", &[&once[..], &["http://mail.lab.test/echo", "--next"], &once[..], &[url]].concat());
            let second = output.lines().nth(1).expect("two transfers");
            let t: Vec<f64> = second.split(' ').map(|v| v.parse::<f64>().expect("a number") * 1e3).collect();
            let tls = (t[2] - t[1]).max(0.0);
            for (n, length) in [t[0], t[1] - t[0], tls, t[4] - t[3]].into_iter().enumerate() {
                theirs[n].push(length);
            }
            let test = server.test("browser_request", &json!({"url": url, "ignore_ssl": true}));
            let of = |name: &str| test["result"]["parent"][name].as_f64().expect("a number");
            let tls = of("time_appconnect");
            for (n, length) in
                [of("time_namelookup"), of("time_connect") - tls, tls, of("time_starttransfer")].into_iter().enumerate()
            {
                ours[n].push(length);
            }
        }
        for (n, phase) in ["name lookup", "TCP connect", "TLS handshake", "request to first byte"].iter().enumerate() {
            let (a, b) = (median(&ours[n]), median(&theirs[n]));
            run.report.section(SECTION, ABOUT);
            let promise = Promise::holds((a - b).abs() <= 5.0, "within 5 ms");
            run.report.figure(&format!("{url} in Chrome, {phase}"), &format!("{a:.2} ms, curl {b:.2} ms"), promise);
        }
    }
}

/// After its browsers have been stopped.
pub fn after_pages(run: &mut Run) {
    let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn"), ("SCOUTER_BROWSER_IDLE", "1")]);
    for driver in ["chrome", "firefox"] {
        server.test("browser_request", &json!({"url": PAGE, "driver": driver}));
    }
    crate::support::until("browsers are stopped", || children(server.pid()).is_empty());
    let mib = resident(server.pid());
    run.report.section(SECTION, ABOUT);
    let what = "resident, a page in each browser later, both stopped";
    run.report.figure(what, &format!("{mib:.1} MiB"), Promise::at_most(mib, 80.0, "MiB"));
}
