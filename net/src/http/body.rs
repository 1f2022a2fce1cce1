//! A response's body: counted as it was transferred, decoded within limits, and a piece of it kept.

use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_compression::tokio::write::{BrotliDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use http::HeaderMap;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::limits::{DECODED_BYTES, Exceeded, Pieces};

/// What came of a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Body {
    pub transferred: u64,
    /// None: decoding failed, or the body was not read to its end.
    pub decoded: Option<u64>,
    pub kept: Vec<u8>,
    /// The limit, in bytes transferred, at which it was cut.
    pub cut: Option<u64>,
}

/// Takes a body piece by piece.
pub struct BodyReader {
    pieces: Pieces,
    /// None once it failed: the body is then counted, no longer decoded.
    decoder: Option<Box<dyn Decoder>>,
    kept: Option<Vec<u8>>,
    /// The limit at which it was cut.
    cut: Option<u64>,
}

trait Decoder: AsyncWrite + Unpin + Send {
    fn into_sink(self: Box<Self>) -> Sink;
    fn sink(&self) -> &Sink;
}

macro_rules! decoders {
    ($($kind:ty),+) => { $(impl Decoder for $kind {
        fn into_sink(self: Box<Self>) -> Sink { (*self).into_inner() }
        fn sink(&self) -> &Sink { self.get_ref() }
    })+ };
}
decoders!(BrotliDecoder<Sink>, GzipDecoder<Sink>, ZlibDecoder<Sink>, ZstdDecoder<Sink>);

impl Decoder for Sink {
    fn into_sink(self: Box<Self>) -> Sink {
        *self
    }
    fn sink(&self) -> &Sink {
        self
    }
}

/// RFC 9659: a window of 8 MiB at most. Larger ones are an attack on the client's memory.
const ZSTD_WINDOW_LOG: u32 = 23;
/// What a decoder gives before it lets other tasks have their turn.
const TURN_BYTES: usize = 128 << 10;

/// Counts, keeps the first bytes, and fails past the limit: a small body can decode to gigabytes.
struct Sink {
    count: u64,
    /// Since others had their turn.
    turn: usize,
    limit: u64,
    keep: usize,
    kept: Vec<u8>,
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.turn >= TURN_BYTES {
            self.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.turn += data.len();
        self.count += data.len() as u64;
        let capacity = self.keep - self.kept.len();
        self.kept.extend(&data[..data.len().min(capacity)]);
        if self.count > self.limit {
            return Poll::Ready(Err(io::Error::other("decoded body over the limit")));
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl BodyReader {
    #[must_use]
    pub fn new(headers: &HeaderMap, keep: usize, pieces: Pieces) -> Self {
        let mut codings = headers.get_all(http::header::CONTENT_ENCODING).iter();
        let coding = codings.next().and_then(|value| value.to_str().ok()).map(str::trim).map(str::to_ascii_lowercase);
        let encoded = coding.as_deref().is_some_and(|coding| coding != "identity" && !coding.is_empty());
        let limit = if encoded { DECODED_BYTES } else { u64::MAX };
        let sink = Sink { count: 0, turn: 0, limit, keep, kept: vec![] };
        // One layer of the registered codings (RFC 9110, 8.4.1); anything else cannot be decoded.
        let decoder: Option<Box<dyn Decoder>> = match (coding.as_deref(), codings.next()) {
            (None | Some("identity" | ""), None) => Some(Box::new(sink)),
            (Some("gzip" | "x-gzip"), None) => Some(Box::new(GzipDecoder::new(sink))),
            (Some("deflate"), None) => Some(Box::new(ZlibDecoder::new(sink))),
            (Some("br"), None) => Some(Box::new(BrotliDecoder::new(sink))),
            (Some("zstd"), None) => {
                Some(Box::new(ZstdDecoder::with_params(sink, &[DParameter::window_log_max(ZSTD_WINDOW_LOG)])))
            }
            _ => None,
        };
        Self { pieces, decoder, kept: None, cut: None }
    }

    /// Takes the next piece. `Break`: the body has reached its limit of bytes, and is not read further.
    ///
    /// # Errors
    /// When it comes in too many pieces.
    pub async fn add(&mut self, data: &[u8]) -> Result<ControlFlow<()>, Exceeded> {
        match self.pieces.add(data.len()) {
            Ok(()) => {}
            Err(Exceeded::Body(limit)) => {
                self.cut = Some(limit);
                return Ok(ControlFlow::Break(()));
            }
            Err(exceeded) => return Err(exceeded),
        }
        // A connection's own task may have buffered thousands of small ones.
        tokio::task::coop::consume_budget().await;
        if let Some(decoder) = &mut self.decoder
            && decoder.write_all(data).await.is_err()
        {
            self.kept = Some(decoder.sink().kept.clone());
            self.decoder = None;
        }
        Ok(ControlFlow::Continue(()))
    }

    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    pub async fn end(self) -> Body {
        let (transferred, cut) = (self.pieces.bytes, self.cut);
        let Some(mut decoder) = self.decoder else {
            return Body { transferred, decoded: None, kept: self.kept.unwrap_or_default(), cut };
        };
        // A body that breaks off in the middle of its coding shows here.
        let whole = cut.is_none() && (transferred == 0 || decoder.shutdown().await.is_ok());
        let sink = decoder.into_sink();
        Body { transferred, decoded: whole.then_some(sink.count), kept: sink.kept, cut }
    }
}

#[cfg(test)]
mod tests {
    use async_compression::tokio::write::GzipEncoder;

    use super::*;

    async fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzipEncoder::new(vec![]);
        encoder.write_all(data).await.expect("encode");
        encoder.shutdown().await.expect("encode");
        encoder.into_inner()
    }

    async fn read(coding: Option<&str>, body: &[u8], keep: usize) -> Body {
        let mut headers = HeaderMap::new();
        if let Some(coding) = coding {
            headers.insert("content-encoding", coding.parse().expect("value"));
        }
        let mut reader = BodyReader::new(&headers, keep, Pieces::default());
        for piece in body.chunks(1000) {
            assert!(reader.add(piece).await.expect("within limits").is_continue());
        }
        reader.end().await
    }

    #[tokio::test]
    async fn bodies_are_counted_before_and_after_decoding() {
        let plain = b"hello ".repeat(1000);
        let packed = gzip(&plain).await;
        assert_eq!(
            read(Some("gzip"), &packed, 5).await,
            Body { transferred: packed.len() as u64, decoded: Some(6000), kept: b"hello".to_vec(), cut: None }
        );
        assert_eq!(read(None, &plain, 0).await, Body { transferred: 6000, decoded: Some(6000), ..Body::default() });
        assert_eq!(read(Some("gzip"), &packed[..packed.len() - 9], 0).await.decoded, None, "broken off");
        assert_eq!(read(Some("gzip"), b"not gzip at all", 0).await.decoded, None);
        assert_eq!(read(Some("compress, gzip"), &packed, 0).await.decoded, None, "two layers");
        assert_eq!(read(Some("gzip"), b"", 0).await.decoded, Some(0), "HEAD");
    }

    #[tokio::test]
    async fn a_body_is_decoded_up_to_a_limit_and_counted_to_its_end() {
        let bomb = gzip(&vec![0; 30 << 20]).await;
        let body = read(Some("gzip"), &bomb, 4).await;
        assert_eq!((body.transferred, body.decoded, body.kept.len()), (bomb.len() as u64, None, 4));
    }

    #[tokio::test]
    async fn a_body_over_its_limit_is_cut_there() {
        let mut reader = BodyReader::new(&HeaderMap::new(), 5, Pieces::default().up_to(2500));
        let mut taken = 0;
        while reader.add(&[b'x'; 1000]).await.expect("few pieces").is_continue() {
            taken += 1;
        }
        assert_eq!(taken, 2);
        let body = Body { transferred: 3000, decoded: None, kept: b"xxxxx".to_vec(), cut: Some(2500) };
        assert_eq!(reader.end().await, body);
    }
}
