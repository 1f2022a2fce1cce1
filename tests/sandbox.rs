//! Hostile plugins (threats 1–11, 20, 24, 25): each costs one failed test with a typed reason, nothing else.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use scouter::metrics::Metrics;
use scouter::runner::Runner;
use scouter::sandbox::Plugins;
use scouter::services::{Runtimes, Services};
use scouter_net::Net;
use scouter_net::policy::Policy;
use scouter_net::system::System;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::server::{Server, command};
use crate::support::{SOON, Thread, hostile, scouter, threads};
use crate::trials;

pub fn trials() -> Vec<Trial> {
    let mut all = trials!("sandbox":
        every_attack_ends_with_its_reason,
        memory_and_descriptors_come_back,
        spinning_plugins_leave_the_api_alone,
        the_last_partial_result_survives_a_kill,
        a_sleeping_plugin_ends_at_its_deadline,
        a_plugin_sees_nothing_of_the_host,
        sessions_and_packets_are_counted,
        every_import_asks_the_budget,
        a_run_finds_nothing_of_those_before,
        without_a_pool_each_run_maps_its_own_memory,
        a_run_that_computes_is_stopped_and_gives_its_slot_back,
        a_guest_is_charged_for_the_cpu_time_that_it_got,
        a_panic_of_an_engine_is_the_servers_error_and_frees_its_slot,
    );
    all.extend(crate::needing_root(trials!("sandbox":
        guests_compute_on_threads_without_capabilities,
        large_packets_count_as_their_fragments,
    )));
    all
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
        ("values", 60_000, "bad_result"),
        ("log", 2_000, "log_limit"),
        ("call", 10_001, "host_call_limit"),
        ("call with much", 50, "host_call_limit"),
        ("ask with much", 50, "host_call_limit"),
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
        let test = attack(&server, what, n);
        assert_eq!((&test["error"], &test["failed"]), (&json!(reason), &json!(true)), "{what} {n}: {test}");
        assert!(test["message"].as_str().is_some_and(|m| m.starts_with("Plugin 'hostile' was stopped: ")), "{test}");
        assert_eq!(attack(&server, "nothing", 0)["failed"], json!(false), "after {what}");
    }
    for (what, n) in [
        ("return", 400_000),
        ("values", 40_000),
        ("log", 600),
        ("call", 9_000),
        ("allocate", 32 << 20),
        ("handles", 100),
        ("deep", 100),
    ] {
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
    let server = server(&[("SCOUTER_MAX_PROCESS_COUNT", "32"), ("SCOUTER_TEST_TIMEOUT", "20")]);
    // Those that nap begin on the threads that answer, and wake up together.
    let spinner = |n| if n % 2 == 0 { json!({"do": "nap, then spin", "n": 300}) } else { json!({"do": "spin"}) };
    let spinners: Vec<_> = (0..32).map(spinner).collect();
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
    // On a busy machine they do not get their CPU time before the deadline.
    let limits = [json!("cpu_limit"), json!("deadline")];
    assert!(reasons.len() == 32 && reasons.iter().all(|reason| limits.contains(reason)), "{reasons:?}");
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
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
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

/// A pool needs 17 GiB of addresses for each run.
fn without_a_pool_each_run_maps_its_own_memory() {
    let mut little = Command::new("prlimit");
    little.arg(format!("--as={}", 24_u64 << 30)).arg(scouter());
    crate::support::server::clean(&mut little);
    let folder = hostile();
    let plugins = ("SCOUTER_PLUGIN_DIR", folder.to_str().expect("UTF-8"));
    let little = Server::spawn(little, &[plugins], None);
    assert!(little.log().contains("no pool of memory"), "{}", little.log());
    for server in [little, server(&[("SCOUTER_MAX_PROCESS_COUNT", "3000")])] {
        for (what, n, failed) in [("nothing", 0, false), ("spin", 0, true), ("allocate", 32 << 20, false)] {
            assert_eq!(attack(&server, what, n)["failed"], json!(failed), "{what}: {}", server.log());
        }
    }
}

fn a_run_that_computes_is_stopped_and_gives_its_slot_back() {
    let server = server(&[("SCOUTER_MAX_PROCESS_COUNT", "1")]);
    for what in ["spin", "nap, then spin"] {
        for _ in 0..10 {
            let payload = json!({"hostile": [{"do": what, "n": 20}]}).to_string();
            let receipt = server.request("POST", "/api/v1.0/tests", Some(&payload)).body["receipt"].clone();
            std::thread::sleep(Duration::from_millis(40));
            let path = format!("/api/v1.0/tests?receipt={}", receipt.as_str().expect("a receipt"));
            assert_eq!(server.request("DELETE", &path, None).status, 200);
            // In the only slot, without waiting for what was stopped to use up its second.
            let test = attack(&server, "nothing", 0);
            assert_eq!(test["failed"], json!(false), "{what}: {test}");
        }
    }
}

/// Memory is used again: more than is cleared in place, and less.
fn a_run_finds_nothing_of_those_before() {
    let server = server(&[("SCOUTER_MAX_PROCESS_COUNT", "1")]);
    for bytes in [64 << 10, 200 << 10, 32 << 20, 100 << 10, 48 << 20] {
        assert_eq!(attack(&server, "leave", bytes)["failed"], json!(false));
        let test = attack(&server, "find", 48 << 20);
        assert_eq!(test["result"], json!({"found": 0, "left": 0}), "{bytes}");
    }
}

/// Each row is a way past a limit that an import did not ask about.
fn every_import_asks_the_budget() {
    let server = server(&[("SCOUTER_BROWSER_PORTS", "9461")]);
    for (what, n, expected) in [
        // The 65th target is refused; the first one may be reached again.
        ("exchanges", 70, json!({"reached": 64 + 1, "again": true})),
        // Ten pages of 1,000 packets, whether or not there is a browser.
        ("pages", 12, json!({"loaded": 10})),
        ("lookups", 1_100, json!({"asked": 1_024})),
    ] {
        let test = attack(&server, what, n);
        assert_eq!(test["result"], expected, "{what} {n}: {test}");
    }
    // Three calls of 1,000 addresses: 1,024 are asked for, at the rate of packets.
    let test = attack(&server, "reverse", 1_000);
    assert_eq!(test["result"]["named"], json!(1_024), "{test}");
    assert!(test["result"]["ms"].as_u64().is_some_and(|ms| ms >= 900), "{test}");
    if server.get("/api/v1.0/status").body["network"]["icmp_v4"]["mode"].is_string() {
        assert_eq!(attack(&server, "targets", 70)["result"], json!({"reached": 64, "again": 64}));
    }
}

/// 65,048 bytes leave in 44 fragments: of 10,000 packets that is 22 series of ten.
fn large_packets_count_as_their_fragments() {
    let server = server(&[]);
    assert_eq!(attack(&server, "large packets", 100)["result"], json!({"planned": 220}));
}

/// Processes that take the processors, at a higher priority than guests have.
struct Hogs(Vec<Child>);

impl Hogs {
    fn new(count: usize) -> Self {
        let hog = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh runs");
        Self((0..count).map(|_| hog()).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}

/// Half of the CPU time that a run may use, beside processes that leave it a small part of each second.
fn a_guest_is_charged_for_the_cpu_time_that_it_got() {
    let server = server(&[]);
    let guests = || threads(server.pid()).iter().filter(|thread| thread.name == "guest").map(|t| t.cpu).sum::<u64>();
    let cost = |n: u64| {
        let before = guests();
        let test = attack(&server, "compute", n);
        assert_eq!(test["failed"], json!(false), "{n}: {test}");
        guests() - before
    };
    let mut n = 20;
    let hundredths = loop {
        match cost(n) {
            cpu if cpu < 10 => n *= 2,
            cpu => break cpu,
        }
    };
    let half = n * 50 / hundredths;
    let _hogs = Hogs::new(4);
    let used = cost(half);
    assert!((20..=100).contains(&used), "{used} hundredths of a second");
}

fn guests_compute_on_threads_without_capabilities() {
    let busy = |pid: u32| threads(pid).into_iter().filter(|thread| thread.cpu >= 50).collect::<Vec<_>>();
    let check = |threads: &[Thread]| {
        assert!(threads.iter().any(|thread| thread.name == "guest"), "{threads:?}");
        assert!(threads.iter().all(|thread| thread.capabilities == 0), "{threads:?}");
    };
    let server = server(&[]);
    assert_eq!(attack(&server, "spin", 0)["error"], json!("cpu_limit"));
    check(&busy(server.pid()));
    // The command line, while it runs: the guest has a second of CPU time.
    let mut run = command();
    run.env("SCOUTER_PLUGIN_DIR", hostile())
        .env("SCOUTER_CACHE_DIR", Path::new(scouter()).with_file_name("plugin-cache"));
    let mut run = run.args(["run", "hostile", "do=spin", "--json"]).stdout(Stdio::null()).spawn().expect("runs");
    let mut seen = vec![];
    while run.try_wait().expect("waited").is_none() {
        let now = busy(run.id());
        if !now.is_empty() {
            seen = now;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    check(&seen);
}

/// The engines' runtime has no timers here: the first engine that waits for one panics, as a mistake in it would.
fn a_panic_of_an_engine_is_the_servers_error_and_frees_its_slot() {
    // The program itself compiles the plugin into the cache; this process is another one.
    drop(server(&[]));
    let runtimes = Runtimes::new(Some(1)).expect("runtimes");
    let without_timers =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build().expect("one");
    let (services, plugins) = runtimes.io.block_on(async {
        let system = Arc::new(System::of_this_host());
        let policy = Policy::new(vec!["127.0.0.0/8".parse().expect("a rule")], vec![], Arc::clone(&system));
        let browsers = scouter_net::browser::Config { ports: 9461..=9461, ttl: Duration::ZERO, idle: Duration::ZERO };
        let net = Net::open(system, &policy, None, browsers).expect("a network");
        let io = without_timers.handle().clone();
        let cache = Path::new(scouter()).with_file_name("plugin-cache");
        let guests = runtimes.guests.handle();
        let plugins = Plugins::load(&[hostile()], Some(&cache), guests, 1).await.expect("plugins");
        (Arc::new(Services { io, guests: guests.clone(), net, policy, metrics: Metrics::default() }), plugins)
    });
    let limits = scouter::queue::Limits { tests: 10, bytes: 1 << 20 };
    let runner = Runner::new(services, 1, limits, Duration::from_secs(30));
    let plugin = plugins.get("hostile").expect("the plugin");
    let run = |options: &str| -> Value {
        let (id, cancel, partial) = (json!("x"), CancellationToken::new(), Arc::default());
        let test = runner.run(&id, plugin, options, Duration::ZERO, &cancel, partial, None);
        serde_json::from_str(runtimes.io.block_on(test).get()).expect("JSON")
    };
    for _ in 0..2 {
        let test = run(r#"{"do":"exchanges","n":1}"#);
        assert_eq!((&test["error"], &test["failed"]), (&json!("host_error"), &json!(true)), "{test}");
        let message = "The test ended on an error of the server's own. Please report it.";
        assert_eq!((&test["message"], &test["plugin"]["name"]), (&json!(message), &json!("hostile")), "{test}");
    }
    let test = run(r#"{"do":"nothing"}"#);
    assert_eq!(test["failed"], json!(false), "{test}");
    let slot = runner.slots()[0].clone();
    assert_eq!((slot.busy, slot.requests, slot.exceptions), (false, 3, 0), "no exception of the plugin's");
    runtimes.end();
    without_timers.shutdown_background();
}
