//! The body of a response on its way to a client: given in slices of shared buffers, each of which says when it has been
//! written to the socket. So it is known what waits to be written, and whether the client reads, wherever it waits: for the
//! socket, or for the flow control of HTTP/2.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};

use super::connections::Exchange;
use crate::api::SharedBody;

/// Bytes of one chunk: one HTTP/2 frame of the usual size.
const SLICE: usize = 16 << 10;

pub struct ResponseBody {
    body: Body,
    exchange: Arc<Exchange>,
    /// What is left of the newest part; counted.
    rest: Bytes,
    /// Bytes that were counted before they came, as the size was known.
    ahead: usize,
    /// Bytes that the response takes besides the buffers that it shares with others; None: it shares none.
    besides: Option<usize>,
}

impl ResponseBody {
    /// `shared`: when the body consists of buffers that other responses have too.
    pub fn new(body: Body, shared: Option<&SharedBody>, exchange: Exchange) -> Self {
        let size = http_body::Body::size_hint(&body).exact();
        let ahead = size.and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        let besides = shared.map(|shared| shared.besides);
        let this = Self { body, exchange: Arc::new(exchange), rest: Bytes::new(), ahead, besides };
        this.exchange.add(ahead, besides.unwrap_or(ahead));
        this
    }

    /// Those of these bytes of the body that take memory for this response alone.
    fn unshared(&self, bytes: usize) -> usize {
        if self.besides.is_some() { 0 } else { bytes }
    }

    fn count(&mut self, bytes: usize) {
        let counted = bytes.min(self.ahead);
        self.ahead -= counted;
        let more = bytes - counted;
        if more > 0 {
            self.exchange.add(more, self.unshared(more));
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        this.count(data.len());
                        this.rest = data;
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let bytes = this.rest.split_to(this.rest.len().min(SLICE));
        this.exchange.given();
        let slice = Slice { unshared: this.unshared(bytes.len()), bytes, exchange: Arc::clone(&this.exchange) };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(slice)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && http_body::Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (http_body::Body::size_hint(&self.body), self.rest.len() as u64);
        let mut all = SizeHint::new();
        if let Some(upper) = hint.upper() {
            all.set_upper(upper + rest);
        }
        all.set_lower(hint.lower() + rest);
        all
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let never_given = self.rest.len() + self.ahead;
        self.exchange.subtract(never_given, self.besides.unwrap_or(never_given));
    }
}

/// Part of a response, until hyper has written it.
struct Slice {
    bytes: Bytes,
    unshared: usize,
    exchange: Arc<Exchange>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        self.exchange.taken();
        self.exchange.subtract(self.bytes.len(), self.unshared);
    }
}
