//! A hostile plugin for the sandbox tests: the option `do` selects the attack, `n` its size and `to` its target. It
//! implements the export without the SDK's trait, which cannot return malformed results.

#![expect(clippy::disallowed_types, reason = "opening sockets is one of the attacks")]

use std::hint::black_box;
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};

use scouter_sdk::bindings::exports::scouter::probe::test::{Description, Guest, Outcome};
use scouter_sdk::bindings::scouter::probe::{browser, dns, hops, http, icmp, net, report, resolver};
use serde_json::{Value, json};
use wasip2::clocks::monotonic_clock;

struct Hostile;

/// What `describe` does: tests change these bytes in a copy of the file. Read at run time, so that they stay there.
static DESCRIBE: [u8; 16] = *b"describe:honest ";

/// What a run leaves for the next one to find.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// So many bytes of memory in words, as the host gives it: not cleared here, and never freed.
fn new_memory(bytes: usize) -> impl Iterator<Item = *mut u64> {
    let words = Vec::<u64>::with_capacity(bytes / 8).leak().as_mut_ptr();
    (0..bytes / 8).map(move |word| words.wrapping_add(word))
}

fn outcome(result: &Value) -> Outcome {
    Outcome { failed: false, message: None, result: result.to_string() }
}

fn parameters(target: &str, count: u16) -> icmp::EchoParameters {
    icmp::EchoParameters {
        target: target.into(),
        count,
        interval_ms: 10,
        timeout_ms: 1000,
        payload_size: 0,
        ttl: None,
        dont_fragment: false,
    }
}

/// UDP probes need no privilege: neither a raw nor a datagram ICMP socket.
fn udp_trace(target: &str, packets: usize) -> hops::TraceParameters {
    hops::TraceParameters {
        target: target.into(),
        protocol: hops::Protocol::Udp(9),
        packets: vec![hops::ProbePacket { ttl: 64, flow: 0, round: 0 }; packets],
        payload_size: 16,
        interval_us: 100,
        timeout_ms: 60_000,
    }
}

fn request(url: &str) -> http::Request {
    http::Request {
        method: "GET".into(),
        url: url.into(),
        version: http::Version::Http11,
        headers: vec![],
        body: None,
        resolve: None,
        family: net::Family::Any,
        verify_tls: true,
        keep_body: 0,
        timeout_ms: 1,
    }
}

/// Uses no linear memory, so that the native stack overflows and not the guest's own.
#[inline(never)]
fn recurse(depth: u64, end: u64, act: &dyn Fn() -> u64) -> u64 {
    if depth == end { act() } else { recurse(depth + 1, end, act).wrapping_mul(31) ^ (depth >> 3) }
}

impl Guest for Hostile {
    fn describe() -> Description {
        match &black_box(&DESCRIBE)[9..] {
            b"imports" => drop(resolver::nameservers()),
            b"spins  " => loop {
                black_box(0);
            },
            _ => {}
        }
        Description {
            version: "1.0.0".into(),
            summary: "Attacks the sandbox".into(),
            // Padded with blanks: tests write worse ones over it, in the file.
            options_schema: include_str!("options.json").into(),
            result_schema: json!({"type": "object", "properties": {"known": {"type": "integer"}}}).to_string(),
        }
    }

    fn run(options: String) -> Outcome {
        let options: Value = serde_json::from_str(&options).unwrap_or_default();
        let n = options["n"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let to = options["to"].as_str().unwrap_or("127.0.0.1");
        match options["do"].as_str().unwrap_or_default() {
            "nothing" => {}
            "spin" => loop {
                black_box(n);
            },
            "nap, then spin" => {
                std::thread::sleep(std::time::Duration::from_millis(n as u64));
                loop {
                    black_box(n);
                }
            }
            "exchange at a depth" => {
                let exchange = || {
                    let answer = http::exchange(&http::Request { timeout_ms: 5000, ..request(to) });
                    LEFT.store(u64::from(answer.is_ok()), Ordering::Relaxed);
                    0
                };
                black_box(recurse(0, n as u64, &exchange));
                return outcome(&json!({"answered": LEFT.load(Ordering::Relaxed) == 1}));
            }
            "partial, then spin" => {
                report::progress(r#"{"so_far": 1}"#);
                loop {
                    black_box(n);
                }
            }
            "sleep" => std::thread::sleep(std::time::Duration::from_millis(n as u64)),
            "return" => return outcome(&json!({"x": "x".repeat(n)})),
            "values" => return outcome(&json!({"x": vec![0; n]})),
            "log" => (0..n).for_each(|_| eprintln!("{}", "x".repeat(99))),
            "call" => (0..n).for_each(|_| report::progress("{}")),
            "call with much" => {
                let much = "x".repeat(200_000);
                (0..n).for_each(|_| report::progress(&much));
            }
            "ask with much" => {
                let question = dns::Question { name: "a".into(), type_: "x".repeat(200_000), class: "IN".into() };
                let query = dns::Query {
                    question,
                    server: to.into(),
                    port: None,
                    transport: dns::Transport::Udp,
                    server_name: None,
                    recursion_desired: true,
                    authentic_data: false,
                    checking_disabled: false,
                    edns: None,
                    timeout_ms: 1,
                };
                (0..n).for_each(|_| drop(dns::ask(&query)));
            }
            "list" => {
                let headers = (0..n).map(|_| http::Header { name: String::new(), value: String::new() }).collect();
                let _ = http::exchange(&http::Request { headers, ..request("http://127.0.0.1/") });
            }
            "allocate" => {
                black_box(vec![1_u8; n]);
            }
            "handles" => {
                let held: Vec<_> = (0..n).map(|_| monotonic_clock::subscribe_duration(1)).collect();
                black_box(&held);
            }
            "sockets" => {
                let trace = udp_trace(to, 1);
                let sessions: Vec<_> = (0..n).map(|_| hops::Trace::start(&trace)).collect();
                let open = sessions.iter().filter(|session| session.is_ok()).count();
                return outcome(&json!({"open": open}));
            }
            "packets" => {
                let mut planned = 0_u64;
                let trace = udp_trace(to, 1000);
                while hops::Trace::start(&trace).is_ok() {
                    planned += 1000;
                }
                return outcome(&json!({"planned": planned}));
            }
            "large packets" => {
                let large = icmp::EchoParameters { payload_size: 65_000, ..parameters(to, 10) };
                let started = (0..n).take_while(|_| icmp::Echoes::start(&large).is_ok()).count();
                return outcome(&json!({"planned": started * 10}));
            }
            "targets" => {
                let reached = |last: usize| icmp::Echoes::start(&parameters(&format!("127.0.1.{last}"), 1)).is_ok();
                let first = (0..n).filter(|last| reached(*last)).count();
                return outcome(&json!({"reached": first, "again": (0..n).filter(|last| reached(*last)).count()}));
            }
            "exchanges" => {
                let refused = |last: usize| {
                    let answer = http::exchange(&request(&format!("http://127.0.1.{last}:9/")));
                    answer.is_err_and(|failure| failure.reason.contains("at most"))
                };
                let refused: Vec<bool> = (0..n).chain([0]).map(refused).collect();
                return outcome(
                    &json!({"reached": refused.iter().filter(|r| !**r).count(), "again": refused.last() == Some(&false)}),
                );
            }
            "pages" => {
                let load = |number: usize| {
                    browser::load(&browser::Navigation {
                        browser: browser::BrowserName::Firefox,
                        url: format!("http://127.0.1.{number}:9/"),
                        headers: vec![],
                        verify_tls: true,
                        timeout_ms: 100,
                        screenshot_bytes: 0,
                    })
                };
                let refused = |answer: &Result<browser::Page, browser::BrowserError>| matches!(answer, Err(browser::BrowserError::Unavailable(why)) if why.contains("at most"));
                return outcome(&json!({"loaded": (0..n).map(load).take_while(|answer| !refused(answer)).count()}));
            }
            "lookups" => {
                let refused = |answer: &Result<Vec<String>, net::NetError>| matches!(answer, Err(net::NetError::Unavailable(why)) if why.contains("at most"));
                let names = (0..n).map(|_| resolver::lookup("localhost", net::Family::Ipv4));
                return outcome(&json!({"asked": names.take_while(|answer| !refused(answer)).count()}));
            }
            "reverse" => {
                let addresses: Vec<String> = (0..n).map(|_| "127.0.0.1".to_owned()).collect();
                let started = monotonic_clock::now();
                let named: usize = (0..3).map(|_| resolver::reverse(&addresses).iter().flatten().count()).sum();
                return outcome(&json!({"named": named, "ms": (monotonic_clock::now() - started) / 1_000_000}));
            }
            "compute" => {
                let mut x = 1_u64;
                (0..n as u64 * 1_000_000)
                    .for_each(|step| x = black_box(x.wrapping_mul(6_364_136_223_846_793_005) ^ step));
                black_box(x);
            }
            "leave" => {
                LEFT.store(n as u64, Ordering::Relaxed);
                #[expect(unsafe_code, reason = "within the allocation")]
                new_memory(n).for_each(|word| unsafe { word.write_volatile(u64::MAX) });
            }
            "find" => {
                #[expect(unsafe_code, reason = "what is there without having been written is the question")]
                let found = new_memory(n).filter(|word| unsafe { word.read_volatile() } == u64::MAX).count();
                return outcome(&json!({"found": found, "left": LEFT.load(Ordering::Relaxed)}));
            }
            "large partials" => {
                for round in 0..5 {
                    report::progress(&json!({"round": round, "x": vec![json!({"a": 0}); n]}).to_string());
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
            }
            "say" => return outcome(&json!({"said": options["say"], "rows": [{"said": options["say"]}]})),
            "flood" => {
                let trace = udp_trace(to, 500);
                let traces: Vec<_> = (0..8).map(|_| hops::Trace::start(&trace)).collect();
                let echoes: Vec<_> = (0..20).map(|_| icmp::Echoes::start(&parameters(to, 250))).collect();
                for trace in traces.iter().flatten() {
                    while !trace.next().complete {}
                }
                black_box(&echoes);
            }
            "hang" => {
                if let Ok(echoes) =
                    icmp::Echoes::start(&icmp::EchoParameters { timeout_ms: 60_000, ..parameters(to, 1) })
                {
                    while !echoes.next().complete {}
                }
            }
            "recurse" => {
                black_box(recurse(0, black_box(u64::MAX), &|| 0));
            }
            "panic" => {
                let nothing: Option<u8> = black_box(None);
                #[expect(clippy::unwrap_used, reason = "the panic is the attack")]
                black_box(nothing.unwrap());
            }
            "not UTF-8" => {
                #[expect(unsafe_code, reason = "the invalid text is the attack")]
                let result = unsafe { String::from_utf8_unchecked(vec![b'{', 0xff, 0xfe, b'}']) };
                return Outcome { failed: false, message: None, result };
            }
            "not JSON" => return Outcome { failed: false, message: None, result: "{".into() },
            "NaN" => return Outcome { failed: false, message: None, result: r#"{"x": NaN}"#.into() },
            "not an object" => return Outcome { failed: false, message: None, result: "[1]".into() },
            "against the schema" => return outcome(&json!({"known": "text"})),
            "deep" => {
                let result = format!("{{\"x\": {}{}}}", "[".repeat(n), "]".repeat(n));
                return Outcome { failed: false, message: None, result };
            }
            "look around" => {
                return outcome(&json!({
                    "environment": std::env::vars().count(),
                    "arguments": std::env::args().count(),
                    "files": std::fs::read_dir("/").map_or(0, Iterator::count),
                    "passwd": std::fs::read("/etc/passwd").is_ok(),
                    "tcp": TcpStream::connect(to).is_ok(),
                    "udp": UdpSocket::bind("0.0.0.0:0").is_ok(),
                    "names": std::net::ToSocketAddrs::to_socket_addrs("localhost:80").is_ok(),
                }));
            }
            other => {
                return Outcome {
                    failed: true,
                    message: Some(format!("unknown attack '{other}'")),
                    result: "{}".into(),
                };
            }
        }
        outcome(&json!({}))
    }
}

scouter_sdk::bindings::export!(Hostile with_types_in scouter_sdk::bindings);
