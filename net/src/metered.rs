//! Streams that leave the thread to others.
//!
//! Parsers above a socket (rustls, hyper, h2) read in a loop for as long as there is something to read: a server that
//! floods keeps them busy for as long as the socket's buffer holds out, hundreds of milliseconds on a slow machine.
//! Other measurements on that thread would then contain the delay of this host.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Size of one read at most: parsers get as many bytes before they ask again.
pub const READ_BYTES: usize = 8 << 10;
/// After so many bytes, or so much time, other tasks have their turn.
const TURN_BYTES: usize = 32 << 10;
const TURN: Duration = Duration::from_micros(200);

/// An observer of the bytes that pass through a stream.
pub trait Observe: Send + Unpin {
    /// Before each read.
    ///
    /// # Errors
    /// When nothing more shall be read.
    fn reads(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// After each read.
    ///
    /// # Errors
    /// When the reader shall not have these bytes.
    fn has_read(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// After each write, with what was taken.
    fn has_written(&mut self, _bytes: &[u8]) {}

    /// After each flush: everything that was taken is with the kernel.
    fn has_flushed(&mut self) {}
}

/// Bytes that came over the connections of one exchange. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Received(Arc<AtomicU64>);

impl Received {
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Observe for Received {
    fn has_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.add(bytes.len());
        Ok(())
    }
}

/// A stream whose reader yields to the scheduler, and whose observer is called with what passes.
pub struct Metered<S, O> {
    inner: S,
    observer: O,
    /// Since the reader last waited.
    bytes: usize,
    since: Option<Instant>,
}

impl<S, O> Metered<S, O> {
    pub fn new(inner: S, observer: O) -> Self {
        Self { inner, observer, bytes: 0, since: None }
    }

    /// Does the reader have to wait for its next turn?
    fn yields(&mut self, cx: &Context<'_>) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.bytes < TURN_BYTES && since.elapsed() < TURN {
            return false;
        }
        self.rest();
        cx.waker().wake_by_ref();
        true
    }

    fn rest(&mut self) {
        self.bytes = 0;
        self.since = None;
    }
}

impl<S: AsyncRead + Unpin, O: Observe> AsyncRead for Metered<S, O> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.yields(cx) {
            return Poll::Pending;
        }
        self.observer.reads()?;
        let most = READ_BYTES.min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        let polled = Pin::new(&mut self.inner).poll_read(cx, &mut part);
        let read = part.filled().len();
        match polled {
            Poll::Ready(Ok(())) => {
                self.bytes += read;
                self.observer.has_read(part.filled())?;
                buffer.advance(read);
                Poll::Ready(Ok(()))
            }
            other => {
                self.rest();
                other
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, O: Observe> AsyncWrite for Metered<S, O> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, data))?;
        self.observer.has_written(&data[..written.min(data.len())]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, parts))?;
        let mut left = written;
        for part in parts {
            let taken = left.min(part.len());
            self.observer.has_written(&part[..taken]);
            left -= taken;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.observer.has_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Has always more.
    struct Flood;

    impl AsyncRead for Flood {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let capacity = buffer.initialize_unfilled().len();
            buffer.advance(capacity);
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_reader_of_a_flood_waits_for_its_next_turn() {
        let received = Received::default();
        let mut stream = Metered::new(Flood, received.clone());
        let mut cx = Context::from_waker(Waker::noop());
        let mut all = 0;
        for turn in 0..3 {
            let mut bytes = 0;
            loop {
                let mut space = vec![0; 1 << 20];
                let mut buffer = ReadBuf::new(&mut space);
                match Pin::new(&mut stream).poll_read(&mut cx, &mut buffer) {
                    Poll::Ready(read) => read.expect("bytes"),
                    Poll::Pending => break,
                }
                assert!(buffer.filled().len() <= READ_BYTES);
                bytes += buffer.filled().len();
            }
            assert!((1..=TURN_BYTES).contains(&bytes), "turn {turn}: {bytes} bytes");
            all += bytes;
        }
        assert_eq!(received.bytes(), all as u64);
    }

    #[test]
    fn a_reader_that_takes_its_time_over_little_waits_too() {
        let mut stream = Metered::new(Flood, Received::default());
        let mut cx = Context::from_waker(Waker::noop());
        let mut read = || {
            let mut byte = [0];
            Pin::new(&mut stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_ready()
        };
        assert!(read());
        std::thread::sleep(TURN * 2);
        assert!(!read() && read());
    }
}
