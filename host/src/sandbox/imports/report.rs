//! `report`: a running test shows its result so far.

use serde_json::Value;
use serde_json::value::to_raw_value;

use super::{RunState, wit};
use crate::sandbox::budget;

impl wit::report::Host for RunState {
    async fn progress(&mut self, result: String) -> wasmtime::Result<()> {
        self.call(result.len())?;
        if result.len() <= budget::RESULT_BYTES
            // Parsed, so that what survives a kill is as sound as a final result: an object, not nested too deeply.
            && let Ok(Value::Object(object)) = serde_json::from_str(&result)
            && let Ok(json) = to_raw_value(&object)
        {
            self.partial.put(json);
        }
        Ok(())
    }
}
