//! Real browsers, driven by their own protocols. They reach the network only through a SOCKS proxy of
//! this crate.
//!
//! Each page that is being loaded has a browser to itself, so that one that hangs or dies costs one test; browsers stay
//! warm between pages, and each page gets a fresh context (no cookies, cache, storage or connections of another).
//! The number of ports of the proxy limits the number of browsers.
//!
//! In the order of a page: `pool` has a browser for it, `session` is one browser (`chrome`, `firefox`) with its
//! `supervisor`, its control channel (`framing`, `message`, `connection`) and its `socks` proxy; `load` loads the
//! page in a `context` of its own; `events` and `collector` turn the browser's events into exchanges, and `records`
//! adds what the proxy knows. `folder`, `processes` and `owner` are about what a browser leaves on this host,
//! `netlink` about what it learns of it.

mod chrome;
mod collector;
mod connection;
mod context;
mod errors;
mod events;
mod firefox;
mod folder;
pub mod framing;
mod load;
pub mod message;
mod netlink;
mod owner;
mod pool;
mod processes;
mod records;
mod session;
pub mod socks;
mod supervisor;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::address::attempts::Attempt;
pub use pool::{Browsers, Config, Status};
pub use session::unshare_main;
pub use supervisor::supervisor_main;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Chrome,
    Firefox,
}

impl Kind {
    /// As in the option of that name.
    fn driver(self) -> &'static str {
        match self {
            Self::Chrome => "chrome",
            Self::Firefox => "firefox",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Chrome => "Chrome",
            Self::Firefox => "Firefox",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    pub kind: Kind,
    pub url: url::Url,
    pub headers: Vec<Header>,
    pub verify_tls: bool,
    pub timeout: Duration,
    pub screenshot_bytes: usize,
}

/// Name and value.
pub type Header = (String, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    Denied,
    /// This host's own trouble.
    Unavailable,
    Name,
    Connect,
    Timeout,
    Handshake,
    Certificate,
    EmptyReply,
    Receive,
    Partial,
    InvalidResponse,
    Blocked,
    TooLarge,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    Document,
    Redirect,
    #[default]
    Resource,
}

/// Milliseconds; None: did not happen, or not known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    pub dns: Option<f64>,
    pub connect: Option<f64>,
    pub tls: Option<f64>,
    pub send: Option<f64>,
    pub wait: Option<f64>,
    pub download: Option<f64>,
    pub total: Option<f64>,
}

#[derive(Debug, Clone, Default)]
pub struct Exchange {
    pub role: Role,
    pub url: String,
    /// Of the whole URL.
    pub url_bytes: usize,
    pub method: String,
    pub destination: String,
    pub status: Option<u16>,
    pub reason: String,
    pub version: Option<String>,
    pub headers: Vec<Header>,
    /// Of the names and values of all headers.
    pub header_text_bytes: usize,
    pub failure: Option<Failure>,
    /// Still under way when the page was done.
    pub open: bool,
    pub remote: Option<(IpAddr, u16)>,
    /// The attempts to connect, of the first request of a connection; times count from when the browser asked for it.
    pub attempts: Vec<Attempt>,
    pub started_ms: f64,
    pub timings: Timings,
    pub header_bytes: Option<u64>,
    pub body_bytes: Option<u64>,
    pub mime_type: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, serde::Deserialize)]
pub struct Vitals {
    pub ttfb: Option<f64>,
    pub fcp: Option<f64>,
    pub lcp: Option<f64>,
    pub dcl: Option<f64>,
    pub load: Option<f64>,
    pub cls: Option<f64>,
}

#[derive(Debug, Clone)]
pub struct Message {
    pub level: String,
    pub text: String,
    pub url: Option<String>,
    pub line: Option<u32>,
}

#[derive(Debug)]
pub struct Page {
    pub browser: String,
    pub started_at_ms: f64,
    pub exchanges: Vec<Exchange>,
    pub left_out: usize,
    pub loaded: bool,
    pub stopped: Option<Failure>,
    pub navigation_error: Option<String>,
    pub vitals: Vitals,
    pub console: Vec<Message>,
    pub screenshot: Option<Vec<u8>>,
    /// Bytes that came over all of its connections.
    pub received: u64,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum BrowserError {
    #[error("{0}")]
    Unavailable(String),
    #[error("{reason}")]
    Crashed {
        reason: String,
        /// As for a [`Page`].
        received: u64,
    },
}
