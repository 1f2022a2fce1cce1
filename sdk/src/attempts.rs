//! Attempts to connect, in results.

use schemars::JsonSchema;
use serde::Serialize;

use crate::bindings::scouter::probe::net;
use crate::stats::ms;

/// One attempt to connect to one address.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ConnectionAttempt {
    pub address: String,
    /// Milliseconds from the start of the request to the start of the attempt.
    pub started_ms: f64,
    /// Milliseconds until it succeeded or failed, or was given up.
    pub elapsed_ms: f64,
    /// Why it failed or was given up; null for the connection that was used.
    pub error: Option<String>,
}

impl From<&net::ConnectionAttempt> for ConnectionAttempt {
    fn from(attempt: &net::ConnectionAttempt) -> Self {
        Self {
            address: attempt.address.clone(),
            started_ms: ms(attempt.started),
            elapsed_ms: ms(attempt.elapsed),
            error: attempt.error.clone(),
        }
    }
}
