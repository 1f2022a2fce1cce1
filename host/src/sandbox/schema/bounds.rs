//! Bounds on the JSON Schemas of a plugin.
//!
//! A schema is a program: thirty definitions that each refer twice to the next are 2^30 checks, and a pattern may
//! backtrack for ever. So a schema is bounded in size, depth, keywords and in the number of its parts once every
//! reference is expanded, before it is compiled; and the steps of each check are counted before it is made.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Bytes of a schema's text.
const BYTES: usize = 256 << 10;
/// Levels of the JSON text.
const DEPTH: usize = 64;
/// Schemas inside each other with references expanded: compiling and checking call themselves so deep.
const NESTED: usize = 64;
/// JSON values in a schema with its references expanded.
const EXPANDED: usize = 20_000;
/// Bytes of a regular expression.
const PATTERN_BYTES: usize = 1000;
/// Regular expressions in a schema with its references expanded: each is compiled, and may take megabytes.
const PATTERNS: usize = 64;
/// Properties of the options: their names are searched, and shown.
const PROPERTIES: usize = 256;

/// Where the value of a keyword of JSON Schema contains schemas.
pub enum SchemaPosition {
    /// A schema.
    Schema,
    /// A list of schemas.
    List,
    /// Schemas by name.
    Map,
    /// No schema.
    Data,
}

pub fn schemas_in(keyword: &str) -> SchemaPosition {
    match keyword {
        "additionalProperties"
        | "contains"
        | "contentSchema"
        | "else"
        | "if"
        | "items"
        | "not"
        | "propertyNames"
        | "then"
        | "unevaluatedItems"
        | "unevaluatedProperties" => SchemaPosition::Schema,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => SchemaPosition::List,
        // `dependencies` is of draft 7, and applied in every one. A list of names in it is no object.
        "$defs" | "definitions" | "dependencies" | "dependentSchemas" | "patternProperties" | "properties" => {
            SchemaPosition::Map
        }
        _ => SchemaPosition::Data,
    }
}

/// May this keyword, which holds no schema, hold objects? What may be a schema that is not counted is refused.
fn may_hold_objects(keyword: &str) -> bool {
    matches!(keyword, "const" | "default" | "dependentRequired" | "enum" | "example" | "examples")
        || keyword.starts_with("x-")
}

fn holds_objects(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(holds_objects),
        other => other.is_object(),
    }
}

/// Calls `each` with every schema directly inside this one.
fn for_each_inside<'a>(schema: &'a Map<String, Value>, mut each: impl FnMut(&'a Value)) {
    for (keyword, value) in schema {
        match (schemas_in(keyword), value) {
            (SchemaPosition::Schema, schema) => each(schema),
            (SchemaPosition::List, Value::Array(list)) => list.iter().for_each(&mut each),
            (SchemaPosition::Map, Value::Object(map)) => map.values().for_each(&mut each),
            _ => {}
        }
    }
}

/// Calls `each` with this schema and every one inside it.
pub fn for_each_mut(schema: &mut Value, each: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(keywords) = schema else { return };
    each(keywords);
    for (keyword, value) in keywords {
        match (schemas_in(keyword), value) {
            (SchemaPosition::Schema, schema) => for_each_mut(schema, each),
            (SchemaPosition::List, Value::Array(list)) => list.iter_mut().for_each(|schema| for_each_mut(schema, each)),
            (SchemaPosition::Map, Value::Object(map)) => map.values_mut().for_each(|schema| for_each_mut(schema, each)),
            _ => {}
        }
    }
}

/// A schema within its bounds.
#[derive(Debug)]
pub struct Bounded {
    pub schema: Value,
    /// JSON values in it, with its references expanded: a check takes so many steps for each value at most, unless it has
    /// patterns.
    pub size: usize,
    pub has_patterns: bool,
}

/// Reads a schema's text.
///
/// # Errors
/// Which bound it passes.
pub fn parse(text: &str) -> Result<Bounded, String> {
    if text.len() > BYTES {
        return Err(format!("has {} bytes; {BYTES} are allowed", text.len()));
    }
    let schema: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    if depth(&schema) > DEPTH {
        return Err(format!("is nested more than {DEPTH} levels deep"));
    }
    let properties = schema.get("properties").and_then(Value::as_object).map_or(0, Map::len);
    if properties > PROPERTIES {
        return Err(format!("has {properties} properties; {PROPERTIES} are allowed"));
    }
    let mut bounds = Bounds { root: &schema, expanded: HashMap::new(), nested: 0 };
    bounds.check_keywords(&schema)?;
    let parts = bounds.expanded(&schema)?;
    Ok(Bounded { schema, size: parts.values, has_patterns: parts.patterns > 0 })
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(entries) => 1 + entries.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// JSON values in this one, itself included.
pub fn values(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(values).sum::<usize>(),
        Value::Object(entries) => 1 + entries.values().map(values).sum::<usize>(),
        _ => 1,
    }
}

/// The schema that a `$ref` leads to.
pub fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

struct Bounds<'a> {
    root: &'a Value,
    /// Parts of the schema that a reference leads to, with everything expanded; None while they are being counted.
    expanded: HashMap<&'a str, Option<Parts>>,
    nested: usize,
}

/// What a schema has, every reference expanded.
#[derive(Clone, Copy, Default)]
struct Parts {
    values: usize,
    patterns: usize,
}

impl Parts {
    fn of(value: &Value) -> Self {
        Self { values: values(value), patterns: 0 }
    }

    fn plus(self, other: Self) -> Self {
        Self { values: self.values + other.values, patterns: self.patterns + other.patterns }
    }
}

impl<'a> Bounds<'a> {
    fn check_keywords(&self, schema: &'a Value) -> Result<(), String> {
        let Value::Object(keywords) = schema else { return Ok(()) };
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("$ref", Value::String(reference)) => {
                    let local = reference.starts_with('#') && !reference.contains('%');
                    if !local || target(self.root, reference).is_none_or(|to| !to.is_object() && !to.is_boolean()) {
                        return Err(format!("has the reference '{reference}', which leads to no schema inside it"));
                    }
                }
                // Only the root's is left, and all drafts are checked as the newest one: names of other dialects would
                // change what keywords mean.
                ("$schema", Value::String(dialect)) => {
                    let dialect = dialect.trim_end_matches('#');
                    let known = ["json-schema.org/draft/2020-12/schema", "json-schema.org/draft-07/schema"];
                    if !known.iter().any(|known| dialect.split_once("://").is_some_and(|(_, name)| name == *known)) {
                        return Err(format!("is in the dialect '{dialect}'; JSON Schema 2020-12 is supported"));
                    }
                }
                (
                    "$id" | "id" | "$anchor" | "$dynamicAnchor" | "$dynamicRef" | "$recursiveAnchor" | "$recursiveRef"
                    | "$vocabulary",
                    Value::String(_) | Value::Object(_) | Value::Bool(_),
                ) => return Err(format!("uses the keyword '{keyword}', which is not supported")),
                ("pattern", Value::String(pattern)) if pattern.len() > PATTERN_BYTES => {
                    return Err(format!("has a pattern of more than {PATTERN_BYTES} bytes"));
                }
                ("patternProperties", Value::Object(map)) if map.keys().any(|key| key.len() > PATTERN_BYTES) => {
                    return Err(format!("has a pattern of more than {PATTERN_BYTES} bytes"));
                }
                (keyword, value)
                    if matches!(schemas_in(keyword), SchemaPosition::Data)
                        && holds_objects(value)
                        && !may_hold_objects(keyword) =>
                {
                    let shown: String = keyword.chars().take(100).collect();
                    return Err(format!("uses the keyword '{}', which is not supported", shown.escape_debug()));
                }
                _ => {}
            }
        }
        let mut result = Ok(());
        for_each_inside(keywords, |inside| {
            if result.is_ok() {
                result = self.check_keywords(inside);
            }
        });
        result
    }

    /// Parts of a schema, every reference expanded.
    fn expanded(&mut self, schema: &'a Value) -> Result<Parts, String> {
        let Value::Object(keywords) = schema else { return Ok(Parts::of(schema)) };
        self.nested += 1;
        if self.nested > NESTED {
            return Err(format!("is nested more than {NESTED} schemas deep with its references expanded"));
        }
        let mut total = Parts { values: 1, patterns: 0 };
        for (keyword, value) in keywords {
            let parts = match (schemas_in(keyword), value) {
                (SchemaPosition::Schema, schema) => self.expanded(schema)?,
                (SchemaPosition::List, Value::Array(list)) => self.all(list.iter())?,
                (SchemaPosition::Map, Value::Object(map)) => self.all(map.values())?,
                (_, Value::String(reference)) if keyword == "$ref" => self.referred(reference)?,
                (_, value) => Parts::of(value),
            };
            total = total.plus(parts);
            total.patterns += match (keyword.as_str(), value) {
                ("pattern", Value::String(_)) => 1,
                ("patternProperties", Value::Object(map)) => map.len(),
                _ => 0,
            };
        }
        // These look at everything beside them a second time.
        if keywords.keys().any(|keyword| keyword.starts_with("unevaluated")) {
            total = total.plus(total);
        }
        if total.values > EXPANDED {
            return Err(format!("has more than {EXPANDED} parts with its references expanded"));
        }
        if total.patterns > PATTERNS {
            return Err(format!("has more than {PATTERNS} patterns with its references expanded"));
        }
        self.nested -= 1;
        Ok(total)
    }

    fn all(&mut self, schemas: impl Iterator<Item = &'a Value>) -> Result<Parts, String> {
        let mut total = Parts::default();
        for schema in schemas {
            total = total.plus(self.expanded(schema)?);
        }
        Ok(total)
    }

    fn referred(&mut self, reference: &'a str) -> Result<Parts, String> {
        match self.expanded.get(reference) {
            Some(Some(total)) => return Ok(*total),
            Some(None) => return Err(format!("refers to itself by '{reference}'")),
            None => {}
        }
        self.expanded.insert(reference, None);
        let Some(schema) = target(self.root, reference) else { return Ok(Parts::default()) };
        // It may stand where no keyword has a schema.
        self.check_keywords(schema)?;
        let total = self.expanded(schema)?;
        self.expanded.insert(reference, Some(total));
        Ok(total)
    }
}

/// The steps that a check may take at most; what takes more is refused unchecked.
pub struct Steps<'a> {
    pub root: &'a Value,
    pub left: usize,
}

impl Steps<'_> {
    /// Counts the steps of a check without making it, as if every part of it were looked at. None: too many.
    pub fn count(&mut self, schema: &Value, instance: &Value) -> Option<()> {
        let Value::Object(keywords) = schema else { return self.spend(values(schema)) };
        self.spend(1 + keywords.len())?;
        // See `Bounds::expanded`.
        let rounds = if keywords.keys().any(|keyword| keyword.starts_with("unevaluated")) { 2 } else { 1 };
        (0..rounds)
            .try_for_each(|_| keywords.iter().try_for_each(|(keyword, value)| self.keyword(keyword, value, instance)))
    }

    fn spend(&mut self, steps: usize) -> Option<()> {
        self.left = self.left.checked_sub(steps)?;
        Some(())
    }

    fn keyword(&mut self, keyword: &str, value: &Value, instance: &Value) -> Option<()> {
        match (keyword, value, instance) {
            ("$ref", Value::String(reference), _) => self.count(target(self.root, reference)?, instance),
            ("properties", Value::Object(map), Value::Object(entries)) => {
                self.spend(map.len().min(entries.len()))?;
                map.iter().try_for_each(|(name, schema)| entries.get(name).map_or(Some(()), |v| self.count(schema, v)))
            }
            ("patternProperties", Value::Object(map), Value::Object(entries)) => {
                // Each name is compared with each pattern.
                let names: usize = entries.keys().map(|name| 1 + name.len()).sum();
                self.spend(map.len().saturating_mul(names))?;
                map.values().try_for_each(|schema| entries.values().try_for_each(|value| self.count(schema, value)))
            }
            ("propertyNames", schema, Value::Object(entries)) => entries
                .keys()
                .try_for_each(|name| self.spend(name.len()).and_then(|()| self.count(schema, &Value::Null))),
            ("additionalProperties" | "unevaluatedProperties", schema, Value::Object(entries)) => {
                entries.values().try_for_each(|value| self.count(schema, value))
            }
            ("items" | "contains" | "unevaluatedItems", schema, Value::Array(items)) => {
                items.iter().try_for_each(|item| self.count(schema, item))
            }
            ("prefixItems", Value::Array(schemas), Value::Array(items)) => {
                schemas.iter().zip(items).try_for_each(|(schema, item)| self.count(schema, item))
            }
            ("allOf" | "anyOf" | "oneOf", Value::Array(schemas), _) => {
                schemas.iter().try_for_each(|schema| self.count(schema, instance))
            }
            ("not" | "if" | "then" | "else", schema, _) => self.count(schema, instance),
            ("dependencies" | "dependentSchemas", Value::Object(map), Value::Object(_)) => {
                map.values().try_for_each(|schema| self.count(schema, instance))
            }
            ("uniqueItems", _, Value::Array(items)) => {
                // Short lists are compared pairwise.
                self.spend(values(instance).saturating_mul(items.len().min(16)))
            }
            ("pattern", Value::String(pattern), Value::String(text)) => {
                self.spend(text.len().saturating_mul(pattern.len()) / 64)
            }
            ("minLength" | "maxLength" | "format", _, Value::String(text)) => self.spend(text.len() / 8),
            ("enum" | "const" | "required" | "dependentRequired", ..) => self.spend(values(value)),
            _ => Some(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> String {
        parse(&schema.to_string()).expect_err("refused")
    }

    /// Definitions of which each refers twice to the next.
    pub fn doubling(definitions: usize) -> Value {
        let mut defs = Map::new();
        for index in 0..definitions {
            let next = json!({"$ref": format!("#/$defs/d{}", index + 1)});
            defs.insert(format!("d{index}"), json!({"allOf": [next, next]}));
        }
        defs.insert(format!("d{definitions}"), json!({"type": "integer"}));
        json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs})
    }

    #[test]
    fn references_count_as_what_they_expand_to() {
        assert_eq!(refused(&doubling(30)), "has more than 20000 parts with its references expanded");
        assert!(parse(&doubling(8).to_string()).is_ok());
    }

    #[test]
    fn a_chain_of_references_is_bounded() {
        let chain: Map<String, Value> =
            (0..5000).map(|n| (format!("d{n}"), json!({"$ref": format!("#/$defs/d{}", n + 1)}))).collect();
        let schema = json!({"$ref": "#/$defs/d4000", "$defs": chain});
        let error = refused(&schema);
        assert!(error.starts_with("has the reference '#/$defs/d5000'"), "{error}");
        let mut schema = schema;
        schema["$defs"]["d5000"] = json!({});
        assert_eq!(refused(&schema), "is nested more than 64 schemas deep with its references expanded");
    }

    #[test]
    fn a_schema_past_its_bounds_is_refused_with_the_bound() {
        let mut deep = json!({});
        for _ in 0..40 {
            deep = json!({"not": {"items": deep}});
        }
        let nested = (0..20)
            .fold(json!({"type": "object"}), |inner, _| json!({"allOf": [inner], "unevaluatedProperties": false}));
        let many: Map<String, Value> = (0..300).map(|n| (n.to_string(), json!({}))).collect();
        let patterns: Map<String, Value> = (0..65).map(|n| (n.to_string(), json!({}))).collect();
        let cases = [
            (deep, "is nested more than 64 levels deep"),
            (nested, "has more than 20000 parts with its references expanded"),
            (json!({"properties": many}), "has 300 properties; 256 are allowed"),
            (json!({"enum": vec![0; 30_000]}), "has more than 20000 parts with its references expanded"),
            (json!({"pattern": "a".repeat(1001)}), "has a pattern of more than 1000 bytes"),
            (json!({"patternProperties": {"a".repeat(1001): {}}}), "has a pattern of more than 1000 bytes"),
            (json!({"items": {"$ref": "#"}}), "refers to itself by '#'"),
            (
                json!({"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"not": {"$ref": "#/$defs/a"}}},
                       "$ref": "#/$defs/a"}),
                "refers to itself by '#/$defs/b'",
            ),
            (
                json!({"properties": {"x": {"$ref": "https://example.com/s.json"}}}),
                "has the reference 'https://example.com/s.json', which leads to no schema inside it",
            ),
            (
                json!({"items": {"$ref": "#/$defs/nothing"}}),
                "has the reference '#/$defs/nothing', which leads to no schema inside it",
            ),
            (
                json!({"dependencies": {"x": {"$ref": "#/$defs/d0"}}, "$defs": doubling(30)["$defs"]}),
                "has more than 20000 parts with its references expanded",
            ),
            (json!({"dependencies": {"x": {"pattern": "a".repeat(1001)}}}), "has a pattern of more than 1000 bytes"),
            (json!({"patternProperties": patterns}), "has more than 64 patterns with its references expanded"),
            (
                json!({"prefixItems": vec![json!({"$ref": "#/$defs/a"}); 65], "$defs": {"a": {"pattern": "x"}}}),
                "has more than 64 patterns with its references expanded",
            ),
            (json!({"dependencies": {"x": {"$ref": "#"}}}), "refers to itself by '#'"),
            (json!({"additionalItems": {}}), "uses the keyword 'additionalItems', which is not supported"),
            (json!({"not": {"later": [[{}]]}}), "uses the keyword 'later', which is not supported"),
            (json!({"$id": "x"}), "uses the keyword '$id', which is not supported"),
            (json!({"items": {"$dynamicRef": "#x"}}), "uses the keyword '$dynamicRef', which is not supported"),
            (
                json!({"$schema": "http://json-schema.org/draft-04/schema#"}),
                "is in the dialect 'http://json-schema.org/draft-04/schema'; JSON Schema 2020-12 is supported",
            ),
        ];
        for (schema, error) in cases {
            assert_eq!(refused(&schema), error);
        }
        let long = format!("{{\"title\": \"{}\"}}", "x".repeat(300_000));
        assert_eq!(parse(&long).expect_err("long"), "has 300013 bytes; 262144 are allowed");
    }

    #[test]
    fn names_that_look_like_keywords_are_names() {
        let schema = json!({"properties": {"$id": {"type": "string"}, "pattern": {"const": {"$ref": "nowhere"}}}});
        assert!(parse(&schema.to_string()).is_ok());
    }

    #[test]
    fn dependencies_are_names_or_schemas_and_count_as_steps() {
        let schema = json!({"dependencies": {"a": ["b", "c"], "x": {"properties": {"x": {"enum": vec![0; 1000]}}}},
                            "x-note": {"$ref": "nowhere"}});
        assert!(parse(&schema.to_string()).is_ok());
        let mut steps = Steps { root: &schema, left: 1000 };
        assert_eq!(steps.count(&schema, &json!({"x": 1})), None);
    }

    #[test]
    fn steps_grow_with_the_schema_and_with_what_is_checked() {
        let schema = json!({"type": "array", "items": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/a"}]},
                            "$defs": {"a": {"type": "string"}}});
        let spent = |items: usize| {
            let mut steps = Steps { root: &schema, left: 1_000_000 };
            steps.count(&schema, &json!(vec![1; items])).map(|()| 1_000_000 - steps.left)
        };
        let (none, ten) = (spent(0).expect("few"), spent(10).expect("few"));
        assert!(ten >= none + 50, "{none}, {ten}");
        assert_eq!(spent(200_000), None);
    }
}
