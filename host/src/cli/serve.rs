//! `scouter serve`: from settings to a running server, and its orderly end.

use std::num::NonZeroU32;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scouter_net::browser::Browsers;
use scouter_net::privilege;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{self, Api, Auth, Costs, Documents, Network};
use crate::config::{Engine, Serve};
use crate::memory;
use crate::queue::Limits;
use crate::receipts::{Budget, Receipts};
use crate::runner::{Requests, Runner};
use crate::server::{self, Identity, Listening};
use crate::services::Runtimes;

/// Time for running tests and open connections to end after a signal; then they are cancelled.
const DRAIN: Duration = Duration::from_secs(9);

pub fn serve(engine: &Engine, settings: &Serve) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    raise_open_files();
    if let Err(error) = privilege::raise() {
        tracing::warn!(%error, "capabilities stay as they are");
    }
    let auth = Auth::new(settings.secrets()?, NonZeroU32::new(settings.rate_limit));
    let identity = identity(settings)?;
    let runtimes = Runtimes::new(settings.threads)?;
    let signals = {
        let _inside = runtimes.io.enter();
        Signals::listen().context("signals")?
    };
    let source = settings.asn_source()?;
    let slots = usize::try_from(settings.max_process_count)?;
    let (services, plugins) = super::load(&runtimes, engine, slots)?;
    if let Some(source) = source {
        let _inside = runtimes.io.enter();
        services.net.asn.fetch(source, &services.net.tls)?;
    }
    let network = Network::of(&services.net, &services.policy);
    let kept = Arc::clone(&services);
    let runner = Runner::new(
        services,
        slots,
        Limits { tests: usize::try_from(settings.max_queue)?, bytes: usize::try_from(settings.max_queue_bytes)? },
        engine.test_timeout(),
    );
    let api = Arc::new(Api {
        auth,
        plugins,
        runner: Arc::new(runner),
        receipts: Arc::new(Receipts::new(budget(settings))),
        requests: Requests::default(),
        network,
        services: Arc::clone(&kept),
        max_tests: usize::try_from(settings.max_test_count)?,
        max_body: usize::try_from(settings.max_body_bytes)?,
        costs: Costs::new(usize::try_from(settings.max_body_bytes)?),
        documents: Documents::default(),
        started,
        stopping: AtomicBool::new(false),
    });
    let done = runtimes.io.block_on(run(Arc::clone(&api), identity, settings, signals));
    runtimes.io.block_on(kept.net.browsers.end());
    runtimes.end();
    done.map(|()| ExitCode::SUCCESS)
}

/// The API's certificate, when it has one of its own.
fn identity(settings: &Serve) -> anyhow::Result<Option<Arc<Identity>>> {
    let files = settings.tls_cert.as_ref().zip(settings.tls_key.as_ref());
    files.map(|(certificate, key)| Ok(Arc::new(Identity::open(certificate, key)?))).transpose()
}

fn budget(settings: &Serve) -> Budget {
    Budget {
        lifetime: Duration::from_secs(settings.receipt_ttl),
        receipts: settings.max_receipts,
        receipt_bytes: usize::try_from(settings.max_receipt_bytes).unwrap_or(usize::MAX),
        total_bytes: settings.max_result_bytes,
    }
}

/// As many descriptors as this process may have: each connection takes one, each test some, and a trace over error
/// queues one for every probe under way. The usual soft limit of 1,024 is for programs that use `select`.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, at_most = limit.current, "the limit of open files stays as it is");
    }
}

async fn run(api: Arc<Api>, identity: Option<Arc<Identity>>, settings: &Serve, signals: Signals) -> anyhow::Result<()> {
    let Signals { mut stop, mut hangup } = signals;
    let listening = Listening::bind(&settings.addresses())?;
    // Sockets that need other capabilities are open by now.
    privilege::drop_or_warn(privilege::BROWSERS);
    announce(&api, &listening, identity.is_some(), settings);
    let closing = CancellationToken::new();
    let router = api::router(Arc::clone(&api));
    let max_connections = usize::try_from(settings.max_connections)?;
    let serving = tokio::spawn(server::serve(listening, router, identity.clone(), max_connections, closing.clone()));
    let _expire = AbortOnDropHandle::new(tokio::spawn(expire(Arc::clone(&api.receipts))));
    let _trim = AbortOnDropHandle::new(tokio::spawn(memory::trim()));
    let follow = identity.clone().map(|identity| AbortOnDropHandle::new(tokio::spawn(identity.follow())));

    let signal = loop {
        tokio::select! {
            signal = stop.wait() => break signal,
            _ = hangup.recv() => reload(&api, identity.as_deref(), settings),
        }
    };
    let end = tokio::time::Instant::now() + DRAIN;
    tracing::info!(signal, "stopping: no new tests, finishing what runs");
    // Clients may still fetch results; new tests are answered 503.
    api.stopping.store(true, Ordering::Relaxed);
    tokio::select! {
        () = api.runner.drain(DRAIN) => {}
        signal = stop.wait() => tracing::warn!(signal, "second signal: not waiting"),
    }
    api.receipts.cancel_all();
    closing.cancel();
    let answered = tokio::time::timeout_at(end + Duration::from_millis(500), serving).await;
    drop(follow);
    tracing::info!(whole = answered.is_ok(), "stopped");
    Ok(())
}

/// SIGHUP: secrets are read again from their file, so that they can be changed without a restart, and so is the
/// certificate. What cannot be used changes nothing.
fn reload(api: &Api, identity: Option<&Identity>, settings: &Serve) {
    if let Some(Err(error)) = identity.map(Identity::reload) {
        tracing::error!(error = format!("{error:#}"), "SIGHUP: the TLS certificate stays as it was");
    }
    match settings.secrets() {
        Ok(digests) => {
            tracing::info!(secrets = digests.len(), "SIGHUP: secrets read again");
            api.auth.replace(digests);
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "SIGHUP: the secrets stay as they were");
        }
    }
}

async fn expire(receipts: Arc<Receipts>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        receipts.expire();
    }
}

fn announce(api: &Api, listening: &Listening, tls: bool, settings: &Serve) {
    let names: Vec<&str> = api.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
    for (family, socket) in [("IPv4", &api.network.icmp_v4), ("IPv6", &api.network.icmp_v6)] {
        match (socket.mode, &socket.why) {
            (Some(mode), None) => tracing::info!(family, mode, "ICMP"),
            (Some(mode), Some(why)) => tracing::info!(family, mode, why, "ICMP"),
            (None, why) => tracing::warn!(family, why, "no ICMP: pings will fail"),
        }
    }
    tracing::info!(
        nameservers = api.network.nameservers.join(" "),
        trust_anchors = api.network.trust_anchors,
        "network"
    );
    for (driver, found) in Browsers::found() {
        match found {
            Ok(browser) => tracing::info!(driver, browser = %browser.display(), "browser"),
            Err(missing) => tracing::warn!(driver, missing, "no browser: page loads with this driver will fail"),
        }
    }
    tracing::info!(open = api.network.targets, "targets");
    tracing::info!(at_once = settings.max_process_count, waiting = settings.max_queue, "tests");
    if names.is_empty() {
        tracing::warn!("no test types: every test will fail; see SCOUTER_PLUGIN_DIR");
    } else {
        tracing::info!(types = names.join(" "), "test types");
    }
    for address in &listening.addresses {
        let scheme = if tls { "https" } else { "http" };
        tracing::info!(%address, scheme, ms = api.started.elapsed().as_millis(), "listening");
    }
}

/// SIGTERM and Ctrl-C.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

/// The default action of a signal would end the process: signals are caught before plugins are loaded, which
/// takes seconds with an empty cache, and acted upon once the server listens.
struct Signals {
    stop: Stop,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let stop = Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        Ok(Self { stop, hangup: signal(SignalKind::hangup())? })
    }
}

impl Stop {
    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
