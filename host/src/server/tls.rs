//! TLS for the API, where nothing in front of it does that: certificate and key from files, read again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Certificate and key, as they are now.
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
}

type Stamp = [Option<SystemTime>; 2];

impl Identity {
    /// # Errors
    /// When the files cannot be read, or do not belong together.
    pub fn open(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let config = RwLock::new(load(certificate, key)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), config })
    }

    /// For connections from now on.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Reads both files again. What cannot be used changes nothing.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn reload(&self) -> anyhow::Result<()> {
        let config = load(&self.certificate, &self.key)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        tracing::info!(certificate = %self.certificate.display(), "TLS certificate read again");
        Ok(())
    }

    /// Follows the files: a renewed certificate needs no signal.
    pub async fn follow(self: Arc<Self>) {
        let mut seen = self.stamp();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.stamp();
            if now == seen {
                continue;
            }
            seen = now;
            // Between the two files of a renewal they do not belong together: the next look is for the second.
            if let Err(error) = self.reload() {
                tracing::warn!(error = format!("{error:#}"), "the TLS certificate stays as it was");
            }
        }
    }

    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|file| std::fs::metadata(file).and_then(|found| found.modified()).ok())
    }
}

fn load(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("SCOUTER_TLS_CERT '{}': no certificates in PEM form", certificate.display()))?;
    ensure!(!chain.is_empty(), "SCOUTER_TLS_CERT '{}': no certificates in PEM form", certificate.display());
    let key_der = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("SCOUTER_TLS_KEY '{}': no private key in PEM form", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .with_context(|| {
            format!("SCOUTER_TLS_CERT '{}' and SCOUTER_TLS_KEY '{}'", certificate.display(), key.display())
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
