//! HTTP headers as options and in results.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::bindings::scouter::probe::http::Header;

/// A header value. Clients often write numbers without quotes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HeaderValue {
    Text(String),
    Number(serde_json::Number),
}

impl fmt::Display for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// The headers of an option that is an object.
#[must_use]
pub fn from_object(object: &BTreeMap<String, HeaderValue>) -> Vec<Header> {
    object.iter().map(|(name, value)| Header { name: name.clone(), value: value.to_string() }).collect()
}

/// Headers in the form of results: one value for each name, with the values of repeated names joined (RFC 9110,
/// section 5.3).
#[must_use]
pub fn joined(headers: &[Header]) -> BTreeMap<String, String> {
    let mut joined: BTreeMap<String, String> = BTreeMap::new();
    for Header { name, value } in headers {
        joined
            .entry(name.clone())
            .and_modify(|values| {
                values.push_str(", ");
                values.push_str(value);
            })
            .or_insert_with(|| value.clone());
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_may_be_numbers() {
        let object = serde_json::json!({"X-A": "b c", "X-N": 5, "X-F": 1.5});
        let object: BTreeMap<String, HeaderValue> = serde_json::from_value(object).unwrap_or_default();
        let pairs: Vec<_> = from_object(&object).into_iter().map(|header| (header.name, header.value)).collect();
        let expected = [("X-A", "b c"), ("X-F", "1.5"), ("X-N", "5")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn values_of_one_name_are_joined_in_order() {
        let header = |name: &str, value: &str| Header { name: name.into(), value: value.into() };
        let headers = [header("vary", "b"), header("server", "x"), header("vary", "a")];
        let joined = joined(&headers);
        assert_eq!((joined.len(), joined["vary"].as_str(), joined["server"].as_str()), (2, "b, a", "x"));
    }
}
