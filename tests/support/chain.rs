//! A chain of routers behind the probe:
//!
//! ```text
//! probe ─ r1 ─ r2 ┬ r3a ┬ r4 ─ r5 ─ r6 ─ r7 ┬ target (10.81.0.2 and .10–.59, fd81::2 and ::10–::3b)
//!                 └ r3b ┘                   ├ small (10.81.5.2, fd81:0:0:5::2), over a link with an MTU of 1280
//!                                           └ slow (10.81.6.2, fd81:0:0:6::2) ─ far (10.81.7.2, fd81:0:0:7::2)
//! ```
//!
//! Link k has 10.80.k.0/24 and `fd80:0:0:k::/64`, `.1` towards the probe; the links of r3a and r3b are 31, 41 and 32, 42.
//!
//! - r2 balances by flow (layer 4)
//! - r4 never answers
//! - r5 answers from 203.0.113.5 and `2001:db8:5::5`
//! - slow answers as seldom as the kernel's defaults let it, all others as often as they are asked
//! - r7 drops 10.81.1.0/24, says that 10.81.2.0/24 cannot be reached and that 10.81.3.0/24 is prohibited, and sends
//!   10.81.4.0/24 back to r6, which sends it to r7 (and so for `fd81:0:0:1–4::/64`)
//! - the target listens on TCP port 80, drops what comes to port 81, and serves DNS

#![expect(clippy::format_push_string, reason = "a script reads better than its writing")]

use std::net::{Ipv6Addr, TcpListener};

use super::lab::{Namespace, sh};

pub struct Chain {
    pub nodes: Vec<Namespace>,
    pub target: Namespace,
    _listener: TcpListener,
}

/// The routers on the way, as they answer, `?` for r3a or r3b.
pub const V4: [Option<&str>; 8] = [
    Some("10.80.1.2"),
    Some("10.80.2.2"),
    Some("10.80.3?.2"),
    None,
    Some("203.0.113.5"),
    Some("10.80.6.2"),
    Some("10.80.7.2"),
    Some("10.81.0.2"),
];
pub const V6: [Option<&str>; 8] = [
    Some("fd80:0:0:1::2"),
    Some("fd80:0:0:2::2"),
    Some("fd80:0:0:3?::2"),
    None,
    Some("2001:db8:5::5"),
    Some("fd80:0:0:6::2"),
    Some("fd80:0:0:7::2"),
    Some("fd81::2"),
];

/// Link, and the nodes at its ends.
const LINKS: [(u16, &str, &str); 9] = [
    (1, "probe", "r1"),
    (2, "r1", "r2"),
    (31, "r2", "r3a"),
    (32, "r2", "r3b"),
    (41, "r3a", "r4"),
    (42, "r3b", "r4"),
    (5, "r4", "r5"),
    (6, "r5", "r6"),
    (7, "r6", "r7"),
];

impl Chain {
    pub fn build(probe: &Namespace) -> Self {
        let pid = std::process::id();
        let name = |node: &str| if node == "probe" { probe.name().to_owned() } else { format!("scouter-{pid}-{node}") };
        let ends = ["target", "small", "slow", "far"];
        let nodes: Vec<Namespace> = LINKS
            .iter()
            .map(|link| link.2)
            .filter(|node| *node != "r4")
            .chain(["r4"])
            .chain(ends)
            .map(|node| Namespace::add(name(node)))
            .collect();
        for node in &nodes {
            node.sh(
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
                 sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0",
            );
            if node.name() != name("slow") {
                node.sh("sysctl -qw net.ipv4.icmp_ratemask=0 net.ipv6.icmp.ratemask= net.ipv6.icmp.ratelimit=0");
            }
        }
        let join = |a: &str, b: &str, device: &str, v4: &str, v6: &str| {
            let (a, b) = (name(a), name(b));
            sh(&format!(
                "ip -n {a} link add {device} type veth peer name {device} netns {b}
                 ip -n {a} addr add {v4}.1/24 dev {device}; ip -n {a} addr add {v6}::1/64 dev {device} nodad
                 ip -n {b} addr add {v4}.2/24 dev {device}; ip -n {b} addr add {v6}::2/64 dev {device} nodad
                 ip -n {a} link set {device} up; ip -n {b} link set {device} up"
            ));
        };
        let mut routes = String::new();
        for (link, near, far) in LINKS {
            join(near, far, &format!("l{link}"), &format!("10.80.{link}"), &format!("fd80:0:0:{link}"));
            let (near, far) = (name(near), name(far));
            // r4 sends back through r3a; r2 sends on by flow, below.
            if link != 42 {
                routes += &format!(
                    "ip -n {far} route add default via 10.80.{link}.1; ip -n {far} route add default via fd80:0:0:{link}::1\n"
                );
            }
            if link / 10 != 3 {
                routes += &format!(
                    "ip -n {near} route add 10.81.0.0/16 via 10.80.{link}.2; ip -n {near} route add fd81::/32 via fd80:0:0:{link}::2\n"
                );
            }
        }
        join("r7", "target", "t0", "10.81.0", "fd81:0:0:0");
        join("r7", "small", "t5", "10.81.5", "fd81:0:0:5");
        join("r7", "slow", "t6", "10.81.6", "fd81:0:0:6");
        join("slow", "far", "t7", "10.81.7", "fd81:0:0:7");
        let [from, r2, r4, r5, r7, end, small, slow, far] =
            ["probe", "r2", "r4", "r5", "r7", "target", "small", "slow", "far"].map(name);
        // Errors that r4 itself makes find no way; what it passes on does.
        routes += &format!(
            "ip -n {from} route add 10.80.0.0/16 via 10.80.1.2; ip -n {from} route add fd80::/32 via fd80:0:0:1::2
             ip netns exec {r2} sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1
             ip -n {r2} route add 10.81.0.0/16 nexthop via 10.80.31.2 nexthop via 10.80.32.2
             ip -n {r2} route add fd81::/32 nexthop via fd80:0:0:31::2 nexthop via fd80:0:0:32::2
             ip -n {r4} rule add iif lo ipproto icmp blackhole; ip -n {r4} -6 rule add iif lo ipproto ipv6-icmp to fd80:0:0:1::/64 blackhole
             ip -n {r5} addr add 203.0.113.5/32 dev lo; ip -n {r5} addr add 2001:db8:5::5/128 dev lo nodad
             ip -n {r5} route replace default via 10.80.5.1 src 203.0.113.5; ip -n {r5} -6 route replace default via fd80:0:0:5::1 src 2001:db8:5::5
             ip -n {end} route add default via 10.81.0.1; ip -n {end} route add default via fd81::1
             ip -n {small} route add default via 10.81.5.1; ip -n {small} route add default via fd81:0:0:5::1
             ip -n {slow} route add default via 10.81.6.1; ip -n {slow} route add default via fd81:0:0:6::1
             ip -n {far} route add default via 10.81.7.1; ip -n {far} route add default via fd81:0:0:7::1
             ip -n {r7} route add 10.81.7.0/24 via 10.81.6.2; ip -n {r7} route add fd81:0:0:7::/64 via fd81:0:0:6::2
             for node in {r7} {small}; do ip -n $node link set t5 mtu 1280; done
             for n in $(seq 10 59); do ip -n {end} addr add 10.81.0.$n/24 dev t0; ip -n {end} addr add fd81::$(printf %x $n)/64 dev t0 nodad; done
             ip -n {r7} route add blackhole 10.81.1.0/24; ip -n {r7} route add unreachable 10.81.2.0/24; ip -n {r7} route add prohibit 10.81.3.0/24
             ip -n {r7} route add 10.81.4.0/24 via 10.80.7.1
             ip -n {r7} route add blackhole fd81:0:0:1::/64; ip -n {r7} route add unreachable fd81:0:0:2::/64; ip -n {r7} route add prohibit fd81:0:0:3::/64
             ip -n {r7} route add fd81:0:0:4::/64 via fd80:0:0:7::1
             for v in -4 -6; do ip -n {end} $v rule add pref 100 lookup local; ip -n {end} $v rule del pref 0; ip -n {end} $v rule add pref 50 ipproto tcp dport 81 blackhole; done"
        );
        sh(&routes);
        let target = nodes.iter().find(|node| node.name() == end).expect("the target").clone();
        let listener = target.inside(|| TcpListener::bind("[::]:80").expect("a listener"));
        Self { nodes, target, _listener: listener }
    }

    /// Zones that give each router's addresses its name: `(zone, text)`.
    pub fn reverse_zones() -> [(String, String); 2] {
        let head = "@ 60 IN SOA ns.lab.test. root.lab.test. 1 60 60 60 60\n@ 60 IN NS ns.lab.test.\n";
        let (mut v4, mut v6) = (head.to_owned(), head.to_owned());
        for (link, _, router) in LINKS {
            v4 += &format!("2.{link} 60 IN PTR {router}.path.test.\n");
            // The link's number stands in the address as it is written: in hexadecimal.
            let link = u16::from_str_radix(&link.to_string(), 16).expect("digits");
            let address = Ipv6Addr::new(0xfd80, 0, 0, link, 0, 0, 0, 2);
            let nibbles: Vec<String> =
                format!("{:032x}", u128::from(address)).chars().rev().map(String::from).collect();
            v6 += &format!("{} 60 IN PTR {router}.path.test.\n", nibbles[..28].join("."));
        }
        [("80.10.in-addr.arpa".into(), v4), ("0.8.d.f.ip6.arpa".into(), v6)]
    }
}
