//! Hostile plugins (threats 1–11, 20, 24, 25): each costs one failed test with a typed reason, nothing else.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::server::Server;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("sandbox":
        every_attack_ends_with_its_reason,
        memory_and_descriptors_come_back,
        spinning_plugins_leave_the_api_alone,
        the_last_partial_result_survives_a_kill,
        a_sleeping_plugin_ends_at_its_deadline,
        a_plugin_sees_nothing_of_the_host,
        sessions_and_packets_are_counted,
    )
}

fn server(settings: &[(&str, &str)]) -> Server {
    let base = [("SCOUTER_MAX_TEST_COUNT", "100"), ("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8")];
    Server::hostile(&base.iter().chain(settings).copied().collect::<Vec<_>>())
}

fn attack(server: &Server, what: &str, n: u64) -> Value {
    server.test("hostile", &json!({"do": what, "n": n}))
}

fn every_attack_ends_with_its_reason() {
    let server = server(&[]);
    let attacks = [
        ("spin", 0, "cpu_limit"),
        ("return", 2_000_000, "call_size_limit"),
        ("return", 600_000, "bad_result"),
        ("log", 2_000, "log_limit"),
        ("call", 10_001, "host_call_limit"),
        ("call with much", 50, "host_call_limit"),
        ("list", 100_000, "call_size_limit"),
        ("allocate", 1 << 30, "memory_limit"),
        ("handles", 100_000, "handle_limit"),
        ("recurse", 0, "stack_limit"),
        ("panic", 0, "trap"),
        ("not UTF-8", 0, "bad_result"),
        ("not JSON", 0, "bad_result"),
        ("NaN", 0, "bad_result"),
        ("not an object", 0, "bad_result"),
        ("against the schema", 0, "bad_result"),
        ("deep", 10_000, "bad_result"),
    ];
    for (what, n, reason) in attacks {
        let started = Instant::now();
        let test = attack(&server, what, n);
        assert_eq!((&test["error"], &test["failed"]), (&json!(reason), &json!(true)), "{what} {n}: {test}");
        assert!(test["message"].as_str().is_some_and(|m| m.starts_with("Plugin 'hostile' was stopped: ")), "{test}");
        assert!(started.elapsed() < Duration::from_secs(8), "{what}: {:?}", started.elapsed());
        assert_eq!(attack(&server, "nothing", 0)["failed"], json!(false), "after {what}");
    }
    for (what, n) in
        [("return", 400_000), ("log", 600), ("call", 9_000), ("allocate", 32 << 20), ("handles", 100), ("deep", 100)]
    {
        assert_eq!(attack(&server, what, n)["failed"], json!(false), "within its limit: {what} {n}");
    }
}

fn memory_and_descriptors_come_back() {
    let server = server(&[]);
    let all = || {
        for (what, n) in [
            ("allocate", 1 << 30),
            ("allocate", 48 << 20),
            ("return", 2_000_000),
            ("list", 100_000),
            ("sockets", 100_000),
            ("handles", 10_000),
        ] {
            attack(&server, what, n);
        }
    };
    all();
    let (rss, files) = server.weight();
    for _ in 0..5 {
        all();
    }
    let (rss_after, files_after) = server.weight();
    assert!(rss_after < rss + 16 * 1024, "{rss} kB, then {rss_after} kB");
    assert!(files_after <= files + 2, "{files} descriptors, then {files_after}");
}

fn spinning_plugins_leave_the_api_alone() {
    let server = server(&[("SCOUTER_MAX_PROCESS_COUNT", "32")]);
    let spinners: Vec<_> = (0..32).map(|_| json!({"do": "spin"})).collect();
    let payload = json!({"hostile": spinners}).to_string();
    let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload)).body["receipt"]
        .as_str()
        .expect("a receipt")
        .to_owned();
    let mut times: Vec<Duration> = vec![];
    while server.get(&format!("/api/v1.0/tests?receipt={receipt}")).body["is_running"] == json!(true) {
        let started = Instant::now();
        assert_eq!(server.get("/api/v1.0/status").status, 200);
        times.push(started.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    times.sort();
    assert!(times.len() > 20, "{} requests while 32 plugins span", times.len());
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(100), "median {median:?} with 32 spinning plugins");
    let body = server.get(&format!("/api/v1.0/tests?receipt={receipt}")).body;
    let reasons: Vec<_> =
        body["results"]["hostile"].as_array().expect("a list").iter().map(|t| t["error"].clone()).collect();
    assert_eq!(reasons, vec![json!("cpu_limit"); 32]);
}

fn the_last_partial_result_survives_a_kill() {
    let server = server(&[]);
    let test = attack(&server, "partial, then spin", 0);
    assert_eq!((&test["result"], &test["error"]), (&json!({"so_far": 1}), &json!("cpu_limit")), "{test}");
}

fn a_sleeping_plugin_ends_at_its_deadline() {
    let server = server(&[("SCOUTER_TEST_TIMEOUT", "1")]);
    let started = Instant::now();
    let test = attack(&server, "sleep", 60_000);
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    assert_eq!(test["error"], json!("deadline"), "{test}");
}

fn a_plugin_sees_nothing_of_the_host() {
    let server = server(&[]);
    let address = server.address.to_string();
    let test = server.test("hostile", &json!({"do": "look around", "to": address}));
    let nothing = json!({"environment": 0, "arguments": 0, "files": 0, "passwd": false, "tcp": false, "udp": false, "names": false});
    assert_eq!(test["result"], nothing, "{test}");
}

fn sessions_and_packets_are_counted() {
    let server = server(&[]);
    let open = &attack(&server, "sockets", 100)["result"]["open"];
    let planned = &attack(&server, "packets", 0)["result"]["planned"];
    assert_eq!((open, planned), (&json!(32), &json!(10_000)));
}
