//! The requests of a test: the first one from the options, the next ones from redirects.

use scouter_sdk::options::add_comment;
use scouter_sdk::prelude::*;

use crate::{Options, Version};

const METHODS: [&str; 7] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];
/// Headers that every request has.
const DEFAULT_HEADERS: [(&str, &str); 2] =
    [("user-agent", concat!("scouter/", env!("CARGO_PKG_VERSION"))), ("accept", "*/*")];
/// Headers with credentials (RFC 9110, RFC 6265).
const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

pub fn first_request(options: &Options, comment: &mut Option<String>) -> Result<http::Request, Error> {
    let mut method = options.method.to_ascii_uppercase();
    if !METHODS.contains(&method.as_str()) {
        add_comment(comment, &format!("Provided HTTP method of '{}' is not supported. Using HEAD.", options.method));
        method = "HEAD".into();
    }
    let url = url::with_scheme(&options.url);
    let is_plain = url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    if options.version == Version::Http2 && is_plain {
        add_comment(comment, "HTTP/2 is negotiated over TLS (RFC 9113). Using HTTP/1.1.");
    }
    let mut headers = options.headers.list()?;
    for (name, value) in DEFAULT_HEADERS {
        if !headers.iter().any(|header| header.name.eq_ignore_ascii_case(name)) {
            headers.push(http::Header { name: name.into(), value: value.into() });
        }
    }
    Ok(http::Request {
        method,
        url,
        version: match options.version {
            Version::Http10 => http::Version::Http10,
            Version::Http11 => http::Version::Http11,
            Version::Http2 => http::Version::Http2,
            Version::Http3 => http::Version::Http3,
        },
        headers,
        body: options.body.clone().map(String::into_bytes),
        resolve: options.resolve.clone(),
        family: options.family.into(),
        verify_tls: !options.ignore_ssl,
        keep_body: options.keep_body,
        timeout_ms: options.timeout_ms,
    })
}

/// Turns the request into the one that follows a redirect (RFC 9110, section 15.4). A 303 leads to GET, and a 301 or 302
/// after POST does too, as in browsers. Credentials and the option `resolve` stay with the origin that they were given
/// for.
pub fn follow(request: &mut http::Request, status: u16, redirect: http::Redirect) {
    let becomes_get = match status {
        303 => request.method != "HEAD",
        301 | 302 => request.method == "POST",
        _ => false,
    };
    let name_of = |header: &http::Header| header.name.to_ascii_lowercase();
    if becomes_get {
        request.method = "GET".into();
        request.body = None;
        request.headers.retain(|header| !name_of(header).starts_with("content-"));
    }
    if !redirect.same_origin {
        request.headers.retain(|header| !CREDENTIALS.contains(&name_of(header).as_str()));
        request.resolve = None;
    }
    request.url = redirect.url;
}

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;
    use crate::HttpRequest;

    fn request(mut options: Value) -> (http::Request, Option<String>) {
        if options.get("url").is_none() {
            options["url"] = json!("http://a.example/");
        }
        let options = testing::options::<HttpRequest>(options).expect("valid");
        let mut comment = None;
        (first_request(&options, &mut comment).expect("a request"), comment)
    }

    #[test]
    fn a_url_without_scheme_is_http() {
        for (given, requested) in [
            ("a.example/?next=http://x", "http://a.example/?next=http://x"),
            ("https://a.example/", "https://a.example/"),
            ("http://user:p&w=d@a.example/", "http://user:p&w=d@a.example/"),
        ] {
            assert_eq!(request(json!({"url": given})).0.url, requested);
        }
    }

    #[test]
    fn an_unknown_method_is_head_with_a_comment() {
        for method in ["GET", "options", "Post", "PUT", "PATCH", "DELETE", "HEAD"] {
            let (request, comment) = request(json!({"method": method}));
            assert_eq!((request.method, comment), (method.to_uppercase(), None));
        }
        let (request, comment) = request(json!({"method": "TRACE"}));
        let text = "Provided HTTP method of 'TRACE' is not supported. Using HEAD.";
        assert_eq!((request.method.as_str(), comment.as_deref()), ("HEAD", Some(text)));
    }

    #[test]
    fn http_2_without_tls_has_a_comment() {
        let text = "HTTP/2 is negotiated over TLS (RFC 9113). Using HTTP/1.1.";
        for (url, comment) in [("HTTP://a.example", Some(text)), ("a.example", Some(text)), ("https://a.example", None)]
        {
            let (request, actual) = request(json!({"url": url, "version": "2"}));
            assert_eq!((request.version, actual.as_deref()), (http::Version::Http2, comment), "{url}");
        }
    }

    #[test]
    fn default_headers_are_added_unless_given() {
        let names = |options| {
            let (request, _) = request(options);
            request.headers.iter().map(|header| format!("{}: {}", header.name, header.value)).collect::<Vec<_>>()
        };
        assert_eq!(names(json!({})), ["user-agent: scouter/1.0.0", "accept: */*"]);
        let own = json!({"headers": {"User-Agent": "own", "X-A": "b"}});
        assert_eq!(names(own), ["User-Agent: own", "X-A: b", "accept: */*"]);
    }

    #[test]
    fn the_other_options_are_handed_on() {
        let (request, _) = request(json!({"body": "text", "resolve": "192.0.2.1", "family": "6", "ignore_ssl": true,
            "keep_body": 5, "timeout_ms": 70, "version": "3"}));
        assert_eq!((request.body.as_deref(), request.resolve.as_deref()), (Some(&b"text"[..]), Some("192.0.2.1")));
        assert_eq!((request.family, request.verify_tls, request.version), (Family::Ipv6, false, http::Version::Http3));
        assert_eq!((request.keep_body, request.timeout_ms), (5, 70));
    }

    #[test]
    fn methods_after_a_redirect_are_those_of_browsers() {
        for (status, before, after) in [
            (301, "GET", "GET"),
            (301, "POST", "GET"),
            (302, "POST", "GET"),
            (302, "PUT", "PUT"),
            (303, "PUT", "GET"),
            (303, "HEAD", "HEAD"),
            (307, "POST", "POST"),
            (308, "POST", "POST"),
        ] {
            let headers = json!({"Content-Type": "text/plain", "X-A": "b"});
            let (mut request, _) = request(json!({"method": before, "body": "text", "headers": headers}));
            follow(&mut request, status, http::Redirect { url: "http://a.example/b".into(), same_origin: true });
            let has_content = request.headers.iter().any(|header| header.name == "Content-Type");
            assert_eq!(request.method, after, "{status} {before}");
            assert_eq!((request.body.is_some(), has_content), (before == after, before == after), "{status} {before}");
            assert_eq!(request.url, "http://a.example/b");
        }
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        let headers = json!({"Authorization": "Bearer t", "cookie": "a=b", "Proxy-Authorization": "c", "X-A": "b"});
        for (same_origin, expected) in [(true, 6), (false, 3)] {
            let (mut request, _) = request(json!({"headers": headers, "resolve": "192.0.2.1"}));
            follow(&mut request, 302, http::Redirect { url: "http://b.example/".into(), same_origin });
            assert_eq!((request.headers.len(), request.resolve.is_some()), (expected, same_origin));
            assert!(request.headers.iter().any(|header| header.name == "X-A"));
        }
    }
}
