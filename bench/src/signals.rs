//! Signals at any moment.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::Run;
use crate::report::Promise;
use crate::support::server::children;

/// A server that is told to end, or is killed, at 1,000 moments of its life; each time the next one has its port.
pub fn signals(run: &mut Run) {
    let points = run.pick(1000, 60);
    let payload = json!({
        "ping": [{"dst": "10.77.0.2", "count": 2, "interval_ms": 20}],
        "traceroute": [{"dst": "10.77.0.2"}],
        "dns_lookup": [{"qname": "www.lab.test"}],
        "http_request": [{"url": "http://www.lab.test/"}, {"url": "http://198.51.100.1/", "timeout_ms": 100}],
    });
    let page = json!({"browser_request": [{"url": "http://www.lab.test/page/index.html", "timeout_ms": 5000}]});
    let port = 18_000;
    let (mut slowest, mut unclean, mut orphans) = (Duration::ZERO, 0, 0);
    for point in 0..points {
        let mut server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn"), ("API_PORT", &port.to_string())]);
        // Every 50th has a browser, which takes longer to come and to go.
        let with_page = point % 50 == 0;
        let body = if with_page { &page } else { &payload };
        server.request("POST", "/api/v1.0/tests", Some(&body.to_string()));
        std::thread::sleep(Duration::from_millis(if with_page { point * 2 } else { point % 200 }));
        let left = children(server.pid());
        let told = Instant::now();
        let signal = if point % 4 < 3 { Signal::SIGTERM } else { Signal::SIGKILL };
        server.signal(signal);
        let code = server.wait();
        slowest = slowest.max(told.elapsed());
        unclean += usize::from(signal == Signal::SIGTERM && code != Some(0));
        let end = Instant::now() + Duration::from_secs(10);
        let alive = || left.iter().any(|pid| std::path::Path::new("/proc").join(pid).exists());
        while alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        orphans += usize::from(alive());
    }
    run.report.section(crate::endurance::SECTION, "");
    let what = format!("{points} signals: slowest end");
    let slowest = slowest.as_secs_f64();
    run.report.figure(&what, &format!("{slowest:.2} s"), Promise::at_most(slowest, 10.0, "s"));
    let got = format!("{unclean}; {orphans}");
    let promise = Promise::holds(unclean == 0 && orphans == 0, "0; 0");
    run.report.figure("SIGTERM without exit status 0; processes left", &got, promise);
}
