//! `browser`: one page in a real browser.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use scouter_net::browser::{self as engine, BrowserError as EngineError};
use url::Url;

use super::http::RESERVED;
use super::weight::{Weigh, plain, records};
use super::{RunState, wit};
use crate::sandbox::budget::{PACKET_BURST, PACKETS_OF, Target, Use};
use wit::browser::{
    BrowserError, BrowserName, ConsoleMessage, Exchange, Failure, FailureKind, Page, Role, Timings, Vitals,
};
use wit::http::Header;

const URL_BYTES: usize = 8192;
const HEADERS: usize = 100;
const SCREENSHOT_BYTES: u32 = 4 << 20;

fn checked(request: wit::browser::Navigation) -> Result<engine::Request, String> {
    if request.url.len() > URL_BYTES {
        return Err(format!("the URL is longer than {URL_BYTES} bytes"));
    }
    let url =
        Url::parse(&request.url).map_err(|error| format!("'{}' is not a URL: {error}", request.url.escape_debug()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("the URL's scheme '{}' is not http or https", url.scheme()));
    }
    if request.headers.len() > HEADERS {
        return Err(format!("more than {HEADERS} headers"));
    }
    let mut headers = vec![];
    for Header { name, value } in request.headers {
        let shown = name.escape_debug();
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("'{shown}' is not a header name"))?;
        if RESERVED.contains(&parsed) {
            return Err(format!("header '{shown}' cannot be set"));
        }
        HeaderValue::from_str(&value)
            .map_err(|_| format!("the value of header '{shown}' is not text of one line (ASCII)"))?;
        headers.push((name, value));
    }
    if !(100..=120_000).contains(&request.timeout_ms) {
        return Err(format!("timeout {} ms is not from 100 to 120000 ms", request.timeout_ms));
    }
    let screenshot = request.screenshot_bytes.min(SCREENSHOT_BYTES);
    Ok(engine::Request {
        kind: match request.browser {
            BrowserName::Chrome => engine::Kind::Chrome,
            BrowserName::Firefox => engine::Kind::Firefox,
        },
        url,
        headers,
        verify_tls: request.verify_tls,
        timeout: Duration::from_millis(request.timeout_ms.into()),
        screenshot_bytes: usize::try_from(screenshot).unwrap_or_default(),
    })
}

impl wit::browser::Host for RunState {
    async fn load(&mut self, request: wit::browser::Navigation) -> wasmtime::Result<Result<Page, BrowserError>> {
        self.call(&request)?;
        let loaded = self.loaded(request).await?;
        self.give(loaded)
    }
}

records! {
    wit::browser::Navigation { browser, url, headers, verify_tls, timeout_ms, screenshot_bytes }
    Failure { kind, reason }
    Timings { dns, connect, tls, send, wait, download, total }
    Exchange {
        role, url, url_bytes, method, destination, status, reason, version, headers, header_text_bytes, failure, open,
        remote_address, remote_port,
        attempts, started_ms, timings, header_bytes, body_bytes, mime_type,
    }
    Vitals {
        ttfb, first_contentful_paint, largest_contentful_paint, dom_content_loaded, load, layout_shift,
    }
    ConsoleMessage { level, text, url, line }
    Page {
        browser, started_at_ms, exchanges, omitted, loaded, stopped, navigation_error, vitals, console, screenshot,
    }
}
plain!(BrowserName, FailureKind, Role);

impl Weigh for BrowserError {
    fn referred(&self) -> usize {
        match self {
            Self::Invalid(reason) | Self::Unavailable(reason) | Self::Crashed(reason) => reason.referred(),
        }
    }
}

impl RunState {
    async fn loaded(&mut self, request: wit::browser::Navigation) -> wasmtime::Result<Result<Page, BrowserError>> {
        let request = match checked(request) {
            Ok(request) => request,
            Err(reason) => return Ok(Err(BrowserError::Invalid(reason))),
        };
        // The page's own requests to other hosts are the site's doing; the engine bounds them.
        let host = Target::Host(request.url.host_str().unwrap_or_default().to_owned());
        if let Err(exceeded) = self.take(Use { target: Some(host), names: 1, packets: PACKETS_OF.page }) {
            return Ok(Err(BrowserError::Unavailable(exceeded.to_string())));
        }
        // What a connection sends is paced by TCP: this paces how often pages are begun.
        self.pace(PACKET_BURST.get()).await;
        let services = self.services.clone();
        let load = Box::pin(async move { services.net.browsers.load(&request).await });
        let loaded = self.on_io(load).await?;
        let received = match &loaded {
            Ok(engine::Page { received, .. }) | Err(EngineError::Crashed { received, .. }) => *received,
            Err(EngineError::Unavailable(_)) => 0,
        };
        self.guest.budget.received(received, None);
        Ok(match loaded {
            Ok(page) => Ok(page.into()),
            Err(EngineError::Unavailable(reason)) => Err(BrowserError::Unavailable(reason)),
            Err(EngineError::Crashed { reason, .. }) => Err(BrowserError::Crashed(reason)),
        })
    }
}

impl From<engine::Page> for Page {
    fn from(page: engine::Page) -> Self {
        let vitals = page.vitals;
        Self {
            browser: page.browser,
            started_at_ms: page.started_at_ms,
            exchanges: page.exchanges.into_iter().map(Into::into).collect(),
            omitted: u32::try_from(page.left_out).unwrap_or(u32::MAX),
            loaded: page.loaded,
            stopped: page.stopped.map(Into::into),
            navigation_error: page.navigation_error,
            vitals: Vitals {
                ttfb: vitals.ttfb,
                first_contentful_paint: vitals.fcp,
                largest_contentful_paint: vitals.lcp,
                dom_content_loaded: vitals.dcl,
                load: vitals.load,
                layout_shift: vitals.cls,
            },
            console: page
                .console
                .into_iter()
                .map(|m| ConsoleMessage { level: m.level, text: m.text, url: m.url, line: m.line })
                .collect(),
            screenshot: page.screenshot,
        }
    }
}

impl From<engine::Exchange> for Exchange {
    fn from(exchange: engine::Exchange) -> Self {
        let t = exchange.timings;
        Self {
            role: match exchange.role {
                engine::Role::Document => Role::Document,
                engine::Role::Redirect => Role::Redirect,
                engine::Role::Resource => Role::Resource,
            },
            url: exchange.url,
            url_bytes: exchange.url_bytes as u64,
            method: exchange.method,
            destination: exchange.destination,
            status: exchange.status,
            reason: exchange.reason,
            version: exchange.version,
            headers: exchange.headers.into_iter().map(|(name, value)| Header { name, value }).collect(),
            header_text_bytes: exchange.header_text_bytes as u64,
            failure: exchange.failure.map(Into::into),
            open: exchange.open,
            remote_address: exchange.remote.map(|(address, _)| address.to_string()),
            remote_port: exchange.remote.map(|(_, port)| port),
            attempts: exchange.attempts.into_iter().map(Into::into).collect(),
            started_ms: exchange.started_ms,
            timings: Timings {
                dns: t.dns,
                connect: t.connect,
                tls: t.tls,
                send: t.send,
                wait: t.wait,
                download: t.download,
                total: t.total,
            },
            header_bytes: exchange.header_bytes,
            body_bytes: exchange.body_bytes,
            mime_type: exchange.mime_type,
        }
    }
}

impl From<engine::Failure> for Failure {
    fn from(failure: engine::Failure) -> Self {
        use engine::FailureKind as Kind;
        let kind = match failure.kind {
            Kind::Denied => FailureKind::Denied,
            Kind::Unavailable => FailureKind::Unavailable,
            Kind::Name => FailureKind::Name,
            Kind::Connect => FailureKind::Connect,
            Kind::Timeout => FailureKind::Timeout,
            Kind::Handshake => FailureKind::Handshake,
            Kind::Certificate => FailureKind::Certificate,
            Kind::EmptyReply => FailureKind::EmptyReply,
            Kind::Receive => FailureKind::Receive,
            Kind::Partial => FailureKind::Partial,
            Kind::InvalidResponse => FailureKind::InvalidResponse,
            Kind::Blocked => FailureKind::Blocked,
            Kind::TooLarge => FailureKind::TooLarge,
            Kind::Other => FailureKind::Other,
        };
        Self { kind, reason: failure.reason }
    }
}
