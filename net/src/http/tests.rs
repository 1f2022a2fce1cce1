//! Servers that misbehave, on loopback: the failure that each causes, and the delay of measurements beside them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::*;

fn get(address: SocketAddr) -> Request {
    Request {
        method: Method::GET,
        url: format!("http://{address}/").parse().expect("a URL"),
        version: Version::Http11,
        headers: HeaderMap::new(),
        body: None,
        resolve: None,
        family: FamilyFilter::Any,
        verify_tls: true,
        keep_body: 0,
        timeout: Duration::from_secs(20),
    }
}

/// What the engine does once it knows where to connect.
async fn ask(lag: &LagMonitor, address: SocketAddr) -> (Result<Response, StepError>, Timings) {
    let timeline = Arc::new(Timeline::start(lag.watch()));
    let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    timeline.connected(address);
    let stream = Metered::new(Metered::new(stream, timeline.meter()), Wire::new(&timeline));
    let response = h1(stream, &get(address), &timeline, address, None).await;
    (response, timeline.timings())
}

/// A server that reads the head of each request and then does this.
fn server(behave: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let behave = behave.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                behave(stream);
            });
        }
    });
    address
}

/// A server that writes this, and then that for as long as it is read.
fn flood(first: &'static str, again: &str) -> SocketAddr {
    let again = again.repeat(10_000);
    server(move |mut stream| {
        let _ = stream.write_all(first.as_bytes());
        while stream.write_all(again.as_bytes()).is_ok() {}
    })
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn a_flood_ends_at_a_limit() {
    let lag = LagMonitor::open().expect("a timer");
    for (first, again, limit) in [
        ("", "HTTP/1.1 100 Continue\r\n\r\n", Exceeded::Interim),
        ("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", Exceeded::Interim),
        (CHUNKED, "1\r\nx\r\n", Exceeded::Pieces(limits::PIECES)),
    ] {
        let (response, _) = ask(&lag, flood(first, again)).await;
        let StepError(kind, reason) = response.expect_err("a flood");
        assert_eq!((kind, reason), (FailureKind::TooLarge, limit.to_string()));
    }
}

/// Four servers that flood beside one that does not, all on one thread.
#[test]
fn what_is_measured_beside_floods_is_right_or_marked() {
    let floods = [
        flood("", "HTTP/1.1 100 Continue\r\n\r\n"),
        flood(CHUNKED, "1\r\nx\r\n"),
        flood(CHUNKED, "1;extension\r\nx\r\n"),
        flood("HTTP/1.1 200 OK\r\n\r\n", "some text"),
    ];
    let good = server(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        let lag = Arc::new(LagMonitor::open().expect("a timer"));
        let flooded: Vec<_> = floods
            .into_iter()
            .map(|address| {
                let lag = Arc::clone(&lag);
                tokio::spawn(async move {
                    loop {
                        let _ = ask(&lag, address).await;
                    }
                })
            })
            .collect();
        let measured = tokio::spawn(async move {
            let mut waits = vec![];
            for _ in 0..50 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let start = Instant::now();
                let (response, timings) = ask(&lag, good).await;
                assert!(response.is_ok());
                waits.push((timings.wait.unwrap_or_default(), timings.host_delay, timings.degraded, start.elapsed()));
            }
            waits
        });
        let mut waits = measured.await.expect("measured");
        flooded.iter().for_each(tokio::task::JoinHandle::abort);
        waits.sort();
        // Where the kernel runs the good server's own thread late, the time is the server's, and nothing is said: on a busy
        // machine that happens to a few.
        let reported = waits.iter().filter(|(wait, _, degraded, _)| *wait < Duration::from_millis(5) || *degraded);
        assert!(reported.count() >= 40, "{waits:?}");
    });
}

#[tokio::test]
async fn interim_responses_before_the_final_one_are_passed_over() {
    let lag = LagMonitor::open().expect("a timer");
    let address = server(|mut stream| {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(limits::INTERIM);
        let _ = stream.write_all(hints.as_bytes());
        let _ = stream.write_all(b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\nok");
    });
    let (response, _) = ask(&lag, address).await;
    let response = response.map_err(|step| step.1).expect("a response");
    assert_eq!((response.status, response.reason.as_str(), response.body.transferred), (200, "Fine", 2));
}

/// Writes this and closes.
fn answers(text: String) -> SocketAddr {
    server(move |mut stream| {
        let _ = stream.write_all(text.as_bytes());
    })
}

#[tokio::test]
async fn every_way_to_fail_has_its_kind() {
    let lag = LagMonitor::open().expect("a timer");
    let silent = server(|_stream| std::thread::sleep(Duration::from_secs(30)));
    let resets = server(|stream| {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    let long = "y".repeat(100_000);
    let many = "X-Many: header\r\n".repeat(200);
    for (what, address, kind) in [
        ("closes after the request", answers(String::new()), FailureKind::EmptyReply),
        ("resets", resets, FailureKind::Receive),
        ("is silent", silent, FailureKind::Timeout),
        ("breaks off its head", answers("HTTP/1.1 200 OK\r\nX: y".into()), FailureKind::Receive),
        ("breaks off its body", answers("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".into()), FailureKind::Receive),
        ("breaks off its chunks", answers(format!("{CHUNKED}5\r\nx")), FailureKind::Receive),
        ("does not speak HTTP", answers("SSH-2.0-OpenSSH_9.2\r\n".into()), FailureKind::Receive),
        ("sends 200 headers", answers(format!("HTTP/1.1 200 OK\r\n{many}\r\n")), FailureKind::TooLarge),
        ("sends a header of 100 kB", answers(format!("HTTP/1.1 200 OK\r\nX: {long}\r\n\r\n")), FailureKind::TooLarge),
    ] {
        let asked = tokio::time::timeout(Duration::from_millis(500), ask(&lag, address)).await;
        let failed = asked.map_or(FailureKind::Timeout, |(response, _)| response.expect_err(what).0);
        assert_eq!(failed, kind, "{what}");
    }
}

/// What came must be known when the exchange failed: it counts against what a test may receive.
#[tokio::test]
async fn a_failure_says_how_much_came() {
    let system = Arc::<crate::system::System>::default();
    let policy = Policy::new(vec!["any".parse().expect("a rule")], vec![], Arc::clone(&system));
    let resolver = Resolver::new(system, policy.clone());
    let (tls, lag) = (Tls::open().expect("trust anchors"), LagMonitor::open().expect("a timer"));
    let stalls = server(|mut stream| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n";
        let _ = stream.write_all(&[&head[..], &vec![b'x'; 1_000_000]].concat());
        std::thread::sleep(Duration::from_secs(30));
    });
    let breaks_off = answers(format!("HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n{}", "x".repeat(1_000_000)));
    let floods = flood("HTTP/1.1 200 OK\r\n\r\n", "some text");
    let hints = flood("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    for (what, address, kind, least) in [
        ("stalls", stalls, FailureKind::Timeout, 1_000_000),
        ("breaks off", breaks_off, FailureKind::Receive, 1_000_000),
        ("floods", floods, FailureKind::TooLarge, limits::BODY_BYTES),
        ("sends interim responses", hints, FailureKind::TooLarge, 32 * 40),
    ] {
        let timeout = if kind == FailureKind::Timeout { Duration::from_millis(500) } else { Duration::from_mins(1) };
        let request = Request { timeout, ..get(address) };
        let failure = exchange(&resolver, &tls, &policy, &lag, request).await.expect_err(what);
        assert_eq!(failure.kind, kind, "{what}: {}", failure.reason);
        assert!((least..least + (1 << 20)).contains(&failure.received), "{what}: {}", failure.received);
    }
    let whole = answers(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(1000)));
    let response = exchange(&resolver, &tls, &policy, &lag, get(whole)).await.expect("a response");
    assert_eq!((response.body.transferred, response.received), (1000, 1000 + 41));
}

#[test]
fn failures_before_a_request_have_their_kind() {
    let address = SocketAddr::from(([192, 0, 2, 1], 80));
    let dial = |error: std::io::Error| StepError::from(DialError::Failed { address, error }).0;
    assert_eq!(dial(std::io::ErrorKind::ConnectionRefused.into()), FailureKind::Connect);
    assert_eq!(dial(std::io::Error::from_raw_os_error(nix::libc::EMFILE)), FailureKind::Unavailable);
    for (error, kind) in [
        (QuicError::Certificate("expired".into()), FailureKind::Certificate),
        (QuicError::Handshake("no".into()), FailureKind::Handshake),
        (QuicError::Connect("no".into()), FailureKind::Connect),
        (QuicError::Host(std::io::ErrorKind::AddrInUse.into()), FailureKind::Unavailable),
    ] {
        assert_eq!(StepError::from(error).0, kind);
    }
}
