//! `browser_request`: what has no end, what is too long, and what happens to this host meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::number;
use super::pages::{DRIVERS, ends_with, load, server};
use crate::support::lab::Lab;
use crate::support::site::{Reply, Site, response};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::streams", lab =>
        a_page_with_streams_is_done,
        a_long_poll_is_waited_for_as_long_as_it_is_plausible,
        a_page_that_computes_after_its_load_event_is_not_quiet,
        long_urls_are_shown_cut,
        long_headers_are_shown_cut,
        a_change_of_this_host_s_network_ends_no_page,
    )
}

fn a_page_with_streams_is_done(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| match path {
        "/" => Reply::Html(
            "<p>page<script>new EventSource('/events'); new WebSocket('ws://' + location.host + '/socket');
             fetch('/ended')</script>"
                .into(),
        ),
        "/events" => Reply::Stream(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\ndata: one\n\n".to_vec(),
        ),
        "/socket" => Reply::WebSocket,
        _ => response("200 OK", "Content-Length: 2\r\n", "ok"),
    });
    for driver in DRIVERS {
        let options = json!({"url": site.url("/"), "driver": driver, "timeout_ms": 20_000, "har": true});
        let test = load(&server, options);
        let result = &test["result"];
        assert_eq!(
            (&test["failed"], &result["loaded"], &result["comment"]),
            (&json!(false), &json!(true), &Value::Null),
            "{driver}: {test}"
        );
        for (path, status, kind) in [("/events", 200, "text/event-stream"), ("/socket", 101, "")] {
            let stream = ends_with(result, path);
            assert_eq!((&stream["status"], &stream["failed"]), (&json!(status), &json!(false)), "{driver}: {stream}");
            // Firefox tells of the handshake of a websocket only.
            let open = driver == "chrome" || status == 200;
            let seen = (stream["open"] == json!(true), stream["time_total"] == json!(0.0));
            assert_eq!(seen, (open, open), "{driver}: {stream}");
            if !open {
                continue;
            }
            let header = stream["headers"]["content-type"].as_str().unwrap_or_default();
            assert!(header.starts_with(kind), "{driver}: {stream}");
            assert_eq!(stream["remote_ip"], json!("10.77.0.8"), "{driver}: {stream}");
            let har = result["har"]["log"]["entries"].as_array().expect("entries");
            let entry = har.iter().find(|entry| entry["request"]["url"] == stream["url"]).expect("it is in the HAR");
            assert_eq!(entry["comment"], json!("Still open when the page was done"), "{driver}: {entry}");
        }
        let ended = ends_with(result, "/ended");
        assert_eq!((&ended["open"], &ended["size"]["body"]), (&Value::Null, &json!(2)), "{driver}: {ended}");
    }
}

fn a_long_poll_is_waited_for_as_long_as_it_is_plausible(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| match path {
        // Begun by the load event: a request before it may hold the event up.
        "/" => Reply::Html("<p>page<script>onload = () => { fetch('/poll'); fetch('/slow') }</script>".into()),
        "/poll" => Reply::Silence,
        _ => {
            std::thread::sleep(Duration::from_millis(500));
            response("200 OK", "Content-Length: 2\r\n", "ok")
        }
    });
    for driver in DRIVERS {
        let test = load(&server, json!({"url": site.url("/"), "driver": driver, "timeout_ms": 20_000}));
        let result = &test["result"];
        assert_eq!((&test["failed"], &result["loaded"]), (&json!(false), &json!(true)), "{driver}: {test}");
        let poll = ends_with(result, "/poll");
        assert_eq!(
            (&poll["status"], &poll["failed"], &poll["open"], &poll["time_total"], &poll["remote_ip"]),
            (&Value::Null, &json!(false), &json!(true), &json!(0.0), &json!("10.77.0.8")),
            "{driver}: {poll}"
        );
        let slow = ends_with(result, "/slow");
        assert_eq!((&slow["status"], &slow["open"]), (&json!(200), &Value::Null), "{driver}: {slow}");
        assert!(number(&slow["time_total"]) >= 500.0, "{driver}: {slow}");
    }
}

/// As one that this host does not schedule.
fn a_page_that_computes_after_its_load_event_is_not_quiet(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| match path {
        "/" => Reply::Html(
            "<p>page<script>onload = () => setTimeout(() => {
               const end = performance.now() + 700;
               while (performance.now() < end);
               fetch('/after')
             })</script>"
                .into(),
        ),
        _ => response("200 OK", "Content-Length: 2\r\n", "ok"),
    });
    for driver in DRIVERS {
        let test = load(&server, json!({"url": site.url("/"), "driver": driver, "timeout_ms": 20_000}));
        assert_eq!((&test["failed"], &test["result"]["loaded"]), (&json!(false), &json!(true)), "{driver}: {test}");
        let after = ends_with(&test["result"], "/after");
        assert_eq!((&after["status"], &after["open"]), (&json!(200), &Value::Null), "{driver}: {after}");
    }
}

/// The most memory that the server has had, in kilobytes.
fn most_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    peak.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

fn long_urls_are_shown_cut(lab: &Lab) {
    const BYTES: usize = 1_000_000;
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| match path.split('?').next() {
        Some("/") => Reply::Html(format!(
            "<p>page<script>for (let i = 0; i < 20; i++) new Image().src = '/long?' + i + 'x'.repeat({BYTES})</script>"
        )),
        _ => response("200 OK", "Content-Length: 2\r\n", "ok"),
    });
    for driver in DRIVERS {
        // The browser is warm.
        load(&server, json!({"url": site.url("/none"), "driver": driver}));
        let before = server.weight().0;
        let test = load(&server, json!({"url": site.url("/"), "driver": driver, "timeout_ms": 60_000}));
        let grown = most_memory(server.pid()).saturating_sub(before);
        let result = &test["result"];
        let long: Vec<&Value> = result["child"]
            .as_array()
            .expect("children")
            .iter()
            .filter(|child| child["url"].as_str().is_some_and(|url| url.contains("/long?")))
            .collect();
        assert_eq!((&test["failed"], long.len()), (&json!(false), 20), "{driver}: {}", test["message"]);
        for child in long {
            let shown = child["url"].as_str().map_or(0, str::len);
            let whole = child["cut"]["url"].as_u64().expect("its length");
            assert!(shown <= 2048 && whole > BYTES as u64, "{driver}: {shown} of {whole}");
            assert_eq!(child["status"], json!(200), "{driver}");
        }
        assert!(grown < 64 << 10, "{driver}: {grown} KiB");
    }
}

fn long_headers_are_shown_cut(lab: &Lab) {
    const RESOURCES: usize = 60;
    let server = server(lab, &[]);
    let lines = (0..60).map(|n| format!("X-Long-{n}: {}\r\n", "y".repeat(4000))).collect::<Vec<_>>().concat();
    let site = Site::new(lab, move |path| match path {
        "/" => Reply::Html(format!(
            "<p>page<script>for (let i = 0; i < {RESOURCES}; i++) new Image().src = '/' + i</script>"
        )),
        "/favicon.ico" => response("404 Not Found", "Content-Length: 0\r\n", ""),
        _ => response("200 OK", &format!("Content-Length: 2\r\n{lines}"), "ok"),
    });
    for driver in DRIVERS {
        let test = load(&server, json!({"url": site.url("/"), "driver": driver, "timeout_ms": 60_000}));
        let result = &test["result"];
        assert_eq!(
            (&test["failed"], &result["comment"], &result["left_out"]),
            (&json!(false), &Value::Null, &json!(0)),
            "{driver}: {}",
            test["message"]
        );
        let answered: Vec<&Value> = result["child"]
            .as_array()
            .expect("children")
            .iter()
            .filter(|child| child["cut"]["headers"].as_u64().is_some_and(|bytes| bytes > 240_000))
            .collect();
        assert_eq!(answered.len(), RESOURCES, "{driver}: {}", result["child"][0]);
        assert_eq!(answered[0]["headers"]["x-long-0"], json!("y".repeat(4000)), "{driver}: the first are there");
    }
}

/// A container that starts on the host brings an interface with an address. What is connecting then goes on.
fn a_change_of_this_host_s_network_ends_no_page(lab: &Lab) {
    let server = server(lab, &[]);
    // Where the queue of connections is full, the kernel drops the SYNs of others.
    let (full, _queue) = lab.target.inside(|| {
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        full.bind(&SocketAddr::from(([10, 77, 0, 8], 0)).into()).expect("bound");
        full.listen(1).expect("listening");
        let address = full.local_addr().expect("an address");
        let queue = (0..4).map(|_| {
            let one = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            one.set_nonblocking(true).expect("set");
            let _ = one.connect(&address);
            one
        });
        let queue = queue.collect::<Vec<_>>();
        (full, queue)
    });
    let port = full.local_addr().expect("an address").as_socket().expect("an address").port();
    let picture = format!("http://10.77.0.8:{port}/picture");
    let site = Site::new(lab, move |path| match path {
        "/" => Reply::Html(format!("<p>page<img src={picture}>")),
        _ => response("200 OK", "Content-Length: 0\r\n", ""),
    });
    for driver in DRIVERS {
        load(&server, json!({"url": site.url("/none"), "driver": driver}));
        let test = std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..4 {
                    std::thread::sleep(Duration::from_millis(600));
                    lab.probe.sh(&format!(
                        "ip link add change0 type veth peer name change1
                         ip addr add 10.98.{round}.1/24 dev change0
                         ip link set change0 up; ip link set change1 up; sleep 0.1; ip link del change0"
                    ));
                }
            });
            load(&server, json!({"url": site.url("/"), "driver": driver, "timeout_ms": 8000}))
        });
        let picture = ends_with(&test["result"], "/picture");
        assert_eq!(
            (&picture["status"], &picture["reason"]),
            (&json!(28), &json!("Not finished when the page's time was up")),
            "{driver}: {test}"
        );
    }
}
