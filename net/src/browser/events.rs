//! The event sink: where the events of a browser go while a page is being loaded in it.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Kind;
use super::collector::{BrowserEvent, Collector};
use super::connection::Notice;
use super::socks::Visit;

struct LoadingPage {
    collector: Collector,
    visit: Arc<Visit>,
}

/// Events are taken in as they are read, and none waits in a queue: what a page makes of them is bounded by what its
/// collector keeps.
pub struct EventSink {
    kind: Kind,
    page: Mutex<Option<LoadingPage>>,
    changed: Notify,
}

impl EventSink {
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind, page: Mutex::default(), changed: Notify::new() }
    }

    /// From now on the events belong to this page.
    pub fn watch(&self, collector: Collector, visit: Arc<Visit>) {
        *self.page.lock() = Some(LoadingPage { collector, visit });
    }

    /// Ends the collection; later events are dropped.
    pub fn take(&self) -> Option<Collector> {
        Some(self.page.lock().take()?.collector)
    }

    /// The page as it is now.
    pub fn look<T>(&self, look: impl FnOnce(&Collector) -> T) -> Option<T> {
        self.page.lock().as_ref().map(|page| look(&page.collector))
    }

    pub fn deliver(&self, notice: &Notice<'_>) {
        // Parsed before the lock is taken: others read the page meanwhile.
        let event = match notice {
            Notice::Event(event) => BrowserEvent::read(self.kind, event),
            Notice::TooLong(head, bytes) => BrowserEvent::too_long(head, *bytes),
        };
        let Some(event) = event else { return };
        if let Some(page) = &mut *self.page.lock() {
            // A failure that a limit of this host caused must not be reported as the target's.
            if page.visit.limit().is_some() {
                return;
            }
            page.collector.take(event);
        }
        self.changed.notify_one();
    }

    /// Waits for the next event; returns immediately when one has come since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
