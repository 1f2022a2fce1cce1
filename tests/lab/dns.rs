//! `dns_lookup` against nsd, unbound and aioquic, beside dig; and against a server that misbehaves.

use std::collections::HashSet;
use std::net::{SocketAddrV6, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::number;
use super::policy::with_resolv_conf;
use crate::support::SOON;
use crate::support::lab::Lab;
use crate::support::server::Server;
use crate::support::until;
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::dns", lab =>
        every_record_type_reads_as_dig_prints_it,
        every_transport_carries_the_same_answer,
        a_certificate_that_does_not_verify_is_no_answer,
        truncated_answers_are_asked_again_over_tcp,
        rcodes_flags_and_options,
        name_servers_are_tried_in_order,
        only_the_answer_to_the_question_is_taken,
        malformed_answers_are_errors,
        names_are_looked_up_as_resolv_conf_and_hosts_say,
        a_lost_question_is_asked_again_as_often_as_configured,
        no_family_holds_up_the_other,
        rotation_spreads_lookups_over_the_name_servers,
        a_changed_resolv_conf_is_followed,
        a_link_local_name_server_is_asked_on_its_interface,
    )
}

pub fn lookup(server: &Server, options: Value) -> Value {
    let test = server.test("dns_lookup", &options);
    assert_eq!((&test["message"], &test["failed"]), (&Value::Null, &json!(false)), "{options}: {test}");
    test["result"].clone()
}

fn every_record_type_reads_as_dig_prints_it(lab: &Lab) {
    let server = lab.server(&[]);
    let questions = [
        ("www", "A"),
        ("www", "AAAA"),
        ("", "SOA"),
        ("", "NS"),
        ("", "MX"),
        ("", "TXT"),
        ("", "CAA"),
        ("alias", "CNAME"),
        ("alias", "A"),
        ("_sip._tcp", "SRV"),
        ("loc", "LOC"),
        ("ptr", "PTR"),
        ("naptr", "NAPTR"),
        ("svc", "HTTPS"),
        ("tlsa", "TLSA"),
        ("sshfp", "SSHFP"),
        ("uri", "URI"),
        ("hinfo", "HINFO"),
        ("unknown", "TYPE65280"),
        ("", "ANY"),
        ("nothing", "A"),
        ("www", "MX"),
    ];
    let mut differ = vec![];
    for (label, rdtype) in questions {
        let qname = if label.is_empty() { "lab.test".into() } else { format!("{label}.lab.test") };
        let ours = lookup(&server, json!({"qname": qname, "rdtype": rdtype, "transport": "tcp"}));
        let theirs = lab
            .probe
            .output("dig", &["+tcp", "+noall", "+answer", "+authority", "+nocookie", "@10.77.0.2", &qname, rdtype]);
        let mut theirs: Vec<String> = theirs
            .lines()
            .filter(|l| !l.starts_with(';'))
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let mut mine: Vec<String> = ["answer", "authority"]
            .iter()
            .flat_map(|section| ours[*section].as_array().expect("a list"))
            .map(|r| {
                assert!(r["rdlen"].as_u64().is_some_and(|n| n > 0), "{r}");
                let text = |field: &str| r[field].as_str().expect("text").to_owned();
                format!("{} {} {} {} {}", text("rrname"), r["ttl"], text("rclass"), text("type"), text("rdata"))
            })
            .collect();
        theirs.sort();
        mine.sort();
        // dig writes long hexadecimal data in groups, and quotes where it need not.
        let plain = |lines: &[String]| {
            lines.iter().map(|l| l.replace([' ', '"'], "").replace("0.00m", "0m").to_lowercase()).collect::<Vec<_>>()
        };
        if plain(&theirs) != plain(&mine) {
            differ.push(format!("{qname} {rdtype}\n  dig: {theirs:?}\n  we:  {mine:?}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

fn every_transport_carries_the_same_answer(lab: &Lab) {
    let server = lab.server(&[]);
    let mut answers = vec![];
    for (transport, ns) in [
        ("udp", "10.77.0.2"),
        ("tcp", "10.77.0.2"),
        ("tls", "ns.lab.test"),
        ("tls", "10.77.0.2"),
        ("https", "doh.lab.test"),
        ("https", "10.77.0.4"),
        ("quic", "doq.lab.test"),
        ("quic", "10.77.0.5"),
        ("udp", "fd77::2"),
        ("tcp", "fd77::2"),
    ] {
        let result =
            lookup(&server, json!({"qname": "www.lab.test", "rdtype": "AAAA", "transport": transport, "ns": ns}));
        assert_eq!(
            (&result["transport"], &result["attempts"][0]["ns"], &result["rcode"]),
            (&json!(transport), &json!(ns), &json!("ok")),
            "{result}"
        );
        assert!(
            (0.0..3.0).contains(&number(&result["elapsed_time"])) && result["size"].as_u64().is_some_and(|n| n > 40),
            "{result}"
        );
        let answered = result["ns"].as_str().expect("an address");
        assert!(answered.parse::<std::net::IpAddr>().is_ok(), "the address that answered: {result}");
        let last = result["attempts"].as_array().and_then(|attempts| attempts.last()).expect("an attempt");
        assert_eq!((&last["error"], &result["timeout_count"]), (&Value::Null, &json!(0)), "{result}");
        let mut answer = result["answer"].clone();
        answer[0]["ttl"] = json!(0);
        answers.push(answer);
    }
    let expected =
        json!([{"rrname": "www.lab.test.", "type": "AAAA", "rclass": "IN", "ttl": 0, "rdlen": 16, "rdata": "fd77::2"}]);
    assert!(answers.iter().all(|answer| *answer == expected), "{answers:?}");
}

fn a_certificate_that_does_not_verify_is_no_answer(lab: &Lab) {
    // Without the lab's authority among the trust anchors.
    let mut command = lab.probe.command(crate::support::scouter());
    command.env("SSL_CERT_FILE", lab.path("self.pem"));
    let server = Server::spawn(command, &[("SCOUTER_TARGETS_ALLOW", "10.77.0.0/24")], Some(lab.probe.clone()));
    for (transport, ns) in [("tls", "10.77.0.2"), ("https", "10.77.0.4"), ("quic", "10.77.0.5")] {
        let test = server.test("dns_lookup", &json!({"qname": "www.lab.test", "transport": transport, "ns": ns}));
        let message = test["message"].as_str().expect("a message");
        assert!(
            message
                .starts_with(&format!("Unable to get an answer back from any of the following nameservers: ['{ns}']")),
            "{test}"
        );
        assert!(message.contains("unknown issuer"), "{transport}: {test}");
    }
}

fn truncated_answers_are_asked_again_over_tcp(lab: &Lab) {
    let server = lab.server(&[]);
    let result = lookup(&server, json!({"qname": "big.lab.test", "rdtype": "TXT"}));
    assert_eq!((&result["transport"], result["answer"].as_array().map(Vec::len)), (&json!("tcp"), Some(6)), "{result}");
    assert!(!result["flags"].as_array().expect("a list").contains(&json!("tc")), "{result}");
}

fn rcodes_flags_and_options(lab: &Lab) {
    let server = lab.server(&[]);
    let result = lookup(&server, json!({"qname": "nothing.lab.test"}));
    assert_eq!(
        (&result["rcode"], &result["answer"], &result["authority"][0]["type"]),
        (&json!("name-error"), &json!([]), &json!("SOA")),
        "{result}"
    );
    let result = lookup(&server, json!({"qname": "www.elsewhere.test"}));
    assert_eq!(result["rcode"], "refused", "{result}");
    let result = lookup(&server, json!({"qname": "WWW.lab.test.", "recursion": false}));
    assert_eq!((&result["flags"], &result["question"]["qname"]), (&json!(["aa"]), &json!("WWW.lab.test.")), "{result}");
    let result = lookup(&server, json!({"qname": "www.lab.test", "ns": "10.77.0.4", "rdtype": "a"}));
    assert_eq!(result["flags"], json!(["rd", "ra"]), "a resolver: {result}");
    let result =
        lookup(&server, json!({"qname": "version.server", "rdtype": "TXT", "class": "CH", "ns": ["10.77.0.2"]}));
    assert_eq!(result["question"]["qclass"], "CH", "{result}");
    assert_eq!(lookup(&server, json!({"qname": "www.lab.test", "dnssec": true}))["rcode"], "ok");
    for (options, message) in [
        (json!({"qname": "a..b"}), "Provided value of 'qname' is not allowed: 'a..b' is not a domain name"),
        (json!({"qname": "www.lab.test", "class": "XX"}), "Provided class of 'XX' is not a recognized class."),
        (
            json!({"qname": "www.lab.test", "rdtype": "TYPE99999"}),
            "Provided record type of 'TYPE99999' is not a recognized type.",
        ),
    ] {
        let test = server.test("dns_lookup", &options);
        assert!(test["message"].as_str().is_some_and(|m| m.starts_with(message)), "{test}");
    }
}

fn name_servers_are_tried_in_order(lab: &Lab) {
    let server = lab.server(&[]);
    let started = Instant::now();
    let result = lookup(
        &server,
        json!({"qname": "www.lab.test", "ns": ["198.51.100.1", "10.77.0.9", "nothing.lab.test", "10.77.0.2"]}),
    );
    assert!(
        (2900..15_000).contains(&started.elapsed().as_millis()),
        "3 s for the black hole, and none of the rest waits as long: {:?}",
        started.elapsed()
    );
    assert_eq!((&result["ns"], &result["timeout_count"]), (&json!("10.77.0.2"), &json!(1)), "{result}");
    let errors: Vec<_> = result["attempts"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|a| a["error"].as_str().unwrap_or("none").to_owned())
        .collect();
    assert_eq!(errors.len(), 4, "{result}");
    assert_eq!(
        (errors[0].as_str(), errors[1].as_str(), errors[3].as_str()),
        ("no answer within the time given", "connection refused", "none"),
        "{result}"
    );
    let test = server.test("dns_lookup", &json!({"qname": "www.lab.test", "ns": ["10.77.0.9", "10.77.0.8"]}));
    let message = "Unable to get an answer back from any of the following nameservers: ['10.77.0.9', '10.77.0.8'].";
    assert!(test["message"].as_str().is_some_and(|m| m.starts_with(message)), "{test}");
}

/// A name server of the test's own in the target's namespace: answers each question with what `answer` makes of it.
pub fn name_server(
    lab: &Lab,
    address: impl ToSocketAddrs + Send,
    mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
) {
    let socket = lab.target.inside(|| UdpSocket::bind(address).expect("bound"));
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            for reply in answer(&buffer[..length]) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
}

/// The question turned into an answer with one A record, without the OPT record at its end.
fn with_address(question: &[u8], last: u8) -> Vec<u8> {
    let mut reply = question[..question.len() - 11].to_vec();
    reply[2] |= 0x80;
    (reply[7], reply[11]) = (1, 0);
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, last]);
    reply
}

fn only_the_answer_to_the_question_is_taken(lab: &Lab) {
    let server = lab.server(&[]);
    name_server(lab, "10.77.0.28:53", |question| {
        let mut wrong_id = with_address(question, 66);
        wrong_id[1] ^= 1;
        let mut wrong_name = with_address(question, 67);
        wrong_name[13] ^= 1;
        let mut question_itself = question.to_vec();
        question_itself[3] = 0;
        vec![
            wrong_id,
            wrong_name,
            question_itself,
            b"x".to_vec(),
            vec![],
            with_address(question, 1),
            with_address(question, 68),
        ]
    });
    for _ in 0..20 {
        let result = lookup(&server, json!({"qname": "www.lab.test", "ns": "10.77.0.28"}));
        assert_eq!(result["answer"][0]["rdata"], "10.0.0.1", "{result}");
    }
}

fn malformed_answers_are_errors(lab: &Lab) {
    let server = lab.server(&[]);
    name_server(lab, "10.77.0.29:53", |question| {
        let name = question[13];
        let mut reply = with_address(question, 1);
        let end = reply.len();
        match name {
            // The owner's name points at itself.
            b'a' => {
                let owner = end - 16;
                reply[owner + 1] = u8::try_from(owner).expect("short");
            }
            // More data than there is.
            b'b' => reply[end - 5] = 200,
            // Thousands of records that are not there.
            b'c' => reply[6..8].copy_from_slice(&[0xff, 0xff]),
            _ => reply.truncate(end - 3),
        }
        vec![reply]
    });
    for name in ["a", "b", "c", "d"] {
        let started = Instant::now();
        let test = server.test("dns_lookup", &json!({"qname": name, "ns": "10.77.0.29"}));
        assert!(test["message"].as_str().is_some_and(|m| m.contains("the answer is malformed")), "{name}: {test}");
        assert!(started.elapsed() < SOON, "{name}");
    }
}

fn names_are_looked_up_as_resolv_conf_and_hosts_say(lab: &Lab) {
    let (resolv, hosts) = (lab.path("search.conf"), lab.path("hosts"));
    // The first server is not there, so that the second is asked; short names are looked for in two domains.
    let configuration = "nameserver 10.77.0.8\nnameserver 10.77.0.2\nsearch nothing.test lab.test\noptions ndots:1\n";
    std::fs::write(&resolv, configuration).expect("written");
    std::fs::write(&hosts, "10.77.0.3 only-here\nfd77::3 only-here\n10.77.0.4 v4.lab.test\n").expect("written");
    let mut command = lab.probe.command("unshare");
    let mounts = format!(
        "mount --bind {} /etc/resolv.conf && mount --bind {} /etc/hosts && exec {}",
        resolv.display(),
        hosts.display(),
        crate::support::scouter()
    );
    command.args(["-m", "sh", "-c", &mounts]);
    let server = lab.server_by(command, &[]);
    for (name, family, address) in [
        ("h3", "4", Some("10.77.0.3")),
        ("h3", "6", Some("fd77::3")),
        ("h3.lab.test", "4", Some("10.77.0.3")),
        ("alias", "6", Some("fd77::2")),
        ("alias.lab.test.", "4", Some("10.77.0.2")),
        ("only-here", "4", Some("10.77.0.3")),
        ("only-here", "6", Some("fd77::3")),
        // A unique local address comes after an IPv4 one (RFC 6724, section 2.1).
        ("ONLY-HERE", "any", Some("10.77.0.3")),
        ("v4.lab.test", "4", Some("10.77.0.4")),
        ("h3.", "4", None),
        ("nothing", "4", None),
        ("v4.lab.test", "6", None),
    ] {
        let test = server.test("ping", &json!({"dst": name, "family": family, "count": 1}));
        if let Some(address) = address {
            assert_eq!(test["result"]["address"], address, "{name} {family}: {test}");
        } else {
            let message = test["message"].as_str().expect("a message");
            assert!(message.starts_with(&format!("Unable to resolve '{name}'")), "{name} {family}: {test}");
        }
    }
    assert_eq!(server.get("/api/v1.0/status").body["network"]["nameservers"], json!(["10.77.0.8", "10.77.0.2"]));
}

/// Is it a question for A records, rather than AAAA? Two bytes of class and the OPT record stand behind the type.
pub fn wants_a(question: &[u8]) -> bool {
    question[question.len() - 14] == 1
}

/// An answer with the address of that host in the lab, of the family that the question is for.
fn with_lab_address(question: &[u8], host: u8) -> Vec<Vec<u8>> {
    let mut reply = question[..question.len() - 11].to_vec();
    reply[2] |= 0x80;
    (reply[7], reply[11]) = (1, 0);
    reply.extend([0xc0, 12, 0, if wants_a(question) { 1 } else { 28 }, 0, 1, 0, 0, 0, 60, 0]);
    if wants_a(question) {
        reply.extend([4, 10, 77, 0, host]);
    } else {
        reply.extend([16, 0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    vec![reply]
}

/// A Scouter server with this resolv.conf.
pub fn resolving(lab: &Lab, name: &str, resolv_conf: &str) -> Server {
    let path = lab.path(name);
    std::fs::write(&path, resolv_conf).expect("written");
    with_resolv_conf(lab, &path, &[])
}

fn a_lost_question_is_asked_again_as_often_as_configured(lab: &Lab) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let mut seen = HashSet::new();
    // Silent at the first question for a name and type.
    name_server(lab, "10.77.0.20:53", move |question| {
        count.fetch_add(1, Ordering::Relaxed);
        if seen.insert(question[12..].to_vec()) { vec![] } else { with_lab_address(question, 2) }
    });
    let server = resolving(lab, "lost.conf", "nameserver 10.77.0.20\noptions timeout:1 attempts:2\n");
    for family in ["any", "4", "6"] {
        let ping = server.test("ping", &json!({"dst": format!("lost{family}.example"), "family": family, "count": 1}));
        assert_eq!(ping["failed"], json!(false), "{ping}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 8, "two questions, each twice, and one, twice, twice");
    let server = resolving(lab, "once.conf", "nameserver 10.77.0.20\noptions timeout:1 attempts:1\n");
    let ping = server.test("ping", &json!({"dst": "once.example", "family": "4", "count": 1}));
    assert_eq!(ping["message"], "Unable to resolve 'once.example': name server 10.77.0.20 did not answer.");
    assert_eq!(asked.load(Ordering::Relaxed), 9);
    // The defaults of resolv.conf(5), two attempts of 5 s, fit into the 5 s of a lookup.
    let server = resolving(lab, "default.conf", "nameserver 10.77.0.20\n");
    let ping = server.test("ping", &json!({"dst": "default.example", "family": "4", "count": 1}));
    assert_eq!(ping["failed"], json!(false), "{ping}");
    // Names of addresses too: the second question is answered, with an address and thus without a name.
    let before = asked.load(Ordering::Relaxed);
    let trace = server.test("traceroute", &json!({"dst": "10.77.0.3", "timeout_ms": 500}));
    assert_eq!(trace["failed"], json!(false), "{trace}");
    assert_eq!(asked.load(Ordering::Relaxed), before + 2, "{trace}");
}

fn no_family_holds_up_the_other(lab: &Lab) {
    for (address, drops_a) in [("10.77.0.21", true), ("10.77.0.22", false)] {
        name_server(lab, (address, 53), move |question| {
            if wants_a(question) == drops_a { vec![] } else { with_lab_address(question, 2) }
        });
        let conf = format!("nameserver {address}\noptions timeout:2 attempts:2\n");
        let server = resolving(lab, &format!("{address}.conf"), &conf);
        let test = server.test("http_request", &json!({"url": "http://half.example/", "timeout_ms": 10000}));
        assert_eq!(test["failed"], json!(false), "{test}");
        let remote = if drops_a { "fd77::2" } else { "10.77.0.2" };
        assert_eq!(test["result"]["remote_ip"], remote, "{test}");
        let dns = number(&test["result"]["timings"]["dns"]);
        assert!(dns < 1000.0, "the answer that does not come is not waited for: {test}");
        // The family that is wanted has no answer, whatever is known of the other one.
        let family = if drops_a { "4" } else { "6" };
        let ping = server.test("ping", &json!({"dst": "half.example", "family": family, "count": 1}));
        let message = format!("Unable to resolve 'half.example': name server {address} did not answer.");
        assert_eq!(ping["message"], message.as_str());
    }
}

fn rotation_spreads_lookups_over_the_name_servers(lab: &Lab) {
    let counts: Vec<Arc<AtomicUsize>> = ["10.77.0.23", "10.77.0.24"]
        .into_iter()
        .map(|address| {
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            name_server(lab, (address, 53), move |question| {
                count.fetch_add(1, Ordering::Relaxed);
                with_lab_address(question, 2)
            });
            asked
        })
        .collect();
    let servers = "nameserver 10.77.0.23\nnameserver 10.77.0.24\n";
    for (options, shares) in [("", [10, 0]), ("options rotate\n", [5, 5])] {
        let server = resolving(lab, "rotate.conf", &format!("{servers}{options}"));
        for _ in 0..10 {
            let ping = server.test("ping", &json!({"dst": "x.example", "family": "4", "count": 1}));
            assert_eq!(ping["failed"], json!(false), "{ping}");
        }
        let asked: Vec<usize> = counts.iter().map(|count| count.swap(0, Ordering::Relaxed)).collect();
        assert_eq!(asked, shares, "{options}");
    }
}

fn a_changed_resolv_conf_is_followed(lab: &Lab) {
    for (address, host) in [("10.77.0.25", 2), ("10.77.0.26", 3)] {
        name_server(lab, (address, 53), move |question| with_lab_address(question, host));
    }
    let server = resolving(lab, "changing.conf", "nameserver 10.77.0.25\n");
    let address =
        || server.test("ping", &json!({"dst": "x.example", "family": "4", "count": 1}))["result"]["address"].clone();
    assert_eq!(address(), "10.77.0.2");
    std::fs::write(lab.path("changing.conf"), "nameserver 10.77.0.26\n").expect("written in place");
    assert_eq!(address(), "10.77.0.3");
    let lookup = lookup(&server, json!({"qname": "x.example"}));
    assert_eq!(lookup["ns"], "10.77.0.26", "{lookup}");
}

fn a_link_local_name_server_is_asked_on_its_interface(lab: &Lab) {
    let shown = lab.target.output("ip", &["-6", "-o", "addr", "show", "dev", "veth0", "scope", "link"]);
    let address = shown.split_whitespace().nth(3).and_then(|net| net.split('/').next()).expect("an address");
    let scope = lab.target.inside(|| nix::net::if_::if_nametoindex("veth0").expect("an index"));
    let bound = SocketAddrV6::new(address.parse().expect("an address"), 53, 0, scope);
    // The address is unusable until duplicate address detection has ended (RFC 4862, section 5.4).
    until("the address can be used", || lab.target.inside(|| UdpSocket::bind(bound).is_ok()));
    name_server(lab, bound, |question| with_lab_address(question, 4));
    let server = resolving(lab, "link-local.conf", &format!("nameserver {address}%veth0\n"));
    let ping = server.test("ping", &json!({"dst": "x.example", "family": "4", "count": 1}));
    assert_eq!(ping["result"]["address"], "10.77.0.4", "{ping}");
    assert_eq!(lookup(&server, json!({"qname": "x.example"}))["answer"][0]["rdata"], "10.77.0.4");
    let trace = server.test("dns_traceroute", &json!({"qname": "x.example"}));
    assert_eq!((&trace["failed"], &trace["result"]["rcode"]), (&json!(false), &json!("ok")), "{trace}");
    // There is no QUIC server: it is asked all the same.
    let quic = SocketAddrV6::new(*bound.ip(), 853, 0, scope);
    let quic = lab.target.inside(|| UdpSocket::bind(quic).expect("bound"));
    quic.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    let test = server.test("dns_lookup", &json!({"qname": "x.example", "transport": "quic"}));
    assert_eq!(test["failed"], json!(true), "{test}");
    assert!(quic.recv(&mut [0; 2048]).is_ok_and(|length| length >= 1200), "an Initial packet (RFC 9000, section 14.1)");
}
