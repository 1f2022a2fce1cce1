//! What the caller wrote, and nothing more: a JSON object of lists of option sets.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// One option set as it was written.
pub type Options = Map<String, Value>;

/// Types in the order in which they were written, each with its option sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload(pub Vec<(String, Vec<Options>)>);

/// The payload has no meaning at all: the caller gets a 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("Valid request payload not found.")]
    NotAnObject,
    #[error("Provided payload has a name more than once: '{0}'.")]
    Doubled(String),
    #[error("{0}: expected a list of option objects")]
    NotAList(String),
    #[error("{0}[{1}]: expected an object of options")]
    NotOptions(String, usize),
    #[error("Provided number of tests is too high. Max: {max}")]
    TooManyTests { max: usize },
}

impl Payload {
    /// # Errors
    /// See [`PayloadError`]. Nesting deeper than 128 levels counts as not JSON.
    pub fn parse(body: &[u8], max_tests: usize) -> Result<Self, PayloadError> {
        let types = match serde_json::from_slice(body) {
            Ok(Unique(Value::Object(types))) => types,
            Err(error) if error.is_data() => return Err(PayloadError::Doubled(doubled_name(&error))),
            _ => return Err(PayloadError::NotAnObject),
        };
        let mut payload = Vec::with_capacity(types.len());
        let mut tests = 0;
        for (name, value) in types {
            let Value::Array(sets) = value else { return Err(PayloadError::NotAList(name)) };
            tests += sets.len();
            if tests > max_tests {
                return Err(PayloadError::TooManyTests { max: max_tests });
            }
            let mut options = Vec::with_capacity(sets.len());
            for (index, set) in sets.into_iter().enumerate() {
                let Value::Object(set) = set else { return Err(PayloadError::NotOptions(name, index)) };
                options.push(set);
            }
            payload.push((name, options));
        }
        Ok(Self(payload))
    }
}

/// JSON whose objects have every name once. `serde_json` would keep the last of two, and a list of tests would be lost
/// without a word.
struct Unique(Value);

/// Stands around the name in the error's text, which is all that an error can carry.
const MARK: char = '\u{1}';

fn doubled_name(error: &serde_json::Error) -> String {
    error.to_string().split(MARK).nth(1).unwrap_or_default().chars().take(100).collect()
}

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = vec![];
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format_args!("{MARK}{name}{MARK}")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_malformed_payload_is_named() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let cases: &[(&str, &str)] = &[
            ("", "Valid request payload not found."),
            ("nope", "Valid request payload not found."),
            ("[]", "Valid request payload not found."),
            ("null", "Valid request payload not found."),
            (&deep, "Valid request payload not found."),
            (r#"{"ping": [], "ping": []}"#, "Provided payload has a name more than once: 'ping'."),
            (r#"{"ping": [{"dst": "a", "dst": "b"}]}"#, "Provided payload has a name more than once: 'dst'."),
            (r#"{"ping": [{"a": {"b": 1, "b": 2}}]}"#, "Provided payload has a name more than once: 'b'."),
            (r#"{"ping": {}}"#, "ping: expected a list of option objects"),
            (r#"{"ping": [[]]}"#, "ping[0]: expected an object of options"),
            (r#"{"ping": [{}, 1]}"#, "ping[1]: expected an object of options"),
            (r#"{"ping": [{}, {}], "x": [{}]}"#, "Provided number of tests is too high. Max: 2"),
        ];
        for (body, error) in cases {
            let got = Payload::parse(body.as_bytes(), 2).expect_err(body).to_string();
            assert_eq!(&got, error, "for {body}");
        }
    }

    #[test]
    fn order_of_types_is_kept() {
        let payload = Payload::parse(br#"{"z": [{}], "a": [{}]}"#, 10).expect("valid");
        assert_eq!(payload.0.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["z", "a"]);
    }

    #[test]
    fn values_are_kept_as_they_were_written() {
        let text = r#"{"a":[{"n":null,"t":true,"i":-3,"u":18446744073709551615,"f":1.5,"s":"x","l":[[],{}]}]}"#;
        let Payload(types) = Payload::parse(text.as_bytes(), 1).expect("valid");
        assert_eq!(format!(r#"{{"a":[{}]}}"#, Value::Object(types[0].1[0].clone())), text);
    }

    #[test]
    fn an_empty_object_is_a_payload_without_tests() {
        assert_eq!(Payload::parse(b"{}", 10), Ok(Payload(vec![])));
    }
}
