//! Scouter: remote network troubleshooting. Tests are sandboxed WebAssembly components; this host serves the API and
//! lends them the privileged work. The modules stand in the order of a request.

/// Every setting: flag, variable, default, doc line.
pub mod config;
/// The command line.
pub mod cli;
/// HTTP: routes, authentication, errors.
pub mod api;
/// What the caller wrote.
pub mod payload;
/// Options against a plugin's schema.
pub mod options;
/// What will be done.
pub mod plan;
/// Receipts and the results in them.
pub mod receipts;
/// A permit for each test, its deadline, its outcome.
pub mod runner;
/// Test types: load, audit, compile, run within limits.
pub mod plugins;
/// What is lent to plugins, one file per import.
pub mod imports;
/// Which addresses may be reached.
pub mod policy;
/// The engines behind the imports; the only place that opens sockets towards targets.
pub mod net;
