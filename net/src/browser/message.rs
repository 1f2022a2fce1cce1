//! Messages of a browser on its control channel, reduced to the fields that are used. Pure: no sockets.
//!
//! A page decides how large parts of it are. Unused parts are skipped in place: the values of
//! an array that a page has logged become no objects of this program. What is kept of a text is bounded.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{DeserializeOwned, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// No text of a message is kept beyond this.
pub const TEXT_BYTES: usize = 8192;

/// A text that a page may have written: its beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Text(pub String);

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Text {
    /// None when it is empty.
    #[must_use]
    pub fn known(self) -> Option<String> {
        (!self.0.is_empty()).then_some(self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        LongText::deserialize(deserializer).map(|text| Self(text.beginning))
    }
}

/// Likewise, where the length of the whole text is of interest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LongText {
    pub beginning: String,
    /// Of the whole text.
    pub bytes: usize,
}

impl<'de> Deserialize<'de> for LongText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Bounded)
    }
}

struct Bounded;

impl Visitor<'_> for Bounded {
    type Value = LongText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or null")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<LongText, E> {
        Ok(LongText { beginning: beginning(text, TEXT_BYTES).to_owned(), bytes: text.len() })
    }

    fn visit_unit<E: Error>(self) -> Result<LongText, E> {
        Ok(LongText::default())
    }
}

/// At most so many bytes of it, and whole characters.
#[must_use]
pub fn beginning(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The first `N` of a list that a page may have made as long as it likes.
///
/// # Errors
/// When it is no list.
pub fn first<'de, D: Deserializer<'de>, T: Deserialize<'de>, const N: usize>(list: D) -> Result<Vec<T>, D::Error> {
    struct First<T, const N: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for First<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut first = vec![];
            while first.len() < N
                && let Some(item) = list.next_element()?
            {
                first.push(item);
            }
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }
    list.deserialize_seq(First::<T, N>(PhantomData))
}

/// Something that happened in the browser.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    pub method: &'a str,
    params: &'a str,
    /// The `DevTools` session that it happened in.
    pub session: Option<&'a str>,
}

impl Event<'_> {
    /// The fields that are used; None when they are not as the protocol defines them.
    #[must_use]
    pub fn params<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(self.params).ok()
    }
}

/// A command that failed: error code and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorResponse {
    pub code: String,
    pub message: String,
}

/// One message.
#[derive(Debug)]
pub enum Message<'a> {
    /// To the command of this number; the result as JSON.
    Answer(u64, Result<&'a str, ErrorResponse>),
    Event(Event<'a>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    id: Option<u64>,
    #[serde(default)]
    method: Text,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    session_id: Option<Text>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(default)]
    message: Text,
}

/// `DevTools`: an object.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DevToolsError {
    code: i64,
    message: Text,
}

/// Parses a message of either protocol, and calls `each` with it; anything else is ignored.
pub fn read<T>(bytes: &[u8], each: impl FnOnce(Message<'_>) -> T) -> Option<T> {
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).ok()?;
    let Some(id) = envelope.id else {
        let params = envelope.params.map_or("{}", RawValue::get);
        let session = envelope.session_id.as_deref();
        return Some(each(Message::Event(Event { method: &envelope.method, params, session })));
    };
    let answer = match envelope.error {
        None => Ok(envelope.result.map_or("{}", RawValue::get)),
        Some(error) => Err(match serde_json::from_str::<DevToolsError>(error.get()) {
            Ok(error) => ErrorResponse { code: error.code.to_string(), message: error.message.0 },
            // WebDriver BiDi: code and text are fields of the envelope.
            Err(_) => ErrorResponse { code: error.get().trim_matches('"').to_owned(), message: envelope.message.0 },
        }),
    };
    Some(each(Message::Answer(id, answer)))
}

/// The command that a message answers, by its beginning.
#[must_use]
pub fn answers(head: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(head);
    let rest = text.strip_prefix(r#"{"id":"#).or_else(|| text.strip_prefix(r#"{"type":"success","id":"#))?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(message: &str) -> Option<String> {
        read(message.as_bytes(), |message| match message {
            Message::Answer(id, Ok(result)) => format!("{id}: {result}"),
            Message::Answer(id, Err(error)) => format!("{id}: {} ({})", error.message, error.code),
            Message::Event(event) => format!("{} {} {}", event.session.unwrap_or("-"), event.method, event.params),
        })
    }

    #[test]
    fn both_protocols_are_read() {
        for (message, what) in [
            (r#"{"id":1,"result":{"a":[1]},"sessionId":"S"}"#, Some(r#"1: {"a":[1]}"#)),
            (r#"{"id":2,"error":{"code":-32000,"message":"no such target"}}"#, Some("2: no such target (-32000)")),
            (r#"{"method":"Page.load","params":{"x":1},"sessionId":"S"}"#, Some(r#"S Page.load {"x":1}"#)),
            (r#"{"type":"success","id":3,"result":{}}"#, Some("3: {}")),
            (
                r#"{"type":"error","id":4,"error":"no such frame","message":"gone","stacktrace":""}"#,
                Some("4: gone (no such frame)"),
            ),
            (r#"{"type":"event","method":"log.entryAdded","params":{}}"#, Some("- log.entryAdded {}")),
            (r#"{"id":"x"}"#, None),
            ("[]", None),
            ("{", None),
        ] {
            assert_eq!(described(message).as_deref(), what, "{message}");
        }
        assert!(read(b"{\"id\":1,\"result\":\"\xff\"}", |_| ()).is_none());
    }

    #[test]
    fn a_text_is_kept_up_to_a_bound_and_whole_in_its_characters() {
        let long = "é".repeat(TEXT_BYTES);
        let text: Text = serde_json::from_str(&format!("\"{long}\"")).expect("a text");
        assert_eq!(text.len(), TEXT_BYTES);
        let text: Text = serde_json::from_str(&format!("\"x{long}\"")).expect("a text");
        assert_eq!(text.len(), TEXT_BYTES - 1);
        assert_eq!(serde_json::from_str::<Text>("null").expect("a text"), Text::default());
        assert!(serde_json::from_str::<Text>("7").is_err());
    }

    #[test]
    fn the_command_that_a_long_message_answers_is_known_by_its_beginning() {
        for (head, id) in [
            (r#"{"id":17,"result":{"data":"iVBO"#, Some(17)),
            (r#"{"type":"success","id":5,"result":{"data":"#, Some(5)),
            (r#"{"type":"event","method":"log.entryAdded","params":{"id":5,"#, None),
            (r#"{"id":1"#, None),
        ] {
            assert_eq!(answers(head.as_bytes()), id, "{head}");
        }
    }
}
