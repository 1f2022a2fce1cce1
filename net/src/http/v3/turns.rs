//! The streams of an HTTP/3 connection in small portions.
//!
//! h3 takes in whatever has come before it hands out the next frame, looks through all of it for each frame, and passes
//! over unknown frames without an end: a server that floods keeps it busy for as long as it likes, and one that announces
//! a long frame fills the memory. So it gets a few datagrams' worth in each turn of the task, and no more than a limit
//! besides the body.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use h3::error::Code;
use h3::quic::{
    Connection, ConnectionErrorIncoming, OpenStreams, RecvStream, SendStream, StreamErrorIncoming, StreamId, WriteBuf,
};
use parking_lot::Mutex;

use super::super::timeline::Timeline;
use crate::limits::{Exceeded, Portions};

/// Pieces of streams, each at most a datagram, that one turn of the task takes in.
const PIECES_OF_A_TURN: u32 = 4;

/// What the streams of one connection have taken in. Clones count together.
#[derive(Clone)]
pub struct Turns {
    timeline: Arc<Timeline>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    pieces: u32,
    /// There was more than this turn could take.
    refused: bool,
    portions: Portions,
}

impl Turns {
    pub fn new(timeline: &Arc<Timeline>) -> Self {
        Self { timeline: Arc::clone(timeline), state: Arc::default() }
    }

    /// The same streams, in portions.
    pub fn of<S>(&self, inner: S) -> InTurns<S> {
        InTurns { inner, turns: self.clone() }
    }

    /// Does all work with the streams: each poll is a turn.
    pub async fn drive<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            let begin = |state: &mut State| (state.pieces, state.refused) = (0, false);
            begin(&mut self.state.lock());
            let polled = work.as_mut().poll(cx);
            if polled.is_pending() && self.state.lock().refused {
                cx.waker().wake_by_ref();
            }
            polled
        })
        .await
    }

    /// Bytes of the body that were read.
    pub fn took_body(&self, bytes: usize) {
        self.state.lock().portions.body(bytes);
    }

    /// May this turn take in more?
    fn may_take(&self) -> bool {
        let mut state = self.state.lock();
        state.refused |= state.pieces >= PIECES_OF_A_TURN;
        state.pieces < PIECES_OF_A_TURN
    }

    fn took(&self, bytes: usize) -> Result<(), Exceeded> {
        let mut state = self.state.lock();
        state.pieces += 1;
        state.portions.stream(bytes).inspect_err(|exceeded| self.timeline.exceed(*exceeded))
    }

    fn accepted(&self) -> Result<(), Exceeded> {
        let mut state = self.state.lock();
        state.portions.accepted().inspect_err(|exceeded| self.timeline.exceed(*exceeded))
    }
}

/// A connection or stream of h3's transport.
pub struct InTurns<S> {
    inner: S,
    turns: Turns,
}

impl<S: RecvStream> RecvStream for InTurns<S> {
    type Buf = S::Buf;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<S::Buf>, StreamErrorIncoming>> {
        if !self.turns.may_take() {
            return Poll::Pending;
        }
        let data = ready!(self.inner.poll_data(cx))?;
        let bytes = data.as_ref().map_or(0, Buf::remaining);
        self.turns.took(bytes).map_err(|exceeded| StreamErrorIncoming::Unknown(Box::new(exceeded)))?;
        Poll::Ready(Ok(data))
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.inner.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.inner.recv_id()
    }
}

impl<B: Buf, S: SendStream<B>> SendStream<B> for InTurns<S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.inner.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.inner.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.inner.send_id()
    }
}

impl<B: Buf, C: OpenStreams<B>> OpenStreams<B> for InTurns<C> {
    type BidiStream = InTurns<C::BidiStream>;
    type SendStream = C::SendStream;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        self.inner.poll_open_bidi(cx).map_ok(|stream| self.turns.of(stream))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.inner.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.inner.close(code, reason);
    }
}

impl<B: Buf, C: Connection<B>> Connection<B> for InTurns<C> {
    type RecvStream = InTurns<C::RecvStream>;
    type OpenStreams = InTurns<C::OpenStreams>;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let stream = ready!(self.inner.poll_accept_recv(cx))?;
        self.turns.accepted().map_err(|exceeded| ConnectionErrorIncoming::Undefined(Arc::new(exceeded)))?;
        Poll::Ready(Ok(self.turns.of(stream)))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        self.inner.poll_accept_bidi(cx).map_ok(|stream| self.turns.of(stream))
    }

    fn opener(&self) -> Self::OpenStreams {
        self.turns.of(self.inner.opener())
    }
}
