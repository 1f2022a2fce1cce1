//! `/healthz`: the process is alive (liveness); `/readyz`: it takes new tests (readiness). Two questions, because a server
//! that is shutting down should get no new work, and should not be restarted either.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::routing::get;

use super::{Api, ApiError};

pub fn routes() -> Router<Arc<Api>> {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready))
}

async fn ready(State(api): State<Arc<Api>>) -> Result<&'static str, ApiError> {
    if api.stopping.load(Ordering::Relaxed) { Err(ApiError::ShuttingDown) } else { Ok("ready\n") }
}
