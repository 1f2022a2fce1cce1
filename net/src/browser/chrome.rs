//! Chrome, driven by its own `DevTools` protocol over a pipe that no other process can use. chromedriver, and
//! fantoccini as its client, would bring WebDriver `BiDi`: by a script in a hidden page of its own, which costs each
//! browser a process, opens a port to every process on this host, and makes a cold load longer by half (medians of five on
//! a busy machine: 3.3 s, not 2.0).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use url::{Origin, Url};

use super::connection::{Answer, Command, CommandError, Connection, Notice};
use super::context::{ASK, PROMPT, Prepared, VIEWPORT};
use super::events::EventSink;
use super::framing::Framing;
use super::message::{Event, Text};
use super::socks::AT_ONCE;
use super::{Header, Request};

/// The world in which this program's own scripts run: what the page has changed of the language it does not see.
const WORLD: &str = "scouter";

/// The address bar is not visible and needs no suggestions; a URL is loaded as it is written, not first
/// with another scheme; and a page with WebRTC would have Chrome join the multicast group of mDNS.
const DISABLED: &str = "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable,OptimizationHints,MediaRouter,WebRtcHideLocalIpsWithMdns,\
                        Translate,NetworkTimeServiceQuerying,WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup";

const ARGUMENTS: [&str; 29] = [
    "--headless",
    "--remote-debugging-pipe",
    // Windows are opened for pages only.
    "--no-startup-window",
    "--enable-automation",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-client-side-phishing-detection",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-hang-monitor",
    "--disable-prompt-on-repost",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--password-store=basic",
    "--use-mock-keychain",
    "--mute-audio",
    "--window-size=1280,720",
    "--force-device-scale-factor=1",
    // Names are looked up by the proxy alone. Without the exception Chrome could not find the proxy.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    // Without this, addresses of loopback and link-local are reached past any proxy.
    "--proxy-bypass-list=<-loopback>",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    // Accounts, extensions and components are looked for where nothing is.
    "--gaia-url=http://127.0.0.1:9/",
    "--apps-gallery-update-url=http://127.0.0.1:9/",
    "--component-updater=url-source=http://127.0.0.1:9/",
];

/// The program and its arguments. All of Chrome but its pages is led to `own_port`. Descriptors 3 and 4, which Chrome reads
/// commands from and writes to, are its standard output: a socket.
pub fn command(browser: &str, folder: &Path, own_port: u16, sandbox: bool) -> Vec<String> {
    let start = ["/bin/sh", "-c", r#"exec "$0" "$@" 3<&1 4>&1 1>&2"#, browser].map(String::from);
    let mut command: Vec<String> = start.into_iter().chain(ARGUMENTS.map(String::from)).collect();
    command.push(DISABLED.into());
    command.push(format!("--user-data-dir={}", folder.join("profile").display()));
    command.push(format!("--proxy-server=socks5://127.0.0.1:{own_port}"));
    if !sandbox {
        command.push("--no-sandbox".into());
    }
    command
}

/// As many as one page may have at once: with fewer, Chrome would have a page's requests wait for each other longer than
/// it does for a user without a proxy, and their waiting would look like the target's.
const SOCKETS: usize = AT_ONCE;

/// Writes what Chrome has no arguments for.
///
/// # Errors
/// When it cannot be written.
pub fn write_profile(folder: &Path) -> std::io::Result<()> {
    let settings = json!({
        // No connections ahead of time: they would take the phases away from the request that they are for.
        "net": {"network_prediction_options": 2},
        "webrtc": {"ip_handling_policy": "disable_non_proxied_udp"},
        "search": {"suggest_enabled": false},
        "safebrowsing": {"enabled": false},
        "credentials_enable_service": false,
    });
    let state = json!({
        // A server that asks for credentials has answered. With a scheme that Chrome can speak it would ask in a dialogue, which
        // nobody answers; DevTools can do so only where every request of a page waits for this program.
        "auth": {"schemes": ""},
        "net": {"max_connections_per_proxy": SOCKETS},
    });
    let folder = folder.join("profile");
    std::fs::create_dir_all(folder.join("Default"))?;
    std::fs::write(folder.join("Default/Preferences"), settings.to_string())?;
    std::fs::write(folder.join("Local State"), state.to_string())
}

/// How the targets of the page are set up: its window, frames of other sites, workers. Each waits, when it begins, until
/// that is done. Windows that the page opens are closed.
#[derive(Default)]
struct Targets {
    /// The session of each window, while the page's own is not known.
    windows: Mutex<HashMap<String, String>>,
    /// The page's own window.
    own: Mutex<Option<String>>,
    attached: Notify,
    settings: Mutex<Settings>,
}

#[derive(Default)]
struct Settings {
    ignore_certificates: bool,
    headers: Map<String, Value>,
    /// The URL's credentials: the origin that they are for, and the value of the header.
    authorization: Option<(Origin, String)>,
}

impl Settings {
    fn commands(&self) -> [Command; 2] {
        [
            Command::new("Security.setIgnoreCertificateErrors", json!({"ignore": self.ignore_certificates})),
            Command::new("Network.setExtraHTTPHeaders", json!({"headers": self.headers})),
        ]
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Attached {
    session_id: Text,
    target_info: TargetInfo,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TargetInfo {
    target_id: Text,
    r#type: Text,
    /// Of a page that is rendered ahead of time.
    subtype: Text,
}

/// A request that waits for its credentials.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Paused {
    request_id: Text,
    request: PausedRequest,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PausedRequest {
    url: Text,
    headers: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Dialog {
    r#type: Text,
}

fn attach() -> Command {
    // Tabs contain windows, and Chrome's own user interface belongs to no page.
    let filter = json!([{"type": "browser", "exclude": true}, {"type": "tab", "exclude": true},
                        {"type": "browser_ui", "exclude": true}, {}]);
    Command::new(
        "Target.setAutoAttach",
        json!({"autoAttach": true, "waitForDebuggerOnStart": true, "flatten": true, "filter": filter}),
    )
}

impl Targets {
    fn react(&self, event: &Event<'_>) -> Vec<Command> {
        match event.method {
            "Target.attachedToTarget" => event.params().map(|attached| self.set_up(attached)).unwrap_or_default(),
            // A dialogue of a page must not hold it up.
            "Page.javascriptDialogOpening" => {
                let leaves = event.params::<Dialog>().is_some_and(|dialog| *dialog.r#type == *"beforeunload");
                let answer = Command::new("Page.handleJavaScriptDialog", json!({"accept": leaves}));
                event.session.map(|session| answer.to(session)).into_iter().collect()
            }
            "Fetch.requestPaused" => {
                let go_on = event.params().map(|paused| self.authorized(paused));
                go_on.zip(event.session).map(|(go_on, session)| go_on.to(session)).into_iter().collect()
            }
            _ => vec![],
        }
    }

    fn authorized(&self, paused: Paused) -> Command {
        let mut headers = paused.request.headers;
        let origin = Url::parse(&paused.request.url).ok().map(|url| url.origin());
        if let Some((_, value)) =
            self.settings.lock().authorization.as_ref().filter(|(own, _)| Some(own) == origin.as_ref())
        {
            headers.insert("Authorization".into(), value.clone().into());
        }
        let headers: Value = headers.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        Command::new("Fetch.continueRequest", json!({"requestId": paused.request_id, "headers": headers}))
    }

    fn set_up(&self, attached: Attached) -> Vec<Command> {
        let (session, target) = (attached.session_id, attached.target_info);
        let window = *target.r#type == *"page" && target.subtype.is_empty();
        if window && self.own.lock().as_ref().is_some_and(|own| **own != *target.target_id) {
            // What opened it waits for as long as it does.
            let go_on = Command::new("Runtime.runIfWaitingForDebugger", json!({})).to(&session);
            return vec![go_on, Command::new("Target.closeTarget", json!({"targetId": target.target_id}))];
        }
        let mut commands = vec![];
        let mut add = |method, params| commands.push(Command::new(method, params).to(&session));
        let document = matches!(&*target.r#type, "page" | "iframe");
        if document || target.r#type.ends_with("worker") {
            add("Network.enable", json!({}));
            add("Runtime.enable", json!({}));
        }
        if document {
            add("Page.enable", json!({}));
            add("Page.setLifecycleEventsEnabled", json!({"enabled": true}));
            add("Inspector.enable", json!({}));
        }
        commands.push(attach().to(&session));
        commands.extend(self.settings.lock().commands().map(|command| command.to(&session)));
        commands.push(Command::new("Runtime.runIfWaitingForDebugger", json!({})).to(&session));
        if window {
            self.windows.lock().insert(target.target_id.0, session.0);
            self.attached.notify_waiters();
        }
        commands
    }

    async fn session_of(&self, target: &str) -> Result<String, CommandError> {
        let wait = async {
            loop {
                let mut attached = std::pin::pin!(self.attached.notified());
                attached.as_mut().enable();
                if let Some(session) = self.windows.lock().get(target) {
                    return session.clone();
                }
                attached.await;
            }
        };
        tokio::time::timeout(PROMPT, wait)
            .await
            .map_err(|_| CommandError::Timeout { method: "Target.setAutoAttach", within: PROMPT })
    }
}

/// RFC 7617, of the credentials in the URL. A header of that name that was asked for comes first.
fn authorization(request: &Request) -> Option<(Origin, String)> {
    let asked = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    let (user, password) = (request.url.username(), request.url.password().unwrap_or_default());
    if asked || (user.is_empty() && password.is_empty()) {
        return None;
    }
    let decoded = [user, password].map(|part| percent_decode_str(part).collect::<Vec<u8>>()).join(&b':');
    let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(decoded));
    Some((request.url.origin(), value))
}

pub struct Chrome {
    pub connection: Arc<Connection>,
    targets: Arc<Targets>,
}

impl Chrome {
    /// The other value is its version.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn open(
        stream: UnixStream,
        sink: Arc<EventSink>,
        within: Duration,
    ) -> Result<(Self, String), CommandError> {
        #[derive(Deserialize)]
        struct Version {
            product: String,
        }
        let targets = Arc::<Targets>::default();
        let own = Arc::clone(&targets);
        let connection = Connection::open(stream, Framing::NulTerminated, move |notice| {
            sink.deliver(&notice);
            if let Notice::Event(event) = notice { own.react(&event) } else { vec![] }
        });
        let (version, _) = tokio::try_join!(
            connection.call::<Version>(Command::new("Browser.getVersion", json!({})), within),
            connection.call::<IgnoredAny>(attach(), within)
        )?;
        let version = version.product.rsplit('/').next().unwrap_or_default().to_owned();
        Ok((Self { connection: Arc::new(connection), targets }, version))
    }

    /// A browser context of a page's own, with a window in it.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn prepare(&self, proxy_port: u16) -> Result<Prepared, CommandError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Created {
            #[serde(default)]
            browser_context_id: String,
            #[serde(default)]
            target_id: String,
        }
        let proxy = format!("socks5://127.0.0.1:{proxy_port}");
        let made = json!({"disposeOnDetach": true, "proxyServer": proxy, "proxyBypassList": "<-loopback>"});
        let made: Created = self.connection.call(Command::new("Target.createBrowserContext", made), PROMPT).await?;
        let context = made.browser_context_id;
        let denied = json!({"behavior": "deny", "browserContextId": context});
        let window = json!({"url": "about:blank", "browserContextId": context});
        let (_, made) = tokio::try_join!(
            self.connection.call::<IgnoredAny>(Command::new("Browser.setDownloadBehavior", denied), PROMPT),
            self.connection.call::<Created>(Command::new("Target.createTarget", window), PROMPT)
        )?;
        let session = self.targets.session_of(&made.target_id).await?;
        // Nothing has been loaded in it yet that could open others.
        *self.targets.own.lock() = Some(made.target_id.clone());
        let (width, height) = VIEWPORT;
        let view = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        let view = Command::new("Emulation.setDeviceMetricsOverride", view).to(&session);
        self.connection.call::<IgnoredAny>(view, PROMPT).await?;
        Ok(Prepared { context, page: made.target_id, session, verify_tls: true })
    }

    /// # Errors
    /// See [`CommandError`].
    pub async fn configure(&self, prepared: &Prepared, request: &Request) -> Result<(), CommandError> {
        let headers = request.headers.iter().map(|(name, value): &Header| (name.clone(), json!(value))).collect();
        let authorization = authorization(request);
        if let Some((origin, _)) = &authorization {
            // Only there a request waits for this program, and only when there are credentials in the URL. The document's own
            // has them in it; what else looks like that is told apart when it waits.
            let origin = origin.ascii_serialization();
            let patterns: Value = [format!("{origin}/*"), origin.replacen("://", "://*@", 1) + "/*"]
                .iter()
                .map(|pattern| json!({"urlPattern": pattern}))
                .collect();
            let pause = Command::new("Fetch.enable", json!({"patterns": patterns}));
            self.connection.call::<IgnoredAny>(pause.to(&prepared.session), PROMPT).await?;
        }
        let settings = Settings { ignore_certificates: !request.verify_tls, headers, authorization };
        let [certificates, headers] = settings.commands().map(|command| command.to(&prepared.session));
        *self.targets.settings.lock() = settings;
        tokio::try_join!(
            self.connection.call::<IgnoredAny>(certificates, PROMPT),
            self.connection.call::<IgnoredAny>(headers, PROMPT)
        )
        .map(drop)
    }

    pub async fn navigate(&self, prepared: &Prepared, url: &str) -> Answer {
        self.connection.send(Command::new("Page.navigate", json!({"url": url})).to(&prepared.session)).await
    }

    /// Runs a script in a world of its own; the text that it gives, or the promise of one.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn evaluate(&self, prepared: &Prepared, script: &str) -> Result<String, CommandError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct World {
            execution_context_id: i64,
        }
        #[derive(Deserialize)]
        struct Evaluated {
            result: RemoteValue,
        }
        #[derive(Deserialize)]
        struct RemoteValue {
            #[serde(default)]
            value: Text,
        }
        let world = json!({"frameId": prepared.page, "worldName": WORLD});
        let world = Command::new("Page.createIsolatedWorld", world).to(&prepared.session);
        let world: World = self.connection.call(world, ASK).await?;
        let wanted = json!({"expression": script, "contextId": world.execution_context_id, "awaitPromise": true,
                            "returnByValue": true});
        let command = Command::new("Runtime.evaluate", wanted).to(&prepared.session);
        Ok(self.connection.call::<Evaluated>(command, ASK).await?.result.value.0)
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
        let command = Command::new("Page.captureScreenshot", json!({"format": "png"})).to(&prepared.session);
        Ok(self.connection.call::<Captured>(command, PROMPT).await?.data)
    }

    /// Ends all of a page.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn forget(&self, used: &Prepared) -> Result<(), CommandError> {
        let gone = json!({"browserContextId": used.context});
        self.connection.call::<IgnoredAny>(Command::new("Target.disposeBrowserContext", gone), ASK).await?;
        *self.targets.own.lock() = None;
        self.targets.windows.lock().clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn asks(url: &str, headers: &[(&str, &str)]) -> Request {
        Request {
            kind: Kind::Chrome,
            url: url.parse().expect("a URL"),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            verify_tls: true,
            timeout: PROMPT,
            screenshot_bytes: 0,
        }
    }

    #[test]
    fn credentials_of_a_url_are_for_its_origin() {
        let value = |url: &str, headers: &[(&str, &str)]| authorization(&asks(url, headers)).map(|(_, value)| value);
        // RFC 7617, section 2.
        let aladdin = Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned());
        assert_eq!(value("http://Aladdin:open%20sesame@a.test/", &[]), aladdin);
        assert_eq!(value("http://Aladdin:open%20sesame@a.test/", &[("authorization", "Bearer x")]), None);
        assert_eq!(value("http://a.test/", &[]), None);
        let targets = Targets::default();
        targets.settings.lock().authorization = authorization(&asks("http://u:p@a.test/", &[]));
        for (url, sent) in [
            ("http://u:p@a.test/", true),
            ("http://a.test/picture", true),
            ("http://b.test/@a.test/", false),
            ("http://u:p@b.test/@a.test/", false),
            ("https://a.test/", false),
        ] {
            let request = PausedRequest { url: Text(url.into()), headers: Map::new() };
            let go_on = targets.authorized(Paused { request_id: Text("1".into()), request });
            assert_eq!(format!("{go_on:?}").contains("Basic dTpw"), sent, "{url}");
        }
    }
}
