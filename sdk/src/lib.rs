//! Write a Scouter plugin in Rust.
//!
//! A plugin is a crate of type `cdylib`, built for `wasm32-wasip2`. It names its options and its result as structs,
//! implements [`Probe`] and exports it:
//!
//! ```no_run
//! use scouter_sdk::prelude::*;
//!
//! /// How many addresses a name has.
//! struct CountAddresses;
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Options {
//!     /// Name to look up.
//!     #[schemars(length(min = 1))]
//!     name: String,
//! }
//!
//! #[derive(Serialize, JsonSchema)]
//! struct Found {
//!     addresses: usize,
//!     failed: bool,
//! }
//!
//! impl Probe for CountAddresses {
//!     type Options = Options;
//!     type Result = Found;
//!     const VERSION: &str = env!("CARGO_PKG_VERSION");
//!     const SUMMARY: &str = "Counts the addresses of a name";
//!
//!     fn run(options: Options) -> Result<Found, Refusal> {
//!         let addresses = resolver::lookup(&options.name, Family::Any)?.len();
//!         Ok(Found { addresses, failed: addresses == 0 })
//!     }
//! }
//!
//! scouter_sdk::export!(CountAddresses);
//! ```
//!
//! Built with `cargo build --release --target wasm32-wasip2` and dropped into the plugin folder as
//! `count_addresses.wasm`, it is the test type `count_addresses`: in the API, in `GET /api/v1.0/plugins`, in
//! `scouter run count_addresses name=example.com`.
//!
//! What the host does for every plugin: option names in any case, digit strings for numbers, unknown options, missing
//! ones and wrong ones are dealt with by the schema, before the plugin runs. So a range that the schema states need
//! not be checked again.
//!
//! What a plugin may use is bounded (CPU time 1 s, memory 64 MiB, 10,000 host calls, a result of 512 KiB); waiting for
//! the network is not CPU time. A plugin that passes a bound costs one failed test.

pub mod nameserver;
pub mod options;
pub mod stats;
pub mod trace;

use std::fmt;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bindings made from `wit/`: every import, as the host documents it.
#[expect(missing_docs, clippy::pedantic, reason = "generated from the documented WIT files")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "plugin",
        pub_export_macro: true,
        default_bindings_module: "scouter_sdk::bindings",
        additional_derives: [PartialEq, Clone],
        generate_all,
    });
}

/// What most plugins need.
pub mod prelude {
    pub use schemars::JsonSchema;
    pub use serde::{Deserialize, Serialize};

    pub use crate::bindings::scouter::probe::net::{Family, NetError};
    pub use crate::bindings::scouter::probe::{asn, browser, dns, hops, http, icmp, resolver};
    pub use crate::{Probe, Refusal, options, stats, trace, watch};
}

use bindings::exports::scouter::probe::test::{Description, Outcome};
use bindings::scouter::probe::net::NetError;
use bindings::scouter::probe::report;

/// One type of test.
pub trait Probe {
    /// The options, in lower case. `#[serde(deny_unknown_fields)]` lets the host name a misspelt one; doc comments
    /// become their documentation, `#[schemars(range(…))]` their ranges.
    type Options: DeserializeOwned + JsonSchema;
    /// The result. A field `failed: bool` says whether the target did what a healthy target does; without it the test
    /// has not failed.
    type Result: Serialize + JsonSchema;
    /// Version of the plugin: `env!("CARGO_PKG_VERSION")`.
    const VERSION: &str;
    /// One line: what the test finds out.
    const SUMMARY: &str;

    /// Performs the test once.
    ///
    /// # Errors
    /// When it could not run at all: the text goes to the caller as the test's `message`.
    fn run(options: Self::Options) -> Result<Self::Result, Refusal>;

    /// What to tell the caller besides the result: nothing, unless the test could not do what it was for.
    fn message(_result: &Self::Result) -> Option<String> {
        None
    }
}

/// Why a test could not run at all, for the person who asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<NetError> for Refusal {
    fn from(error: NetError) -> Self {
        Self(in_words(&error))
    }
}

/// A network error as a sentence or a part of one.
#[must_use]
pub fn in_words(error: &NetError) -> String {
    match error {
        NetError::Denied(why)
        | NetError::Unresolved(why)
        | NetError::Unreachable(why)
        | NetError::Invalid(why)
        | NetError::Unavailable(why) => why.clone(),
        NetError::Timeout => "no answer within the time given".into(),
        NetError::Refused => "connection refused".into(),
    }
}

/// Shows watchers the result as it stands; each call replaces the one before.
pub fn watch(so_far: &impl Serialize) {
    if let Ok(json) = serde_json::to_string(so_far) {
        report::partial(&json);
    }
}

/// What [`export!`] calls; not for plugins.
#[doc(hidden)]
pub mod glue {
    use super::{Description, DeserializeOwned, JsonSchema, Outcome, Probe, SchemaSettings};

    /// Schemas are flat, without `$ref`: they are read by people and by small tools.
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

    fn finish<P: Probe>(result: &P::Result) -> Result<Outcome, String> {
        let value = serde_json::to_value(result).map_err(|error| format!("The result cannot be written: {error}."))?;
        let failed = value.get("failed").and_then(serde_json::Value::as_bool).unwrap_or(false);
        Ok(Outcome { failed, message: P::message(result), result: value.to_string() })
    }

    #[must_use]
    pub fn run<P: Probe>(options: &str) -> Outcome {
        let outcome = parse(options)
            .and_then(|options| P::run(options).map_err(|refusal| refusal.0))
            .and_then(|result| finish::<P>(&result));
        outcome.unwrap_or_else(|message| Outcome { failed: true, message: Some(message), result: "{}".into() })
    }
}

/// Makes a [`Probe`] the component's test.
#[macro_export]
macro_rules! export {
    ($probe:ty) => {
        const _: () = {
            struct Exported;

            impl $crate::bindings::exports::scouter::probe::test::Guest for Exported {
                fn describe() -> $crate::bindings::exports::scouter::probe::test::Description {
                    $crate::glue::describe::<$probe>()
                }

                fn run(options: ::std::string::String) -> $crate::bindings::exports::scouter::probe::test::Outcome {
                    $crate::glue::run::<$probe>(&options)
                }
            }

    $crate::bindings::export!(Exported with_types_in $crate::bindings);
        };
    };
}
