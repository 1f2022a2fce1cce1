//! When each phase of an exchange ended, taken where it happens.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::sent::Sent;
use super::{Head, Phase};
use crate::address::attempts::Attempts;
use crate::lag::LagWatch;
use crate::limits::{Exceeded, Frames, Interim};
use crate::metered::{Observe, Received};
use crate::tls::{PresentedCertificates, TlsDetails};

/// Lengths of the phases; None for one that did not happen or did not end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timings {
    pub dns: Option<Duration>,
    pub connect: Option<Duration>,
    pub tls: Option<Duration>,
    pub send: Option<Duration>,
    pub wait: Option<Duration>,
    pub download: Option<Duration>,
    pub total: Duration,
    /// The longest time for which a ready socket waited for a thread of this host meanwhile. Zero below 0.25 ms.
    pub host_delay: Duration,
    /// Did that change a phase by more than is tolerated?
    pub degraded: bool,
}

/// The times of one exchange; they survive its end, whatever that was.
pub struct Timeline {
    start: Instant,
    lag: LagWatch,
    /// Nanoseconds since the start plus one; 0: has not happened. The request's last byte handed to the kernel, and the
    /// first byte got from it.
    request_end: AtomicU64,
    first_read: AtomicU64,
    /// Bytes of the body, before content decoding.
    body: AtomicU64,
    /// Over TCP.
    received: Received,
    quic: OnceLock<quinn::Connection>,
    attempts: Attempts,
    phases: Mutex<Phases>,
}

#[derive(Default)]
struct Phases {
    /// The last one that has begun, as far as no [`Wire`] sees it.
    begun: Option<Phase>,
    /// What is read are frames: the first byte is not the response's.
    framed: bool,
    presented: Option<PresentedCertificates>,
    tls: Option<TlsDetails>,
    head: Option<Head>,
    interim: Interim,
    exceeded: Option<Exceeded>,
    resolved: Option<Duration>,
    secured: Option<Duration>,
    request_start: Option<Duration>,
    /// When the response began, for a request that it did not wait for.
    request_cut: Option<Duration>,
    response_start: Option<Duration>,
    response_end: Option<Duration>,
}

impl Timeline {
    #[must_use]
    pub fn start(lag: LagWatch) -> Self {
        let start = Instant::now();
        Self {
            start,
            lag,
            request_end: AtomicU64::new(0),
            first_read: AtomicU64::new(0),
            body: AtomicU64::new(0),
            received: Received::default(),
            quic: OnceLock::new(),
            attempts: Attempts::since(start),
            phases: Mutex::default(),
        }
    }

    fn stamp(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1) + 1
    }

    fn load(stamp: &AtomicU64) -> Option<Duration> {
        stamp.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_nanos)
    }

    pub fn resolving(&self) {
        self.phases.lock().begun = Some(Phase::Dns);
    }

    pub fn resolved(&self) {
        self.phases.lock().resolved = Some(self.start.elapsed());
    }

    pub fn connecting(&self) {
        self.phases.lock().begun = Some(Phase::Connect);
    }

    #[must_use]
    pub fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// The meter of a TCP connection.
    #[must_use]
    pub fn meter(&self) -> Received {
        self.received.clone()
    }

    /// Bytes that came over the connection, whatever became of them: for TCP those of its stream, for QUIC those of its
    /// datagrams once it was connected.
    #[must_use]
    pub fn received(&self) -> u64 {
        let datagrams = self.quic.get().map_or(0, |connection| connection.stats().udp_rx.bytes);
        self.received.bytes() + datagrams
    }

    /// A QUIC connection, whose handshake is part of connecting.
    pub fn quic(&self, connection: &quinn::Connection) {
        let _ = self.quic.set(connection.clone());
    }

    /// A TLS handshake begins. The certificates that the server presents in it are known even when it does not end.
    pub fn securing(&self, presented: PresentedCertificates) {
        let mut phases = self.phases.lock();
        phases.begun = Some(Phase::Tls);
        phases.presented = Some(presented);
    }

    /// The certificates of a handshake that did not end.
    pub fn presented(&self) -> Option<PresentedCertificates> {
        let mut phases = self.phases.lock();
        phases.presented.take().filter(|_| phases.tls.is_none())
    }

    /// What a QUIC handshake told, ended well or not.
    pub fn negotiated(&self, details: &TlsDetails) {
        self.phases.lock().tls = Some(details.clone());
    }

    /// The TLS handshake ended, well or not. The first call takes the time; later ones may know more.
    pub fn secured(&self, tls: Option<TlsDetails>) {
        let mut phases = self.phases.lock();
        phases.secured = phases.secured.or(Some(self.start.elapsed()));
        phases.tls = tls;
    }

    /// The request is about to be written: what was read before is not the response.
    pub fn request_started(&self) {
        self.first_read.store(0, Ordering::Relaxed);
        let mut phases = self.phases.lock();
        phases.begun = Some(Phase::Send);
        phases.request_start = Some(self.start.elapsed());
    }

    /// The request was given to the protocol library, or to the kernel where a [`Wire`] sees it.
    pub fn request_ended(&self) {
        let _ = self.request_end.compare_exchange(0, self.stamp(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// An interim response (1xx) of HTTP/1 or 3 came.
    pub fn interim_response(&self, headers: &http::HeaderMap) {
        let mut phases = self.phases.lock();
        if let Err(exceeded) = phases.interim.add(headers) {
            phases.exceeded = Some(exceeded);
        }
    }

    pub fn exceed(&self, exceeded: Exceeded) {
        self.phases.lock().exceeded.get_or_insert(exceeded);
    }

    /// The head of an HTTP/1 response was parsed: its first byte came when the connection was first read.
    pub fn response_started(&self) {
        self.response_started_at(Self::load(&self.first_read));
    }

    /// As [`response_started`](Self::response_started), where bytes of the connection are not bytes of the response: now.
    pub fn response_started_now(&self) {
        self.response_started_at(None);
    }

    fn response_started_at(&self, first: Option<Duration>) {
        let first = first.unwrap_or_else(|| self.start.elapsed());
        let mut phases = self.phases.lock();
        phases.response_start = Some(first);
        // A server may answer before it has read everything.
        if Self::load(&self.request_end).is_none_or(|end| end > first) {
            phases.request_cut = Some(first);
        }
    }

    /// The response's head, which is known whatever becomes of its body.
    pub fn head(&self, head: Head) {
        self.phases.lock().head = Some(head);
    }

    /// Bytes of the body that the head announces, of a status that has a body. `transfer-encoding` overrides the number
    /// (RFC 9112, section 6.3).
    #[must_use]
    pub fn announced_body(&self) -> Option<u64> {
        let phases = self.phases.lock();
        let has_length = |head: &&Head| {
            !matches!(head.status, 204 | 304) && !head.headers.contains_key(http::header::TRANSFER_ENCODING)
        };
        let head = phases.head.as_ref().filter(has_length)?;
        head.headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// So much more of the body has come.
    pub fn body(&self, bytes: usize) {
        self.body.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.body.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn take_head(&self) -> Option<Head> {
        self.phases.lock().head.take()
    }

    /// The phase that the exchange is in.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        let phases = self.phases.lock();
        match phases.begun {
            Some(Phase::Send) if self.response_start(&phases).is_some() => Some(Phase::Download),
            Some(Phase::Send) if Self::load(&self.request_end).is_some() => Some(Phase::Wait),
            begun => begun,
        }
    }

    /// When the response's first byte came, of a head that may not be whole.
    fn response_start(&self, phases: &Phases) -> Option<Duration> {
        let first_read = || Self::load(&self.first_read).filter(|_| !phases.framed);
        phases.request_start?;
        phases.response_start.or_else(first_read)
    }

    pub fn response_ended(&self) {
        self.phases.lock().response_end = Some(self.start.elapsed());
    }

    /// The limit that the server's answer passed.
    #[must_use]
    pub fn exceeded(&self) -> Option<Exceeded> {
        self.phases.lock().exceeded
    }

    #[must_use]
    pub fn anything_read(&self) -> bool {
        self.first_read.load(Ordering::Relaxed) > 0
    }

    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        self.attempts.remote()
    }

    #[must_use]
    pub fn tls(&self) -> Option<TlsDetails> {
        self.phases.lock().tls.clone()
    }

    #[must_use]
    pub fn timings(&self) -> Timings {
        // Of the attempt that succeeded: others may have been waited for before it.
        let (connecting, connected) = self.attempts.connected().unzip();
        let phases = self.phases.lock();
        let end = phases.response_end.unwrap_or_else(|| self.start.elapsed());
        let request_end = phases.request_cut.or_else(|| Self::load(&self.request_end));
        let response_start = self.response_start(&phases);
        let mut degraded = false;
        let mut length = |from: Option<Duration>, to: Option<Duration>| {
            let (from, to) = (from.unwrap_or_default(), to?);
            degraded |= self.lag.degrades(from, to);
            Some(to.saturating_sub(from))
        };
        Timings {
            dns: length(None, phases.resolved),
            connect: length(connecting, connected),
            tls: length(connected, phases.secured),
            // Between the handshake and this lies the verification of the certificate, which is this host's work.
            send: length(phases.request_start, request_end),
            wait: length(request_end, response_start.filter(|_| request_end.is_some())),
            download: length(response_start, phases.response_end),
            total: end,
            host_delay: self.lag.longest(Duration::ZERO, end),
            degraded,
        }
    }
}

/// Notes when the request was written and the connection first read, and counts frames of HTTP/2.
pub struct Wire {
    timeline: Arc<Timeline>,
    frames: Option<Frames>,
    sent: Sent,
    /// The request's last byte was taken, not necessarily by the kernel: TLS has a buffer of its own.
    taken: bool,
}

impl Wire {
    /// For HTTP/1, and a request with a body of so many bytes.
    #[must_use]
    pub fn http_1(timeline: &Arc<Timeline>, body: usize) -> Self {
        Self { timeline: Arc::clone(timeline), frames: None, sent: Sent::http_1(body), taken: false }
    }

    /// For HTTP/2, from its first byte.
    #[must_use]
    pub fn http_2(timeline: &Arc<Timeline>) -> Self {
        timeline.phases.lock().framed = true;
        let frames = Some(Frames::default());
        Self { timeline: Arc::clone(timeline), frames, sent: Sent::http_2(), taken: false }
    }
}

impl Observe for Wire {
    fn reads(&mut self) -> io::Result<()> {
        // hyper passes over interim responses by itself; here it asks for more of them.
        self.timeline.exceeded().map_or(Ok(()), |exceeded| Err(io::Error::other(exceeded)))
    }

    fn has_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            let stamp = self.timeline.stamp();
            let _ = self.timeline.first_read.compare_exchange(0, stamp, Ordering::Relaxed, Ordering::Relaxed);
        }
        if let Some(Err(exceeded)) = self.frames.as_mut().map(|frames| frames.add(bytes)) {
            self.timeline.exceed(exceeded);
            return Err(io::Error::other(exceeded));
        }
        Ok(())
    }

    fn has_written(&mut self, bytes: &[u8]) {
        self.taken = self.taken || self.sent.add(bytes);
    }

    fn has_flushed(&mut self) {
        if self.taken {
            self.timeline.request_ended();
        }
    }
}
