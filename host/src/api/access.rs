//! A line of log for each request, and the name by which client and operator can talk about it.

use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::metrics::known_method;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_ID: usize = 64;

/// The caller's own id when it is harmless, else a new one.
fn id_of(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let harmless = |id: &&str| {
        (1..=LONGEST_ID).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    given.filter(harmless).map_or_else(|| hex::encode(rand::random::<[u8; 8]>()), ToOwned::to_owned)
}

/// Neither queries nor paths that are no route of ours are written down: receipts and whatever strangers send stay out
/// of the log. Everything that is logged meanwhile carries the request's id.
pub async fn log(request: Request, next: Next) -> Response {
    let id = id_of(&request);
    let started = Instant::now();
    let method = known_method(request.method().as_str());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
    let span = tracing::info_span!("request", id);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    let ms = (started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
    let from = from.map(tracing::field::display);
    span.in_scope(|| {
        if matches!(route.as_str(), "/healthz" | "/metrics") {
            tracing::debug!(target: "access", method, route, status, ms, from, "request");
        } else {
            tracing::info!(target: "access", method, route, status, ms, from, "request");
        }
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
