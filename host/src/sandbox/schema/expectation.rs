//! A schema in words: what the caller of a test, or a reader of the command line's help, may write.

use serde_json::Value;

use super::normalise::types_of;

/// A schema without references in words.
#[must_use]
pub fn expectation(property: &Value) -> String {
    if let Some(values) = property.get("enum").and_then(Value::as_array) {
        return one_of(values);
    }
    if let Some(value) = property.get("const") {
        return one_of(std::slice::from_ref(value));
    }
    for keyword in ["oneOf", "anyOf"] {
        if let Some(choices) = property.get(keyword).and_then(Value::as_array) {
            let constants: Vec<Value> = choices.iter().filter_map(|c| c.get("const").cloned()).collect();
            if constants.len() == choices.len() {
                return one_of(&constants);
            }
            return joined(choices, " or ");
        }
    }
    let words: Vec<String> = types_of(property).into_iter().map(|kind| of_type(kind, property)).collect();
    if let Some(all) = property.get("allOf").and_then(Value::as_array)
        && words.is_empty()
    {
        return joined(all, " and ");
    }
    words.join(" or ")
}

fn joined(schemas: &[Value], with: &str) -> String {
    let mut parts: Vec<String> = vec![];
    for schema in schemas.iter().filter(|schema| schema.get("type").and_then(Value::as_str) != Some("null")) {
        let words = expectation(schema);
        if !words.is_empty() && !parts.contains(&words) {
            parts.push(words);
        }
    }
    parts.join(with)
}

fn one_of(values: &[Value]) -> String {
    let words: Vec<_> =
        values.iter().filter(|v| !v.is_null()).map(|v| v.as_str().map_or(v.to_string(), str::to_owned)).collect();
    format!("one of '{}'", words.join("', '"))
}

fn of_type(kind: &str, property: &Value) -> String {
    match kind {
        "integer" => number("a whole number", property),
        "number" => number("a number", property),
        "boolean" => "true or false".into(),
        "string" => match (property.get("minLength"), property.get("maxLength")) {
            (low, Some(high)) => format!("text of {} to {high} characters", low.unwrap_or(&0.into())),
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
    }
}

fn number(word: &str, property: &Value) -> String {
    match (property.get("minimum"), property.get("maximum")) {
        (Some(low), Some(high)) => format!("{word} from {low} to {high}"),
        (Some(low), None) => format!("{word} of at least {low}"),
        (None, Some(high)) => format!("{word} of at most {high}"),
        (None, None) => word.to_owned(),
    }
}
