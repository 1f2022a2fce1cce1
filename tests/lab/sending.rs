//! Packets on their way out of this host: the flow labels that they carry, and the queues that they wait in or are dropped
//! from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::answers::{Responder, know_each_other, sent_and_refused, unprivileged};
use super::number;
use super::path::trace;
use super::spoofing::{Stop, packet, summed};
use crate::support::lab::{Lab, Namespace, sh};
use crate::support::server::Server;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::sending", lab =>
        each_flow_has_a_label_of_its_own,
        hop_limits_are_those_of_the_system,
        rules_about_source_addresses_choose_the_route,
        a_full_queue_of_this_host_is_not_the_networks_loss,
        what_waited_in_a_queue_of_this_host_is_timed_from_when_it_left,
        what_is_dropped_last_is_told_too,
        forged_errors_keep_nothing_from_being_sent,
    )
}

/// Of one IPv6 packet: what its flow is called by (protocol, and source port or identifier), hop limit and flow label.
/// None for later fragments, and for what is no probe.
fn flow_of(packet: &[u8]) -> Option<((u8, u16), (u8, u32))> {
    let label = u32::from_be_bytes([0, packet[1] & 0xf, packet[2], packet[3]]);
    let (protocol, transport) = match packet[6] {
        // A fragment.
        44 if packet[42] == 0 && packet[43] & 0xf8 == 0 => (packet[40], &packet[48..]),
        44 => return None,
        protocol => (protocol, &packet[40..]),
    };
    let at = match (protocol, transport[0]) {
        (58, 128) => 4,
        (6 | 17, _) => 0,
        _ => return None,
    };
    Some(((protocol, u16::from_be_bytes([transport[at], transport[at + 1]])), (packet[7], label)))
}

/// What the probe sends to 10.79.0.0/16 and `fd79::/16` while `work` runs.
fn captured(responder: &Responder<'_>, work: impl FnOnce()) -> Vec<Vec<u8>> {
    let packets = Mutex::new(vec![]);
    let record = |packet: &[u8]| {
        let to = if packet[0] >> 4 == 4 { &packet[16..18] } else { &packet[24..26] };
        if [[10, 79], [0xfd, 0x79]].iter().any(|prefix| to == prefix) {
            packets.lock().unwrap().push(packet.to_vec());
        }
        vec![]
    };
    responder.while_it_answers(record, || {
        work();
        // What was sent has been read.
        std::thread::sleep(Duration::from_millis(200));
    });
    packets.into_inner().unwrap()
}

fn each_flow_has_a_label_of_its_own(lab: &Lab) {
    let responder = Responder::new(lab, 41);
    responder.attract("fd79:0:0:41::/64");
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "fd79::/32")]);
    let dst = "fd79:0:0:41::9";
    for (proto, protocol) in [("ICMP", 58), ("UDP", 17), ("TCP", 6)] {
        // 1472 bytes leave this host in fragments.
        for size in [2, 1300, 1472] {
            let options = json!({"dst": dst, "proto": proto, "payload_size": size, "paths": 3, "probes": 3, "max_ttl": 2, "timeout_ms": 200});
            let mut result = Value::Null;
            let packets = captured(&responder, || result = trace(&server, options));
            assert_eq!((&result["constant_flow"], &result["errors"]), (&json!(true), &json!([])), "{result}");
            let mut labels: BTreeMap<u16, BTreeSet<u32>> = BTreeMap::new();
            let probes = packets.iter().filter_map(|packet| flow_of(packet));
            let count = probes
                .inspect(|((seen, port), (_, label))| {
                    assert_eq!(*seen, protocol);
                    labels.entry(*port).or_default().insert(*label);
                })
                .count();
            // Each round of TCP has flows of its own.
            let flows = if proto == "TCP" { 9 } else { 3 };
            assert_eq!((count, labels.len()), (18, flows), "{proto} {size}: {labels:?}");
            let different: BTreeSet<u32> = labels.values().flatten().copied().collect();
            assert!(labels.values().all(|of_flow| of_flow.len() == 1), "{proto} {size}: {labels:?}");
            assert!(different.len() == flows && !different.contains(&0), "{proto} {size}: {labels:?}");
        }
    }
    for size in [0, 1200, 1300, 1472] {
        let options = json!({"dst": dst, "count": 3, "interval_ms": 10, "payload_size": size, "timeout_ms": 200});
        let packets = captured(&responder, || {
            server.test("ping", &options);
        });
        let flows: Vec<_> = packets.iter().filter_map(|packet| flow_of(packet)).collect();
        assert!(flows.len() == 3 && flows.iter().all(|flow| *flow == flows[0]), "{size}: {flows:?}");
        assert_ne!(flows[0].1.1, 0, "{size}");
    }
    drop(server);
    responder.end();
}

fn hop_limits_are_those_of_the_system(lab: &Lab) {
    let responder = Responder::new(lab, 42);
    responder.attract("fd79:0:0:42::/64");
    responder.attract("fd79:0:0:43::/64");
    lab.probe.sh("ip -6 route change fd79:0:0:43::/64 via fd78:0:0:2a::2 hoplimit 33");
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "fd79::/32")]);
    for (dst, ttl, expected) in
        [("fd79:0:0:42::9", None, 64), ("fd79:0:0:43::9", None, 33), ("fd79:0:0:43::9", Some(9), 9)]
    {
        for size in [56, 1400] {
            let mut options =
                json!({"dst": dst, "count": 1, "payload_size": size, "timeout_ms": 200, "dont_fragment": size > 56});
            if let Some(ttl) = ttl {
                options["ttl"] = json!(ttl);
            }
            let packets = captured(&responder, || {
                server.test("ping", &options);
            });
            let limits: Vec<u8> = packets.iter().filter_map(|packet| Some(flow_of(packet)?.1.0)).collect();
            assert_eq!(limits, [expected], "{options}");
        }
    }
    drop(server);
    responder.end();
}

fn rules_about_source_addresses_choose_the_route(lab: &Lab) {
    let [first, second] = [43, 44].map(|net| Responder::new(lab, net));
    // The main table chooses the source of the first link, and a rule about that source the second link.
    lab.probe.sh(
        "ip route add 10.79.60.0/24 via 10.78.43.2 src 10.78.43.1; ip -6 route add fd79:0:0:60::/64 via fd78:0:0:2b::2 src fd78:0:0:2b::1
         ip route add 10.79.60.0/24 via 10.78.44.2 table 160; ip -6 route add fd79:0:0:60::/64 via fd78:0:0:2c::2 table 160
         ip rule add from 10.78.43.1 to 10.79.60.0/24 lookup 160; ip -6 rule add from fd78:0:0:2b::1 to fd79:0:0:60::/64 lookup 160",
    );
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "10.79.0.0/16,fd79::/32")]);
    for (dst, source) in
        [("10.79.60.9", vec![10, 78, 43, 1]), ("fd79:0:0:60::9", vec![0xfd, 0x78, 0, 0, 0, 0, 0, 0x2b])]
    {
        for proto in ["ICMP", "UDP", "TCP"] {
            let packets = captured(&second, || {
                trace(&server, json!({"dst": dst, "proto": proto, "max_ttl": 3, "timeout_ms": 200}));
            });
            let at = if dst.contains(':') { 8 } else { 12 };
            assert_eq!(packets.len(), 3, "{dst} {proto}");
            assert!(packets.iter().all(|packet| packet[at..].starts_with(&source)), "{dst} {proto}: {packets:?}");
        }
    }
    drop(server);
    lab.probe.sh("ip rule del lookup 160; ip -6 rule del lookup 160");
    first.end();
    second.end();
}

/// A host behind an interface of the probe's with room for two packets of 1,000 bytes, one of which leaves in a second.
struct SlowInterface {
    host: Namespace,
    device: String,
}

impl SlowInterface {
    /// Reached by 10.78.`net`.2 and `fd78:0:0:net::2`.
    fn new(lab: &Lab, net: u8) -> Self {
        let host = Namespace::add(format!("scouter-{}-s{net}", std::process::id()));
        lab.connect(&host, &format!("10.78.{net}"));
        let device = format!("l10-78-{net}");
        host.sh(&format!(
            "ip addr add fd78:0:0:{net:x}::2/64 dev veth0 nodad; sysctl -qw net.ipv4.icmp_ratemask=0 net.ipv6.icmp.ratelimit=0"
        ));
        lab.probe.sh(&format!("ip addr add fd78:0:0:{net:x}::1/64 dev {device} nodad"));
        // What asks for neighbours would wait in the queue too.
        know_each_other(lab, &host, net);
        lab.probe.sh(&format!("tc qdisc add dev {device} root tbf rate 9kbit burst 1200 limit 2400"));
        Self { host, device }
    }

    /// Empties the queue, and lets the next packet leave at once.
    fn settle(&self, lab: &Lab) {
        lab.probe.sh(&format!("tc qdisc change dev {0} root tbf rate 100mbit burst 1200 limit 2400; sleep 0.1; tc qdisc change dev {0} root tbf rate 9kbit burst 1200 limit 2400", self.device));
    }
}

fn addresses(net: u8) -> [String; 2] {
    [format!("10.78.{net}.2"), format!("fd78:0:0:{net:x}::2")]
}

fn a_full_queue_of_this_host_is_not_the_networks_loss(lab: &Lab) {
    let slow = SlowInterface::new(lab, 45);
    let raw = lab.server(&[("SCOUTER_TARGETS_ALLOW", "10.78.45.0/24,fd78:0:0:2d::/64")]);
    for (server, mode) in [(&raw, "raw"), (&unprivileged(lab), "datagram")] {
        for dst in addresses(45) {
            // The kernel tells nobody what its queue dropped of a datagram ICMPv6 socket.
            let hidden = mode == "datagram" && dst.contains(':');
            if !hidden {
                pinged_over_a_full_queue(lab, &slow, server, &dst);
            }
            for proto in ["ICMP", "UDP", "TCP"] {
                // Nor of a SYN, which it sends again.
                if hidden && proto == "ICMP" || (mode, proto) == ("datagram", "TCP") {
                    continue;
                }
                slow.settle(lab);
                let options = json!({"dst": dst, "proto": proto, "payload_size": 1000, "max_ttl": 1, "probes": 5, "timeout_ms": 8000, "dport": 9});
                let result = trace(server, options);
                let refused = result["errors"].as_array().expect("a list");
                let rtts = result["trace"][0]["rtts_ms"].as_array().expect("times");
                assert!(!refused.is_empty() && refused.len() + rtts.len() == 5, "{mode} {proto}: {result}");
                assert!(rtts.iter().all(Value::is_number), "{mode} {proto}: {result}");
            }
        }
    }
    drop(raw);
    slow.host.delete();
}

fn pinged_over_a_full_queue(lab: &Lab, slow: &SlowInterface, server: &Server, dst: &str) {
    slow.settle(lab);
    let options = json!({"dst": dst, "count": 10, "interval_ms": 10, "payload_size": 1000, "timeout_ms": 8000});
    let test = server.test("ping", &options);
    let result = &test["result"];
    let (sent, refused) = sent_and_refused(result);
    assert!(!refused.is_empty() && sent + refused.len() as u64 == 10, "{test}");
    assert!(refused.iter().all(|kind| kind.contains("this host's send queue is full")), "{test}");
    assert_eq!((&result["recv"], &result["loss"]), (&json!(sent), &json!(0.0)), "{test}");
}

fn what_waited_in_a_queue_of_this_host_is_timed_from_when_it_left(lab: &Lab) {
    let slow = SlowInterface::new(lab, 46);
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "10.78.46.0/24,fd78:0:0:2e::/64")]);
    for dst in addresses(46) {
        slow.settle(lab);
        // The second leaves about a second after it was sent.
        let options = json!({"dst": dst, "count": 2, "interval_ms": 10, "payload_size": 1000, "timeout_ms": 8000});
        let test = server.test("ping", &options);
        let result = &test["result"];
        assert_eq!((&result["sent"], &result["recv"], &result["errors"]), (&json!(2), &json!(2), &json!([])), "{test}");
        assert!(number(&result["stats"]["max_ms"]) < 400.0, "{test}");
        assert!(number(&test["timing"]["duration_ms"]) > 500.0, "it waited: {test}");
        for proto in ["ICMP", "UDP", "TCP"] {
            slow.settle(lab);
            let options = json!({"dst": dst, "proto": proto, "payload_size": 1000, "max_ttl": 1, "probes": 2, "timeout_ms": 8000, "dport": 9});
            let result = trace(&server, options);
            let rtts = result["trace"][0]["rtts_ms"].as_array().expect("times");
            assert!(rtts.len() == 2 && rtts.iter().all(|rtt| rtt.as_f64().is_some_and(|rtt| rtt < 400.0)), "{result}");
        }
    }
    drop(server);
    slow.host.delete();
}

/// The reply is the last packet that comes, to a buffer that is full: no later packet tells of the drop.
fn what_is_dropped_last_is_told_too(lab: &Lab) {
    let [near, far] = ["n", "o"].map(|name| Namespace::add(format!("scouter-{}-{name}", std::process::id())));
    let (n, f) = (near.name(), far.name());
    sh(&format!(
        "ip -n {n} link add veth0 type veth peer name veth0 netns {f}
         ip -n {n} addr add 10.78.47.1/24 dev veth0; ip -n {f} addr add 10.78.47.2/24 dev veth0
         ip -n {n} link set veth0 up; ip -n {f} link set veth0 up; ip netns exec {f} sysctl -qw net.ipv4.icmp_echo_ignore_all=1"
    ));
    let server = lab.server_in(&near, &[("SCOUTER_TARGETS_ALLOW", "10.78.47.0/24")]);
    let socket = far.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("a raw socket"));
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    let options = json!({"dst": "10.78.47.2", "count": 1, "timeout_ms": 8000});
    let test = std::thread::scope(|scope| {
        let ping = scope.spawn(|| server.test("ping", &options));
        let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 2048];
        let length = socket.recv(&mut buffer).expect("the request");
        #[expect(unsafe_code, reason = "the kernel has written that many bytes")]
        let packet: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        let mut reply = packet[20..].to_vec();
        assert_eq!(reply[0], 8, "an echo request");
        reply[0] = 0;
        let flood = summed([&[0, 0, 0, 0, 0xff, 0xff, 0, 0], &[0; 1400][..]].concat(), 2);
        let to: SocketAddr = "10.78.47.1:0".parse().expect("an address");
        let signal = |signal| kill(Pid::from_raw(i32::try_from(server.pid()).expect("a pid")), signal).expect("sent");
        signal(Signal::SIGSTOP);
        for _ in 0..60_000 {
            socket.send_to(&flood, &to.into()).expect("sent");
        }
        socket.send_to(&summed(reply, 2), &to.into()).expect("sent");
        signal(Signal::SIGCONT);
        ping.join().expect("answered")
    });
    let result = &test["result"];
    assert_eq!((&result["sent"], &result["recv"]), (&json!(1), &json!(0)), "{test}");
    assert_eq!((&result["degraded"], &result["loss"]), (&json!("host_receive_overflow"), &Value::Null), "{test}");
    drop::<Server>(server);
    near.delete();
    far.delete();
}

/// An ICMP error goes to the raw sockets of the protocol that it quotes: 255 is that of the sockets that only send.
fn forged_errors_keep_nothing_from_being_sent(lab: &Lab) {
    let server = lab.server(&[]);
    let socket =
        lab.target.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("a raw socket"));
    let (us, from) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 9));
    let quoted = packet(us, Ipv4Addr::new(10, 77, 0, 2), 255, 64, &[0; 8]);
    let message = summed([&[3, 1, 0, 0, 0, 0, 0, 0][..], &quoted].concat(), 2);
    let forged = packet(from, us, 1, 64, &message);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let to: SocketAddr = (us, 0).into();
            let mut sent = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                sent += u32::from(socket.send_to(&forged, &to.into()).is_ok());
            }
            sent
        });
        let end = Stop(&stop);
        for dst in ["10.77.0.2", "10.77.0.3"] {
            let test = server.test("ping", &json!({"dst": dst, "count": 20, "interval_ms": 20, "timeout_ms": 5000}));
            let result = &test["result"];
            assert_eq!((&result["sent"], &result["errors"]), (&json!(20), &json!([])), "{test}");
            assert!(result["recv"] == json!(20) || !result["degraded"].is_null(), "{test}");
        }
        drop(end);
        assert!(flood.join().expect("flooded") > 1000);
    });
}
