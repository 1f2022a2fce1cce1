//! A test's result for people: tables that grow while the test runs, then the rest. Knows JSON, not test types, so that
//! it serves every plugin there will be.

use std::io::{IsTerminal, Write};

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use comfy_table::{ContentArrangement, Table, presets};

use super::escape;
use crate::sandbox::Plugin;
use crate::sandbox::schema::expectation;

/// Shows one test from its partial results to its end.
pub struct Watcher {
    table: bool,
    /// Lines on the screen that the next picture replaces.
    drawn: usize,
}

impl Watcher {
    #[must_use]
    pub fn new(table: bool) -> Self {
        Self { table, drawn: 0 }
    }

    /// On a terminal, draws the tables as they stand in the place of what was drawn before. Rows may change: a router
    /// in the middle of a path may answer last. Elsewhere nothing is drawn before the end.
    pub fn progress(&mut self, partial: Option<&RawValue>) {
        let stdout = std::io::stdout();
        if !self.table || !stdout.is_terminal() {
            return;
        }
        let Some(Ok(Value::Object(result))) = partial.map(|raw| serde_json::from_str(raw.get())) else { return };
        let Ok(size) = rustix::termios::tcgetwinsize(&stdout) else { return };
        let lines = tables(&result);
        // What has scrolled away cannot be replaced, and a line that wraps is more than one.
        if lines.len() + 1 < usize::from(size.ws_row) {
            let fitting =
                lines.iter().map(|line| line.chars().take(usize::from(size.ws_col).max(1)).collect::<String>());
            self.draw(&fitting.collect::<Vec<_>>());
        }
    }

    fn draw(&mut self, lines: &[String]) {
        let mut out = std::io::stdout().lock();
        if self.drawn > 0 {
            // Up to the first line, and everything from there erased (ECMA-48: CUU, ED).
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn);
        }
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
        self.drawn = lines.len();
    }

    /// Prints the finished test. True when it did not fail.
    #[must_use]
    pub fn finish(&mut self, json: &RawValue) -> bool {
        let Ok(Value::Object(test)) = serde_json::from_str(json.get()) else { return false };
        let failed = test.get("failed").and_then(Value::as_bool).unwrap_or(true);
        if !self.table {
            let _ = writeln!(std::io::stdout(), "{}", escape::json(json.get()));
            return !failed;
        }
        if let Some(Value::Object(result)) = test.get("result") {
            self.draw(&tables(result));
            fields(result, 0);
        }
        let mut out = std::io::stdout().lock();
        if let Some(message) = test.get("message").and_then(Value::as_str) {
            let _ = writeln!(out, "{}", escape::line(message));
        }
        let _ = writeln!(out, "{}", if failed { "FAILED" } else { "ok" });
        !failed
    }
}

/// Characters of a time line.
const TIME_LINE: usize = 40;
/// Longer texts in front of a time line are cut in the middle.
const BESIDE: usize = 60;

/// Everything in the result that has a start and a length, on one time line (a waterfall).
fn time_line(result: &Map<String, Value>) -> Vec<String> {
    let rows = result.values().flat_map(|value| match value {
        Value::Array(rows) => rows.iter().filter_map(Value::as_object).collect(),
        Value::Object(row) => vec![row],
        _ => vec![],
    });
    let span = |row: &Map<String, Value>| Some((row.get("started_ms")?.as_f64()?, row.get("time_total")?.as_f64()?));
    let mut rows: Vec<_> = rows.filter_map(|row| Some((span(row)?, row))).collect();
    rows.sort_by(|((a, _), _), ((b, _), _)| a.total_cmp(b));
    let end = rows.iter().map(|((start, length), _)| start + length).fold(0.0, f64::max);
    if rows.is_empty() || end <= 0.0 {
        return vec![];
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a picture"
    )]
    let place = |at: f64| ((at / end * TIME_LINE as f64) as usize).min(TIME_LINE);
    let drawn: Vec<Map<String, Value>> = rows
        .iter()
        .map(|((start, length), row)| {
            let (from, to) = (place(*start).min(TIME_LINE - 1), place(start + length));
            let bar = "█".repeat((to - from.min(to)).max(1));
            let shown = row.iter().filter(|(name, _)| !name.starts_with("time_") && *name != "version");
            let mut shown: Map<String, Value> = shown
                .map(|(name, value)| match value {
                    Value::String(text) => (name.clone(), Value::String(shortened(text))),
                    value => (name.clone(), value.clone()),
                })
                .collect();
            shown.insert("total_ms".into(), row.get("time_total").cloned().unwrap_or_default());
            shown.insert(format!("0 – {end:.0} ms"), Value::String(format!("{}{bar}", " ".repeat(from))));
            shown
        })
        .collect();
    let mut lines = vec!["requests".to_owned()];
    lines.extend(table(&drawn.iter().collect::<Vec<_>>()));
    lines
}

fn shortened(text: &str) -> String {
    let length = text.chars().count();
    if length <= BESIDE {
        return text.to_owned();
    }
    let half = BESIDE / 2 - 1;
    let (head, tail): (String, String) =
        (text.chars().take(half).collect(), text.chars().skip(length - half).collect());
    format!("{head}…{tail}")
}

fn is_timed(row: &Map<String, Value>) -> bool {
    row.contains_key("started_ms") && row.contains_key("time_total")
}

/// Each list of objects as a table under its name.
fn tables(result: &Map<String, Value>) -> Vec<String> {
    let mut lines = time_line(result);
    for (name, value) in result {
        let Value::Array(rows) = value else { continue };
        let rows: Vec<&Map<String, Value>> = rows.iter().filter_map(Value::as_object).collect();
        if !rows.is_empty() && !rows.iter().any(|row| is_timed(row)) {
            lines.push(escape::line(name));
            lines.extend(table(&rows));
        }
    }
    lines
}

/// Columns of what is known in any row; what has an inside of its own is left to the JSON output.
fn table(rows: &[&Map<String, Value>]) -> Vec<String> {
    let mut names: Vec<&String> = vec![];
    for (name, value) in rows.iter().flat_map(|row| row.iter()) {
        if !names.contains(&name) && is_shown(value) {
            names.push(name);
        }
    }
    let cell = |row: &Map<String, Value>, name: &String| match row.get(name) {
        Some(Value::Null) | None => "-".into(),
        Some(Value::String(text)) if text.is_empty() => "-".into(),
        Some(value) => text(value),
    };
    let mut table = Table::new();
    // A line of the terminal for each row: the picture is drawn anew while the test runs, and must know its height.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(names.iter().map(|name| escape::line(name)));
    for row in rows {
        table.add_row(names.iter().map(|name| cell(row, name)));
    }
    table.lines().map(|line| format!(" {}", line.trim_end())).collect()
}

fn is_shown(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) | Value::Object(_) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => items.len() > 1 && !items.iter().any(|item| item.is_object() || item.is_array()),
        _ => true,
    }
}

fn fields(object: &Map<String, Value>, depth: usize) {
    let scalars = object
        .iter()
        .filter(|(name, value)| !(value.is_null() || is_table(value) || (depth == 0 && *name == "failed")))
        .filter(|(_, value)| !value.as_object().is_some_and(is_timed));
    let width = object.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, value) in scalars {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let _ = writeln!(std::io::stdout(), "{indent}{}", escape::line(name));
                fields(inner, depth + 1);
            }
            value => {
                let _ = writeln!(std::io::stdout(), "{indent}{:width$}  {}", escape::line(name), text(value));
            }
        }
    }
}

fn is_table(value: &Value) -> bool {
    value.as_array().is_some_and(|rows| rows.is_empty() || rows.iter().any(Value::is_object))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => escape::line(text),
        Value::Array(items) if items.iter().all(|item| !item.is_object()) => {
            items.iter().map(text).collect::<Vec<_>>().join(", ")
        }
        other => escape::line(&other.to_string()),
    }
}

/// A test type and its options.
pub fn plugin(plugin: &Plugin) {
    // A reader that has seen enough (`| head`) is no error.
    let mut out = std::io::stdout().lock();
    let head = format!("{} {}  {}", plugin.name, plugin.version, plugin.summary);
    let _ = writeln!(out, "{}", escape::line(&head));
    for name in plugin.options.names() {
        let Some(schema) = plugin.options.property(name) else { continue };
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
        let required = if plugin.options.is_required(name) { "; required" } else { "" };
        let default = schema
            .get("default")
            .filter(|d| !d.is_null())
            .map(|d| format!("; default {}", text(d)))
            .unwrap_or_default();
        let option = format!("  {name:17}  {about} [{}{required}{default}]", expectation(schema));
        let _ = writeln!(out, "{}", escape::line(&option));
    }
}
