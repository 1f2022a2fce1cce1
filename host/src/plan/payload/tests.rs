//! Payloads, good and bad.

use super::*;

fn refused(body: &str) -> String {
    Payload::parse(body.as_bytes(), 2).expect_err(body).to_string()
}

#[test]
fn every_malformed_payload_is_named() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let cases: &[(&str, &str)] = &[
        ("", "Valid request payload not found."),
        ("nope", "Valid request payload not found."),
        ("[]", "Valid request payload not found."),
        ("null", "Valid request payload not found."),
        ("{} {}", "Valid request payload not found."),
        (r#"{"ping": NaN}"#, "Valid request payload not found."),
        (r#"{"ping": [{"dst": "#, "Valid request payload not found."),
        (r#"{"ping": [{"dst": "a"}]"#, "Valid request payload not found."),
        (&deep, "Valid request payload not found."),
        (r#"{"ping": [], "ping": []}"#, "Provided payload has a name more than once: 'ping'."),
        (r#"{"ping": [{"dst": "a", "dst": "b"}]}"#, "Provided payload has a name more than once: 'dst'."),
        (r#"{"ping": [{"a": {"b": 1, "b": 2}}]}"#, "Provided payload has a name more than once: 'b'."),
        (r#"{"ping": [{"n": 1e309}]}"#, "Provided payload has a number that is out of range: line 1, column 21."),
        (r#"{"ping": {}}"#, "ping: expected a list of option objects"),
        (r#"{"ping": 1}"#, "ping: expected a list of option objects"),
        (r#"{"ping": null}"#, "ping: expected a list of option objects"),
        (r#"{"ping": [[]]}"#, "ping[0]: expected an object of options"),
        (r#"{"ping": [{}, 1]}"#, "ping[1]: expected an object of options"),
        (r#"{"ping": [{}, {}], "x": [{}]}"#, "Provided number of tests is too high. Max: 2"),
    ];
    for (body, error) in cases {
        assert_eq!(&refused(body), error, "for {body}");
    }
}

#[test]
fn a_name_in_two_spellings_is_the_same_name() {
    assert_eq!(refused(r#"{"ping": [], "PING": []}"#), "Provided payload has a name more than once: 'PING'.");
    assert_eq!(
        refused(r#"{"ping": [{"dst": "a", "DST": "b"}]}"#),
        "Provided payload has a name more than once: 'DST'."
    );
    // Headers may differ in case only: what they mean is the plugin's matter.
    assert!(Payload::parse(br#"{"ping": [{"h": {"a": 1, "A": 2}}]}"#, 2).is_ok());
}

#[test]
fn types_with_empty_lists_count_as_tests() {
    assert!(Payload::parse(br#"{"a": [], "b": []}"#, 2).is_ok());
    assert_eq!(refused(r#"{"a": [], "b": [], "c": []}"#), "Provided number of tests is too high. Max: 2");
}

#[test]
fn limits_name_the_place_and_what_is_allowed() {
    let long = |n| "n".repeat(n);
    let list = |n: usize| format!("[{}]", vec!["1"; n].join(","));
    let object = |n: usize| (0..n).map(|i| format!("\"{i}\":1")).collect::<Vec<_>>().join(",");
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let test = |options: &str| format!("{{\"ping\": [{{}}, {{{options}}}]}}");
    let lists = (0..30).map(|i| format!("\"{i}\":{}", list(1000))).collect::<Vec<_>>().join(",");
    let cases = [
        (
            format!("{{\"{}\": []}}", long(65)),
            format!("payload: expected names of at most 64 characters, got '{}'", long(65)),
        ),
        (
            test(&format!("\"{}\": 1", long(1_000_000))),
            format!("ping[1]: expected names of at most 64 characters, got '{}…'", long(100)),
        ),
        (
            test(&format!("\"h\": {{\"{}\": 1}}", long(257))),
            format!("ping[1].h: expected names of at most 256 characters, got '{}…'", long(100)),
        ),
        (
            test(&format!("\"ns\": {}", list(520_000))),
            "ping[1].ns: expected a list of at most 1000 items, got more".into(),
        ),
        (
            test(&format!("\"h\": [{{{}}}]", object(1001))),
            "ping[1].h[0]: expected an object of at most 1000 names, got more".into(),
        ),
        (test(&object(101)), "ping[1]: expected at most 100 options, got more".into()),
        (
            test(&format!("\"x\": {}", deep(9))),
            "ping[1].x[0][0][0][0][0][0][0][0]: expected lists and objects at most 8 deep, got more".into(),
        ),
        (test(&lists), "ping[1].19[980]: expected at most 20000 values in the payload, got more".into()),
    ];
    for (body, error) in cases {
        assert_eq!(refused(&body), error);
    }
    for good in [
        format!("{{\"{}\": []}}", long(64)),
        test(&format!("\"{}\": 1", "ü".repeat(64))),
        test(&format!("\"x\": {}", list(1000))),
        test(&format!("\"x\": {}", deep(8))),
        test(&object(100)),
    ] {
        assert!(Payload::parse(good.as_bytes(), 2).is_ok(), "{good}");
    }
}

#[test]
fn order_of_types_is_kept() {
    let payload = Payload::parse(br#"{"z": [{}], "a": [{}]}"#, 10).expect("valid");
    assert_eq!(payload.0.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["z", "a"]);
}

#[test]
fn values_are_kept_as_they_were_written() {
    let text = r#"{"a":[{"n":null,"t":true,"i":-3,"u":18446744073709551615,"f":1.5,"s":"x","l":[[],{}]}]}"#;
    let Payload(types) = Payload::parse(text.as_bytes(), 1).expect("valid");
    assert_eq!(format!(r#"{{"a":[{}]}}"#, Value::Object(types[0].1[0].clone())), text);
}

#[test]
fn an_empty_object_is_a_payload_without_tests() {
    assert_eq!(Payload::parse(b"{}", 10), Ok(Payload(vec![])));
}
