//! One page, from a fresh context to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::collector::{Collector, REQUESTS};
use super::connection::CommandError;
use super::context::Prepared;
use super::message::Text;
use super::records::with_records;
use super::session::Session;
use super::socks::{self, CONNECTIONS, Visit};
use super::{BrowserError, Failure, FailureKind, Page, Request, Vitals, errors};

/// Nothing may be under way for so long, after the load event, for the page to be done. On the page's own clock: a browser
/// that this host does not schedule makes no requests either.
const QUIET: Duration = Duration::from_millis(100);
/// What is still under way so long after the load event is left open: it may be a long poll, which ends when the server
/// likes.
const QUIET_WITHIN: Duration = Duration::from_secs(2);
/// How often limits are looked at while nothing happens.
const TICK: Duration = Duration::from_millis(50);
/// Events of requests have arrived by then, on a busy machine too, when the browser makes no further connection.
const SETTLE: Duration = Duration::from_secs(5);

const VITALS: &str = r"new Promise(done => {
  const seen = {lcp: null, cls: null};
  const observe = (type, each) => {
    if (!(PerformanceObserver.supportedEntryTypes || []).includes(type)) return false;
    new PerformanceObserver(list => list.getEntries().forEach(each)).observe({type, buffered: true});
    return true;
  };
  observe('largest-contentful-paint', entry => { seen.lcp = entry.startTime; });
  if (observe('layout-shift', entry => { if (!entry.hadRecentInput) seen.cls += entry.value; })) seen.cls = 0;
  setTimeout(() => {
    const navigation = performance.getEntriesByType('navigation')[0] || {};
    const some = value => value > 0 ? value : null;
    const paint = performance.getEntriesByName('first-contentful-paint')[0];
    done(JSON.stringify({ttfb: some(navigation.responseStart), dcl: some(navigation.domContentLoadedEventEnd),
                         load: some(navigation.loadEventEnd), fcp: paint ? paint.startTime : null, ...seen}));
  }, WAIT);
})";
/// Delay of the notifications of performance observers.
const OBSERVED: Duration = Duration::from_millis(5);

/// How the waiting for a page ended.
enum End {
    /// With its vitals, when the page has told them.
    Loaded(Option<Vitals>),
    Failed(String),
    Stopped(Failure),
    Crashed,
    Gone,
}

/// Loads the page. The other value is whether the browser still answers.
pub async fn load(
    session: &mut Session,
    prepared: &Prepared,
    request: &Request,
    life: Duration,
) -> (Result<Page, BrowserError>, bool) {
    let page = visit(session, request, life, prepared).await;
    let healthy = page.as_ref().is_ok_and(|(_, healthy)| *healthy);
    (page.map(|(page, _)| page), healthy)
}

/// Forgets all that a page has left, and makes ready for the next one. False: the browser is of no further use.
pub async fn renew(session: &mut Session, used: &Prepared) -> bool {
    let renewed = async {
        session.forget(used).await?;
        session.prepare(true).await
    };
    match renewed.await {
        Ok(spare) => session.spare = Some(spare),
        Err(error) => tracing::warn!(browser = session.name, %error, "browser ended: it cannot be used again"),
    }
    session.spare.is_some()
}

async fn visit(
    session: &mut Session,
    request: &Request,
    life: Duration,
    prepared: &Prepared,
) -> Result<(Page, bool), BrowserError> {
    let proxy = Arc::clone(&session.proxy);
    let admitted = proxy.admit();
    session.sink.watch(Collector::new(&prepared.page), Arc::clone(&admitted.visit));
    let began = socks::unix_ms();
    let mut end = wait(session, request, life, prepared, &admitted.visit).await;
    let crashed = |reason: String| BrowserError::Crashed { reason, received: admitted.visit.received() };
    let mut collector = session.sink.take().ok_or_else(|| crashed("nothing was seen of it".into()))?;
    match &end {
        End::Gone => return Err(crashed(format!("{} died while it was loading the page", session.kind))),
        End::Crashed => return Err(crashed("The page's process crashed".into())),
        _ => {}
    }
    if matches!(&end, End::Loaded(_) | End::Failed(_)) {
        collector.leave_open();
    }
    // What ends from now on is ended by us.
    let too_large = matches!(&end, End::Stopped(failure) if failure.kind == FailureKind::TooLarge);
    collector.stop(socks::unix_ms(), if too_large { errors::CUT } else { errors::STOPPED });
    let mut healthy = true;
    let answered = collector.entries.iter().any(|entry| entry.top && entry.exchange.status.is_some());
    if matches!(end, End::Stopped(_)) && answered {
        healthy = session.evaluate(prepared, "window.stop(); ''".into()).await.is_ok();
    }
    // There may be an error page of the browser's own, whose times are ignored.
    let there = healthy && answered && !matches!(end, End::Failed(_));
    let loaded = collector.loaded() && matches!(end, End::Loaded(_));
    let vitals = match &mut end {
        End::Loaded(Some(vitals)) if there => std::mem::take(vitals),
        End::Loaded(None) | End::Stopped(_) if there => vitals(&mut ask_vitals(session, prepared, OBSERVED)).await,
        _ => Vitals::default(),
    };
    let taken = if there && request.screenshot_bytes > 0 { session.screenshot(prepared).await.ok() } else { None };
    let console = std::mem::take(&mut collector.console);
    let (stopped, navigation_error) = match end {
        End::Stopped(failure) => (Some(failure), None),
        End::Failed(reason) => (None, Some(reason)),
        _ => (None, None),
    };
    let visit = Arc::clone(&admitted.visit);
    let (browser, largest) = (session.name.clone(), request.screenshot_bytes);
    // A page of thousands of requests and connections, and a picture of megabytes, take a while.
    let page = tokio::task::spawn_blocking(move || {
        let (entries, left_out) = collector.finish(began);
        let screenshot = taken.and_then(|taken| base64::engine::general_purpose::STANDARD.decode(taken).ok());
        Page {
            browser,
            started_at_ms: began,
            exchanges: with_records(entries, &visit.records()),
            left_out,
            loaded,
            stopped,
            navigation_error,
            vitals,
            console,
            screenshot: screenshot.filter(|picture| picture.len() <= largest),
            received: visit.received(),
        }
    });
    let page = page.await.map_err(|_| crashed("its page could not be put together".into()))?;
    Ok((page, healthy))
}

/// What a navigation ends with: Chrome says in its answer why it failed, Firefox refuses the command.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Navigated {
    error_text: Text,
}

/// Until the page is there, or will not be.
async fn wait(session: &mut Session, request: &Request, life: Duration, prepared: &Prepared, visit: &Visit) -> End {
    let deadline = Instant::now() + request.timeout.min(life);
    let mut answer = session.navigate(prepared, request.url.as_str()).await;
    let (mut answered, mut failed) = (false, None);
    let mut quiet_since: Option<Instant> = None;
    let mut loaded_since: Option<Instant> = None;
    let (mut asked, mut told, mut seen) = (None, None, 0);
    let sink = Arc::clone(&session.sink);
    loop {
        let look = |page: &Collector| (page.loaded(), page.busy(), page.requests, page.crashed);
        let Some((loaded, busy, requests, crashed)) = sink.look(look) else { return End::Gone };
        if crashed {
            return End::Crashed;
        }
        if visit.unsupervised.load(Ordering::Relaxed) {
            return End::Gone;
        }
        if let Some(end) = over_limit(visit, requests) {
            return end;
        }
        if Instant::now() >= deadline {
            let reason = format!("The page did not load within {} ms", request.timeout.min(life).as_millis());
            return End::Stopped(Failure { kind: FailureKind::Timeout, reason });
        }
        let loaded_at = (loaded || failed.is_some()).then(|| *loaded_since.get_or_insert_with(Instant::now));
        loaded_since = loaded_at;
        if loaded_at.is_some_and(|at| at.elapsed() >= QUIET_WITHIN) {
            return failed.map_or(End::Loaded(told), End::Failed);
        }
        // A request may have begun and ended meanwhile.
        let still = loaded_at.is_some() && !busy && seen == requests;
        seen = requests;
        if !still {
            (quiet_since, asked, told) = (None, None, None);
        } else if quiet_since.get_or_insert_with(Instant::now).elapsed() >= QUIET
            && (told.is_some() || failed.is_some())
        {
            return failed.map_or(End::Loaded(told), End::Failed);
        } else if asked.is_none() && told.is_none() && failed.is_none() {
            // Its answer ends the quiet time: it comes behind the requests that the page has begun until then.
            asked = Some(ask_vitals(session, prepared, QUIET.saturating_sub(OBSERVED)));
        }
        // At the end of the quiet time, not at some time after it.
        let ends = quiet_since.map(|since| since + QUIET).filter(|at| *at > Instant::now());
        let wake = ends.unwrap_or_else(|| Instant::now() + TICK);
        let wake = loaded_at.map_or(wake, |at| wake.min(at + QUIET_WITHIN)).min(deadline);
        tokio::select! {
            () = sink.changed() => {}
            navigated = &mut answer, if !answered => {
                answered = true;
                match navigated {
                    Ok(Ok(result)) => {
                        failed = serde_json::from_str::<Navigated>(&result).unwrap_or_default().error_text.known();
                    }
                    Ok(Err(CommandError::Refused(error))) => failed = Some(error.message),
                    Ok(Err(_)) | Err(_) => return End::Gone,
                }
            }
            vitals = answered_vitals(&mut asked) => (asked, told) = (None, Some(vitals)),
            () = session.ended() => return End::Gone,
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}

/// Has the page passed a limit? Requests are looked at first: a page that makes too many of them makes as many connections.
fn over_limit(visit: &Visit, requests: usize) -> Option<End> {
    if visit.limit().is_none() {
        if requests > REQUESTS {
            visit.stop(format!("it makes more than {REQUESTS} requests"));
        } else if visit.crowded().is_some_and(|since| since > SETTLE) {
            visit.stop(format!("it makes more than {CONNECTIONS} connections"));
        }
    }
    let reason = format!("The page was stopped: {}", visit.limit()?);
    Some(End::Stopped(Failure { kind: FailureKind::TooLarge, reason }))
}

type AskedVitals = AbortOnDropHandle<Result<String, CommandError>>;

/// Asks for the vitals as they will be after so long.
fn ask_vitals(session: &Session, prepared: &Prepared, after: Duration) -> AskedVitals {
    let script = VITALS.replace("WAIT", &after.as_millis().to_string());
    AbortOnDropHandle::new(tokio::spawn(session.evaluate(prepared, script)))
}

/// The answer, if one is awaited; otherwise never. Cancel-safe.
async fn answered_vitals(asked: &mut Option<AskedVitals>) -> Vitals {
    match asked {
        Some(asked) => vitals(asked).await,
        None => std::future::pending().await,
    }
}

async fn vitals(asked: &mut AskedVitals) -> Vitals {
    let text = asked.await.ok().and_then(Result::ok).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}
