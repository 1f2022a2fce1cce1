//! Fetches the database: at the start, then weekly. The server starts without it.

use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::{StatusCode, Url};
use tempfile::NamedTempFile;

use super::{Asn, Database, FILE_BYTES};
use crate::tls::Tls;

const WEEKLY: Duration = Duration::from_hours(7 * 24);
const CONNECT: Duration = Duration::from_secs(20);
const WHOLE: Duration = Duration::from_mins(10);
/// Compressed. Today's has 6 MB.
const DOWNLOAD_BYTES: u64 = 128 << 20;

/// Where the database comes from. Its text may hold a licence key, and is never shown.
#[derive(Clone)]
pub struct Source(Url);

impl Source {
    /// A mirror when one is given (`{license_key}` in it is replaced), else `MaxMind` when there is a key.
    ///
    /// # Errors
    /// When the mirror is not an HTTP URL, or asks for a key that is not there.
    pub fn new(mirror: Option<&str>, key: Option<&str>) -> anyhow::Result<Option<Self>> {
        let url = match (mirror, key) {
            (Some(mirror), key) => {
                ensure!(
                    key.is_some() || !mirror.contains("{license_key}"),
                    "SCOUTER_MMDB_URL has a place for a licence key: set MMDB_LICENSE_KEY"
                );
                let url = Url::parse(&mirror.replace("{license_key}", key.unwrap_or_default()));
                url.context("SCOUTER_MMDB_URL is not a URL: https://… or http://… is expected")?
            }
            (None, Some(key)) => {
                let pairs = [("edition_id", "GeoLite2-ASN"), ("license_key", key), ("suffix", "tar.gz")];
                Url::parse_with_params("https://download.maxmind.com/app/geoip_download", pairs)?
            }
            (None, None) => return Ok(None),
        };
        ensure!(
            matches!(url.scheme(), "http" | "https"),
            "SCOUTER_MMDB_URL '{}:…' is not allowed: https:// or http:// is expected",
            url.scheme()
        );
        Ok(Some(Self(url)))
    }

    /// The host of its URL.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl Asn {
    /// Fetches immediately and weekly, and again soon after a failure. Must be called on a runtime.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn fetch(self: &Arc<Self>, source: Source, tls: &Tls) -> anyhow::Result<()> {
        let config = tls.verifying_client(&["h2", "http/1.1"])?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .user_agent(concat!("scouter/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            .build()?;
        let asn = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                asn.fetch_with_retries(&client, &source).await;
                tokio::time::sleep(WEEKLY).await;
            }
        });
        Ok(())
    }

    async fn fetch_with_retries(&self, client: &reqwest::Client, source: &Source) {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_secs(2))
            .with_max_delay(Duration::from_hours(1))
            .with_jitter()
            .without_max_times();
        for delay in backoff.build() {
            match self.fetch_once(client, source).await {
                Ok(()) => return,
                Err(error) => {
                    let again = delay.as_secs();
                    tracing::warn!(
                        host = source.host(),
                        error = format!("{error:#}"),
                        again_in_s = again,
                        "ASN database not fetched"
                    );
                    self.set_problem(&format!("it could not be fetched from {}: {error:#}", source.host()));
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    async fn fetch_once(&self, client: &reqwest::Client, source: &Source) -> anyhow::Result<()> {
        let mut request = client.get(source.0.clone());
        if let Some(date) = self.file.as_deref().filter(|_| self.status().0.is_some()).and_then(changed) {
            request = request.header(reqwest::header::IF_MODIFIED_SINCE, date);
        }
        let mut response = request.send().await.map_err(reqwest::Error::without_url)?;
        if response.status() == StatusCode::NOT_MODIFIED {
            tracing::info!(host = source.host(), "ASN database is current");
            self.is_current();
            return Ok(());
        }
        ensure!(response.status() == StatusCode::OK, "the server answered {}", response.status());
        let mut bytes = vec![];
        while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            bytes.extend_from_slice(&chunk);
            ensure!(bytes.len() as u64 <= DOWNLOAD_BYTES, "it is larger than {} MiB", DOWNLOAD_BYTES >> 20);
        }
        let file = self.file.clone();
        if let Some(database) = tokio::task::spawn_blocking(move || store(bytes, file.as_deref())).await?? {
            self.replace(database);
        }
        tracing::info!(host = source.host(), "ASN database fetched");
        Ok(())
    }
}

/// Unpacks, checks and writes the database: under a temporary name first, so that no reader sees half of it. The task that
/// follows the file loads it. The database is returned when it could not be written.
fn store(download: Vec<u8>, file: Option<&Path>) -> anyhow::Result<Option<Database>> {
    let bytes = unpack(download)?;
    let database = Database::check(bytes.clone())?;
    let Some(file) = file else { return Ok(Some(database)) };
    match write_whole(file, &bytes) {
        Ok(()) => Ok(None),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the ASN database is held in memory only");
            Ok(Some(database))
        }
    }
}

fn write_whole(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut temporary = NamedTempFile::new_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(file)?;
    Ok(())
}

/// A database comes as it is, compressed, or in a compressed archive.
fn unpack(download: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let plain = if download.starts_with(&[0x1f, 0x8b]) {
        read_up_to(flate2::read::MultiGzDecoder::new(Cursor::new(download))).context("it cannot be decompressed")?
    } else {
        download
    };
    // POSIX.1-1988: a tar archive's first header says so at this place.
    if plain.get(257..262) != Some(b"ustar") {
        return Ok(plain);
    }
    let mut archive = tar::Archive::new(Cursor::new(plain));
    for entry in archive.entries().context("its archive is damaged")? {
        let entry = entry.context("its archive is damaged")?;
        if entry.path()?.extension().is_some_and(|extension| extension == "mmdb") {
            return read_up_to(entry).context("its archive is damaged");
        }
    }
    bail!("its archive holds no .mmdb file")
}

fn read_up_to(source: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![];
    source.take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= FILE_BYTES, "it is larger than {} MiB", FILE_BYTES >> 20);
    Ok(bytes)
}

/// When the file was written, as HTTP says it (RFC 9110, section 5.6.7).
fn changed(file: &Path) -> Option<String> {
    let modified = std::fs::metadata(file).ok()?.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let at = jiff::Timestamp::from_second(i64::try_from(modified.as_secs()).ok()?).ok()?;
    Some(at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn it_is_fetched_again_after_a_week() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mirror = format!("http://{}/asn.mmdb", listener.local_addr().expect("an address"));
        let source = Source::new(Some(&mirror), None).expect("a source").expect("one");
        let tls = Tls::open().expect("TLS");
        Arc::new(Asn::new(None)).fetch(source, &tls).expect("a client");
        let asked = async || {
            let (mut stream, _) = listener.accept().await.expect("a request");
            let _ = stream.read(&mut [0; 4096]).await;
            let database = include_bytes!("../../../tests/support/asn.mmdb");
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", database.len());
            stream.write_all(&[head.as_bytes(), database].concat()).await.expect("answered");
            stream.shutdown().await.expect("closed");
            // Until the client has read all of it and closed.
            let _ = stream.read(&mut [0]).await;
        };
        asked().await;
        assert!(tokio::time::timeout(Duration::from_millis(300), listener.accept()).await.is_err(), "not immediately");
        tokio::time::pause();
        tokio::time::advance(WEEKLY.saturating_sub(Duration::from_mins(1))).await;
        tokio::time::resume();
        assert!(tokio::time::timeout(Duration::from_millis(300), listener.accept()).await.is_err(), "not before");
        tokio::time::pause();
        tokio::time::advance(Duration::from_mins(1)).await;
        tokio::time::resume();
        tokio::time::timeout(Duration::from_secs(10), asked()).await.expect("a second request");
    }
}
