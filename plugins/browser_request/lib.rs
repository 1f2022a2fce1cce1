//! `browser_request`: what does a visitor of a page get, and when?

mod har;
mod result;

use std::collections::BTreeMap;

use result::Requested;
use scouter_sdk::options::add_comment;
use scouter_sdk::prelude::*;

struct BrowserRequest;

/// A picture with more bytes than this does not fit into a result.
const SCREENSHOT_BYTES: u32 = 300 << 10;

/// Options of a page load.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// URL of the page; http when it has no scheme.
    #[schemars(length(min = 1, max = 8192))]
    url: String,
    /// The browser: chrome or firefox.
    #[serde(default = "driver")]
    #[schemars(length(min = 1, max = 32))]
    driver: String,
    /// Headers that every request of the page carries, to whichever host it goes: an object.
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    /// Use certificates that do not verify.
    #[serde(default)]
    ignore_ssl: bool,
    /// A picture of the visible part of the page, 1280 by 720: png (as base64) or none.
    #[serde(default)]
    screenshot: Screenshot,
    /// Return everything as HAR 1.2 too.
    #[serde(default)]
    har: bool,
    /// Milliseconds until the page has loaded, 100–60000; starting a browser does not count.
    #[serde(default = "timeout_ms")]
    #[schemars(range(min = 100, max = 60_000))]
    timeout_ms: u32,
}

fn driver() -> String {
    "chrome".into()
}
fn timeout_ms() -> u32 {
    60_000
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Screenshot {
    #[default]
    None,
    Png,
}

/// Header values that are numbers are common in JSON written by hand.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Value {
    Text(String),
    Number(serde_json::Number),
}

impl Probe for BrowserRequest {
    type Options = Options;
    type Result = Requested;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str =
        "Loads a page in Chrome or Firefox and reports every request, its phases, and what a visitor notices";

    fn run(options: Options) -> Result<Requested, Refusal> {
        let (driver, kind) = match options.driver.to_ascii_lowercase().as_str() {
            "chrome" => ("chrome", browser::Kind::Chrome),
            "firefox" => ("firefox", browser::Kind::Firefox),
            _ => return Err(format!("Provided driver of '{}' is not supported.", options.driver).into()),
        };
        let url = if options.url.contains("://") { options.url.clone() } else { format!("http://{}", options.url) };
        let headers = options.headers.iter().map(|(name, value)| http::Header {
            name: name.clone(),
            value: match value {
                Value::Text(text) => text.clone(),
                Value::Number(number) => number.to_string(),
            },
        });
        let request = browser::Request {
            browser: kind,
            url: url.clone(),
            headers: headers.collect(),
            verify_tls: !options.ignore_ssl,
            timeout_ms: options.timeout_ms,
            screenshot_bytes: if options.screenshot == Screenshot::Png { SCREENSHOT_BYTES } else { 0 },
        };
        let page = browser::load(&request).map_err(|error| match error {
            browser::BrowserError::Invalid(reason) => format!("Provided request is not allowed: {reason}."),
            browser::BrowserError::Unavailable(reason) => reason,
            browser::BrowserError::Crashed(reason) => not_loaded(&url, &reason),
        })?;
        // The probing host's own trouble is no answer of the target's.
        let document = page.exchanges.iter().find(|exchange| exchange.role == browser::Role::Document);
        if let Some(failure) = document.and_then(|exchange| exchange.failure.as_ref())
            && failure.kind == browser::FailureKind::Unavailable
        {
            return Err(failure.reason.as_str().into());
        }
        let mut comment = None;
        if options.screenshot == Screenshot::Png && page.screenshot.is_none() {
            add_comment(
                &mut comment,
                &format!(
                    "There is no screenshot: none could be taken, or it has more than {} KiB.",
                    SCREENSHOT_BYTES >> 10
                ),
            );
        }
        let har = options.har.then(|| har::of(&page));
        Ok(Requested::new(driver, &url, page, har, comment))
    }

    fn message(result: &Requested) -> Option<String> {
        result.not_loaded.clone()
    }
}

/// In the words of the first version.
fn not_loaded(url: &str, reason: &str) -> String {
    format!("Provided webpage of '{url}' failed to load due to the following reason: {reason}")
}

scouter_sdk::export!(BrowserRequest);
