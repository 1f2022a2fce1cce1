//! TLS and QUIC connections to targets (rustls): certificates, their verification, and what was negotiated.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::policy::Permitted;

/// Certificates of a chain that are shown.
const CHAIN: usize = 16;

/// Trust anchors and cryptography, shared by all connections.
pub struct Tls {
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    /// How many trust anchors, and where from.
    pub anchors: String,
}

/// One certificate, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    pub alternative_names: Vec<String>,
    pub not_before: String,
    pub not_after: String,
    pub serial: String,
    pub sha256: String,
}

/// What a handshake negotiated, and who the server is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsDetails {
    pub version: Option<String>,
    pub cipher: Option<String>,
    pub alpn: Option<String>,
    pub verified: bool,
    pub verify_error: Option<String>,
    pub chain: Vec<Certificate>,
}

impl Tls {
    /// The system's trust anchors (`SSL_CERT_FILE`, `SSL_CERT_DIR` or the distribution's); Mozilla's, built in, when
    /// the system has none.
    ///
    /// # Errors
    /// When neither can be used.
    pub fn open() -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let mut anchors = format!("{added} of this system");
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            anchors = format!("{} built in (the system has none)", roots.len());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .context("trust anchors")?;
        Ok(Self { provider, verifier, anchors })
    }

    /// A configuration for one connection, and the verifier of its handshake. With `verify` false a certificate that
    /// does not verify is used all the same; the verifier says so.
    ///
    /// # Errors
    /// When the cryptography does not fit, which is a mistake in this program.
    pub fn client(
        &self,
        alpn: &[&str],
        verify: bool,
    ) -> Result<(ClientConfig, Arc<CertificateVerifier>), rustls::Error> {
        let verifier =
            Arc::new(CertificateVerifier { inner: Arc::clone(&self.verifier), verify, seen: Mutex::default() });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        // Every test makes its own, whole handshake.
        config.resumption = rustls::client::Resumption::disabled();
        Ok((config, verifier))
    }
}

/// Records the server's certificates and whether they verify, whether or not the connection is made.
pub struct CertificateVerifier {
    inner: Arc<WebPkiServerVerifier>,
    verify: bool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    chain: Vec<CertificateDer<'static>>,
    verification: Option<Result<(), String>>,
}

impl fmt::Debug for CertificateVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateVerifier")
    }
}

impl CertificateVerifier {
    /// None before the server's certificates came.
    #[must_use]
    pub fn details(&self) -> Option<TlsDetails> {
        let seen = self.seen.lock();
        let verification = seen.verification.as_ref()?;
        Some(TlsDetails {
            verified: verification.is_ok(),
            verify_error: verification.as_ref().err().cloned(),
            chain: seen.chain.iter().map(certificate).collect(),
            ..TlsDetails::default()
        })
    }

    /// Why the certificate does not verify, when that is what ended the handshake.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        if !self.verify {
            return None;
        }
        self.seen.lock().verification.as_ref().and_then(|verification| verification.as_ref().err().cloned())
    }
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verification = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let mut seen = self.seen.lock();
        let chain = std::iter::once(end_entity).chain(intermediates);
        seen.chain = chain.take(CHAIN).map(|der| der.clone().into_owned()).collect();
        seen.verification =
            Some(verification.as_ref().map(|_| ()).map_err(|error| verify_error_text(error, end_entity)));
        if self.verify { verification } else { Ok(ServerCertVerified::assertion()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn verify_error_text(error: &rustls::Error, certificate: &CertificateDer<'_>) -> String {
    let rustls::Error::InvalidCertificate(error) = error else { return error.to_string() };
    let self_signed = || X509Certificate::from_der(certificate).is_ok_and(|(_, c)| c.subject() == c.issuer());
    match error {
        CertificateError::UnknownIssuer | CertificateError::Other(_) if self_signed() => {
            "certificate is self-signed".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not yet valid".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "certificate is for another name".into()
        }
        CertificateError::UnknownIssuer => "certificate is signed by an unknown issuer".into(),
        CertificateError::Revoked => "certificate is revoked".into(),
        CertificateError::BadEncoding => "certificate cannot be read".into(),
        CertificateError::BadSignature => "certificate's signature is wrong".into(),
        other => format!("certificate does not verify: {other}"),
    }
}

/// What a finished handshake negotiated.
#[must_use]
pub fn negotiated(connection: &rustls::ClientConnection, details: TlsDetails) -> TlsDetails {
    TlsDetails {
        version: connection.protocol_version().and_then(|v| v.as_str()).map(|v| v.replace("TLSv1_", "TLSv1.")),
        cipher: connection
            .negotiated_cipher_suite()
            .and_then(|s| s.suite().as_str())
            .map(|s| s.replacen("TLS13_", "TLS_", 1)),
        alpn: connection.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned()),
        ..details
    }
}

/// A certificate as text. What cannot be parsed is `unreadable`, and has its digest all the same.
#[must_use]
pub fn certificate(der: &CertificateDer<'_>) -> Certificate {
    let sha256 = hex::encode(Sha256::digest(der));
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        let unreadable = || "unreadable".to_owned();
        return Certificate {
            subject: unreadable(),
            issuer: unreadable(),
            alternative_names: vec![],
            not_before: unreadable(),
            not_after: unreadable(),
            serial: unreadable(),
            sha256,
        };
    };
    let names = certificate.subject_alternative_name().ok().flatten().map(|san| &san.value.general_names);
    let time =
        |seconds: i64| jiff::Timestamp::from_second(seconds).map_or_else(|_| "unreadable".into(), |t| t.to_string());
    Certificate {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        alternative_names: names.into_iter().flatten().take(256).filter_map(alternative_name).collect(),
        not_before: time(certificate.validity().not_before.timestamp()),
        not_after: time(certificate.validity().not_after.timestamp()),
        serial: hex::encode(certificate.raw_serial()),
        sha256,
    }
}

fn alternative_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(format!("DNS:{name}")),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|b| IpAddr::V4(Ipv4Addr::from(b)));
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(|b| IpAddr::V6(Ipv6Addr::from(b))));
            address.ok().map(|address| format!("IP:{address}"))
        }
        _ => None,
    }
}

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

/// A QUIC connection (RFC 9000) to a vetted address, on a socket of its own.
///
/// # Errors
/// See [`QuicError`]. The caller bounds the time.
pub async fn quic(
    tls: &Tls,
    target: Permitted,
    port: u16,
    server_name: &str,
    alpn: &str,
    verify: bool,
) -> Result<(quinn::Endpoint, quinn::Connection, TlsDetails), QuicError> {
    let handshake = |error: &dyn fmt::Display| QuicError::Handshake(error.to_string());
    let (config, verifier) = tls.client(&[alpn], verify).map_err(|e| handshake(&e))?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).map_err(|e| handshake(&e))?;
    let local: SocketAddr =
        if target.address().is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let mut endpoint = quinn::Endpoint::client(local).map_err(QuicError::Host)?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connecting =
        endpoint.connect(SocketAddr::new(target.address(), port), server_name).map_err(|e| handshake(&e))?;
    match connecting.await {
        Ok(connection) => {
            let alpn = connection
                .handshake_data()
                .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
                .and_then(|data| data.protocol.map(|p| String::from_utf8_lossy(&p).into_owned()));
            let details = TlsDetails {
                // QUIC is TLS 1.3 by definition (RFC 9001); quinn does not say which cipher it uses.
                version: Some("TLSv1.3".into()),
                alpn,
                ..verifier.details().unwrap_or_default()
            };
            Ok((endpoint, connection, details))
        }
        Err(error) => Err(match verifier.refusal() {
            Some(refusal) => QuicError::Certificate(refusal),
            None => match error {
                quinn::ConnectionError::TransportError(error) => handshake(&error),
                other => QuicError::Connect(other.to_string()),
            },
        }),
    }
}
