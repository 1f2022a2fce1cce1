//! Every setting: one flag, one environment variable, one default, one line of documentation each.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use scouter_net::asn::Source;
use scouter_net::browser;
use scouter_net::policy::Rule;
use sha2::{Digest, Sha256};
use tracing_subscriber::filter::{LevelFilter, Targets};

/// What running a test needs, with or without a server.
#[derive(Debug, Clone, Args)]
pub struct Engine {
    /// Folders with plugins (`*.wasm`), in order; the first of a name wins. Default: `plugins` beside the program
    #[arg(long, env = "SCOUTER_PLUGIN_DIR", value_name = "DIR[,DIR]", value_delimiter = ',', global = true)]
    pub plugin_dir: Vec<PathBuf>,

    /// Folder for compiled plugins; it is made when missing. Default: `scouter` in the user's cache folder
    #[arg(long, env = "SCOUTER_CACHE_DIR", value_name = "DIR", global = true)]
    pub cache_dir: Option<PathBuf>,

    /// Addresses, CIDR blocks, names and `*.names` that may be probed besides globally reachable ones; `any` opens all
    #[arg(long, env = "SCOUTER_TARGETS_ALLOW", value_name = "RULE[,RULE]", value_delimiter = ',', global = true)]
    pub targets_allow: Vec<Rule>,

    /// Addresses, CIDR blocks, names and `*.names` that may not be probed; wins over --targets-allow
    #[arg(long, env = "SCOUTER_TARGETS_DENY", value_name = "RULE[,RULE]", value_delimiter = ',', global = true)]
    pub targets_deny: Vec<Rule>,

    /// File with a database of the GeoLite2-ASN layout; read again when it changes. Default: where it is downloaded to,
    /// in the cache folder
    #[arg(long, env = "SCOUTER_MMDB_PATH", value_name = "FILE", global = true)]
    pub mmdb_path: Option<PathBuf>,

    /// Loopback ports of the SOCKS proxy that browsers reach the network through; their number bounds concurrent
    /// browsers
    #[arg(long, env = "SCOUTER_BROWSER_PORTS", value_name = "FIRST-LAST", default_value = "9001-9005",
          value_parser = ports, global = true)]
    pub browser_ports: RangeInclusive<u16>,

    /// Seconds that one browser may live
    #[arg(long, env = "SCOUTER_BROWSER_TTL", value_name = "SECONDS", default_value_t = 300,
          value_parser = count(10, 86_400), global = true)]
    pub browser_ttl: u64,

    /// Seconds that a browser is kept ready without use
    #[arg(long, env = "SCOUTER_BROWSER_IDLE", value_name = "SECONDS", default_value_t = 60,
          value_parser = count(0, 86_400), global = true)]
    pub browser_idle: u64,

    /// Seconds that one test may take once it runs
    #[arg(long, env = "SCOUTER_TEST_TIMEOUT", value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u64).range(1..=3600), global = true)]
    pub test_timeout: u64,

    /// What is logged: a level (off, error, warn, info, debug, trace), `module=level` pairs, or both, separated by commas
    #[arg(long, env = "SCOUTER_LOG", value_name = "FILTER", value_parser = log_filter, global = true)]
    pub log: Option<Targets>,

    /// How the log is written to standard error
    #[arg(long, env = "SCOUTER_LOG_FORMAT", value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// What the server needs besides.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Shared secret of the API's clients; several, separated by commas, while it is being changed
    #[arg(long, env = "SCOUTER_API_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub api_secret: Option<String>,

    /// File with the secret, or one secret a line
    #[arg(long, env = "SCOUTER_API_SECRET_FILE", value_name = "FILE")]
    pub api_secret_file: Option<PathBuf>,

    /// Addresses to listen on
    #[arg(
        long,
        env = "SCOUTER_LISTEN",
        value_name = "ADDRESS[,ADDRESS]",
        value_delimiter = ',',
        default_value = "0.0.0.0,::"
    )]
    pub listen: Vec<IpAddr>,

    /// Port to listen on
    #[arg(long, env = "API_PORT", value_name = "PORT", default_value_t = 8000)]
    pub port: u16,

    /// Threads of the API and network runtime. Default: number of cores
    #[arg(long, env = "UWSGI_WORKERS", value_name = "THREADS", value_parser = count(1, 1024))]
    pub threads: Option<u64>,

    /// Tests in one payload
    #[arg(long, env = "SCOUTER_MAX_TEST_COUNT", value_name = "TESTS", default_value_t = 10, value_parser = count(1, 100_000))]
    pub max_test_count: u64,

    /// Concurrent tests, over all requests
    #[arg(long, env = "SCOUTER_MAX_PROCESS_COUNT", value_name = "TESTS", default_value_t = 10, value_parser = count(1, 100_000))]
    pub max_process_count: u64,

    /// Tests waiting to run; payloads that would pass it are answered 429
    #[arg(long, env = "SCOUTER_MAX_QUEUE", value_name = "TESTS", default_value_t = 1000, value_parser = count(1, 1_000_000))]
    pub max_queue: u64,

    /// Bytes of options of the tests waiting to run; payloads that would pass it are answered 429
    #[arg(long, env = "SCOUTER_MAX_QUEUE_BYTES", value_name = "BYTES", default_value_t = 64 << 20, value_parser = count(1 << 20, 1 << 40))]
    pub max_queue_bytes: u64,

    /// Finished receipts kept; the oldest go first
    #[arg(long, env = "SCOUTER_MAX_RECEIPTS", value_name = "RECEIPTS", default_value_t = 10_000, value_parser = count(1, 10_000_000))]
    pub max_receipts: u64,

    /// Bytes of results in one receipt
    #[arg(long, env = "SCOUTER_MAX_RECEIPT_BYTES", value_name = "BYTES", default_value_t = 1_000_000, value_parser = count(1000, 1 << 30))]
    pub max_receipt_bytes: u64,

    /// Bytes of all finished receipts; the oldest go first
    #[arg(long, env = "SCOUTER_MAX_RESULT_BYTES", value_name = "BYTES", default_value_t = 256 << 20, value_parser = count(1 << 20, 1 << 40))]
    pub max_result_bytes: u64,

    /// Seconds that a receipt lives, from the moment it is made
    #[arg(long, env = "SCOUTER_RECEIPT_TTL", value_name = "SECONDS", default_value_t = 600, value_parser = count(1, 86_400))]
    pub receipt_ttl: u64,

    /// Bytes of a request's body
    #[arg(long, env = "SCOUTER_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 1 << 20, value_parser = count(1024, 64 << 20))]
    pub max_body_bytes: u64,

    /// Licence key of `MaxMind`: the GeoLite2-ASN database is fetched with it at the start and weekly
    #[arg(long, env = "MMDB_LICENSE_KEY", value_name = "KEY", hide_env_values = true)]
    pub mmdb_license_key: Option<String>,

    /// Fetch the database from here instead (`.mmdb`, `.mmdb.gz` or `.tar.gz`); `{license_key}` in it is replaced
    #[arg(long, env = "SCOUTER_MMDB_URL", value_name = "URL", hide_env_values = true)]
    pub mmdb_url: Option<String>,

    /// Requests of each secret in a second, and in a burst; more are answered 429. 0: any number
    #[arg(long, env = "SCOUTER_RATE_LIMIT", value_name = "REQUESTS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub rate_limit: u32,

    /// File with the certificate chain for TLS, as PEM; read again when it changes. Without it the API speaks plain HTTP
    #[arg(long, env = "SCOUTER_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// File with the private key of that certificate, as PEM
    #[arg(long, env = "SCOUTER_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Concurrent connections
    #[arg(long, env = "SCOUTER_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value_t = 4096, value_parser = count(1, 1_000_000))]
    pub max_connections: u64,
}

/// Stricter than the library, to which a misspelt level is the name of a module.
fn log_filter(text: &str) -> Result<Targets, String> {
    let mut targets = Targets::new();
    for part in text.split(',').map(str::trim) {
        let (module, level) = part.split_once('=').map_or((None, part), |(module, level)| (Some(module.trim()), level));
        let named =
            ["off", "error", "warn", "info", "debug", "trace"].contains(&level.trim().to_ascii_lowercase().as_str());
        let level = level.trim().parse::<LevelFilter>().ok().filter(|_| named);
        let is_name = |module: &str| {
            !module.is_empty() && module.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte))
        };
        targets = match (module, level) {
            (None, Some(level)) => targets.with_default(level),
            (Some(module), Some(level)) if is_name(module) => targets.with_target(module, level),
            _ => {
                return Err(format!(
                    "'{part}' is neither a level (off, error, warn, info, debug, trace) nor module=level, such as info,access=warn"
                ));
            }
        };
    }
    Ok(targets)
}

/// `9001-9005`, or one port.
fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let range = number(first).zip(number(last)).filter(|(first, last)| first <= last && last - first < 100);
    let (first, last) = range.ok_or("a range of ports is expected, such as 9001-9005, 1 to 100 of them")?;
    Ok(first..=last)
}

fn count(low: u64, high: u64) -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(low..=high)
}

/// Older names of settings: (flag, variable it has now, variable it had). The newer one wins.
pub const ALIASES: [(&str, &str, &str); 5] = [
    ("browser_ports", "SCOUTER_BROWSER_PORTS", "BUP_PROXY_PORT_RANGE"),
    ("browser_ttl", "SCOUTER_BROWSER_TTL", "BUP_PROXY_TTL"),
    ("max_process_count", "SCOUTER_MAX_PROCESS_COUNT", "SCOUTER_MAX_THREAD_COUNT"),
    ("max_receipts", "SCOUTER_MAX_RECEIPTS", "UWSGI_CACHE_ITEMS"),
    ("max_receipt_bytes", "SCOUTER_MAX_RECEIPT_BYTES", "UWSGI_CACHE_BLOCKSIZE"),
];

impl Engine {
    /// # Errors
    /// When the program's own place cannot be found out.
    pub fn plugin_dirs(&self) -> anyhow::Result<Vec<PathBuf>> {
        if !self.plugin_dir.is_empty() {
            return Ok(self.plugin_dir.clone());
        }
        let program = std::env::current_exe().context("where is this program? Set SCOUTER_PLUGIN_DIR")?;
        Ok(vec![program.with_file_name("plugins")])
    }

    #[must_use]
    pub fn cache_folder(&self) -> Option<PathBuf> {
        let home =
            || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".cache"));
        let user = || std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        self.cache_dir.clone().or_else(|| Some(user().or_else(home)?.join("scouter")))
    }

    /// Where the ASN database is, or is put when it is downloaded.
    #[must_use]
    pub fn asn_file(&self) -> Option<PathBuf> {
        self.mmdb_path.clone().or_else(|| Some(self.cache_folder()?.join("GeoLite2-ASN.mmdb")))
    }

    #[must_use]
    pub fn browsers(&self) -> browser::Config {
        browser::Config {
            ports: self.browser_ports.clone(),
            ttl: Duration::from_secs(self.browser_ttl),
            idle: Duration::from_secs(self.browser_idle),
        }
    }

    #[must_use]
    pub fn test_timeout(&self) -> Duration {
        Duration::from_secs(self.test_timeout)
    }
}

impl Serve {
    /// Where the ASN database is fetched from, if from anywhere. Empty values count as unset.
    ///
    /// # Errors
    /// See [`Source::new`].
    pub fn asn_source(&self) -> anyhow::Result<Option<Source>> {
        let some = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        Source::new(some(&self.mmdb_url).as_deref(), some(&self.mmdb_license_key).as_deref())
    }

    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listen.iter().map(|address| SocketAddr::new(*address, self.port)).collect()
    }

    /// The secrets' digests: the secrets themselves are not kept.
    ///
    /// # Errors
    /// When there is none, or an empty one.
    pub fn secrets(&self) -> anyhow::Result<Vec<[u8; 32]>> {
        let text = match (&self.api_secret, &self.api_secret_file) {
            (Some(secrets), _) => secrets.clone(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .with_context(|| format!("SCOUTER_API_SECRET_FILE '{}' cannot be read", file.display()))?,
            (None, None) => bail!(
                "no API secret: set SCOUTER_API_SECRET (or SCOUTER_API_SECRET_FILE) to a text of 16 characters or more"
            ),
        };
        let mut digests = vec![];
        for secret in text.trim_end_matches(['\r', '\n']).split([',', '\n']).map(|s| s.trim_end_matches('\r')) {
            ensure!(
                !secret.is_empty(),
                "SCOUTER_API_SECRET holds an empty secret: every secret must be a text, 16 characters or more are advised"
            );
            if secret.chars().count() < 16 {
                tracing::warn!("the API secret is shorter than 16 characters: it can be guessed");
            }
            digests.push(Sha256::digest(secret).into());
        }
        Ok(digests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        serve: Serve,
    }

    fn secrets(text: &str) -> anyhow::Result<usize> {
        Ok(Only::parse_from(["x", "--api-secret", text]).serve.secrets()?.len())
    }

    #[test]
    fn an_empty_secret_is_an_error_and_several_are_taken() {
        assert_eq!(secrets("one-secret-of-some-length").expect("one"), 1);
        assert_eq!(secrets("one-secret-of-some-length,another-secret-of-some-length").expect("two"), 2);
        for bad in ["", ",", "a,", ",a"] {
            assert!(secrets(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_log_filter_is_made_of_levels_and_modules() {
        for good in ["info", "WARN", "off", "info,access=warn", "hyper=off, debug", "scouter::api=trace"] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["verbose", "3", "info,", "=info", "access=loud", "access=", "info;debug", "[span]=info", "a b=info"]
        {
            let error = log_filter(bad).expect_err(bad);
            assert!(error.contains("off, error, warn, info, debug, trace"), "{error}");
        }
    }
}
