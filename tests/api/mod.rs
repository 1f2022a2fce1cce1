//! Every route and every error row of the contract, by resource.
//!
//! - `secrets`  who may ask
//! - `payloads` what is answered 400, and what becomes a failed test
//! - `receipts` results as they come, expiry, deletion
//! - `queue`    waiting tests and execution slots
//! - `status`   `/status` and `/plugins`
//! - `limits`   what a request may cost
//! - `shutdown` SIGTERM and SIGINT

mod limits;
mod payloads;
mod queue;
mod receipts;
mod secrets;
mod shutdown;
mod status;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::ConcatAll;

pub fn trials() -> Vec<Trial> {
    [
        secrets::trials(),
        payloads::trials(),
        receipts::trials(),
        queue::trials(),
        status::trials(),
        limits::trials(),
        shutdown::trials(),
    ]
    .concat_all()
}

fn sleeping(ms: u64) -> Value {
    json!({"do": "sleep", "n": ms})
}
