//! Routes without a secret: counters, and the OpenAPI document.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::server::{SECRET, Server};
use crate::support::until;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("operator":
        metrics_count_events_and_identify_no_client,
        a_server_that_stops_is_alive_and_not_ready,
        the_openapi_document_describes_what_is_loaded,
        schemathesis_finds_nothing,
    )
}

fn metrics_count_events_and_identify_no_client() {
    let server = Server::start(&[("SCOUTER_TARGETS_ALLOW", "127.0.0.0/8")]);
    let metrics = || {
        let answer = server.raw("GET", "/metrics", &[], None);
        assert_eq!(answer.status, 200, "no secret is needed");
        answer.body.as_str().expect("text").to_owned()
    };
    let value = |name: &str| -> Option<f64> {
        metrics().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    let results = server
        .run(&json!({"ping": [{"dst": "127.0.0.1", "count": 1}, {"dst": "127.0.0.1", "count": 1}, {"dst": "10.1.2.3"},
        {"dst": "secret-name.invalid"}, {"nonsense": 1}], "no_such_type": [{}]}));
    assert_eq!(results["ping"][4]["plugin"], results["ping"][0]["plugin"], "a refused option: {results}");
    assert_eq!(
        (&results["ping"][4]["plugin"]["name"], &results["no_such_type"][0]["plugin"]),
        (&json!("ping"), &Value::Null)
    );
    server.raw("GET", "/api/v1.0/status", &[("authorization", "a-wrong-secret")], None);
    server.raw("BREW", "/secret-place", &[], None);
    until("the cache has counted", || value("scouter_receipts_finished") == Some(1.0));
    for (name, expected) in [
        ("scouter_tests_total{type=\"ping\",outcome=\"ok\"}", 2.0),
        ("scouter_tests_total{type=\"ping\",outcome=\"failed\"}", 2.0),
        ("scouter_tests_total{type=\"ping\",outcome=\"refused\"}", 1.0),
        ("scouter_tests_total{type=\"unknown\",outcome=\"refused\"}", 1.0),
        ("scouter_test_duration_seconds_count{type=\"ping\"}", 4.0),
        ("scouter_policy_refusals_total", 1.0),
        ("scouter_sandboxes_total", 4.0),
        ("scouter_http_requests_total{method=\"POST\",route=\"/api/v1.0/tests\",status=\"200\"}", 1.0),
        ("scouter_http_requests_total{method=\"GET\",route=\"/api/v1.0/status\",status=\"403\"}", 1.0),
        ("scouter_http_requests_total{method=\"other\",route=\"none\",status=\"404\"}", 1.0),
        ("scouter_receipts_finished", 1.0),
        ("scouter_tests_running", 0.0),
        ("scouter_browsers{driver=\"chrome\",state=\"idle\"}", 0.0),
    ] {
        assert_eq!(value(name), Some(expected), "{name}\n{}", metrics());
    }
    let text = metrics();
    for secret in ["127.0.0.1", "10.1.2.3", "secret", "BREW", "no_such_type"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

/// Every `$ref` of a document.
fn references(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(entries) => {
            let own = entries.get("$ref").and_then(Value::as_str);
            own.into_iter().chain(entries.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => vec![],
    }
}

fn a_server_that_stops_is_alive_and_not_ready() {
    let mut server = Server::hostile(&[]);
    let status = |path: &str| server.raw("GET", path, &[], None).status;
    assert_eq!((status("/healthz"), status("/readyz")), (200, 200), "no secret is needed");
    server.request("POST", "/api/v1.0/tests", Some(r#"{"hostile": [{"do": "sleep", "n": 4000}]}"#));
    server.signal(nix::sys::signal::Signal::SIGTERM);
    until("it is not ready", || status("/readyz") == 503);
    assert_eq!(status("/healthz"), 200);
    let answer = server.raw("GET", "/readyz", &[], None);
    assert_eq!(
        (&answer.body, &answer.headers["retry-after"]),
        (&json!({"error": "The server is shutting down."}), &"10".parse().expect("a value"))
    );
    let mut health = crate::support::server::command();
    health.arg("health").env("SCOUTER_LISTEN", "127.0.0.1").env("API_PORT", server.address.port().to_string());
    assert!(health.status().expect("runs").success(), "a container that finishes its tests is not restarted");
    assert_eq!(server.wait(), Some(0));
}

/// Without a secret: too many connections. With one: that it is wrong, and the rates.
fn every_operation_has_the_errors_of_its_kind(document: &Value) {
    assert_eq!(document["security"], json!([{"secret": []}, {"bearer": []}]));
    let paths = document["paths"].as_object().expect("paths").iter().filter(|(path, _)| *path != "/healthz");
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().expect("operations") {
            let open = operation["security"].is_array();
            assert_eq!(open, !path.starts_with("/api/v1.0/") || path.ends_with("openapi.json"), "{method} {path}");
            for status in if open { &["503"][..] } else { &["403", "429", "503"] } {
                let response = &operation["responses"][*status];
                let schema = &response["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Error", "{method} {path} {status}: {response}");
                assert_eq!(
                    response["headers"]["Retry-After"].is_object(),
                    *status != "403",
                    "{method} {path} {status}"
                );
            }
        }
    }
}

fn the_openapi_document_describes_what_is_loaded() {
    let server = Server::start(&[]);
    for path in ["/openapi.json", "/api/v1.0/openapi.json"] {
        let answer = server.raw("GET", path, &[], None);
        assert_eq!(answer.status, 200, "no secret is needed");
        let document = answer.body;
        assert_eq!(document["openapi"], "3.1.0");
        let ping = &document["components"]["schemas"]["ping_options"];
        assert_eq!((&ping["required"], &ping["properties"]["count"]["default"]), (&json!(["dst"]), &json!(10)));
        for reference in references(&document) {
            let pointer = reference.strip_prefix('#').expect("inside the document");
            assert!(document.pointer(pointer).is_some(), "{reference} dangles");
        }
        for (schema, field) in [
            ("Test", "timing"),
            ("Receipt", "progress"),
            ("Status", "queue"),
            ("Plugins", "refused"),
            ("Event", "index"),
        ] {
            let schema = &document["components"]["schemas"][schema];
            assert!(schema["properties"][field].is_object(), "{field}: {schema}");
            assert!(schema["required"].as_array().is_some_and(|names| names.contains(&json!(field))), "{schema}");
        }
        let payload = document["components"]["schemas"]["Payload"]["properties"].as_object().expect("types");
        assert_eq!(payload.len(), 6);
        for route in [
            "/api/v1.0/tests",
            "/api/v1.0/tests/events",
            "/api/v1.0/status",
            "/api/v1.0/plugins",
            "/api/v1.0/openapi.json",
            "/openapi.json",
            "/docs",
            "/metrics",
            "/healthz",
            "/readyz",
        ] {
            assert!(document["paths"][route].is_object(), "{route}");
        }
        every_operation_has_the_errors_of_its_kind(&document);
    }
    let page = server.raw("GET", "/docs", &[], None);
    assert!(page.status == 200 && page.body.as_str().is_some_and(|html| html.contains("openapi.json")));
    assert!(page.headers["content-security-policy"].to_str().expect("text").contains("default-src 'none'"));
}

/// An independent tool makes up requests from the document, good ones and bad ones, and checks the answers against it.
fn schemathesis_finds_nothing() {
    // No target may be reached, and no browser is there: what is tested is the API.
    let settings = [
        ("SCOUTER_MAX_TEST_COUNT", "1000"),
        ("SCOUTER_TEST_TIMEOUT", "2"),
        ("SCOUTER_TARGETS_DENY", "any"),
        ("PATH", "/nonexistent"),
    ];
    let server = Server::start(&settings);
    let program = crate::support::root().join("target/lab-venv/bin/schemathesis");
    let mut command = std::process::Command::new(program);
    let url = server.url("/openapi.json");
    let secret = format!("Authorization: {SECRET}");
    command.args(["run", &url, "-H", &secret, "--phases", "examples,coverage,fuzzing", "--checks", "all"]);
    // A wrong option is not an error of the request but of its test, as the contract says.
    command.args(["--exclude-checks", "negative_data_rejection", "--max-examples", "30", "--seed", "1"]);
    command.args([
        "--request-timeout",
        "60",
        "--max-response-time",
        "60",
        "--exclude-path",
        "/api/v1.0/tests/events",
        "--no-color",
    ]);
    let output = command.current_dir(std::env::temp_dir()).output().expect("schemathesis is installed by `make test`");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.raw("GET", "/healthz", &[], None).status, 200);
}
