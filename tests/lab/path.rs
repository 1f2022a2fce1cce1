//! `traceroute` along the chain of routers.

use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::number;
use super::ping::nobody;
use crate::support::lab::Lab;
use crate::support::server::Server;
use crate::support::{SOON, chain};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::path", lab =>
        every_protocol_finds_every_router,
        a_trace_has_a_socket_for_each_flow_and_no_more,
        hop_by_hop_as_traceroute_and_mtr_see_them,
        a_path_ends_where_a_router_says_so,
        a_black_hole_costs_one_timeout,
        open_closed_and_filtered_ports_are_distinguished,
        nothing_stays_half_open,
        what_is_too_large_for_a_link_says_how_large_it_may_be,
        one_flow_takes_one_path_and_several_take_several,
        a_hundred_traces_at_once_see_their_own_answers_only,
        first_and_last_ttl_are_kept_to,
        options_that_make_no_sense_are_named,
        a_path_is_drawn_as_it_grows,
    )
}

pub const PROTOCOLS: [&str; 3] = ["ICMP", "TCP", "UDP"];
pub const TARGETS: [(&str, [Option<&str>; 8]); 2] = [("10.81.0.2", chain::V4), ("fd81::2", chain::V6)];

pub fn trace(server: &Server, options: Value) -> Value {
    let test = server.test("traceroute", &options);
    assert_eq!(test["message"], Value::Null, "{test}");
    assert_eq!(test["failed"], test["result"]["failed"], "{test}");
    test["result"].clone()
}

/// The source of each answer, by TTL.
pub fn srcs(result: &Value) -> Vec<Option<&str>> {
    result["trace"].as_array().expect("a trace").iter().map(|hop| hop["src"].as_str()).collect()
}

/// Compares an address with a pattern, in which `?` stands for any one character.
pub fn fits(expected: Option<&str>, src: Option<&str>) -> bool {
    match (expected, src) {
        (Some(expected), Some(src)) => {
            let same = |(e, s): (char, char)| e == '?' || e == s;
            expected.len() == src.len() && expected.chars().zip(src.chars()).all(same)
        }
        (None, None) => true,
        _ => false,
    }
}

/// Asserts the whole chain of routers up to this target.
pub fn follows_the_chain(result: &Value, chain: [Option<&str>; 8], target: &str) {
    let mut expected = chain;
    expected[7] = Some(target);
    let srcs = srcs(result);
    assert_eq!(srcs.len(), 8, "{result}");
    for (ttl, (expected, src)) in (1..).zip(expected.into_iter().zip(&srcs)) {
        assert!(fits(expected, *src), "TTL {ttl}: {src:?} and not {expected:?}\n{result}");
        let hop = &result["trace"][ttl - 1];
        assert_eq!((&hop["ttl"], &hop["no_response"]), (&json!(ttl), &json!(src.is_none())), "{result}");
        match src {
            Some(_) => assert!((0.001..1000.0).contains(&number(&hop["rtt_ms"])), "{result}"),
            None => assert_eq!((&hop["rtt_ms"], &hop["rtts_ms"]), (&Value::Null, &json!([null])), "{result}"),
        }
        if src.is_some() && ttl < 8 {
            assert_eq!(hop["icmp"]["kind"], json!("time exceeded in transit"), "{result}");
        }
    }
    let of = |field: &str| result[field].clone();
    assert_eq!((of("reached"), of("failed")), (json!(true), json!(false)), "{result}");
    assert_eq!(
        (of("stopped_by")["reason"].clone(), of("stopped_by")["ttl"].clone()),
        (json!("target"), json!(8)),
        "{result}"
    );
    assert_eq!((of("errors"), of("degraded")), (json!([]), Value::Null), "{result}");
}

fn every_protocol_finds_every_router(lab: &Lab) {
    let server = lab.server(&[]);
    for (dst, expected) in TARGETS {
        for (proto, port, answer) in [
            ("ICMP", Value::Null, "echo reply"),
            ("TCP", json!(80), "SYN-ACK"),
            ("UDP", json!(33434), "port unreachable"),
        ] {
            for size in [0, 56, 1400] {
                let result =
                    trace(&server, json!({"dst": dst, "proto": proto, "payload_size": size, "timeout_ms": 300}));
                follows_the_chain(&result, expected, dst);
                let carried = if proto == "UDP" { size.max(2) } else { size };
                let of = |field: &str| result[field].clone();
                assert_eq!(
                    (of("dst"), of("address"), of("proto"), of("dport"), of("payload_size"), of("mode")),
                    (json!(dst), json!(dst), json!(proto), port.clone(), json!(carried), json!("raw")),
                    "{result}"
                );
                // A SYN has an option.
                let headers = if dst.contains(':') { 40 } else { 20 } + if proto == "TCP" { 24 } else { 8 };
                assert_eq!(of("packet_size"), json!(carried + headers), "{result}");
                assert_eq!(of("constant_flow"), json!(size > 0 || proto != "ICMP"), "{result}");
                assert_eq!(result["trace"][7]["answer"], json!(answer), "{result}");
                let names: Vec<_> = [0, 1, 5].map(|at| result["trace"][at]["hostname"].clone()).into();
                assert_eq!(names, ["r1.path.test", "r2.path.test", "r6.path.test"], "{result}");
                assert_eq!(result["trace"][4]["hostname"], "", "its address has no name: {result}");
            }
        }
    }
}

fn a_trace_has_a_socket_for_each_flow_and_no_more(lab: &Lab) {
    let server = lab.server(&[]);
    for proto in PROTOCOLS {
        let (_, before) = server.weight();
        // A black hole: routers that answer so many probes would have no answers left for other tests.
        let options = json!({"dst": "198.51.100.1", "proto": proto, "payload_size": 0, "probes": 5, "paths": 4, "timeout_ms": 1500});
        let most = std::thread::scope(|scope| {
            let trace = scope.spawn(|| server.test("traceroute", &options));
            let mut most = 0;
            while !trace.is_finished() {
                most = most.max(server.weight().1);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let test = trace.join().expect("answered");
            assert_eq!((&test["message"], &test["result"]["reached"]), (&Value::Null, &json!(false)), "{test}");
            most
        });
        // TCP has flows of its own in each round, and two sockets for each: one that holds the port and one that receives. And
        // the connections of this test.
        let sockets = if proto == "TCP" { 2 * 4 * 5 } else { 4 };
        assert!(most <= before + sockets + 4, "{proto}: {before} descriptors, then {most}");
    }
}

/// The first address on each line that begins with a number.
fn addresses_in(output: &str) -> Vec<Option<String>> {
    let line = |line: &str| -> Option<Option<String>> {
        let mut words = line.split_whitespace();
        words.next()?.trim_end_matches(['.', '|', '-']).parse::<u8>().ok()?;
        Some(
            words
                .map(|word| word.trim_matches(['(', ')']))
                .find(|w| w.parse::<std::net::IpAddr>().is_ok())
                .map(Into::into),
        )
    };
    output.lines().filter_map(line).collect()
}

fn hop_by_hop_as_traceroute_and_mtr_see_them(lab: &Lab) {
    let server = lab.server(&[]);
    for (dst, expected) in TARGETS {
        for (proto, flag) in [("ICMP", "-I"), ("TCP", "-T"), ("UDP", "-U")] {
            let port: &[&str] = match proto {
                "ICMP" => &[],
                "TCP" => &["-p", "80"],
                _ => &["-p", "33434"],
            };
            let arguments = [&["-n", flag, "-q", "1", "-w", "1", "-N", "4"], port, &[dst]].concat();
            let theirs = lab.probe.output("traceroute", &arguments);
            let ours = trace(&server, json!({"dst": dst, "proto": proto, "timeout_ms": 500}));
            let (ours, theirs) =
                (srcs(&ours).into_iter().map(|src| src.map(ToOwned::to_owned)).collect(), addresses_in(&theirs));
            agree(&ours, &theirs, &format!("traceroute {flag} {dst}"), expected);
        }
        let theirs = lab.probe.output("mtr", &["-n", "-r", "-c", "1", dst]);
        let ours = trace(&server, json!({"dst": dst, "timeout_ms": 500}));
        let ours = srcs(&ours).into_iter().map(|src| src.map(ToOwned::to_owned)).collect();
        agree(&ours, &addresses_in(&theirs), &format!("mtr {dst}"), expected);
    }
}

/// Asserts that both found the same path; at the load-balanced hop each may have found another router.
fn agree(ours: &Vec<Option<String>>, theirs: &[Option<String>], what: &str, expected: [Option<&str>; 8]) {
    assert_eq!(ours.len(), theirs.len(), "{what}: {ours:?} {theirs:?}");
    for (ttl, (our, their)) in ours.iter().zip(theirs).enumerate() {
        let balanced = expected[ttl].is_some_and(|router| router.contains('?'));
        assert!(our == their || balanced && fits(expected[ttl], their.as_deref()), "{what}: {ours:?} {theirs:?}");
    }
}

fn a_path_ends_where_a_router_says_so(lab: &Lab) {
    let server = lab.server(&[]);
    for (dst, kind, code) in [
        ("10.81.2.9", "host unreachable", 1),
        ("10.81.3.9", "communication administratively prohibited", 13),
        ("fd81:0:0:2::9", "no route to destination", 0),
        ("fd81:0:0:3::9", "administratively prohibited", 1),
    ] {
        let (chain, last) = if dst.contains(':') { (chain::V6, "fd80:0:0:7::2") } else { (chain::V4, "10.80.7.2") };
        for proto in PROTOCOLS {
            // A Linux router has five such errors for one source over IPv4, then one a second, whatever its settings.
            if !dst.contains(':') {
                std::thread::sleep(std::time::Duration::from_secs(3));
            }
            let started = Instant::now();
            let result = trace(&server, json!({"dst": dst, "proto": proto, "timeout_ms": 500}));
            assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
            let seen = srcs(&result);
            assert_eq!(seen.len(), 7, "{result}");
            assert!(chain.iter().zip(&seen).all(|(expected, src)| fits(*expected, *src)), "{result}");
            let stop = &result["stopped_by"];
            assert_eq!(
                (&stop["reason"], &stop["src"], &stop["icmp"]["kind"], &stop["icmp"]["code"], &result["failed"]),
                (&json!("unreachable"), &json!(last), &json!(kind), &json!(code), &json!(true)),
                "{result}"
            );
        }
    }
    // A routing loop: the same two routers alternate. Over IPv6 the second answers from the interface that was asked.
    for (dst, pair) in
        [("10.81.4.9", ["10.80.7.2", "10.80.6.2"]), ("fd81:0:0:4::9", ["fd80:0:0:7::2", "fd80:0:0:7::1"])]
    {
        let result = trace(&server, json!({"dst": dst, "max_ttl": 14, "timeout_ms": 300}));
        let seen = srcs(&result);
        assert_eq!((seen.len(), &result["stopped_by"]["reason"]), (14, &json!("max_ttl")), "{result}");
        for ttl in 7..=14 {
            assert_eq!(seen[ttl - 1], Some(pair[(ttl - 7) % 2]), "TTL {ttl}: {result}");
        }
    }
}

fn a_black_hole_costs_one_timeout(lab: &Lab) {
    let server = lab.server(&[]);
    for dst in ["10.81.1.9", "fd81:0:0:1::9"] {
        for proto in PROTOCOLS {
            let result = server.test("traceroute", &json!({"dst": dst, "proto": proto}));
            let (took, result) = (number(&result["timing"]["duration_ms"]), &result["result"]);
            // bench/ asserts timeout + 500 ms on a quiet machine.
            assert!(took < 3000.0, "{took} ms");
            let seen = srcs(result);
            assert_eq!(
                (seen.len(), &result["reached"], &result["failed"]),
                (32, &json!(false), &json!(true)),
                "{result}"
            );
            assert!(seen[6..].iter().all(Option::is_none), "{result}");
            assert_eq!(result["stopped_by"], json!({"reason": "max_ttl", "ttl": 32, "src": null, "icmp": null}));
            assert!(result["trace"].as_array().unwrap()[6..].iter().all(|hop| hop["no_response"] == json!(true)));
        }
    }
}

fn open_closed_and_filtered_ports_are_distinguished(lab: &Lab) {
    let server = lab.server(&[]);
    for (dst, expected) in TARGETS {
        for (port, answer) in [(80, "SYN-ACK"), (82, "RST")] {
            let result = trace(&server, json!({"dst": dst, "proto": "tcp", "dport": port, "timeout_ms": 300}));
            follows_the_chain(&result, expected, dst);
            assert_eq!((&result["trace"][7]["answer"], &result["dport"]), (&json!(answer), &json!(port)), "{result}");
        }
        let filtered =
            trace(&server, json!({"dst": dst, "proto": "TCP", "dport": 81, "max_ttl": 10, "timeout_ms": 300}));
        let seen = srcs(&filtered);
        assert!(expected[..7].iter().zip(&seen).all(|(expected, src)| fits(*expected, *src)), "{filtered}");
        assert_eq!((&seen[7..], &filtered["failed"]), (&[None; 3][..], &json!(true)), "{filtered}");
    }
}

fn nothing_stays_half_open(lab: &Lab) {
    for command in [lab.probe.command(crate::support::scouter()), nobody(&lab.probe)] {
        let server = lab.server_by(command, &[("SCOUTER_CACHE_DIR", "/nonexistent/scouter")]);
        for dst in ["10.81.0.3", "10.81.0.2", "fd81::2"] {
            let open = || {
                let sockets =
                    [&lab.chain.target, &lab.probe].map(|ns| ns.output("ss", &["-Htan", "sport = :80 or dport = :80"]));
                let lines = sockets.concat();
                lines
                    .lines()
                    .filter(|line| line.contains("10.81.0.") || line.contains("fd81::"))
                    .map(ToOwned::to_owned)
                    .collect::<Vec<_>>()
            };
            let before = open();
            server.test("traceroute", &json!({"dst": dst, "proto": "TCP", "timeout_ms": 200, "probes": 5}));
            // A half-open connection would remain for a minute and more.
            assert_eq!(open(), before);
        }
    }
}

fn what_is_too_large_for_a_link_says_how_large_it_may_be(lab: &Lab) {
    let server = lab.server(&[]);
    let fits = trace(&server, json!({"dst": "10.81.5.2", "payload_size": 1400, "timeout_ms": 300}));
    assert_eq!(
        (&fits["reached"], fits["trace"].as_array().map(Vec::len)),
        (&json!(true), Some(8)),
        "in fragments: {fits}"
    );
    for proto in PROTOCOLS {
        let result =
            trace(&server, json!({"dst": "fd81:0:0:5::2", "proto": proto, "payload_size": 1400, "timeout_ms": 300}));
        let stop = &result["stopped_by"];
        assert_eq!(
            (&stop["reason"], &stop["ttl"], &stop["src"], &stop["icmp"]["kind"], &stop["icmp"]["mtu"]),
            (&json!("unreachable"), &json!(8), &json!("fd80:0:0:7::2"), &json!("packet too big"), &json!(1280)),
            "{result}"
        );
        let small = trace(&server, json!({"dst": "fd81:0:0:5::2", "proto": proto, "timeout_ms": 300, "dport": 82}));
        assert_eq!(small["reached"], json!(true), "{small}");
    }
}

fn one_flow_takes_one_path_and_several_take_several(lab: &Lab) {
    let server = lab.server(&[]);
    for dst in ["10.81.0.2", "fd81::2"] {
        for proto in ["TCP", "UDP"] {
            // Rounds of TCP are flows of their own.
            let probes = if proto == "TCP" { 1 } else { 5 };
            for _ in 0..4 {
                let one = trace(&server, json!({"dst": dst, "proto": proto, "probes": probes, "timeout_ms": 300}));
                assert_eq!(one["trace"][2]["others"], Value::Null, "one flow, one router: {one}");
                assert_eq!(one["paths"], Value::Null, "{one}");
            }
            // One router gets all of them in 1 of 16 traces.
            let several = (0..8).any(|_| {
                let rounds = trace(&server, json!({"dst": dst, "proto": proto, "probes": 5, "timeout_ms": 300}));
                assert_eq!((&rounds["paths"], &rounds["reached"]), (&Value::Null, &json!(true)), "{rounds}");
                rounds["trace"][2]["others"].is_array()
            });
            assert_eq!(several, proto == "TCP", "a round of TCP has a port of its own");
            // One router gets all 8 flows in 1 of 128 traces.
            let explored = (0..5).any(|_| {
                let all = trace(&server, json!({"dst": dst, "proto": proto, "paths": 8, "timeout_ms": 300}));
                let flows = all["paths"].as_array().expect("flows");
                assert_eq!(flows.len(), 8, "{all}");
                let third: std::collections::BTreeSet<_> =
                    flows.iter().map(|flow| flow["srcs"][2].as_str().expect("a router")).collect();
                let r3 = if dst.contains(':') { chain::V6[2] } else { chain::V4[2] };
                assert!(third.iter().all(|src| fits(r3, Some(src))), "{all}");
                assert!(
                    flows.iter().all(|flow| flow["reached"] == json!(true) && flow["srcs"][7] == json!(dst)),
                    "{all}"
                );
                let shown = 1 + all["trace"][2]["others"].as_array().map_or(0, Vec::len);
                assert_eq!(shown, third.len(), "{all}");
                third.len() == 2
            });
            assert!(explored, "{proto}: 40 flows took one path");
        }
    }
}

fn a_hundred_traces_at_once_see_their_own_answers_only(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_MAX_PROCESS_COUNT", "100")]);
    for v6 in [false, true] {
        let address = |n: usize| if v6 { format!("fd81::{n:x}") } else { format!("10.81.0.{n}") };
        let chain = if v6 { chain::V6 } else { chain::V4 };
        let traces: Vec<Value> = (0..100)
            .map(|n| {
                // Those from .50 on may have a way of their own.
                let dst = if n < 50 { address(2) } else { address(10 + n % 40) };
                json!({"id": dst, "dst": dst, "proto": PROTOCOLS[n % 3], "timeout_ms": 1000})
            })
            .collect();
        let results = server.run(&json!({"traceroute": traces}));
        let results = results["traceroute"].as_array().expect("results");
        assert_eq!(results.len(), 100);
        for test in results {
            let (result, dst) = (&test["result"], test["id"].as_str().expect("an id"));
            let seen = srcs(result);
            assert_eq!((seen.len(), &result["reached"]), (8, &json!(true)), "{test}");
            for (ttl, (expected, src)) in (1..).zip(chain.iter().zip(&seen)) {
                let expected = if ttl == 8 { Some(dst) } else { *expected };
                assert!(fits(expected, *src), "TTL {ttl}: {src:?} and not {expected:?}\n{test}");
            }
        }
    }
}

fn first_and_last_ttl_are_kept_to(lab: &Lab) {
    let server = lab.server(&[]);
    let result = trace(&server, json!({"dst": "10.81.0.2", "first_ttl": 5, "max_ttl": 7, "timeout_ms": 300}));
    assert_eq!(srcs(&result), [chain::V4[4], chain::V4[5], chain::V4[6]], "{result}");
    assert_eq!((&result["trace"][0]["ttl"], &result["stopped_by"]["ttl"]), (&json!(5), &json!(7)), "{result}");
    assert_eq!(result["failed"], json!(true));
    let all = trace(&server, json!({"dst": "10.81.0.2", "MAX_TTL": "8", "timeout_ms": "300"}));
    assert_eq!(all["reached"], json!(true), "{all}");
    for proto in PROTOCOLS {
        let own =
            server.test("traceroute", &json!({"dst": "10.80.1.1", "proto": proto, "dport": 9, "timeout_ms": 300}));
        assert_eq!(srcs(&own["result"]), [Some("10.80.1.1")], "this host itself: {own}");
    }
}

fn options_that_make_no_sense_are_named(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "10.80.0.0/15,10.77.0.0/24,127.0.0.0/8")]);
    let message = |kind: &str, options: Value| {
        let test = server.test(kind, &options);
        assert_eq!((&test["failed"], &test["result"]), (&json!(true), &json!({})), "{test}");
        test["message"].as_str().expect("a message").to_owned()
    };
    for (name, bad) in [
        ("dport", vec![json!(-1), json!(65536), json!(1.5), json!("x"), json!(true)]),
        ("payload_size", vec![json!(-1), json!(1473), json!(0.5)]),
        ("max_ttl", vec![json!(0), json!(33), json!("-3"), json!([1])]),
        ("first_ttl", vec![json!(0), json!(33)]),
        ("probes", vec![json!(0), json!(11)]),
        ("paths", vec![json!(0), json!(9)]),
        ("timeout_ms", vec![json!(0), json!(10_001)]),
        ("family", vec![json!("5"), json!("ipv4")]),
    ] {
        for value in bad {
            let text = message("traceroute", json!({"dst": "10.81.0.2", name: value}));
            assert!(text.contains(&format!("'{name}'")), "{name}={value}: {text}");
        }
    }
    assert!(message("traceroute", json!({})).starts_with("Required test option of 'dst' was not given."));
    assert!(message("traceroute", json!({"dst": "10.81.0.2", "port": 3})).contains("dport"));
    assert!(message("traceroute", json!({"dst": "10.81.0.2", "first_ttl": 9, "max_ttl": 8})).contains("'9'"));
    assert!(message("traceroute", json!({"dst": "nothing.lab.test"})).starts_with("Unable to resolve"));
    assert!(message("traceroute", json!({"dst": "169.254.169.254"})).contains("is not allowed"));
    assert!(message("dns_traceroute", json!({})).starts_with("Required test option of 'qname' was not given."));
    assert!(message("dns_traceroute", json!({"qname": "a", "max_ttl": 0})).contains("'max_ttl'"));
    assert!(message("dns_traceroute", json!({"qname": "a..b", "ns": "10.81.0.2"})).contains("a..b"));
    assert!(message("dns_traceroute", json!({"qname": "a", "ns": "169.254.169.254"})).contains("is not allowed"));
    assert!(message("dns_traceroute", json!({"qname": "a", "ns": []})).contains("'ns'"));
    let other = trace(&server, json!({"dst": "10.81.0.2", "proto": "SCTP", "max_ttl": 1}));
    let text = "Provided 'proto' of 'SCTP' is not supported. Defaulting to ICMP. ('ICMP', 'TCP', 'UDP').";
    assert_eq!((&other["proto"], &other["dport"], &other["comment"]), (&json!("ICMP"), &Value::Null, &json!(text)));
}

fn a_path_is_drawn_as_it_grows(lab: &Lab) {
    let scouter = crate::support::scouter();
    let line = format!("{scouter} run traceroute dst=10.81.0.2 timeout_ms=300 --targets-allow 10.80.0.0/15");
    let run = |program: &str, arguments: &[&str]| {
        let mut command = lab.probe.command(program);
        command.env("SCOUTER_PLUGIN_DIR", crate::support::plugins()).env("SCOUTER_LOG", "error").args(arguments);
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let check = |picture: &str| {
        for (ttl, router, name) in
            [("1", "10.80.1.2", "r1.path.test"), ("5", "203.0.113.5", "-"), ("8", "10.81.0.2", "-")]
        {
            let row = picture.lines().find(|line| line.split_whitespace().any(|word| word == router)).expect(router);
            let words: Vec<&str> = row.split_whitespace().collect();
            assert_eq!(words[..3], [ttl, router, name], "{picture}");
        }
        assert!(picture.trim_end().ends_with("ok"), "{picture}");
    };
    let piped = run("sh", &["-c", &format!("{line} --table")]);
    check(&piped);
    assert!(!piped.contains('\x1b'), "{piped}");
    // On a terminal: pictures, each in the place of the one before.
    let drawn = run("script", &["-qec", &format!("stty cols 150 rows 50; {line}"), "/dev/null"]);
    let pictures: Vec<&str> = drawn.split("\x1b[J").collect();
    // All but the silent router answer within a millisecond: what is drawn before its wait is over has no names yet.
    assert!(pictures.len() >= 2 && !pictures[0].contains("path.test"), "names come at the end: {drawn}");
    let rows = |picture: &str| picture.lines().filter(|line| line.contains("10.8")).count();
    assert!(rows(pictures[0]) > 0, "{drawn}");
    assert!(pictures.windows(2).all(|two| rows(two[0]) <= rows(two[1])), "{drawn}");
    check(pictures.last().expect("one"));
}
