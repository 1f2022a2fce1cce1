//! One running browser: its driver, its session, its port of the gate.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use fantoccini::ClientBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use nix::sched::CloneFlags;
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use super::Kind;
use super::bidi::Bidi;
use super::gate::Gate;
use super::keeper::Keeper;
use super::load::{self, Prepared};

/// A browser that is not ready after this will not be.
const START: Duration = Duration::from_secs(30);

/// What must be installed for a kind of browser.
pub struct Installed {
    pub driver: PathBuf,
    pub browser: PathBuf,
}

impl Installed {
    /// Looks in the search path.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn find(kind: Kind) -> Result<Self, String> {
        let (driver, browsers): (_, &[_]) = match kind {
            Kind::Chrome => ("chromedriver", &["chromium", "chromium-browser", "google-chrome", "chrome"]),
            Kind::Firefox => ("geckodriver", &["firefox-esr", "firefox"]),
        };
        let missing = |what: &str| format!("{what} is not installed on this host (looked for in PATH)");
        Ok(Self {
            driver: in_path(driver).ok_or_else(|| missing(driver))?,
            browser: browsers.iter().find_map(|name| in_path(name)).ok_or_else(|| missing(&browsers.join(" or ")))?,
        })
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

pub struct Session {
    pub kind: Kind,
    /// Name and version.
    pub name: String,
    pub bidi: Bidi,
    pub gate: Arc<Gate>,
    pub started: Instant,
    pub used: Instant,
    pub loads: u32,
    /// For the next page.
    pub spare: Option<Prepared>,
    /// The driver's standard output ends with it.
    pub keeper: Keeper,
}

impl Session {
    /// A browser whose first page will verify certificates, or not.
    ///
    /// # Errors
    /// When the browser does not start.
    pub async fn start(kind: Kind, installed: &Installed, gate: Arc<Gate>, verify_tls: bool) -> anyhow::Result<Self> {
        match tokio::time::timeout(START, Self::start_unbounded(kind, installed, gate, verify_tls)).await {
            Ok(started) => started,
            Err(_) => Err(anyhow!("{kind} does not start within {} s", START.as_secs())),
        }
    }

    async fn start_unbounded(
        kind: Kind,
        installed: &Installed,
        gate: Arc<Gate>,
        verify_tls: bool,
    ) -> anyhow::Result<Self> {
        let driver = installed.driver.to_str().context("its path is not UTF-8")?;
        let keeper = match kind {
            Kind::Chrome => chromedriver(driver).await?,
            Kind::Firefox => Keeper::start(&[driver, "--port=0", "--websocket-port=0"], geckodriver_listens).await?,
        };
        let browser = installed.browser.to_str().context("its path is not UTF-8")?;
        let capabilities = match kind {
            Kind::Chrome => chrome(browser, keeper.folder(), gate.own_port, verify_tls, sandbox().await),
            Kind::Firefox => firefox(browser, gate.own_port),
        };
        // The session is ended by ending its processes; this client is only for its beginning.
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", keeper.port))
            .await?;
        client.persist().await?;
        let told = client.capabilities().context("the driver says nothing of the session")?;
        let text = |name: &str| told.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = format!("{} {}", kind.title(), text("browserVersion"));
        let url = text("webSocketUrl");
        let bidi = Bidi::connect(&url).await.with_context(|| format!("no connection to {kind}"))?;
        let now = Instant::now();
        let mut session = Self { kind, name, bidi, gate, started: now, used: now, loads: 0, spare: None, keeper };
        if kind == Kind::Chrome {
            session.spare = Some(load::first(&session, verify_tls).await.context("it does not take commands")?);
        }
        Ok(session)
    }

    /// Does its connection stand, which falls with the browser, and is there somebody who will end it?
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        !self.bidi.events.is_closed() && self.keeper.is_there()
    }
}

/// Told to take any free port it takes one of IPv6, and gives up when somebody has the same one of IPv4; without IPv6 it
/// does not say which it took. So then it is given one that was free a moment ago; and another one when that is taken.
async fn chromedriver(driver: &str) -> anyhow::Result<Keeper> {
    let mut left = 5;
    loop {
        let port = match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(_) => 0,
            Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port(),
        };
        match Keeper::start(&[driver, &format!("--port={port}")], chromedriver_listens).await {
            Err(error) if left > 0 && error.to_string().contains("port not available") => left -= 1,
            started => return started,
        }
    }
}

fn chromedriver_listens(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once("started successfully on port ")?;
    rest.trim_end_matches('.').parse().ok()
}

fn geckodriver_listens(line: &str) -> Option<u16> {
    line.split_once("Listening on ")?.1.rsplit(':').next()?.trim().parse().ok()
}

/// What both are asked for. A dialogue of a page must not hold it up.
fn common(browser: &str) -> Map<String, Value> {
    let wanted = json!({
        "browserName": browser,
        "webSocketUrl": true,
        "pageLoadStrategy": "none",
        "unhandledPromptBehavior": {"default": "dismiss", "beforeUnload": "accept"},
    });
    wanted.as_object().cloned().unwrap_or_default()
}

/// Can Chrome have its own sandbox? It needs a user that is not root, and new user namespaces, which many containers
/// forbid. Without them the walls of the container, and this program's own limits, have to do.
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

/// All of it leads to the gate's door for the browser itself; pages but the first have the other one. `<-loopback>`:
/// without it addresses of loopback and link-local are reached past any proxy.
fn chrome(browser: &str, folder: &Path, own_port: u16, verify_tls: bool, sandbox: bool) -> Map<String, Value> {
    let mut arguments: Vec<String> = [
        "--headless",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--no-default-browser-check",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-domain-reliability",
        "--disable-sync",
        "--disable-extensions",
        "--disable-dev-shm-usage",
        "--mute-audio",
        "--window-size=1280,720",
        "--force-device-scale-factor=1",
        "--proxy-bypass-list=<-loopback>",
        "--webrtc-ip-handling-policy=disable_non_proxied_udp",
        // A URL is loaded as it is written, not first with another scheme.
        "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable,OptimizationHints,MediaRouter,Translate,\
         NetworkTimeServiceQuerying",
        // Accounts, extensions and components are looked for where nothing is: while the first page is being loaded, the
        // gate cannot tell such a request from one of the page's.
        "--gaia-url=http://127.0.0.1:9/",
        "--apps-gallery-update-url=http://127.0.0.1:9/",
        "--component-updater=url-source=http://127.0.0.1:9/",
    ]
    .map(String::from)
    .into();
    arguments.push(format!("--user-data-dir={}", folder.join("profile").display()));
    arguments.push(format!("--proxy-server=socks5://127.0.0.1:{own_port}"));
    if !sandbox {
        arguments.push("--no-sandbox".into());
    }
    let mut wanted = common("chrome");
    wanted.insert("acceptInsecureCerts".into(), json!(!verify_tls));
    wanted.insert(
        "goog:chromeOptions".into(),
        json!({"binary": browser, "args": arguments, "prefs": {
            // No connections ahead of time: they would take the phases away from the request that they are for.
            "net": {"network_prediction_options": 2},
            "webrtc": {"ip_handling_policy": "disable_non_proxied_udp"},
            "search": {"suggest_enabled": false},
            "safebrowsing": {"enabled": false},
            "credentials_enable_service": false,
        }}),
    );
    wanted
}

fn firefox(browser: &str, own_port: u16) -> Map<String, Value> {
    let mut wanted = common("firefox");
    wanted.insert(
        "moz:firefoxOptions".into(),
        json!({"binary": browser, "args": ["-headless", "--width=1280", "--height=720"], "prefs": {
            "network.proxy.type": 1,
            "network.proxy.socks": "127.0.0.1",
            "network.proxy.socks_port": own_port,
            "network.proxy.socks_version": 5,
            "network.proxy.socks_remote_dns": true,
            "network.proxy.socks5_remote_dns": true,
            "network.proxy.no_proxies_on": "",
            "network.proxy.allow_hijacking_localhost": true,
            "network.proxy.failover_direct": false,
            "network.proxy.allow_bypass": false,
            "network.dns.disablePrefetch": true,
            "network.dns.disablePrefetchFromHTTPS": true,
            "network.prefetch-next": false,
            "network.predictor.enabled": false,
            "network.http.speculative-parallel-limit": 0,
            "network.http.http3.enable": false,
            "network.http.request.max-attempts": 1,
            "network.trr.mode": 5,
            "network.captive-portal-service.enabled": false,
            "network.connectivity-service.enabled": false,
            "dom.security.https_first": false,
            "dom.security.https_only_mode": false,
            "browser.safebrowsing.malware.enabled": false,
            "browser.safebrowsing.phishing.enabled": false,
            "media.peerconnection.enabled": false,
            "toolkit.telemetry.enabled": false,
            "app.update.enabled": false,
            "app.normandy.enabled": false,
            "services.settings.server": "http://127.0.0.1:9/",
            "browser.tabs.unloadOnLowMemory": false,
        }}),
    );
    wanted
}
