//! What a page load costs beyond what the browser itself needs, and whether its phases are true.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::figures::{median, mib};
use crate::report;
use crate::support::lab::Lab;
use crate::support::server::{Server, children};

const PAGE: &str = "http://v4.lab.test/page/index.html";
const ROUNDS: usize = 10;

/// A bare chromedriver in the probe's namespace.
struct Bare<'a> {
    lab: &'a Lab,
    child: Child,
    url: String,
}

impl<'a> Bare<'a> {
    fn start(lab: &'a Lab) -> Self {
        let mut command = lab.probe.command("chromedriver");
        let mut child = command.arg("--port=0").stdout(Stdio::piped()).spawn().expect("chromedriver");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let port = lines
            .find_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse::<u16>().ok())
            .expect("a port");
        // Whoever writes into a closed pipe ends.
        std::thread::spawn(move || lines.for_each(drop));
        Self { lab, child, url: format!("http://127.0.0.1:{port}") }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.url);
        self.lab.probe.inside(|| {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().timeout_global(Some(Duration::from_mins(1))).build().into();
            let request =
                ureq::http::Request::builder().method(method).uri(url).header("content-type", "application/json");
            let mut answer = agent.run(request.body(body.to_string()).expect("a request")).expect("an answer");
            answer.body_mut().read_json::<Value>().expect("JSON")
        })
    }

    /// `bidi`: with the means to be told of requests, as a test needs them.
    fn session(&self, bidi: bool) -> String {
        let arguments =
            ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"];
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "webSocketUrl": bidi,
            "goog:chromeOptions": {"binary": "/usr/bin/chromium", "args": arguments}}}});
        self.ask("POST", "/session", &wanted)["value"]["sessionId"].as_str().expect("a session").to_owned()
    }
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
pub fn pages(lab: &Lab) {
    let bare = Bare::start(lab);
    let (mut navigate, mut warm) = (vec![], vec![]);
    let (mut cold_bare, mut cold_bidi, mut cold) = (vec![], vec![], vec![]);
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    load(&server, "chrome");
    let session = bare.session(false);
    let go = |session: &str| {
        let started = Instant::now();
        bare.ask("POST", &format!("/session/{session}/url"), &json!({"url": PAGE}));
        ms(started)
    };
    go(&session);
    for _ in 0..ROUNDS {
        // The browser makes itself ready for its next page meanwhile.
        std::thread::sleep(Duration::from_millis(500));
        navigate.push(go(&session));
        warm.push(load(&server, "chrome").0);
    }
    bare.ask("DELETE", &format!("/session/{session}"), &json!({}));
    drop(server);
    for _ in 0..ROUNDS {
        for (bidi, times) in [(false, &mut cold_bare), (true, &mut cold_bidi)] {
            let started = Instant::now();
            let alone = Bare::start(lab);
            let session = alone.session(bidi);
            alone.ask("POST", &format!("/session/{session}/url"), &json!({"url": PAGE}));
            alone.ask("DELETE", &format!("/session/{session}"), &json!({}));
            times.push(ms(started));
        }
        let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
        cold.push(load(&server, "chrome").0);
    }
    let (navigate, warm) = (median(navigate), median(warm));
    let most = navigate * 1.3 + 150.0;
    report("browser_request, warm Chrome", &format!("{warm:.0} ms, bare {navigate:.0} ms"), &format!("< {most:.0} ms"));
    let cold = median(cold);
    for (session, bare) in [("a session with BiDi", median(cold_bidi)), ("a session without", median(cold_bare))] {
        let most = bare * 1.2;
        let got = format!("{cold:.0} ms, bare chromedriver, {session}: {bare:.0} ms");
        report("browser_request, cold Chrome", &got, &format!("< {most:.0} ms"));
    }
    firefox(lab);
}

fn firefox(lab: &Lab) {
    let (mut warm, mut cold) = (vec![], vec![]);
    for _ in 0..ROUNDS / 2 {
        let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
        cold.push(load(&server, "firefox").0);
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(500));
            warm.push(load(&server, "firefox").0);
        }
    }
    report(
        "browser_request, warm Firefox",
        &format!("{:.0} ms", median(warm)),
        "no slower than Chrome by more than 200 ms",
    );
    report("browser_request, cold Firefox", &format!("{:.0} ms", median(cold)), "< 5200 ms");
}

/// The phases of a page's document, and curl's of the same resource, in turns; each over a new connection.
pub fn page_phases(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let format = "%{time_namelookup} %{time_connect} %{time_appconnect} %{time_pretransfer} %{time_starttransfer}\n";
    let ca = lab.path("ca.pem").display().to_string();
    for url in [PAGE, "https://v4.lab.test/page/index.html"] {
        let (mut ours, mut theirs) = (vec![vec![]; 4], vec![vec![]; 4]);
        for _ in 0..ROUNDS {
            let once = ["-s", "-o", "/dev/null", "--http2", "--cacert", &ca, "-w", format];
            let output = lab
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
            let (a, b) = (median(ours[n].clone()), median(theirs[n].clone()));
            report(&format!("{url} in Chrome, {phase}"), &format!("{a:.2} ms, curl {b:.2} ms"), "within 5 ms");
        }
    }
}

/// After its browsers have been stopped.
pub fn after_pages(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_LOG", "info,access=warn"), ("SCOUTER_BROWSER_IDLE", "1")]);
    for driver in ["chrome", "firefox"] {
        server.test("browser_request", &json!({"url": PAGE, "driver": driver}));
    }
    crate::support::until("browsers are stopped", || children(server.pid()).is_empty());
    let got = format!("{:.1} MiB", mib(server.weight().0));
    report("resident, a page in each browser later, both stopped", &got, "< 80 MiB");
}
