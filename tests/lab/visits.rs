//! `browser_request`: pages that ask for credentials, open windows or never end are done all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::pages::{DRIVERS, ends_with, load, server};
use crate::support::lab::Lab;
use crate::support::site::{Reply, Site, response};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::visits", lab =>
        a_server_that_asks_for_credentials_has_answered,
        credentials_of_a_url_are_sent_to_its_server_only,
        windows_that_a_page_opens_never_keep_it_from_being_done,
        chrome_asks_two_hundred_servers_at_once,
    )
}

const BASIC: &str = "WWW-Authenticate: Basic realm=\"lab\"\r\nContent-Type: text/html\r\n";

/// Processors that have something else to do while it lives.
struct Load(Arc<AtomicBool>);

impl Load {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let over = Arc::clone(&over);
            std::thread::spawn(move || while !over.load(Ordering::Relaxed) {});
        }
        Self(over)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn a_server_that_asks_for_credentials_has_answered(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| match path {
        "/401" | "/401.png" | "/401.html" => response("401 Unauthorized", BASIC, "<p>who?"),
        "/407" | "/407.png" => response(
            "407 Proxy Authentication Required",
            "Proxy-Authenticate: Basic realm=\"lab\"\r\nContent-Type: text/html\r\n",
            "<p>who?",
        ),
        "/asked" => Reply::Html(
            "<img src=/401.png><img src=/407.png><iframe src=/401.html></iframe><script>fetch('/401')</script>".into(),
        ),
        _ => response("200 OK", "Content-Length: 0\r\n", ""),
    });
    for driver in DRIVERS {
        for round in 0..3 {
            for status in [401, 407] {
                let url = site.url(&format!("/{status}"));
                let test = load(&server, json!({"url": url, "driver": driver, "timeout_ms": 8000}));
                let (result, parent) = (&test["result"], &test["result"]["parent"]);
                assert_eq!(
                    (&test["message"], &parent["status"], &parent["failed"]),
                    (&Value::Null, &json!(status), &json!(false)),
                    "{driver} {round}: {test}"
                );
                // Chrome shows no page with status 407, and tells none of its headers.
                let shown = status == 401 || driver == "firefox";
                let header = if status == 401 { "www-authenticate" } else { "proxy-authenticate" };
                let asks = if shown { json!("Basic realm=\"lab\"") } else { Value::Null };
                assert_eq!(parent["headers"][header], asks, "{driver} {round}: {test}");
                assert_eq!(
                    (&test["failed"], &result["loaded"]),
                    (&json!(!shown), &json!(shown)),
                    "{driver} {round}: {test}"
                );
            }
            let test = load(&server, json!({"url": site.url("/asked"), "driver": driver, "timeout_ms": 8000}));
            assert_eq!((&test["failed"], &test["result"]["loaded"]), (&json!(false), &json!(true)), "{driver}: {test}");
            for (path, status) in [("/401.png", 401), ("/407.png", 407), ("/401.html", 401), ("/401", 401)] {
                let child = ends_with(&test["result"], path);
                assert_eq!(
                    (&child["status"], &child["failed"]),
                    (&json!(status), &json!(false)),
                    "{driver} {round}: {child}"
                );
            }
        }
    }
}

fn credentials_of_a_url_are_sent_to_its_server_only(lab: &Lab) {
    let server = server(lab, &[]);
    let other = Site::new(lab, |_| response("200 OK", "Content-Length: 0\r\n", ""));
    let picture = other.url("/other.png");
    let site = Site::new(lab, move |path| match path {
        "/" => Reply::Html(format!("<img src=/own.png><img src={picture}>")),
        _ => response("200 OK", "Content-Length: 0\r\n", ""),
    });
    for driver in DRIVERS {
        site.heads.lock().unwrap().clear();
        let url = site.url("/").replace("http://", "http://user:pass%20word@");
        let headers = json!({"X-Test": "one"});
        let test = load(&server, json!({"url": url, "driver": driver, "headers": headers, "timeout_ms": 8000}));
        assert_eq!((&test["failed"], &test["message"]), (&json!(false), &Value::Null), "{driver}: {test}");
        let heads = site.heads.lock().unwrap().clone();
        let head = heads.iter().find(|head| head.starts_with("GET / ")).expect("the document was asked for");
        assert!(head.to_lowercase().contains("x-test: one\r\n"), "{driver}: {head}");
        if driver == "chrome" {
            assert!(head.contains("Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n"), "{driver}: {head}");
        }
    }
    let heads = other.heads.lock().unwrap().clone();
    assert_eq!(heads.len(), 2, "{heads:?}");
    assert!(!heads.iter().any(|head| head.to_lowercase().contains("authorization")), "{heads:?}");
}

fn windows_that_a_page_opens_never_keep_it_from_being_done(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| {
        match path {
        "/opens" => Reply::Html(
            "<script>open('/popped'); open('/popped-alone', '_blank', 'noopener'); open('/silent', '_blank', 'noopener');
             for (let i = 0; i < 5; i++) open('/popped' + i, '_blank', i % 2 ? 'noopener' : '')</script>
             <a id=a href=/clicked target=_blank rel=noopener>x</a><script>a.click()</script>"
                .into(),
        ),
        "/silent" => Reply::Silence,
        _ => Reply::Html("<p>a window<script>open('/popped-again', '_blank', 'noopener')</script>".into()),
    }
    });
    let _busy = Load::start();
    for driver in DRIVERS {
        let loads: Vec<Value> = (0..10)
            .map(|_| load(&server, json!({"url": site.url("/opens"), "driver": driver, "timeout_ms": 15_000})))
            .collect();
        let failed: Vec<&Value> = loads.iter().filter(|test| test["failed"] != json!(false)).collect();
        assert!(failed.is_empty(), "{driver}: {} of {} failed: {}", failed.len(), loads.len(), failed[0]);
        for test in &loads {
            assert_eq!((&test["result"]["parent"]["status"], &test["result"]["loaded"]), (&json!(200), &json!(true)));
        }
    }
}

/// A browser has at most six connections to one server, and Chrome at most so many through one proxy.
fn chrome_asks_two_hundred_servers_at_once(lab: &Lab) {
    const SITES: usize = 34;
    const EACH: usize = 6;
    let server = server(lab, &[]);
    let held = Arc::new(AtomicUsize::new(0));
    // No picture comes before all are asked for.
    let sites: Vec<Site> = (0..SITES)
        .map(|_| {
            let held = Arc::clone(&held);
            Site::new(lab, move |_| {
                held.fetch_add(1, Ordering::Relaxed);
                let end = Instant::now() + Duration::from_secs(30);
                while held.load(Ordering::Relaxed) < SITES * EACH && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(20));
                }
                response("200 OK", "Content-Length: 0\r\n", "")
            })
        })
        .collect();
    let pictures: String = (0..EACH)
        .flat_map(|n| sites.iter().map(move |site| format!("<img src={}>", site.url(&format!("/{n}")))))
        .collect();
    let page = Site::new(lab, move |path| match path {
        "/" => Reply::Html(pictures.clone()),
        _ => response("200 OK", "Content-Length: 0\r\n", ""),
    });
    let test = load(&server, json!({"url": page.url("/"), "driver": "chrome", "timeout_ms": 25_000}));
    assert_eq!(held.load(Ordering::Relaxed), SITES * EACH, "asked for at once: {test}");
    assert_eq!((&test["failed"], &test["result"]["loaded"]), (&json!(false), &json!(true)), "{test}");
}
