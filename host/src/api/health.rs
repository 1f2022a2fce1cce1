//! `/healthz`: the process is alive (liveness); `/readyz`: it takes new tests (readiness). Two questions, because a server
//! that is shutting down should get no new work, and should not be restarted either.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Api, ApiError};
use crate::model;

pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default().routes(routes!(alive)).routes(routes!(ready))
}

/// Does the server answer?
#[utoipa::path(get, path = "/healthz", operation_id = "health", security(()), responses(
    (status = 200, description = "It does.", body = String, content_type = "text/plain"),
))]
async fn alive() -> &'static str {
    "ok\n"
}

/// Does the server take tests?
#[utoipa::path(get, path = "/readyz", operation_id = "ready", security(()), responses(
    (status = 200, description = "It does.", body = String, content_type = "text/plain"),
    (status = 503, description = "The server is shutting down.", body = model::Error,
     headers(("Retry-After" = u64, description = "Seconds."))),
))]
async fn ready(State(api): State<Arc<Api>>) -> Result<&'static str, ApiError> {
    if api.stopping.load(Ordering::Relaxed) { Err(ApiError::ShuttingDown) } else { Ok("ready\n") }
}
