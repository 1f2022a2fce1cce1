//! `/metrics`: counters for Prometheus. Needs no secret, and shows neither targets nor secrets.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::error::Unavailable;
use crate::metrics::Now;

pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default().routes(routes!(metrics))
}

/// Counters for Prometheus
#[utoipa::path(get, path = "/metrics", security(()), responses(
    (status = 200, description = "Text exposition format.", body = String, content_type = "application/openmetrics-text"),
    Unavailable,
))]
async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let slots = api.runner.slots();
    let (receipts_running, receipts_finished, receipt_bytes) = api.receipts.counts();
    let now = Now {
        waiting: api.runner.queue().held().tests,
        busy: slots.iter().filter(|slot| slot.busy).count(),
        slots: slots.len(),
        sandboxes: slots.iter().map(|slot| slot.sandboxes).sum(),
        receipts_running,
        receipts_finished,
        receipt_bytes,
        icmp_dropped: api.services.net.ping.dropped(),
        refusals: api.services.policy.refusals(),
        browsers: api.services.net.browsers.status().iter().map(|browser| (browser.driver, browser.state)).collect(),
        asn_database: api.services.net.asn.status().0.is_some(),
        uptime: api.started.elapsed(),
    };
    match api.services.metrics.text(&now) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
