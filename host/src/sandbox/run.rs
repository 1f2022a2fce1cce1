//! One run of one plugin: a fresh store, limits on everything, and a typed reason when it does not end well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use wasmtime::component::ResourceTableError;
use wasmtime::{Store, Trap};

use super::Plugin;
use super::budget::{self, LimitHit};
use super::guest::{self, HasGuest};
use super::imports::{EngineError, RunState, wit};
use super::json;
use super::progress::Progress;
use super::schema::ResultSchema;
use crate::services::Services;

/// A result that is not checked after this is an error of the server's. The steps of a check are bounded: only a machine
/// under heavy load comes near.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a plugin gave back, checked.
#[derive(Debug)]
pub struct Outcome {
    pub failed: bool,
    pub message: Option<String>,
    pub result: Box<RawValue>,
}

/// Why a run gave no outcome.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Limit(LimitHit),
    #[error("it called itself too deeply")]
    StackOverflow,
    #[error("a host call or its result carried more than {} KiB", budget::CALL_BYTES >> 10)]
    CallTooLarge,
    #[error("it held too many handles")]
    Handles,
    #[error("it did not end within {} s", .0.as_secs_f64())]
    Deadline(Duration),
    #[error("it stopped on an error of its own ({0})")]
    Trap(String),
    #[error("its result is not usable: {0}")]
    BadResult(String),
    #[error("the test was cancelled")]
    Cancelled,
    /// A mistake of this program, and none of the plugin.
    #[error("an error of the server's own")]
    Host,
}

impl RunError {
    /// The reason as a word, for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Limit(LimitHit::Cpu) => "cpu_limit",
            Self::Limit(LimitHit::Memory) => "memory_limit",
            Self::Limit(LimitHit::HostCalls | LimitHit::HostCallBytes) => "host_call_limit",
            Self::Limit(LimitHit::Log) => "log_limit",
            Self::StackOverflow => "stack_limit",
            Self::CallTooLarge => "call_size_limit",
            Self::Handles => "handle_limit",
            Self::Deadline(_) => "deadline",
            Self::Trap(_) => "trap",
            Self::BadResult(_) => "bad_result",
            Self::Cancelled => "cancelled",
            Self::Host => "host_error",
        }
    }

    /// Is it the plugin's doing?
    #[must_use]
    pub fn is_of_the_plugin(&self) -> bool {
        !matches!(self, Self::Cancelled | Self::Host)
    }

    /// Sorts out what wasmtime says, by the types of its errors.
    fn from_wasmtime(error: &wasmtime::Error) -> Self {
        if let Some(limit) = error.downcast_ref::<LimitHit>() {
            return Self::Limit(*limit);
        }
        if let Some(ended) = error.downcast_ref::<EngineError>() {
            return (*ended).into();
        }
        if let Some(ResourceTableError::Full) = error.downcast_ref() {
            return Self::Handles;
        }
        if error.is::<std::str::Utf8Error>() {
            return Self::BadResult("text that is not UTF-8".into());
        }
        if let Some(trap) = error.downcast_ref::<Trap>() {
            return match trap {
                Trap::StackOverflow => Self::StackOverflow,
                Trap::UnreachableCodeReached => Self::Trap("panic or unreachable code".into()),
                other => Self::Trap(other.to_string()),
            };
        }
        // Two of wasmtime's own limits have no public type (wasmtime 48: `HostcallFuelExhausted` in
        // component/func/options.rs is private, and vm/component/handle_table.rs fails with a text). For the first one,
        // `sandbox::every_attack_ends_with_its_reason` fails when an update changes it; no test reaches the second one.
        let cause = error.root_cause().to_string();
        match cause.as_str() {
            "too much data is being copied between the host and the guest: fuel allocated for hostcalls has been exhausted" => {
                Self::CallTooLarge
            }
            "cannot allocate another handle: store handle limit exceeded"
            | "cannot lend resource: store handle limit exceeded" => Self::Handles,
            _ => Self::Trap(cause.chars().filter(|c| !c.is_control()).take(200).collect()),
        }
    }
}

impl From<EngineError> for RunError {
    fn from(ended: EngineError) -> Self {
        match ended {
            EngineError::Panicked => Self::Host,
            EngineError::Stopping => Self::Cancelled,
        }
    }
}

/// A sandbox, and the permit for it, in the order in which they are dropped.
struct Sandbox {
    store: Store<RunState>,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Plugin {
    /// Runs the test: `options` satisfy [`Plugin::options`].
    ///
    /// # Errors
    /// See [`RunError`]. Must be called on the I/O runtime. What the plugin had open is closed when this returns, or soon
    /// after when it was stopped while it computed; then the permit goes back.
    pub async fn run(
        &self,
        services: &Arc<Services>,
        options: &str,
        partial: Arc<Progress>,
        within: Duration,
        cancel: &CancellationToken,
        permit: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Result<Outcome, RunError> {
        let deadline = tokio::time::Instant::from_std(Instant::now() + within);
        let mut state = RunState::new(Arc::clone(services), partial);
        let guest = state.guest();
        let (cpu, log, placement) = (Arc::clone(&guest.budget.cpu), guest.log.clone(), guest.placement.clone());
        let mut sandbox = Sandbox { store: guest::store(&self.engine, state), _permit: permit };
        let (pre, options) = (self.pre.clone(), options.to_owned());
        let called = Arc::clone(&cpu).of(async move {
            let plugin = pre.instantiate_async(&mut sandbox.store).await?;
            plugin.scouter_probe_test().call_run(&mut sandbox.store, &options).await
        });
        let called = self.history.run(called, &placement, &services.guests);
        let called = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(RunError::Cancelled),
            called = tokio::time::timeout_at(deadline, called) => match called {
                Ok(Ok(Ok(outcome))) => Ok(outcome),
                Ok(Ok(Err(error))) => Err(RunError::from_wasmtime(&error)),
                Ok(Err(ended)) => Err(EngineError::from(ended).into()),
                Err(_) => Err(RunError::Deadline(within)),
            },
        };
        // A guest that was stopped while it computed may still be on its thread.
        self.history.add(cpu.finished());
        for line in log.text().lines() {
            tracing::debug!(plugin = self.name, line = %line.escape_debug(), "plugin log");
        }
        self.check(called?, services).await
    }

    /// Here when it takes no time, otherwise away from the threads of the network.
    async fn check(&self, outcome: wit::test::Outcome, services: &Services) -> Result<Outcome, RunError> {
        let schema = Arc::clone(&self.result);
        if outcome.result.len() <= json::SMALL {
            let result = Value::Object(json::parse_object(&outcome.result).map_err(RunError::BadResult)?);
            if schema.is_quick(&result) {
                return checked(outcome, &result, &schema);
            }
        }
        let check = move || {
            let result = Value::Object(json::parse_object(&outcome.result).map_err(RunError::BadResult)?);
            checked(outcome, &result, &schema)
        };
        in_time(&self.name, services.compute(check)).await
    }
}

/// A check that fails, or takes too long, is an error of the server's.
async fn in_time(
    plugin: &str,
    checking: impl Future<Output = Result<Result<Outcome, RunError>, JoinError>>,
) -> Result<Outcome, RunError> {
    match tokio::time::timeout(CHECK_TIMEOUT, checking).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => {
            if error.is_panic() {
                tracing::error!(plugin, %error, "checking a result failed");
            }
            Err(EngineError::from(error).into())
        }
        Err(_) => {
            tracing::error!(plugin, within = ?CHECK_TIMEOUT, "a result could not be checked in time");
            Err(RunError::Host)
        }
    }
}

/// `result` is the outcome's, parsed.
fn checked(outcome: wit::test::Outcome, result: &Value, schema: &ResultSchema) -> Result<Outcome, RunError> {
    let bad = |what: String| Err(RunError::BadResult(what));
    // A test that could not run at all has an empty result, which no schema with required fields allows.
    let ran = outcome.message.is_none() || result.as_object().is_none_or(|object| !object.is_empty());
    if ran && let Err(mistake) = schema.check(result) {
        return bad(mistake);
    }
    if outcome.message.as_ref().is_some_and(|m| m.len() > 4096) {
        return bad("its message is over 4096 bytes".into());
    }
    // Written anew: what goes out is one JSON value without doubled keys, whatever the plugin wrote.
    match serde_json::value::to_raw_value(result) {
        Ok(result) => Ok(Outcome { failed: outcome.failed, message: outcome.message, result }),
        Err(error) => bad(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Outcome {
        Outcome { failed: false, message: None, result: RawValue::NULL.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_that_is_not_checked_in_time_is_an_error_of_the_servers() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let stuck = move || {
            let _ = ended.recv();
            Ok(nothing())
        };
        let mut check = Box::pin(in_time("slow", tokio::task::spawn_blocking(stuck)));
        assert!(futures_util::poll!(&mut check).is_pending());
        tokio::time::advance(CHECK_TIMEOUT / 2).await;
        assert!(futures_util::poll!(&mut check).is_pending(), "it has its time");
        tokio::time::advance(CHECK_TIMEOUT).await;
        let error = check.await.expect_err("too slow");
        assert!(matches!(error, RunError::Host) && error.kind() == "host_error" && !error.is_of_the_plugin());
        drop(end);
        assert!(in_time("quick", async { Ok(Ok(nothing())) }).await.is_ok());
    }

    #[tokio::test]
    async fn a_check_that_panics_is_an_error_of_the_servers() {
        let error = in_time("any", tokio::task::spawn_blocking(|| panic!("a mistake of the check")))
            .await
            .expect_err("no outcome");
        assert!(matches!(error, RunError::Host), "{error}");
    }
}
