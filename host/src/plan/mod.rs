//! What will be done: the payload, checked. Pure; nothing here waits or sends.

pub mod payload;

use std::sync::Arc;

use serde_json::Value;

use crate::plan::payload::{Options, Payload};
use crate::sandbox::schema::value_error;
use crate::sandbox::{Plugin, Plugins};

/// Bytes of one waiting test besides what the caller wrote.
const OVERHEAD: usize = 512;

/// Every test of one payload, in the order in which it was written.
#[derive(Debug)]
pub struct Plan {
    /// The test types in order, with the number of tests of each.
    pub types: Vec<(String, usize)>,
    pub tests: Vec<PlannedTest>,
}

/// One test.
#[derive(Debug)]
pub struct PlannedTest {
    /// Index into [`Plan::types`].
    pub type_index: usize,
    /// The caller's own, or six random hexadecimal digits.
    pub id: Value,
    pub action: Action,
}

/// What becomes of a test.
#[derive(Debug)]
pub enum Action {
    /// To be run with these options: a JSON object that satisfies the plugin's schema.
    Run { plugin: Arc<Plugin>, options: String },
    /// Cannot run, and why; `plugin` is None when there is no such test type.
    Refuse { plugin: Option<Arc<Plugin>>, message: String },
}

impl Plan {
    #[must_use]
    pub fn new(payload: Payload, plugins: &Plugins) -> Self {
        let mut plan = Self { types: Vec::with_capacity(payload.0.len()), tests: vec![] };
        for (type_index, (name, sets)) in payload.0.into_iter().enumerate() {
            let plugin = plugins.get(&name);
            plan.types.push((name, sets.len()));
            plan.tests.extend(sets.into_iter().map(|options| PlannedTest::new(type_index, options, plugin)));
        }
        plan
    }
}

impl PlannedTest {
    /// Bytes that the test holds while it waits.
    #[must_use]
    pub fn weight(&self) -> usize {
        let id = self.id.as_str().map_or(0, str::len);
        let text = match &self.action {
            Action::Run { options, .. } => options.len(),
            Action::Refuse { message, .. } => message.len(),
        };
        OVERHEAD + id + text
    }

    fn new(type_index: usize, mut options: Options, plugin: Option<&Arc<Plugin>>) -> Self {
        let (id, bad_id) = take_id(&mut options);
        let action = match (plugin, bad_id) {
            (None, _) => Action::Refuse { plugin: None, message: "Provided test type does not exist.".into() },
            (Some(plugin), Some(message)) => Action::Refuse { plugin: Some(Arc::clone(plugin)), message },
            (Some(plugin), None) => match plugin.options.check(options) {
                Ok(options) => Action::Run { plugin: Arc::clone(plugin), options: Value::Object(options).to_string() },
                Err(message) => Action::Refuse { plugin: Some(Arc::clone(plugin)), message },
            },
        };
        Self { type_index, id, action }
    }
}

/// Characters of an id that is a text: it is kept with the result.
pub const ID_CHARS: usize = 256;

/// The caller's id if it is a text or a number; a fresh one without, and a fresh one and what is wrong with anything else.
fn take_id(options: &mut Options) -> (Value, Option<String>) {
    let names: Vec<String> = options.keys().filter(|name| name.eq_ignore_ascii_case("id")).cloned().collect();
    let mut given = names.iter().filter_map(|name| options.shift_remove(name)).filter(|id| !id.is_null());
    match (given.next(), given.next()) {
        (_, Some(_)) => (random_id(), Some("Provided test option of 'id' was given more than once.".into())),
        (Some(Value::String(id)), None) if id.chars().nth(ID_CHARS).is_none() => (id.into(), None),
        (Some(id @ Value::Number(_)), None) => (id, None),
        (Some(other), None) => {
            let expected = format!("text of at most {ID_CHARS} characters, or a number");
            (random_id(), Some(value_error("id", &other, &expected)))
        }
        (None, None) => (random_id(), None),
    }
}

fn random_id() -> Value {
    format!("{:06x}", rand::random_range(0..1_u32 << 24)).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id_of(options: Value) -> (Value, Option<String>) {
        let Value::Object(mut options) = options else { panic!("not an object") };
        take_id(&mut options)
    }

    #[test]
    fn ids_come_back_as_they_were() {
        assert_eq!(id_of(json!({"id": "a"})).0, json!("a"));
        assert_eq!(id_of(json!({"ID": 7})).0, json!(7));
        assert_eq!(id_of(json!({"id": -1.5})).0, json!(-1.5));
        assert_eq!(id_of(json!({"id": ""})).0, json!(""));
    }

    #[test]
    fn an_id_that_is_neither_text_nor_number_is_refused() {
        for bad in [json!(true), json!([]), json!({}), json!("x".repeat(ID_CHARS + 1))] {
            assert!(id_of(json!({"id": bad})).1.is_some());
        }
        assert!(id_of(json!({"id": 1, "ID": 2})).1.is_some());
        let (_, message) = id_of(json!({"id": [1]}));
        assert_eq!(
            message.as_deref(),
            Some(
                "Provided value of '[1]' for option 'id' is not allowed. Expected: text of at most 256 characters, or a number."
            )
        );
    }

    #[test]
    fn null_is_no_id() {
        let (id, message) = id_of(json!({"id": null}));
        assert!(id.as_str().is_some_and(|id| id.len() == 6) && message.is_none());
    }

    #[test]
    fn a_fresh_id_is_six_hexadecimal_digits() {
        let (id, _) = id_of(json!({}));
        let id = id.as_str().expect("text");
        assert_eq!(id.len(), 6);
        assert!(id.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
    }
}
