//! Options in their normal form. Clients write numbers as texts of digits, and texts that look like numbers as numbers;
//! generators of schemas write the same type directly, behind a `$ref`, or in an `anyOf`.

use serde_json::{Map, Number, Value};

use super::bounds::{SchemaPosition, for_each_mut, schemas_in, target};

/// Keywords that hold other schemas of the same value.
const APPLICATORS: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// A property's schema with its references expanded and the bounds of its integers written out. `root` is bounded.
pub fn expanded(root: &Value, property: &Value) -> Value {
    let mut property = dereferenced(root, property);
    for_each_mut(&mut property, &mut bound_integers);
    property
}

fn dereferenced(root: &Value, schema: &Value) -> Value {
    let Value::Object(keywords) = schema else { return schema.clone() };
    let reference = keywords.get("$ref").and_then(Value::as_str).and_then(|to| target(root, to));
    let mut rest = Map::new();
    for (keyword, value) in keywords {
        let value = match (schemas_in(keyword), value) {
            _ if ["$ref", "$defs", "definitions"].contains(&keyword.as_str()) => continue,
            (SchemaPosition::Schema, inside) => dereferenced(root, inside),
            (SchemaPosition::List, Value::Array(list)) => {
                list.iter().map(|inside| dereferenced(root, inside)).collect()
            }
            (SchemaPosition::Map, Value::Object(map)) => {
                map.iter().map(|(name, inside)| (name.clone(), dereferenced(root, inside))).collect()
            }
            (_, data) => data.clone(),
        };
        rest.insert(keyword.clone(), value);
    }
    match reference.map(|schema| dereferenced(root, schema)) {
        None => Value::Object(rest),
        // What stands beside a reference is usually a description or a default.
        Some(Value::Object(mut schema)) if rest.keys().all(|keyword| is_annotation(keyword)) => {
            schema.extend(rest);
            Value::Object(schema)
        }
        Some(schema) => {
            match rest.get_mut("allOf") {
                Some(Value::Array(all)) => all.push(schema),
                _ => drop(rest.insert("allOf".into(), vec![schema].into())),
            }
            Value::Object(rest)
        }
    }
}

fn is_annotation(keyword: &str) -> bool {
    ["default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"].contains(&keyword)
}

/// `format` says how wide an integer is, and the validator does not look at it.
fn bound_integers(schema: &mut Map<String, Value>) {
    let (low, high) = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => (0, i64::from(u8::MAX)),
        Some("uint16") => (0, i64::from(u16::MAX)),
        Some("uint32") => (0, i64::from(u32::MAX)),
        Some("int8") => (i64::from(i8::MIN), i64::from(i8::MAX)),
        Some("int16") => (i64::from(i16::MIN), i64::from(i16::MAX)),
        Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => return,
    };
    schema.entry("minimum").or_insert(low.into());
    schema.entry("maximum").or_insert(high.into());
}

/// The types that a schema names, without `null`: that stands for an option that is left out.
pub fn types_of(property: &Value) -> Vec<&str> {
    match property.get("type") {
        Some(Value::String(one)) if one != "null" => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).filter(|t| *t != "null").collect(),
        _ => vec![],
    }
}

/// Which values an option may have, as far as normal forms are concerned.
#[derive(Debug, Default)]
pub struct Accepts {
    integer: bool,
    number: bool,
    /// Any text.
    text: bool,
    /// Texts to choose from.
    choices: Vec<String>,
}

impl Accepts {
    /// Of a schema without references.
    pub fn of(schema: &Value) -> Self {
        let mut accepts = Self::default();
        accepts.add(schema);
        accepts
    }

    fn add(&mut self, schema: &Value) {
        let listed = schema.get("enum").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let constant = schema.get("const").into_iter();
        let before = self.choices.len();
        self.choices.extend(listed.iter().chain(constant).filter_map(Value::as_str).map(str::to_owned));
        let types = types_of(schema);
        self.text |= types.contains(&"string") && self.choices.len() == before;
        self.integer |= types.contains(&"integer");
        self.number |= types.contains(&"number");
        let inside = APPLICATORS.iter().filter_map(|keyword| schema.get(keyword)?.as_array()).flatten();
        inside.for_each(|schema| self.add(schema));
    }

    /// `"3"` and `3.0` are 3 where a whole number is wanted, and 2 and `"2.0"` are `"2"` where that is one of the texts
    /// to choose from; anything else stays as it was written.
    pub fn normalise(&self, value: Value) -> Value {
        match &value {
            Value::String(text) if !self.text && !self.choices.contains(text) => {
                if (self.integer || self.number)
                    && let Some(number) = digits(text)
                {
                    return number;
                }
                self.choice(text).map_or(value, Into::into)
            }
            Value::Number(number) if self.integer && number.is_f64() => whole(number).unwrap_or(value),
            Value::Number(number) if !self.integer && !self.number => {
                let text = number.to_string();
                if self.choices.contains(&text) { text.into() } else { self.choice(&text).map_or(value, Into::into) }
            }
            _ => value,
        }
    }

    /// The choice that is the same number as this text.
    fn choice(&self, text: &str) -> Option<String> {
        let number = decimal(text)?;
        self.choices.iter().find(|choice| decimal(choice) == Some(number)).cloned()
    }

    /// A whole number is wanted, and this one is past every integer.
    pub fn is_too_large(&self, value: &Value) -> bool {
        let past = |number: &Number| number.as_f64().is_some_and(|float| float.fract() == 0.0 && float.abs() > 9e15);
        self.integer && !self.number && value.as_number().is_some_and(|number| number.is_f64() && past(number))
    }
}

/// The same schema with the bounds of a 64-bit integer where it has none.
pub fn with_integer_bounds(schema: &Value) -> Value {
    let mut schema = schema.clone();
    for_each_mut(&mut schema, &mut |schema| {
        if schema
            .get("type")
            .is_some_and(|kind| kind == "integer" || kind.as_array().is_some_and(|k| k.contains(&"integer".into())))
        {
            schema.entry("minimum").or_insert(i64::MIN.into());
            schema.entry("maximum").or_insert(u64::MAX.into());
        }
    });
    schema
}

fn digits(text: &str) -> Option<Value> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse::<u64>().ok().map(Into::into) } else { None }
}

/// Digits with at most one point among them, as a number: no sign, no exponent.
fn decimal(text: &str) -> Option<f64> {
    let decimal = text.starts_with(|c: char| c.is_ascii_digit())
        && text.len() < 20
        && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if decimal { text.parse().ok() } else { None }
}

fn whole(number: &Number) -> Option<Value> {
    let float = number.as_f64()?;
    // Up to there every whole number is a float of its own.
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
    if float.fract() == 0.0 && (-9e15..=9e15).contains(&float) { Some((float as i64).into()) } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn normal(schema: &Value, value: Value) -> Value {
        let root = json!({"$defs": {
            "Count": {"type": "integer", "minimum": 1, "maximum": 9},
            "Version": {"type": "string", "enum": ["1.0", "1.1", "2"]},
            "Either": {"anyOf": [{"$ref": "#/$defs/Count"}, {"type": "null"}]},
        }});
        Accepts::of(&expanded(&root, schema)).normalise(value)
    }

    #[test]
    fn digits_are_numbers_behind_references_and_choices_too() {
        for schema in [
            json!({"type": "integer"}),
            json!({"type": ["integer", "null"]}),
            json!({"type": "number"}),
            json!({"$ref": "#/$defs/Count"}),
            json!({"$ref": "#/$defs/Count", "default": 3, "description": "How many"}),
            json!({"allOf": [{"$ref": "#/$defs/Count"}], "default": 3}),
            json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            json!({"oneOf": [{"$ref": "#/$defs/Either"}, {"type": "boolean"}]}),
            json!({"anyOf": [{"type": "integer"}, {"const": "auto"}]}),
        ] {
            assert_eq!(normal(&schema, json!("3")), json!(3), "{schema}");
            for other in ["", " 3", "-3", "+3", "3x", "99999999999999999999"] {
                assert_eq!(normal(&schema, json!(other)), json!(other), "{schema}");
            }
        }
        for schema in
            [json!({"type": "string"}), json!({"anyOf": [{"type": "integer"}, {"type": "string"}]}), json!({})]
        {
            assert_eq!(normal(&schema, json!("3")), json!("3"), "{schema}");
        }
    }

    #[test]
    fn numbers_are_words_where_words_look_like_them() {
        for schema in [
            json!({"$ref": "#/$defs/Version"}),
            json!({"oneOf": [{"const": "1.0"}, {"const": "1.1"}, {"type": "string", "const": "2"}]}),
        ] {
            for (value, word) in [
                (json!(1.1), json!("1.1")),
                (json!(2), json!("2")),
                (json!(2.0), json!("2")),
                (json!("2.0"), json!("2")),
                (json!(1), json!("1.0")),
                (json!("1"), json!("1.0")),
                (json!("1.1"), json!("1.1")),
                (json!(3), json!(3)),
                (json!("x"), json!("x")),
                (json!(true), json!(true)),
            ] {
                assert_eq!(normal(&schema, value), word, "{schema}");
            }
        }
        assert_eq!(normal(&json!({"type": "string"}), json!(7)), json!(7));
    }

    #[test]
    fn whole_floats_are_integers_and_others_stay() {
        let schema = json!({"type": "integer"});
        assert_eq!(normal(&schema, json!(3.0)).to_string(), "3");
        assert_eq!(normal(&schema, json!(-3.0)).to_string(), "-3");
        assert_eq!(normal(&schema, json!(3.5)), json!(3.5));
        let accepts = Accepts::of(&schema);
        assert!(accepts.is_too_large(&json!(1e308)) && accepts.is_too_large(&json!(-1e17)));
        assert!(!accepts.is_too_large(&json!(u64::MAX)) && !accepts.is_too_large(&json!(3.5)));
        assert!(!Accepts::of(&json!({"type": "number"})).is_too_large(&json!(1e308)));
    }

    #[test]
    fn keywords_beside_a_reference_are_kept() {
        let root = json!({"$defs": {"N": {"type": "integer", "format": "uint8", "minimum": 1}}});
        let schema = expanded(&root, &json!({"$ref": "#/$defs/N", "description": "d"}));
        let expected = json!({"type": "integer", "format": "uint8", "minimum": 1, "maximum": 255, "description": "d"});
        assert_eq!(schema, expected);
        let schema = expanded(&root, &json!({"$ref": "#/$defs/N", "maximum": 5}));
        let inside = json!({"type": "integer", "format": "uint8", "minimum": 1, "maximum": 255});
        assert_eq!(schema, json!({"maximum": 5, "allOf": [inside]}));
    }
}
