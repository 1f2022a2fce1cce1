//! The only HTTP error: JSON `{"error": …}` with the texts that clients may match; and which of its statuses a route may
//! answer, for the OpenAPI document.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, response};
use utoipa::{IntoResponses, ToSchema};

use crate::model;
use crate::plan::payload::PayloadError;
use crate::queue::QueueFull;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("Valid authorization not found. Pass the secret in the 'Authorization' header.")]
    Unauthorized,
    #[error("Too many requests with a wrong secret. Try again later.")]
    TooManyGuesses { retry_after_s: u64 },
    #[error("Too many requests with this secret. Try again later.")]
    TooManyRequests { retry_after_s: u64 },
    #[error("No such route. The API is under /api/v1.0: tests, status, plugins.")]
    NoSuchRoute,
    #[error("This route does not take this method.")]
    WrongMethod,
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error("The request body is over the limit of {max} bytes.")]
    BodyTooLarge { max: usize },
    #[error("The request body did not arrive within {seconds} s.")]
    BodyTooSlow { seconds: u64 },
    #[error("Provided media type of '{0}' is not supported. Use 'application/json'.")]
    MediaType(String),
    #[error("Provided value of '{value}' for parameter '{name}' is not allowed. Expected: {expected}.")]
    Parameter { name: &'static str, value: String, expected: &'static str },
    #[error("Required 'receipt' parameter not found.")]
    NoReceipt,
    #[error("Required 'receipt' parameter found with an empty value.")]
    EmptyReceipt,
    #[error("Provided 'receipt' not found.")]
    UnknownReceipt,
    #[error(transparent)]
    QueueFull(#[from] QueueFull),
    #[error("The server is too busy to check the request. Try again later.")]
    Busy,
    #[error("The server holds too many deleted results that clients are reading. Try again later.")]
    Unread,
    #[error("The server is shutting down.")]
    ShuttingDown,
    #[error("The server has too many connections. Try again later.")]
    Overloaded,
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::FORBIDDEN,
            Self::NoSuchRoute | Self::UnknownReceipt => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::Payload(_) | Self::Parameter { .. } | Self::NoReceipt | Self::EmptyReceipt => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::QueueFull(_) | Self::TooManyGuesses { .. } | Self::TooManyRequests { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::Busy | Self::Unread | Self::Overloaded | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Seconds after which it is worth trying again.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::QueueFull(_) | Self::Busy | Self::Unread | Self::Overloaded => Some(1),
            Self::ShuttingDown => Some(10),
            Self::TooManyGuesses { retry_after_s } | Self::TooManyRequests { retry_after_s } => Some(*retry_after_s),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(model::Error { error: self.to_string() })).into_response();
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Errors of every route but `/healthz`.
pub enum Unavailable {}

/// Errors of every route that needs the secret.
pub enum Refused {}

/// Errors of a route that takes a receipt.
pub enum NoReceipt {}

/// Errors of a route that takes a payload.
pub enum NoPlan {}

type Responses = BTreeMap<String, RefOr<response::Response>>;

const FORBIDDEN: (StatusCode, &str) = (StatusCode::FORBIDDEN, "The secret is missing or wrong.");
const TOO_MANY: (StatusCode, &str) =
    (StatusCode::TOO_MANY_REQUESTS, "Too many requests with this secret, or with a wrong one from this address.");
const UNAVAILABLE: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "The server has too many connections.");

impl IntoResponses for Unavailable {
    fn responses() -> Responses {
        described([UNAVAILABLE])
    }
}

impl IntoResponses for Refused {
    fn responses() -> Responses {
        described([FORBIDDEN, TOO_MANY, UNAVAILABLE])
    }
}

impl IntoResponses for NoReceipt {
    fn responses() -> Responses {
        described([
            (StatusCode::BAD_REQUEST, "A parameter is missing, or its value is not allowed."),
            FORBIDDEN,
            (StatusCode::NOT_FOUND, "The receipt is unknown or has expired."),
            TOO_MANY,
            UNAVAILABLE,
        ])
    }
}

impl IntoResponses for NoPlan {
    fn responses() -> Responses {
        described([
            (StatusCode::BAD_REQUEST, "The body or a parameter is not allowed; the text says why."),
            FORBIDDEN,
            (StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time."),
            (StatusCode::PAYLOAD_TOO_LARGE, "The body is too large."),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not JSON."),
            (
                StatusCode::TOO_MANY_REQUESTS,
                "The queue of waiting tests is full; or too many requests with this secret, or with a wrong one from this \
                 address.",
            ),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "The server is shutting down, is too busy to take the request, or has too many connections.",
            ),
        ])
    }
}

fn described<const N: usize>(all: [(StatusCode, &str); N]) -> Responses {
    let response = |(status, about): (StatusCode, &str)| {
        let error = ContentBuilder::new().schema(Some(Ref::from_schema_name(model::Error::name()))).build();
        let mut response = ResponseBuilder::new().description(about).content("application/json", error);
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer);
            let header = HeaderBuilder::new().schema(Some(seconds)).description(Some("Seconds."));
            response = response.header("Retry-After", header.build());
        }
        (status.as_str().to_owned(), response.build().into())
    };
    all.into_iter().map(response).collect()
}
