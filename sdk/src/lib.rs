//! Write a Scouter plugin in Rust.
//!
//! A plugin is a crate of type `cdylib` for the target `wasm32-wasip2`. It declares its options and its result as
//! structs, implements [`Probe`] and exports it:
//!
//! ```
//! use scouter_sdk::prelude::*;
//!
//! /// Counts the addresses of a name.
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
//! struct AddressCount {
//!     addresses: usize,
//!     failed: bool,
//! }
//!
//! impl Probe for CountAddresses {
//!     type Options = Options;
//!     type Result = AddressCount;
//!     const VERSION: &str = env!("CARGO_PKG_VERSION");
//!     const SUMMARY: &str = "Counts the addresses of a name";
//!
//!     fn run(options: Options) -> Result<AddressCount, Error> {
//!         let addresses = resolver::lookup(&options.name, Family::Any)?.len();
//!         Ok(AddressCount { addresses, failed: addresses == 0 })
//!     }
//! }
//!
//! scouter_sdk::export!(CountAddresses);
//! ```
//!
//! Build it with `cargo build --release --target wasm32-wasip2`, and put the file into the plugin folder as
//! `count_addresses.wasm`. The test type `count_addresses` then exists in the API, in `GET /api/v1.0/plugins` and on the
//! command line: `scouter run count_addresses name=example.com`.
//!
//! # Options
//! Before the plugin runs, the host converts option names to lower case and digit strings to numbers, and checks the
//! options against the schema: unknown, missing and wrong options fail the test with a message that names them. The
//! plugin need not check a range that the schema states.
//!
//! # Limits
//! A run has 1 s of CPU time, 64 MiB of memory, 10,000 host calls and 512 KiB with 50,000 values for its
//! result. Waiting for the network uses no CPU time. Exceeding a limit fails that one test.
//!
//! # Unit tests
//! The logic of a plugin runs natively under `cargo test`; its imports do not, they panic there. The module `testing`
//! (feature `testing`) checks options and results against the plugin's own schemas, as the host does.

pub mod attempts;
mod glue;
pub mod headers;
pub mod nameserver;
pub mod options;
pub mod stats;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trace;
pub mod url;

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bindings generated from `wit/`: every import, with the documentation of its interface.
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

/// The names that most plugins use.
pub mod prelude {
    pub use schemars::JsonSchema;
    pub use serde::{Deserialize, Serialize};

    pub use crate::bindings::scouter::probe::net::{Family, NetError};
    pub use crate::bindings::scouter::probe::{asn, browser, dns, hops, http, icmp, resolver};
    pub use crate::{Error, IpVersion, Probe, first_address, options, report_progress, stats, trace, url};
}

use bindings::scouter::probe::net::{Family, NetError};
use bindings::scouter::probe::{report, resolver};

#[doc(hidden)]
pub use glue::{describe, run};

/// One type of test.
pub trait Probe {
    /// Options, in lower case. Doc comments become their documentation and `#[schemars(range(…))]` their ranges. With
    /// `#[serde(deny_unknown_fields)]` the host refuses misspelt options.
    type Options: DeserializeOwned + JsonSchema;
    /// Result of a run. Its field `failed: bool` states whether the target failed the test; a result without that
    /// field has not failed.
    type Result: Serialize + JsonSchema;
    /// Version of the plugin: `env!("CARGO_PKG_VERSION")`.
    const VERSION: &str;
    /// One line: what the test measures.
    const SUMMARY: &str;

    /// Performs the test once.
    ///
    /// # Errors
    /// When the test could not run. The text is the `message` that the caller sees.
    fn run(options: Self::Options) -> Result<Self::Result, Error>;

    /// A `message` beside the result, for a test that ran without reaching its purpose.
    fn message(_result: &Self::Result) -> Option<String> {
        None
    }
}

/// Why a test could not run, in a text for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<NetError> for Error {
    fn from(error: NetError) -> Self {
        Self(match error {
            NetError::Denied(why)
            | NetError::Unresolved(why)
            | NetError::Unreachable(why)
            | NetError::Invalid(why)
            | NetError::Unavailable(why) => why,
            NetError::Timeout => "no answer within the time given".into(),
            NetError::Refused => "connection refused".into(),
        })
    }
}

/// Version field of the IP header (RFC 791, RFC 8200).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    V4,
    V6,
}

impl IpVersion {
    /// The version of an address in text form.
    #[must_use]
    pub fn of(address: &str) -> Self {
        if address.contains(':') { Self::V6 } else { Self::V4 }
    }

    /// 4 or 6.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    /// Bytes of the header without options or extension headers: 20 or 40.
    #[must_use]
    pub fn header_size(self) -> u32 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// The first address of a name: the preferred one (RFC 6724).
///
/// # Errors
/// When the name has no address of the family, or its lookup failed.
pub fn first_address(name: &str, family: Family) -> Result<String, Error> {
    let addresses = resolver::lookup(name, family)?;
    addresses.into_iter().next().ok_or_else(|| format!("'{name}' has no address.").into())
}

/// Publishes the result as it is known now. Each call replaces the previous result.
pub fn report_progress(result: &impl Serialize) {
    if let Ok(json) = serde_json::to_string(result) {
        report::progress(&json);
    }
}

/// Exports a [`Probe`] as the component's test.
#[macro_export]
macro_rules! export {
    ($probe:ty) => {
        const _: () = {
            struct Exported;

            impl $crate::bindings::exports::scouter::probe::test::Guest for Exported {
                fn describe() -> $crate::bindings::exports::scouter::probe::test::Description {
                    $crate::describe::<$probe>()
                }

                fn run(options: ::std::string::String) -> $crate::bindings::exports::scouter::probe::test::Outcome {
                    $crate::run::<$probe>(&options)
                }
            }

    $crate::bindings::export!(Exported with_types_in $crate::bindings);
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_errors_have_a_text_for_the_caller() {
        assert_eq!(Error::from(NetError::Timeout).to_string(), "no answer within the time given");
        assert_eq!(Error::from(NetError::Refused).to_string(), "connection refused");
        assert_eq!(Error::from(NetError::Denied("why".into())).to_string(), "why");
    }

    #[test]
    fn an_address_tells_its_ip_version() {
        for (address, version, number, header) in
            [("192.0.2.1", IpVersion::V4, 4, 20), ("2001:db8::1", IpVersion::V6, 6, 40)]
        {
            let of = IpVersion::of(address);
            assert_eq!((of, of.number(), of.header_size()), (version, number, header));
        }
    }
}
