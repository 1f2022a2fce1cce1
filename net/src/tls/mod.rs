//! TLS and QUIC connections to targets (rustls): certificates, their verification, and what was negotiated.

pub mod quic;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

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
    /// How long the verification took: time of this host, between the handshake and the first byte after it.
    pub verification: Duration,
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

    /// A configuration for one connection to a target, and the certificates of its handshake. The handshake takes any
    /// certificate: the caller verifies it before sending anything.
    ///
    /// # Errors
    /// When the cryptography does not fit, which is a mistake in this program.
    pub fn client(&self, alpn: &[&str]) -> Result<(ClientConfig, PresentedCertificates), rustls::Error> {
        let presented = PresentedCertificates { verifier: Arc::clone(&self.verifier), certificates: Arc::default() };
        let recorder =
            Recorder { inner: Arc::clone(&self.verifier), certificates: Arc::clone(&presented.certificates) };
        let mut config = self.with(Arc::new(recorder))?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        // Every test makes its own, whole handshake.
        config.resumption = rustls::client::Resumption::disabled();
        Ok((config, presented))
    }

    /// A configuration for a server that the operator has chosen: its certificate is verified in the handshake.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub fn verifying_client(&self, alpn: &[&str]) -> Result<ClientConfig, rustls::Error> {
        let mut config = self.with(Arc::clone(&self.verifier) as _)?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }

    fn with(&self, verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        Ok(config.with_no_client_auth())
    }
}

/// What is needed to verify a server's certificate.
struct Certificates {
    chain: Vec<CertificateDer<'static>>,
    server_name: ServerName<'static>,
    ocsp_response: Vec<u8>,
    now: UnixTime,
}

/// The certificates of a server, from a handshake that may have failed. Clones are of the same handshake.
///
/// rustls asks for a verdict in the middle of the handshake, on the thread that does it, and the server chooses how long
/// that takes: how many certificates there are, their keys and their names. So the handshake only records them.
#[derive(Clone)]
pub struct PresentedCertificates {
    verifier: Arc<WebPkiServerVerifier>,
    certificates: Arc<Mutex<Option<Certificates>>>,
}

/// Why a connection is not to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused<E> {
    Certificate(String),
    Handshake(E),
}

impl PresentedCertificates {
    /// Verifies the certificate on a thread for such work. None: the server has shown none.
    pub async fn verify(self) -> Option<TlsDetails> {
        let certificates = self.certificates.lock().take()?;
        let start = Instant::now();
        let done = tokio::task::spawn_blocking(move || verify_chain(&self.verifier, &certificates)).await;
        let details = done.unwrap_or_else(|ended| match ended.try_into_panic() {
            // A mistake of this program, and none of the server's.
            Ok(panic) => std::panic::resume_unwind(panic),
            // This program ends.
            Err(_) => TlsDetails { verify_error: Some("not verified".into()), ..TlsDetails::default() },
        });
        Some(TlsDetails { verification: start.elapsed(), ..details })
    }
}

/// The connection that a handshake gave, unless its certificate is refused. With `verify` false a certificate that does
/// not verify is used all the same; the details say so.
///
/// # Errors
/// See [`Refused`].
pub fn admitted<T, E>(
    connected: Result<T, E>,
    details: Option<TlsDetails>,
    verify: bool,
) -> Result<(T, TlsDetails), Refused<E>> {
    match (connected, details) {
        (_, Some(TlsDetails { verified: false, verify_error, .. })) if verify => {
            Err(Refused::Certificate(verify_error.unwrap_or_default()))
        }
        (Err(error), _) => Err(Refused::Handshake(error)),
        (Ok(_), None) if verify => Err(Refused::Certificate("the server has shown no certificate".into())),
        (Ok(connection), details) => Ok((connection, details.unwrap_or_default())),
    }
}

fn verify_chain(verifier: &WebPkiServerVerifier, shown: &Certificates) -> TlsDetails {
    let verification = shown.chain.split_first().map(|(end_entity, intermediates)| {
        verifier
            .verify_server_cert(end_entity, intermediates, &shown.server_name, &shown.ocsp_response, shown.now)
            .map_err(|error| verify_error_text(&error, end_entity))
    });
    let verify_error = match verification {
        Some(Ok(_)) => None,
        Some(Err(error)) => Some(error),
        None => Some("the server has no certificate".into()),
    };
    TlsDetails {
        verified: verify_error.is_none(),
        verify_error,
        chain: shown.chain.iter().take(CHAIN).map(certificate).collect(),
        ..TlsDetails::default()
    }
}

/// Takes any certificate, and keeps it.
struct Recorder {
    inner: Arc<WebPkiServerVerifier>,
    certificates: Arc<Mutex<Option<Certificates>>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        *self.certificates.lock() = Some(Certificates {
            chain: chain.map(|der| der.clone().into_owned()).collect(),
            server_name: server_name.to_owned(),
            ocsp_response: ocsp_response.to_vec(),
            now,
        });
        Ok(ServerCertVerified::assertion())
    }

    // That the server has the key of its certificate: one signature.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_used_only_with_a_certificate_that_was_verified() {
        let details = |verified: bool| {
            let verify_error = (!verified).then(|| "expired".to_owned());
            Some(TlsDetails { verified, verify_error, ..TlsDetails::default() })
        };
        let refused = |connected: Result<(), &'static str>, details, verify| admitted(connected, details, verify).err();
        assert_eq!(refused(Ok(()), details(true), true), None);
        assert_eq!(refused(Ok(()), details(false), true), Some(Refused::Certificate("expired".into())));
        assert_eq!(refused(Err("reset"), details(false), true), Some(Refused::Certificate("expired".into())));
        assert!(matches!(refused(Ok(()), None, true), Some(Refused::Certificate(_))));
        assert_eq!(refused(Err("reset"), details(true), true), Some(Refused::Handshake("reset")));
        assert_eq!(refused(Err("reset"), None, true), Some(Refused::Handshake("reset")));
        assert_eq!(refused(Ok(()), details(false), false), None);
        assert_eq!(refused(Ok(()), None, false), None);
        assert_eq!(refused(Err("reset"), details(false), false), Some(Refused::Handshake("reset")));
    }
}
