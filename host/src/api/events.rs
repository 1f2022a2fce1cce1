//! `/tests/events`: events of a receipt, as server-sent events (WHATWG HTML, section 9.2).
//!
//! Not axum's `Sse`: its events hold a copy of their data, so that a result of 1 MB sent to a thousand watchers would take
//! 1 GB. These events consist of buffers that all watchers share.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::NoReceipt;
use super::tests::receipt_of;
use super::{Api, ApiError, SharedBody};
use crate::receipts::{Event, Reader, Unread};

/// Interval of comment lines: proxies close silent connections.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// So many small partial results are parsed on the thread that answers; more, or larger ones, elsewhere.
const QUICK: usize = 8;
/// Pause between two batches of events: a plugin may report faster than any client reads.
const PAUSE: Duration = Duration::from_millis(50);

pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default().routes(routes!(events))
}

struct Watch {
    api: Arc<Api>,
    reader: Reader,
    sent: u64,
    paused: bool,
}

/// Watch tests
#[utoipa::path(get, path = "/tests/events",
    params(
        ("receipt" = String, Query, description = "Of the tests.", pattern = "^[0-9a-f]{32}$"),
        ("Last-Event-ID" = Option<String>, Header, description = "Continue after this event."),
    ),
    responses(
        (status = 200, body = String, content_type = "text/event-stream",
         description = "Server-sent events: `partial` (a test's result so far), `test` (a finished test), `done` (the whole \
                        body). A client that subscribes late first gets the newest event of each test."),
        NoReceipt,
    ))]
async fn events(
    State(api): State<Arc<Api>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let reader = receipt_of(&api, query.as_deref())?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let sent = reader.receipt().resume(last.and_then(|last| last.trim().parse().ok()).unwrap_or(0));
    let watch = Watch { api, reader, sent, paused: false };
    let parts = stream::unfold(Some(watch), |watch| async { next(watch?).await }).flat_map(stream::iter);
    let body = Body::from_stream(parts.map(Ok::<_, std::convert::Infallible>));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx holds answers back otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Extension(SharedBody::of(0)), body).into_response())
}

/// The next pieces of the response body, and the state after them.
async fn next(mut watch: Watch) -> Option<(Vec<Bytes>, Option<Watch>)> {
    if watch.paused {
        tokio::time::sleep(PAUSE).await;
    }
    if watch.reader.is_abandoned() {
        return None;
    }
    let unread = watch.reader.take_unread();
    if unread.len() <= QUICK && unread.iter().all(Unread::is_small) {
        unread.into_iter().for_each(Unread::publish);
    } else {
        // Others wait for it too: it is parsed whether or not this client stays.
        tokio::spawn(publish(Arc::clone(&watch.api), unread));
    }
    let since = watch.reader.receipt().since(watch.sent);
    watch.sent = since.up_to;
    watch.paused = !since.events.is_empty();
    if watch.paused {
        let pieces = since.events.into_iter().flat_map(pieces).collect();
        return Some((pieces, (!since.done).then_some(watch)));
    }
    match tokio::time::timeout(KEEP_ALIVE, watch.reader.receipt().changed_since(watch.sent)).await {
        Ok(true) => Some((vec![], Some(watch))),
        // Deleted or expired.
        Ok(false) => None,
        Err(_) => Some((vec![Bytes::from_static(b": still here\n\n")], Some(watch))),
    }
}

/// Large partial results, in their turn.
async fn publish(api: Arc<Api>, unread: Vec<Unread>) {
    let turn = Arc::clone(&api.costs.partials).acquire_owned().await;
    let publish = move || {
        unread.into_iter().for_each(Unread::publish);
        drop(turn);
    };
    if let Err(error) = api.services.compute(publish).await {
        tracing::error!(%error, "partial results could not be parsed");
    }
}

fn pieces(event: Event) -> Vec<Bytes> {
    let head = format!("id: {}\nevent: {}\ndata: ", event.number, event.kind);
    let mut pieces = vec![Bytes::from(head)];
    pieces.extend(event.data);
    pieces.push(Bytes::from_static(b"\n\n"));
    pieces
}
