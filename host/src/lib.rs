//! Scouter: remote network troubleshooting. Tests are sandboxed WebAssembly components; this host serves the API and
//! gives them imports for privileged work. The modules stand in the order of a request, and use only what stands below
//! them.

// HTTP: routes, authentication, errors.
pub mod api;
// The command line.
pub mod cli;
// Every setting: flag, variable, default, doc line.
pub mod config;
// Freed memory goes back to the system.
pub mod memory;
// Counters for Prometheus.
pub mod metrics;
// The JSON of tests, receipts and events: for serde and for OpenAPI.
pub mod model;
// The payload, checked: what will be done.
pub mod plan;
// Waiting tests: their places, in number and in bytes.
pub mod queue;
// Receipts and the results in them.
pub mod receipts;
// A permit for each test, its deadline, its outcome.
pub mod runner;
// Test types: load, audit, compile, run within limits.
pub mod sandbox;
// Listening, TLS, limits of connections.
#[expect(clippy::disallowed_types, reason = "it listens; it makes no connections")]
pub mod server;
// What every run shares.
pub mod services;
// Execution slots and what they have done.
pub mod slots;
