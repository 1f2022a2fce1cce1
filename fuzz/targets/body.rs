//! Bodies in the content codings that are decoded (RFC 9110, section 8.4.1), in pieces of any size: limits hold, and the
//! way in which a body was cut changes nothing.

#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, HeaderValue};
use scouter_net::http::body::{Body, BodyReader};
use scouter_net::http::limits::{DECODED_BYTES, Pieces};

const CODINGS: [&str; 6] = ["gzip", "deflate", "br", "zstd", "identity", "unknown"];
const KEPT: usize = 64;

/// Nothing here waits for anything: what is not ready has given way to other tasks.
fn run<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
    }
}

fn read(coding: &'static str, pieces: impl Iterator<Item = impl AsRef<[u8]>>) -> Body {
    let headers = HeaderMap::from_iter([(http::header::CONTENT_ENCODING, HeaderValue::from_static(coding))]);
    run(async {
        let mut reader = BodyReader::new(&headers, KEPT, Pieces::default());
        for piece in pieces {
            assert!(reader.add(piece.as_ref()).await.expect("less than the limits").is_continue());
        }
        reader.end().await
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [coding, size, body @ ..] = data else { return };
    let coding = CODINGS[usize::from(*coding) % CODINGS.len()];
    let whole = read(coding, std::iter::once(body));
    assert_eq!(whole.transferred, body.len() as u64);
    assert!(whole.kept.len() <= KEPT);
    assert!(whole.decoded.is_none_or(|decoded| decoded <= DECODED_BYTES || coding == "identity"));
    if coding == "identity" {
        assert_eq!((whole.decoded, &whole.kept[..]), (Some(body.len() as u64), &body[..body.len().min(KEPT)]));
    }
    let cut = read(coding, body.chunks(usize::from(*size) + 1));
    assert_eq!((cut.transferred, cut.decoded), (whole.transferred, whole.decoded));
});
