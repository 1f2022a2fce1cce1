//! The only HTTP error: JSON `{"error": …}` with the texts that clients may match.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

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
    #[error("The server is shutting down.")]
    ShuttingDown,
    #[error("The server has too many connections or unread responses. Try again later.")]
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
            Self::Busy | Self::Overloaded | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Seconds after which it is worth trying again.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::QueueFull(_) | Self::Busy | Self::Overloaded => Some(1),
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
