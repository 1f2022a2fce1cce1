//! Throughput, with wrk beside the server on the same cores.

use std::time::Duration;

use serde_json::{Value, json};

use crate::figures::cpu;
use crate::report;
use crate::support::lab::Lab;
use crate::support::server::{SECRET, Server};

const SECONDS: u32 = 10;

struct Loaded {
    per_second: f64,
    errors: f64,
    cpu_ms: f64,
}

/// wrk with a script that posts `body` when there is one.
fn wrk(lab: &Lab, server: &Server, path: &str, connections: u32, body: Option<&str>) -> Loaded {
    let script = lab.path("wrk.lua");
    let post = body.map_or(String::new(), |body| {
        format!("wrk.method = 'POST'\nwrk.body = [==[{body}]==]\nwrk.headers['Content-Type'] = 'application/json'\n")
    });
    let check = "local bad = 0\nfunction response(status, headers, body)\n  if status ~= 200 or string.find(body, '\"failed\":true') then bad = bad + 1; if bad == 1 then io.stderr:write(body, '\\n') end; wrk.thread:set('bad', bad) end\nend\nlocal threads = {}\nfunction setup(thread) table.insert(threads, thread); thread:set('bad', 0) end\nfunction done(summary, latency, requests)\n  local bad = 0\n  for _, t in ipairs(threads) do bad = bad + t:get('bad') end\n  io.write(string.format('RESULT %d %d %d\\n', summary.requests, summary.duration, bad + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))\nend\n";
    std::fs::write(&script, format!("wrk.headers['Authorization'] = '{SECRET}'\n{post}{check}")).expect("written");
    let before = cpu(server);
    let (connections, seconds) = (connections.to_string(), format!("{SECONDS}s"));
    let text = lab.probe.output(
        "wrk",
        &[
            "-t1",
            "-c",
            &connections,
            "-d",
            &seconds,
            "--timeout",
            "10s",
            "-s",
            &script.display().to_string(),
            &server.url(path),
        ],
    );
    let used = cpu(server) - before;
    let result =
        text.lines().find_map(|line| line.strip_prefix("RESULT ")).unwrap_or_else(|| panic!("wrk said: {text}"));
    let numbers: Vec<f64> = result.split(' ').map(|n| n.parse().expect("a number")).collect();
    Loaded { per_second: numbers[0] * 1e6 / numbers[1], errors: numbers[2], cpu_ms: used * 1e3 / numbers[0] }
}

pub fn status(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_MAX_PROCESS_COUNT", "10"), ("SCOUTER_LOG", "info,access=warn")]);
    let loaded = wrk(lab, &server, "/api/v1.0/status", 64, None);
    assert!(loaded.errors < 1.0, "errors under load");
    report(
        "GET /status, 64 connections",
        &format!("{:.0}/s", loaded.per_second),
        ">= 20,000/s (the first version: 5,500)",
    );
}

pub fn tests(lab: &Lab) {
    // Twenty thousand connections to one address and port in ten seconds use up the ports, and the kernel's search for
    // a free one is then all that is measured. Whatever is measured here has the same.
    lab.probe.sh("sysctl -qw net.ipv4.ip_local_port_range='1024 65535' net.ipv4.tcp_tw_reuse=1");
    for (name, test_type, options, promised) in [
        (
            "http_request to an address",
            "http_request",
            json!({"url": "http://10.77.0.2/echo"}),
            ">= 1,500/s (the first version: 119; blackbox_exporter: 2,365)",
        ),
        ("http_request to a name", "http_request", json!({"url": "http://v4.lab.test/echo", "family": "4"}), ""),
        (
            "dns_lookup",
            "dns_lookup",
            json!({"qname": "www.lab.test"}),
            ">= 1,500/s (the first version: 38; blackbox_exporter: 3,979)",
        ),
        ("ping, one request", "ping", json!({"dst": "10.77.0.2", "count": 1}), "(blackbox_exporter: 4,674)"),
    ] {
        let server = lab.server(&[("SCOUTER_MAX_PROCESS_COUNT", "64"), ("SCOUTER_LOG", "info,access=warn")]);
        let payload: Value = json!({test_type: [options]});
        server.run(&payload);
        let loaded = wrk(lab, &server, "/api/v1.0/tests?wait=10", 64, Some(&payload.to_string()));
        assert!(loaded.errors < 1.0, "{name}: failed tests under load");
        report(
            &format!("{name}, 64 clients"),
            &format!("{:.0}/s, {:.2} ms CPU", loaded.per_second, loaded.cpu_ms),
            promised,
        );
        std::thread::sleep(Duration::from_secs(1));
    }
}
