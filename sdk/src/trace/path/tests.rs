use super::*;
use crate::bindings::scouter::probe::hops::{self, MplsLabel, Protocol};
use crate::trace::{Extension, Label};

fn parameters(max_ttl: u8, probes: u16, flows: u16) -> Parameters {
    Parameters {
        target: "t".into(),
        protocol: Protocol::Icmp,
        first_ttl: 1,
        max_ttl,
        probes,
        flows,
        payload_size: 56,
        timeout_ms: 1000,
    }
}

fn path(max_ttl: u8, probes: u16, flows: u16) -> Path {
    Path::new(&parameters(max_ttl, probes, flows))
}

fn time_exceeded(packet: u32, source: &str) -> HopEvent {
    error(packet, source, 11, 0)
}

fn message(icmp_type: u8, icmp_code: u8) -> IcmpMessage {
    IcmpMessage {
        kind: format!("type {icmp_type} code {icmp_code}"),
        icmp_type,
        icmp_code,
        mtu: None,
        mpls: None,
        extensions: None,
    }
}

fn error(packet: u32, source: &str, icmp_type: u8, icmp_code: u8) -> HopEvent {
    response(packet, source, ResponseKind::Icmp(message(icmp_type, icmp_code)))
}

fn hop_response(packet: u32, source: &str, kind: ResponseKind) -> HopResponse {
    HopResponse { packet, source: source.into(), rtt_ns: Some(1_000_000 * u64::from(packet + 1)), kind }
}

fn response(packet: u32, source: &str, kind: ResponseKind) -> HopEvent {
    HopEvent::Response(hop_response(packet, source, kind))
}

fn srcs(hops: &[Hop]) -> Vec<Option<&str>> {
    hops.iter().map(|hop| hop.src.as_deref()).collect()
}

#[test]
fn a_path_ends_at_the_targets_nearest_response() {
    let mut path = path(5, 1, 1);
    assert!(path.add(time_exceeded(0, "a")));
    assert!(path.add(response(3, "t", ResponseKind::EchoReply)));
    assert_eq!((path.end_ttl(), path.reached()), (Some(4), true));
    assert!(path.add(response(2, "t", ResponseKind::EchoReply)));
    assert!(path.add(response(4, "t", ResponseKind::EchoReply)), "the first response at a TTL is progress");
    assert_eq!(path.end_ttl(), Some(3));
    path.add(HopEvent::TimedOut(1));
    let hops = path.hops();
    assert_eq!(srcs(&hops), [Some("a"), None, Some("t")]);
    assert_eq!([hops[0].no_response, hops[1].no_response], [Some(false), Some(true)]);
    assert_eq!((path.stopped_by().reason, path.stopped_by().ttl), (StopReason::Target, 3));
}

#[test]
fn a_router_that_responds_at_two_ttls_is_at_both_and_a_loop_goes_to_the_last_ttl() {
    let mut path = path(4, 1, 1);
    for (packet, source) in [(0, "a"), (1, "b"), (2, "a"), (3, "b")] {
        path.add(time_exceeded(packet, source));
    }
    assert_eq!(srcs(&path.hops()), [Some("a"), Some("b"), Some("a"), Some("b")]);
    assert_eq!((path.end_ttl(), path.reached(), path.stopped_by().reason), (None, false, StopReason::MaxTtl));
}

#[test]
fn a_routers_unreachable_ends_the_path_without_reaching_the_target() {
    let mut routers = path(9, 1, 1);
    routers.add(time_exceeded(0, "a"));
    routers.add(error(2, "b", 3, 1));
    routers.add(error(1, "b", 3, 13));
    assert_eq!((routers.end_ttl(), routers.reached()), (Some(2), false));
    let stop = routers.stopped_by();
    assert_eq!((stop.reason, stop.ttl, stop.icmp.map(|icmp| icmp.code)), (StopReason::Unreachable, 2, Some(13)));
    let mut targets = path(9, 1, 1);
    targets.add(error(4, "t", 3, 3));
    assert!(targets.reached(), "port unreachable from the target itself");
}

#[test]
fn the_errors_that_end_a_path_depend_on_the_ip_version() {
    for (icmp_type, v4, v6) in
        [(1, false, true), (2, false, true), (3, true, false), (4, false, true), (11, false, false), (12, true, false)]
    {
        let ends = |source| is_unreachable(&message(icmp_type, 0), source);
        assert_eq!((ends("192.0.2.1"), ends("2001:db8::1")), (v4, v6), "type {icmp_type}");
    }
}

#[test]
fn probes_and_flows_of_one_ttl_are_kept_apart() {
    let mut path = path(2, 2, 2);
    let ttls: Vec<(u8, u16)> = path.packets().iter().map(|packet| (packet.ttl, packet.flow)).collect();
    assert_eq!(ttls, [(1, 0), (1, 1), (2, 0), (2, 1), (1, 0), (1, 1), (2, 0), (2, 1)]);
    assert!(path.packets().iter().map(|packet| packet.round).eq([0, 0, 0, 0, 1, 1, 1, 1]));
    for (packet, source) in [(0, "a"), (1, "b"), (4, "a"), (5, "b")] {
        path.add(time_exceeded(packet, source));
    }
    path.add(response(2, "t", ResponseKind::SynAck));
    assert_eq!(path.end_ttl(), None, "the other flow has no end yet");
    path.add(response(3, "t", ResponseKind::Reset));
    assert_eq!(path.end_ttl(), Some(2));
    path.add(HopEvent::TimedOut(6));
    let hops = path.hops();
    assert_eq!((hops[0].rtts_ms.len(), hops[0].others.len(), hops[0].rtt_ms), (2, 1, Some(1.0)));
    assert_eq!((hops[0].others[0].src.as_str(), &hops[0].others[0].rtts_ms[..]), ("b", &[Some(2.0), Some(6.0)][..]));
    assert_eq!(hops[1].rtts_ms, [Some(3.0), Some(4.0), None]);
    let flows = path.flows();
    assert_eq!(flows[1].srcs, [Some("b".to_owned()), Some("t".to_owned())]);
    assert!(flows.iter().all(|flow| flow.reached));
}

#[test]
fn rounds_of_tcp_have_ports_of_their_own_and_belong_to_the_same_paths() {
    let mut path = Path::new(&Parameters { protocol: Protocol::Tcp(80), ..parameters(2, 2, 2) });
    let flows: Vec<u16> = path.packets().iter().map(|packet| packet.flow).collect();
    assert_eq!(flows, [0, 1, 0, 1, 2, 3, 2, 3]);
    // The second flow has an answer in the second round only.
    path.add(response(2, "t", ResponseKind::SynAck));
    path.add(time_exceeded(5, "b"));
    path.add(response(7, "t", ResponseKind::SynAck));
    assert_eq!(path.end_ttl(), Some(2));
    assert_eq!(path.flows()[1].srcs, [Some("b".to_owned()), Some("t".to_owned())]);
}

#[test]
fn failures_of_this_host_are_not_timeouts_of_the_network() {
    let mut path = path(3, 1, 1);
    let reason = || "no buffer space".to_owned();
    path.add(HopEvent::SendFailed(hops::SendFailure { packet: 0, reason: reason() }));
    path.add(HopEvent::TimedOut(1));
    let hops = path.hops();
    assert_eq!([hops[0].no_response, hops[1].no_response, hops[2].no_response], [None, Some(true), None]);
    path.add(HopEvent::Overflow(7));
    assert_eq!((path.hops()[1].no_response, path.overflowed()), (None, true));
    assert_eq!(path.send_errors(), [SendError { ttl: 1, reason: reason() }]);
}

#[test]
fn duplicates_and_late_responses_are_counted_at_their_ttl() {
    let mut path = path(2, 1, 1);
    path.add(time_exceeded(0, "a"));
    assert!(!path.add(HopEvent::Duplicate(hop_response(0, "a", ResponseKind::EchoReply))));
    assert!(!path.add(HopEvent::Late(hop_response(1, "b", ResponseKind::EchoReply))));
    path.add(HopEvent::TimedOut(1));
    let counts: Vec<_> = path.hops().iter().map(|hop| (hop.duplicates, hop.late, hop.no_response)).collect();
    assert_eq!(counts, [(1, 0, Some(false)), (0, 1, Some(true))]);
}

#[test]
fn a_hostname_is_empty_for_a_nameless_hop_and_null_for_a_silent_one() {
    let mut path = path(3, 1, 1);
    path.add(time_exceeded(0, "a"));
    path.add(time_exceeded(1, "b"));
    path.add(HopEvent::TimedOut(2));
    assert_eq!(path.known_hops()[0].hostname, None, "not looked up yet");
    assert_eq!(path.addresses(), ["a", "b"]);
    let system = AutonomousSystem { number: 64_496, name: Some("Example".into()), network: "192.0.2.0/24".into() };
    path.set_owners([("a".to_owned(), (Some("a.example".to_owned()), Some(system))), ("b".to_owned(), (None, None))]);
    let hops = path.hops();
    let hostnames: Vec<_> = hops.iter().map(|hop| hop.hostname.as_deref()).collect();
    assert_eq!(hostnames, [Some("a.example"), Some(""), None]);
    assert_eq!((hops[0].asn, hops[0].as_name.as_deref(), hops[1].asn), (Some(64_496), Some("Example"), None));
}

#[test]
fn labels_and_extensions_of_an_error_are_shown() {
    let mut path = path(1, 1, 1);
    let icmp = IcmpMessage {
        mtu: Some(1400),
        mpls: Some(vec![MplsLabel { label: 16_000, traffic_class: 5, bottom_of_stack: true, ttl: 1 }]),
        extensions: Some(vec![hops::Extension { class: 2, class_type: 1, data: vec![0, 0xab] }]),
        ..message(3, 4)
    };
    path.add(response(0, "a", ResponseKind::Icmp(icmp)));
    let hop = path.hops().remove(0);
    let label = Label { label: 16_000, traffic_class: 5, bottom_of_stack: true, ttl: 1 };
    assert_eq!((hop.mpls, hop.icmp.and_then(|icmp| icmp.mtu)), (Some(vec![label]), Some(1400)));
    assert_eq!(hop.extensions, [Extension { class: 2, class_type: 1, data: "00ab".into() }]);
}

#[test]
fn every_kind_of_response_has_a_name() {
    let answer = hops::DnsAnswer { rcode: 0, mnemonic: "noerror".into() };
    for (kind, name) in [
        (ResponseKind::EchoReply, "echo reply"),
        (ResponseKind::SynAck, "SYN-ACK"),
        (ResponseKind::Reset, "RST"),
        (ResponseKind::Datagram, "datagram"),
        (ResponseKind::Dns(answer), "DNS noerror"),
        (ResponseKind::Icmp(message(3, 3)), "type 3 code 3"),
    ] {
        assert_eq!(hop::name(&kind), name);
    }
}

#[test]
fn events_for_packets_that_do_not_exist_change_nothing() {
    let mut path = path(1, 1, 1);
    assert!(!path.add(response(7, "a", ResponseKind::EchoReply)));
    path.add(HopEvent::TimedOut(7));
    assert_eq!((path.known_hops(), path.hops()[0].no_response), (vec![], None));
}
