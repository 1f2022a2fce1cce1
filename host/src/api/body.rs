//! Bodies put together from shared buffers: a receipt that a thousand clients fetch is in memory once.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};

use crate::receipts::Reader;

/// An extension of responses whose bodies consist of shared buffers: what they take besides, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct SharedBody {
    pub besides: usize,
}

impl SharedBody {
    /// A buffer's place in the list, and the text between two shared ones.
    const PIECE: usize = 64;

    #[must_use]
    pub fn of(pieces: usize) -> Self {
        Self { besides: pieces * Self::PIECE }
    }
}

/// JSON in pieces.
pub fn json(pieces: Vec<Bytes>) -> Response {
    body(pieces, None)
}

/// The tests of a receipt so far.
pub fn receipt(reader: Reader) -> Response {
    body(reader.receipt().pieces(), Some(reader))
}

fn body(pieces: Vec<Bytes>, reader: Option<Reader>) -> Response {
    let shared = SharedBody::of(pieces.len());
    let head = ([(header::CONTENT_TYPE, "application/json")], Extension(shared));
    (head, Body::new(Pieces { left: pieces.into(), _reader: reader })).into_response()
}

struct Pieces {
    left: VecDeque<Bytes>,
    /// Whose results they are.
    _reader: Option<Reader>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().left.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.iter().map(|piece| piece.len() as u64).sum())
    }
}
