//! One run of one plugin: a fresh store, limits on everything, and a typed reason when it does not end well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use wasmtime::{Engine, Store, Trap, UpdateDeadline};

use super::Plugin;
use super::imports::{PluginPre, RunState, wit};
use super::limits::{self, LimitHit};
use super::progress::Progress;
use super::schema::ResultSchema;
use crate::services::Services;

/// A result that is not checked after this counts as unusable. The steps of a check are bounded: only a machine under
/// heavy load comes near.
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
    #[error("a host call or its result carried more than {} KiB", limits::CALL_BYTES >> 10)]
    CallTooLarge,
    #[error("it held too many handles")]
    Handles,
    #[error("it wrote more than {} KiB to its log", limits::LOG_BYTES >> 10)]
    Log,
    #[error("it did not end within {} s", .0.as_secs_f64())]
    Deadline(Duration),
    #[error("it stopped on an error of its own ({0})")]
    Trap(String),
    #[error("its result is not usable: {0}")]
    BadResult(String),
    #[error("the test was cancelled")]
    Cancelled,
}

impl RunError {
    /// The reason as a word, for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Limit(LimitHit::Cpu) => "cpu_limit",
            Self::Limit(LimitHit::Memory) => "memory_limit",
            Self::Limit(LimitHit::HostCalls | LimitHit::HostCallBytes) => "host_call_limit",
            Self::StackOverflow => "stack_limit",
            Self::CallTooLarge => "call_size_limit",
            Self::Handles => "handle_limit",
            Self::Log => "log_limit",
            Self::Deadline(_) => "deadline",
            Self::Trap(_) => "trap",
            Self::BadResult(_) => "bad_result",
            Self::Cancelled => "cancelled",
        }
    }

    /// Sorts out what wasmtime says. Our own limits come as our own type; wasmtime's are known by their text only.
    fn from_wasmtime(error: &wasmtime::Error) -> Self {
        if let Some(limit) = error.downcast_ref::<LimitHit>() {
            return Self::Limit(*limit);
        }
        if let Some(trap) = error.downcast_ref::<Trap>() {
            return match trap {
                Trap::StackOverflow => Self::StackOverflow,
                Trap::UnreachableCodeReached => Self::Trap("panic or unreachable code".into()),
                other => Self::Trap(other.to_string()),
            };
        }
        let text = format!("{error:#}");
        if text.contains("fuel") {
            Self::CallTooLarge
        } else if text.contains("no free keys") || text.contains("too many handles") || text.contains("handle") {
            Self::Handles
        } else if text.contains("MemoryOutputPipe") {
            Self::Log
        } else if text.contains("utf-8") {
            Self::BadResult("text that is not UTF-8".into())
        } else {
            Self::Trap(text.lines().last().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect())
        }
    }
}

fn store(engine: &Engine, services: &Arc<Services>, partial: Arc<Progress>) -> Store<RunState> {
    let mut store = Store::new(engine, RunState::new(Arc::clone(services), partial));
    store.limiter(|state| &mut state.usage);
    store.set_hostcall_fuel(limits::CALL_BYTES);
    store.set_max_component_handles(limits::COMPONENT_HANDLES);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|mut store| {
        store.data_mut().usage.computed()?;
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    store
}

/// Asks a plugin what it is. Runs where it is called: at start, before anything else does.
pub(super) async fn describe(
    engine: &Engine,
    pre: &PluginPre<RunState>,
    services: &Arc<Services>,
) -> anyhow::Result<wit::test::Description> {
    let mut store = store(engine, services, Arc::default());
    let described = async {
        let plugin = pre.instantiate_async(&mut store).await?;
        plugin.scouter_probe_test().call_describe(&mut store).await
    };
    Ok(tokio::time::timeout(Duration::from_secs(10), described).await??)
}

impl Plugin {
    /// Runs the test: `options` satisfy [`Plugin::options`].
    ///
    /// # Errors
    /// See [`RunError`]. Whatever the plugin had open is closed when this returns.
    pub async fn run(
        &self,
        services: &Arc<Services>,
        options: &str,
        partial: Arc<Progress>,
        within: Duration,
        cancel: &CancellationToken,
    ) -> Result<Outcome, RunError> {
        let deadline = tokio::time::Instant::from_std(Instant::now() + within);
        let mut store = store(&self.engine, services, partial);
        let called = async {
            store.data_mut().usage.resumed();
            let plugin = self.pre.instantiate_async(&mut store).await?;
            plugin.scouter_probe_test().call_run(&mut store, options).await
        };
        let called = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(RunError::Cancelled),
            called = tokio::time::timeout_at(deadline, called) => match called {
                Ok(Ok(outcome)) => Ok(outcome),
                Ok(Err(error)) => Err(RunError::from_wasmtime(&error)),
                Err(_) => Err(RunError::Deadline(within)),
            },
        };
        let log = store.data().log();
        if !log.is_empty() {
            let text = String::from_utf8_lossy(&log);
            for line in text.lines() {
                tracing::debug!(plugin = self.name, line = %line.escape_debug(), "plugin log");
            }
        }
        // A full log is closed, and whoever writes on panics.
        let full = log.len() >= limits::LOG_BYTES;
        match called {
            Err(RunError::Trap(_)) if full => Err(RunError::Log),
            called => self.check(called?).await,
        }
    }

    /// Away from the threads that run guests: a result takes a while to check when its schema is a long one.
    async fn check(&self, outcome: wit::test::Outcome) -> Result<Outcome, RunError> {
        let schema = Arc::clone(&self.result);
        let checking = tokio::task::spawn_blocking(move || checked(outcome, &schema));
        match tokio::time::timeout(CHECK_TIMEOUT, checking).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Err(RunError::BadResult(format!("checking it failed: {error}"))),
            Err(_) => Err(RunError::BadResult(format!("checking it takes more than {} s", CHECK_TIMEOUT.as_secs()))),
        }
    }
}

fn checked(outcome: wit::test::Outcome, schema: &ResultSchema) -> Result<Outcome, RunError> {
    let bad = |what: String| Err(RunError::BadResult(what));
    if outcome.result.len() > limits::RESULT_BYTES {
        return bad(format!("over {} KiB", limits::RESULT_BYTES >> 10));
    }
    let value: serde_json::Value = match serde_json::from_str(&outcome.result) {
        Ok(value) => value,
        Err(error) => return bad(format!("not JSON: {error}")),
    };
    let Some(object) = value.as_object() else { return bad("not a JSON object".into()) };
    // A test that could not run at all has an empty result, which no schema with required fields allows.
    let ran = outcome.message.is_none() || !object.is_empty();
    if ran && let Err(mistake) = schema.check(&value) {
        return bad(mistake);
    }
    if outcome.message.as_ref().is_some_and(|m| m.len() > 4096) {
        return bad("its message is over 4096 bytes".into());
    }
    // Written anew: what goes out is one JSON value without doubled keys, whatever the plugin wrote.
    match RawValue::from_string(value.to_string()) {
        Ok(result) => Ok(Outcome { failed: outcome.failed, message: outcome.message, result }),
        Err(error) => bad(error.to_string()),
    }
}
