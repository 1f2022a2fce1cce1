//! One DNS query to one server, timed.
//!
//! The messages are `NLnet` Labs' `domain`: hickory-proto's `RecordType` does not parse many mnemonics (LOC, URI, RP, …),
//! its records do not keep RDLENGTH, and its `Display` of TXT does not quote; the contract wants all three. The
//! transports are ours because their timing is the measurement: hickory's retry inside and stamp in user space.

mod message;
mod opt;
mod rdata;
mod transport;

use std::net::IpAddr;
use std::time::Duration;

use crate::metered::Received;
use crate::os_error::description;
use crate::policy::Permitted;
use crate::tls::Tls;

pub use message::{Answer, Flags, Query, QueryBits, Record, mnemonic, parse};
pub use opt::{Edns, Opt};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
    Https,
    Quic,
}

impl Transport {
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 53,
            Self::Tls | Self::Quic => 853,
            Self::Https => 443,
        }
    }
}

/// The question of a query, in presentation form.
#[derive(Debug, Clone)]
pub struct Question {
    pub name: String,
    pub rtype: String,
    pub class: String,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub question: Question,
    pub port: u16,
    pub transport: Transport,
    pub server_name: Option<String>,
    pub bits: QueryBits,
    /// None: no OPT record.
    pub edns: Option<Edns>,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("timeout")]
    Timeout,
    #[error("refused")]
    Refused,
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    BadName(String),
    #[error("{0}")]
    UnknownType(String),
    #[error("{0}")]
    UnknownClass(String),
    #[error("{0} is a zone transfer")]
    ZoneTransfer(String),
    #[error("{0}")]
    Malformed(String),
    #[error("{0}")]
    Insecure(String),
}

impl AskError {
    /// A failed socket call, classified by its cause.
    fn from_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut => Self::Timeout,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable(description(error)),
            ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe => {
                Self::Malformed("the server closed the connection without an answer".into())
            }
            _ => Self::Unavailable(description(error)),
        }
    }
}

/// Sends the query and waits for the response. Dropping the future closes its sockets. What came, were it no answer, is
/// counted in `received`.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(tls: &Tls, server: Permitted, request: &Request, received: &Received) -> Result<Answer, AskError> {
    if matches!(request.transport, Transport::Udp | Transport::Tcp) {
        return ask_unencrypted(server, request, received).await;
    }
    let query = message::Query::new(request)?;
    let timed = tokio::time::timeout(request.timeout, async {
        let port = request.port;
        let name = request.server_name.clone().unwrap_or_else(|| server.address().to_string());
        let (reply, elapsed) = match request.transport {
            Transport::Tls => transport::tls(tls, server, port, &name, &query, received).await?,
            Transport::Https => transport::https(tls, server, port, &name, &query, received).await?,
            _ => transport::quic(tls, server, port, &name, &query, received).await?,
        };
        message::parse(&query, &reply, request.transport, elapsed)
    });
    timed.await.unwrap_or(Err(AskError::Timeout))
}

/// Over UDP, and over TCP when the response is truncated; or over TCP from the start.
///
/// # Errors
/// See [`AskError`].
pub async fn ask_unencrypted(server: Permitted, request: &Request, received: &Received) -> Result<Answer, AskError> {
    let query = message::Query::new(request)?;
    let timed = tokio::time::timeout(request.timeout, async {
        let port = request.port;
        if request.transport == Transport::Udp {
            let (reply, elapsed) = transport::udp(server, port, &query, received).await?;
            let answer = message::parse(&query, &reply, Transport::Udp, elapsed)?;
            if !answer.flags.truncated {
                return Ok(answer);
            }
        }
        // RFC 7766, section 5. The time is that of the answer that is shown.
        let (reply, elapsed) = transport::tcp(server, port, &query, received).await?;
        message::parse(&query, &reply, Transport::Tcp, elapsed)
    });
    timed.await.unwrap_or(Err(AskError::Timeout))
}

/// An address in the form that the authority of a URL needs.
fn bracketed(name: &str) -> String {
    if matches!(name.parse(), Ok(IpAddr::V6(_))) { format!("[{name}]") } else { name.to_owned() }
}
