//! `browser_request`: a page as a browser loads it, with every request and the web vitals.

mod entry;
mod har;
mod result;

use std::collections::BTreeMap;

use result::BrowserResult;
use scouter_sdk::headers::{HeaderValue, from_object};
use scouter_sdk::options::add_comment;
use scouter_sdk::prelude::*;

struct BrowserRequest;

/// Maximum size of a screenshot, so that its base64 text fits into a result.
const SCREENSHOT_BYTES: u32 = 300 << 10;

/// Options of a page load.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// URL of the page; http when it has no scheme.
    #[schemars(length(min = 1, max = 8192))]
    url: String,
    /// Browser: chrome or firefox.
    #[serde(default = "driver")]
    #[schemars(length(min = 1, max = 32))]
    driver: String,
    /// Headers of every request of the page, to every host: an object.
    #[serde(default)]
    headers: BTreeMap<String, HeaderValue>,
    /// Accept certificates that do not verify.
    #[serde(default)]
    ignore_ssl: bool,
    /// Screenshot of the visible part of the page, 1280 by 720: png (as base64) or none.
    #[serde(default)]
    screenshot: Screenshot,
    /// Return the load as HAR 1.2 too.
    #[serde(default)]
    har: bool,
    /// Milliseconds for the load, 100–60000, without the start of a browser.
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

impl Probe for BrowserRequest {
    type Options = Options;
    type Result = BrowserResult;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Loads a page in Chrome or Firefox and reports every request, its phases and the web vitals";

    fn run(options: Options) -> Result<BrowserResult, Error> {
        let navigation = navigation(&options)?;
        let page = browser::load(&navigation).map_err(|error| load_error(&options, error))?;
        unavailable(&page)?;
        let mut comment = None;
        if options.screenshot == Screenshot::Png && page.screenshot.is_none() {
            let text = format!(
                "There is no screenshot: none could be taken, or it has more than {} KiB.",
                SCREENSHOT_BYTES >> 10
            );
            add_comment(&mut comment, &text);
        }
        let har = options.har.then(|| har::of(&page));
        Ok(BrowserResult::new(driver_name(navigation.browser), &options.url, page, har, comment))
    }

    fn message(result: &BrowserResult) -> Option<String> {
        result.not_loaded.clone()
    }
}

fn navigation(options: &Options) -> Result<browser::Navigation, Error> {
    let browser = match options.driver.to_ascii_lowercase().as_str() {
        "chrome" => browser::BrowserName::Chrome,
        "firefox" => browser::BrowserName::Firefox,
        _ => return Err(format!("Provided driver of '{}' is not supported.", options.driver).into()),
    };
    Ok(browser::Navigation {
        browser,
        url: url::with_scheme(&options.url),
        headers: from_object(&options.headers),
        verify_tls: !options.ignore_ssl,
        timeout_ms: options.timeout_ms,
        screenshot_bytes: if options.screenshot == Screenshot::Png { SCREENSHOT_BYTES } else { 0 },
    })
}

fn driver_name(browser: browser::BrowserName) -> &'static str {
    match browser {
        browser::BrowserName::Chrome => "chrome",
        browser::BrowserName::Firefox => "firefox",
    }
}

fn load_error(options: &Options, error: browser::BrowserError) -> Error {
    match error {
        browser::BrowserError::Invalid(reason) => {
            let requested = url::with_scheme(&options.url);
            let reason = reason.replace(&requested, &url::without_password(&requested));
            format!("Provided request is not allowed: {reason}.").into()
        }
        browser::BrowserError::Unavailable(reason) => reason.into(),
        browser::BrowserError::Crashed(reason) => not_loaded(&options.url, &reason).into(),
    }
}

/// A failure of this host, which is no outcome of the test.
fn unavailable(page: &browser::Page) -> Result<(), Error> {
    let document = page.exchanges.iter().find(|exchange| exchange.role == browser::Role::Document);
    match document.and_then(|exchange| exchange.failure.as_ref()) {
        Some(failure) if failure.kind == browser::FailureKind::Unavailable => Err(failure.reason.clone().into()),
        _ => Ok(()),
    }
}

/// The message of the first version.
fn not_loaded(url: &str, reason: &str) -> String {
    let url = url::without_password(url);
    format!("Provided webpage of '{url}' failed to load due to the following reason: {reason}")
}

scouter_sdk::export!(BrowserRequest);

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;

    fn options(options: Value) -> Result<Options, String> {
        testing::options::<BrowserRequest>(options)
    }

    #[test]
    fn only_the_url_is_required() {
        let navigation = navigation(&options(json!({"url": "a.example"})).expect("valid")).expect("valid");
        let expected = browser::Navigation {
            browser: browser::BrowserName::Chrome,
            url: "http://a.example".into(),
            headers: vec![],
            verify_tls: true,
            timeout_ms: 60_000,
            screenshot_bytes: 0,
        };
        assert_eq!(navigation, expected);
        assert!(options(json!({})).is_err());
    }

    #[test]
    fn options_reach_the_browser() {
        let all = json!({"url": "a.example/?next=http://x", "driver": "Firefox", "headers": {"X-N": 5}, "ignore_ssl": true,
            "screenshot": "png", "timeout_ms": 100});
        let navigation = navigation(&options(all).expect("valid")).expect("valid");
        assert_eq!((navigation.browser, navigation.verify_tls), (browser::BrowserName::Firefox, false));
        assert_eq!(navigation.url, "http://a.example/?next=http://x");
        assert_eq!(navigation.headers, [http::Header { name: "X-N".into(), value: "5".into() }]);
        assert_eq!((navigation.timeout_ms, navigation.screenshot_bytes), (100, 300 << 10));
    }

    #[test]
    fn options_are_checked() {
        for (all, valid) in [
            (json!({"url": ""}), false),
            (json!({"url": "x", "timeout_ms": 99}), false),
            (json!({"url": "x", "timeout_ms": 60_001}), false),
            (json!({"url": "x", "screenshot": "jpeg"}), false),
            (json!({"url": "x", "headers": ["a: b"]}), false),
            (json!({"url": "x", "har": true}), true),
        ] {
            assert_eq!(options(all.clone()).is_ok(), valid, "{all}");
        }
    }

    #[test]
    fn an_unknown_driver_is_an_error() {
        let error = navigation(&options(json!({"url": "x", "driver": "safari"})).expect("valid")).expect_err("refused");
        assert_eq!(error.to_string(), "Provided driver of 'safari' is not supported.");
    }

    #[test]
    fn errors_of_the_browser_have_the_messages_of_the_first_version() {
        use browser::BrowserError as E;
        let options = options(json!({"url": "http://user:secret@a.example/"})).expect("valid");
        for (error, message) in [
            (
                E::Invalid("'http://user:secret@a.example/' is not a URL".into()),
                "Provided request is not allowed: 'http://user:***@a.example/' is not a URL.",
            ),
            (E::Unavailable("no browser is installed".into()), "no browser is installed"),
            (
                E::Crashed("it exited".into()),
                "Provided webpage of 'http://user:***@a.example/' failed to load due to the following reason: it exited",
            ),
        ] {
            assert_eq!(load_error(&options, error).to_string(), message);
        }
    }

    #[test]
    fn a_failure_of_this_host_is_an_error() {
        let failed = |kind| {
            let failure = browser::Failure { kind, reason: "no port".into() };
            let document = browser::Exchange { failure: Some(failure), ..result::samples::document() };
            let page = browser::Page { exchanges: vec![document], ..result::samples::page() };
            unavailable(&page).err().map(|error| error.to_string())
        };
        assert_eq!(failed(browser::FailureKind::Unavailable).as_deref(), Some("no port"));
        assert_eq!(failed(browser::FailureKind::Timeout), None);
    }
}
