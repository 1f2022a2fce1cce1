//! The JSON Schemas of one test type: its options, brought into their normal form and checked so that a mistake is
//! answered with the option's name, its value and what is allowed, before any sandbox is made; and its result.

mod bounds;
mod embed;
mod expectation;
mod normalise;

use std::collections::HashMap;

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::{Map, Value};

use bounds::{Bounded, Steps};
use normalise::Accepts;

pub use embed::components;
pub use expectation::expectation;

/// Steps of one check of options: some milliseconds.
const OPTIONS_STEPS: usize = 500_000;
/// Steps of one check of a result: some tenths of a second.
const RESULT_STEPS: usize = 5_000_000;
/// Steps of a check that takes no time: some tenths of a millisecond.
const QUICK_STEPS: usize = 10_000;
/// Steps of a check after which the place of a mistake is not looked for: that may hold an error for each value.
const LOCATED_STEPS: usize = 100_000;
/// Bytes of one compiled regular expression.
const PATTERN_SIZE: usize = 1 << 20;
/// Characters of an unknown option's name that a known one is looked for.
const NAME_CHARS: usize = 64;
/// Known options that an error lists.
const LISTED: usize = 50;
/// Characters of a value, or of a validator's message, that an error shows.
const SHOWN_CHARS: usize = 100;

/// Patterns take time in proportion to the text: those that need backtracking are refused.
fn compile(schema: &Value) -> Result<Validator, String> {
    let patterns = PatternOptions::regex().size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE);
    let options = jsonschema::options().with_draft(Draft::Draft202012).with_pattern_options(patterns).offline();
    let mut schema = schema.clone();
    if let Some(keywords) = schema.as_object_mut() {
        keywords.shift_remove("$schema");
    }
    options.build(&schema).map_err(|error| format!("is not a usable JSON Schema: {}", shortened(&error.to_string())))
}

/// The options schema of a plugin, ready to check.
#[derive(Debug)]
pub struct OptionsSchema {
    schema: Value,
    /// Steps that a check takes for each value at most. None: it has patterns, which take time by the length of a text.
    pub steps_of_value: Option<usize>,
    required: Vec<String>,
    properties: HashMap<String, Property>,
    validator: Validator,
}

#[derive(Debug)]
struct Property {
    /// Without references.
    schema: Value,
    accepts: Accepts,
    validator: Validator,
}

impl Property {
    fn error_in(&self, name: &str, value: &Value) -> Option<String> {
        if self.accepts.is_too_large(value) {
            return Some(value_error(name, value, &expectation(&normalise::with_integer_bounds(&self.schema))));
        }
        (!self.validator.is_valid(value)).then(|| value_error(name, value, &expectation(&self.schema)))
    }
}

impl OptionsSchema {
    /// # Errors
    /// When the text is not a JSON Schema of an object, or passes its bounds.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::of(text).map_err(|error| format!("its options schema {error}"))
    }

    fn of(text: &str) -> Result<Self, String> {
        let Bounded { schema, size, has_patterns } = bounds::parse(text)?;
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err("does not describe an object".into());
        }
        let validator = compile(&schema)?;
        let mut properties = HashMap::new();
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let expanded = normalise::expanded(&schema, property);
            let property =
                Property { accepts: Accepts::of(&expanded), validator: compile(&expanded)?, schema: expanded };
            properties.insert(name.clone(), property);
        }
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let required = required.filter_map(Value::as_str).map(str::to_owned).collect();
        let steps = if has_patterns { None } else { Some(size) };
        Ok(Self { schema, steps_of_value: steps, required, properties, validator })
    }

    #[must_use]
    pub fn json(&self) -> &Value {
        &self.schema
    }

    /// Names of all options, in the schema's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.schema.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.as_str())
    }

    /// The schema of one option, without references.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&Value> {
        self.properties.get(name).map(|property| &property.schema)
    }

    #[must_use]
    pub fn is_required(&self, name: &str) -> bool {
        self.required.iter().any(|required| required == name)
    }

    /// Lower-case names, digit strings as numbers where a number is wanted, everything within the schema. An option
    /// that is `null` counts as left out.
    ///
    /// # Errors
    /// The text for the caller.
    pub fn check(&self, options: Map<String, Value>) -> Result<Map<String, Value>, String> {
        let mut normal = Map::with_capacity(options.len());
        for (name, value) in options {
            let lower = name.to_lowercase();
            let Some(property) = self.properties.get(&lower) else { return Err(self.unknown(&name)) };
            if value.is_null() {
                continue;
            }
            if normal.insert(lower.clone(), property.accepts.normalise(value)).is_some() {
                return Err(format!("Provided test option of '{lower}' was given more than once."));
            }
        }
        if let Some(name) = self.required.iter().find(|name| !normal.contains_key(*name)) {
            return Err(format!(
                "Required test option of '{name}' was not given. Please pass the required '{name}' option."
            ));
        }
        let normal = Value::Object(normal);
        let mut steps = Steps { root: &self.schema, left: OPTIONS_STEPS };
        if steps.count(&self.schema, &normal).is_none() {
            return Err("Provided options are not allowed: checking them takes too many steps.".into());
        }
        let mut given = normal.as_object().into_iter().flatten();
        let error = given.find_map(|(name, value)| self.properties.get(name)?.error_in(name, value));
        if let Some(message) = error {
            return Err(message);
        }
        if !self.validator.is_valid(&normal) {
            return Err(format!("Provided options are not allowed: {}.", self.mistake(&normal, steps.left)));
        }
        match normal {
            Value::Object(normal) => Ok(normal),
            _ => Err("options are not an object".into()),
        }
    }

    /// What is wrong with options of which each is allowed by itself.
    fn mistake(&self, options: &Value, steps_left: usize) -> String {
        if OPTIONS_STEPS - steps_left > LOCATED_STEPS {
            return "they do not satisfy the schema".into();
        }
        self.validator.validate(options).err().map(|error| shortened(&error.to_string())).unwrap_or_default()
    }

    fn unknown(&self, name: &str) -> String {
        let lower = name.to_lowercase();
        // The distance takes time in proportion to both lengths.
        let near = |(distance, known): &(usize, &str)| *distance <= known.len().max(3) / 2;
        let nearest = if lower.chars().nth(NAME_CHARS).is_some() {
            None
        } else {
            let distances = self.names().filter(|known| known.len() <= 4 * NAME_CHARS);
            let distances = distances.map(|known| (strsim::damerau_levenshtein(&lower, known), known));
            distances.min_by_key(|(distance, _)| *distance).filter(near)
        };
        let name = shortened(name);
        if let Some((_, known)) = nearest {
            format!("Provided test option of '{name}' does not exist. Did you mean '{known}'?")
        } else {
            let all = self.names().take(LISTED).map(|n| format!("'{}'", shortened(n))).collect::<Vec<_>>().join(", ");
            format!("Provided test option of '{name}' does not exist. Options: {all}.")
        }
    }
}

/// The text for a value that is not allowed.
#[must_use]
pub fn value_error(name: &str, value: &Value, expected: &str) -> String {
    let shown = match value {
        Value::String(text) => shortened(text),
        Value::Array(items) if bounds::values(value) > SHOWN_CHARS => format!("a list of {} items", items.len()),
        Value::Object(entries) if bounds::values(value) > SHOWN_CHARS => {
            format!("an object of {} names", entries.len())
        }
        other => shortened(&other.to_string()),
    };
    format!("Provided value of '{shown}' for option '{name}' is not allowed. Expected: {expected}.")
}

fn shortened(text: &str) -> String {
    if text.chars().nth(SHOWN_CHARS).is_none() {
        return text.to_owned();
    }
    text.chars().take(SHOWN_CHARS).chain(['…']).collect()
}

/// The result schema of a plugin, ready to check.
#[derive(Debug)]
pub struct ResultSchema {
    schema: Value,
    has_patterns: bool,
    validator: Validator,
}

impl ResultSchema {
    /// # Errors
    /// When the text is not a JSON Schema, or passes its bounds.
    pub fn parse(text: &str) -> Result<Self, String> {
        let of = |text| {
            let Bounded { schema, has_patterns, .. } = bounds::parse(text)?;
            let validator = compile(&schema)?;
            Ok(Self { schema, has_patterns, validator })
        };
        of(text).map_err(|error: String| format!("its result schema {error}"))
    }

    #[must_use]
    pub fn json(&self) -> &Value {
        &self.schema
    }

    /// Does a check of this result take no more than some tenths of a millisecond? With patterns that is unknown.
    #[must_use]
    pub fn is_quick(&self, result: &Value) -> bool {
        !self.has_patterns && Steps { root: &self.schema, left: QUICK_STEPS }.count(&self.schema, result).is_some()
    }

    /// # Errors
    /// What is wrong with the result: of all mistakes, the first.
    pub fn check(&self, result: &Value) -> Result<(), String> {
        let mut steps = Steps { root: &self.schema, left: RESULT_STEPS };
        if steps.count(&self.schema, result).is_none() {
            return Err("checking it against its schema takes too many steps".into());
        }
        if self.validator.is_valid(result) {
            return Ok(());
        }
        let located = RESULT_STEPS - steps.left <= LOCATED_STEPS;
        let error = if located { self.validator.validate(result).err() } else { None };
        let place = error.map(|error| error.instance_path().as_str().escape_debug().to_string());
        Err(match place {
            Some(place) => format!("not as its schema says at '{}'", shortened(&place)),
            None => "not as its schema says".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> OptionsSchema {
        OptionsSchema::parse(
            &json!({
                "type": "object",
                "additionalProperties": false,
                "required": ["dst"],
                "properties": {
                    "dst": {"type": "string", "minLength": 1},
                    "count": {"type": "integer", "minimum": 0, "maximum": 65535},
                    "family": {"oneOf": [{"const": "any"}, {"const": "4"}]},
                    "version": {"type": "string", "enum": ["1.1", "2"]},
                    "flag": {"type": "boolean"},
                    "ttl": {"type": ["integer", "null"], "minimum": 1, "maximum": 255},
                    "size": {"type": "integer", "minimum": 0},
                }
            })
            .to_string(),
        )
        .expect("a schema")
    }

    fn check(options: Value) -> Result<Value, String> {
        let Value::Object(options) = options else { panic!("not an object") };
        schema().check(options).map(Value::Object)
    }

    #[test]
    fn names_in_any_case_and_digit_strings_are_brought_into_form() {
        assert_eq!(check(json!({"DST": "x", "Count": "3"})), Ok(json!({"dst": "x", "count": 3})));
        assert_eq!(check(json!({"dst": "7", "count": 3.0})), Ok(json!({"dst": "7", "count": 3})));
        assert_eq!(check(json!({"dst": "7", "version": 1.1})), Ok(json!({"dst": "7", "version": "1.1"})));
        assert!(check(json!({"dst": 7})).is_err());
    }

    #[test]
    fn what_is_missing_is_said_first() {
        let missing = "Required test option of 'dst' was not given. Please pass the required 'dst' option.";
        assert_eq!(check(json!({})), Err(missing.into()));
        assert_eq!(check(json!({"count": -1})), Err(missing.into()));
    }

    #[test]
    fn numbers_are_never_coerced() {
        for bad in [
            json!(-1),
            json!(1.5),
            json!(true),
            json!("abc"),
            json!("-3"),
            json!("1.5"),
            json!(""),
            json!(1e308),
            json!(18_446_744_073_709_551_615_u64),
            json!("99999999999999999999"),
            json!([1]),
            json!({}),
            json!(70000),
            json!(" 3"),
        ] {
            let shown = bad.as_str().map_or(bad.to_string(), str::to_owned);
            let expected = format!(
                "Provided value of '{shown}' for option 'count' is not allowed. Expected: a whole number from 0 to 65535."
            );
            assert_eq!(check(json!({"dst": "x", "count": bad})), Err(expected));
        }
        let error = check(json!({"dst": "x", "size": 1e308})).expect_err("too large");
        let expected = "Expected: a whole number from 0 to 18446744073709551615.";
        assert_eq!(error, format!("Provided value of '1e+308' for option 'size' is not allowed. {expected}"));
    }

    #[test]
    fn null_is_an_option_left_out() {
        let given = json!({"dst": "x", "count": null, "flag": null, "ttl": null, "family": null});
        assert_eq!(check(given), Ok(json!({"dst": "x"})));
        let missing = "Required test option of 'dst' was not given. Please pass the required 'dst' option.";
        assert_eq!(check(json!({"dst": null})), Err(missing.into()));
    }

    #[test]
    fn a_long_list_is_not_repeated_to_the_caller() {
        let error = check(json!({"dst": "x", "count": vec![0; 1000]})).expect_err("a list");
        assert!(error.starts_with("Provided value of 'a list of 1000 items' for option 'count'"), "{error}");
    }

    #[test]
    fn the_nearest_name_of_a_long_name_is_not_searched_for() {
        let error = check(json!({"dst": "x", "d".repeat(1_000_000): 1})).expect_err("unknown");
        assert!(error.len() < 1000 && error.contains("…' does not exist. Options: 'dst', "), "{error}");
    }

    #[test]
    fn a_check_of_too_many_steps_is_refused() {
        let many: Vec<Value> = (0..400).map(|n| json!({"minimum": n})).collect();
        let schema = OptionsSchema::parse(
            &json!({"type": "object", "properties": {"x": {"type": "array", "items": {"allOf": many}}}}).to_string(),
        );
        let schema = schema.expect("within its bounds");
        let Value::Object(options) = json!({"x": vec![1000; 1000]}) else { panic!("not an object") };
        let error = schema.check(options).map(|_| ()).expect_err("too many steps");
        assert_eq!(error, "Provided options are not allowed: checking them takes too many steps.");
    }

    #[test]
    fn the_first_mistake_of_a_result_is_named() {
        let schema = json!({"type": "object", "properties": {"rows": {"type": "array", "items": {"type": "integer"}}}});
        let schema = ResultSchema::parse(&schema.to_string()).expect("a schema");
        assert_eq!(schema.check(&json!({"rows": [1, 2]})), Ok(()));
        assert_eq!(schema.check(&json!({"rows": [1, "x", "y"]})), Err("not as its schema says at '/rows/1'".into()));
        assert_eq!(schema.check(&json!({"rows": vec!["x"; 90_000]})), Err("not as its schema says".into()));
    }

    #[test]
    fn patterns_that_backtrack_are_refused() {
        for pattern in ["^(?=a)b", r"(a)\1", "(a{1000}){1000}"] {
            let schema = json!({"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}});
            let error = OptionsSchema::parse(&schema.to_string()).expect_err(pattern);
            assert!(error.starts_with("its options schema is not a usable JSON Schema"), "{error}");
        }
    }

    #[test]
    fn the_nearest_known_option_is_named() {
        let error = check(json!({"dst": "x", "cuont": 1})).expect_err("unknown");
        assert_eq!(error, "Provided test option of 'cuont' does not exist. Did you mean 'count'?");
        let error = check(json!({"dst": "x", "zzzzzzzzz": 1})).expect_err("unknown");
        assert_eq!(
            error,
            "Provided test option of 'zzzzzzzzz' does not exist. Options: 'dst', 'count', 'family', 'version', 'flag', 'ttl', 'size'."
        );
    }

    #[test]
    fn choices_and_doubled_options_are_explained() {
        let error = check(json!({"dst": "x", "family": "5"})).expect_err("choice");
        assert_eq!(error, "Provided value of '5' for option 'family' is not allowed. Expected: one of 'any', '4'.");
        let error = check(json!({"dst": "x", "DST": "y"})).expect_err("twice");
        assert_eq!(error, "Provided test option of 'dst' was given more than once.");
    }
}
