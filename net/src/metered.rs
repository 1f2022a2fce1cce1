//! Streams that leave the thread to others.
//!
//! Parsers above a socket (rustls, hyper, h2) read in a loop for as long as there is something to read: a server that
//! floods keeps them busy for as long as the socket's buffer holds out, hundreds of milliseconds on a slow machine.
//! Whoever measures something else on that thread then measures this host.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// At most so many bytes are read at once: parsers see as many before they ask again.
pub const READ_BYTES: usize = 8 << 10;
/// After so many bytes, or so much time, other tasks have their turn.
const TURN_BYTES: usize = 32 << 10;
const TURN: Duration = Duration::from_micros(200);

/// A stream whose reader yields to the scheduler.
pub struct Metered<S> {
    inner: S,
    /// Since the reader last waited.
    bytes: usize,
    since: Option<Instant>,
}

impl<S> Metered<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, bytes: 0, since: None }
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

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.yields(cx) {
            return Poll::Pending;
        }
        let polled = read_up_to(READ_BYTES, Pin::new(&mut self.inner), cx, buffer);
        match &polled {
            Poll::Ready(Ok(count)) => self.bytes += count,
            _ => self.rest(),
        }
        polled.map_ok(|_| ())
    }
}

/// Reads `most` bytes at most, and says how many.
pub fn read_up_to<S: AsyncRead + Unpin>(
    most: usize,
    inner: Pin<&mut S>,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<usize>> {
    let most = most.min(buffer.remaining());
    let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
    let polled = inner.poll_read(cx, &mut part);
    let count = part.filled().len();
    polled.map_ok(|()| {
        buffer.advance(count);
        count
    })
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
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
        let mut stream = Metered::new(Flood);
        let mut cx = Context::from_waker(Waker::noop());
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
        }
    }

    #[test]
    fn a_reader_that_takes_its_time_over_little_waits_too() {
        let mut stream = Metered::new(Flood);
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
