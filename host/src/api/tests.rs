//! `/tests`: post a payload, get a receipt; get results; delete.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;

use super::{Api, ApiError};
use crate::plan::Plan;
use crate::plan::payload::{Payload, PayloadError};
use crate::receipts::Receipt;

/// A body must have arrived after this.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait of one request: well below what proxies allow an answer to take.
const MAX_WAIT_S: f64 = 300.0;

pub fn routes() -> Router<Arc<Api>> {
    Router::new().route("/tests", post(submit).get(results).delete(delete))
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

pub(super) fn receipt_of(api: &Api, query: Option<&str>) -> Result<Arc<Receipt>, ApiError> {
    let id = receipt_id(query)?;
    api.receipts.get(&id).ok_or(ApiError::UnknownReceipt)
}

fn receipt_id(query: Option<&str>) -> Result<String, ApiError> {
    match parameter(query, "receipt") {
        None => Err(ApiError::NoReceipt),
        Some(id) if id.is_empty() => Err(ApiError::EmptyReceipt),
        Some(id) => Ok(id),
    }
}

fn body_of(receipt: &Receipt) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], receipt.body()).into_response()
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

async fn read(body: Body, max: usize) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, max).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge { max }),
        // The connection is gone: nobody reads what is answered.
        Ok(Err(_)) => Err(PayloadError::NotAnObject.into()),
        Err(_) => Err(ApiError::BodyTooSlow { seconds: BODY_TIMEOUT.as_secs() }),
    }
}

async fn submit(
    State(api): State<Arc<Api>>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, ApiError> {
    if api.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::ShuttingDown);
    }
    let wait = wait_of(query.as_deref())?;
    check_media_type(request.headers())?;
    let body = read(request.into_body(), api.max_body).await?;
    let payload = Payload::parse(&body, api.max_tests)?;
    // Once more: a body may take its time, and the server may have begun to stop meanwhile.
    if api.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::ShuttingDown);
    }
    let receipt = api.runner.submit(Plan::new(payload, &api.plugins), &api.receipts)?;
    let mut response = match wait {
        Some(wait) => {
            receipt.wait(wait).await;
            body_of(&receipt)
        }
        None => axum::Json(json!({ "receipt": receipt.id })).into_response(),
    };
    if let Ok(location) = format!("/api/v1.0/tests?receipt={}", receipt.id).parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}

async fn results(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let wait = wait_of(query.as_deref())?;
    let receipt = receipt_of(&api, query.as_deref())?;
    if let Some(wait) = wait {
        receipt.wait(wait).await;
    }
    Ok(body_of(&receipt))
}

async fn delete(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    if api.receipts.delete(&receipt_id(query.as_deref())?) {
        let message = "Provided 'receipt' has been successfully deleted.";
        Ok(axum::Json(json!({ "message": message })).into_response())
    } else {
        Err(ApiError::UnknownReceipt)
    }
}
