//! Pages that attack, and neighbours that do (threat 53): what is closed is not reached, and nothing leaves past the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::number;
use super::pages::{DRIVERS, load, ports, server};
use super::policy::{count_connections, rebinding};
use crate::support::lab::{Lab, Namespace, sh};
use crate::support::server::Server;
use crate::support::site::{Reply, Site, response};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::attacks", lab =>
        a_page_that_attacks_reaches_nothing_that_is_closed,
        a_rebinding_name_is_looked_up_once,
        no_other_process_is_served_by_the_proxy_of_a_page,
        what_a_page_says_costs_the_server_little,
    )
}

/// A namespace of a test's own, on a link to the lab's target: no other packets are in it.
fn watched(lab: &Lab) -> Namespace {
    let namespace = Namespace::add(format!("scouter-{}-w", std::process::id()));
    let (own, target) = (namespace.name(), lab.target.name());
    sh(&format!(
        "ip -n {target} link add w0 type veth peer name veth0 netns {own}
         ip -n {own} addr add 10.90.0.1/24 dev veth0; ip -n {target} addr add 10.90.0.2/24 dev w0
         ip -n {own} addr add fd90::1/64 dev veth0 nodad; ip -n {target} addr add fd90::2/64 dev w0 nodad
         ip -n {own} link set veth0 up; ip -n {target} link set w0 up
         ip -n {own} route add default via 10.90.0.2; ip -n {own} -6 route add default via fd90::2
         mkdir -p /etc/netns/{own}; printf 'nameserver 10.77.0.2\\noptions timeout:2 attempts:1\\n' > /etc/netns/{own}/resolv.conf"
    ));
    namespace
}

/// A packet that was sent in the watched namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    /// The first of a TCP connection.
    opens: bool,
    /// The name that a DNS question is about.
    asks: Option<String>,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

impl Packet {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let version = bytes.first()? >> 4;
        let (from, to, protocol, payload) = match version {
            4 => {
                let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
                (address(12)?, address(16)?, bytes[9], bytes.get(usize::from(bytes[0] & 15) * 4..)?)
            }
            6 => {
                let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
                (address(8)?, address(24)?, bytes[6], bytes.get(40..)?)
            }
            _ => return None,
        };
        let port = |at: usize| payload.get(at..at + 2).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
        let ports = if matches!(protocol, TCP | UDP) { (port(0), port(2)) } else { (0, 0) };
        let opens = protocol == TCP && payload.get(13).is_some_and(|flags| flags & 0x12 == 0x02);
        let asks = (protocol == UDP && ports.1 == 53).then(|| question(payload.get(20..).unwrap_or_default()));
        Some(Self { from, to, protocol, ports, opens, asks })
    }

    fn is_neighbour_discovery(&self) -> bool {
        self.protocol == ICMPV6 || self.protocol == 0
    }
}

fn question(mut bytes: &[u8]) -> String {
    let mut labels = vec![];
    while let [length @ 1..=63, rest @ ..] = bytes {
        let (label, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        bytes = rest;
    }
    labels.join(".")
}

/// Every packet of a namespace, on all of its links, until this ends.
struct Capture {
    over: Arc<AtomicBool>,
    reader: std::thread::JoinHandle<Vec<Packet>>,
}

impl Capture {
    fn start(namespace: &Namespace) -> Self {
        // ETH_P_ALL, in network order: outgoing packets too.
        let protocol = Protocol::from(i32::from(3_u16.to_be()));
        let socket = namespace.inside(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).expect("a socket"));
        socket.set_recv_buffer_size(32 << 20).expect("set");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let reader = std::thread::spawn(move || {
            let (mut socket, mut buffer, mut packets) = (socket, vec![0; 1 << 16], vec![]);
            while !stop.load(Ordering::Relaxed) {
                if let Ok(length) = socket.read(&mut buffer) {
                    let own = |address: IpAddr| {
                        address.is_loopback() || address.to_string() == "10.90.0.1" || address.to_string() == "fd90::1"
                    };
                    packets.extend(Packet::parse(&buffer[..length]).filter(|packet| own(packet.from)));
                }
            }
            packets
        });
        Self { over, reader }
    }

    fn end(self) -> Vec<Packet> {
        self.over.store(true, Ordering::Relaxed);
        self.reader.join().expect("read")
    }
}

/// The page's own ways to places that are closed to it, and around the proxy to places that are not.
fn attack(port: u16, api: u16, udp: u16) -> String {
    let places = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://127.1:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        format!("http://10.90.0.1:{port}/"),
        format!("http://[fd90::1]:{port}/"),
        format!("http://loopback.lab.test:{port}/"),
        format!("http://anything.localhost:{port}/"),
        format!("http://127.0.0.1:{api}/api/v1.0/status"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "http://metadata.lab.test/latest/".into(),
        "file:///etc/passwd".into(),
        "chrome://version".into(),
        "about:config".into(),
        "view-source:file:///etc/passwd".into(),
    ];
    let list = serde_json::to_string(&places).expect("JSON");
    format!(
        r#"<!doctype html><link rel=dns-prefetch href=//prefetch-1.lab.test><meta http-equiv=x-dns-prefetch-control content=on>
<body><a href=https://prefetch-2.lab.test/>link</a><script type=speculationrules>
{{"prefetch": [{{"source": "list", "urls": ["/speculated", "http://prefetch-3.lab.test/"], "eagerness": "immediate"}}],
  "prerender": [{{"source": "list", "urls": ["/prerendered", "http://127.0.0.1:{port}/"], "eagerness": "immediate"}}]}}
</script><script>
const places = {list};
for (const place of places) {{
  fetch(place, {{mode: 'no-cors'}}).then(() => fetch('/reached?' + encodeURIComponent(place)), () => {{}});
  for (const kind of ['img', 'script', 'iframe', 'embed']) {{
    const element = document.createElement(kind);
    try {{ element.src = place; document.body.append(element); }} catch (error) {{}}
  }}
  try {{ new WebSocket(place.replace('http', 'ws')); }} catch (error) {{}}
  try {{ navigator.sendBeacon(place, 'x'); }} catch (error) {{}}
  try {{ open(place); }} catch (error) {{}}
  for (const rel of ['preconnect', 'dns-prefetch', 'prefetch', 'stylesheet']) {{
    const link = document.createElement('link');
    link.rel = rel; link.href = place; document.head.append(link);
  }}
}}
for (const server of ['stun:10.77.0.8:{udp}', 'stun:127.0.0.1:{udp}', 'stun:stun.lab.test:{udp}', 'turn:10.77.0.8:{udp}?transport=tcp']) {{
  try {{
    const peer = new RTCPeerConnection({{iceServers: [{{urls: server, username: 'a', credential: 'b'}}]}});
    peer.createDataChannel('x');
    peer.createOffer().then(offer => peer.setLocalDescription(offer));
  }} catch (error) {{}}
}}
for (const place of ['https://10.77.0.8:{udp}/', 'https://127.0.0.1:{udp}/', 'https://transport.lab.test:{udp}/']) {{
  for (const options of [{{}}, {{serverCertificateHashes: [{{algorithm: 'sha-256', value: new Uint8Array(32)}}]}}]) {{
    try {{ const transport = new WebTransport(place, options); transport.ready.catch(() => {{}}); transport.closed.catch(() => {{}}); }} catch (error) {{}}
  }}
}}
const file = document.createElement('a');
file.href = '/file'; file.download = 'file.zip'; document.body.append(file); file.click();
const frame = document.createElement('iframe');
frame.src = '/file'; document.body.append(frame);
</script><img src=/fine>"#
    )
}

fn a_page_that_attacks_reaches_nothing_that_is_closed(lab: &Lab) {
    let namespace = watched(lab);
    let (port, count) = count_connections(&namespace);
    let settings = [("SCOUTER_TARGETS_ALLOW", "10.77.0.0/24,fd77::/64")];
    let server = lab.server_in(&namespace, &settings);
    // STUN, to the target and to this host itself: neither may see a packet.
    let target = lab.target.inside(|| UdpSocket::bind("10.77.0.8:0").expect("bound"));
    let udp = target.local_addr().expect("an address").port();
    let own = namespace.inside(|| UdpSocket::bind(("127.0.0.1", udp)).expect("bound"));
    let html = attack(port, server.address.port(), udp);
    let site = Site::new(lab, move |path| match path {
        "/" => Reply::Html(html.clone()),
        "/file" => response(
            "200 OK",
            "Content-Type: application/zip\r\nContent-Disposition: attachment\r\nContent-Length: 3\r\n",
            "PK!",
        ),
        _ => response("200 OK", "Content-Length: 0\r\n", ""),
    });
    let before = number(&server.get("/api/v1.0/status").body["total_requests"]);
    let capture = Capture::start(&namespace);
    // Cold and warm.
    for driver in ["chrome", "chrome", "firefox", "firefox"] {
        let test = load(&server, json!({"url": site.url("/"), "driver": driver, "timeout_ms": 20_000}));
        assert_eq!(test["result"]["parent"]["status"], json!(200), "{driver}: {test}");
        let reached = site.paths().into_iter().filter(|path| path.starts_with("/reached")).collect::<Vec<_>>();
        assert!(reached.is_empty(), "{driver}: {reached:?}");
        assert!(site.paths().contains(&"/fine".to_owned()), "{driver}: what is open is reached");
        assert_eq!(count.load(Ordering::Relaxed), 0, "{driver}: connections to this host");
        for socket in [&target, &own] {
            socket.set_nonblocking(true).expect("set");
            assert!(socket.recv(&mut [0; 64]).is_err(), "{driver}: a packet past the proxy");
        }
    }
    let log = server.log();
    assert_only_proxied(&capture.end(), &log, site.port, port);
    let after = number(&server.get("/api/v1.0/status").body["total_requests"]);
    assert!((after - before - 5.0).abs() < 0.1, "the API got no request but ours: {before} {after}");
    assert!(log.lines().any(|line| is_record(line) && line.contains("127.0.0.1") && line.contains("Denied")));
    assert!(log.lines().any(|line| is_record(line) && line.contains("169.254.169.254") && line.contains("Denied")));
    let services: Vec<&str> = log.lines().filter(|line| line.contains("google") || line.contains("mozilla")).collect();
    assert!(services.is_empty(), "what browsers do on their own account gets no further: {services:?}");
    drop(server);
    namespace.delete();
}

fn is_record(line: &str) -> bool {
    line.contains("SOCKS connection ") && line.contains("cause=")
}

/// Every packet is one of the proxy's: of a connection that it has dialled, or a question for a name that it was given.
fn assert_only_proxied(packets: &[Packet], log: &str, site: u16, closed: u16) {
    let records: Vec<String> = log.lines().filter(|line| is_record(line)).map(str::to_lowercase).collect();
    let (inside, outside): (Vec<&Packet>, Vec<&Packet>) = packets.iter().partition(|packet| packet.to.is_loopback());
    let (mut connections, mut others) = (BTreeMap::<_, BTreeSet<u16>>::new(), vec![]);
    for packet in outside.into_iter().filter(|packet| !packet.is_neighbour_discovery()) {
        match &packet.asks {
            _ if packet.protocol == TCP => {
                connections
                    .entry((packet.to, packet.ports.1))
                    .or_default()
                    .extend(packet.opens.then_some(packet.ports.0));
            }
            Some(name) if records.iter().any(|line| line.contains(name.as_str())) => {}
            _ => others.push(packet),
        }
    }
    assert!(others.is_empty(), "packets past the proxy: {others:?}");
    for ((address, port), sources) in &connections {
        let dialled = |line: &&String| {
            line.contains(&format!("port={port} ")) && line.contains(&format!("address=some({address})"))
        };
        let dialled = records.iter().filter(dialled).count();
        assert_eq!(sources.len(), dialled, "connections to {address} port {port} on the wire, and by the proxy");
    }
    let to_site = connections.iter().find(|((_, port), _)| *port == site).map_or(0, |(_, sources)| sources.len());
    assert!(to_site > 8, "the pages did something: {connections:?}");
    let strays: Vec<_> = inside.iter().filter(|p| p.protocol == UDP || (p.opens && p.ports.1 == closed)).collect();
    assert!(strays.is_empty(), "packets to this host itself: {strays:?}");
}

fn a_rebinding_name_is_looked_up_once(lab: &Lab) {
    let (port, count) = count_connections(&lab.probe);
    let (server, asked) = rebinding(lab, "10.77.0.7", &[("SCOUTER_BROWSER_PORTS", &ports())]);
    let mut loaded = 0;
    for round in 0..20 {
        let driver = DRIVERS[round % 2];
        let url = format!("http://rebind.example:{}/page/index.html", if round % 4 < 2 { 80 } else { port });
        let test = server.test("browser_request", &json!({"url": url, "driver": driver, "timeout_ms": 5000}));
        loaded += usize::from(test["failed"] == json!(false));
        assert_eq!(count.load(Ordering::Relaxed), 0, "round {round}: {test}");
    }
    assert!(loaded > 0 && asked.load(Ordering::Relaxed) > 20, "{loaded} pages");
}

/// What a SOCKS5 client gets that asks for the site: the first bytes of the proxy's answers.
fn steal(port: u16, site: u16) -> Vec<u8> {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return vec![] };
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let request =
        [&[5, 1, 0, 5, 1, 0, 1, 10, 77, 0, 8][..], &site.to_be_bytes(), b"GET /stolen HTTP/1.1\r\n\r\n"].concat();
    // In steps, as a client that waits for each answer, and without waiting.
    let _ = stream.write_all(&request[..3]);
    let mut answer = [0; 2];
    let length = stream.read(&mut answer).unwrap_or(0);
    let _ = stream.write_all(&request[3..]);
    answer[..length].to_vec()
}

fn no_other_process_is_served_by_the_proxy_of_a_page(lab: &Lab) {
    let port: u16 = ports().split('-').next().and_then(|port| port.parse().ok()).expect("a port");
    let server = lab.server(&[("SCOUTER_BROWSER_PORTS", &format!("{port}-{port}"))]);
    for driver in DRIVERS {
        let go = Arc::new(AtomicBool::new(false));
        let held = Arc::clone(&go);
        let site = Site::new(lab, move |path| match path {
            // The second picture is asked for before the load event: the page cannot be done without it.
            "/" => Reply::Html("<body><img src=/held onerror=\"document.body.innerHTML = '<img src=/after>'\">".into()),
            "/held" => {
                while !held.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                response("200 OK", "Content-Length: 0\r\n", "")
            }
            _ => response("200 OK", "Content-Length: 0\r\n", ""),
        });
        let options = json!({"url": site.url("/"), "driver": driver, "timeout_ms": 30_000});
        let test = std::thread::scope(|scope| {
            let test = scope.spawn(|| server.test("browser_request", &options));
            crate::support::until("the page is being loaded", || site.paths().iter().any(|path| path == "/held"));
            for _ in 0..20 {
                let answer = lab.probe.inside(|| steal(port, site.port));
                assert_eq!(answer, Vec::<u8>::new(), "{driver}: the proxy serves another process");
            }
            go.store(true, Ordering::Relaxed);
            test.join().expect("answered")
        });
        assert_eq!((&test["failed"], &test["result"]["loaded"]), (&json!(false), &json!(true)), "{driver}: {test}");
        let paths = site.paths();
        assert!(paths.iter().any(|path| path == "/after"), "{driver}: its browser is still served: {paths:?}");
        assert!(!paths.iter().any(|path| path == "/stolen"), "{driver}: {paths:?}");
    }
    let refused =
        server.log().lines().filter(|line| line.contains("SOCKS connection of another process refused")).count();
    assert_eq!(refused, 40, "and the log says so");
}

/// The most that a process has had in memory since [`forget_peak`], in kB.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    peak.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

fn forget_peak(server: &Server) {
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").expect("cleared");
}

fn what_a_page_says_costs_the_server_little(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| {
        Reply::Html(match path {
            "/array" => "<script>console.log(new Array(1400000).fill(null))</script>".into(),
            "/many" => {
                "<script>for (let i = 0; i < 3000; i++) console.log(new Array(1000).fill({a: [i]}))</script>".into()
            }
            "/text" => "<script>console.log('x'.repeat(3e7)); throw new Error('x'.repeat(3e7))</script>".into(),
            "/url" => "<img id=i><script>i.src = 'data:image/svg+xml,' + 'x'.repeat(2e7)</script>".into(),
            _ => "<p>fine".to_owned(),
        })
    });
    for driver in DRIVERS {
        let three: Vec<Value> = (0..3).map(|_| json!({"url": site.url("/"), "driver": driver})).collect();
        server.run(&json!({"browser_request": three}));
        let (idle, _) = server.weight();
        for path in ["/array", "/many", "/text", "/url"] {
            forget_peak(&server);
            let options = json!({"url": site.url(path), "driver": driver, "timeout_ms": 30_000});
            let results = server.run(&json!({"browser_request": [options, options, options]}));
            for test in results["browser_request"].as_array().expect("results") {
                assert_eq!(test["result"]["parent"]["status"], json!(200), "{driver} {path}: {test}");
            }
            let most = peak(&server).saturating_sub(idle);
            assert!(most <= 64 << 10, "{driver} {path}: {most} kB over {idle} kB");
        }
    }
}
