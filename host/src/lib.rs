//! Scouter: remote network troubleshooting. Tests are sandboxed WebAssembly components; this host serves the API and
//! lends them the privileged work. The modules stand in the order of a request.

/// HTTP: routes, authentication, errors.
pub mod api;
/// The command line.
pub mod cli;
/// Every setting: flag, variable, default, doc line.
pub mod config;
/// What is lent to plugins, one file per import.
pub mod imports;
/// What is counted, for Prometheus.
pub mod metrics;
/// The engines behind the imports; the only place that opens sockets towards targets.
#[expect(clippy::disallowed_types, reason = "sockets are opened here and nowhere else")]
pub mod net;
/// Options against a plugin's schema.
pub mod options;
/// What the caller wrote.
pub mod payload;
/// What will be done.
pub mod plan;
/// Test types: load, audit, compile, run within limits.
pub mod plugins;
/// Which addresses may be reached.
pub mod policy;
/// Capabilities: raised, used, dropped.
pub mod privilege;
/// Receipts and the results in them.
pub mod receipts;
/// A permit for each test, its deadline, its outcome.
pub mod runner;
