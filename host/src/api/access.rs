//! The log line, the counters and the id of every request; clients and operators identify a request by its id.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::Response;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tracing::Instrument;

use super::Api;
use crate::metrics::known_method;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_ID: usize = 64;

pub fn layers(router: Router<Arc<Api>>, api: &Arc<Api>) -> Router<Arc<Api>> {
    router
        .layer(middleware::from_fn_with_state(Arc::clone(api), record))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, RandomId))
        .layer(middleware::map_request(drop_strange_id))
}

/// The client's own id stays when it is harmless in a log.
async fn drop_strange_id(mut request: Request) -> Request {
    let harmless = |id: &HeaderValue| {
        let id = id.as_bytes();
        (1..=LONGEST_ID).contains(&id.len())
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
    };
    if !request.headers().get(REQUEST_ID).is_some_and(harmless) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

#[derive(Clone)]
struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        let id = HeaderValue::from_str(&hex::encode(rand::random::<[u8; 8]>()));
        id.ok().map(RequestId::new)
    }
}

/// Neither queries nor paths outside the routes are logged or counted: receipts, and whatever strangers send, stay out.
/// Everything that is logged meanwhile carries the request's id.
async fn record(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known_method(request.method().as_str());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    let span = tracing::info_span!("request", id);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    api.services.metrics.request(method, &route, status);
    let ms = (started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
    let from = from.map(tracing::field::display);
    span.in_scope(|| {
        if matches!(route.as_str(), "/healthz" | "/readyz" | "/metrics") {
            tracing::debug!(target: "access", method, route, status, ms, from, "request");
        } else {
            tracing::info!(target: "access", method, route, status, ms, from, "request");
        }
    });
    response
}
