//! `http`: one exchange.

use std::time::Duration;

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::percent_decode_str;
use scouter_net::http::{self as engine, FailureKind, Phase, Timings, Version, limits};
use scouter_net::lag::DEGRADED;
use scouter_net::tls;
use url::Url;

use super::weight::{plain, records};
use super::{RunState, parse_address, wit};
use crate::sandbox::budget::{PACKETS_OF, Target, Use, segments};
use wit::http::{Certificate, Failure, Header, Redirect, Response, ResponseHead, TlsDetails};

const URL_BYTES: usize = 8192;
const KEEP_BODY: u32 = 128 << 10;
/// Headers that frame the message or lead it elsewhere: they are the host's to set.
pub(super) const RESERVED: [HeaderName; 7] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
];

fn checked(request: wit::http::Request) -> Result<engine::Request, String> {
    if request.url.len() > URL_BYTES {
        return Err(format!("the URL is longer than {URL_BYTES} bytes"));
    }
    let mut url =
        Url::parse(&request.url).map_err(|error| format!("'{}' is not a URL: {error}", request.url.escape_debug()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("the URL's scheme '{}' is not http or https", url.scheme()));
    }
    let method = Method::from_bytes(request.method.as_bytes())
        .map_err(|_| format!("'{}' is not an HTTP method", request.method.escape_debug()))?;
    if method == Method::CONNECT {
        return Err("method CONNECT is not a request for a resource".into());
    }
    let mut headers = HeaderMap::new();
    for Header { name, value } in request.headers {
        let shown = name.escape_debug();
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("'{shown}' is not a header name"))?;
        if RESERVED.contains(&parsed) {
            return Err(format!("header '{shown}' cannot be set"));
        }
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| format!("the value of header '{shown}' contains control characters"))?;
        headers.append(parsed, value);
    }
    if !url.username().is_empty() || url.password().is_some() {
        let (user, password) = (url.username(), url.password().unwrap_or_default());
        let pair: Vec<u8> = percent_decode_str(user).chain([b':']).chain(percent_decode_str(password)).collect();
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        if let (false, Ok(value)) = (headers.contains_key(header::AUTHORIZATION), HeaderValue::try_from(basic)) {
            headers.insert(header::AUTHORIZATION, value);
        }
        // They go into the header and nowhere else: not into results, not into logs.
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    let resolve = match request.resolve {
        Some(address) => {
            Some(parse_address(&address).map_err(|_| format!("'{}' is not an IP address", address.escape_debug()))?)
        }
        None => None,
    };
    if !(1..=120_000).contains(&request.timeout_ms) {
        return Err(format!("timeout {} ms is not from 1 to 120000 ms", request.timeout_ms));
    }
    if request.keep_body > KEEP_BODY {
        return Err(format!("{} bytes of the body to keep are over {KEEP_BODY}", request.keep_body));
    }
    Ok(engine::Request {
        method,
        url,
        version: match request.version {
            wit::http::Version::Http10 => Version::Http10,
            wit::http::Version::Http11 => Version::Http11,
            wit::http::Version::Http2 => Version::Http2,
            wit::http::Version::Http3 => Version::Http3,
        },
        body_limit: limits::BODY_BYTES,
        headers,
        body: request.body.map(Into::into),
        resolve,
        family: request.family.into(),
        verify_tls: request.verify_tls,
        keep_body: usize::try_from(request.keep_body).unwrap_or_default(),
        timeout: Duration::from_millis(request.timeout_ms.into()),
    })
}

impl wit::http::Host for RunState {
    async fn exchange(&mut self, request: wit::http::Request) -> wasmtime::Result<Result<Response, Failure>> {
        self.call(&request)?;
        let exchanged = self.exchanged(request).await?;
        self.give(exchanged)
    }
}

records! {
    Header { name, value }
    wit::http::Request {
        method, url, version, headers, body, resolve, family, verify_tls, keep_body, timeout_ms,
    }
    wit::http::Timings { dns, connect, tls, send, wait, download, total, host_delay, degraded }
    Certificate { subject, issuer, alternative_names, not_before, not_after, serial, sha256 }
    TlsDetails { version, cipher, alpn, verified, verify_error, chain }
    Redirect { url, same_origin }
    Response {
        url, status, reason, version, headers, redirect, remote_address, remote_port, attempts, timings, tls,
        header_bytes, body_bytes, body_limit, decoded_bytes, body,
    }
    ResponseHead { status, reason, version, headers, header_bytes }
    Failure { url, kind, reason, phase, remote_address, attempts, timings, tls, head, body_bytes }
}
plain!(wit::http::Version, wit::http::FailureKind, wit::http::Phase);

impl RunState {
    async fn exchanged(&mut self, request: wit::http::Request) -> wasmtime::Result<Result<Response, Failure>> {
        let given = request.url.clone();
        let refused = |kind, reason| {
            Ok(Err(Failure {
                url: given.clone(),
                kind,
                reason,
                phase: None,
                remote_address: None,
                attempts: vec![],
                timings: (&Timings::default()).into(),
                tls: None,
                head: None,
                body_bytes: 0,
            }))
        };
        let mut request = match checked(request) {
            Ok(request) => request,
            Err(reason) => return refused(wit::http::FailureKind::Invalid, reason),
        };
        if let Err(exceeded) = self.take(used(&request)) {
            return refused(wit::http::FailureKind::Unavailable, exceeded.to_string());
        }
        request.body_limit = request.body_limit.min(self.guest.budget.received_left());
        // A body is paced by TCP.
        self.pace(PACKETS_OF.exchange).await;
        let services = self.services.clone();
        let url = request.url.clone();
        let exchange = async move {
            let net = &services.net;
            engine::exchange(&net.resolver, &net.tls, &services.policy, &net.lag, request).await
        };
        let exchanged = self.on_io(Box::pin(exchange)).await?;
        let (received, from) = match &exchanged {
            Ok(response) => (response.received, Some(response.remote.ip())),
            Err(failure) => (failure.received, failure.remote),
        };
        self.guest.budget.received(received, from);
        Ok(exchanged.map(|response| in_wit(&url, response)).map_err(|failure| failed(&url, failure)))
    }
}

/// What an exchange uses: its host is a target before its addresses are known.
fn used(request: &engine::Request) -> Use {
    let literal = match request.url.host() {
        Some(url::Host::Ipv4(address)) => Some(address.into()),
        Some(url::Host::Ipv6(address)) => Some(address.into()),
        Some(url::Host::Domain(_)) | None => None,
    };
    let (target, names) = match request.resolve.or(literal) {
        Some(address) => (Target::Address(address.to_canonical()), 0),
        None => (Target::Host(request.url.host_str().unwrap_or_default().to_owned()), 1),
    };
    let body = request.body.as_ref().map_or(0, |body| segments(body.len()));
    Use { target: Some(target), names, packets: PACKETS_OF.exchange.saturating_add(body) }
}

fn in_wit(url: &Url, response: engine::Response) -> Response {
    let redirect = engine::redirect(url, response.head.status, &response.head.headers)
        .map(|to| Redirect { same_origin: to.origin() == url.origin(), url: to.into() });
    let head = ResponseHead::from(response.head);
    Response {
        url: url.to_string(),
        status: head.status,
        reason: head.reason,
        version: head.version,
        headers: head.headers,
        redirect,
        remote_address: response.remote.ip().to_string(),
        remote_port: response.remote.port(),
        attempts: response.attempts.into_iter().map(Into::into).collect(),
        timings: (&response.timings).into(),
        tls: response.tls.map(Into::into),
        header_bytes: head.header_bytes,
        body_bytes: response.body.transferred,
        body_limit: response.body.cut,
        decoded_bytes: response.body.decoded,
        body: response.body.kept,
    }
}

impl From<engine::Head> for ResponseHead {
    fn from(head: engine::Head) -> Self {
        let headers: Vec<Header> = head
            .headers
            .iter()
            .map(|(name, value)| Header {
                name: name.as_str().to_owned(),
                value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
            })
            .collect();
        let lines: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        // "HTTP/1.1 200 OK" and two line ends.
        let header_bytes = 13 + head.reason.len() + 2 + lines + 2;
        Self {
            status: head.status,
            reason: head.reason,
            version: match head.version {
                Version::Http10 => wit::http::Version::Http10,
                Version::Http11 => wit::http::Version::Http11,
                Version::Http2 => wit::http::Version::Http2,
                Version::Http3 => wit::http::Version::Http3,
            },
            headers,
            header_bytes: header_bytes as u64,
        }
    }
}

impl From<Phase> for wit::http::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Dns => Self::Dns,
            Phase::Connect => Self::Connect,
            Phase::Tls => Self::Tls,
            Phase::Send => Self::Send,
            Phase::Wait => Self::Wait,
            Phase::Download => Self::Download,
        }
    }
}

impl From<&Timings> for wit::http::Timings {
    fn from(timings: &Timings) -> Self {
        let ns = |length: Duration| u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Self {
            dns: timings.dns.map(ns),
            connect: timings.connect.map(ns),
            tls: timings.tls.map(ns),
            send: timings.send.map(ns),
            wait: timings.wait.map(ns),
            download: timings.download.map(ns),
            total: ns(timings.total),
            host_delay: ns(timings.host_delay),
            degraded: timings.degraded.then(|| DEGRADED.to_owned()),
        }
    }
}

impl From<tls::TlsDetails> for TlsDetails {
    fn from(details: tls::TlsDetails) -> Self {
        let chain = details.chain.into_iter().map(|c| Certificate {
            subject: c.subject,
            issuer: c.issuer,
            alternative_names: c.alternative_names,
            not_before: c.not_before,
            not_after: c.not_after,
            serial: c.serial,
            sha256: c.sha256,
        });
        Self {
            version: details.version,
            cipher: details.cipher,
            alpn: details.alpn,
            verified: details.verified,
            verify_error: details.verify_error,
            chain: chain.collect(),
        }
    }
}

fn failed(url: &Url, failure: engine::Failure) -> Failure {
    use wit::http::FailureKind as Kind;
    Failure {
        url: url.to_string(),
        kind: match failure.kind {
            FailureKind::Invalid => Kind::Invalid,
            FailureKind::Denied => Kind::Denied,
            FailureKind::Unavailable => Kind::Unavailable,
            FailureKind::Name => Kind::Name,
            FailureKind::Connect => Kind::Connect,
            FailureKind::Timeout => Kind::Timeout,
            FailureKind::Handshake => Kind::Handshake,
            FailureKind::Certificate => Kind::Certificate,
            FailureKind::EmptyReply => Kind::EmptyReply,
            FailureKind::Send => Kind::Send,
            FailureKind::Receive => Kind::Receive,
            FailureKind::TooLarge => Kind::TooLarge,
        },
        reason: failure.reason,
        phase: failure.phase.map(Into::into),
        remote_address: failure.remote.map(|address| address.to_string()),
        attempts: failure.attempts.into_iter().map(Into::into).collect(),
        timings: (&failure.timings).into(),
        tls: failure.tls.map(Into::into),
        head: failure.head.map(Into::into),
        body_bytes: failure.body_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str, headers: &[(&str, &str)]) -> Result<engine::Request, String> {
        checked(wit::http::Request {
            method: "GET".into(),
            url: url.into(),
            version: wit::http::Version::Http11,
            headers: headers.iter().map(|(n, v)| Header { name: (*n).into(), value: (*v).into() }).collect(),
            body: None,
            resolve: None,
            family: wit::net::Family::Any,
            verify_tls: true,
            keep_body: 0,
            timeout_ms: 1000,
        })
    }

    #[test]
    fn the_whole_password_is_sent_and_nothing_of_it_stays_in_the_url() {
        for (user_information, credentials) in [
            ("user:pass", "user:pass"),
            ("us%20er:pa%2Bss", "us er:pa+ss"),
            ("user:p&ss=w+rd", "user:p&ss=w+rd"),
            ("us&r:p%40ss%3A%2B%26", "us&r:p@ss:+&"),
            ("user:p:a@ss", "user:p:a@ss"),
            ("user", "user:"),
        ] {
            let sent = request(&format!("http://{user_information}@a.example/"), &[]).expect("valid");
            let basic = base64::engine::general_purpose::STANDARD.encode(credentials);
            assert_eq!(sent.headers[header::AUTHORIZATION], format!("Basic {basic}"), "{user_information}");
            assert_eq!(sent.url.as_str(), "http://a.example/");
        }
    }

    #[test]
    fn nothing_in_a_request_can_break_out_of_its_place() {
        for (name, value) in [
            ("X\r\nY", "v"),
            ("X Y", "v"),
            ("", "v"),
            ("X", "a\r\nEvil: b"),
            ("X", "a\nb"),
            ("X", "a\0b"),
            ("X:", "v"),
            ("Host", "evil"),
            ("content-length", "5"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "close"),
            ("upgrade", "h2c"),
        ] {
            assert!(request("http://example.com/", &[(name, value)]).is_err(), "{name:?}: {value:?}");
        }
        for url in ["file:///etc/passwd", "ftp://x/", "gopher://x/", "http://", "http:///", "javascript:1", "x", ""] {
            assert!(request(url, &[]).is_err(), "{url}");
        }
        let request = request("http://example.com/a\r\nEvil: b", &[]).expect("line ends are dropped by URL parsing");
        assert_eq!(request.url.as_str(), "http://example.com/aEvil:%20b");
    }
}
