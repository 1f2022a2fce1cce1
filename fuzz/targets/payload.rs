//! Payloads as clients of the API write them: what is taken keeps its limits, and is the same when it is written again. The
//! module is taken out of the server, which would bring its sandbox along.

#![no_main]

use serde_json::{Map, Value};

#[path = "../../host/src/plan/payload/mod.rs"]
#[allow(dead_code, reason = "the server uses all of it")]
mod payload;

use payload::{DEPTH, ITEMS, NAME_CHARS, OPTIONS, Options, Payload};

const TESTS: usize = 10;

fn check(value: &Value, depth: usize) {
    assert!(depth <= DEPTH);
    match value {
        Value::Array(items) => {
            assert!(items.len() <= ITEMS);
            items.iter().for_each(|item| check(item, depth + 1));
        }
        Value::Object(names) => {
            assert!(names.len() <= ITEMS);
            names.values().for_each(|item| check(item, depth + 1));
        }
        _ => {}
    }
}

fn written(Payload(types): &Payload) -> String {
    let set = |options: &Options| Value::Object(options.clone());
    let list = |sets: &Vec<Options>| Value::Array(sets.iter().map(set).collect());
    Value::Object(types.iter().map(|(name, sets)| (name.clone(), list(sets))).collect::<Map<_, _>>()).to_string()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(payload) = Payload::parse(data, TESTS) else { return };
    let tests: usize = payload.0.iter().map(|(_, sets)| sets.len().max(1)).sum();
    assert!(tests <= TESTS);
    for (name, sets) in &payload.0 {
        assert!(name.chars().count() <= NAME_CHARS);
        for options in sets {
            assert!(options.len() <= OPTIONS && options.keys().all(|name| name.chars().count() <= NAME_CHARS));
            options.values().for_each(|value| check(value, 0));
        }
    }
    assert_eq!(Payload::parse(written(&payload).as_bytes(), TESTS), Ok(payload));
});
