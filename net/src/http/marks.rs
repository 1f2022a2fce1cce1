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

use crate::tls::Facts;

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
}

/// The clock of one exchange; it survives the exchange's end, whatever that was.
pub struct Marks {
    start: Instant,
    /// Nanoseconds since the start plus one; 0: has not happened. Bytes handed to the kernel, and bytes got from it.
    last_write: AtomicU64,
    first_read: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    remote: Option<SocketAddr>,
    tls: Option<Facts>,
    dns: Option<Duration>,
    connect: Option<Duration>,
    secure: Option<Duration>,
    asked: Option<Duration>,
    sent: Option<Duration>,
    answer: Option<Duration>,
    end: Option<Duration>,
}

impl Marks {
    #[must_use]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            last_write: AtomicU64::new(0),
            first_read: AtomicU64::new(0),
            known: Mutex::default(),
        }
    }

    fn stamp(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1) + 1
    }

    fn load(mark: &AtomicU64) -> Option<Duration> {
        mark.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_nanos)
    }

    pub fn resolved(&self) {
        self.known.lock().dns = Some(self.start.elapsed());
    }

    pub fn connected(&self, remote: SocketAddr) {
        let mut known = self.known.lock();
        known.connect = Some(self.start.elapsed());
        known.remote = Some(remote);
    }

    /// Where a connection is being made, for one that fails.
    pub fn trying(&self, remote: SocketAddr) {
        self.known.lock().remote = Some(remote);
    }

    /// What a handshake that is part of connecting (QUIC) negotiated.
    pub fn known_tls(&self, facts: Facts) {
        self.known.lock().tls = Some(facts);
    }

    /// The request was handed over, where no [`Marked`] sees it.
    pub fn sent(&self) {
        self.last_write.store(self.stamp(), Ordering::Relaxed);
    }

    /// The handshake ended, well or not. The first call takes the time; later ones may know more.
    pub fn secured(&self, facts: Option<Facts>) {
        let mut known = self.known.lock();
        known.secure = known.secure.or(Some(self.start.elapsed()));
        known.tls = facts;
    }

    /// The request is about to be written: what was read before is not the response.
    pub fn asking(&self) {
        self.first_read.store(0, Ordering::Relaxed);
        self.known.lock().asked = Some(self.start.elapsed());
    }

    /// The head of an HTTP/1 response was parsed: its first byte came when the connection was first read.
    pub fn answering(&self) {
        self.answered_at(Self::load(&self.first_read));
    }

    /// As [`answering`](Self::answering), where bytes of the connection are not bytes of the response: now.
    pub fn answering_now(&self) {
        self.answered_at(None);
    }

    fn answered_at(&self, first: Option<Duration>) {
        let answer = first.unwrap_or_else(|| self.start.elapsed());
        let mut known = self.known.lock();
        known.answer = Some(answer);
        known.sent = Self::load(&self.last_write).map(|write| write.min(answer)).or(known.asked);
    }

    pub fn finished(&self) {
        self.known.lock().end = Some(self.start.elapsed());
    }

    #[must_use]
    pub fn anything_read(&self) -> bool {
        self.first_read.load(Ordering::Relaxed) > 0
    }

    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        self.known.lock().remote
    }

    #[must_use]
    pub fn tls(&self) -> Option<Facts> {
        self.known.lock().tls.clone()
    }

    #[must_use]
    pub fn timings(&self) -> Timings {
        let known = self.known.lock();
        let length = |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from.unwrap_or_default()));
        let ready = known.secure.or(known.connect);
        let sent = known.sent.or_else(|| known.asked.and(Self::load(&self.last_write)));
        Timings {
            dns: known.dns,
            connect: length(known.dns, known.connect),
            tls: length(known.connect, known.secure),
            send: length(ready, sent),
            wait: length(sent, known.answer),
            download: length(known.answer, known.end),
            total: known.end.unwrap_or_else(|| self.start.elapsed()),
        }
    }
}

/// A connection that notes when it is written and first read.
pub struct Marked<S> {
    inner: S,
    marks: Arc<Marks>,
}

impl<S> Marked<S> {
    #[must_use]
    pub fn new(inner: S, marks: &Arc<Marks>) -> Self {
        Self { inner, marks: Arc::clone(marks) }
    }

    fn wrote(&self) {
        // Writes after the response has begun (window updates of HTTP/2) are not the request's.
        if self.marks.first_read.load(Ordering::Relaxed) == 0 || self.marks.known.lock().answer.is_none() {
            self.marks.last_write.store(self.marks.stamp(), Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Marked<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            let stamp = self.marks.stamp();
            let _ = self.marks.first_read.compare_exchange(0, stamp, Ordering::Relaxed, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Marked<S> {
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
