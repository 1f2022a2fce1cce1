//! A test's result for people: rows as they arrive, then the rest. Knows JSON, not test types, so that it serves every
//! plugin there will be.

use std::io::Write;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::options::expectation;
use crate::plugins::Plugin;

/// Shows one test from its partial results to its end.
pub struct Watcher {
    table: bool,
    /// For each list of the result, the rows that are on the screen.
    shown: Vec<(String, usize)>,
}

impl Watcher {
    #[must_use]
    pub fn new(table: bool) -> Self {
        Self { table, shown: vec![] }
    }

    /// Prints the rows that are new.
    pub fn progress(&mut self, partial: Option<&RawValue>) {
        if !self.table {
            return;
        }
        if let Some(Ok(Value::Object(result))) = partial.map(|raw| serde_json::from_str(raw.get())) {
            self.rows(&result);
        }
    }

    fn rows(&mut self, result: &Map<String, Value>) {
        let mut out = std::io::stdout().lock();
        for (name, value) in result {
            let Value::Array(rows) = value else { continue };
            if !rows.iter().any(Value::is_object) {
                continue;
            }
            let position = self.shown.iter().position(|(list, _)| list == name).unwrap_or_else(|| {
                self.shown.push((name.clone(), 0));
                self.shown.len() - 1
            });
            let Some((_, shown)) = self.shown.get_mut(position) else { continue };
            if *shown == 0 && !rows.is_empty() {
                let _ = writeln!(out, "{name}");
            }
            for row in rows.iter().skip(*shown) {
                let _ = writeln!(out, "  {}", line(row));
            }
            *shown = rows.len().max(*shown);
        }
        let _ = out.flush();
    }

    /// Prints the finished test. True when it did not fail.
    #[must_use]
    pub fn finish(&mut self, json: &RawValue) -> bool {
        let Ok(Value::Object(test)) = serde_json::from_str(json.get()) else { return false };
        let failed = test.get("failed").and_then(Value::as_bool).unwrap_or(true);
        if !self.table {
            let _ = writeln!(std::io::stdout(), "{}", json.get());
            return !failed;
        }
        if let Some(Value::Object(result)) = test.get("result") {
            self.rows(result);
            fields(result, 0);
        }
        let mut out = std::io::stdout().lock();
        if let Some(message) = test.get("message").and_then(Value::as_str) {
            let _ = writeln!(out, "{}", printable(message));
        }
        let _ = writeln!(out, "{}", if failed { "FAILED" } else { "ok" });
        !failed
    }
}

fn fields(object: &Map<String, Value>, depth: usize) {
    let scalars = object
        .iter()
        .filter(|(name, value)| !(value.is_null() || is_table(value) || (depth == 0 && *name == "failed")));
    let width = object.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, value) in scalars {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let _ = writeln!(std::io::stdout(), "{indent}{name}");
                fields(inner, depth + 1);
            }
            value => {
                let _ = writeln!(std::io::stdout(), "{indent}{name:width$}  {}", text(value));
            }
        }
    }
}

fn is_table(value: &Value) -> bool {
    value.as_array().is_some_and(|rows| rows.is_empty() || rows.iter().any(Value::is_object))
}

/// One row: names and values, nothing that is unknown.
fn line(row: &Value) -> String {
    match row {
        Value::Object(row) => {
            let known = row.iter().filter(|(_, value)| !(value.is_null() || **value == Value::Bool(false)));
            known.map(|(name, value)| format!("{name} {}", text(value))).collect::<Vec<_>>().join("  ")
        }
        other => text(other),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Array(items) if items.iter().all(|item| !item.is_object()) => {
            items.iter().map(text).collect::<Vec<_>>().join(", ")
        }
        other => printable(&other.to_string()),
    }
}

/// What a stranger sent must not drive the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A test type and its options.
pub fn plugin(plugin: &Plugin) {
    // A reader that has seen enough (`| head`) is no error.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{} {}  {}", plugin.name, plugin.version, plugin.summary);
    for name in plugin.options.names() {
        let Some(schema) = plugin.options.property(name) else { continue };
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
        let required = if plugin.options.is_required(name) { "; required" } else { "" };
        let default = schema
            .get("default")
            .filter(|d| !d.is_null())
            .map(|d| format!("; default {}", text(d)))
            .unwrap_or_default();
        let _ = writeln!(out, "  {name:17}  {about} [{}{required}{default}]", expectation(schema));
    }
}
