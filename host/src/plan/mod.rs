//! What will be done: the payload, checked. Pure; nothing here waits or sends.

pub mod payload;

use std::sync::Arc;

use serde_json::Value;

use crate::plan::payload::{Options, Payload};
use crate::sandbox::{Plugin, Plugins};

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

/// The caller's id if it is a string or a number; a fresh one, and what is wrong, if it is anything else.
fn take_id(options: &mut Options) -> (Value, Option<String>) {
    let names: Vec<String> = options.keys().filter(|name| name.eq_ignore_ascii_case("id")).cloned().collect();
    let mut given = names.iter().filter_map(|name| options.shift_remove(name));
    match (given.next(), given.next()) {
        (_, Some(_)) => (random_id(), Some("Provided test option of 'id' was given more than once.".into())),
        (Some(id @ (Value::String(_) | Value::Number(_))), None) => (id, None),
        (Some(other), None) => {
            let message =
                format!("Provided value of '{other}' for option 'id' is not allowed. Expected: text or a number.");
            (random_id(), Some(message))
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
        for bad in [json!(null), json!(true), json!([]), json!({})] {
            assert!(id_of(json!({"id": bad})).1.is_some());
        }
        assert!(id_of(json!({"id": 1, "ID": 2})).1.is_some());
    }

    #[test]
    fn a_fresh_id_is_six_hexadecimal_digits() {
        let (id, _) = id_of(json!({}));
        let id = id.as_str().expect("text");
        assert_eq!(id.len(), 6);
        assert!(id.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
    }
}
