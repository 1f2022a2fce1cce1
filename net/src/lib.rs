//! The network engines of Scouter. Sockets towards targets are opened here and nowhere else, and only towards a
//! [`Permitted`](policy::Permitted) address. This crate knows neither WebAssembly nor the REST API.
#![expect(clippy::disallowed_types, reason = "sockets are opened in this crate and nowhere else")]

// Which addresses may be reached; asked before every packet and connection.
pub mod policy;
// Linux capabilities: raised, used, dropped.
pub mod privilege;
// This host's addresses, name servers and hosts file, as they are now.
pub mod system;

// Names to permitted, ordered addresses, and connections to them.
pub mod address;
// Autonomous systems of addresses.
pub mod asn;
// Browsers, driven over WebDriver BiDi behind a SOCKS proxy.
pub mod browser;
// One DNS question to one server.
pub mod dns;
// One HTTP exchange, timed by phase.
pub mod http;
// ICMP echo.
pub mod ping;
// Probes with a limited TTL and their answers.
pub mod trace;

mod family;
// How late the I/O threads serve a socket that is ready.
pub mod lag;
// Limits on the responses of HTTP servers.
pub mod limits;
// Streams that leave the thread to others, and whose bytes are counted.
pub mod metered;
// Domain names as they go on the wire.
pub mod name;
// Errors of the operating system.
pub mod os_error;
// Wire formats and sockets.
pub mod packet;
// A limit of packets per second.
pub mod rate;
mod scope;
// Schedules, rate limits and verdicts of a series of probes: shared by `ping` and `trace`.
pub mod series;
// TLS and QUIC clients.
pub mod tls;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
pub use family::{Family, FamilyFilter};
use policy::Policy;
use system::System;

/// All engines of one process.
pub struct Net {
    pub ping: ping::Ping,
    pub trace: trace::Tracer,
    pub asn: Arc<asn::Asn>,
    pub resolver: Arc<address::Resolver>,
    pub browsers: browser::Browsers,
    pub tls: tls::Tls,
    pub lag: lag::LagMonitor,
}

impl Net {
    /// Must be called on the runtime that the network work will happen on.
    ///
    /// # Errors
    /// When there are no usable trust anchors.
    pub fn open(
        system: Arc<System>,
        policy: &Policy,
        asn_file: Option<PathBuf>,
        browsers: browser::Config,
    ) -> anyhow::Result<Self> {
        let ping = ping::Ping::open();
        let resolver = Arc::new(address::Resolver::new(system, policy.clone()));
        Ok(Self {
            trace: trace::Tracer::open(|family| ping.receiver(family).cloned()),
            ping,
            asn: Arc::new(asn::Asn::new(asn_file)),
            browsers: browser::Browsers::new(browsers, Arc::clone(&resolver), Arc::new(policy.clone())),
            resolver,
            tls: tls::Tls::open()?,
            lag: lag::LagMonitor::open().context("a timer for the I/O threads")?,
        })
    }
}
