//! Where a request ends in what is written to its connection.
//!
//! What a client writes later (acknowledgements of SETTINGS, window updates) is not the request, and may be written at any
//! time: it depends on the server.

use crate::limits::{CONTINUATION, DATA, FrameHeaders, HEADERS_FRAME};

/// Follows what is written, from the first byte.
pub enum Sent {
    /// A head, and a body of as many bytes.
    Http1 { matched: usize, body: usize },
    /// One request: frames of the only stream.
    Http2 { preface: usize, frames: FrameHeaders, ends: Ends },
}

/// Is the frame that ends the request still to come, being written, or written?
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    Later,
    /// There is no body: with the last frame of headers.
    WithHeaders,
    InThisFrame,
    Over,
}

const HEAD_END: &[u8] = b"\r\n\r\n";
/// RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;
/// Flags of DATA and HEADERS, and of HEADERS and CONTINUATION.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Sent {
    pub fn http_1(body: usize) -> Self {
        Self::Http1 { matched: 0, body }
    }

    pub fn http_2() -> Self {
        Self::Http2 { preface: PREFACE_BYTES, frames: FrameHeaders::default(), ends: Ends::Later }
    }

    /// Takes in what was written. Is the request's last byte among what has been written?
    pub fn add(&mut self, mut bytes: &[u8]) -> bool {
        match self {
            Self::Http1 { matched, body } => {
                while *matched < HEAD_END.len()
                    && let Some((byte, rest)) = bytes.split_first()
                {
                    *matched = match *byte {
                        byte if byte == HEAD_END[*matched] => *matched + 1,
                        b'\r' => 1,
                        _ => 0,
                    };
                    bytes = rest;
                }
                *body = body.saturating_sub(bytes.len());
                *matched == HEAD_END.len() && *body == 0
            }
            Self::Http2 { preface, frames, ends } => {
                let skipped = bytes.len().min(*preface);
                *preface -= skipped;
                bytes = &bytes[skipped..];
                while let Some(frame) = frames.find(&mut bytes) {
                    let (ends_stream, ends_headers) = (frame.flags & END_STREAM != 0, frame.flags & END_HEADERS != 0);
                    *ends = match (*ends, frame.kind) {
                        (Ends::InThisFrame | Ends::Over, _) => Ends::Over,
                        (Ends::Later, DATA) if ends_stream => Ends::InThisFrame,
                        (Ends::Later, HEADERS_FRAME) if ends_stream && ends_headers => Ends::InThisFrame,
                        (Ends::Later, HEADERS_FRAME) if ends_stream => Ends::WithHeaders,
                        (Ends::WithHeaders, CONTINUATION) if ends_headers => Ends::InThisFrame,
                        (before, _) => before,
                    };
                }
                if *ends == Ends::InThisFrame && frames.is_whole() {
                    *ends = Ends::Over;
                }
                *ends == Ends::Over
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many bytes the request is over, whatever the size of the writes.
    fn end(sent: impl Fn() -> Sent, bytes: &[u8]) -> Option<usize> {
        let mut bytewise = sent();
        let end = (0..bytes.len()).find(|n| bytewise.add(&bytes[*n..=*n])).map(|n| n + 1);
        for size in [2, 7, 1000] {
            let mut sent = sent();
            let over = bytes.chunks(size).position(|part| sent.add(part));
            assert_eq!(over, end.map(|end| (end - 1) / size), "{size}");
        }
        end
    }

    #[test]
    fn a_request_of_http_1_ends_with_its_body() {
        let head = b"POST / HTTP/1.1\r\nX: y\r\n\r\n";
        assert_eq!(end(|| Sent::http_1(0), head), Some(head.len()));
        assert_eq!(end(|| Sent::http_1(0), &head[..head.len() - 1]), None);
        let whole = [&head[..], b"a\r\n\r\nb"].concat();
        assert_eq!(end(|| Sent::http_1(6), &whole), Some(whole.len()));
        assert_eq!(end(|| Sent::http_1(7), &whole), None);
    }

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], &vec![b'x'; length.into()][..]].concat()
    }

    #[test]
    fn a_request_of_http_2_ends_with_its_stream() {
        let preface = || b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = || frame(4, 0, 6);
        let acknowledgement = || frame(4, 1, 0);
        for (request, what) in [
            (frame(HEADERS_FRAME, END_STREAM | END_HEADERS, 20), "no body"),
            ([frame(HEADERS_FRAME, END_HEADERS, 20), frame(DATA, 0, 5), frame(DATA, END_STREAM, 5)].concat(), "a body"),
            ([frame(HEADERS_FRAME, END_HEADERS, 20), frame(DATA, END_STREAM, 0)].concat(), "an empty frame"),
            (
                [frame(HEADERS_FRAME, END_STREAM, 20), frame(CONTINUATION, 0, 9), frame(CONTINUATION, END_HEADERS, 9)]
                    .concat(),
                "long headers",
            ),
        ] {
            let before = [preface(), settings(), acknowledgement(), request].concat();
            let all = [before.clone(), acknowledgement(), frame(8, 0, 4)].concat();
            assert_eq!(end(Sent::http_2, &all), Some(before.len()), "{what}");
            assert_eq!(end(Sent::http_2, &before[..before.len() - 1]), None, "{what}");
        }
    }
}
