//! The host's checks of options and results, and sample results, for unit tests of plugins (feature `testing`).

use serde_json::Value;

use crate::trace::{Hop, StopReason, StoppedBy, TraceResult};
use crate::{IpVersion, Probe};

/// Checks a value against a JSON Schema.
///
/// # Errors
/// The first violation, after the path to it.
pub fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let validator = jsonschema::validator_for(schema).map_err(|error| error.to_string())?;
    validator.validate(value).map_err(|error| format!("{}: {error}", error.instance_path().as_str()))
}

fn parse(schema: &str) -> Result<Value, String> {
    serde_json::from_str(schema).map_err(|error| error.to_string())
}

/// Parses options that satisfy the plugin's schema.
///
/// # Errors
/// The first violation, after the path to it.
pub fn options<P: Probe>(options: Value) -> Result<P::Options, String> {
    check(&parse(&crate::describe::<P>().options_schema)?, &options)?;
    serde_json::from_value(options).map_err(|error| error.to_string())
}

/// The JSON of a result that satisfies the plugin's schema.
///
/// # Errors
/// The first violation, after the path to it.
pub fn result<P: Probe>(result: &P::Result) -> Result<Value, String> {
    let value = serde_json::to_value(result).map_err(|error| error.to_string())?;
    check(&parse(&crate::describe::<P>().result_schema)?, &value)?;
    Ok(value)
}

/// The result of a trace in which the target responded at TTL 1.
#[must_use]
pub fn trace_result(target: &str) -> TraceResult {
    let src = Some(target.to_owned());
    let hop = Hop { ttl: 1, src: src.clone(), no_response: Some(false), ..Hop::default() };
    TraceResult {
        address: target.to_owned(),
        family: IpVersion::of(target).number(),
        payload_size: 56,
        packet_size: 84,
        trace: vec![hop],
        paths: vec![],
        reached: true,
        stopped_by: Some(StoppedBy { reason: StopReason::Target, ttl: 1, src, icmp: None }),
        mode: "raw",
        constant_flow: true,
        errors: vec![],
        degraded: None,
    }
}
