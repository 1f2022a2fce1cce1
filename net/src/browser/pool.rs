//! All browsers of the process: warm ones, ones in use, and ports for more.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::context::Prepared;
use super::session::{Installed, Session};
use super::socks::SocksProxy;
use super::{BrowserError, Kind, Page, Request, folder, load};
use crate::address::Resolver;
use crate::policy::Policy;

/// A browser that has loaded so many pages makes place for a new one.
const LOADS: u32 = 50;
/// How often idle browsers are checked.
const LOOK: Duration = Duration::from_secs(1);
/// A port that is being closed is closed after this.
const CLOSING: Duration = Duration::from_secs(5);
/// Who needs a browser waits so long for one that is being made ready.
const RENEWING: Duration = Duration::from_secs(3);

/// A folder that a killed server has left just before is removed after this.
const ABANDONED: Duration = Duration::from_mins(1);

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Loopback ports of the SOCKS proxy; their number bounds the browsers.
    pub ports: RangeInclusive<u16>,
    /// How long one browser may live.
    pub ttl: Duration,
    /// How long one stays without use.
    pub idle: Duration,
}

/// One browser, for the status of the server.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub driver: &'static str,
    /// Of the SOCKS proxy.
    port: u16,
    /// `idle` or `busy`.
    #[serde(rename = "status")]
    pub state: &'static str,
    /// Pages loaded so far.
    loads: u32,
    age_s: u64,
}

/// All browsers of the process.
pub struct Browsers {
    config: Config,
    resolver: Arc<Resolver>,
    policy: Arc<Policy>,
    permits: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
    /// A port has become free, or a browser ready.
    freed: Arc<Notify>,
}

enum Pick {
    Warm(Box<Session>),
    Wait,
    New { instead: Option<Box<Session>> },
}

#[derive(Default)]
struct State {
    free: Vec<u16>,
    idle: Vec<Session>,
    busy: Vec<Status>,
    /// Browsers that are being made ready for their next page.
    renewing: Vec<Kind>,
    looked_after: bool,
    ended: bool,
}

/// A port that is in use; dropping it frees it.
struct Port {
    number: u16,
    state: Weak<Mutex<State>>,
    freed: Arc<Notify>,
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade() {
            state.lock().free.push(self.number);
            self.freed.notify_waiters();
        }
    }
}

/// Counted as renewing while it is held.
struct Renewing {
    kind: Kind,
    state: Weak<Mutex<State>>,
    freed: Arc<Notify>,
}

impl Drop for Renewing {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade() {
            let mut state = state.lock();
            if let Some(place) = state.renewing.iter().position(|kind| *kind == self.kind) {
                state.renewing.swap_remove(place);
            }
            drop(state);
            self.freed.notify_waiters();
        }
    }
}

/// Shown as busy while it is held.
struct Busy {
    port: u16,
    state: Weak<Mutex<State>>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade() {
            state.lock().busy.retain(|busy| busy.port != self.port);
        }
    }
}

impl Browsers {
    #[must_use]
    pub fn new(config: Config, resolver: Arc<Resolver>, policy: Arc<Policy>) -> Self {
        let free: Vec<u16> = config.ports.clone().rev().collect();
        let permits = Arc::new(Semaphore::new(free.len()));
        let state = Arc::new(Mutex::new(State { free, ..State::default() }));
        tokio::spawn(remove_abandoned());
        Self { config, resolver, policy, permits, state, freed: Arc::default() }
    }

    /// Each driver's name, and its browser on this host or what is missing.
    pub fn found() -> [(&'static str, Result<PathBuf, String>); 2] {
        [Kind::Chrome, Kind::Firefox].map(|kind| (kind.driver(), Installed::find(kind).map(|found| found.browser)))
    }

    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let state = self.state.lock();
        let idle = state.idle.iter().map(|session| status_of(session, "idle"));
        state.busy.iter().cloned().chain(idle).collect()
    }

    /// Loads a page. Dropping the future ends the browser.
    ///
    /// # Errors
    /// See [`BrowserError`].
    pub async fn load(&self, request: &Request) -> Result<Page, BrowserError> {
        let installed = Installed::find(request.kind).map_err(BrowserError::Unavailable)?;
        let stopping = || BrowserError::Unavailable("this server is stopping".into());
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| stopping())?;
        let mut session = self.take(request, &installed).await?;
        let mut prepared = session.ready(request).await;
        if prepared.is_err() && session.loads > 0 {
            // It has died since its last page, and this page has sent nothing yet.
            session.supervisor.end().await;
            session = self.start(request.kind, &installed).await?;
            prepared = session.ready(request).await;
        }
        let failed = |error| BrowserError::Unavailable(format!("{} does not work on this host: {error}", request.kind));
        let prepared = prepared.map_err(failed)?;
        let busy = Busy { port: session.proxy.port, state: Arc::downgrade(&self.state) };
        self.state.lock().busy.push(status_of(&session, "busy"));
        let left = self.config.ttl.saturating_sub(session.started.elapsed());
        let (page, healthy) = load::load(&mut session, &prepared, request, left).await;
        session.loads += 1;
        session.used = Instant::now();
        for shown in self.state.lock().busy.iter_mut().filter(|shown| shown.port == session.proxy.port) {
            shown.loads = session.loads;
        }
        if healthy && session.loads < LOADS {
            self.renew(session, prepared, (busy, permit));
        }
        page
    }

    /// Makes a browser ready for its next page, in the background. `held` says until then that
    /// it is in use.
    fn renew(&self, mut session: Session, used: Prepared, held: (Busy, OwnedSemaphorePermit)) {
        let state = Arc::clone(&self.state);
        let (kind, freed) = (session.kind, Arc::clone(&self.freed));
        state.lock().renewing.push(kind);
        let done = Renewing { kind, state: Arc::downgrade(&state), freed };
        tokio::spawn(async move {
            let ready = load::renew(&mut session, &used).await;
            {
                let mut state = state.lock();
                // In one step: it is shown once, and never as both.
                state.busy.retain(|busy| busy.port != session.proxy.port);
                if ready && !state.ended {
                    state.idle.push(session);
                }
            }
            drop(held);
            drop(done);
        });
    }

    /// A warm browser of this kind with enough life left, or a new one.
    async fn take(&self, request: &Request, installed: &Installed) -> Result<Session, BrowserError> {
        self.end_unusable();
        let waited = Instant::now();
        let old = loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            match self.pick(request.kind, waited.elapsed() < RENEWING) {
                Pick::Warm(session) => return Ok(*session),
                Pick::Wait => {
                    let _ = tokio::time::timeout(RENEWING, freed).await;
                }
                Pick::New { instead } => break instead,
            }
        };
        if let Some(session) = old {
            session.supervisor.end().await;
        }
        self.start(request.kind, installed).await
    }

    /// What to do about a browser of this kind.
    fn pick(&self, kind: Kind, may_wait: bool) -> Pick {
        let mut state = self.state.lock();
        let young = |session: &Session| session.started.elapsed() * 2 < self.config.ttl;
        while let Some(place) = state.idle.iter().rposition(|session| session.kind == kind && young(session)) {
            let mut session = state.idle.remove(place);
            if session.is_alive() {
                return Pick::Warm(Box::new(session));
            }
        }
        // One that is about to be ready is sooner there than a new one.
        if may_wait && state.renewing.contains(&kind) {
            return Pick::Wait;
        }
        // When all ports are taken, the browser that has been idle for longest is ended.
        let free = !state.free.is_empty() || state.idle.is_empty();
        Pick::New { instead: if free { None } else { Some(Box::new(state.idle.remove(0))) } }
    }

    async fn start(&self, kind: Kind, installed: &Installed) -> Result<Session, BrowserError> {
        let proxy = self.open_proxy().await?;
        match Session::start(kind, installed, Arc::new(proxy)).await {
            Ok(session) => {
                tracing::info!(browser = session.name, port = session.proxy.port, "browser started");
                Ok(session)
            }
            Err(error) => Err(BrowserError::Unavailable(format!("{kind} cannot be used on this host: {error:#}"))),
        }
    }

    async fn open_proxy(&self) -> Result<SocksProxy, BrowserError> {
        let mut problem = "all are in use".to_owned();
        let mut tried = vec![];
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            let Some(number) = self.state.lock().free.pop() else {
                // A browser is being closed: there are as many permits as ports.
                if tried.is_empty() && tokio::time::timeout(CLOSING, freed).await.is_ok() {
                    continue;
                }
                break;
            };
            let port = Port { number, state: Arc::downgrade(&self.state), freed: Arc::clone(&self.freed) };
            match SocksProxy::open(number, port, Arc::clone(&self.resolver), Arc::clone(&self.policy)).await {
                Ok(proxy) => return Ok(proxy),
                Err((error, port)) => {
                    problem = format!("port {number}: {}", crate::os_error::description(&error));
                    // Held until all were tried.
                    tried.push(port);
                }
            }
        }
        let (first, last) = (self.config.ports.start(), self.config.ports.end());
        Err(BrowserError::Unavailable(format!(
            "no port of SCOUTER_BROWSER_PORTS {first}-{last} can be listened on ({problem})"
        )))
    }

    /// Ends browsers that are idle, old or dead.
    fn end_unusable(&self) {
        let mut state = self.state.lock();
        if state.looked_after {
            return;
        }
        state.looked_after = true;
        drop(state);
        let (weak, config) = (Arc::downgrade(&self.state), self.config.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(state) = weak.upgrade() else { return };
                let over: Vec<_> = {
                    let is_over = |session: &mut Session| {
                        session.used.elapsed() > config.idle
                            || session.started.elapsed() > config.ttl
                            || !session.is_alive()
                    };
                    state.lock().idle.extract_if(.., is_over).collect()
                };
                drop(state);
                for session in over {
                    tracing::info!(browser = session.name, loads = session.loads, "browser stopped");
                    session.supervisor.end().await;
                }
            }
        });
    }

    /// Ends all of them, and starts none any more.
    pub async fn end(&self) {
        self.permits.close();
        let idle = {
            let mut state = self.state.lock();
            state.ended = true;
            std::mem::take(&mut state.idle)
        };
        futures_util::future::join_all(idle.into_iter().map(|session| session.supervisor.end())).await;
    }
}

/// Removes what killed servers have left: immediately, and again when the youngest is old enough to be known as
/// abandoned.
async fn remove_abandoned() {
    for pause in [Duration::ZERO, ABANDONED] {
        tokio::time::sleep(pause).await;
        let _ = tokio::task::spawn_blocking(|| folder::remove_abandoned(&std::env::temp_dir())).await;
    }
}

fn status_of(session: &Session, state: &'static str) -> Status {
    let driver = session.kind.driver();
    Status { driver, port: session.proxy.port, state, loads: session.loads, age_s: session.started.elapsed().as_secs() }
}
