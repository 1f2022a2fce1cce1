//! A schema as a part of another document, such as OpenAPI: its definitions become components beside it, and its
//! references lead there. A reference in a schema counts from the root of the document that it stands in.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::bounds::for_each_mut;

const COMPONENTS: &str = "#/components/schemas/";

/// The schema under `name`, and each of its definitions under `name.definition`.
#[must_use]
pub fn components(schema: &Value, name: &str) -> Vec<(String, Value)> {
    let mut root = schema.clone();
    let (mut definitions, mut names, mut taken) = (vec![], HashMap::new(), HashSet::new());
    if let Value::Object(keywords) = &mut root {
        keywords.shift_remove("$schema");
        for keyword in ["$defs", "definitions"] {
            let Some(Value::Object(map)) = keywords.shift_remove(keyword) else { continue };
            for (definition, schema) in map {
                let mut component = format!("{name}.{}", harmless(&definition));
                while !taken.insert(component.clone()) {
                    component.push('_');
                }
                names.insert(format!("#/{keyword}/{}", escaped(&definition)), component.clone());
                definitions.push((component, schema));
            }
        }
    }
    let mut all = vec![(name.to_owned(), root)];
    all.extend(definitions);
    for (_, schema) in &mut all {
        for_each_mut(schema, &mut |keywords: &mut Map<String, Value>| {
            if let Some(Value::String(reference)) = keywords.get_mut("$ref") {
                *reference = moved(reference, name, &names);
            }
        });
    }
    all
}

fn moved(reference: &str, name: &str, definitions: &HashMap<String, String>) -> String {
    // `#/$defs/name`, and what may follow inside the definition.
    let end = reference.match_indices('/').nth(2).map_or(reference.len(), |(at, _)| at);
    let (definition, rest) = reference.split_at(end);
    match definitions.get(definition) {
        Some(component) => format!("{COMPONENTS}{component}{rest}"),
        None => format!("{COMPONENTS}{name}{}", reference.trim_start_matches('#')),
    }
}

/// As a token of a JSON pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Letters, digits, `-` and `_`: what a component's name may have, but for the point.
fn harmless(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn definitions_become_components_and_references_lead_there() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "a": {"$ref": "#/$defs/A"},
                "b": {"anyOf": [{"$ref": "#/definitions/B~1C"}, {"type": "null"}]},
                "c": {"items": {"$ref": "#/properties/a"}},
                "d": {"$ref": "#/$defs/A/properties/x"},
                "e": {"const": {"$ref": "#/$defs/A"}},
                "f": {"dependencies": {"x": {"$ref": "#/$defs/A"}, "y": ["x"]}},
            },
            "$defs": {"A": {"properties": {"x": {"$ref": "#/definitions/B~1C"}}}, "A b": {}},
            "definitions": {"B/C": {"type": "integer"}, "A_b": {}},
        });
        let components = components(&schema, "ping_options");
        let names: Vec<&str> = components.iter().map(|(name, _)| name.as_str()).collect();
        let expected = ["ping_options", "ping_options.A", "ping_options.A_b", "ping_options.B_C", "ping_options.A_b_"];
        assert_eq!(names, expected);
        let properties = json!({
            "a": {"$ref": "#/components/schemas/ping_options.A"},
            "b": {"anyOf": [{"$ref": "#/components/schemas/ping_options.B_C"}, {"type": "null"}]},
            "c": {"items": {"$ref": "#/components/schemas/ping_options/properties/a"}},
            "d": {"$ref": "#/components/schemas/ping_options.A/properties/x"},
            "e": {"const": {"$ref": "#/$defs/A"}},
            "f": {"dependencies": {"x": {"$ref": "#/components/schemas/ping_options.A"}, "y": ["x"]}},
        });
        assert_eq!(components[0].1, json!({"type": "object", "properties": properties}));
        assert_eq!(components[1].1["properties"]["x"]["$ref"], "#/components/schemas/ping_options.B_C");
    }
}
