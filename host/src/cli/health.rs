//! `scouter health`: does the server on this machine answer? For containers without any other program in them. It asks
//! `/healthz` and not `/readyz`: a container that finishes its tests after SIGTERM is not one to restart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use scouter_net::tls::Tls;

const TIMEOUT: Duration = Duration::from_secs(4);

#[derive(Debug, Args)]
pub struct Health {
    /// Address that the server listens on; the first one counts
    #[arg(long, env = "SCOUTER_LISTEN", value_name = "ADDRESS", value_delimiter = ',', default_value = "0.0.0.0")]
    listen: Vec<IpAddr>,

    /// Port that it listens on
    #[arg(long, env = "API_PORT", value_name = "PORT", default_value_t = 8000)]
    port: u16,

    /// Its certificate, when it speaks TLS; which one it is does not matter here
    #[arg(long, env = "SCOUTER_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
}

/// # Errors
/// When it does not answer as a healthy server does.
pub fn health(health: &Health) -> anyhow::Result<ExitCode> {
    let address = match health.listen.first() {
        Some(IpAddr::V4(address)) if !address.is_unspecified() => IpAddr::V4(*address),
        Some(IpAddr::V6(address)) if !address.is_unspecified() => IpAddr::V6(*address),
        Some(IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    };
    let scheme = if health.tls_cert.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}/healthz", SocketAddr::new(address, health.port));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tls, _) = Tls::open()?.client(&["http/1.1"])?;
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(TIMEOUT).build()?;
    let answer = runtime.block_on(async { client.get(&url).send().await });
    let status = answer.with_context(|| format!("{url} does not answer"))?.status();
    ensure!(status.is_success(), "{url} answers {status}");
    Ok(ExitCode::SUCCESS)
}
