//! `report`: a running test shows its result so far.

use serde_json::value::to_raw_value;

use super::{RunState, wit};
use crate::sandbox::json::parse_object;

impl wit::report::Host for RunState {
    async fn progress(&mut self, result: String) -> wasmtime::Result<()> {
        self.call(result.len())?;
        // Parsed, so that what survives a kill is as sound as a final result: an object within the same limits.
        if let Ok(object) = parse_object(&result)
            && let Ok(json) = to_raw_value(&object)
        {
            self.partial.put(json);
        }
        Ok(())
    }
}
