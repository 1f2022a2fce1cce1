//! The exported functions of a component, for any [`Probe`]. Public only for [`export!`](crate::export).

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;

use crate::Probe;
use crate::bindings::exports::scouter::probe::test::{Description, Outcome};

/// Schemas without `$ref`, because people and small tools read them.
fn schema<T: JsonSchema>(settings: SchemaSettings) -> String {
    let settings = settings.with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value().to_string()
}

#[must_use]
pub fn describe<P: Probe>() -> Description {
    Description {
        version: P::VERSION.to_owned(),
        summary: P::SUMMARY.to_owned(),
        options_schema: schema::<P::Options>(SchemaSettings::draft2020_12().for_deserialize()),
        result_schema: schema::<P::Result>(SchemaSettings::draft2020_12().for_serialize()),
    }
}

fn parse<T: DeserializeOwned>(options: &str) -> Result<T, String> {
    serde_json::from_str(options).map_err(|error| format!("Provided options are not allowed: {error}."))
}

fn outcome<P: Probe>(result: &P::Result) -> Result<Outcome, String> {
    let value = serde_json::to_value(result).map_err(|error| format!("The result cannot be written: {error}."))?;
    let failed = value.get("failed").and_then(serde_json::Value::as_bool).unwrap_or(false);
    Ok(Outcome { failed, message: P::message(result), result: value.to_string() })
}

#[must_use]
pub fn run<P: Probe>(options: &str) -> Outcome {
    let outcome = parse(options)
        .and_then(|options| P::run(options).map_err(|error| error.to_string()))
        .and_then(|result| outcome::<P>(&result));
    outcome.unwrap_or_else(|message| Outcome { failed: true, message: Some(message), result: "{}".into() })
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::*;
    use crate::Error;

    struct Divide;

    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Options {
        /// Dividend.
        by: u32,
        #[serde(default)]
        inner: Inner,
    }

    #[derive(Default, Deserialize, JsonSchema)]
    struct Inner {
        #[serde(default)]
        note: String,
    }

    #[derive(Serialize, JsonSchema)]
    struct Quotient {
        value: u32,
        note: String,
        failed: bool,
    }

    impl Probe for Divide {
        type Options = Options;
        type Result = Quotient;
        const VERSION: &str = "1.2.3";
        const SUMMARY: &str = "Divides";

        fn run(options: Options) -> Result<Quotient, Error> {
            let value = 10_u32.checked_div(options.by).ok_or("Division by zero.")?;
            Ok(Quotient { value, note: options.inner.note, failed: value == 0 })
        }

        fn message(result: &Quotient) -> Option<String> {
            (result.value == 1).then(|| "one".into())
        }
    }

    #[test]
    fn results_carry_their_own_failed() {
        for (by, value, failed, message) in [(5, 2, false, None), (20, 0, true, None), (10, 1, false, Some("one"))] {
            let outcome = run::<Divide>(&json!({"by": by}).to_string());
            assert_eq!((outcome.failed, outcome.message.as_deref()), (failed, message));
            let result: Value = serde_json::from_str(&outcome.result).unwrap_or_default();
            assert_eq!(result, json!({"value": value, "note": "", "failed": failed}));
        }
    }

    #[test]
    fn a_test_that_cannot_run_has_a_message_and_an_empty_result() {
        let outcome = run::<Divide>(r#"{"by": 0}"#);
        let expected = Outcome { failed: true, message: Some("Division by zero.".into()), result: "{}".into() };
        assert_eq!(outcome, expected);
        let message = run::<Divide>(r#"{"by": 1, "to": 2}"#).message.unwrap_or_default();
        assert!(message.starts_with("Provided options are not allowed: unknown field `to`"), "{message}");
    }

    #[test]
    fn schemas_have_documentation_and_no_references() {
        let description = describe::<Divide>();
        assert_eq!((description.version.as_str(), description.summary.as_str()), ("1.2.3", "Divides"));
        assert!(!description.options_schema.contains("$ref"), "{}", description.options_schema);
        let schema: Value = serde_json::from_str(&description.options_schema).unwrap_or_default();
        assert_eq!(schema["properties"]["by"]["description"], "Dividend.");
        assert_eq!((&schema["required"], &schema["additionalProperties"]), (&json!(["by"]), &json!(false)));
        assert_eq!(schema["properties"]["inner"]["properties"]["note"]["default"], "");
    }
}
