//! Clients of the API's first version: their payloads, and the results that they read.
//!
//! Each file of `compat/` has the cases of one test type. A case is a payload and the shape of its results:
//!
//! - an object lists fields that must be there; results may have more
//! - a list has as many elements as the result; `{"each": SHAPE}` stands for a list of any length but 0
//! - `"<string>"`, `"<integer>"`, `"<number>"`, `"<list>"`, `"<3 decimals>"` and `"<6 hex digits>"` stand for any value of
//!   that form, and `"<begins> TEXT"` for a text that begins so
//! - every other value must be equal
//!
//! `{server}` stands for the address and port of the server itself. Cases with `"lab": true` need the network lab.

use std::sync::Arc;

use libtest_mimic::Trial;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::lab::pages::ports;
use crate::support::lab::Lab;
use crate::support::root;
use crate::support::server::Server;
use crate::trials;

pub fn trials() -> Vec<Trial> {
    trials!("compat": on_loopback_results_have_the_shape_of_the_first_version)
}

pub fn lab_trials(lab: &Arc<Lab>) -> Vec<Trial> {
    trials!("compat", lab => in_the_lab_results_have_the_shape_of_the_first_version)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    lab: bool,
    payload: Value,
    results: Value,
}

/// The cases of all files, with `{server}` replaced.
fn cases(server: &Server, lab: bool) -> Vec<Case> {
    let mut files: Vec<_> = std::fs::read_dir(root().join("tests/compat"))
        .expect("a folder")
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort();
    assert!(files.len() > 6, "a file for each test type: {files:?}");
    let cases = files.iter().flat_map(|file| {
        let text = std::fs::read_to_string(file).expect("text").replace("{server}", &server.address.to_string());
        let cases: Vec<Case> =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        cases
    });
    cases.filter(|case| case.lab == lab).collect()
}

fn replay(server: &Server, lab: bool) {
    let mut differences = vec![];
    for case in cases(server, lab) {
        let results = server.run(&case.payload);
        let sizes = |of: &Value| of.as_object().map(Map::len);
        assert_eq!(sizes(&results), sizes(&case.results), "{}: the types of the payload", case.name);
        let mut found = vec![];
        compare("", &case.results, &results, &mut found);
        differences.extend(found.iter().map(|difference| format!("{}: {difference}", case.name)));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn compare(path: &str, shape: &Value, actual: &Value, differences: &mut Vec<String>) {
    let mut differ = |what: String| differences.push(format!("{path}: {what}"));
    match (shape, actual) {
        (Value::Object(shape), Value::Array(list)) if shape.contains_key("each") => {
            if list.is_empty() {
                differ("an empty list".into());
            }
            for (index, element) in list.iter().enumerate() {
                compare(&format!("{path}[{index}]"), &shape["each"], element, differences);
            }
        }
        (Value::Object(shape), Value::Object(object)) => {
            for (name, shape) in shape {
                match object.get(name) {
                    Some(value) => compare(&format!("{path}.{name}"), shape, value, differences),
                    None => differences.push(format!("{path}.{name}: missing")),
                }
            }
        }
        (Value::Array(shape), Value::Array(list)) => {
            if shape.len() != list.len() {
                differ(format!("{} elements instead of {}: {actual}", list.len(), shape.len()));
            }
            for (index, (shape, element)) in shape.iter().zip(list).enumerate() {
                compare(&format!("{path}[{index}]"), shape, element, differences);
            }
        }
        (Value::String(text), actual) if text.starts_with('<') => {
            if !is(text, actual) {
                differ(format!("{actual} is not {text}"));
            }
        }
        // 0 and 0.0 are one number.
        (Value::Number(shape), Value::Number(number)) if shape.as_f64() == number.as_f64() => {}
        _ if shape == actual => {}
        _ => differ(format!("{actual} instead of {shape}")),
    }
}

fn is(form: &str, value: &Value) -> bool {
    let text = value.as_str();
    match form {
        "<string>" => text.is_some(),
        "<integer>" => value.is_u64(),
        "<number>" => value.is_number(),
        "<list>" => value.is_array(),
        "<3 decimals>" => text.and_then(|text| text.split_once('.')).is_some_and(|(whole, decimals)| {
            decimals.len() == 3 && (whole.to_owned() + decimals).bytes().all(|byte| byte.is_ascii_digit())
        }),
        "<6 hex digits>" => text.is_some_and(|text| text.len() == 6 && u32::from_str_radix(text, 16).is_ok()),
        _ => match form.strip_prefix("<begins> ") {
            Some(beginning) => text.is_some_and(|text| text.starts_with(beginning)),
            None => panic!("'{form}' is no form"),
        },
    }
}

fn on_loopback_results_have_the_shape_of_the_first_version() {
    replay(&Server::start(&[("SCOUTER_TARGETS_ALLOW", "127.0.0.1")]), false);
}

fn in_the_lab_results_have_the_shape_of_the_first_version(lab: &Lab) {
    let ports = ports();
    replay(&lab.server(&[("SCOUTER_BROWSER_PORTS", &ports)]), true);
}
