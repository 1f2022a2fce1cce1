//! Options of one test type: brought into their normal form and checked against the plugin's schema, so that a
//! mistake is answered with the option's name, its value and what is allowed, before any sandbox is made.

use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};

use crate::plan::payload::Options;

/// The options schema of a plugin, ready to check.
#[derive(Debug)]
pub struct OptionsSchema {
    schema: Value,
    validator: Validator,
}

impl OptionsSchema {
    /// # Errors
    /// When the text is not a JSON Schema of an object.
    pub fn parse(text: &str) -> Result<Self, String> {
        let schema: Value = serde_json::from_str(text).map_err(|e| format!("options schema is not JSON: {e}"))?;
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err("options schema does not describe an object".into());
        }
        let validator = jsonschema::validator_for(&schema).map_err(|e| format!("options schema: {e}"))?;
        Ok(Self { schema, validator })
    }

    #[must_use]
    pub fn json(&self) -> &Value {
        &self.schema
    }

    /// Names of all options, in the schema's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.schema.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.as_str())
    }

    /// The schema of one option.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&Value> {
        self.schema.get("properties")?.get(name)
    }

    #[must_use]
    pub fn is_required(&self, name: &str) -> bool {
        let required = self.schema.get("required").and_then(Value::as_array);
        required.is_some_and(|names| names.iter().any(|n| n == name))
    }

    /// Lower-case names, digit strings as numbers where a number is wanted, everything within the schema.
    ///
    /// # Errors
    /// The text for the caller.
    pub fn check(&self, options: Options) -> Result<Options, String> {
        let mut normal = Map::with_capacity(options.len());
        for (name, value) in options {
            let lower = name.to_lowercase();
            let Some(property) = self.property(&lower) else { return Err(self.unknown(&name)) };
            if value.is_null() {
                return Err(refusal(&lower, &value, property));
            }
            if normal.insert(lower.clone(), normalise(value, property)).is_some() {
                return Err(format!("Provided test option of '{lower}' was given more than once."));
            }
        }
        let value = Value::Object(normal);
        if let Some(message) = self.first_violation(&value) {
            return Err(message);
        }
        match value {
            Value::Object(normal) => Ok(normal),
            _ => Err("options are not an object".into()),
        }
    }

    fn first_violation(&self, options: &Value) -> Option<String> {
        let mut errors: Vec<_> = self.validator.iter_errors(options).collect();
        // What is missing comes first: it is what the caller must add whatever else is wrong.
        errors.sort_by_key(|e| !matches!(e.kind(), ValidationErrorKind::Required { .. }));
        let error = errors.first()?;
        if let (ValidationErrorKind::Required { property }, "") = (error.kind(), error.instance_path().as_str()) {
            let name = property.as_str().unwrap_or_default();
            return Some(format!(
                "Required test option of '{name}' was not given. Please pass the required '{name}' option."
            ));
        }
        let path = error.instance_path().as_str();
        let name = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match (options.get(name), self.property(name)) {
            (Some(value), Some(property)) => Some(refusal(name, value, property)),
            _ => Some(format!("Provided options are not allowed: {error}.")),
        }
    }

    fn unknown(&self, name: &str) -> String {
        let lower = name.to_lowercase();
        let nearest = self
            .names()
            .map(|known| (strsim::damerau_levenshtein(&lower, known), known))
            .min_by_key(|(distance, _)| *distance)
            .filter(|(distance, known)| *distance <= known.len().max(3) / 2);
        if let Some((_, known)) = nearest {
            format!("Provided test option of '{name}' does not exist. Did you mean '{known}'?")
        } else {
            let all = self.names().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
            format!("Provided test option of '{name}' does not exist. Options: {all}.")
        }
    }
}

fn refusal(name: &str, value: &Value, property: &Value) -> String {
    let shown = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let shown: String =
        if shown.chars().count() > 100 { shown.chars().take(100).chain(['…']).collect() } else { shown };
    format!("Provided value of '{shown}' for option '{name}' is not allowed. Expected: {}.", expectation(property))
}

fn types_of(property: &Value) -> Vec<&str> {
    match property.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).filter(|t| *t != "null").collect(),
        _ => vec![],
    }
}

/// A schema in words.
#[must_use]
pub fn expectation(property: &Value) -> String {
    let quoted = |values: &[Value]| {
        let words: Vec<_> =
            values.iter().filter(|v| !v.is_null()).map(|v| v.as_str().map_or(v.to_string(), str::to_owned)).collect();
        format!("'{}'", words.join("', '"))
    };
    if let Some(values) = property.get("enum").and_then(Value::as_array) {
        return format!("one of {}", quoted(values));
    }
    for keyword in ["oneOf", "anyOf"] {
        if let Some(choices) = property.get(keyword).and_then(Value::as_array) {
            let constants: Vec<Value> = choices.iter().filter_map(|c| c.get("const").cloned()).collect();
            if constants.len() == choices.len() {
                return format!("one of {}", quoted(&constants));
            }
            let parts: Vec<_> = choices
                .iter()
                .filter(|c| c.get("type").and_then(Value::as_str) != Some("null"))
                .map(expectation)
                .collect();
            return parts.join(" or ");
        }
    }
    let number = |word: &str| {
        let (low, high) = (property.get("minimum"), property.get("maximum"));
        match (low, high) {
            (Some(low), Some(high)) => format!("{word} from {low} to {high}"),
            (Some(low), None) => format!("{word} of at least {low}"),
            (None, Some(high)) => format!("{word} of at most {high}"),
            (None, None) => word.to_owned(),
        }
    };
    let words: Vec<String> = types_of(property)
        .into_iter()
        .map(|kind| match kind {
            "integer" => number("a whole number"),
            "number" => number("a number"),
            "boolean" => "true or false".into(),
            "string" => match (property.get("minLength"), property.get("maxLength")) {
                (_, Some(high)) => {
                    format!("text of {} to {high} characters", property.get("minLength").unwrap_or(&0.into()))
                }
                (Some(low), None) if low.as_u64() > Some(1) => format!("text of at least {low} characters"),
                (Some(_), None) => "text that is not empty".into(),
                (None, None) => "text".into(),
            },
            "array" => match property.get("items").map(expectation) {
                Some(items) if !items.is_empty() => format!("a list of {items}"),
                _ => "a list".into(),
            },
            "object" => "an object".into(),
            other => other.to_owned(),
        })
        .collect();
    words.join(" or ")
}

/// `"3"` and `3.0` are 3 where the schema wants a whole number, and 2 is `"2"` where it lists texts to choose from;
/// anything else stays as it was written.
fn normalise(value: Value, property: &Value) -> Value {
    let types = types_of(property);
    let wants_number = types.contains(&"integer") || types.contains(&"number");
    match &value {
        Value::String(text) if wants_number && !types.contains(&"string") => {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            match text.parse::<u64>() {
                Ok(number) if digits => number.into(),
                _ => value,
            }
        }
        Value::Number(number) if types == ["string"] && property.get("enum").is_some() => number.to_string().into(),
        Value::Number(number) if types.contains(&"integer") && number.is_f64() =>
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked to be whole and in range"
            )]
            match number.as_f64() {
                Some(float) if float.fract() == 0.0 && (0.0..9e15).contains(&float) => (float as u64).into(),
                _ => value,
            }
        }
        _ => value,
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
        for option in ["count", "dst", "flag", "ttl", "family"] {
            let error = check(json!({"dst": "x", option: null})).expect_err(option);
            assert!(
                error.starts_with(&format!("Provided value of 'null' for option '{option}' is not allowed.")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_nearest_known_option_is_named() {
        let error = check(json!({"dst": "x", "cuont": 1})).expect_err("unknown");
        assert_eq!(error, "Provided test option of 'cuont' does not exist. Did you mean 'count'?");
        let error = check(json!({"dst": "x", "zzzzzzzzz": 1})).expect_err("unknown");
        assert_eq!(
            error,
            "Provided test option of 'zzzzzzzzz' does not exist. Options: 'dst', 'count', 'family', 'version', 'flag', 'ttl'."
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
