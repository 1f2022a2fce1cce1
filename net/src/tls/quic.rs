//! QUIC connections (RFC 9000): the handshake with one address, and the verification of the server's certificate after it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{PresentedCertificates, Refused, Tls, TlsDetails, admitted};
use crate::policy::Permitted;

/// Concurrent streams of a server: HTTP/3 needs three (RFC 9114, section 6.2).
const SERVER_STREAMS: u32 = 8;
/// As over HTTP/2.
const STREAM_WINDOW: u32 = 1 << 20;

/// Why a QUIC connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    #[error("{0}")]
    Certificate(String),
    #[error("{0}")]
    Handshake(String),
    #[error("{0}")]
    Connect(String),
    /// This host's own trouble.
    #[error("{0}")]
    Host(std::io::Error),
}

/// A finished handshake. Whether the certificate is the server's is not known yet.
pub struct Handshake {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    presented: PresentedCertificates,
}

/// A handshake that failed, and the certificates that the server presented in it.
pub struct FailedHandshake {
    error: QuicError,
    presented: Option<PresentedCertificates>,
}

impl fmt::Display for FailedHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl From<QuicError> for FailedHandshake {
    fn from(error: QuicError) -> Self {
        Self { error, presented: None }
    }
}

/// A connection to use, on a socket of its own.
pub struct QuicConnection {
    pub endpoint: quinn::Endpoint,
    pub connection: quinn::Connection,
    pub details: TlsDetails,
}

/// How much of a server's data waits to be read, over all streams: streams that the server opens are never read, or
/// last.
fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(0_u32.into()).max_concurrent_uni_streams(SERVER_STREAMS.into());
    transport.stream_receive_window(STREAM_WINDOW.into()).receive_window((2 * STREAM_WINDOW).into());
    transport
}

/// The caller bounds the time.
///
/// # Errors
/// See [`QuicError`].
pub async fn handshake(
    tls: &Tls,
    target: Permitted,
    port: u16,
    server_name: &str,
    alpn: &str,
) -> Result<Handshake, FailedHandshake> {
    let failed = |error: &dyn fmt::Display| FailedHandshake::from(QuicError::Handshake(error.to_string()));
    let (config, presented) = tls.client(&[alpn]).map_err(|e| failed(&e))?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).map_err(|e| failed(&e))?;
    let local: SocketAddr =
        if target.address().is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let mut endpoint = quinn::Endpoint::client(local).map_err(QuicError::Host)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    endpoint.set_default_client_config(config);
    let connecting = endpoint.connect(target.socket_address(port), server_name).map_err(|e| failed(&e))?;
    match connecting.await {
        Ok(connection) => Ok(Handshake { endpoint, connection, presented }),
        Err(error) => {
            let error = match error {
                quinn::ConnectionError::TransportError(error) => QuicError::Handshake(error.to_string()),
                other => QuicError::Connect(other.to_string()),
            };
            Err(FailedHandshake { error, presented: Some(presented) })
        }
    }
}

/// Verifies the certificate, and gives the connection unless it is refused. What is known about TLS is there in any case. With
/// `verify` false a certificate that does not verify is used all the same.
pub async fn verified(
    handshake: Result<Handshake, FailedHandshake>,
    verify: bool,
) -> (Option<TlsDetails>, Result<QuicConnection, QuicError>) {
    let presented = match &handshake {
        Ok(handshake) => Some(handshake.presented.clone()),
        Err(failed) => failed.presented.clone(),
    };
    let mut details = match presented {
        Some(presented) => presented.verify().await,
        None => None,
    };
    if let (Ok(handshake), Some(details)) = (&handshake, &mut details) {
        let negotiated = handshake.connection.handshake_data();
        let negotiated = negotiated.and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
        details.alpn = negotiated.and_then(|data| data.protocol.map(|p| String::from_utf8_lossy(&p).into_owned()));
        // QUIC is TLS 1.3 by definition (RFC 9001); quinn does not say which cipher it uses.
        details.version = Some("TLSv1.3".into());
    }
    let connected = match admitted(handshake, details.clone(), verify) {
        Ok((Handshake { endpoint, connection, .. }, details)) => Ok(QuicConnection { endpoint, connection, details }),
        Err(Refused::Certificate(reason)) => Err(QuicError::Certificate(reason)),
        Err(Refused::Handshake(failed)) => Err(failed.error),
    };
    (details, connected)
}
