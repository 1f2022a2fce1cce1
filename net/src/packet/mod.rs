//! Packets: wire formats, which are pure and fuzzed, and the sockets that they are sent and received through.
//!
//! Arrows: `series`, `ping` and `trace` use this module; it uses none of them.

pub(crate) mod datagram;
pub(crate) mod header;
pub mod icmp;
pub(crate) mod opener;
pub(crate) mod options;
pub mod quoted;
pub(crate) mod receiver;
pub(crate) mod route;
pub(crate) mod sender;
pub(crate) mod socket;
pub(crate) mod token;

/// Which sockets send and receive packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Raw sockets (`CAP_NET_RAW`).
    Raw,
    /// Datagram sockets and their error queues (`IP_RECVERR`).
    Datagram,
}

/// Why a series could not start: a failure of this host, never of the target.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    /// No socket, port or identifier is available.
    #[error("{0}")]
    Unavailable(String),
    /// This host has no route to the target.
    #[error("{0}")]
    Unreachable(String),
}

impl StartError {
    pub(crate) fn no_route() -> Self {
        Self::Unreachable("This host has no route to the target.".into())
    }

    /// `kind` is the socket's kind, such as `UDP`.
    pub(crate) fn no_socket(kind: &str, error: &std::io::Error) -> Self {
        Self::Unavailable(format!("no {kind} socket: {error}"))
    }
}
