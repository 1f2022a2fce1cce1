//! The event sink: where the events of a browser go while a page is being loaded in it.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Kind;
use super::collector::{Collector, Told};
use super::connection::Notice;
use super::socks::Visit;

struct Watched {
    collector: Collector,
    visit: Arc<Visit>,
}

/// Events are taken in as they are read, and none waits in a queue: what a page makes of them is bounded by what its
/// collector keeps.
pub struct EventSink {
    kind: Kind,
    watched: Mutex<Option<Watched>>,
    changed: Notify,
}

impl EventSink {
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind, watched: Mutex::default(), changed: Notify::new() }
    }

    /// From now on the events belong to this page.
    pub fn watch(&self, collector: Collector, visit: Arc<Visit>) {
        *self.watched.lock() = Some(Watched { collector, visit });
    }

    /// What came of the page; events that come later are nobody's.
    pub fn take(&self) -> Option<Collector> {
        Some(self.watched.lock().take()?.collector)
    }

    /// The page as it is now.
    pub fn look<T>(&self, look: impl FnOnce(&Collector) -> T) -> Option<T> {
        self.watched.lock().as_ref().map(|watched| look(&watched.collector))
    }

    pub fn deliver(&self, notice: &Notice<'_>) {
        // Read before the page is held, which others look at meanwhile.
        let told = match notice {
            Notice::Event(event) => Told::read(self.kind, event),
            Notice::TooLong(head, bytes) => Told::too_long(head, *bytes),
        };
        let Some(told) = told else { return };
        if let Some(watched) = &mut *self.watched.lock() {
            // What breaks because of a limit of ours must not be told as the target's failure.
            if watched.visit.limit().is_some() {
                return;
            }
            watched.collector.take(told);
        }
        self.changed.notify_one();
    }

    /// Waits for the next event, or returns at once when there was one since it was last waited for.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
