//! Partial results of a run.

use parking_lot::Mutex;
use serde_json::value::RawValue;

type Listener = Box<dyn Fn(&RawValue) + Send + Sync>;

/// The newest partial result of a run; it survives the run.
#[derive(Default)]
pub struct Progress {
    newest: Mutex<Option<Box<RawValue>>>,
    changed: tokio::sync::Notify,
    listener: Option<Listener>,
}

impl Progress {
    /// The listener gets each partial result as it comes. It must not block.
    #[must_use]
    pub fn with_listener(listener: impl Fn(&RawValue) + Send + Sync + 'static) -> Self {
        Self { listener: Some(Box::new(listener)), ..Self::default() }
    }

    pub fn put(&self, json: Box<RawValue>) {
        if let Some(listener) = &self.listener {
            listener(&json);
        }
        *self.newest.lock() = Some(json);
        self.changed.notify_one();
    }

    #[must_use]
    pub fn get(&self) -> Option<Box<RawValue>> {
        self.newest.lock().clone()
    }

    /// Waits for the next one.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
