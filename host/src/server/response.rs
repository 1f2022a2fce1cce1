//! The body of a response on its way to a client: given in slices of shared buffers, each of which says when it has been
//! written to the socket. So it is known what waits to be written, and whether the client reads, wherever it waits: for the
//! socket, or for the flow control of HTTP/2.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};

use super::connections::Exchange;

/// Bytes given at once: one HTTP/2 frame of the usual size.
const SLICE: usize = 16 << 10;

pub struct ResponseBody {
    body: Body,
    exchange: Arc<Exchange>,
    /// What is left of the newest part; counted.
    rest: Bytes,
    /// Bytes that were counted before they came, as the size was known.
    ahead: usize,
}

impl ResponseBody {
    /// Gives the exchange back when too much is waiting to be written already.
    pub fn new(body: Body, exchange: Exchange) -> Result<Self, Exchange> {
        let size = http_body::Body::size_hint(&body).exact();
        let ahead = size.and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        if ahead > 0 && !exchange.add(ahead) {
            return Err(exchange);
        }
        Ok(Self { body, exchange: Arc::new(exchange), rest: Bytes::new(), ahead })
    }

    fn count(&mut self, bytes: usize) -> bool {
        let counted = bytes.min(self.ahead);
        self.ahead -= counted;
        counted == bytes || self.exchange.add(bytes - counted)
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
                    Ok(data) if this.count(data.len()) => this.rest = data,
                    Ok(_) => return Poll::Ready(Some(Err(axum::Error::new(TooMuch)))),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let bytes = this.rest.split_to(this.rest.len().min(SLICE));
        this.exchange.given();
        let slice = Slice { bytes, exchange: Arc::clone(&this.exchange) };
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
        if never_given > 0 {
            self.exchange.subtract(never_given);
        }
    }
}

/// Part of a response, until hyper has written it.
struct Slice {
    bytes: Bytes,
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
        self.exchange.subtract(self.bytes.len());
    }
}

#[derive(Debug, thiserror::Error)]
#[error("too much is waiting to be written to clients")]
struct TooMuch;
