//! Where messages begin and end in the bytes of a control channel: a NUL after each (the `DevTools` protocol over a pipe), or
//! WebSocket frames (RFC 6455, section 5). Pure: no sockets.
//!
//! A page decides how long some messages are: what it logs, and the `data:` URLs that it loads. No longer message is kept
//! than [`MESSAGE_BYTES`]; the rest is skipped without being stored, and the channel goes on. A WebSocket library
//! keeps whole messages, and ends the connection when one is too long, so that only its frame headers are used here.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

/// The largest answer that is expected is a screenshot: the pixels of 1280 by 720, not compressed at all, in base64.
pub const MESSAGE_BYTES: usize = 6 << 20;
/// So much is kept of a message that is too long.
pub const HEAD_BYTES: usize = 512;
/// A buffer that has grown beyond this is given back after its message.
const KEPT_BYTES: usize = 64 << 10;
/// RFC 6455, section 5.5: control frames are not longer.
const CONTROL_BYTES: u64 = 125;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    NulTerminated,
    WebSocket,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    Message(&'a [u8]),
    /// Its beginning, and how long it was.
    TooLong {
        head: &'a [u8],
        bytes: u64,
    },
    Ping(&'a [u8]),
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a frame that a WebSocket server may send")]
pub struct FramingError;

/// Bytes to messages.
#[derive(Debug)]
pub struct Decoder {
    framing: Framing,
    message: Vec<u8>,
    /// Of the message so far, kept or not.
    bytes: u64,
    /// The message has been returned.
    complete: bool,
    /// The frame that is being read, and how much of it is still to come.
    frame: Option<(FrameHeader, u64)>,
    header: Vec<u8>,
    control: Vec<u8>,
}

impl Decoder {
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self { framing, message: vec![], bytes: 0, complete: false, frame: None, header: vec![], control: vec![] }
    }

    /// Takes bytes of the channel, up to the end of the next message. None: they do not complete one.
    ///
    /// # Errors
    /// When they are no frames; nothing can be read from the channel then.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Incoming<'_>>, FramingError> {
        if std::mem::take(&mut self.complete) {
            self.message.clear();
            self.message.shrink_to(KEPT_BYTES);
            self.bytes = 0;
        }
        match self.framing {
            Framing::NulTerminated => {
                let end = bytes.iter().position(|byte| *byte == 0);
                self.keep(&bytes[..end.unwrap_or(bytes.len())]);
                *bytes = &bytes[end.map_or(bytes.len(), |end| end + 1)..];
                Ok(end.map(|_| self.message()))
            }
            Framing::WebSocket => self.frames(bytes),
        }
    }

    /// The message that [`next`](Self::next) has just returned, without a copy.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.message)
    }

    fn frames(&mut self, bytes: &mut &[u8]) -> Result<Option<Incoming<'_>>, FramingError> {
        loop {
            let Some((header, remaining)) = self.frame.take() else {
                let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
                *bytes = rest;
                self.header.push(*first);
                let parsed = FrameHeader::parse(&mut Cursor::new(&self.header)).map_err(|_| FramingError)?;
                if let Some((header, length)) = parsed {
                    let control = matches!(header.opcode, OpCode::Control(_));
                    let reserved = header.rsv1 || header.rsv2 || header.rsv3 || header.mask.is_some();
                    if reserved || (control && (length > CONTROL_BYTES || !header.is_final)) {
                        return Err(FramingError);
                    }
                    self.header.clear();
                    self.control.clear();
                    self.frame = Some((header, length));
                }
                continue;
            };
            let here = bytes.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
            let (payload, rest) = bytes.split_at(here);
            *bytes = rest;
            match header.opcode {
                OpCode::Data(_) => self.keep(payload),
                OpCode::Control(_) => self.control.extend_from_slice(payload),
            }
            let remaining = remaining - u64::try_from(here).unwrap_or(remaining);
            if remaining > 0 {
                self.frame = Some((header, remaining));
                return Ok(None);
            }
            match header.opcode {
                OpCode::Data(_) if header.is_final => return Ok(Some(self.message())),
                OpCode::Control(Control::Ping) => return Ok(Some(Incoming::Ping(&self.control))),
                OpCode::Control(Control::Close) => return Ok(Some(Incoming::Close)),
                OpCode::Data(_) | OpCode::Control(_) => {}
            }
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        self.bytes = self.bytes.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if self.bytes > MESSAGE_BYTES as u64 {
            let head = HEAD_BYTES.saturating_sub(self.message.len()).min(piece.len());
            self.message.extend_from_slice(&piece[..head]);
            self.message.truncate(HEAD_BYTES);
            self.message.shrink_to(KEPT_BYTES);
            return;
        }
        let wanted = self.message.len() + piece.len();
        if wanted > self.message.capacity() {
            // Twice as much, as always, but never beyond the longest message.
            let capacity = (self.message.capacity() * 2).min(MESSAGE_BYTES).max(wanted);
            self.message.reserve_exact(capacity - self.message.len());
        }
        self.message.extend_from_slice(piece);
    }

    fn message(&mut self) -> Incoming<'_> {
        self.complete = true;
        if self.bytes > MESSAGE_BYTES as u64 {
            Incoming::TooLong { head: &self.message, bytes: self.bytes }
        } else {
            Incoming::Message(&self.message)
        }
    }
}

impl Framing {
    /// A message of this host, encoded for the channel.
    #[must_use]
    pub fn encode(self, message: String) -> Vec<u8> {
        match self {
            Self::NulTerminated => {
                let mut bytes = message.into_bytes();
                bytes.push(0);
                bytes
            }
            Self::WebSocket => frame(Frame::message(message, OpCode::Data(Data::Text), true)),
        }
    }

    /// The answer to a ping.
    #[must_use]
    pub fn pong(payload: &[u8]) -> Vec<u8> {
        frame(Frame::pong(payload.to_vec()))
    }
}

/// Clients mask (RFC 6455, section 5.3).
fn frame(mut frame: Frame) -> Vec<u8> {
    frame.header_mut().mask = Some(rand::random());
    let mut bytes = vec![];
    // Nothing can go wrong in memory.
    let _ = frame.format(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(framing: Framing, bytes: &[u8], step: usize) -> Result<Vec<String>, FramingError> {
        let mut decoder = Decoder::new(framing);
        let mut seen = vec![];
        for chunk in bytes.chunks(step) {
            let mut rest = chunk;
            while let Some(incoming) = decoder.next(&mut rest)? {
                seen.push(match incoming {
                    Incoming::Message(text) => String::from_utf8_lossy(text).into_owned(),
                    Incoming::TooLong { head, bytes } => format!("{} of {bytes}", head.len()),
                    Incoming::Ping(payload) => format!("ping {}", payload.len()),
                    Incoming::Close => "close".into(),
                });
            }
            assert!(rest.is_empty(), "all of it is taken");
        }
        assert!(decoder.message.capacity() <= MESSAGE_BYTES, "{}", decoder.message.capacity());
        Ok(seen)
    }

    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).expect("short");
        let mut bytes = vec![first];
        match u8::try_from(length) {
            Ok(short) if short < 126 => bytes.push(short),
            _ => {
                bytes.push(126);
                bytes.extend(length.to_be_bytes());
            }
        }
        [bytes, payload.to_vec()].concat()
    }

    #[test]
    fn messages_end_at_a_nul_however_they_arrive() {
        for step in [1, 2, 5, 100] {
            assert_eq!(all(Framing::NulTerminated, b"{}\0\0abc\0rest", step).expect("frames"), ["{}", "", "abc"]);
        }
    }

    #[test]
    fn frames_are_put_together_and_pings_may_come_between_them() {
        let long = vec![b'x'; 300];
        let bytes = [
            server_frame(0x81, b"{}"),
            server_frame(0x01, b"one "),
            server_frame(0x89, b"still there?"),
            server_frame(0x80, b"message"),
            server_frame(0x81, &long),
            server_frame(0x81, b""),
            server_frame(0x88, &[3, 232]),
        ]
        .concat();
        let long = String::from_utf8(long).expect("text");
        for step in [1, 3, 1000] {
            assert_eq!(
                all(Framing::WebSocket, &bytes, step).expect("frames"),
                ["{}", "ping 12", "one message", &long, "", "close"]
            );
        }
    }

    #[test]
    fn a_message_can_be_had_without_a_copy() {
        let mut decoder = Decoder::new(Framing::NulTerminated);
        let mut bytes = &b"one\0two\0"[..];
        assert_eq!(decoder.next(&mut bytes), Ok(Some(Incoming::Message(b"one"))));
        assert_eq!(decoder.take(), b"one");
        assert_eq!(decoder.next(&mut bytes), Ok(Some(Incoming::Message(b"two"))));
        assert_eq!(decoder.next(&mut bytes), Ok(None));
    }

    #[test]
    fn what_a_server_may_not_send_is_an_error() {
        for bytes in [&[0xc1, 0][..], &[0x81, 0x80, 0, 0, 0, 0], &[0x83, 0], &[0x09, 0], &[0x89, 126, 0, 200]] {
            assert_eq!(all(Framing::WebSocket, bytes, 1), Err(FramingError), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_passed_over_and_the_next_one_read() {
        let long = vec![b'x'; MESSAGE_BYTES + 1];
        let bytes = [&long[..], b"\0next\0"].concat();
        for step in [1 << 16, bytes.len()] {
            let seen = all(Framing::NulTerminated, &bytes, step).expect("frames");
            assert_eq!(seen, [format!("{HEAD_BYTES} of {}", long.len()), "next".into()]);
        }
        let exact = [&long[1..], b"\0"].concat();
        assert_eq!(all(Framing::NulTerminated, &exact, 1 << 16).expect("frames")[0].len(), MESSAGE_BYTES);
        let mut decoder = Decoder::new(Framing::NulTerminated);
        for _ in 0..100 {
            assert_eq!(decoder.next(&mut &long[..1 << 20]), Ok(None));
        }
        assert!(decoder.message.capacity() <= KEPT_BYTES, "nothing is kept of it: {}", decoder.message.capacity());
    }

    #[test]
    fn what_we_send_is_masked() {
        let bytes = Framing::WebSocket.encode("hello".into());
        assert_eq!((bytes[0], bytes[1]), (0x81, 0x85));
        let unmasked: Vec<u8> =
            bytes[6..].iter().zip(bytes[2..6].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(unmasked, b"hello");
    }
}
