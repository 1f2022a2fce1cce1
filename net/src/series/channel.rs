//! The interface of a series to its engine: a channel that sends probes and receives their answers.

use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::packet::socket::Timestamp;

/// Arrivals of one series that wait to be processed; further ones are dropped and counted as overflow.
const QUEUE_CAPACITY: usize = 4096;

/// How a series sends its probes and receives what belongs to them.
pub trait Channel: Send + 'static {
    type Response: Send;

    /// Sends one probe and returns its departure.
    ///
    /// # Errors
    /// A description of this host's failure.
    fn send(&mut self, index: u32) -> impl Future<Output = Result<Timestamp, String>> + Send;
    /// The next message that belongs to this series; None when [`is_wanted`](Self::is_wanted) has changed. Must be
    /// cancel-safe.
    fn arrival(&mut self) -> impl Future<Output = Option<Arrival<Self::Response>>> + Send;
    /// The departure of a probe that waited in a queue of this host when it was sent; Some at most once.
    fn late_departure(&mut self, _index: u32) -> Option<Timestamp> {
        None
    }
    /// May this probe still be in a queue of this host, as far as is known?
    fn may_be_queued(&self, _index: u32) -> bool {
        false
    }
    /// Packets that this host dropped since the series began, because a buffer or queue was full.
    fn overflow(&self) -> u32;
    /// Is this probe to be sent and waited for?
    fn is_wanted(&self, _index: u32) -> bool {
        true
    }
}

/// A message that belongs to a series.
#[derive(Debug, Clone)]
pub struct Arrival<R> {
    pub index: u32,
    pub source: IpAddr,
    /// Kernel receive timestamp, since the Unix epoch.
    pub timestamp: Option<Duration>,
    /// False: the answer that the probe waits for may still come.
    pub settles: bool,
    pub response: R,
}

/// The event sink of a channel: a bounded queue of arrivals, which counts what this host drops, so that the loss is not
/// attributed to the network.
pub struct ArrivalSink<R> {
    queue: mpsc::Sender<Arrival<R>>,
    dropped: AtomicU32,
}

impl<R> ArrivalSink<R> {
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Arrival<R>>) {
        let (queue, arrivals) = mpsc::channel(QUEUE_CAPACITY);
        (Self { queue, dropped: AtomicU32::new(0) }, arrivals)
    }

    /// Never blocks; drops and counts the arrival when the queue is full.
    pub fn push(&self, arrival: Arrival<R>) {
        if self.queue.try_send(arrival).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Packets dropped since the series began.
    pub fn dropped(&self) -> u32 {
        self.dropped.load(Ordering::Relaxed)
    }
}
