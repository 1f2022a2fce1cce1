//! Forged, duplicate, late, malformed and excessive answers to traces (threats 45, 46, 48), and a plugin that tries to
//! flood (threat 21).
//!
//! One namespace simulates a whole path: it receives each probe for 10.79.0.0/16 and answers by its TTL.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pnet_packet::ipv4::{Ipv4Packet, checksum};
use pnet_packet::tcp;
use pnet_packet::util;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::path::{srcs, trace};
use super::ping::nobody;
use crate::support::chain;
use crate::support::hostile;
use crate::support::lab::{Lab, Namespace};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::spoofing", lab =>
        forged_late_repeated_and_malformed_answers_to_traces,
        a_flooding_router_is_distinguished_from_a_silent_one,
        a_forger_who_floods_ports_and_identifiers_is_not_believed,
        a_plugin_cannot_flood,
    )
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 9);
const FLOODED_TARGET: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 7);
const FORGER: Ipv4Addr = Ipv4Addr::new(10, 79, 66, 66);

fn router(ttl: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 1, ttl)
}

pub fn packet(source: Ipv4Addr, target: Ipv4Addr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, ttl, protocol, 0, 0];
    packet.extend(source.octets().into_iter().chain(target.octets()));
    let sum = checksum(&Ipv4Packet::new(&packet).expect("a header"));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An ICMP error of this type and code that quotes a packet; `length` is the field of RFC 4884.
fn error(kind: u8, code: u8, length: u8, quote: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, length, 0, 0];
    message.extend(quote);
    summed(message, 2)
}

pub fn summed(mut message: Vec<u8>, at: usize) -> Vec<u8> {
    message[at..at + 2].fill(0);
    let sum = util::checksum(&message, usize::MAX);
    message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    message
}

fn exceeded(probe: &[u8]) -> Vec<u8> {
    error(11, 0, 0, &probe[..probe.len().min(20 + 8)])
}

/// An error whose quote is padded to 128 bytes, followed by an extension structure with these objects.
fn extended(probe: &[u8], objects: &[u8]) -> Vec<u8> {
    let mut quote = probe.to_vec();
    quote.resize(128, 0);
    quote.extend(summed([&[0x20, 0, 0, 0], objects].concat(), 2));
    error(11, 0, 32, &quote)
}

fn address(packet: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}

#[derive(Clone)]
struct SimulatedPath {
    socket: Arc<Socket>,
    /// The address of the host under test.
    us: Ipv4Addr,
}

impl SimulatedPath {
    fn send(&self, source: Ipv4Addr, protocol: u8, payload: &[u8]) {
        let to: SocketAddr = (self.us, 0).into();
        let _ = self.socket.send_to(&packet(source, self.us, protocol, 64, payload), &to.into());
    }

    fn send_later(&self, after: Duration, source: Ipv4Addr, message: Vec<u8>) {
        let path = self.clone();
        std::thread::spawn(move || {
            std::thread::sleep(after);
            path.send(source, ICMP, &message);
        });
    }

    /// Sends an error whose quoted packet differs at this offset.
    fn forged(&self, probe: &[u8], at: usize) {
        let mut other = probe[..if at < 28 { 28 } else { 40 }].to_vec();
        other[at] ^= 0x20;
        self.send(FORGER, ICMP, &error(11, 0, 0, &other));
    }

    fn answer(&self, probe: &[u8]) {
        let (ttl, protocol, target) = (probe[8], probe[9], address(probe, 16));
        if target == FLOODED_TARGET {
            // More than the capacity of any queue; later hops answer once, after the first of them.
            let times = if ttl == 2 { 500 } else { 1 };
            (0..times).for_each(|_| self.send(router(ttl), ICMP, &exceeded(probe)));
            if ttl == 2 {
                let (path, message) = (self.clone(), exceeded(probe));
                std::thread::spawn(move || (0..20_000).for_each(|_| path.send(router(2), ICMP, &message)));
            }
            return;
        }
        match ttl {
            1 => {
                // Two labels (RFC 4950) and an unknown object; sent after the answers of the other hops.
                let labels = [0, 12, 1, 1, 0x00, 0x06, 0x46, 1, 0x00, 0x0c, 0x81, 255];
                let message = extended(probe, &[&labels[..], &[0, 6, 247, 3, 0xbe, 0xef]].concat());
                self.send_later(Duration::from_millis(100), router(1), message);
            }
            2 => (0..3).for_each(|_| self.send(router(2), ICMP, &exceeded(probe))),
            3 | 4 => {
                // Another target, protocol, source port or identifier; another sequence number; other data.
                let places: &[usize] = match protocol {
                    ICMP => &[19, 9, 24, 27, 30],
                    UDP => &[19, 9, 20, 30],
                    _ => &[19, 9, 20, 24],
                };
                for place in places {
                    self.forged(probe, *place);
                }
                if ttl == 3 {
                    self.send(router(3), ICMP, &exceeded(probe));
                }
            }
            5 => self.send_later(Duration::from_millis(1500), router(5), exceeded(probe)),
            6 => {
                for length in [0, 7, 8, 9, 19, 20, 27, 28] {
                    self.send(FORGER, ICMP, &exceeded(probe)[..length]);
                }
                let mut long_header = probe[..28].to_vec();
                long_header[0] = 0x4f;
                let mut later_fragment = probe[..28].to_vec();
                later_fragment[7] = 1;
                for quote in [long_header, vec![0x65; 28]] {
                    self.send(FORGER, ICMP, &error(11, 0, 0, &quote));
                }
                let mut bad_sum = exceeded(probe);
                bad_sum[2] ^= 1;
                self.send(FORGER, ICMP, &bad_sum);
                // An error queue does not contain the quoted IP header, so datagram mode accepts this one.
                self.send(router(6), ICMP, &error(11, 0, 0, &later_fragment));
                // Truncated extensions, and one whose length exceeds the message; the rest of the message is valid.
                for objects in [&[0, 0, 1, 1][..], &[255, 255, 1, 1], &[0, 9, 1, 1, 1, 2, 3, 4, 5], &[0]] {
                    self.send(router(6), ICMP, &extended(probe, objects));
                }
                self.send(router(6), ICMP, &error(11, 0, 255, &probe[..28]));
            }
            7 => self.almost(probe, protocol),
            // Later than the first one: a trace waits for what its nearest answers make plausible.
            8 => {
                let (path, probe) = (self.clone(), probe.to_vec());
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(200));
                    path.arrive(&probe, protocol);
                });
            }
            _ => {}
        }
    }

    /// Answers like the target's, but from another source, or to another probe.
    fn almost(&self, probe: &[u8], protocol: u8) {
        match protocol {
            ICMP => {
                let mut reply = probe[20..].to_vec();
                reply[0] = 0;
                self.send(FORGER, ICMP, &summed(reply.clone(), 2));
                reply[8] ^= 1;
                self.send(TARGET, ICMP, &summed(reply.clone(), 2));
                reply.truncate(18);
                self.send(TARGET, ICMP, &summed(reply, 2));
            }
            UDP => {
                let mut other = probe[..28].to_vec();
                other[21] ^= 0x20;
                self.send(TARGET, ICMP, &error(3, 3, 0, &other));
                self.send(FORGER, UDP, &[&probe[22..24], &probe[20..22], &[0, 12, 0, 0], &probe[28..32]].concat());
            }
            _ => {
                self.send(TARGET, TCP, &segment(TARGET, probe, 0x12, 77));
                self.send(TARGET, TCP, &segment(TARGET, probe, 0x14, 77));
                self.send(FORGER, TCP, &segment(FORGER, probe, 0x12, 1));
            }
        }
    }

    fn arrive(&self, probe: &[u8], protocol: u8) {
        match protocol {
            ICMP => {
                let mut reply = probe[20..].to_vec();
                reply[0] = 0;
                self.send(TARGET, ICMP, &summed(reply, 2));
            }
            UDP => self.send(TARGET, ICMP, &error(3, 3, 0, &probe[..28])),
            _ => self.send(TARGET, TCP, &segment(TARGET, probe, 0x12, 1)),
        }
    }
}

/// The answer to a SYN; `more` is added to the initial sequence number for the acknowledgement.
fn segment(source: Ipv4Addr, probe: &[u8], flags: u8, more: u32) -> Vec<u8> {
    let us = address(probe, 12);
    let syn = &probe[20..];
    let acknowledged = u32::from_be_bytes([syn[4], syn[5], syn[6], syn[7]]).wrapping_add(more);
    let mut segment = [&syn[2..4], &syn[..2], &[0, 0, 0, 9], &acknowledged.to_be_bytes()].concat();
    segment.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    let sum = tcp::ipv4_checksum(&tcp::TcpPacket::new(&segment).expect("a header"), &source, &us);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// Runs the simulated path while `work` runs.
fn with_simulated_path<T>(lab: &Lab, net: &str, route: &str, work: impl FnOnce() -> T) -> T {
    let namespace = Namespace::add(format!("scouter-{}-{}", std::process::id(), net.replace('.', "-")));
    lab.connect(&namespace, net);
    lab.probe.sh(&format!("ip route add {route} via {net}.2"));
    let raw = |domain, kind, protocol| {
        namespace.inside(|| Socket::new(domain, kind, Some(Protocol::from(protocol))).expect("a raw socket"))
    };
    // Every IPv4 packet, also those to be forwarded: ETH_P_IP in network byte order.
    let capture = raw(Domain::PACKET, Type::DGRAM, i32::from(0x0800_u16.to_be()));
    capture.set_recv_buffer_size(8 << 20).expect("set");
    let us = format!("{net}.1").parse().expect("an address");
    let path = SimulatedPath { socket: Arc::new(raw(Domain::IPV4, Type::RAW, 255)), us };
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            capture_packets(&capture, &stop, |_, packet| {
                if packet.len() >= 28 && packet[16..18] == [10, 79] {
                    path.answer(packet);
                }
            });
        });
        let _end = Stop(&stop);
        work()
    });
    namespace.delete();
    done
}

/// Stops the listener also when the test panics: a scope waits for all of its threads.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `each` with each packet and the time at which it was read.
pub fn capture_packets(capture: &Socket, stop: &AtomicBool, mut each: impl FnMut(Instant, &[u8])) {
    capture.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, _)) = capture.recv_from(&mut buffer) else { continue };
        #[expect(unsafe_code, reason = "the kernel has written that many bytes")]
        let packet: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        each(Instant::now(), &packet);
    }
}

fn forged_late_repeated_and_malformed_answers_to_traces(lab: &Lab) {
    with_simulated_path(lab, "10.78.1", "10.79.0.0/24", || {
        // With routes to all sources the kernel's reverse-path filter drops nothing.
        lab.probe.sh("ip route add 10.79.1.0/24 via 10.78.1.2; ip route add 10.79.66.0/24 via 10.78.1.2");
        for (command, raw) in [(lab.probe.command(crate::support::scouter()), true), (nobody(&lab.probe), false)] {
            let server = lab.server_by(
                command,
                &[("SCOUTER_TARGETS_ALLOW", "10.79.0.0/16"), ("SCOUTER_CACHE_DIR", "/nonexistent/scouter")],
            );
            for proto in ["ICMP", "UDP", "TCP"] {
                let options = json!({"dst": TARGET.to_string(), "proto": proto, "max_ttl": 8, "timeout_ms": 1000});
                believes_only_what_is_true(&trace(&server, options), raw, proto);
            }
        }
    });
}

fn believes_only_what_is_true(result: &Value, raw: bool, proto: &str) {
    let some = |address: Ipv4Addr| Some(address.to_string());
    let expected = [some(router(1)), some(router(2)), some(router(3)), None, None, some(router(6)), None, some(TARGET)];
    let seen: Vec<Option<String>> = srcs(result).into_iter().map(|src| src.map(Into::into)).collect();
    assert_eq!(seen, expected, "{result}");
    assert!(!result.to_string().contains(&FORGER.to_string()), "{result}");
    let hop = |ttl: usize| &result["trace"][ttl - 1];
    assert_eq!((&result["failed"], &hop(7)["no_response"]), (&json!(false), &json!(true)), "{result}");
    // Independent of the order of arrival.
    let rtt = |ttl: usize| hop(ttl)["rtt_ms"].as_f64().expect("a time");
    assert!((100.0..2000.0).contains(&rtt(1)) && (200.0..2000.0).contains(&rtt(8)), "{result}");
    assert!([2, 3, 6].iter().all(|ttl| rtt(*ttl) < 90.0), "{result}");
    if raw {
        let labels = json!([
            {"label": 100, "traffic_class": 3, "bottom_of_stack": false, "ttl": 1},
            {"label": 200, "traffic_class": 0, "bottom_of_stack": true, "ttl": 255},
        ]);
        let other = json!([{"class": 247, "class_type": 3, "data": "beef"}]);
        assert_eq!((&hop(1)["mpls"], &hop(1)["extensions"]), (&labels, &other), "{result}");
        assert_eq!((&hop(2)["mpls"], &hop(2)["duplicates"]), (&json!([]), &json!(2)), "{result}");
        // Four with malformed extensions and one whose quote length exceeds the message: each counts as an answer.
        assert_eq!((&hop(6)["mpls"], &hop(6)["duplicates"]), (&json!([]), &json!(4)), "{result}");
    } else {
        assert_eq!(hop(1)["mpls"], Value::Null, "{result}");
    }
    let answer = match proto {
        "ICMP" => "echo reply",
        "UDP" => "port unreachable",
        _ => "SYN-ACK",
    };
    assert_eq!(hop(8)["answer"], json!(answer), "{result}");
}

fn a_flooding_router_is_distinguished_from_a_silent_one(lab: &Lab) {
    with_simulated_path(lab, "10.78.2", "10.79.0.7/32", || {
        let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "10.79.0.0/16")]);
        for proto in ["ICMP", "UDP"] {
            let result = trace(
                &server,
                json!({"dst": FLOODED_TARGET.to_string(), "proto": proto, "max_ttl": 6, "timeout_ms": 1000}),
            );
            let seen = srcs(&result);
            let hops = result["trace"].as_array().expect("a trace");
            assert_eq!(seen[1], Some("10.79.1.2"), "{result}");
            for (ttl, hop) in (1_u8..).zip(hops) {
                // Either the answer was received, or this host reports its overflow.
                let own = hop["src"] == json!(router(ttl).to_string());
                let unknown = hop["src"].is_null() && hop["no_response"].is_null() && !result["degraded"].is_null();
                assert!(own || unknown, "TTL {ttl}: {result}");
            }
            let counted = hops[1]["duplicates"].as_u64().expect("a number");
            assert!(counted >= 100 || !result["degraded"].is_null(), "counting stops at some place: {result}");
        }
    });
}

fn a_forger_who_floods_ports_and_identifiers_is_not_believed(lab: &Lab) {
    let server = lab.server(&[]);
    let socket =
        lab.target.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("a raw socket"));
    let (forger, hole) = (Ipv4Addr::new(203, 0, 113, 66), Ipv4Addr::new(10, 81, 1, 9));
    let us = Ipv4Addr::new(10, 80, 1, 1);
    for (proto, protocol) in [("ICMP", ICMP), ("UDP", UDP), ("TCP", TCP)] {
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                let mut sent = 0_u32;
                for number in 0..=u16::MAX {
                    let [high, low] = number.to_be_bytes();
                    // A quoted probe in which all fields that can be guessed are right.
                    let mut probe = match protocol {
                        ICMP => vec![8, 0, 0, 0, high, low, 0, 1],
                        UDP => vec![high, low, 0x82, 0x9a, 0, 64, 0, 0],
                        _ => vec![high, low, 0, 80, 0, 0, 0, 0],
                    };
                    probe.extend([0x41; 56]);
                    let message = error(11, 0, 0, &packet(us, hole, protocol, 1, &probe));
                    let to: SocketAddr = "10.77.0.1:0".parse().expect("an address");
                    sent += u32::from(
                        socket
                            .send_to(&packet(forger, Ipv4Addr::new(10, 77, 0, 1), ICMP, 64, &message), &to.into())
                            .is_ok(),
                    );
                }
                sent
            });
            let result = trace(&server, json!({"dst": hole.to_string(), "proto": proto, "timeout_ms": 3000}));
            assert!(!result.to_string().contains(&forger.to_string()), "{result}");
            assert_eq!(srcs(&result)[..2], chain::V4[..2], "{result}");
            assert!(flood.join().expect("flooded") > 60_000);
        });
    }
}

/// Many concurrent pings and traces at the shortest interval: on the wire, the host keeps to its rate limit (1,000
/// packets per second, burst of 32).
fn a_plugin_cannot_flood(lab: &Lab) {
    let folder = hostile();
    let server = lab.server(&[("SCOUTER_PLUGIN_DIR", folder.to_str().expect("UTF-8")), ("SCOUTER_TEST_TIMEOUT", "4")]);
    let capture = lab.target.inside(|| {
        Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(0x0800_u16.to_be())))).expect("a socket")
    });
    capture.set_recv_buffer_size(8 << 20).expect("set");
    let stop = AtomicBool::new(false);
    let mut times = vec![];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut times = vec![];
            capture_packets(&capture, &stop, |at, packet| {
                if packet.get(16..20) == Some(&[10, 77, 0, 9]) {
                    times.push(at);
                }
            });
            times
        });
        let end = Stop(&stop);
        let test = server.test("hostile", &json!({"do": "flood", "to": "10.77.0.9"}));
        assert_eq!(test["error"], json!("deadline"), "{test}");
        drop(end);
        times = reader.join().expect("read");
    });
    assert!(times.len() > 2500, "the bound is what holds it back: {} packets", times.len());
    let most = times
        .iter()
        .enumerate()
        .map(|(first, start)| times[first..].iter().take_while(|at| **at - *start < Duration::from_secs(1)).count())
        .max();
    // Times of reading, not of arrival: some packets are read late.
    assert!(most.is_some_and(|most| most <= 1048 + 100), "{most:?} in one second");
}
