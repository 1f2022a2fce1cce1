//! The target policy on the wire (threats 34–37): nothing reaches an address that is closed.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::lab::{Lab, Namespace};
use crate::support::server::Server;
use crate::support::{scouter, until};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::policy", lab =>
        no_spelling_of_a_closed_address_is_reached,
        redirects_are_vetted_like_first_requests,
        a_rebinding_name_reaches_only_what_is_open,
        proxies_of_the_environment_are_not_used,
        names_can_be_opened_and_closed,
        names_behind_a_name_are_denied_and_open_nothing,
        own_name_servers_may_always_be_asked,
        name_servers_that_may_be_asked_follow_resolv_conf,
        addresses_of_this_host_are_closed_as_long_as_it_has_them,
        a_deny_block_of_mapped_addresses_is_an_ipv4_block,
        a_rule_for_a_name_opens_neither_loopback_nor_metadata,
    )
}

/// Listens on every address of the probe, loopback included, and counts who comes.
pub fn watch_loopback(lab: &Lab) -> (u16, Arc<AtomicU64>) {
    count_connections(&lab.probe)
}

pub fn count_connections(namespace: &Namespace) -> (u16, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let v4 = namespace.inside(|| TcpListener::bind("0.0.0.0:0").expect("bound"));
    let port = v4.local_addr().expect("an address").port();
    let v6 = namespace.inside(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
        socket.set_only_v6(true).expect("set");
        socket.bind(&std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)).into()).expect("bound");
        socket.listen(10).expect("listens");
        TcpListener::from(socket)
    });
    for listener in [v4, v6] {
        let count = Arc::clone(&count);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
                drop(stream);
            }
        });
    }
    (port, count)
}

const SPELLINGS: &[&str] = &[
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0x7f000001",
    "0177.1",
    "0177.0.0.01",
    "2130706433",
    "017700000001",
    "127.255.255.254",
    "0",
    "0.0.0.0",
    "0x0",
    "1.0.0.127.in-addr.arpa",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "loopback.lab.test",
    "LoopBack.Lab.Test.",
    "mixed.example",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::127.0.0.1]",
    "[2002:7f00:1::]",
    "[2002:7f00:0001:0:0:0:0:1]",
    "[2001:0:7f00:1::]",
    "[::ffff:0:127.0.0.1]",
    "[fe80::1]",
    "[fec0::1]",
    "10.77.0.1",
    "[fd77::1]",
    "[::ffff:10.77.0.1]",
    "[::10.77.0.1]",
    "[64:ff9b::10.77.0.1]",
    "[2002:a4d:1::]",
    "0x0a.0x4d.0x00.0x01",
    "0xa4d0001",
    "172838913",
    "10.19712.1",
    "169.254.169.254",
    "metadata.lab.test",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "[fd00:ec2::254]",
    "127.0.0.1.",
    "①②⑦.⓪.⓪.①",
    "１２７.0.0.1",
    "127。0。0。1",
    "[5f00::1]",
    "[3fff::1]",
    "224.0.0.1",
    "255.255.255.255",
    "[ff02::1]",
    "240.0.0.1",
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
];

fn no_spelling_of_a_closed_address_is_reached(lab: &Lab) {
    let (port, count) = watch_loopback(lab);
    // Without the lab's own addresses: a rule that opens nothing that is tried here.
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "192.88.99.1")]);
    assert!(SPELLINGS.len() >= 60);
    let mut tests = vec![];
    for spelling in SPELLINGS {
        tests.push((
            "http_request",
            json!({"url": format!("http://{spelling}:{port}/"), "timeout_ms": 500, "id": spelling}),
        ));
        tests.push((
            "http_request",
            json!({"url": format!("https://{spelling}:{port}/"), "version": 3, "timeout_ms": 500, "id": spelling}),
        ));
        let bare = spelling.trim_matches(['[', ']']);
        tests.push((
            "http_request",
            json!({"url": format!("http://open.example:{port}/"), "resolve": bare, "timeout_ms": 500, "id": spelling}),
        ));
        tests.push(("ping", json!({"dst": bare, "count": 1, "timeout_ms": 300, "id": spelling})));
        for transport in ["udp", "tcp"] {
            tests.push((
                "dns_lookup",
                json!({"qname": "x.test", "ns": bare, "port": port, "transport": transport, "id": spelling}),
            ));
        }
    }
    let (mut http, mut ping, mut dns) = (vec![], vec![], vec![]);
    for (test_type, options) in tests {
        match test_type {
            "http_request" => http.push(options),
            "ping" => ping.push(options),
            _ => dns.push(options),
        }
    }
    let results = server.run(&json!({"http_request": http, "ping": ping, "dns_lookup": dns}));
    for tests in results.as_object().expect("an object").values() {
        for test in tests.as_array().expect("a list") {
            assert_eq!(test["failed"], json!(true), "{test}");
            let text = test.to_string();
            let refused = [
                "is not allowed",
                "Unable to resolve",
                "Unable to get an answer",
                "is not a URL",
                "Provided value of",
                "needs an https",
            ];
            assert!(refused.iter().any(|words| text.contains(words)), "{test}");
            assert_eq!(test["result"]["remote_ip"], Value::Null, "{test}");
        }
    }
    assert_eq!(count.load(Ordering::Relaxed), 0, "connections to closed addresses");
}

fn redirects_are_vetted_like_first_requests(lab: &Lab) {
    let server = lab.server(&[]);
    for path in ["away", "metadata", "file"] {
        let test = server.test("http_request", &json!({"url": format!("http://v4.lab.test/{path}")}));
        assert_eq!(
            (&test["failed"], test["result"]["redirects"].as_array().map(Vec::len)),
            (&json!(true), Some(1)),
            "{path}: {test}"
        );
        let reason = test["result"]["reason"].as_str().expect("a reason");
        assert!(reason.contains("is not allowed") || reason.contains("is not http or https"), "{path}: {test}");
    }
}

/// A name server at this address whose answers alternate between an open address and loopback, and a server that asks
/// it; how many answers it gave.
pub fn rebinding(lab: &Lab, address: &str, settings: &[(&str, &str)]) -> (Server, Arc<AtomicU64>) {
    let answered = rebinding_name_server(lab, address);
    let resolv = lab.path(&format!("rebind-{address}.conf"));
    std::fs::write(&resolv, format!("nameserver {address}\n")).expect("written");
    (with_resolv_conf(lab, &resolv, settings), answered)
}

/// A server in the probe's namespace for which this file is `/etc/resolv.conf`; writing to it changes that one.
pub fn with_resolv_conf(lab: &Lab, resolv_conf: &Path, settings: &[(&str, &str)]) -> Server {
    let mut command = lab.probe.command("unshare");
    let script = format!("mount --bind {} /etc/resolv.conf && exec {}", resolv_conf.display(), scouter());
    command.args(["-m", "sh", "-c", &script]);
    lab.server_by(command, settings)
}

fn rebinding_name_server(lab: &Lab, address: &str) -> Arc<AtomicU64> {
    let socket = lab.target.inside(|| UdpSocket::bind((address, 53)).expect("bound"));
    socket.set_read_timeout(Some(Duration::from_mins(2))).expect("set");
    let answered = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&answered);
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let question = &buffer[..length];
            let end = 12 + question[12..].iter().position(|b| *b == 0).unwrap_or(0) + 5;
            let wants_a = question[end - 3] == 1;
            let mut reply = question[..end].to_vec();
            reply[2] |= 0x84;
            reply[6..12].fill(0);
            if wants_a {
                reply[7] = 1;
                let address = if count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    [10, 77, 0, 2]
                } else {
                    [127, 0, 0, 1]
                };
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                reply.extend(address);
            }
            let _ = socket.send_to(&reply, from);
        }
    });
    answered
}

fn a_rebinding_name_reaches_only_what_is_open(lab: &Lab) {
    let (port, count) = watch_loopback(lab);
    let (server, answered) = rebinding(lab, "10.77.0.9", &[]);
    let tests: Vec<Value> =
        (0..500).map(|_| json!({"url": format!("http://rebind.example:{port}/"), "timeout_ms": 2000})).collect();
    let (mut refused, mut dialled) = (0, 0);
    for _ in 0..2 {
        for test in server.run(&json!({"http_request": tests}))["http_request"].as_array().expect("a list") {
            assert_eq!(test["failed"], json!(true), "{test}");
            if test["message"].as_str().is_some_and(|m| m.contains("is not allowed")) {
                refused += 1;
            } else {
                dialled += 1;
            }
        }
    }
    assert_eq!(count.load(Ordering::Relaxed), 0, "connections to loopback");
    assert!(
        answered.load(Ordering::Relaxed) >= 1000 && refused > 200 && dialled > 200,
        "both answers were tried: {refused} refused, {dialled} dialled"
    );
}

fn proxies_of_the_environment_are_not_used(lab: &Lab) {
    let (port, count) = watch_loopback(lab);
    let proxy = format!("http://127.0.0.1:{port}");
    let server =
        lab.server(&[("HTTP_PROXY", &proxy), ("http_proxy", &proxy), ("HTTPS_PROXY", &proxy), ("ALL_PROXY", &proxy)]);
    assert_eq!(server.test("http_request", &json!({"url": "http://v4.lab.test/"}))["result"]["status"], json!(200));
    assert_eq!(server.test("http_request", &json!({"url": "https://v4.lab.test/"}))["result"]["status"], json!(200));
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

fn names_can_be_opened_and_closed(lab: &Lab) {
    let server = lab.server(&[
        ("SCOUTER_TARGETS_ALLOW", "v4.lab.test,*.sub.lab.test,10.77.0.3"),
        ("SCOUTER_TARGETS_DENY", "h3.lab.test"),
    ]);
    for (target, open) in [
        ("v4.lab.test", true),
        ("V4.LAB.TEST.", true),
        ("mail.lab.test", false),
        ("10.77.0.2", false),
        ("10.77.0.3", true),
        ("h3.lab.test", false),
    ] {
        let ping = server.test("ping", &json!({"dst": target, "count": 1, "family": "4"}));
        assert_eq!(ping["failed"], json!(!open), "{target}: {ping}");
        let http = server
            .test("http_request", &json!({"url": format!("http://{target}:80/"), "family": "4", "timeout_ms": 1000}));
        assert_eq!(http["message"].is_null(), open, "{target}: {http}");
    }
    let mixed = server.test("http_request", &json!({"url": "http://v4.lab.test/", "resolve": "10.77.0.1"}));
    assert!(
        mixed["message"].as_str().is_some_and(|m| m.contains("is not allowed")),
        "an open name opens no other address: {mixed}"
    );
}

/// What the search list makes of a name, and what the answers about it go on to: `alias` is a CNAME of `www`.
fn names_behind_a_name_are_denied_and_open_nothing(lab: &Lab) {
    let resolv_conf = lab.path("search-policy.conf");
    std::fs::write(&resolv_conf, "nameserver 10.77.0.2\nsearch lab.test\n").expect("written");
    let open = |server: &Server, target: &str| {
        let ping = server.test("ping", &json!({"dst": target, "count": 1, "family": "4"}));
        let options = json!({"url": format!("http://{target}:80/"), "family": "4", "timeout_ms": 1000});
        let http = server.test("http_request", &options);
        let refused = |test: &Value| test["message"].as_str().is_some_and(|message| message.contains("is not allowed"));
        assert_eq!(refused(&ping), refused(&http), "{target}: {ping} {http}");
        assert_eq!(ping["failed"], json!(refused(&ping)), "{target}: {ping}");
        !refused(&ping)
    };
    let denies = with_resolv_conf(lab, &resolv_conf, &[("SCOUTER_TARGETS_DENY", "www.lab.test")]);
    for (target, is_open) in [("www", false), ("alias.lab.test", false), ("alias", false), ("v4", true)] {
        assert_eq!(open(&denies, target), is_open, "{target}");
    }
    drop(denies);
    let allows = with_resolv_conf(lab, &resolv_conf, &[("SCOUTER_TARGETS_ALLOW", "www.lab.test")]);
    for (target, is_open) in [("www", true), ("www.lab.test", true), ("alias.lab.test", false), ("alias", false)] {
        assert_eq!(open(&allows, target), is_open, "{target}");
    }
}

fn own_name_servers_may_always_be_asked(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "192.0.2.0/24")]);
    assert_eq!(server.test("dns_lookup", &json!({"qname": "www.lab.test"}))["failed"], json!(false));
    assert_eq!(server.test("dns_lookup", &json!({"qname": "www.lab.test", "ns": "10.77.0.2"}))["failed"], json!(false));
    let other = server.test("dns_lookup", &json!({"qname": "www.lab.test", "ns": "10.77.0.4"}));
    assert!(other["message"].as_str().is_some_and(|m| m.contains("is not allowed")), "{other}");
    assert!(server.test("ping", &json!({"dst": "10.77.0.2"}))["message"].is_string());
    let web =
        server.test("dns_lookup", &json!({"qname": "www.lab.test", "ns": "10.77.0.2", "port": 80, "transport": "tcp"}));
    assert!(web["message"].as_str().is_some_and(|m| m.contains("is not allowed")), "its other ports are closed: {web}");
}

fn name_servers_that_may_be_asked_follow_resolv_conf(lab: &Lab) {
    let resolv_conf = lab.path("policy-resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 10.77.0.2\n").expect("written");
    let server = with_resolv_conf(lab, &resolv_conf, &[("SCOUTER_TARGETS_ALLOW", "192.0.2.0/24")]);
    let asked = |ns: &str| server.test("dns_lookup", &json!({"qname": "www.lab.test", "ns": ns}));
    let refused = |test: &Value| test["message"].as_str().is_some_and(|message| message.contains("is not allowed"));
    assert_eq!(asked("10.77.0.2")["failed"], json!(false));
    assert!(refused(&asked("10.77.0.4")));
    std::fs::write(&resolv_conf, "nameserver 10.77.0.4\n").expect("written in place");
    assert_eq!(asked("10.77.0.4")["failed"], json!(false));
    assert!(refused(&asked("10.77.0.2")));
    assert_eq!(server.get("/api/v1.0/status").body["network"]["nameservers"], json!(["10.77.0.4"]));
}

fn addresses_of_this_host_are_closed_as_long_as_it_has_them(lab: &Lab) {
    // Global addresses, in a namespace that leads nowhere.
    let own = Namespace::add(format!("scouter-{}-own", std::process::id()));
    own.sh("ip addr add 9.9.9.1/32 dev lo; ip addr add 2a00:9::1/64 dev lo nodad");
    let (port, count) = count_connections(&own);
    let forms = ["9.9.9.1", "0x9090901", "[::ffff:9.9.9.1]", "[2a00:9::1]", "[64:ff9b::9.9.9.1]", "[2002:909:901::]"];
    let request = |host: &str| json!({"url": format!("http://{host}:{port}/"), "timeout_ms": 2000});
    let refused = |test: &Value| {
        let message = test["message"].as_str().unwrap_or_default();
        message.contains("is not allowed") && message.contains("an address of this host")
    };
    let closed = lab.server_in(&own, &[]);
    for form in forms {
        let http = closed.test("http_request", &request(form));
        assert!(refused(&http), "{form}: {http}");
        let ping = closed.test("ping", &json!({"dst": form.trim_matches(['[', ']']), "count": 1, "timeout_ms": 300}));
        assert!(ping["failed"] == json!(true) && ping["message"].is_string(), "{form}: {ping}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 0, "connections to closed addresses");
    // One that the host gets while the server runs, and loses again.
    assert!(!refused(&closed.test("http_request", &request("9.9.9.3"))));
    own.sh("ip addr add 9.9.9.3/32 dev lo");
    until("the new address is closed", || refused(&closed.test("http_request", &request("9.9.9.3"))));
    own.sh("ip addr del 9.9.9.3/32 dev lo");
    until("it is open again", || !refused(&closed.test("http_request", &request("9.9.9.3"))));
    drop(closed);
    let before = count.load(Ordering::Relaxed);
    let open = lab.server_in(&own, &[("SCOUTER_TARGETS_ALLOW", "9.9.9.1,2a00:9::/64")]);
    for form in ["9.9.9.1", "[2a00:9::1]"] {
        assert!(!refused(&open.test("http_request", &request(form))), "{form}");
    }
    assert_eq!(count.load(Ordering::Relaxed), before + 2);
    drop(open);
    own.delete();
}

fn a_deny_block_of_mapped_addresses_is_an_ipv4_block(lab: &Lab) {
    let server = lab.server(&[("SCOUTER_TARGETS_DENY", "::ffff:10.77.0.2/127")]);
    for (target, open) in [("10.77.0.2", false), ("10.77.0.3", false), ("::ffff:10.77.0.2", false), ("10.77.0.4", true)]
    {
        let ping = server.test("ping", &json!({"dst": target, "count": 1}));
        assert_eq!(ping["message"].is_null(), open, "{target}: {ping}");
    }
}

fn a_rule_for_a_name_opens_neither_loopback_nor_metadata(lab: &Lab) {
    let (port, count) = watch_loopback(lab);
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "*.lab.test")]);
    for name in ["loopback.lab.test", "metadata.lab.test"] {
        let ping = server.test("ping", &json!({"dst": name, "count": 1}));
        let http = server.test("http_request", &json!({"url": format!("http://{name}:{port}/"), "timeout_ms": 1000}));
        for test in [ping, http] {
            let message = test["message"].as_str().unwrap_or_default();
            assert!(message.contains("is not allowed") && message.contains("a rule for a name does not"), "{test}");
        }
    }
    assert_eq!(count.load(Ordering::Relaxed), 0, "connections to loopback");
    assert_eq!(server.test("ping", &json!({"dst": "v4.lab.test", "count": 1}))["failed"], json!(false));
    // Its address opens it, whatever it is called.
    let server = lab.server(&[("SCOUTER_TARGETS_ALLOW", "*.lab.test,127.0.0.1")]);
    assert_eq!(server.test("ping", &json!({"dst": "loopback.lab.test", "count": 1}))["failed"], json!(false));
}
