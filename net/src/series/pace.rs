//! When the probes of a series leave, and how long their answers are worth waiting for.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Decides when probes leave, by what has become of those before.
pub trait Pace<R>: Send + 'static {
    /// When the next probe may leave, as far as is known now; None: now.
    fn due(&self, index: u32) -> Option<Instant>;
    /// A probe has left, or could not be sent by this host.
    fn sent(&mut self, index: u32, success: bool);
    /// The first answer to a probe.
    fn answered(&mut self, _index: u32, _source: IpAddr, _rtt: Duration, _response: &R) {}
    /// A probe has no answer, or needs none any more.
    fn settled(&mut self, _index: u32) {}
    /// Is this probe still to be sent and waited for?
    fn is_wanted(&self, _index: u32) -> bool {
        true
    }
    /// How long after its departure an answer to this probe is worth waiting for, when nothing else is waited for. None: its
    /// timeout. An answer that comes while the series goes on counts up to the timeout in any case.
    fn patience(&self, _index: u32) -> Option<Duration> {
        None
    }
}

/// One probe after the other, in an interval.
#[derive(Debug)]
pub struct Steady {
    interval: Duration,
    next: Option<Instant>,
}

impl Steady {
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval, next: None }
    }
}

impl<R> Pace<R> for Steady {
    fn due(&self, _index: u32) -> Option<Instant> {
        self.next
    }

    fn sent(&mut self, _index: u32, _success: bool) {
        let now = Instant::now();
        // After a delay of this process the pace goes on: missed probes are not sent in a burst.
        self.next = Some((self.next.unwrap_or(now) + self.interval).max(now));
    }
}
