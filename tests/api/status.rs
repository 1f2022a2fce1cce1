//! `/status` and `/plugins`.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::server::Server;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("api::status":
        status_tells_how_the_server_is,
        plugins_tells_what_there_is,
    )
}

fn status_tells_how_the_server_is() {
    let server = Server::hostile(&[]);
    server.run(&json!({"hostile": [{"do": "panic"}]}));
    let status = server.get("/api/v1.0/status").body;
    let workers = status["worker_status"].as_array().expect("a list");
    assert_eq!(workers.len(), 10);
    for (index, worker) in workers.iter().enumerate() {
        for field in [
            "avg_rt",
            "delta_requests",
            "exceptions",
            "id",
            "last_spawn",
            "pid",
            "requests",
            "respawn_count",
            "rss",
            "running_time",
            "signals",
            "status",
            "tx",
            "vsz",
        ] {
            assert!(worker.get(field).is_some(), "{field}");
        }
        assert_eq!(worker["id"], json!(index + 1));
    }
    let sum = |field: &str| workers.iter().map(|worker| worker[field].as_u64().expect("a number")).sum::<u64>();
    assert_eq!((sum("requests"), sum("exceptions"), sum("respawn_count")), (1, 1, 1), "{status}");
    for field in
        ["total_requests", "version", "uptime_s", "queue", "receipts", "plugins", "asn_database", "browsers", "network"]
    {
        assert!(status.get(field).is_some(), "{field}");
    }
    assert!(status["total_requests"].as_u64().is_some_and(|n| n >= 2), "{status}");
}

fn plugins_tells_what_there_is() {
    let server = Server::start(&[]);
    let body = server.get("/api/v1.0/plugins").body;
    let names: Vec<_> =
        body["plugins"].as_array().expect("a list").iter().map(|p| p["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["browser_request", "dns_lookup", "dns_traceroute", "http_request", "ping", "traceroute"]);
    let ping = &body["plugins"][4];
    assert_eq!(ping["options"]["required"], json!(["dst"]));
    assert_eq!(ping["options"]["properties"]["count"]["default"], json!(10));
    let imports: Vec<_> = ping["imports"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .filter(|i| i.starts_with("scouter:"))
        .collect();
    assert!(
        imports.contains(&"scouter:probe/icmp@1.0.0")
            && !imports.iter().any(|i| i.contains("/http@") || i.contains("/dns@")),
        "{imports:?}"
    );
    assert!(ping["version"].is_string() && ping["summary"].is_string(), "{ping}");
}
