//! `/tests`: post a payload, get a receipt; get results; delete.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, HttpBody as _};
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{NoPlan, NoReceipt};
use super::{Api, ApiError, body};
use crate::model;
use crate::plan::Plan;
use crate::plan::payload::{Payload, PayloadError};
use crate::receipts::Reader;

/// A body must have arrived after this.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A body that has not been checked after this is answered 503.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// A check on the thread that answers takes less than a millisecond: bytes of the body, and steps.
const SMALL_BODY: usize = 8 << 10;
const QUICK_STEPS: usize = 100_000;
/// Bodies checked concurrently.
const CHECKS: usize = 2;
/// Bytes of all bodies in memory; at least one of the largest that is allowed.
const BODIES_BYTES: usize = 64 << 20;
/// The longest wait of one request: well below what proxies allow an answer to take.
const MAX_WAIT_S: f64 = 300.0;

pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default().routes(routes!(submit, results, delete))
}

/// The value of a parameter, as it is after decoding; the last one when it is given twice.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(|(key, _)| key == name).last().map(|(_, value)| value.into_owned())
}

fn wait_of(query: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let Some(value) = parameter(query, "wait") else { return Ok(None) };
    // `?wait` alone means: as long as it takes.
    let seconds = if value.is_empty() { Some(MAX_WAIT_S) } else { value.parse::<f64>().ok() };
    match seconds {
        Some(seconds) if (0.0..=MAX_WAIT_S).contains(&seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        _ => Err(ApiError::Parameter { name: "wait", value, expected: "seconds from 0 to 300" }),
    }
}

pub(super) fn receipt_of(api: &Api, query: Option<&str>) -> Result<Reader, ApiError> {
    let id = receipt_id(query)?;
    api.receipts.get(&id).map(Reader::new).ok_or(ApiError::UnknownReceipt)
}

fn receipt_id(query: Option<&str>) -> Result<String, ApiError> {
    match parameter(query, "receipt") {
        None => Err(ApiError::NoReceipt),
        Some(id) if id.is_empty() => Err(ApiError::EmptyReceipt),
        Some(id) => Ok(id),
    }
}

/// JSON by its media type; no type at all is taken as JSON, as the first version did.
fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let given = String::from_utf8_lossy(given.as_bytes());
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(ApiError::MediaType(essence.chars().take(100).collect()))
}

/// What all requests together may cost while their bodies are read and checked.
pub struct Costs {
    /// Bytes of bodies in memory.
    bodies: Arc<Semaphore>,
    /// Bodies being checked.
    checks: Arc<Semaphore>,
    /// Large partial results being read.
    pub(super) partials: Arc<Semaphore>,
}

impl Costs {
    #[must_use]
    pub fn new(max_body: usize) -> Self {
        let bodies = BODIES_BYTES.max(max_body).min(Semaphore::MAX_PERMITS);
        Self {
            bodies: Arc::new(Semaphore::new(bodies)),
            checks: Arc::new(Semaphore::new(CHECKS)),
            partials: Arc::new(Semaphore::new(1)),
        }
    }
}

/// A body, and its share of the memory for bodies.
struct Received {
    bytes: Vec<u8>,
    share: OwnedSemaphorePermit,
}

/// Not tower-http's limits: their errors are plain text, and the contract's are JSON; its time is one between frames, so
/// that a client may take as long as it likes.
async fn read(costs: &Costs, max: usize, body: Body) -> Result<Received, ApiError> {
    // All permits of the body in one step, without waiting: bodies that each hold a part and wait for the rest would
    // wait for each other.
    let most =
        body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok()).map_or(max, |bytes| bytes.min(max));
    let permits = u32::try_from(most).unwrap_or(u32::MAX);
    let mut share = Arc::clone(&costs.bodies).try_acquire_many_owned(permits).map_err(|_| ApiError::Busy)?;
    let reading = async {
        let mut bytes = vec![];
        let mut body = std::pin::pin!(Limited::new(body, max));
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) if error.is::<LengthLimitError>() => return Err(ApiError::BodyTooLarge { max }),
                // The connection is gone: the answer is not read.
                Err(_) => return Err(PayloadError::NotAnObject.into()),
            };
            if let Ok(data) = frame.into_data() {
                bytes.extend_from_slice(&data);
            }
        }
        // The rest is of no use any more.
        drop(share.split(share.num_permits().saturating_sub(bytes.len())));
        Ok(Received { bytes, share })
    };
    let timed_out = |_| ApiError::BodyTooSlow { seconds: BODY_TIMEOUT.as_secs() };
    tokio::time::timeout(BODY_TIMEOUT, reading).await.map_err(timed_out)?
}

/// Parses and checks a body away from the threads that answer, a few at a time: that takes up to some ten milliseconds,
/// and a multiple of the body's memory. A small one takes some tens of microseconds, here.
async fn plan(api: &Arc<Api>, body: Received) -> Result<Plan, ApiError> {
    // A JSON value takes two bytes.
    let is_quick = |steps: usize| (body.bytes.len() / 2).saturating_mul(steps) <= QUICK_STEPS;
    if body.bytes.len() <= SMALL_BODY && api.plugins.steps_of_value().is_some_and(is_quick) {
        return Ok(Plan::new(Payload::parse(&body.bytes, api.max_tests)?, &api.plugins));
    }
    let for_check = Arc::clone(api);
    let check = move |permit| {
        let Received { bytes, share } = body;
        let payload = Payload::parse(&bytes, for_check.max_tests);
        drop((bytes, share));
        let plan = payload.map(|payload| Plan::new(payload, &for_check.plugins));
        drop(permit);
        plan
    };
    Ok(in_turn(&api.costs, |permit| api.services.compute(move || check(permit))).await??)
}

/// A check in its turn: it holds the permit until it ends, whether or not it is still waited for.
async fn in_turn<T, C>(
    costs: &Costs,
    check: impl FnOnce(Result<OwnedSemaphorePermit, AcquireError>) -> C,
) -> Result<T, ApiError>
where
    C: Future<Output = Result<T, JoinError>>,
{
    let checking = async { check(Arc::clone(&costs.checks).acquire_owned().await).await };
    match tokio::time::timeout(CHECK_TIMEOUT, checking).await {
        Ok(Ok(checked)) => Ok(checked),
        Ok(Err(error)) => {
            tracing::error!(%error, "a payload could not be checked");
            Err(ApiError::Busy)
        }
        Err(_) => Err(ApiError::Busy),
    }
}

/// Start tests
#[utoipa::path(post, path = "/tests",
    params(("wait" = Option<f64>, Query, description = "Seconds to wait for the results, at most.",
            minimum = 0, maximum = 300)),
    request_body(content = model::Payload, content_type = "application/json"),
    responses(
        (status = 200, description = "The receipt; the results so far when `wait` is given.",
         body = inline(model::Accepted), headers(("Location" = String, description = "Where the results are."))),
        NoPlan,
    ))]
async fn submit(
    State(api): State<Arc<Api>>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, ApiError> {
    if api.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::ShuttingDown);
    }
    if api.receipts.is_full() {
        return Err(ApiError::Unread);
    }
    let wait = wait_of(query.as_deref())?;
    check_media_type(request.headers())?;
    let body = read(&api.costs, api.max_body, request.into_body()).await?;
    let plan = plan(&api, body).await?;
    // Once more: a body may take its time, and the server may have begun to stop meanwhile.
    if api.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::ShuttingDown);
    }
    let receipt = api.runner.submit(plan, &api.receipts)?;
    let mut response = match wait {
        Some(wait) => {
            let reader = Reader::new(Arc::clone(&receipt));
            receipt.wait(wait).await;
            body::receipt(reader)
        }
        None => Json(model::Submitted { receipt: &receipt.id }).into_response(),
    };
    if let Ok(location) = format!("/api/v1.0/tests?receipt={}", receipt.id).parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}

/// Fetch results
#[utoipa::path(get, path = "/tests",
    params(
        ("receipt" = String, Query, description = "Of the tests.", pattern = "^[0-9a-f]{32}$"),
        ("wait" = Option<f64>, Query, description = "Seconds to wait for the results, at most.",
         minimum = 0, maximum = 300),
    ),
    responses((status = 200, description = "The results so far.", body = model::Receipt), NoReceipt))]
async fn results(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let wait = wait_of(query.as_deref())?;
    let reader = receipt_of(&api, query.as_deref())?;
    if let Some(wait) = wait {
        reader.receipt().wait(wait).await;
    }
    Ok(body::receipt(reader))
}

/// Cancel tests and delete the receipt
#[utoipa::path(delete, path = "/tests", operation_id = "forget",
    params(("receipt" = String, Query, description = "Of the tests.", pattern = "^[0-9a-f]{32}$")),
    responses(
        (status = 200, description = "It is deleted, and its running tests are cancelled.", body = model::Message),
        NoReceipt,
    ))]
async fn delete(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    if api.receipts.delete(&receipt_id(query.as_deref())?) {
        let message = "Provided 'receipt' has been successfully deleted.";
        Ok(Json(model::Message { message }).into_response())
    } else {
        Err(ApiError::UnknownReceipt)
    }
}

#[cfg(test)]
mod bodies {
    use std::convert::Infallible;

    use futures_util::stream::{self, StreamExt as _};

    use super::*;

    fn costs(bytes: usize) -> Costs {
        Costs {
            bodies: Arc::new(Semaphore::new(bytes)),
            checks: Arc::new(Semaphore::new(CHECKS)),
            partials: Arc::new(Semaphore::new(1)),
        }
    }

    /// Of no known length.
    fn chunked(text: &'static str) -> Body {
        Body::from_stream(stream::iter([Ok::<_, Infallible>(text)]))
    }

    #[tokio::test]
    async fn bodies_that_arrive_at_once_never_wait_for_each_other() {
        let costs = costs(100);
        let endless = stream::iter([Ok::<_, Infallible>("x")]).chain(stream::pending());
        let mut slow = Box::pin(read(&costs, 60, Body::from_stream(endless)));
        assert!(futures_util::poll!(&mut slow).is_pending());
        assert!(matches!(read(&costs, 60, chunked("{}")).await, Err(ApiError::Busy)));
        // With a length, it takes no more than that.
        let short = read(&costs, 60, Body::from("{}")).await.expect("fits");
        assert_eq!((short.bytes.len(), costs.bodies.available_permits()), (2, 38));
        drop((slow, short));
        let received = read(&costs, 60, chunked("{}")).await.expect("fits");
        assert_eq!((received.share.num_permits(), costs.bodies.available_permits()), (2, 98));
    }

    #[tokio::test]
    async fn the_largest_body_fits() {
        assert_eq!(Costs::new(100 << 20).bodies.available_permits(), 100 << 20);
        let costs = costs(10);
        assert!(read(&costs, 10, Body::from("x".repeat(10))).await.is_ok());
        assert!(matches!(read(&costs, 10, Body::from("x".repeat(11))).await, Err(ApiError::BodyTooLarge { max: 10 })));
        assert_eq!(costs.bodies.available_permits(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_takes_too_long_or_panics_is_answered_busy() {
        let costs = costs(10);
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = Arc::new(std::sync::Mutex::new(ended));
        let check = |wait: bool| {
            let ended = Arc::clone(&ended);
            in_turn(&costs, move |permit| {
                tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    if wait {
                        let _ = ended.lock().expect("not poisoned").recv();
                    }
                })
            })
        };
        let mut slow: Vec<_> = (0..=CHECKS).map(|_| Box::pin(check(true))).collect();
        for check in &mut slow {
            assert!(futures_util::poll!(check).is_pending());
        }
        assert_eq!(costs.checks.available_permits(), 0, "the last one waits for its turn");
        tokio::time::advance(CHECK_TIMEOUT + Duration::from_millis(10)).await;
        for check in slow {
            assert!(matches!(check.await, Err(ApiError::Busy)));
        }
        // No client waits for these checks any more, and they still take a processor each.
        assert_eq!(costs.checks.available_permits(), 0);
        drop(end);
        assert!(check(false).await.is_ok());
        let panics = in_turn(&costs, |_| tokio::task::spawn_blocking(|| panic!("a mistake of the check")));
        assert!(matches!(panics.await, Err::<(), _>(ApiError::Busy)));
    }
}
