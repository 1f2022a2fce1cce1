//! One running browser: its processes, its control channel, its SOCKS proxy.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sched::CloneFlags;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::ChildStderr;
use tokio::sync::{OnceCell, watch};

use super::chrome::{self, Chrome};
use super::connection::{Answer, CommandError, Connection};
use super::context::Prepared;
use super::events::EventSink;
use super::firefox::{self, Firefox};
use super::folder;
use super::socks::SocksProxy;
use super::supervisor::Supervisor;
use super::{Kind, Request};

/// A browser that is not ready after this will not be.
const START: Duration = Duration::from_mins(1);
/// No line of what a browser prints is kept beyond this.
const LINE_BYTES: usize = 300;

/// A kind of browser on this host.
pub struct Installed {
    pub browser: PathBuf,
}

impl Installed {
    /// Looks in the search path.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn find(kind: Kind) -> Result<Self, String> {
        let names: &[_] = match kind {
            Kind::Chrome => &["chromium", "chromium-browser", "google-chrome", "chrome"],
            Kind::Firefox => &["firefox-esr", "firefox"],
        };
        let browser = names.iter().find_map(|name| in_path(name));
        let missing = || format!("{} is not installed on this host (looked for in PATH)", names.join(" or "));
        Ok(Self { browser: browser.ok_or_else(missing)? })
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

enum Driver {
    Chrome(Chrome),
    Firefox(Firefox),
}

pub struct Session {
    pub kind: Kind,
    /// Name and version.
    pub name: String,
    driver: Arc<Driver>,
    pub sink: Arc<EventSink>,
    pub proxy: Arc<SocksProxy>,
    pub started: Instant,
    pub used: Instant,
    pub loads: u32,
    /// For the next page.
    pub spare: Option<Prepared>,
    pub supervisor: Supervisor,
}

impl Session {
    /// # Errors
    /// When the browser does not start.
    pub async fn start(kind: Kind, installed: &Installed, proxy: Arc<SocksProxy>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix(folder::PREFIX).tempdir()?;
        let start = Self::start_in(folder.path(), kind, installed, proxy);
        let started = match tokio::time::timeout(START, start).await {
            Ok(started) => started?,
            Err(_) => bail!("{kind} does not start within {} s", START.as_secs()),
        };
        // From here on the supervisor removes it.
        let _ = folder.keep();
        Ok(started)
    }

    async fn start_in(
        folder: &Path,
        kind: Kind,
        installed: &Installed,
        proxy: Arc<SocksProxy>,
    ) -> anyhow::Result<Self> {
        let browser = installed.browser.to_str().context("its path is not UTF-8")?;
        let sink = Arc::new(EventSink::new(kind));
        let (command, stdout, channel) = match kind {
            Kind::Chrome => {
                chrome::write_profile(folder)?;
                let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                let command = chrome::command(browser, folder, proxy.own_port, sandbox().await);
                (command, Stdio::from(std::os::fd::OwnedFd::from(theirs)), Some(UnixStream::from_std(ours)?))
            }
            Kind::Firefox => {
                firefox::write_profile(folder, proxy.own_port)?;
                (firefox::command(browser, folder), Stdio::null(), None)
            }
        };
        let (mut supervisor, stderr) = Supervisor::start(folder, &command, stdout)?;
        let pipe = supervisor.pipe();
        proxy.serve(Arc::clone(&pipe));
        let (sender, mut printed) = watch::channel(Printed::default());
        tokio::spawn(follow(stderr, sender));
        let last = printed.clone();
        let open = async {
            Ok::<_, anyhow::Error>(if let Some(channel) = channel {
                let (chrome, version) = Chrome::open(channel, Arc::clone(&sink), START).await?;
                (Driver::Chrome(chrome), version)
            } else {
                let port = printed.wait_for(|printed| printed.port.is_some()).await?.port.unwrap_or_default();
                let (firefox, version) = Firefox::open(port, &pipe, Arc::clone(&sink), START).await?;
                (Driver::Firefox(firefox), version)
            })
        };
        let opened = tokio::select! {
            opened = open => opened,
            () = supervisor.ended() => Err(anyhow!("it ended during its start")),
        };
        let (driver, version) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                supervisor.end().await;
                let last = last.borrow().line.clone();
                return Err(if last.is_empty() { error } else { error.context(last) });
            }
        };
        let (name, now) = (format!("{kind} {version}"), Instant::now());
        let driver = Arc::new(driver);
        Ok(Self { kind, name, driver, sink, proxy, started: now, used: now, loads: 0, spare: None, supervisor })
    }

    /// Is its connection open, which closes when the browser ends, and is its supervisor alive?
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        !self.driver.connection().is_closed() && self.supervisor.is_there()
    }

    /// Waits until the browser has ended, or closed its connection.
    pub async fn ended(&mut self) {
        tokio::select! {
            () = self.driver.connection().closed() => {}
            () = self.supervisor.ended() => {}
        }
    }

    /// # Errors
    /// See [`CommandError`].
    pub async fn prepare(&self, verify_tls: bool) -> Result<Prepared, CommandError> {
        match &*self.driver {
            Driver::Chrome(chrome) => chrome.prepare(self.proxy.port).await,
            Driver::Firefox(firefox) => firefox.prepare(self.proxy.port, verify_tls).await,
        }
    }

    /// A context for this request: the one that is ready, or another one.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn ready(&mut self, request: &Request) -> Result<Prepared, CommandError> {
        if !self.supervisor.pipe().answers().await {
            return Err(CommandError::Gone);
        }
        let spare = self.spare.take();
        let fits = |spare: &Prepared| self.kind == Kind::Chrome || spare.verify_tls == request.verify_tls;
        let prepared = match spare {
            Some(spare) if fits(&spare) => spare,
            other => {
                if let Some(spare) = other {
                    self.forget(&spare).await?;
                }
                self.prepare(request.verify_tls).await?
            }
        };
        match &*self.driver {
            Driver::Chrome(chrome) => chrome.configure(&prepared, request).await?,
            Driver::Firefox(firefox) => firefox.configure(&prepared, request).await?,
        }
        Ok(prepared)
    }

    /// Ends all of a page.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn forget(&self, used: &Prepared) -> Result<(), CommandError> {
        match &*self.driver {
            Driver::Chrome(chrome) => chrome.forget(used).await,
            Driver::Firefox(firefox) => firefox.forget(used).await,
        }
    }

    /// Not before the document is there does it answer.
    pub async fn navigate(&self, prepared: &Prepared, url: &str) -> Answer {
        match &*self.driver {
            Driver::Chrome(chrome) => chrome.navigate(prepared, url).await,
            Driver::Firefox(firefox) => firefox.navigate(prepared, url).await,
        }
    }

    /// Runs a script of this host in the page; its result as text.
    pub fn evaluate(
        &self,
        prepared: &Prepared,
        script: String,
    ) -> impl Future<Output = Result<String, CommandError>> + Send + use<> {
        let driver = Arc::clone(&self.driver);
        let prepared = prepared.clone();
        async move {
            match &*driver {
                Driver::Chrome(chrome) => chrome.evaluate(&prepared, &script).await,
                Driver::Firefox(firefox) => firefox.evaluate(&prepared, &script).await,
            }
        }
    }

    /// The picture in base64.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn screenshot(&self, prepared: &Prepared) -> Result<String, CommandError> {
        match &*self.driver {
            Driver::Chrome(chrome) => chrome.screenshot(prepared).await,
            Driver::Firefox(firefox) => firefox.screenshot(prepared).await,
        }
    }
}

impl Driver {
    fn connection(&self) -> &Connection {
        match self {
            Self::Chrome(chrome) => &chrome.connection,
            Self::Firefox(firefox) => &firefox.connection,
        }
    }
}

/// What a browser has printed so far.
#[derive(Debug, Default)]
struct Printed {
    /// The last line.
    line: String,
    /// Where Firefox listens.
    port: Option<u16>,
}

/// Reads what a browser prints, to its end: an unread pipe fills up, and then the browser waits. Pages print too,
/// lines of any length.
async fn follow(mut stderr: ChildStderr, sender: watch::Sender<Printed>) {
    let (mut chunk, mut line) = ([0; 4096], vec![]);
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        for byte in &chunk[..count] {
            if *byte == b'\n' {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                let port = firefox::listens(&text);
                sender.send_modify(|printed| {
                    printed.port = printed.port.or(port);
                    printed.line = text;
                });
            } else if line.len() < LINE_BYTES {
                line.push(*byte);
            }
        }
    }
}

/// Can Chrome have its own sandbox? It needs a user that is not root, and new user namespaces, which many containers
/// forbid. Without them the isolation is that of the container, with this program's own limits.
async fn sandbox() -> bool {
    static ANSWER: OnceCell<bool> = OnceCell::const_new();
    let ask = || async {
        if rustix::process::geteuid().is_root() {
            return false;
        }
        // Not in this process: it has threads, and those cannot move.
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg("unshare").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let may = command.status().await.is_ok_and(|status| status.success());
        if !may {
            let todo = "allow user namespaces: see docs/security.md";
            tracing::warn!(todo, "Chrome runs without its own sandbox");
        }
        may
    };
    *ANSWER.get_or_init(ask).await
}

/// The child of that: success if it may.
///
/// # Errors
/// When it may not.
pub fn unshare_main() -> anyhow::Result<()> {
    let all = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    Ok(nix::sched::unshare(all)?)
}
