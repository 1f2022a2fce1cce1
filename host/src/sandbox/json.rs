//! JSON objects that guests write: results, and partial results.
//!
//! Two bytes of JSON may be a value, which takes seventy bytes of memory, and an object takes several hundred: values are
//! counted before any of them is stored.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::budget::{RESULT_BYTES, RESULT_VALUES};

/// Bytes of a text that is read on an I/O thread: some tens of microseconds.
pub const SMALL: usize = 8 << 10;

/// Reads an object.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    if text.len() > RESULT_BYTES {
        return Err(format!("over {} KiB", RESULT_BYTES >> 10));
    }
    // A value takes two bytes: a short text has few.
    if text.len() / 2 > RESULT_VALUES {
        let left = Cell::new(Some(RESULT_VALUES));
        let mut json = serde_json::Deserializer::from_str(text);
        if let Err(error) = Count(&left).deserialize(&mut json) {
            return Err(match left.get() {
                None => format!("over {RESULT_VALUES} values"),
                Some(_) => format!("not JSON: {error}"),
            });
        }
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("not a JSON object".into()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

/// Reads any JSON, stores nothing, and takes each value from those that are left: None when there were too many.
#[derive(Clone, Copy)]
struct Count<'a>(&'a Cell<Option<usize>>);

impl Count<'_> {
    fn value<E: Error>(self) -> Result<(), E> {
        self.0.set(self.0.get().and_then(|left| left.checked_sub(1)));
        self.0.get().map(drop).ok_or_else(|| E::custom("too many values"))
    }
}

impl<'de> DeserializeSeed<'de> for Count<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.value()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.value()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.value()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.value()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.value()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.value()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.value()?;
        while items.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.value()?;
        while entries.next_key::<IgnoredAny>()?.is_some() {
            entries.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_and_anything_else_is_not() {
        let text = r#"{"a": [1, -1, 1.5, true, null, "é", {"b": {}}], "c": 18446744073709551615}"#;
        let object = parse_object(text).expect("an object");
        assert_eq!(Value::Object(object), serde_json::from_str::<Value>(text).expect("JSON"));
        for (text, error) in [("[1]", "not a JSON object"), ("{", "not JSON: EOF"), ("{} x", "not JSON: trailing")] {
            let found = parse_object(text).expect_err(text);
            assert!(found.starts_with(error), "{found}");
        }
        let deep = format!("{{\"x\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(parse_object(&deep).expect_err("too deep").starts_with("not JSON: recursion limit"));
        assert_eq!(parse_object(&" ".repeat(RESULT_BYTES + 1)), Err("over 512 KiB".into()));
    }

    #[test]
    fn an_object_of_too_many_values_is_refused_before_they_are_stored() {
        // The object and the list are values too.
        let of = |zeros: usize| format!("{{\"x\":[{}]}}", vec!["0"; zeros].join(","));
        assert!(parse_object(&of(RESULT_VALUES - 2)).is_ok());
        assert_eq!(parse_object(&of(RESULT_VALUES - 1)), Err("over 50000 values".into()));
        // All that fit into the largest result, whatever follows them.
        let text = format!("{{\"x\":[{}", "{},".repeat(RESULT_BYTES / 3 - 10));
        assert_eq!(parse_object(&text), Err("over 50000 values".into()));
    }
}
