//! Whether the phases of `http_request` are true.

use serde_json::json;

use crate::Run;
use crate::report::Promise;
use crate::stats::median;

const PHASES: [&str; 5] = ["name lookup", "TCP connect", "TLS handshake", "request to first byte", "total"];

/// The phases of `http_request` and of curl for the same resources, in turns. curl asks another name of the server first,
/// so that reading certificates and starting its TLS library are over; only the second transfer is looked at.
pub fn phases(run: &mut Run) {
    let server = run.lab.server(&[("SCOUTER_LOG", "info,access=warn")]);
    let fields =
        ["time_namelookup", "time_connect", "time_appconnect", "time_pretransfer", "time_starttransfer", "time_total"];
    let format = format!("{}\n", fields.map(|field| format!("%{{{field}}}")).join(" "));
    let ca = run.lab.path("ca.pem").display().to_string();
    for (path, scheme, version, flag) in [
        ("echo", "http", "1.1", "--http1.1"),
        ("echo", "https", "1.1", "--http1.1"),
        ("echo", "https", "2", "--http2"),
        ("large", "https", "1.1", "--http1.1"),
    ] {
        let (url, first) = (format!("{scheme}://v4.lab.test/{path}"), format!("{scheme}://mail.lab.test/{path}"));
        let (mut ours, mut theirs) = (vec![vec![]; 5], vec![vec![]; 5]);
        for _ in 0..21 {
            let once = ["-s", "-o", "/dev/null", flag, "--cacert", &ca, "-w", &format];
            let twice = [&once[..], &[&first, "--next"], &once[..], &[&url]].concat();
            let text = run.lab.probe.output("curl", &twice);
            let second = text.lines().nth(1).expect("two transfers");
            let t: Vec<f64> = second.split(' ').map(|v| v.parse::<f64>().expect("a number") * 1e3).collect();
            let secured = t[2].max(t[1]);
            for (n, length) in [t[0], t[1] - t[0], secured - t[1], t[4] - secured, t[5]].into_iter().enumerate() {
                theirs[n].push(length);
            }
            let result =
                server.test("http_request", &json!({"url": url, "version": version, "family": "4"}))["result"].clone();
            let of = |phase: &str| result["timings"][phase].as_f64().unwrap_or(0.0);
            let lengths = [of("dns"), of("connect"), of("tls"), of("send") + of("wait"), of("total")];
            for (n, length) in lengths.into_iter().enumerate() {
                ours[n].push(length);
            }
        }
        run.report.section(
            "Phases of http_request",
            "Ours beside curl's for the same resource, in turns; medians of 21. curl asks another name of the server first, so that reading \
             certificates and starting its TLS library are over.",
        );
        for (n, phase) in PHASES.iter().enumerate() {
            let (a, b) = (median(&ours[n]), median(&theirs[n]));
            let what = format!("{url} HTTP/{version}, {phase}");
            // A phase is true or not; all of them together may take less than curl's.
            let promise = match *phase {
                "total" => Promise::holds(a <= b + 2.0, "≤ curl's + 2 ms"),
                _ => Promise::holds((a - b).abs() <= 2.0, "within 2 ms"),
            };
            run.report.figure(&what, &format!("{a:.2} ms, curl {b:.2} ms"), promise);
        }
    }
}
