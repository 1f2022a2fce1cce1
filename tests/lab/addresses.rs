//! Which address of a name is used, and what becomes of the others (RFC 6724, RFC 8305).

use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::faults::{behave, read_head};
use super::http::request;
use super::{number, pages};
use crate::support::lab::{Lab, Namespace};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::addresses", lab =>
        an_address_without_a_route_is_not_tried,
        a_unique_local_address_alone_does_not_prefer_ipv6,
        the_handshake_that_is_reported_is_that_of_the_connection,
        attempts_that_fail_have_their_reasons,
        a_page_shows_the_attempts_of_its_connections,
    )
}

/// Addresses and errors of the attempts.
fn attempts(result: &Value) -> Vec<(&str, Option<&str>)> {
    let attempts = result["attempts"].as_array().unwrap_or_else(|| panic!("no attempts: {result}"));
    attempts.iter().map(|a| (a["address"].as_str().expect("an address"), a["error"].as_str())).collect()
}

/// A host with IPv4 alone, on a link of its own to the target.
fn an_address_without_a_route_is_not_tried(lab: &Lab) {
    let four = Namespace::add(format!("scouter-{}-v4", std::process::id()));
    let (host, target) = (four.name(), lab.target.name());
    crate::support::lab::sh(&format!(
        "ip -n {target} link add v4 type veth peer name veth0 netns {host}
         ip -n {target} addr add 10.78.0.2/24 dev v4; ip -n {host} addr add 10.78.0.1/24 dev veth0
         ip -n {target} link set v4 up; ip -n {host} link set veth0 up
         ip -n {host} route add default via 10.78.0.2
         mkdir -p /etc/netns/{host}; printf 'nameserver 10.77.0.2\\noptions timeout:2 attempts:1\\n' > /etc/netns/{host}/resolv.conf"
    ));
    let server = lab.server_in(&four, &[("SCOUTER_TARGETS_ALLOW", "10.77.0.0/24,fd77::/64")]);
    for (url, version, address) in [
        ("https://h3.lab.test/", "3", "10.77.0.3"),
        ("https://h3.lab.test/", "2", "10.77.0.3"),
        ("http://www.lab.test/", "1.1", "10.77.0.2"),
    ] {
        let result = request(&server, json!({"url": url, "version": version}));
        assert_eq!((&result["status"], attempts(&result)), (&json!(200), vec![(address, None)]), "{result}");
    }
    let test = server.test("http_request", &json!({"url": "http://v6.lab.test/"}));
    assert_eq!(test["message"], "This host has no route to the target.", "{test}");
    drop(server);
    lab.target.sh("ip link del v4");
    four.delete();
}

/// The probe's IPv6 address is a unique local one.
fn a_unique_local_address_alone_does_not_prefer_ipv6(lab: &Lab) {
    let server = lab.server(&[]);
    let result = request(&server, json!({"url": "http://global6.lab.test/"}));
    assert_eq!((&result["status"], attempts(&result)), (&json!(200), vec![("10.77.0.2", None)]), "{result}");
    let ping = server.test("ping", &json!({"dst": "global6.lab.test", "count": 1}));
    assert_eq!((&ping["failed"], &ping["result"]["address"]), (&json!(false), &json!("10.77.0.2")), "{ping}");
    // Where no order would help.
    let test = server.test("ping", &json!({"dst": "global6.lab.test", "count": 1, "family": "6"}));
    assert_eq!(test["result"]["address"], "2001:db8:2::1", "{test}");
}

fn the_handshake_that_is_reported_is_that_of_the_connection(lab: &Lab) {
    let server = lab.server(&[]);
    for (url, version, second) in [
        ("http://silent.lab.test/", "1.1", "10.77.0.2"),
        ("https://silent.lab.test/", "2", "10.77.0.2"),
        ("https://silent3.lab.test/", "3", "10.77.0.3"),
    ] {
        let result = request(&server, json!({"url": url, "version": version}));
        let lost = ("198.51.100.1", Some("another address answered first"));
        assert_eq!(attempts(&result), [lost, (second, None)], "{result}");
        assert_eq!((&result["failed"], &result["remote_ip"]), (&json!(false), &json!(second)), "{result}");
        let [silent, used] = [0, 1].map(|at| &result["attempts"][at]);
        let (silent_ms, connect) = (number(&silent["elapsed_ms"]), number(&result["timings"]["connect"]));
        assert!(number(&used["started_ms"]) >= 250.0 && silent_ms >= 250.0, "RFC 8305, section 5: {result}");
        assert_eq!(used["elapsed_ms"], result["timings"]["connect"], "{result}");
        assert!(connect < 200.0, "not the wait for the other one: {result}");
        // As curl counts it.
        assert!(number(&result["time_connect"]) >= 0.25, "{result}");
    }
}

fn attempts_that_fail_have_their_reasons(lab: &Lab) {
    let server = lab.server(&[]);
    let port = behave(lab, |mut stream| {
        use std::io::Write;
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let result = request(&server, json!({"url": format!("http://refusing.lab.test:{port}/")}));
    let refused = ("10.77.0.9", Some("Connection refused"));
    assert_eq!((&result["status"], attempts(&result)), (&json!(200), vec![refused, ("10.77.0.8", None)]), "{result}");
    // Nothing listens there.
    let result = request(&server, json!({"url": "http://refusing.lab.test:9/"}));
    let all = vec![refused, ("10.77.0.8", Some("Connection refused"))];
    assert_eq!((&result["status"], attempts(&result)), (&json!(7), all), "{result}");
    assert_eq!((&result["remote_ip"], &result["phase"]), (&json!("10.77.0.8"), &json!("connect")), "{result}");
    // Nobody answers: what was tried is known when the time is up.
    let result = request(&server, json!({"url": "http://198.51.100.1/", "timeout_ms": 500}));
    assert_eq!(
        (&result["status"], attempts(&result)),
        (&json!(28), vec![("198.51.100.1", Some("no answer"))]),
        "{result}"
    );
    assert!((400.0..600.0).contains(&number(&result["attempts"][0]["elapsed_ms"])), "{result}");
}

fn a_page_shows_the_attempts_of_its_connections(lab: &Lab) {
    let server = pages::server(lab, &[]);
    for driver in pages::DRIVERS {
        let test = pages::load(&server, json!({"url": "http://silent.lab.test/page/index.html", "driver": driver}));
        let parent = &test["result"]["parent"];
        let lost = ("198.51.100.1", Some("another address answered first"));
        assert_eq!((&test["failed"], attempts(parent)), (&json!(false), vec![lost, ("10.77.0.2", None)]), "{test}");
        // TCP's part of the handshakes.
        let connect = number(&parent["time_connect"]) - number(&parent["time_appconnect"]);
        assert!((0.0..200.0).contains(&connect), "not the wait for the other one: {test}");
        let plain = pages::load(&server, json!({"url": "http://v4.lab.test/page/index.html", "driver": driver}));
        assert_eq!(plain["result"]["parent"]["attempts"], Value::Null, "{plain}");
    }
}
