//! `browser_request`: what is reported of a page, in both browsers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::browser::tree;
use super::number;
use crate::support::lab::Lab;
use crate::support::server::Server;
use crate::support::site::{Reply, Site, response};
use crate::trials;

pub fn trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("lab::pages", lab =>
        a_page_with_one_of_everything_over_both_versions_of_http,
        every_failure_has_its_code,
        headers_reach_every_request_and_cannot_break_it,
        pages_that_get_in_the_way_are_loaded,
        extras_come_when_they_are_asked_for,
        a_waterfall_is_printed,
    )
}

pub const DRIVERS: [&str; 2] = ["chrome", "firefox"];

/// A server with proxy ports of its own: the tests share a network.
pub fn server(lab: &Lab, settings: &[(&str, &str)]) -> Server {
    let ports = ports();
    let own: Vec<_> = [("SCOUTER_BROWSER_PORTS", ports.as_str())].iter().chain(settings).copied().collect();
    lab.server(&own)
}

pub fn ports() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let first = NEXT.fetch_add(5, Ordering::Relaxed);
    format!("{first}-{}", first + 4)
}

pub fn load(server: &Server, options: Value) -> Value {
    let test = server.test("browser_request", &options);
    assert!(test["result"].is_object(), "{test}");
    test
}

pub fn ends_with<'a>(result: &'a Value, path: &str) -> &'a Value {
    let all = result["child"].as_array().expect("children").iter();
    all.clone().find(|e| e["url"].as_str().is_some_and(|url| url.ends_with(path))).unwrap_or_else(|| {
        panic!("no {path} in {:?}", all.map(|e| e["url"].clone()).collect::<Vec<_>>());
    })
}

fn a_page_with_one_of_everything_over_both_versions_of_http(lab: &Lab) {
    let server = server(lab, &[]);
    for driver in DRIVERS {
        for (scheme, version) in [("http", "http/1.1"), ("https", "h2")] {
            let url = format!("{scheme}://www.lab.test/page/start");
            let test = load(&server, json!({"url": url, "driver": driver, "ignore_ssl": true}));
            let result = &test["result"];
            assert_eq!((&test["message"], &test["failed"]), (&Value::Null, &json!(false)), "{test}");
            assert_eq!((&result["driver"], &result["loaded"]), (&json!(driver), &json!(true)), "{result}");
            let parent = &result["parent"];
            let page = format!("{scheme}://www.lab.test/page/index.html");
            let of = |field: &str| parent[field].clone();
            assert_eq!(
                (of("url"), of("status"), of("failed"), of("version"), of("method"), of("type")),
                (json!(page), json!(200), json!(false), json!(version), json!("GET"), json!("document")),
                "{parent}"
            );
            assert_eq!(of("reason"), json!(if version == "h2" { "" } else { "OK" }), "{parent}");
            assert_eq!(of("headers")["content-type"], json!("text/html"), "{parent}");
            // nginx reports in a header which of its addresses a request came to.
            for exchange in result["child"].as_array().expect("children").iter().chain([parent]) {
                let reached = exchange["headers"]["x-server-address"].as_str().expect("an address");
                assert_eq!(exchange["remote_ip"], json!(reached), "{exchange}");
            }
            let redirects = result["redirects"].as_array().expect("redirects");
            let seen: Vec<_> =
                redirects.iter().map(|e| (e["status"].clone(), e["headers"]["location"].clone())).collect();
            let next = format!("{scheme}://www.lab.test/page/next");
            assert_eq!(seen, [(json!(302), json!(next)), (json!(301), json!(page))], "{result}");
            // The first request opened the connection; what it cost is the proxy's measurement.
            assert!(
                number(&redirects[0]["time_namelookup"]) > 0.0 && number(&redirects[0]["time_connect"]) > 0.0,
                "{result}"
            );
            assert_eq!(number(&redirects[0]["time_appconnect"]) > 0.0, scheme == "https", "{result}");
            for (path, status, kind) in [
                ("style.css", 200, "style"),
                ("script.js", 200, "script"),
                ("picture.svg", 200, "image"),
                ("missing.svg", 404, "image"),
                ("frame.html", 200, "iframe"),
                ("data.json", 200, ""),
            ] {
                let child = ends_with(result, path);
                assert_eq!(
                    (&child["status"], &child["failed"], &child["version"]),
                    (&json!(status), &json!(false), &json!(version)),
                    "{child}"
                );
                assert!(kind.is_empty() || child["type"] == json!(kind), "{child}");
                assert!(number(&child["time_total"]) > 0.0 && number(&child["time_total"]) < 5000.0, "{child}");
                assert!(number(&child["time_starttransfer"]) <= number(&child["time_total"]), "{child}");
                assert!(child["remote_ip"].is_string() && number(&child["started_ms"]) > 0.0, "{child}");
                if status == 200 && version == "http/1.1" {
                    let (_, file) = crate::support::site::PAGE.iter().find(|(name, _)| *name == path).expect("a file");
                    assert_eq!(child["size"]["body"], json!(file.len()), "{child}");
                }
            }
            let vitals = &result["vitals"];
            for name in ["ttfb", "fcp", "dom_content_loaded", "load"] {
                assert!((1.0..10_000.0).contains(&number(&vitals[name])), "{name}: {vitals}");
            }
            assert_eq!(vitals["cls"].is_null(), driver == "firefox", "{vitals}");
            let said: Vec<_> =
                result["console"].as_array().expect("messages").iter().map(|m| m["text"].as_str()).collect();
            assert!(said.contains(&Some("from the page")), "{result}");
        }
    }
    let log = std::fs::read_to_string(lab.path("pages.log")).expect("nginx wrote it");
    assert!(log.contains("HTTP/2.0 /page/index.html") && log.contains("HTTP/1.1 /page/index.html"), "{log}");
}

fn every_failure_has_its_code(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| {
        match path {
            "/reset" => Reply::Reset,
            "/empty" => Reply::Raw(vec![]),
            "/short" => response("200 OK", "Content-Type: text/html\r\nContent-Length: 1000\r\n", "<p>short"),
            "/silent" => Reply::Silence,
            "/flood" => Reply::Flood,
            // The load event waits for the last one: on a slow machine the fetch alone would be left open.
            "/fetches" => Reply::Html(
                "<script>fetch('/flood').then(r => r.arrayBuffer())</script><img src=/flood><script src=/flood></script>"
                    .into(),
            ),
            "/storm" => Reply::Html(
                // What is never answered keeps the page from being quiet on a machine that is busy with other things.
                "<img src=/silent><script>for (let i = 0; i < 2500; i++) fetch('/x' + i).catch(() => {});</script>"
                    .into(),
            ),
            "/late" => Reply::Html("<p>one <img src=/silent>".into()),
            "/sees" => Reply::Html(
                "<img src=http://10.77.0.8:9999/a.png><img src=http://nothing.lab.test/b.png><img src=/reset>".into(),
            ),
            _ => response("404 Not Found", "Content-Length: 0\r\n", ""),
        }
    });
    for driver in DRIVERS {
        let parent = |url: String, timeout_ms: u32| {
            let test = load(&server, json!({"url": url, "driver": driver, "timeout_ms": timeout_ms}));
            assert_eq!(test["failed"], json!(true), "{test}");
            (test["result"]["parent"]["status"].clone(), test["message"].as_str().unwrap_or_default().to_owned(), test)
        };
        for (url, code, words) in [
            ("http://nothing.lab.test/".to_owned(), 6, "Unable to resolve"),
            ("http://10.77.0.8:9999/".into(), 7, "Connection refused"),
            ("http://127.0.0.1/".into(), 7, "is not allowed"),
            ("http://169.254.169.254/latest/".into(), 7, "is not allowed"),
            ("http://www.lab.test/metadata".into(), 7, "is not allowed"),
            ("https://self.lab.test/".into(), 60, "CERT"),
            ("https://10.77.0.2:80/".into(), 35, "SSL"),
            (site.url("/reset"), 56, "RESET"),
        ] {
            let (status, message, test) = parent(url.clone(), 10_000);
            assert_eq!(status, json!(code), "{driver} {url}: {test}");
            let start = format!("Provided webpage of '{url}' failed to load due to the following reason: ");
            assert!(message.starts_with(&start) && message.contains(words), "{driver} {url}: {message}");
        }
        // Firefox does not distinguish an end without an answer from a reset.
        let (status, _, test) = parent(site.url("/empty"), 10_000);
        assert_eq!(status, json!(if driver == "chrome" { 52 } else { 56 }), "{test}");
        let (status, message, test) = parent(site.url("/short"), 10_000);
        assert_eq!((status, message.as_str()), (json!(18), ""), "{driver}: {test}");
        let (status, message, test) = parent(site.url("/silent"), 1500);
        assert_eq!(status, json!(28), "{driver}: {test}");
        assert!(message.contains("did not load within 1500 ms") || message.contains("time was up"), "{test}");
        let took = number(&test["timing"]["duration_ms"]);
        assert!(took < 12_000.0, "{driver}: {took} ms");
        // The document came, one of its pictures never does.
        let (status, message, test) = parent(site.url("/late"), 1500);
        assert_eq!((status, message.as_str()), (json!(200), ""), "{driver}: {test}");
        let silent = ends_with(&test["result"], "/silent");
        assert_eq!((&silent["status"], &silent["failed"]), (&json!(28), &json!(true)), "{driver}: {test}");
        assert!(
            test["result"]["comment"].as_str().is_some_and(|c| c.contains("did not load within 1500 ms")),
            "{test}"
        );
        let sees = load(&server, json!({"url": site.url("/sees"), "driver": driver, "timeout_ms": 10_000}));
        assert_eq!(sees["failed"], json!(false), "the page itself is there: {sees}");
        for (path, code) in [("/a.png", 7), ("/b.png", 6), ("/reset", 56)] {
            let child = ends_with(&sees["result"], path);
            assert_eq!((&child["status"], &child["failed"]), (&json!(code), &json!(true)), "{driver}: {child}");
        }
        // Stopped at its limit, long before a minute.
        let flood = load(&server, json!({"url": site.url("/fetches"), "driver": driver, "timeout_ms": 60_000}));
        let comment = flood["result"]["comment"].as_str().unwrap_or_default();
        assert!(comment.contains("more than 64 MiB"), "{driver}: {flood}");
        assert_eq!(flood["failed"], json!(true));
        let storm = load(&server, json!({"url": site.url("/storm"), "driver": driver, "timeout_ms": 60_000}));
        let comment = storm["result"]["comment"].as_str().unwrap_or_default();
        assert!(comment.contains("more than 2000 requests"), "{driver}: {storm}");
        let shown = storm["result"]["child"].as_array().map_or(0, Vec::len);
        assert!(shown <= 300 && number(&storm["result"]["left_out"]) > 1000.0, "{driver}: {shown} shown");
    }
    let status =
        |options: Value| server.test("browser_request", &options)["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        status(json!({"url": "www.lab.test", "driver": "opera"})),
        "Provided driver of 'opera' is not supported."
    );
    assert!(status(json!({})).starts_with("Required test option of 'url' was not given."));
    for url in ["file:///etc/passwd", "chrome://version", "javascript://x", "http://"] {
        assert!(status(json!({"url": url})).starts_with("Provided request is not allowed: "), "{url}");
    }
    for bad in [json!(99), json!(60_001), json!(true)] {
        assert!(status(json!({"url": "x", "timeout_ms": bad})).contains("timeout_ms"), "{bad}");
    }
}

fn headers_reach_every_request_and_cannot_break_it(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| {
        match path {
        "/" => response("302 Found", "Location: /page\r\nContent-Length: 0\r\n", ""),
        "/page" => Reply::Html("<link rel=stylesheet href=/style><iframe src=/frame></iframe><script>fetch('/fetched')</script><img src=/picture>".into()),
        _ => response("200 OK", "Content-Length: 0\r\nContent-Type: text/css\r\n", ""),
    }
    });
    for driver in DRIVERS {
        site.heads.lock().unwrap().clear();
        let headers = json!({"X-Test": "one, two", "Authorization": "Bearer token", "X-Number": 7});
        let test = load(&server, json!({"url": site.url("/"), "driver": driver, "headers": headers}));
        assert_eq!(test["failed"], json!(false), "{test}");
        let heads = site.heads.lock().unwrap().clone();
        for path in ["/", "/page", "/style", "/frame", "/fetched", "/picture"] {
            let head = heads
                .iter()
                .find(|head| head.split(' ').nth(1) == Some(path))
                .unwrap_or_else(|| panic!("{driver}: no {path}: {heads:?}"));
            let lower = head.to_lowercase();
            for line in ["x-test: one, two\r\n", "authorization: bearer token\r\n", "x-number: 7\r\n"] {
                assert!(lower.contains(line), "{driver} {path}: {head}");
            }
            assert!(lower.contains(&format!("host: 10.77.0.8:{}\r\n", site.port)), "{head}");
        }
        for headers in [
            json!({"Host": "other"}),
            json!({"Content-Length": "3"}),
            json!({"transfer-encoding": "chunked"}),
            json!({"X": "a\r\nInjected: yes"}),
            json!({"X": "a\nb"}),
            json!({"X\r\nY": "a"}),
            json!({"": "a"}),
            json!({"X Y": "a"}),
        ] {
            let test =
                server.test("browser_request", &json!({"url": site.url("/"), "driver": driver, "headers": headers}));
            let message = test["message"].as_str().expect("a message");
            assert!(message.starts_with("Provided request is not allowed: "), "{headers}: {message}");
        }
    }
    assert!(!site.heads.lock().unwrap().iter().any(|head| head.to_lowercase().contains("injected")));
}

fn pages_that_get_in_the_way_are_loaded(lab: &Lab) {
    let server = server(lab, &[]);
    let site = Site::new(lab, |path| match path {
        "/alert" => Reply::Html("<script>alert('stop'); confirm('really?'); prompt('what?')</script><p>after".into()),
        "/leave" => Reply::Html("<script>onbeforeunload = e => { e.preventDefault(); return 'stay'; }</script>".into()),
        "/popup" => Reply::Html("<script>for (let i = 0; i < 5; i++) open('/popped' + i)</script>".into()),
        "/download" => response(
            "200 OK",
            "Content-Type: application/zip\r\nContent-Disposition: attachment\r\nContent-Length: 3\r\n",
            "PK!",
        ),
        "/offers" => Reply::Html("<iframe src=/download></iframe><p>the page".into()),
        "/moves" => Reply::Html("<script>location = '/moved'</script>".into()),
        "/throws" => Reply::Html("<script>throw new Error('from the page')</script>".into()),
        _ => Reply::Html("<p>here".into()),
    });
    // In the folders of the browsers.
    let files = || -> Vec<String> {
        let homes: Vec<String> = tree(&server).into_iter().filter_map(|(_, line)| home_of(&line)).collect();
        assert!(!homes.is_empty(), "browsers are running");
        let find = [
            homes,
            ["-name", "*download*", "-o", "-name", "*.zip", "-o", "-name", "*.crdownload"].map(Into::into).into(),
        ];
        let output = std::process::Command::new("find").args(find.concat()).output().expect("find runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter(|file| std::path::Path::new(file).is_file() && file.contains("/Downloads/"))
            .map(Into::into)
            .collect()
    };
    for driver in DRIVERS {
        let loaded = |path: &str| load(&server, json!({"url": site.url(path), "driver": driver, "timeout_ms": 8000}));
        for path in ["/alert", "/leave", "/popup", "/offers", "/throws", "/plain"] {
            let test = loaded(path);
            assert_eq!(
                (&test["failed"], &test["result"]["parent"]["status"]),
                (&json!(false), &json!(200)),
                "{driver} {path}: {test}"
            );
        }
        let moved = loaded("/moves");
        assert_eq!(moved["result"]["parent"]["url"], json!(site.url("/moved")), "{driver}: {moved}");
        assert_eq!(moved["result"]["redirects"][0]["url"], json!(site.url("/moves")), "{driver}: {moved}");
        let thrown = loaded("/throws");
        let said = thrown["result"]["console"].to_string();
        assert!(said.contains("from the page") && said.contains("error"), "{driver}: {thrown}");
        let file = loaded("/download");
        assert_eq!(file["result"]["loaded"], json!(false), "{driver}: {file}");
    }
    assert_eq!(files(), Vec::<String>::new(), "nothing is downloaded");
}

/// The folder of a supervisor, from its command line.
fn home_of(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(" supervise ")?;
    rest.split_whitespace().next().map(Into::into)
}

fn extras_come_when_they_are_asked_for(lab: &Lab) {
    let server = server(lab, &[]);
    for driver in DRIVERS {
        let plain = load(&server, json!({"url": "http://www.lab.test/page/index.html", "driver": driver}));
        assert_eq!((&plain["result"]["screenshot"], &plain["result"]["har"]), (&Value::Null, &Value::Null), "{plain}");
        let test = load(
            &server,
            json!({"url": "http://www.lab.test/page/index.html?a=1&b=2", "driver": driver, "screenshot": "png", "har": true}),
        );
        let result = &test["result"];
        let picture = result["screenshot"].as_str().expect("a picture");
        // The PNG signature, and the size in its first chunk.
        assert!(picture.starts_with("iVBORw0KGgo"), "{driver}");
        let output = lab.probe.output(
            "sh",
            &["-c", &format!("printf %s '{}' | base64 -d | head -c 24 | od -An -tu1 | tail -1", &picture[..32])],
        );
        assert_eq!(
            output.split_whitespace().collect::<Vec<_>>(),
            ["0", "0", "5", "0", "0", "0", "2", "208"],
            "1280 by 720"
        );
        let har = &result["har"];
        valid(har);
        assert_eq!(
            har["log"]["entries"].as_array().map(Vec::len),
            result["sizes"]["requests"].as_u64().map(|n| usize::try_from(n).expect("few"))
        );
        let first = &har["log"]["entries"][0];
        assert_eq!(
            first["request"]["queryString"],
            json!([{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]),
            "{first}"
        );
        let sum: f64 = first["timings"]
            .as_object()
            .expect("timings")
            .iter()
            .filter(|(name, _)| *name != "ssl")
            .map(|(_, t)| number(t).max(0.0))
            .sum();
        assert!((sum - number(&first["time"])).abs() < 0.01, "{first}");
    }
}

/// Against the parts of HAR 1.2 that it says are required.
fn valid(har: &Value) {
    let schema: Value = serde_json::from_str(include_str!("../support/har.schema.json")).expect("a schema");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(har).map(|e| format!("{} at {}", e, e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

fn a_waterfall_is_printed(lab: &Lab) {
    let mut command = lab.probe.command(crate::support::scouter());
    command.env("SCOUTER_PLUGIN_DIR", crate::support::plugins()).env("SCOUTER_LOG", "error").args([
        "run",
        "browser_request",
        "url=http://www.lab.test/page/index.html",
        "--table",
        "--targets-allow",
        "10.77.0.0/24,fd77::/64",
        "--browser-ports",
        &ports(),
    ]);
    let output = command.output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let row = text.lines().find(|line| line.contains("style.css")).expect("a row");
    assert!(row.contains("200") && row.contains('█'), "{text}");
    assert!(text.trim_end().ends_with("ok"), "{text}");
}
