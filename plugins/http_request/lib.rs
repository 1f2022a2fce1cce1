//! `http_request`: the response of a web server, and the time of each phase.

mod curl;
mod request;
mod result;

use std::collections::BTreeMap;

use request::{first_request, follow};
use result::HttpResult;
use scouter_sdk::headers::{HeaderValue, from_object};
use scouter_sdk::options::FamilyOption;
use scouter_sdk::prelude::*;

struct HttpRequest;

/// Options of a request.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// URL; http when it has no scheme.
    #[schemars(length(min = 1, max = 8192))]
    url: String,
    /// HTTP version: 1.0, 1.1, 2 or 3.
    #[serde(default)]
    version: Version,
    /// Address to connect to instead of a lookup of the URL's host.
    #[schemars(length(min = 2, max = 45))]
    resolve: Option<String>,
    /// Request headers: an object, or a list of "Name: value".
    #[serde(default)]
    headers: Headers,
    /// GET, HEAD, OPTIONS, POST, PUT, PATCH or DELETE; HEAD for any other value.
    #[serde(default = "method")]
    #[schemars(length(min = 1, max = 32))]
    method: String,
    /// Accept a certificate that does not verify; the result says why it does not.
    #[serde(default)]
    ignore_ssl: bool,
    /// Body of the request.
    #[schemars(length(max = 65_536))]
    body: Option<String>,
    /// Follow redirects.
    #[serde(default = "yes")]
    follow_redirects: bool,
    /// Maximum number of redirects, 0–20.
    #[serde(default = "max_redirects")]
    #[schemars(range(min = 0, max = 20))]
    max_redirects: usize,
    /// Milliseconds for the whole test, including redirects, 1–60000.
    #[serde(default = "timeout_ms")]
    #[schemars(range(min = 1, max = 60_000))]
    timeout_ms: u32,
    /// Addresses of a name: any, 4 (IPv4) or 6 (IPv6).
    #[serde(default)]
    family: FamilyOption,
    /// Bytes of the response's body to return, 0–32768.
    #[serde(default)]
    #[schemars(range(min = 0, max = 32_768))]
    keep_body: u32,
}

fn method() -> String {
    "GET".into()
}
fn yes() -> bool {
    true
}
fn max_redirects() -> usize {
    10
}
fn timeout_ms() -> u32 {
    10_000
}

/// The versions have the spellings of clients that write them as numbers: JavaScript writes 1.0 as 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("enum" = ["1.0", "1", "1.1", "2", "2.0", "3", "3.0"]))]
enum Version {
    #[serde(rename = "1.0", alias = "1")]
    Http10,
    #[default]
    #[serde(rename = "1.1")]
    Http11,
    #[serde(rename = "2", alias = "2.0")]
    Http2,
    #[serde(rename = "3", alias = "3.0")]
    Http3,
}

#[derive(Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Headers {
    Object(BTreeMap<String, HeaderValue>),
    List(#[schemars(length(max = 100))] Vec<String>),
}

impl Default for Headers {
    fn default() -> Self {
        Self::List(vec![])
    }
}

impl Headers {
    fn list(&self) -> Result<Vec<http::Header>, Error> {
        let lines = match self {
            Self::Object(object) => return Ok(from_object(object)),
            Self::List(lines) => lines,
        };
        let header = |line: &String| {
            let (name, value) = line.split_once(':').ok_or_else(|| {
                Error::from(format!(
                    "Provided value of '{line}' for option 'headers' is not allowed. Expected: \"Name: value\"."
                ))
            })?;
            Ok(http::Header { name: name.trim().to_owned(), value: value.trim().to_owned() })
        };
        lines.iter().map(header).collect()
    }
}

/// One request of the test, and its outcome.
struct Exchange {
    method: String,
    outcome: Result<http::Response, http::Failure>,
}

impl Exchange {
    /// The redirect to follow, with its status.
    fn redirect(&self) -> Option<(u16, http::Redirect)> {
        let response = self.outcome.as_ref().ok()?;
        Some((response.status, response.redirect.clone()?))
    }
}

impl Probe for HttpRequest {
    type Options = Options;
    type Result = HttpResult;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Requests a URL over HTTP/1, 2 or 3 and reports the response, TLS and the time of each phase";

    fn run(options: Options) -> Result<HttpResult, Error> {
        let mut comment = None;
        let mut request = first_request(&options, &mut comment)?;
        let mut exchanges: Vec<Exchange> = vec![];
        let mut left_ns = u64::from(options.timeout_ms) * 1_000_000;
        let too_many_redirects = loop {
            request.timeout_ms = u32::try_from(left_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX).max(1);
            let exchange = Exchange { method: request.method.clone(), outcome: http::exchange(&request) };
            left_ns = left_ns.saturating_sub(exchange.timings().total);
            let redirect = exchange.redirect().filter(|_| options.follow_redirects);
            exchanges.push(exchange);
            match redirect {
                Some(_) if exchanges.len() > options.max_redirects => break true,
                Some((status, redirect)) => follow(&mut request, status, redirect),
                None => break false,
            }
        };
        refused(&options, &exchanges)?;
        Ok(HttpResult::new(&options, &exchanges, too_many_redirects, comment))
    }
}

/// Failures that are no outcome of the test: those of this host, and a first request that cannot or must not be sent.
fn refused(options: &Options, exchanges: &[Exchange]) -> Result<(), Error> {
    use http::FailureKind as Kind;
    let Some(Exchange { outcome: Err(failure), .. }) = exchanges.last() else { return Ok(()) };
    match failure.kind {
        Kind::Unavailable => Err(failure.reason.clone().into()),
        Kind::Denied if exchanges.len() == 1 => Err(failure.reason.clone().into()),
        Kind::Invalid if exchanges.len() == 1 => {
            let requested = url::with_scheme(&options.url);
            let reason = failure.reason.replace(&requested, &url::without_password(&requested));
            Err(format!("Provided request is not allowed: {reason}.").into())
        }
        _ => Ok(()),
    }
}

scouter_sdk::export!(HttpRequest);

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;

    fn options(options: Value) -> Result<Options, String> {
        testing::options::<HttpRequest>(options)
    }

    #[test]
    fn only_the_url_is_required() {
        let options = options(json!({"url": "a.example"})).expect("valid");
        assert_eq!((options.version, options.method.as_str(), options.ignore_ssl), (Version::Http11, "GET", false));
        assert_eq!((options.follow_redirects, options.max_redirects, options.timeout_ms), (true, 10, 10_000));
        assert_eq!((options.resolve, options.body, options.keep_body), (None, None, 0));
        assert!(options.headers.list().expect("valid").is_empty());
        assert!(options_error(json!({})).contains("\"url\" is a required property"));
    }

    fn options_error(all: Value) -> String {
        options(all).err().unwrap_or_default()
    }

    #[test]
    fn versions_have_several_spellings() {
        for (text, version) in [
            ("1.0", Version::Http10),
            ("1", Version::Http10),
            ("1.1", Version::Http11),
            ("2", Version::Http2),
            ("2.0", Version::Http2),
            ("3", Version::Http3),
            ("3.0", Version::Http3),
        ] {
            let options = options(json!({"url": "x", "version": text})).expect("valid");
            assert_eq!(options.version, version, "{text}");
        }
        for text in ["4", "1.2", "", "HTTP/2"] {
            assert!(options(json!({"url": "x", "version": text})).is_err(), "{text}");
        }
        let schema: Value = serde_json::from_str(&scouter_sdk::describe::<HttpRequest>().options_schema).expect("JSON");
        let version = &schema["properties"]["version"];
        assert_eq!((&version["type"], &version["default"]), (&json!("string"), &json!("1.1")), "{version}");
        assert_eq!(version["enum"].as_array().map(Vec::len), Some(7), "{version}");
    }

    #[test]
    fn ranges_are_in_the_schema() {
        for (name, min, max) in [("max_redirects", 0, 20), ("timeout_ms", 1, 60_000), ("keep_body", 0, 32_768)] {
            for (value, valid) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
                let all = json!({"url": "x", name: value});
                assert_eq!(options(all.clone()).is_ok(), valid, "{all}");
            }
        }
    }

    #[test]
    fn headers_are_an_object_or_a_list_of_lines() {
        let list = |headers: Value| {
            let options = options(json!({"url": "x", "headers": headers})).expect("valid");
            let list = options.headers.list().map_err(|error| error.to_string())?;
            Ok(list.into_iter().map(|header| format!("{}={}", header.name, header.value)).collect::<Vec<_>>())
        };
        assert_eq!(list(json!({"X-A": "b", "X-N": 5})), Ok(vec!["X-A=b".into(), "X-N=5".into()]));
        assert_eq!(list(json!(["x-a: b:c", " X-B :  d "])), Ok(vec!["x-a=b:c".into(), "X-B=d".into()]));
        let error = "Provided value of 'x-a' for option 'headers' is not allowed. Expected: \"Name: value\".";
        assert_eq!(list(json!(["x-a"])), Err(error.to_owned()));
    }

    #[test]
    fn only_a_first_request_that_was_not_sent_is_an_error() {
        use http::FailureKind as Kind;
        let all = options(json!({"url": "user:sec&ret@a.example:x"})).expect("valid");
        let failed = |kind, reason: &str| Exchange {
            method: "GET".into(),
            outcome: Err(http::Failure { kind, reason: reason.into(), ..result::samples::failure() }),
        };
        let error = |exchanges: &[Exchange]| refused(&all, exchanges).err().map(|error| error.to_string());
        let invalid = failed(Kind::Invalid, "'http://user:sec&ret@a.example:x' is not a URL: invalid port number");
        let message =
            "Provided request is not allowed: 'http://user:***@a.example:x' is not a URL: invalid port number.";
        assert_eq!(error(&[invalid]).as_deref(), Some(message));
        assert_eq!(error(&[failed(Kind::Denied, "refused by policy")]).as_deref(), Some("refused by policy"));
        assert_eq!(error(&[failed(Kind::Timeout, "too late")]), None);
        let redirected = Exchange { method: "GET".into(), outcome: Ok(result::samples::response()) };
        assert_eq!(error(&[redirected, failed(Kind::Denied, "refused by policy")]), None, "a redirect led there");
        let redirected = Exchange { method: "GET".into(), outcome: Ok(result::samples::response()) };
        assert_eq!(error(&[redirected, failed(Kind::Unavailable, "no port")]).as_deref(), Some("no port"));
        assert_eq!(error(&[]), None);
    }
}
