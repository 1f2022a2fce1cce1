//! Firefox, which speaks WebDriver BiDi by itself (`--remote-debugging-port`). Its port is open to all processes on this
//! host, but there is one session, and only who made it knows its name; and commands are sent to the browser's own
//! server only.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::Request;
use super::connection::{Answer, Command, CommandError, Connection, Notice};
use super::context::{ASK, PROMPT, Prepared, VIEWPORT};
use super::events::EventSink;
use super::framing::Framing;
use super::message::{Event, Text};
use super::supervisor::ParentPipe;

/// The world in which this program's own scripts run: what the page has changed of the language it does not see.
const WORLD: &str = "scouter";

const EVENTS: [&str; 8] = [
    "network.authRequired",
    "network.beforeRequestSent",
    "network.responseStarted",
    "network.responseCompleted",
    "network.fetchError",
    "browsingContext.contextCreated",
    "browsingContext.load",
    "log.entryAdded",
];

/// The program and its arguments.
pub fn command(browser: &str, folder: &Path) -> Vec<String> {
    let (width, height) = VIEWPORT;
    let profile = folder.join("profile").display().to_string();
    let (width, height) = (format!("--width={width}"), format!("--height={height}"));
    ["--headless", "--remote-debugging-port=0", "--no-remote", &width, &height, "--profile", &profile, "about:blank"]
        .iter()
        .fold(vec![browser.to_owned()], |mut command, argument| {
            command.push((*argument).to_owned());
            command
        })
}

/// Where it listens, in what it prints.
pub fn listens(line: &str) -> Option<u16> {
    line.split_once("WebDriver BiDi listening on ws://")?.1.rsplit(':').next()?.trim().parse().ok()
}

/// Names of settings, and their values as JSON.
const SETTINGS: [(&str, &str); 60] = [
    ("network.proxy.type", "1"),
    ("network.proxy.socks", r#""127.0.0.1""#),
    ("network.proxy.socks_version", "5"),
    ("network.proxy.socks_remote_dns", "true"),
    ("network.proxy.socks5_remote_dns", "true"),
    ("network.proxy.no_proxies_on", r#""""#),
    ("network.proxy.allow_hijacking_localhost", "true"),
    ("network.proxy.failover_direct", "false"),
    ("network.proxy.allow_bypass", "false"),
    // Past the proxy, or ahead of the request that they would be for.
    ("media.peerconnection.enabled", "false"),
    ("network.webtransport.enabled", "false"),
    ("network.http.http3.enable", "false"),
    ("network.trr.mode", "5"),
    ("network.dns.disablePrefetch", "true"),
    ("network.dns.disablePrefetchFromHTTPS", "true"),
    ("network.dns.upgrade_with_https_rr", "false"),
    ("network.dns.use_https_rr_as_altsvc", "false"),
    ("network.prefetch-next", "false"),
    ("network.predictor.enabled", "false"),
    ("network.http.speculative-parallel-limit", "0"),
    ("network.http.request.max-attempts", "1"),
    // A URL is loaded as it is written, not first with another scheme.
    ("dom.security.https_first", "false"),
    ("dom.security.https_only_mode", "false"),
    // What a browser does on its own account.
    ("network.captive-portal-service.enabled", "false"),
    ("network.connectivity-service.enabled", "false"),
    ("network.manage-offline-status", "false"),
    ("browser.safebrowsing.malware.enabled", "false"),
    ("browser.safebrowsing.phishing.enabled", "false"),
    ("browser.topsites.contile.enabled", "false"),
    ("browser.region.network.url", r#""""#),
    ("browser.translations.enable", "false"),
    ("browser.ml.enable", "false"),
    ("browser.uitour.enabled", "false"),
    ("datareporting.healthreport.uploadEnabled", "false"),
    ("datareporting.policy.dataSubmissionEnabled", "false"),
    ("extensions.getAddons.cache.enabled", "false"),
    ("extensions.installDistroAddons", "false"),
    ("extensions.systemAddon.update.enabled", "false"),
    ("extensions.update.enabled", "false"),
    ("identity.fxaccounts.enabled", "false"),
    ("media.gmp-manager.updateEnabled", "false"),
    ("media.sanity-test.disabled", "true"),
    ("toolkit.telemetry.enabled", "false"),
    ("app.update.disabledForTesting", "true"),
    ("app.update.enabled", "false"),
    ("app.normandy.enabled", "false"),
    ("services.settings.server", r#""http://127.0.0.1:9/""#),
    // Nothing is shown at the start, and nothing is asked.
    ("browser.startup.page", "0"),
    ("browser.startup.homepage", r#""about:blank""#),
    ("browser.startup.homepage_override.mstone", r#""ignore""#),
    ("browser.newtabpage.enabled", "false"),
    ("browser.newtabpage.activity-stream.feeds.system.topstories", "false"),
    ("browser.pagethumbnails.capturing_disabled", "true"),
    ("browser.sessionstore.resume_from_crash", "false"),
    ("browser.shell.checkDefaultBrowser", "false"),
    ("browser.tabs.unloadOnLowMemory", "false"),
    ("dom.ipc.reportProcessHangs", "false"),
    ("startup.homepage_welcome_url", r#""about:blank""#),
    ("startup.homepage_welcome_url.additional", r#""""#),
    ("toolkit.startup.max_resumed_crashes", "-1"),
];

/// Writes its settings. All of Firefox but its pages is led to `own_port`.
///
/// # Errors
/// When they cannot be written.
pub fn write_profile(folder: &Path, own_port: u16) -> std::io::Result<()> {
    let mut text = format!("user_pref(\"network.proxy.socks_port\", {own_port});\n");
    for (name, value) in SETTINGS {
        let _ = writeln!(text, "user_pref(\"{name}\", {value});");
    }
    let folder = folder.join("profile");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("user.js"), text)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    #[serde(default)]
    user_context: String,
    #[serde(default)]
    context: String,
}

/// A window or a frame.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Opened {
    context: Text,
    parent: Text,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthRequired {
    is_blocked: bool,
    request: Asked,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked {
    request: Text,
}

/// The page's own window, once it is known.
type Own = Arc<Mutex<Option<String>>>;

/// Nothing that a page does may hold it up until somebody does something about it.
fn react(event: &Event<'_>, own: &Own) -> Option<Command> {
    match event.method {
        // A server that asks for credentials has answered.
        "network.authRequired" => {
            let asked = event.params::<AuthRequired>().filter(|asked| asked.is_blocked)?.request.request;
            Some(Command::new("network.continueWithAuth", json!({"request": asked, "action": "cancel"})))
        }
        // Windows that it opens are closed.
        "browsingContext.contextCreated" => {
            let created = event.params::<Opened>().filter(|created| created.parent.is_empty())?;
            let opened = own.lock().as_ref().is_some_and(|own| **own != *created.context);
            opened.then(|| Command::new("browsingContext.close", json!({"context": created.context})))
        }
        _ => None,
    }
}

pub struct Firefox {
    pub connection: Arc<Connection>,
    own: Own,
}

impl Firefox {
    /// The other value is its version.
    ///
    /// # Errors
    /// When there is no connection, when it does not lead to the browser that answers on this pipe, or when there is no
    /// session.
    pub async fn open(
        port: u16,
        browser: &ParentPipe,
        sink: Arc<EventSink>,
        within: Duration,
    ) -> anyhow::Result<(Self, String)> {
        #[derive(Deserialize)]
        struct New {
            capabilities: Capabilities,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Capabilities {
            browser_version: String,
        }
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("no connection to Firefox")?;
        stream.set_nodelay(true)?;
        let (socket, _) = tokio_tungstenite::client_async(format!("ws://127.0.0.1:{port}/session"), stream).await?;
        // A server sends nothing before it is asked, so that nothing of the channel is lost here.
        let stream = socket.into_inner();
        // What a browser prints may be of another's making, and so may be what listens there. It has answered, so that its end
        // of the connection has an owner.
        match browser.owns(port, stream.local_addr()?.port()).await {
            Some(true) => {}
            Some(false) => bail!("port {port}, on which it is said to listen, is another process's"),
            None => bail!("its supervisor does not answer"),
        }
        let own = Own::default();
        let of_page = Arc::clone(&own);
        let connection = Connection::open(stream, Framing::WebSocket, move |notice| {
            sink.deliver(&notice);
            let Notice::Event(event) = notice else { return vec![] };
            react(&event, &of_page).into_iter().collect()
        });
        // A dialogue of a page must not hold it up.
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "unhandledPromptBehavior": {"default": "dismiss", "beforeUnload": "accept"},
        }}});
        let new: New = connection.call(Command::new("session.new", wanted), within).await?;
        // No other request waits for this program.
        let asks = Command::new("network.addIntercept", json!({"phases": ["authRequired"]}));
        connection.call::<IgnoredAny>(asks, within).await?;
        Ok((Self { connection: Arc::new(connection), own }, new.capabilities.browser_version))
    }

    /// A user context of a page's own, with a window in it: what is in a background tab is not painted.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn prepare(&self, proxy_port: u16, verify_tls: bool) -> Result<Prepared, CommandError> {
        let call = |method, params| self.connection.call::<IgnoredAny>(Command::new(method, params), PROMPT);
        let wanted = json!({
            "acceptInsecureCerts": !verify_tls,
            "proxy": {"proxyType": "manual", "socksProxy": format!("127.0.0.1:{proxy_port}"), "socksVersion": 5,
                      "noProxy": []},
        });
        let made: Created = self.connection.call(Command::new("browser.createUserContext", wanted), PROMPT).await?;
        let user = made.user_context;
        let window = Command::new("browsingContext.create", json!({"type": "window", "userContext": user}));
        let denied = json!({"downloadBehavior": {"type": "denied"}, "userContexts": [user]});
        let (made, _, _) = tokio::try_join!(
            self.connection.call::<Created>(window, PROMPT),
            call("session.subscribe", json!({"events": EVENTS, "userContexts": [user]})),
            call("browser.setDownloadBehavior", denied)
        )?;
        let (width, height) = VIEWPORT;
        let view = json!({"context": made.context, "viewport": {"width": width, "height": height}});
        call("browsingContext.setViewport", view).await?;
        // Nothing has been loaded in it yet that could open others.
        *self.own.lock() = Some(made.context.clone());
        Ok(Prepared { context: user, page: made.context, session: String::new(), verify_tls })
    }

    /// # Errors
    /// See [`CommandError`].
    pub async fn configure(&self, prepared: &Prepared, request: &Request) -> Result<(), CommandError> {
        if request.headers.is_empty() {
            return Ok(());
        }
        let headers = request.headers.iter();
        let headers = headers.map(|(name, value)| json!({"name": name, "value": {"type": "string", "value": value}}));
        let wanted = json!({"headers": headers.collect::<Value>(), "userContexts": [prepared.context]});
        self.connection.call::<IgnoredAny>(Command::new("network.setExtraHeaders", wanted), PROMPT).await.map(drop)
    }

    pub async fn navigate(&self, prepared: &Prepared, url: &str) -> Answer {
        let wanted = json!({"context": prepared.page, "url": url, "wait": "none"});
        self.connection.send(Command::new("browsingContext.navigate", wanted)).await
    }

    /// Runs a script in a world of its own; the text that it gives, or the promise of one.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn evaluate(&self, prepared: &Prepared, script: &str) -> Result<String, CommandError> {
        #[derive(Deserialize)]
        struct Evaluated {
            result: RemoteValue,
        }
        #[derive(Deserialize)]
        struct RemoteValue {
            #[serde(default)]
            value: Text,
        }
        let target = json!({"context": prepared.page, "sandbox": WORLD});
        let wanted = json!({"expression": script, "target": target, "awaitPromise": true});
        let evaluated: Evaluated = self.connection.call(Command::new("script.evaluate", wanted), ASK).await?;
        Ok(evaluated.result.value.0)
    }

    /// The picture in base64.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn screenshot(&self, prepared: &Prepared) -> Result<String, CommandError> {
        #[derive(Deserialize)]
        struct Captured {
            data: String,
        }
        let wanted = json!({"context": prepared.page, "origin": "viewport", "format": {"type": "image/png"}});
        let taken: Captured =
            self.connection.call(Command::new("browsingContext.captureScreenshot", wanted), PROMPT).await?;
        Ok(taken.data)
    }

    /// Ends all of a page.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn forget(&self, used: &Prepared) -> Result<(), CommandError> {
        let gone = json!({"userContext": used.context});
        self.connection.call::<IgnoredAny>(Command::new("browser.removeUserContext", gone), ASK).await?;
        *self.own.lock() = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};

    use super::*;

    #[test]
    fn the_port_is_found_in_what_it_prints() {
        assert_eq!(listens("WebDriver BiDi listening on ws://127.0.0.1:41003"), Some(41003));
        assert_eq!(listens("WebDriver BiDi listening on ws://localhost:43417"), Some(43417));
        assert_eq!(listens("*** You are running in headless mode."), None);
    }

    /// A WebSocket server in this process, which is taken for a browser when this process is below the supervisor.
    #[tokio::test]
    async fn only_the_browsers_own_server_gets_commands() {
        let own = rustix::process::getpid();
        let parent = super::super::processes::parent_of(own).expect("a parent");
        for (supervisor, is_browser) in [(parent, true), (own, false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let port = listener.local_addr().expect("an address").port();
            let server = tokio::spawn(async move {
                let (stream, _) = listener.accept().await.expect("a connection");
                let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
                let asked = socket.next().await?.ok()?.into_text().ok()?.to_string();
                let answer = r#"{"type":"success","id":1,"result":{"capabilities":{"browserVersion":"128.0"}}}"#;
                socket.send(answer.into()).await.ok()?;
                let _ = socket.next().await;
                socket.send(r#"{"type":"success","id":2,"result":{"intercept":"1"}}"#.into()).await.ok()?;
                let _ = socket.next().await;
                Some(asked)
            });
            let (pipe, theirs) = ParentPipe::pair().expect("a pipe");
            std::thread::spawn(move || super::super::supervisor::answer_questions(theirs, supervisor));
            let sink = Arc::new(EventSink::new(super::super::Kind::Firefox));
            let opened = Firefox::open(port, &pipe, sink, Duration::from_secs(10)).await;
            if is_browser {
                assert_eq!(opened.map(|(_, version)| version).expect("a browser"), "128.0");
                assert!(server.await.expect("served").is_some_and(|asked| asked.contains("session.new")));
            } else {
                let error = opened.map(drop).expect_err("another process").to_string();
                assert!(error.contains("another process"), "{error}");
                assert_eq!(server.await.expect("served"), None, "it was asked nothing");
            }
        }
    }
}
