//! The API's JSON of tests and receipts: one type for each body, of which both the answers (serde) and the OpenAPI
//! document (utoipa) are made. Bodies of a single resource are defined beside its routes.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::Value;
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::value::RawValue;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

/// One entry of a result list.
#[derive(Serialize, ToSchema)]
pub struct Test<'a> {
    /// The caller's own, or 6 random hexadecimal digits.
    #[schema(schema_with = text_or_number)]
    pub id: &'a Value,
    pub failed: bool,
    /// Why it could not run.
    #[schema(required)]
    pub message: Option<String>,
    #[schema(schema_with = any_object)]
    pub result: &'a RawValue,
    pub timing: Timing,
    /// Null when there is no such test type.
    #[schema(required)]
    pub plugin: Option<PluginName<'a>>,
    /// Which limit or mistake ended the plugin.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub error: Option<&'static str>,
}

#[derive(Serialize, ToSchema)]
pub struct Timing {
    /// Milliseconds of waiting.
    pub queued_ms: f64,
    /// RFC 3339; null when it did not run.
    #[schema(required)]
    pub started_at: Option<String>,
    #[schema(required)]
    pub duration_ms: Option<f64>,
}

#[derive(Serialize, ToSchema)]
pub struct PluginName<'a> {
    pub name: &'a str,
    pub version: &'a str,
}

/// Types, each with its option sets; `plan` reads them. In the document its properties are those of the plugins that are
/// loaded.
pub enum Payload {}

impl PartialSchema for Payload {
    fn schema() -> RefOr<Schema> {
        any_object().into()
    }
}

impl ToSchema for Payload {}

/// The answer to a payload, without `wait`.
#[derive(Serialize, ToSchema)]
pub struct Submitted<'a> {
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub receipt: &'a str,
}

/// The answer to a payload: with `wait` the tests.
pub enum Accepted {}

impl PartialSchema for Accepted {
    fn schema() -> RefOr<Schema> {
        let either =
            AnyOfBuilder::new().item(Ref::from_schema_name("Submitted")).item(Ref::from_schema_name("Receipt"));
        either.into()
    }
}

impl ToSchema for Accepted {
    fn schemas(all: &mut Vec<(String, RefOr<Schema>)>) {
        all.push((Submitted::name().into(), Submitted::schema()));
        all.push((Receipt::name().into(), Receipt::schema()));
        Receipt::schemas(all);
    }
}

/// The tests of one payload.
#[derive(Serialize, ToSchema)]
pub struct Receipt<'a> {
    pub receipt: &'a str,
    pub is_running: bool,
    pub results: Results<'a>,
    pub progress: Progress,
}

#[derive(Serialize, ToSchema)]
pub struct Progress {
    pub finished: usize,
    pub total: usize,
}

/// What happens to a test, as the data of an event: `result` so far, or the finished `test`.
#[derive(Serialize, ToSchema)]
pub struct Event<'a> {
    pub r#type: &'a str,
    /// Among the tests of its type, from 0.
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = any_object)]
    pub result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = a_test)]
    pub test: Option<&'a RawValue>,
}

#[derive(Serialize, ToSchema)]
pub struct Message {
    pub message: &'static str,
}

#[derive(Serialize, ToSchema)]
pub struct Error {
    pub error: String,
}

/// Types in the order of the payload, each with its finished tests. In the document its properties are those of the
/// plugins that are loaded.
pub struct Results<'a>(pub Vec<(&'a str, Vec<&'a RawValue>)>);

impl Serialize for Results<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, tests) in &self.0 {
            map.serialize_entry(name, tests)?;
        }
        map.end()
    }
}

impl PartialSchema for Results<'_> {
    fn schema() -> RefOr<Schema> {
        any_object().into()
    }
}

impl ToSchema for Results<'_> {
    fn name() -> std::borrow::Cow<'static, str> {
        "Results".into()
    }
}

fn any_object() -> Schema {
    ObjectBuilder::new().schema_type(Type::Object).into()
}

fn text_or_number() -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Number])).into()
}

fn a_test() -> Ref {
    Ref::from_schema_name("Test")
}

/// JSON of a value in which every raw value is [`RawValue::NULL`] and stands for the next of `shared`: the large parts
/// of a body are shared by all who read it, not copied.
pub fn spliced(value: &impl Serialize, shared: impl IntoIterator<Item = Bytes>) -> Vec<Bytes> {
    let pieces = Rc::new(RefCell::new(Pieces::default()));
    let splice = Splice { pieces: Rc::clone(&pieces), shared: shared.into_iter() };
    // Writing to memory cannot fail, and the values are made of texts and numbers.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(Writer(Rc::clone(&pieces)), splice));
    let mut pieces = pieces.take();
    pieces.end_text();
    pieces.all
}

#[derive(Default)]
struct Pieces {
    all: Vec<Bytes>,
    text: Vec<u8>,
}

impl Pieces {
    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.all.push(std::mem::take(&mut self.text).into());
        }
    }
}

struct Writer(Rc<RefCell<Pieces>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Splice<I> {
    pieces: Rc<RefCell<Pieces>>,
    shared: I,
}

impl<I: Iterator<Item = Bytes>> Formatter for Splice<I> {
    fn write_raw_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let Some(shared) = self.shared.next() else { return CompactFormatter.write_raw_fragment(writer, fragment) };
        let mut pieces = self.pieces.borrow_mut();
        pieces.end_text();
        pieces.all.push(shared);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_parts_are_shared_and_not_copied() {
        let large = Bytes::from_static(b"{\"x\":1}");
        let results = Results(vec![("a\"", vec![RawValue::NULL, RawValue::NULL]), ("b", vec![])]);
        let progress = Progress { finished: 2, total: 3 };
        let receipt = Receipt { receipt: "r", is_running: true, results, progress };
        let pieces = spliced(&receipt, [large.clone(), large.clone()]);
        assert!(pieces.iter().filter(|piece| piece.as_ptr() == large.as_ptr()).count() == 2);
        let text = r#"{"receipt":"r","is_running":true,"results":{"a\"":[{"x":1},{"x":1}],"b":[]},"progress":{"finished":2,"total":3}}"#;
        assert_eq!(String::from_utf8(pieces.concat()).expect("UTF-8"), text);
    }
}
