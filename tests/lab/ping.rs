//! `ping` against kernels, a non-conforming responder, and forged replies.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::number;
use crate::support::lab::{Lab, Namespace};
use crate::support::server::Server;
use crate::support::{SOON, hostile, scouter};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::ping", lab =>
        every_field_is_there_in_both_families,
        figures_agree_with_ping_8,
        a_thousand_at_once_lose_and_mix_nothing,
        errors_say_who_and_why,
        what_this_host_cannot_send_is_not_the_targets_loss,
        duplicate_late_and_forged_replies_are_distinguished,
        a_forger_who_floods_identifiers_is_not_believed,
        what_is_in_flight_is_not_lost,
        without_raw_sockets_datagram_ones_do_the_same,
        cap_net_raw_is_all_that_raw_mode_needs,
        a_plugin_that_waits_for_ever_ends_at_its_deadline,
        without_any_icmp_socket_only_pings_fail,
        a_machine_without_ipv6_serves,
    )
}

fn ping(server: &Server, options: Value) -> Value {
    let test = server.test("ping", &options);
    assert_eq!(test["message"], Value::Null, "{test}");
    test["result"].clone()
}

fn every_field_is_there_in_both_families(lab: &Lab) {
    let server = lab.server(&[]);
    for (dst, address, family, overhead) in [
        ("v4.lab.test", "10.77.0.2", 4, 28),
        ("v6.lab.test", "fd77::2", 6, 48),
        ("10.77.0.2", "10.77.0.2", 4, 28),
        ("fd77::2", "fd77::2", 6, 48),
    ] {
        for size in [0, 8, 56, 1400] {
            let result = ping(&server, json!({"dst": dst, "count": 2, "payload_size": size, "interval_ms": 10}));
            let of = |field: &str| result[field].clone();
            assert_eq!(
                (of("dst"), of("address"), of("family"), of("mode")),
                (json!(dst), json!(address), json!(family), json!("raw")),
                "{result}"
            );
            assert_eq!(
                (of("sent"), of("recv"), of("loss"), of("failed"), of("comment")),
                (json!(2), json!(2), json!(0.0), json!(false), Value::Null),
                "{result}"
            );
            assert_eq!(
                (of("payload_size"), of("packet_size"), of("errors")),
                (json!(size), json!(size + overhead), json!([])),
                "{result}"
            );
            let replies = result["replies"].as_array().expect("a list");
            for (index, reply) in replies.iter().enumerate() {
                assert_eq!(
                    (&reply["seq"], &reply["ttl"], &reply["len"], &reply["src"], &reply["duplicate"]),
                    (&json!(index), &json!(64), &json!(size + 8), &json!(address), &json!(false)),
                    "{result}"
                );
                assert!((0.0..100.0).contains(&number(&reply["rtt_ms"])), "{result}");
            }
            assert_eq!(replies.len(), 2);
            assert!(
                number(&result["rtt"]["min"]) <= number(&result["rtt"]["avg"])
                    && number(&result["rtt"]["avg"]) <= number(&result["rtt"]["max"]),
                "{result}"
            );
            assert!(
                result["rtt"]["min"].as_str().is_some_and(|text| text.split('.').nth(1).is_some_and(|d| d.len() == 3)),
                "{result}"
            );
        }
    }
    assert_eq!(ping(&server, json!({"dst": "www.lab.test", "family": "4", "count": 1}))["address"], "10.77.0.2");
    assert_eq!(ping(&server, json!({"dst": "www.lab.test", "family": "6", "count": 1}))["address"], "fd77::2");
    let defaulted = ping(&server, json!({"dst": "10.77.0.2", "count": "21", "interval_ms": 10}));
    assert_eq!(
        (&defaulted["sent"], &defaulted["comment"]),
        (&json!(10), &json!("Provided count of '21' is not allowed. Defaulting to 10. Min: 1, Max: 20."))
    );
    assert!(defaulted["stats"]["jitter_ms"].is_number() && defaulted["stats"]["p95_ms"].is_number(), "{defaulted}");
    for (dst, family) in [("v4.lab.test", "6"), ("nothing.lab.test", "any"), ("10.77.0.2", "6")] {
        let test = server.test("ping", &json!({"dst": dst, "family": family}));
        assert!(
            test["message"].as_str().is_some_and(|m| m.starts_with(&format!("Unable to resolve '{dst}'"))),
            "{test}"
        );
    }
}

fn figures_agree_with_ping_8(lab: &Lab) {
    let server = lab.server(&[]);
    let theirs = lab.probe.output("ping", &["-n", "-c", "20", "-i", "0.05", "-s", "100", "10.77.0.2"]);
    let ours = ping(&server, json!({"dst": "10.77.0.2", "count": 20, "interval_ms": 50, "payload_size": 100}));
    assert!(theirs.contains("20 packets transmitted, 20 received, 0% packet loss"), "{theirs}");
    assert!(theirs.contains("108 bytes from 10.77.0.2: icmp_seq=1 ttl=64"), "{theirs}");
    assert_eq!(
        (&ours["sent"], &ours["recv"], &ours["replies"][0]["len"], &ours["replies"][0]["ttl"]),
        (&json!(20), &json!(20), &json!(108), &json!(64))
    );
    let mut times: Vec<f64> =
        theirs.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok()).collect();
    times.sort_by(f64::total_cmp);
    let difference = (times[times.len() / 2] - number(&ours["stats"]["p50_ms"])).abs();
    // A wide bound, because other tests run in parallel; bench/ asserts 50 µs on a quiet machine.
    assert!(difference < 1.0, "medians differ by {difference} ms");
}

fn a_thousand_at_once_lose_and_mix_nothing(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_MAX_PROCESS_COUNT", "1000")]);
    let pings: Vec<Value> = (0..1000).map(|n| json!({"dst": if n % 2 == 0 { "10.77.0.2" } else { "fd77::2" }, "count": 3, "interval_ms": 50, "timeout_ms": 5000})).collect();
    let results = server.run(&json!({"ping": pings}));
    let results = results["ping"].as_array().expect("a list");
    assert_eq!(results.len(), 1000);
    for test in results {
        let result = &test["result"];
        assert_eq!((&result["sent"], &result["recv"], &result["loss"]), (&json!(3), &json!(3), &json!(0.0)), "{test}");
        let replies = result["replies"].as_array().expect("a list");
        assert!(
            replies.len() == 3
                && replies.iter().all(|r| r["src"] == result["address"] && r["duplicate"] == json!(false)),
            "{test}"
        );
    }
}

fn errors_say_who_and_why(lab: &Lab) {
    let server = lab.server(&[]);
    for (dst, kind, icmp_type, code, from) in [
        ("198.51.100.2", "host unreachable", 3, 1, "10.77.0.2"),
        ("198.51.100.3", "communication administratively prohibited", 3, 13, "10.77.0.2"),
        ("2001:db8:2::1", "no route to destination", 1, 0, "fd77::"),
    ] {
        let result = ping(&server, json!({"dst": dst, "count": 1, "timeout_ms": 300}));
        assert_eq!(
            (&result["failed"], &result["recv"], &result["loss"], &result["rtt"]["avg"]),
            (&json!(true), &json!(0), &json!(100.0), &Value::Null),
            "{result}"
        );
        let src = result["errors"][0]["src"].clone();
        // A router may answer from any of its addresses.
        assert!(src.as_str().is_some_and(|src| src.starts_with(from)), "{result}");
        assert_eq!(
            result["errors"],
            json!([{"seq": 0, "kind": kind, "src": src, "type": icmp_type, "code": code, "mtu": null}]),
            "{dst}"
        );
    }
    let result = ping(&server, json!({"dst": "198.51.100.65", "count": 1, "ttl": 1}));
    assert_eq!(result["failed"], json!(false), "the target's own address is one hop away: {result}");
    let result = ping(&server, json!({"dst": "198.51.100.66", "count": 1, "ttl": 1, "timeout_ms": 300}));
    assert_eq!(
        (&result["errors"][0]["kind"], &result["errors"][0]["src"]),
        (&json!("time exceeded in transit"), &json!("10.77.0.2")),
        "{result}"
    );
    let result = ping(
        &server,
        json!({"dst": "198.51.100.66", "count": 1, "payload_size": 1400, "dont_fragment": true, "timeout_ms": 300}),
    );
    assert_eq!(
        (&result["errors"][0]["kind"], &result["errors"][0]["mtu"]),
        (&json!("fragmentation needed"), &json!(1280)),
        "{result}"
    );
    let result = ping(&server, json!({"dst": "198.51.100.1", "count": 2, "interval_ms": 10, "timeout_ms": 200}));
    assert_eq!(
        (&result["failed"], &result["loss"], &result["errors"]),
        (&json!(true), &json!(100.0), &json!([])),
        "a black hole says nothing: {result}"
    );
}

fn what_this_host_cannot_send_is_not_the_targets_loss(lab: &Lab) {
    // A namespace with only a loopback interface has no route.
    let small = Namespace::add(format!("scouter-{}-m", std::process::id()));
    let server = lab.server_in(&small, &[("SCOUTER_TARGETS_ALLOW", "any")]);
    let test = server.test("ping", &json!({"dst": "192.0.2.1", "count": 2, "interval_ms": 10}));
    assert_eq!((&test["message"], &test["result"]), (&json!("This host has no route to the target."), &json!({})));
    for options in [json!({"url": "http://192.0.2.1/"}), json!({"url": "https://192.0.2.1/", "version": 3})] {
        let test = server.test("http_request", &options);
        assert_eq!(test["message"], json!("This host has no route to the target."), "{test}");
    }
    // An MTU of 600 bytes, and fragmentation forbidden.
    small.sh("ip link set lo mtu 600");
    let options =
        json!({"dst": "127.0.0.1", "count": 2, "interval_ms": 10, "payload_size": 1000, "dont_fragment": true});
    let result = ping(&server, options);
    assert_eq!(
        (&result["sent"], &result["loss"], &result["failed"]),
        (&json!(0), &Value::Null, &json!(true)),
        "{result}"
    );
    let kind = "not sent: larger than this host's interface takes, and fragmentation is forbidden";
    assert_eq!((&result["errors"][0]["kind"], &result["errors"][0]["src"]), (&json!(kind), &Value::Null), "{result}");
    let whole = ping(&server, json!({"dst": "127.0.0.1", "count": 1, "payload_size": 1000}));
    assert_eq!(whole["recv"], json!(1), "in fragments it gets through: {whole}");
    drop(server);
    small.delete();
}

/// A responder in user space that violates the protocol in a different way for each sequence number.
fn non_conforming_responder(namespace: &Namespace, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let socket =
        namespace.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("a raw socket"));
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 2048];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            #[expect(unsafe_code, reason = "the kernel has written that many bytes")]
            let packet: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
            let request = &packet[20..];
            if request[0] != 8 {
                continue;
            }
            let seq = u16::from_be_bytes([request[6], request[7]]);
            let reply = |change: &dyn Fn(&mut Vec<u8>)| {
                let mut reply = request.to_vec();
                reply[0] = 0;
                change(&mut reply);
                reply[2..4].fill(0);
                let sum = pnet_packet::util::checksum(&reply, 1);
                reply[2..4].copy_from_slice(&sum.to_be_bytes());
                let _ = socket.send_to(&reply, &from);
            };
            match seq {
                0 => (0..3).for_each(|_| reply(&|_| {})),
                1 => {
                    let (socket, from) = (socket.try_clone().expect("cloned"), from.clone());
                    let mut late = request.to_vec();
                    late[0] = 0;
                    late[2..4].fill(0);
                    let sum = pnet_packet::util::checksum(&late, 1);
                    late[2..4].copy_from_slice(&sum.to_be_bytes());
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_millis(1100));
                        let _ = socket.send_to(&late, &from);
                    });
                }
                2 => reply(&|reply| reply[8] ^= 1),
                3 => reply(&|reply| reply.truncate(8 + 20)),
                4 => reply(&|reply| reply[7] = 9),
                5 => reply(&|reply| reply.truncate(8 + 10)),
                // More than the capacity of the series' queue. The last one: what comes after a flood comes late on a busy
                // machine, and the series goes on until the lost requests time out.
                7 => (0..6000).for_each(|_| reply(&|_| {})),
                _ => reply(&|_| {}),
            }
        }
    })
}

fn duplicate_late_and_forged_replies_are_distinguished(lab: &Lab) {
    let wrong = Namespace::add(format!("scouter-{}-w", std::process::id()));
    lab.connect(&wrong, "10.78.0");
    wrong.sh("sysctl -qw net.ipv4.icmp_echo_ignore_all=1");
    let stop = Arc::new(AtomicBool::new(false));
    let host = non_conforming_responder(&wrong, &stop);
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "10.78.0.0/24")]);
    let result = ping(&server, json!({"dst": "10.78.0.2", "count": 8, "interval_ms": 200, "timeout_ms": 1000}));
    stop.store(true, Ordering::Relaxed);
    host.join().expect("ended");
    let seqs = |what: &str| -> Vec<u64> {
        let replies = result["replies"].as_array().expect("a list").iter();
        let wanted = replies.filter(|r| match what {
            "duplicate" => r["duplicate"] == json!(true),
            "late" => r["late"] == json!(true),
            _ => r["duplicate"] == json!(false) && r["late"] == json!(false),
        });
        wanted.map(|r| r["seq"].as_u64().expect("a number")).collect()
    };
    assert_eq!(seqs("duplicate")[..2], [0, 0], "{result}");
    assert!((3..=102).contains(&seqs("duplicate").len()), "a flood is cut short: {}", seqs("duplicate").len());
    assert_eq!(seqs("late"), [1], "{result}");
    // 2 is forged, 4 has another sequence number, 5 is truncated within the token, 3 behind it.
    assert_eq!(seqs("in time"), [0, 3, 6, 7], "{result}");
    assert_eq!((&result["sent"], &result["recv"]), (&json!(8), &json!(4)), "{result}");
    // Loss is unknown when this host itself dropped packets.
    let known = if result["degraded"].is_null() { json!(50.0) } else { Value::Null };
    assert_eq!(result["loss"], known, "{result}");
    wrong.delete();
}

fn a_forger_who_floods_identifiers_is_not_believed(lab: &Lab) {
    let server = lab.server(&[]);
    let forged = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let socket = lab
                .target
                .inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("a raw socket"));
            let to: SocketAddr = "10.77.0.1:0".parse().expect("an address");
            std::thread::sleep(Duration::from_millis(300));
            let mut sent = 0_u64;
            for identifier in 0..=u16::MAX {
                let mut icmp = vec![0, 0, 0, 0];
                icmp.extend(identifier.to_be_bytes());
                icmp.extend([0, 1]);
                icmp.extend([0x41; 56]);
                let sum = pnet_packet::util::checksum(&icmp, 1);
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
                // The kernel fills in length and checksum; the source is the target, which never answers.
                let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 198, 51, 100, 1, 10, 77, 0, 1];
                packet.extend(icmp);
                sent += u64::from(socket.send_to(&packet, &to.into()).is_ok());
            }
            sent
        });
        let result = ping(&server, json!({"dst": "198.51.100.1", "count": 1, "timeout_ms": 3000}));
        assert_eq!(
            (&result["recv"], &result["replies"], &result["failed"]),
            (&json!(0), &json!([]), &json!(true)),
            "{result}"
        );
        flood.join().expect("flooded")
    });
    assert!(forged > 60_000, "{forged} forged replies were sent");
}

fn what_is_in_flight_is_not_lost(lab: &Lab) {
    let host = Namespace::add(format!("scouter-{}-f", std::process::id()));
    lab.connect(&host, "10.78.9");
    host.sh("sysctl -qw net.ipv4.icmp_echo_ignore_all=1");
    let stop = Arc::new(AtomicBool::new(false));
    // Answers 0 at once and 1 after 1.1 s; the answer to 2 is none of ours.
    let responder = non_conforming_responder(&host, &stop);
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "10.78.9.0/24,198.51.100.1"), ("SCOUTER_TEST_TIMEOUT", "4")]);
    for (dst, count, recv, loss) in [("10.78.9.2", 3, 2, json!(0.0)), ("198.51.100.1", 2, 0, Value::Null)] {
        let options = json!({"dst": dst, "count": count, "interval_ms": 50, "timeout_ms": 10_000});
        let test = server.test("ping", &options);
        assert_eq!(test["error"], json!("deadline"), "{test}");
        let result = &test["result"];
        assert_eq!(
            (&result["sent"], &result["recv"], &result["in_flight"], &result["loss"]),
            (&json!(count), &json!(recv), &json!(count - recv), &loss),
            "{test}"
        );
    }
    // In the end none is in flight: what has timed out is lost.
    let options = json!({"dst": "198.51.100.1", "count": 10, "interval_ms": 100, "timeout_ms": 300});
    let done = ping(&server, options);
    assert_eq!((&done["sent"], &done["in_flight"], &done["loss"]), (&json!(10), &json!(0), &json!(100.0)), "{done}");
    stop.store(true, Ordering::Relaxed);
    responder.join().expect("ended");
    drop(server);
    host.delete();
}

pub fn nobody(namespace: &Namespace) -> Command {
    let mut command = namespace.command("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        scouter(),
    ]);
    command.env("SCOUTER_CACHE_DIR", "/nonexistent/scouter");
    command
}

fn without_raw_sockets_datagram_ones_do_the_same(lab: &Lab) {
    let server = lab.server_by(nobody(&lab.probe), &[("SCOUTER_CACHE_DIR", "/nonexistent/scouter")]);
    let status = server.get("/api/v1.0/status").body;
    assert_eq!(
        (&status["network"]["icmp_v4"]["mode"], &status["network"]["icmp_v6"]["mode"]),
        (&json!("datagram"), &json!("datagram")),
        "{status}"
    );
    for dst in ["10.77.0.2", "fd77::2"] {
        let result = ping(&server, json!({"dst": dst, "count": 3, "interval_ms": 20}));
        assert_eq!(
            (&result["recv"], &result["mode"], &result["replies"][0]["ttl"], &result["replies"][0]["len"]),
            (&json!(3), &json!("datagram"), &json!(64), &json!(64)),
            "{result}"
        );
    }
    for (dst, kind, ttl) in [
        ("198.51.100.2", "host unreachable", 64),
        ("2001:db8:2::1", "no route to destination", 64),
        ("198.51.100.66", "time exceeded in transit", 1),
    ] {
        let result = ping(&server, json!({"dst": dst, "count": 2, "interval_ms": 50, "timeout_ms": 300, "ttl": ttl}));
        assert_eq!(
            (&result["failed"], &result["errors"][0]["kind"], &result["errors"].as_array().map(Vec::len)),
            (&json!(true), &json!(kind), &Some(2)),
            "{result}"
        );
        assert_eq!((&result["sent"], &result["loss"]), (&json!(2), &json!(100.0)), "{result}");
    }
    let many: Vec<Value> = (0..200).map(|_| json!({"dst": "10.77.0.2", "count": 2, "interval_ms": 50})).collect();
    for test in server.run(&json!({"ping": many}))["ping"].as_array().expect("a list") {
        assert_eq!((&test["result"]["recv"], &test["result"]["sent"]), (&json!(2), &json!(2)), "{test}");
    }
}

fn cap_net_raw_is_all_that_raw_mode_needs(lab: &Lab) {
    let mut command = lab.probe.command("setpriv");
    let drop = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    command.args(drop).args([
        "--inh-caps=-all,+net_raw",
        "--ambient-caps=-all,+net_raw",
        "--bounding-set=-all,+net_raw",
    ]);
    command.arg(scouter());
    let server = lab.server_by(command, &[("SCOUTER_CACHE_DIR", "/nonexistent/scouter")]);
    for dst in ["10.77.0.2", "fd77::2"] {
        let result = ping(&server, json!({"dst": dst, "count": 2, "interval_ms": 20}));
        assert_eq!((&result["recv"], &result["mode"]), (&json!(2), &json!("raw")), "{result}");
    }
}

fn a_plugin_that_waits_for_ever_ends_at_its_deadline(lab: &Lab) {
    let folder = hostile();
    let server = lab.server(&[("SCOUTER_PLUGIN_DIR", folder.to_str().expect("UTF-8")), ("SCOUTER_TEST_TIMEOUT", "1")]);
    // A host call that waits a minute for a target that never answers.
    let options = json!({"do": "hang", "to": "198.51.100.1"});
    server.test("hostile", &options);
    let (_, files) = server.weight();
    for _ in 0..3 {
        let started = std::time::Instant::now();
        let test = server.test("hostile", &options);
        assert_eq!(test["error"], json!("deadline"), "{test}");
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    }
    assert!(server.weight().1 <= files + 1, "descriptors are not closed");
}

fn without_any_icmp_socket_only_pings_fail(lab: &Lab) {
    let bare = Namespace::add(format!("scouter-{}-b", std::process::id()));
    bare.sh("sysctl -qw net.ipv4.ping_group_range='1 0'");
    let folder = hostile();
    let both = format!("{},{}", crate::support::plugins().display(), folder.display());
    let mut command = nobody(&bare);
    command.env("SSL_CERT_FILE", lab.path("ca.pem"));
    let server = Server::spawn(
        command,
        &[
            ("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8"),
            ("SCOUTER_CACHE_DIR", "/nonexistent/scouter"),
            ("SCOUTER_PLUGIN_DIR", &both),
        ],
        Some(bare.clone()),
    );
    let test = server.test("ping", &json!({"dst": "127.0.0.1"}));
    let message = test["message"].as_str().expect("a message");
    assert!(message.contains("CAP_NET_RAW") && message.contains("ping_group_range"), "{test}");
    let test = server.test("http_request", &json!({"url": server.url("/healthz")}));
    assert_eq!(test["result"]["status"], json!(200), "{test}");
    drop(server);
    bare.delete();
}

fn a_machine_without_ipv6_serves(_: &Lab) {
    let four = Namespace::add(format!("scouter-{}-4", std::process::id()));
    four.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1");
    let server = Server::spawn(
        four.command(scouter()),
        &[("SCOUTER_LISTEN", "127.0.0.1,::"), ("SCOUTER_TARGETS_ALLOW", "any")],
        Some(four.clone()),
    );
    assert_eq!(server.test("ping", &json!({"dst": "127.0.0.1", "count": 1}))["failed"], json!(false));
    let test = server.test("ping", &json!({"dst": "::1", "count": 1}));
    assert_eq!(test["message"], json!("This host has no route to the target."), "{test}");
    drop(server);
    four.delete();
}
