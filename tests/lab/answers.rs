//! What the network answers and what this host itself refuses, without `CAP_NET_RAW`: the kernel returns both as errors
//! of the socket's calls, and an error of the network as that of whichever call comes next.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pnet_packet::icmpv6::{Icmpv6Packet, checksum};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::path::trace;
use super::ping::nobody;
use super::spoofing::{Stop, capture_packets, packet, summed};
use crate::support::SOON;
use crate::support::lab::{Lab, Namespace};
use crate::support::server::Server;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::answers", lab =>
        every_icmp_error_is_the_networks_answer,
        prohibited_addresses_are_the_networks_answer,
        what_this_host_refuses_is_not,
        a_reply_from_another_source_needs_the_whole_token,
        sockets_are_free_again_when_their_answer_is_there,
    )
}

/// Type, code and name.
type Kind = (u8, u8, &'static str);

/// The errors of RFC 792, RFC 1122 and RFC 1812. Each becomes another error number of the kernel's (`icmp_err_convert`), which
/// passes on none of type 11, code 1.
const V4: [Kind; 18] = [
    (3, 0, "network unreachable"),
    (3, 1, "host unreachable"),
    (3, 2, "protocol unreachable"),
    (3, 3, "port unreachable"),
    (3, 4, "fragmentation needed"),
    (3, 5, "source route failed"),
    (3, 6, "destination network unknown"),
    (3, 7, "destination host unknown"),
    (3, 8, "source host isolated"),
    (3, 9, "network administratively prohibited"),
    (3, 10, "host administratively prohibited"),
    (3, 11, "network unreachable for type of service"),
    (3, 12, "host unreachable for type of service"),
    (3, 13, "communication administratively prohibited"),
    (3, 14, "host precedence violation"),
    (3, 15, "precedence cutoff in effect"),
    (11, 0, "time exceeded in transit"),
    (12, 0, "parameter problem"),
];

/// Those of RFC 4443.
const V6: [Kind; 11] = [
    (1, 0, "no route to destination"),
    (1, 1, "administratively prohibited"),
    (1, 2, "beyond scope of source address"),
    (1, 3, "address unreachable"),
    (1, 4, "port unreachable"),
    (1, 5, "source address failed ingress/egress policy"),
    (1, 6, "reject route to destination"),
    (2, 0, "packet too big"),
    (3, 0, "time exceeded in transit"),
    (3, 1, "fragment reassembly time exceeded"),
    (4, 1, "parameter problem"),
];

/// Of the errors that have one.
const MTU: u16 = 1300;
/// The type of the errors about an address is this much less than its last but one part.
const TYPES: u8 = 100;

/// A host behind a link of its own that answers what the probe sends as a function says.
pub struct Responder<'a> {
    lab: &'a Lab,
    pub namespace: Namespace,
    net: u8,
}

impl<'a> Responder<'a> {
    /// Reached by 10.78.`net`.2 and `fd78:0:0:net::2`; echo requests over IPv4 are left to `answer`.
    pub fn new(lab: &'a Lab, net: u8) -> Self {
        let namespace = Namespace::add(format!("scouter-{}-a{net}", std::process::id()));
        lab.connect(&namespace, &format!("10.78.{net}"));
        namespace.sh(&format!(
            "ip addr add fd78:0:0:{net:x}::2/64 dev veth0 nodad; sysctl -qw net.ipv4.icmp_echo_ignore_all=1
             ip -6 route add blackhole default"
        ));
        lab.probe.sh(&format!("ip addr add fd78:0:0:{net:x}::1/64 dev l10-78-{net} nodad"));
        know_each_other(lab, &namespace, net);
        Self { lab, namespace, net }
    }

    /// Sends what goes to these addresses to the responder.
    pub fn attract(&self, prefix: &str) {
        let net = self.net;
        let via = if prefix.contains(':') { format!("fd78:0:0:{net:x}::2") } else { format!("10.78.{net}.2") };
        self.lab.probe.sh(&format!("ip route replace {prefix} via {via}"));
    }

    /// `answer` makes packets to the probe, with IP headers, of one that came from it.
    pub fn while_it_answers<T>(&self, answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Sync, work: impl FnOnce() -> T) -> T {
        let socket = |domain, kind, protocol: i32| {
            self.namespace.inside(|| Socket::new(domain, kind, Some(Protocol::from(protocol))).expect("a raw socket"))
        };
        // ETH_P_ALL in network byte order. IPPROTO_RAW: packets have their IP header.
        let capture = socket(Domain::PACKET, Type::DGRAM, i32::from(3_u16.to_be()));
        let (v4, v6) = (socket(Domain::IPV4, Type::RAW, 255), socket(Domain::IPV6, Type::RAW, 255));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                capture_packets(&capture, &stop, |_, packet| {
                    let from_probe = match packet.first().map(|byte| byte >> 4) {
                        Some(4) => packet.len() >= 28 && packet[12..14] == [10, 78] && packet[15] == 1,
                        Some(6) => packet.len() >= 48 && packet[6] != 0 && packet[24..40] != [0; 16],
                        _ => false,
                    };
                    for message in if from_probe { answer(packet) } else { vec![] } {
                        let (socket, to): (_, SocketAddr) = if message[0] >> 4 == 4 {
                            (&v4, (Ipv4Addr::new(10, 78, self.net, 1), 0).into())
                        } else {
                            (&v6, (Ipv6Addr::new(0xfd78, 0, 0, self.net.into(), 0, 0, 0, 1), 0).into())
                        };
                        socket.send_to(&message, &to.into()).expect("sent");
                    }
                });
            });
            let _end = Stop(&stop);
            work()
        })
    }

    pub fn end(self) {
        self.namespace.delete();
    }
}

/// Gives both ends of the link to 10.78.`net`.2 and `fd78:0:0:net::2` the other's address on it for good: neighbour discovery
/// may take a second when both have just come up.
pub fn know_each_other(lab: &Lab, host: &Namespace, net: u8) {
    let device = format!("l10-78-{net}");
    let mac = |namespace: &Namespace, device: &str| {
        namespace.output("cat", &[&format!("/sys/class/net/{device}/address")]).trim().to_owned()
    };
    for (namespace, device, end, other) in
        [(&lab.probe, device.as_str(), 2, mac(host, "veth0")), (host, "veth0", 1, mac(&lab.probe, &device))]
    {
        namespace.sh(&format!(
            "for to in 10.78.{net}.{end} fd78:0:0:{net:x}::{end}; do ip neigh replace $to lladdr {other} dev {device} nud permanent; done"
        ));
    }
}

/// The ICMP error that the destination of the packet stands for, from the responder: 10.79.1TT.code and `fd79::1TT:code`,
/// where TT is the type.
fn error_about(probe: &[u8], net: u8) -> Option<Vec<u8>> {
    if probe[0] >> 4 == 4 {
        let [10, 79, kind, code] = probe[16..20] else { return None };
        let mut message = vec![kind.checked_sub(TYPES)?, code, 0, 0, 0, 0, 0, 0];
        if message[..2] == [3, 4] {
            message[6..8].copy_from_slice(&MTU.to_be_bytes());
        }
        message.extend(&probe[..probe.len().min(20 + 64)]);
        return Some(packet(responder_v4(net), [10, 78, net, 1].into(), 1, 64, &summed(message, 2)));
    }
    let target: [u8; 16] = probe[24..40].try_into().expect("16 bytes");
    if target[..2] != [0xfd, 0x79] {
        return None;
    }
    let (from, to) = (responder_v6(net), Ipv6Addr::new(0xfd78, 0, 0, net.into(), 0, 0, 0, 1));
    let mut message = vec![target[13].checked_sub(TYPES)?, target[15], 0, 0, 0, 0, 0, 0];
    if message[0] == 2 {
        message[6..8].copy_from_slice(&MTU.to_be_bytes());
    }
    message.extend(&probe[..probe.len().min(40 + 64)]);
    let sum = checksum(&Icmpv6Packet::new(&message).expect("a header"), &from, &to);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let length = u16::try_from(message.len()).expect("short").to_be_bytes();
    Some([&[0x60, 0, 0, 0, length[0], length[1], 58, 64][..], &from.octets(), &to.octets(), &message].concat())
}

fn responder_v4(net: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, net, 2)
}

fn responder_v6(net: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd78, 0, 0, net.into(), 0, 0, 0, 2)
}

/// A server without `CAP_NET_RAW`.
pub fn unprivileged(lab: &Lab) -> Server {
    lab.server_by(
        nobody(&lab.probe),
        &[
            ("SCOUTER_CACHE_DIR", "/nonexistent/scouter"),
            ("SCOUTER_TARGETS_ALLOW", "10.78.0.0/15,10.80.0.0/15,fd78::/15,fd80::/15"),
        ],
    )
}

fn ping(server: &Server, options: Value) -> Value {
    let test = server.test("ping", &options);
    assert_eq!(test["message"], Value::Null, "{test}");
    assert_eq!(test["result"]["mode"], json!("datagram"), "{test}");
    test["result"].clone()
}

/// Requests that left, and those that this host could not send.
pub fn sent_and_refused(result: &Value) -> (u64, Vec<&str>) {
    let errors = result["errors"].as_array().expect("a list").iter();
    let kinds = errors.filter_map(|error| error["kind"].as_str()).filter(|kind| kind.starts_with("not sent"));
    (result["sent"].as_u64().expect("a number"), kinds.collect())
}

fn every_icmp_error_is_the_networks_answer(lab: &Lab) {
    let responder = Responder::new(lab, 31);
    for prefix in ["10.79.103.0/24", "10.79.111.0/24", "10.79.112.0/24", "fd79::/64"] {
        responder.attract(prefix);
    }
    responder.while_it_answers(
        |probe| error_about(probe, responder.net).into_iter().collect(),
        || {
            let server = unprivileged(lab);
            let v4 = V4.map(|kind| (kind, IpAddr::from([10, 79, TYPES + kind.0, kind.1]), responder_v4(31).into()));
            let v6 = V6.map(|kind| {
                let dst = Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, u16::from(TYPES + kind.0), kind.1.into());
                (kind, IpAddr::V6(dst), IpAddr::V6(responder_v6(31)))
            });
            for (kind, dst, src) in v4.into_iter().chain(v6) {
                let mtu = if matches!(kind, (3, 4, _)) || kind.2.contains("big") { json!(MTU) } else { Value::Null };
                pinged(&server, kind, dst, src, &mtu);
                for proto in ["ICMP", "UDP", "TCP"] {
                    // The kernel adapts a SYN to the MTU and tells nobody.
                    if mtu.is_null() || proto != "TCP" {
                        traced(&server, kind, dst, src, proto);
                    }
                }
            }
        },
    );
    responder.end();
}

fn pinged(server: &Server, (icmp_type, code, kind): Kind, dst: IpAddr, src: IpAddr, mtu: &Value) {
    let options = json!({"dst": dst, "count": 4, "interval_ms": 20, "timeout_ms": 300, "dont_fragment": kind == "fragmentation needed"});
    let result = ping(server, options);
    let errors: Vec<Value> = (0..4)
        .map(|seq| json!({"seq": seq, "kind": kind, "src": src, "type": icmp_type, "code": code, "mtu": mtu}))
        .collect();
    assert_eq!(
        (&result["sent"], &result["loss"], &result["errors"]),
        (&json!(4), &json!(100.0), &json!(errors)),
        "{dst}: {result}"
    );
}

fn traced(server: &Server, (icmp_type, code, kind): Kind, dst: IpAddr, src: IpAddr, proto: &str) {
    let options = json!({"dst": dst, "proto": proto, "payload_size": 64, "max_ttl": 1, "probes": 4, "timeout_ms": 300});
    let result = trace(server, options);
    let hop = &result["trace"][0];
    assert_eq!(
        (&result["errors"], &result["mode"], &hop["src"]),
        (&json!([]), &json!("datagram"), &json!(src)),
        "{proto} {dst}: {result}"
    );
    assert_eq!(
        (&hop["icmp"]["kind"], &hop["icmp"]["type"], &hop["icmp"]["code"], hop["rtts_ms"].as_array().map(Vec::len)),
        (&json!(kind), &json!(icmp_type), &json!(code), Some(4)),
        "{proto} {dst}: {result}"
    );
    assert!(hop["rtts_ms"].as_array().expect("times").iter().all(Value::is_number), "{proto} {dst}: {result}");
}

fn prohibited_addresses_are_the_networks_answer(lab: &Lab) {
    let server = unprivileged(lab);
    let from = "fd80:0:0:7::2";
    // Over IPv4 a kernel sends five such errors, then one in a second.
    for (dst, kind) in [("fd81:0:0:3::9", "administratively prohibited"), ("fd81:0:0:2::9", "no route to destination")]
    {
        let result = ping(&server, json!({"dst": dst, "count": 5, "interval_ms": 50, "timeout_ms": 300}));
        let errors = result["errors"].as_array().expect("a list");
        assert_eq!((&result["sent"], errors.len()), (&json!(5), 5), "{result}");
        assert!(errors.iter().all(|error| (&error["kind"], &error["src"]) == (&json!(kind), &json!(from))), "{result}");
        for proto in ["ICMP", "UDP", "TCP"] {
            let result = trace(&server, json!({"dst": dst, "proto": proto, "probes": 3, "timeout_ms": 300}));
            let stop = &result["stopped_by"];
            assert_eq!(
                (&stop["src"], &stop["icmp"]["kind"], &result["errors"]),
                (&json!(from), &json!(kind), &json!([])),
                "{proto}: {result}"
            );
        }
    }
    // What is larger than this host's own interface takes leaves it in fragments.
    for (dst, proto) in
        [("10.80.1.2", "ICMP"), ("10.80.1.2", "UDP"), ("fd80:0:0:1::2", "ICMP"), ("fd80:0:0:1::2", "UDP")]
    {
        let options = json!({"dst": dst, "proto": proto, "payload_size": 1472, "max_ttl": 1, "timeout_ms": 500});
        let whole = trace(&server, options);
        assert_eq!((&whole["reached"], &whole["errors"]), (&json!(true), &json!([])), "{whole}");
    }
    // The narrow link says how large packets may be; what follows is sent all the same.
    let options = json!({"dst": "fd81:0:0:5::2", "count": 4, "interval_ms": 50, "payload_size": 1400, "timeout_ms": 500, "dont_fragment": true});
    let result = ping(&server, options);
    let errors = result["errors"].as_array().expect("a list");
    assert_eq!((&result["sent"], errors.len()), (&json!(4), 4), "{result}");
    assert!(errors.iter().all(|error| error["mtu"] == json!(1280)), "{result}");
}

fn what_this_host_refuses_is_not(lab: &Lab) {
    // Routes that change while a ping is under way.
    let responder = Responder::new(lab, 32);
    let server = unprivileged(lab);
    for (prefix, dst, route) in [
        ("10.79.20.0/24", "10.79.20.1", "prohibit"),
        ("10.79.21.0/24", "10.79.21.1", "unreachable"),
        ("fd79:0:0:20::/64", "fd79:0:0:20::1", "prohibit"),
        ("fd79:0:0:21::/64", "fd79:0:0:21::1", "unreachable"),
    ] {
        responder.attract(prefix);
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(500));
                lab.probe.sh(&format!("ip route del {prefix}; ip route add {route} {prefix}"));
            });
            ping(&server, json!({"dst": dst, "count": 20, "interval_ms": 300, "timeout_ms": 300}))
        });
        let (sent, refused) = sent_and_refused(&result);
        assert!(sent > 0 && !refused.is_empty() && sent + refused.len() as u64 == 20, "{route}: {result}");
        lab.probe.sh(&format!("ip route del {route} {prefix}"));
    }
    drop(server);
    responder.end();
    // The MTU of this host's own interface.
    let small = Namespace::add(format!("scouter-{}-a33", std::process::id()));
    small.sh("ip link set lo mtu 1280; sysctl -qw net.ipv4.ping_group_range='0 2147483647'");
    let settings = [("SCOUTER_TARGETS_ALLOW", "any"), ("SCOUTER_CACHE_DIR", "/nonexistent/scouter")];
    let server = Server::spawn(nobody(&small), &settings, Some(small.clone()));
    for dst in ["127.0.0.1", "::1"] {
        let options = json!({"dst": dst, "count": 3, "interval_ms": 10, "payload_size": 1400, "dont_fragment": true});
        let result = ping(&server, options);
        let (sent, refused) = sent_and_refused(&result);
        assert_eq!((sent, refused.len(), &result["loss"]), (0, 3, &Value::Null), "{result}");
        assert!(refused.iter().all(|kind| kind.contains("this host's interface")), "{result}");
        let whole = ping(&server, json!({"dst": dst, "count": 1, "payload_size": 1400}));
        assert_eq!(whole["recv"], json!(1), "in fragments it gets through: {whole}");
    }
    drop(server);
    small.delete();
}

/// A payload that is too short for a token lets the source decide; a whole token is an answer wherever it comes from,
/// and its source is shown.
fn a_reply_from_another_source_needs_the_whole_token(lab: &Lab) {
    let responder = Responder::new(lab, 34);
    responder.attract("10.79.40.0/24");
    let us = Ipv4Addr::new(10, 78, 34, 1);
    let reply = |probe: &[u8]| -> Vec<Vec<u8>> {
        if probe[9] != 1 || probe[20] != 8 || probe[16..18] != [10, 79] {
            return vec![];
        }
        let mut message = probe[20..].to_vec();
        message[0] = 0;
        vec![packet(Ipv4Addr::new(10, 79, 40, 66), us, 1, 64, &summed(message, 2))]
    };
    responder.while_it_answers(reply, || {
        let raw = lab.server(&[("SCOUTER_TARGETS_ALLOW", "10.79.0.0/16")]);
        for (server, mode) in [(&unprivileged(lab), "datagram"), (&raw, "raw")] {
            for size in [0, 8, 15, 16, 56] {
                let options = json!({"dst": "10.79.40.1", "count": 2, "interval_ms": 20, "payload_size": size, "timeout_ms": 300});
                let test = server.test("ping", &options);
                let result = &test["result"];
                let believed = if size < 16 { 0 } else { 2 };
                assert_eq!((&result["recv"], &result["mode"]), (&json!(believed), &json!(mode)), "{test}");
                let replies = result["replies"].as_array().expect("a list");
                assert!(replies.iter().all(|reply| reply["src"] == json!("10.79.40.66")), "{test}");
            }
        }
    });
    responder.end();
}

fn sockets_are_free_again_when_their_answer_is_there(lab: &Lab) {
    let server = lab.server_by(
        nobody(&lab.probe),
        &[("SCOUTER_CACHE_DIR", "/nonexistent/scouter"), ("SCOUTER_MAX_PROCESS_COUNT", "20")],
    );
    // More probes than there may be sockets, all answered by the first router, which a limit of rates does not hold back.
    let options =
        json!({"dst": "10.80.1.2", "proto": "UDP", "max_ttl": 1, "probes": 10, "paths": 8, "timeout_ms": 10_000});
    let started = Instant::now();
    let results = server.run(&json!({"traceroute": vec![options; 20]}));
    for test in results["traceroute"].as_array().expect("a list") {
        let result = &test["result"];
        assert_eq!((&result["mode"], &result["reached"]), (&json!("datagram"), &json!(true)), "{test}");
        let rtts = result["trace"][0]["rtts_ms"].as_array().expect("times");
        assert!(rtts.len() == 80 && rtts.iter().all(Value::is_number), "{test}");
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}
