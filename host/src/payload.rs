//! What the caller wrote, and nothing more: a JSON object of lists of option sets.

use serde_json::{Map, Value};

/// One option set as it was written.
pub type Options = Map<String, Value>;

/// Types in the order in which they were written, each with its option sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload(pub Vec<(String, Vec<Options>)>);

/// The payload has no meaning at all: the caller gets a 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("Valid request payload not found.")]
    NotAnObject,
    #[error("{0}: expected a list of option objects")]
    NotAList(String),
    #[error("{0}[{1}]: expected an object of options")]
    NotOptions(String, usize),
    #[error("Provided number of tests is too high. Max: {max}")]
    TooManyTests { max: usize },
}

impl Payload {
    /// # Errors
    /// See [`PayloadError`]. Nesting deeper than 128 levels counts as not JSON.
    pub fn parse(body: &[u8], max_tests: usize) -> Result<Self, PayloadError> {
        let Ok(Value::Object(types)) = serde_json::from_slice(body) else {
            return Err(PayloadError::NotAnObject);
        };
        let mut payload = Vec::with_capacity(types.len());
        let mut tests = 0;
        for (name, value) in types {
            let Value::Array(sets) = value else { return Err(PayloadError::NotAList(name)) };
            tests += sets.len();
            if tests > max_tests {
                return Err(PayloadError::TooManyTests { max: max_tests });
            }
            let mut options = Vec::with_capacity(sets.len());
            for (index, set) in sets.into_iter().enumerate() {
                let Value::Object(set) = set else { return Err(PayloadError::NotOptions(name, index)) };
                options.push(set);
            }
            payload.push((name, options));
        }
        Ok(Self(payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_malformed_payload_is_named() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let cases: &[(&str, &str)] = &[
            ("", "Valid request payload not found."),
            ("nope", "Valid request payload not found."),
            ("[]", "Valid request payload not found."),
            ("null", "Valid request payload not found."),
            (&deep, "Valid request payload not found."),
            (r#"{"ping": {}}"#, "ping: expected a list of option objects"),
            (r#"{"ping": [[]]}"#, "ping[0]: expected an object of options"),
            (r#"{"ping": [{}, 1]}"#, "ping[1]: expected an object of options"),
            (r#"{"ping": [{}, {}], "x": [{}]}"#, "Provided number of tests is too high. Max: 2"),
        ];
        for (body, error) in cases {
            let got = Payload::parse(body.as_bytes(), 2).expect_err(body).to_string();
            assert_eq!(&got, error, "for {body}");
        }
    }

    #[test]
    fn order_of_types_is_kept() {
        let payload = Payload::parse(br#"{"z": [{}], "a": [{}]}"#, 10).expect("valid");
        assert_eq!(payload.0.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["z", "a"]);
    }

    #[test]
    fn an_empty_object_is_a_payload_without_tests() {
        assert_eq!(Payload::parse(b"{}", 10), Ok(Payload(vec![])));
    }
}
