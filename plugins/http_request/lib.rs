//! `http_request`: what does a web server answer, and where does the time go?

mod result;

use std::collections::BTreeMap;

use result::{Failed, Requested, curl_code};
use scouter_sdk::options::{Family as FamilyOption, add_comment};
use scouter_sdk::prelude::*;

struct HttpRequest;

/// Options of a request.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// URL to request; http when it has no scheme.
    #[schemars(length(min = 1, max = 8192))]
    url: String,
    /// HTTP version: 1.0, 1.1, 2 or 3.
    #[serde(default)]
    version: Version,
    /// Address to use for the URL's host, instead of looking it up.
    #[schemars(length(min = 2, max = 45))]
    resolve: Option<String>,
    /// Request headers: an object, or a list of "Name: value".
    #[serde(default)]
    headers: Headers,
    /// GET, HEAD, OPTIONS, POST, PUT, PATCH or DELETE; HEAD for any other.
    #[serde(default = "method")]
    #[schemars(length(min = 1, max = 32))]
    method: String,
    /// Use a certificate that does not verify, and say so in the result.
    #[serde(default)]
    ignore_ssl: bool,
    /// Body of the request.
    #[schemars(length(max = 65_536))]
    body: Option<String>,
    /// Follow redirects.
    #[serde(default = "yes")]
    follow_redirects: bool,
    /// Redirects to follow, 0–20.
    #[serde(default = "max_redirects")]
    #[schemars(range(min = 0, max = 20))]
    max_redirects: usize,
    /// Milliseconds for the whole test, redirects included, 1–60000.
    #[serde(default = "timeout_ms")]
    #[schemars(range(min = 1, max = 60_000))]
    timeout_ms: u32,
    /// Which addresses of a name are used.
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

#[derive(Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
enum Version {
    #[serde(rename = "1.0")]
    Http10,
    #[default]
    #[serde(rename = "1.1")]
    Http11,
    #[serde(rename = "2")]
    Http2,
    #[serde(rename = "3")]
    Http3,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Headers {
    Object(BTreeMap<String, Value>),
    List(#[schemars(length(max = 100))] Vec<String>),
}

/// Header values that are numbers are common in JSON written by hand.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Value {
    Text(String),
    Number(serde_json::Number),
}

impl Default for Headers {
    fn default() -> Self {
        Self::List(vec![])
    }
}

impl Headers {
    fn list(&self) -> Result<Vec<http::Header>, Refusal> {
        let header = |name: &str, value: String| http::Header { name: name.to_owned(), value };
        match self {
            Self::Object(object) => Ok(object
                .iter()
                .map(|(name, value)| match value {
                    Value::Text(text) => header(name, text.clone()),
                    Value::Number(number) => header(name, number.to_string()),
                })
                .collect()),
            Self::List(lines) => lines
                .iter()
                .map(|line| {
                    let (name, value) = line.split_once(':').ok_or_else(|| {
                        Refusal(format!(
                            "Provided value of '{line}' for option 'headers' is not allowed. Expected: \"Name: value\"."
                        ))
                    })?;
                    Ok(header(name.trim(), value.trim().to_owned()))
                })
                .collect(),
        }
    }
}

/// What one address gave for one URL, on the way to the last one.
struct Hop {
    url: String,
    outcome: Result<http::Response, http::Failure>,
}

impl Probe for HttpRequest {
    type Options = Options;
    type Result = Requested;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Requests a URL over HTTP/1, 2 or 3 and reports the response, TLS and the time of each phase";

    fn run(options: Options) -> Result<Requested, Refusal> {
        let mut comment = None;
        let mut request = first_request(&options, &mut comment)?;
        let first_method = request.method.clone();
        let mut hops: Vec<Hop> = vec![];
        let mut left_ns = u64::from(options.timeout_ms) * 1_000_000;
        let too_many = loop {
            request.timeout_ms = u32::try_from(left_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX).max(1);
            let outcome = http::exchange(&request);
            let url = outcome.as_ref().map_or_else(|failure| failure.url.clone(), |response| response.url.clone());
            let spent =
                outcome.as_ref().map_or_else(|failure| failure.timings.total, |response| response.timings.total);
            left_ns = left_ns.saturating_sub(spent);
            let redirect =
                outcome.as_ref().ok().and_then(|response| Some((response.status, response.redirect.clone()?)));
            hops.push(Hop { url, outcome });
            match redirect {
                Some((status, to)) if options.follow_redirects => {
                    if hops.len() > options.max_redirects {
                        break true;
                    }
                    follow(&mut request, status, to);
                }
                _ => break false,
            }
        };
        // The probing host's own trouble is no answer of the target's, however far the test came.
        if let Some(Err(failure)) = hops.last().map(|hop| &hop.outcome)
            && failure.kind == http::FailureKind::Unavailable
        {
            return Err(failure.reason.as_str().into());
        }
        // What cannot be sent at all is the caller's mistake, not the target's answer.
        if let [Hop { outcome: Err(failure), .. }] = hops.as_slice() {
            match failure.kind {
                http::FailureKind::Invalid => {
                    return Err(format!("Provided request is not allowed: {}.", failure.reason).into());
                }
                http::FailureKind::Denied => return Err(failure.reason.as_str().into()),
                _ => {}
            }
        }
        let failure = too_many
            .then(|| Failed { code: 47, reason: format!("Maximum ({}) redirects followed", options.max_redirects) });
        Ok(Requested::new(&options, &first_method, &hops, failure, comment))
    }
}

fn first_request(options: &Options, comment: &mut Option<String>) -> Result<http::Request, Refusal> {
    let method = options.method.to_ascii_uppercase();
    let method = if ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"].contains(&method.as_str()) {
        method
    } else {
        add_comment(comment, &format!("Provided HTTP method of '{}' is not supported. Using HEAD.", options.method));
        "HEAD".into()
    };
    let url = if options.url.contains("://") { options.url.clone() } else { format!("http://{}", options.url) };
    let version = match options.version {
        Version::Http10 => http::Version::Http10,
        Version::Http11 => http::Version::Http11,
        Version::Http2 => {
            if url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://")) {
                add_comment(comment, "HTTP/2 is negotiated over TLS (RFC 9113). Using HTTP/1.1.");
            }
            http::Version::Http2
        }
        Version::Http3 => http::Version::Http3,
    };
    let mut headers = options.headers.list()?;
    for (name, value) in [("user-agent", concat!("scouter/", env!("CARGO_PKG_VERSION"))), ("accept", "*/*")] {
        if !headers.iter().any(|header| header.name.eq_ignore_ascii_case(name)) {
            headers.push(http::Header { name: name.into(), value: value.into() });
        }
    }
    Ok(http::Request {
        method,
        url,
        version,
        headers,
        body: options.body.clone().map(String::into_bytes),
        resolve: options.resolve.clone(),
        family: options.family.into(),
        verify_tls: !options.ignore_ssl,
        keep_body: options.keep_body,
        timeout_ms: options.timeout_ms,
    })
}

/// The request after a redirect (RFC 9110, 15.4): 303 asks with GET, and so do 301 and 302 after a POST, as every
/// browser does. Credentials stay where they were given (threat 36), and so does the address.
fn follow(request: &mut http::Request, status: u16, to: http::Redirect) {
    let becomes_get = match status {
        303 => request.method != "HEAD",
        301 | 302 => request.method == "POST",
        _ => false,
    };
    if becomes_get {
        request.method = "GET".into();
        request.body = None;
        request.headers.retain(|header| !header.name.to_ascii_lowercase().starts_with("content-"));
    }
    if !to.same_origin {
        let secret = ["authorization", "cookie", "proxy-authorization"];
        request.headers.retain(|header| !secret.contains(&header.name.to_ascii_lowercase().as_str()));
        request.resolve = None;
    }
    request.url = to.url;
}

/// curl's code for a failure.
fn code_of(failure: &http::Failure) -> u16 {
    curl_code(failure.kind)
}

scouter_sdk::export!(HttpRequest);
