//! `report`: a running test shows its result so far.

use super::{RunState, wit};
use crate::sandbox::budget;
use crate::sandbox::progress::Partial;

impl wit::report::Host for RunState {
    async fn progress(&mut self, result: String) -> wasmtime::Result<()> {
        self.call(&result)?;
        if result.len() <= budget::RESULT_BYTES {
            self.partial.put(Partial::new(result));
        }
        Ok(())
    }
}
