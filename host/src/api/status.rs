//! `/status`: how the server is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use scouter_net::browser;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Refused;
use super::{Api, Network};
use crate::slots::Slot;

pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default().routes(routes!(status))
}

/// How the server is.
#[derive(Serialize, ToSchema)]
#[schema(as = Status)]
struct Body {
    total_requests: u64,
    worker_status: Vec<Worker>,
    version: &'static str,
    uptime_s: u64,
    queue: Queue,
    receipts: Kept,
    plugins: Vec<String>,
    /// When it was built (RFC 3339).
    #[schema(required)]
    asn_database: Option<String>,
    /// Why there is none, or why a newer one was not taken.
    #[schema(required)]
    asn_database_problem: Option<String>,
    /// Those that are running.
    #[schema(value_type = Vec<Object>)]
    browsers: Vec<browser::Status>,
    network: Network,
}

/// An execution slot, in the words of the first version, which ran on uWSGI.
#[derive(Serialize, ToSchema)]
struct Worker {
    /// Microseconds.
    avg_rt: u64,
    delta_requests: u64,
    exceptions: u64,
    id: usize,
    /// Unix time.
    last_spawn: u64,
    pid: u32,
    requests: u64,
    respawn_count: u64,
    rss: u64,
    /// Microseconds.
    running_time: u64,
    signals: u64,
    status: &'static str,
    /// Bytes of results.
    tx: u64,
    vsz: u64,
}

#[derive(Serialize, ToSchema)]
struct Queue {
    waiting: usize,
    max: usize,
    /// Of options and ids.
    bytes: usize,
    max_bytes: usize,
}

#[derive(Serialize, ToSchema)]
struct Kept {
    running: usize,
    finished: u64,
    /// What the finished ones count towards the budget.
    bytes: u64,
}

impl Worker {
    fn new(index: usize, slot: &Slot) -> Self {
        let running_time = u64::try_from(slot.running.as_micros()).unwrap_or(u64::MAX);
        Self {
            avg_rt: running_time.checked_div(slot.requests).unwrap_or(0),
            delta_requests: slot.requests,
            exceptions: slot.exceptions,
            id: index + 1,
            last_spawn: slot.last_spawn,
            pid: std::process::id(),
            requests: slot.requests,
            respawn_count: slot.sandboxes,
            // As uWSGI reports them without its memory report: unknown.
            rss: 0,
            running_time,
            signals: 0,
            status: if slot.busy { "busy" } else { "idle" },
            tx: slot.bytes,
            vsz: 0,
        }
    }
}

/// How the server is
#[utoipa::path(get, path = "/status", responses(
    (status = 200, description = "Counts, slots, modes.", body = Body),
    Refused,
))]
async fn status(State(api): State<Arc<Api>>) -> Json<Body> {
    let (held, limits) = (api.runner.queue().held(), api.runner.queue().limits());
    let (asn_database, asn_database_problem) = api.services.net.asn.status();
    let (running, finished, bytes) = api.receipts.counts();
    Json(Body {
        total_requests: api.requests.total(),
        worker_status: api.runner.slots().iter().enumerate().map(|(index, slot)| Worker::new(index, slot)).collect(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: api.started.elapsed().as_secs(),
        queue: Queue { waiting: held.tests, max: limits.tests, bytes: held.bytes, max_bytes: limits.bytes },
        receipts: Kept { running, finished, bytes },
        plugins: api.plugins.iter().map(|plugin| plugin.name.clone()).collect(),
        asn_database,
        asn_database_problem,
        browsers: api.services.net.browsers.status(),
        network: Network { nameservers: Network::nameservers(&api.services.net), ..api.network.clone() },
    })
}
