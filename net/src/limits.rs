//! Limits on the responses of HTTP servers, of exchanges and of DNS questions. Pure: counters and errors.

use http::HeaderMap;

use crate::metered::Observe;

pub const HEADERS: usize = 100;
pub const HEADER_BYTES: usize = 64 << 10;
/// Of the body as it is transferred.
pub const BODY_BYTES: u64 = 64 << 20;
/// Of the body after content decoding.
pub const DECODED_BYTES: u64 = 10 << 20;
/// Interim responses (1xx) before the final one. 102 Processing is sent every 20 seconds, 103 Early Hints once or twice.
pub const INTERIM: usize = 32;
/// Pieces of the body (chunks of HTTP/1, DATA frames), besides one for each 256 bytes. Each costs the client as much as
/// a full one.
pub const PIECES: u64 = 65_536;
/// As [`PIECES`], over HTTP/3, where a piece costs more: each takes two looks through what has come and is not yet read.
pub const PIECES_OF_HTTP_3: u64 = 4096;
const PIECE_BYTES: u64 = 256;
/// Frames of HTTP/2 that control the connection, besides one for each 4 KiB of the body: some servers measure the
/// bandwidth with a PING for each window.
pub const CONTROL_FRAMES: u64 = 1024;
const CONTROL_BYTES: u64 = 4096;
/// HEADERS and CONTINUATION frames: interim responses, head and trailers.
pub const HEADER_FRAMES: u64 = 128;
/// Bytes on the streams of an HTTP/3 connection besides those of the body: frames of headers, of control, and unknown ones,
/// which are ignored (RFC 9114, section 9).
pub const FRAMING_BYTES: u64 = 1 << 20;
/// Streams that an HTTP/3 server opens: control, QPACK, and reserved ones.
pub const STREAMS: u32 = 64;

/// The limit that was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error("response headers pass {} KiB or {HEADERS} fields", HEADER_BYTES >> 10)]
    Headers,
    /// Not an error: the body is cut there.
    #[error("the body passes {0} bytes")]
    Body(u64),
    #[error("more than {INTERIM} interim responses (1xx)")]
    Interim,
    #[error("the body comes in more than {0} pieces of less than {PIECE_BYTES} bytes")]
    Pieces(u64),
    #[error("more than {CONTROL_FRAMES} HTTP/2 frames that carry neither headers nor a body")]
    ControlFrames,
    #[error("more than {HEADER_FRAMES} HTTP/2 frames of headers")]
    HeaderFrames,
    #[error("more than {} MiB of HTTP/3 frames that carry no body", FRAMING_BYTES >> 20)]
    Framing,
    #[error("more than {STREAMS} HTTP/3 streams opened by the server")]
    Streams,
}

/// Codecs stop at about these bounds, each in its own way; this is the exact one.
///
/// # Errors
/// When there are too many, or they are too long.
pub fn check_headers(headers: &HeaderMap) -> Result<(), Exceeded> {
    if header_bytes(headers) > HEADER_BYTES || headers.len() > HEADERS { Err(Exceeded::Headers) } else { Ok(()) }
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Interim responses of HTTP/1 and 3.
#[derive(Debug, Default)]
pub struct Interim {
    count: usize,
    bytes: usize,
}

impl Interim {
    /// # Errors
    /// When there are too many, or their headers are too long together.
    pub fn add(&mut self, headers: &HeaderMap) -> Result<(), Exceeded> {
        self.count += 1;
        self.bytes += header_bytes(headers);
        if self.bytes > HEADER_BYTES {
            return Err(Exceeded::Headers);
        }
        if self.count > INTERIM { Err(Exceeded::Interim) } else { Ok(()) }
    }
}

/// Pieces of a body.
#[derive(Debug)]
pub struct Pieces {
    most: u64,
    most_bytes: u64,
    count: u64,
    pub bytes: u64,
}

impl Default for Pieces {
    fn default() -> Self {
        Self::at_most(PIECES)
    }
}

impl Pieces {
    /// So many, besides one for each 256 bytes.
    #[must_use]
    pub fn at_most(most: u64) -> Self {
        Self { most, most_bytes: BODY_BYTES, count: 0, bytes: 0 }
    }

    /// Of a body that is read up to so many bytes.
    #[must_use]
    pub fn up_to(self, most_bytes: u64) -> Self {
        Self { most_bytes, ..self }
    }

    /// # Errors
    /// When the body is too long, or comes in too many pieces.
    pub fn add(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.count += 1;
        self.bytes += bytes as u64;
        if self.bytes > self.most_bytes {
            return Err(Exceeded::Body(self.most_bytes));
        }
        if self.count > self.most + self.bytes / PIECE_BYTES { Err(Exceeded::Pieces(self.most)) } else { Ok(()) }
    }
}

/// What the streams of an HTTP/3 connection carry.
#[derive(Debug, Default)]
pub struct Portions {
    streams: u32,
    read: u64,
    body: u64,
}

impl Portions {
    /// Bytes were read from a stream.
    ///
    /// # Errors
    /// When too many of them are no body.
    pub fn stream(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.read += bytes as u64;
        if self.read - self.body.min(self.read) > FRAMING_BYTES { Err(Exceeded::Framing) } else { Ok(()) }
    }

    /// So many of them were of the body.
    pub fn body(&mut self, bytes: usize) {
        self.body += bytes as u64;
    }

    /// The server has opened a stream.
    ///
    /// # Errors
    /// When it has opened too many.
    pub fn accepted(&mut self) -> Result<(), Exceeded> {
        self.streams += 1;
        if self.streams > STREAMS { Err(Exceeded::Streams) } else { Ok(()) }
    }
}

/// Header of an HTTP/2 frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
}

/// Finds the frames of HTTP/2 (RFC 9113, section 4.1) in the bytes of a connection.
#[derive(Debug, Default)]
pub struct FrameHeaders {
    header: [u8; 9],
    have: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

impl FrameHeaders {
    /// The next header that these bytes complete; they are taken up to its end.
    pub fn find(&mut self, bytes: &mut &[u8]) -> Option<FrameHeader> {
        let payload = self.payload.min(bytes.len());
        self.payload -= payload;
        *bytes = &bytes[payload..];
        let header = (self.header.len() - self.have).min(bytes.len());
        self.header[self.have..self.have + header].copy_from_slice(&bytes[..header]);
        self.have += header;
        *bytes = &bytes[header..];
        if self.have < self.header.len() {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, ..] = self.header;
        self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some(FrameHeader { length: self.payload, kind, flags })
    }

    /// Has the frame that was found last come to its end?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.payload == 0
    }
}

/// Frames of an HTTP/2 connection, counted as their bytes come. h2 handles as many as a server sends.
#[derive(Debug, Default)]
pub struct Frames {
    found: FrameHeaders,
    data: Pieces,
    control: u64,
    headers: u64,
}

impl Observe for Frames {
    fn has_read(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.add(bytes).map_err(std::io::Error::other)
    }
}

pub const DATA: u8 = 0;
pub const HEADERS_FRAME: u8 = 1;
const PUSH_PROMISE: u8 = 5;
pub const CONTINUATION: u8 = 9;

impl Frames {
    /// # Errors
    /// When there are too many frames.
    pub fn add(&mut self, mut bytes: &[u8]) -> Result<(), Exceeded> {
        while let Some(frame) = self.found.find(&mut bytes) {
            self.count(frame)?;
        }
        Ok(())
    }

    fn count(&mut self, frame: FrameHeader) -> Result<(), Exceeded> {
        match frame.kind {
            // The body's own limit is that of the stream; there may be data of others.
            DATA => match self.data.add(frame.length) {
                Ok(()) | Err(Exceeded::Body(_)) => Ok(()),
                Err(exceeded) => Err(exceeded),
            },
            HEADERS_FRAME | PUSH_PROMISE | CONTINUATION => {
                self.headers += 1;
                if self.headers > HEADER_FRAMES { Err(Exceeded::HeaderFrames) } else { Ok(()) }
            }
            _ => {
                self.control += 1;
                let most = CONTROL_FRAMES + self.data.bytes / CONTROL_BYTES;
                if self.control > most { Err(Exceeded::ControlFrames) } else { Ok(()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = u32::try_from(length).expect("short").to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.resize(9 + length, 0x55);
        frame
    }

    /// How many of these frames are taken.
    fn taken(frame: &[u8], most: usize) -> (usize, Option<Exceeded>) {
        let mut frames = Frames::default();
        for count in 0..most {
            if let Err(exceeded) = frames.add(frame) {
                return (count, Some(exceeded));
            }
        }
        (most, None)
    }

    #[test]
    fn every_kind_of_frame_has_its_limit() {
        let pieces = usize::try_from(PIECES).expect("a number");
        assert_eq!(taken(&frame(DATA, 0), 1_000_000), (pieces, Some(Exceeded::Pieces(PIECES))));
        assert_eq!(taken(&frame(DATA, 256), 1_000_000), (1_000_000, None), "frames of a body as bodies are");
        for kind in [2, 3, 4, 6, 7, 8, 0x77] {
            assert_eq!(taken(&frame(kind, 8), 1_000_000), (1024, Some(Exceeded::ControlFrames)), "{kind}");
        }
        for kind in [HEADERS_FRAME, PUSH_PROMISE, CONTINUATION] {
            assert_eq!(taken(&frame(kind, 5), 1_000_000), (128, Some(Exceeded::HeaderFrames)), "{kind}");
        }
        let ping_for_each_window = [frame(DATA, 16_384), frame(6, 8)].concat();
        assert_eq!(taken(&ping_for_each_window, 4096), (4096, None));
    }

    #[test]
    fn frames_are_the_same_however_their_bytes_come() {
        let bytes: Vec<u8> = (0..2000).flat_map(|n| frame(if n % 3 == 0 { 6 } else { DATA }, n % 40)).collect();
        for size in [1, 2, 8, 9, 10, 1000, bytes.len()] {
            let mut frames = Frames::default();
            for part in bytes.chunks(size) {
                frames.add(part).expect("within limits");
            }
            assert_eq!(
                (frames.control, frames.data.count, frames.found.payload, frames.found.have),
                (667, 1333, 0, 0),
                "{size}"
            );
        }
    }

    #[test]
    fn what_http_3_carries_besides_the_body_is_limited() {
        let mut portions = Portions::default();
        for _ in 0..10_000 {
            portions.stream(1200).expect("a body");
            portions.body(1190);
        }
        let free = FRAMING_BYTES - 100_000;
        portions.stream(usize::try_from(free).expect("a number")).expect("up to the limit");
        assert_eq!(portions.stream(1), Err(Exceeded::Framing));
        assert_eq!((0..100).position(|_| portions.accepted().is_err()), Some(STREAMS as usize));
    }

    #[test]
    fn interim_responses_are_few_and_short() {
        let mut headers = HeaderMap::new();
        let mut interim = Interim::default();
        assert_eq!((0..100).position(|_| interim.add(&headers).is_err()), Some(INTERIM));
        headers.insert("link", "x".repeat(10_000).parse().expect("a value"));
        let mut interim = Interim::default();
        assert_eq!((0..100).find_map(|_| interim.add(&headers).err()), Some(Exceeded::Headers));
    }
}
