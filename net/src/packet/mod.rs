//! Packets: wire formats, which are pure and fuzzed, and the sockets that they are sent and received through.

pub(crate) mod datagram;
pub mod icmp;
pub(crate) mod options;
pub mod quoted;
pub(crate) mod receiver;
pub(crate) mod route;
pub(crate) mod sender;
pub(crate) mod socket;

/// How packets are sent and received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Raw,
    Datagram,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Unreachable(String),
}
