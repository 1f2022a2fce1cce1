//! Runs plans: a permit for each test, its deadline after the permit, its outcome into the receipt, cancel at any time.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::{PluginName, Test, Timing};
use crate::plan::{Action, Plan, PlannedTest};
use crate::queue::{Limits, Place, Queue, QueueFull};
use crate::receipts::{Receipt, Receipts};
use crate::sandbox::{Partial, Plugin, Progress, RunError};
use crate::services::Services;
use crate::slots::{Slot, Slots};

/// Where tests run.
pub struct Runner {
    services: Arc<Services>,
    permits: Arc<Semaphore>,
    slots: Slots,
    queue: Arc<Queue>,
    timeout: Duration,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// What a caller reads when this program has made a mistake.
const HOST_ERROR: &str = "The test ended on an error of the server's own. Please report it.";

fn name_of(plugin: &Plugin) -> PluginName<'_> {
    PluginName { name: &plugin.name, version: &plugin.version }
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn empty() -> Box<RawValue> {
    RawValue::from_string("{}".into()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// JSON of a finished test. Its parts are JSON already, so this cannot fail; if it did, null is still JSON.
fn json(test: &Test) -> Box<RawValue> {
    serde_json::value::to_raw_value(test).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

impl Runner {
    #[must_use]
    pub fn new(services: Arc<Services>, slots: usize, waiting: Limits, timeout: Duration) -> Self {
        Self {
            services,
            permits: Arc::new(Semaphore::new(slots)),
            slots: Slots::new(slots),
            queue: Arc::new(Queue::new(waiting)),
            timeout,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Starts a plan's tests, and returns the receipt without waiting for them.
    ///
    /// # Errors
    /// [`QueueFull`]; nothing has been started then.
    pub fn submit(self: &Arc<Self>, plan: Plan, receipts: &Arc<Receipts>) -> Result<Arc<Receipt>, QueueFull> {
        let weights: Vec<usize> = plan.tests.iter().map(PlannedTest::weight).collect();
        let places = self.queue.reserve(&weights, self.permits.available_permits())?;
        let receipt = receipts.open(&plan);
        for (index, (test, place)) in plan.tests.into_iter().zip(places).enumerate() {
            let (runner, receipts, receipt) = (Arc::clone(self), Arc::clone(receipts), Arc::clone(&receipt));
            let run = async move {
                // A mistake of this program must cost that test, not a receipt that never ends.
                let one = AssertUnwindSafe(runner.one(index, &test, place, &receipts, &receipt)).catch_unwind();
                if one.await.is_err() {
                    runner.services.metrics.test(None, RunError::Host.kind());
                    receipts.record(&receipt, index, broken(&test.id), |_| broken(&test.id));
                }
            };
            self.tasks.spawn_on(run, &self.services.io);
        }
        Ok(receipt)
    }

    /// One test, from waiting to its place in the receipt.
    async fn one(
        &self,
        index: usize,
        test: &PlannedTest,
        place: Place,
        receipts: &Arc<Receipts>,
        receipt: &Arc<Receipt>,
    ) {
        let queued = Instant::now();
        let json = match &test.action {
            Action::Refuse { plugin, message } => {
                drop(place);
                self.services.metrics.test(plugin.as_ref().map(|plugin| plugin.name.as_str()), "refused");
                let timing = Timing { queued_ms: ms(queued.elapsed()), started_at: None, duration_ms: None };
                let message = Some(message.clone());
                let plugin = plugin.as_deref().map(name_of);
                json(&Test { id: &test.id, failed: true, message, result: &empty(), timing, plugin, error: None })
            }
            Action::Run { plugin, options } => {
                let permit = tokio::select! {
                    biased;
                    () = receipt.cancel.cancelled() => None,
                    () = self.stopping.cancelled() => None,
                    permit = Arc::clone(&self.permits).acquire_owned() => permit.ok(),
                };
                drop(place);
                let waited = queued.elapsed();
                if let Some(permit) = permit {
                    let watched = Arc::clone(receipt);
                    let partial = Arc::new(Progress::with_listener(move |partial| watched.partial(index, partial)));
                    self.run(&test.id, plugin, options, waited, &receipt.cancel, partial, Some(Arc::new(permit))).await
                } else {
                    self.services.metrics.test(Some(&plugin.name), RunError::Cancelled.kind());
                    cancelled(&test.id, plugin, waited)
                }
            }
        };
        receipts.record(receipt, index, json, |max| too_large(&test.id, max));
    }

    /// Runs one test now, in a slot, and gives the permit back when slot and sandbox are free. `partial` shows what has come so
    /// far.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub async fn run(
        &self,
        id: &Value,
        plugin: &Plugin,
        options: &str,
        waited: Duration,
        cancel: &CancellationToken,
        partial: Arc<Progress>,
        permit: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Box<RawValue> {
        let slot = self.slots.occupy();
        let (started, started_at) = (Instant::now(), jiff::Timestamp::now());
        let outcome = tokio::select! {
            biased;
            () = self.stopping.cancelled() => Err(RunError::Cancelled),
            outcome = plugin.run(&self.services, options, Arc::clone(&partial), self.timeout, cancel, permit.clone()) => outcome,
        };
        let duration = started.elapsed();
        let timing = Timing {
            queued_ms: ms(waited),
            started_at: Some(format!("{started_at:.6}")),
            duration_ms: Some(ms(duration)),
        };
        let name = Some(name_of(plugin));
        let (json, exception) = match &outcome {
            Ok(outcome) => {
                let (failed, message) = (outcome.failed || outcome.message.is_some(), outcome.message.clone());
                (json(&Test { id, failed, message, result: &outcome.result, timing, plugin: name, error: None }), false)
            }
            Err(error) => {
                let exception = error.is_of_the_plugin();
                if exception {
                    tracing::warn!(plugin = plugin.name, kind = error.kind(), %error, "plugin stopped");
                }
                let message = match error {
                    RunError::Cancelled => "The test was cancelled.".to_owned(),
                    RunError::Host => HOST_ERROR.to_owned(),
                    error => format!("Plugin '{}' was stopped: {error}.", plugin.name),
                };
                // What it had shown so far is what is known.
                let result = self.read(partial.newest()).await.unwrap_or_else(empty);
                let error = Some(error.kind());
                (
                    json(&Test {
                        id,
                        failed: true,
                        message: Some(message),
                        result: &result,
                        timing,
                        plugin: name,
                        error,
                    }),
                    exception,
                )
            }
        };
        let ended = match &outcome {
            Ok(outcome) if outcome.failed || outcome.message.is_some() => "failed",
            Ok(_) => "ok",
            Err(error) => error.kind(),
        };
        self.services.metrics.test(Some(&plugin.name), ended);
        self.services.metrics.ran(&plugin.name, waited, duration);
        if let Some(slot) = slot {
            slot.ended(exception, json.get().len());
        }
        drop(permit);
        json
    }

    async fn read(&self, partial: Option<Partial>) -> Option<Box<RawValue>> {
        let partial = partial?;
        if partial.is_small() {
            return partial.json();
        }
        self.services.compute(move || partial.json()).await.ok()?
    }

    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        self.slots.all()
    }

    /// Tests waiting for a permit.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Waits for running tests; cancels those that are not done in time.
    pub async fn drain(&self, within: Duration) {
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_err() {
            self.stopping.cancel();
            // Cancelling is immediate; what does not end now is a bug that must not keep the process alive.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.tasks.wait()).await;
        }
    }

    /// Does anything run or wait?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }
}

fn cancelled(id: &Value, plugin: &Plugin, waited: Duration) -> Box<RawValue> {
    let timing = Timing { queued_ms: ms(waited), started_at: None, duration_ms: None };
    let plugin = Some(name_of(plugin));
    let message = Some("The test was cancelled.".into());
    json(&Test { id, failed: true, message, result: &empty(), timing, plugin, error: Some(RunError::Cancelled.kind()) })
}

fn broken(id: &Value) -> Box<RawValue> {
    let timing = Timing { queued_ms: 0.0, started_at: None, duration_ms: None };
    let message = Some(HOST_ERROR.into());
    json(&Test {
        id,
        failed: true,
        message,
        result: &empty(),
        timing,
        plugin: None,
        error: Some(RunError::Host.kind()),
    })
}

fn too_large(id: &Value, max: usize) -> Box<RawValue> {
    let timing = Timing { queued_ms: 0.0, started_at: None, duration_ms: None };
    let message = Some(format!(
        "The result is too large: one receipt's results may have {max} bytes (SCOUTER_MAX_RECEIPT_BYTES)."
    ));
    json(&Test { id, failed: true, message, result: &empty(), timing, plugin: None, error: Some("receipt_size_limit") })
}

/// Requests answered since the start.
#[derive(Debug, Default)]
pub struct Requests(AtomicU64);

impl Requests {
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
