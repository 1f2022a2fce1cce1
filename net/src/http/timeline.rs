//! When each phase of an exchange ended, taken where it happens.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::limits::{Exceeded, Frames, Interim};
use crate::lag::LagWatch;
use crate::tls::TlsDetails;

/// Lengths of the phases; None for one that did not happen or was not reached.
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
    /// Nanoseconds since the start plus one; 0: has not happened. Bytes handed to the kernel, and bytes got from it.
    last_write: AtomicU64,
    first_read: AtomicU64,
    phases: Mutex<Phases>,
}

#[derive(Default)]
struct Phases {
    remote: Option<SocketAddr>,
    tls: Option<TlsDetails>,
    interim: Interim,
    exceeded: Option<Exceeded>,
    resolved: Option<Duration>,
    connected: Option<Duration>,
    secured: Option<Duration>,
    request_start: Option<Duration>,
    request_end: Option<Duration>,
    response_start: Option<Duration>,
    response_end: Option<Duration>,
}

impl Timeline {
    #[must_use]
    pub fn start(lag: LagWatch) -> Self {
        Self {
            start: Instant::now(),
            lag,
            last_write: AtomicU64::new(0),
            first_read: AtomicU64::new(0),
            phases: Mutex::default(),
        }
    }

    fn stamp(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1) + 1
    }

    fn load(stamp: &AtomicU64) -> Option<Duration> {
        stamp.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_nanos)
    }

    pub fn resolved(&self) {
        self.phases.lock().resolved = Some(self.start.elapsed());
    }

    /// Where a connection is being made, for one that fails.
    pub fn connecting(&self, remote: SocketAddr) {
        self.phases.lock().remote = Some(remote);
    }

    pub fn connected(&self, remote: SocketAddr) {
        let mut phases = self.phases.lock();
        phases.connected = Some(self.start.elapsed());
        phases.remote = Some(remote);
    }

    /// What a handshake that is part of connecting (QUIC) negotiated.
    pub fn negotiated(&self, tls: TlsDetails) {
        self.phases.lock().tls = Some(tls);
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
        self.phases.lock().request_start = Some(self.start.elapsed());
    }

    /// The request was handed over, where no [`TimedStream`] sees it.
    pub fn request_ended(&self) {
        self.last_write.store(self.stamp(), Ordering::Relaxed);
    }

    /// An interim response (1xx) of HTTP/1 or 3 came.
    pub fn interim_response(&self, headers: &http::HeaderMap) {
        let mut phases = self.phases.lock();
        if let Err(exceeded) = phases.interim.add(headers) {
            phases.exceeded = Some(exceeded);
        }
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
        phases.request_end = Self::load(&self.last_write).map(|write| write.min(first)).or(phases.request_start);
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
        self.phases.lock().remote
    }

    #[must_use]
    pub fn tls(&self) -> Option<TlsDetails> {
        self.phases.lock().tls.clone()
    }

    #[must_use]
    pub fn timings(&self) -> Timings {
        let phases = self.phases.lock();
        let end = phases.response_end.unwrap_or_else(|| self.start.elapsed());
        let request_end = phases.request_end.or_else(|| phases.request_start.and(Self::load(&self.last_write)));
        let ready = phases.secured.or(phases.connected);
        let mut degraded = false;
        let mut length = |from: Option<Duration>, to: Option<Duration>| {
            let (from, to) = (from.unwrap_or_default(), to?);
            degraded |= self.lag.degrades(from, to);
            Some(to.saturating_sub(from))
        };
        Timings {
            dns: length(None, phases.resolved),
            connect: length(phases.resolved, phases.connected),
            tls: length(phases.connected, phases.secured),
            send: length(ready, request_end),
            wait: length(request_end, phases.response_start),
            download: length(phases.response_start, phases.response_end),
            total: end,
            host_delay: self.lag.longest(Duration::ZERO, end),
            degraded,
        }
    }
}

/// A connection that notes when it is written and first read, and counts frames of HTTP/2.
pub struct TimedStream<S> {
    inner: S,
    timeline: Arc<Timeline>,
    frames: Option<Frames>,
}

impl<S> TimedStream<S> {
    #[must_use]
    pub fn new(inner: S, timeline: &Arc<Timeline>) -> Self {
        Self { inner, timeline: Arc::clone(timeline), frames: None }
    }

    /// For HTTP/2, from its first byte.
    #[must_use]
    pub fn with_frames(self) -> Self {
        Self { frames: Some(Frames::default()), ..self }
    }

    fn wrote(&self) {
        // Writes after the response has begun (window updates of HTTP/2) are not the request's.
        let timeline = &self.timeline;
        if timeline.first_read.load(Ordering::Relaxed) == 0 || timeline.phases.lock().response_start.is_none() {
            timeline.last_write.store(timeline.stamp(), Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // hyper passes over interim responses by itself; here it asks for more of them.
        if let Some(exceeded) = self.timeline.exceeded() {
            return Poll::Ready(Err(io::Error::other(exceeded)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            let stamp = self.timeline.stamp();
            let _ = self.timeline.first_read.compare_exchange(0, stamp, Ordering::Relaxed, Ordering::Relaxed);
        }
        if let Some(Err(exceeded)) = self.frames.as_mut().map(|frames| frames.add(read)) {
            self.timeline.phases.lock().exceeded = Some(exceeded);
            return Poll::Ready(Err(io::Error::other(exceeded)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, data))?;
        self.wrote();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, parts))?;
        self.wrote();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
