//! Partial results of a run.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::value::{RawValue, to_raw_value};

use super::json;

type Listener = Box<dyn Fn(&Partial) + Send + Sync>;

/// A partial result, as the plugin wrote it. Most are replaced before they are read.
#[derive(Debug, Clone)]
pub struct Partial(Arc<str>);

impl Partial {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text.into())
    }

    /// Is it read in some tens of microseconds?
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.0.len() <= json::SMALL
    }

    /// Parsed, so that it is as sound as a final result: an object within the same limits. None when it is not.
    #[must_use]
    pub fn json(&self) -> Option<Box<RawValue>> {
        to_raw_value(&json::parse_object(&self.0).ok()?).ok()
    }
}

/// The newest partial result of a run; it survives the run.
#[derive(Default)]
pub struct Progress {
    newest: Mutex<Option<Partial>>,
    changed: tokio::sync::Notify,
    listener: Option<Listener>,
}

impl Progress {
    /// The listener gets each partial result as it comes. It must not block.
    #[must_use]
    pub fn with_listener(listener: impl Fn(&Partial) + Send + Sync + 'static) -> Self {
        Self { listener: Some(Box::new(listener)), ..Self::default() }
    }

    pub fn put(&self, partial: Partial) {
        if let Some(listener) = &self.listener {
            listener(&partial);
        }
        *self.newest.lock() = Some(partial);
        self.changed.notify_one();
    }

    #[must_use]
    pub fn newest(&self) -> Option<Partial> {
        self.newest.lock().clone()
    }

    /// Waits for the next one.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
