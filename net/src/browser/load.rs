//! One page, from a fresh user context to its end.

use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::bidi::{Bidi, BidiError};
use super::collector::{Collector, Entry, REQUESTS};
use super::gate::{self, Door, Record, Visit};
use super::session::Session;
use super::{BrowserError, Exchange, Failure, FailureKind, Header, Kind, Page, Request, Vitals, errors};

/// Commands that any browser answers at once, on a busy machine too.
const PROMPT: Duration = Duration::from_secs(5);
/// A page's own script may be in the way of these.
const ASK: Duration = Duration::from_secs(3);
/// Nothing may be under way for so long, after the load event, for the page to be done.
const QUIET: Duration = Duration::from_millis(100);
/// Marks of the browser and of the gate differ by this at most for one moment, in milliseconds.
const CLOCK_MS: f64 = 5.0;
/// How often limits are looked at while nothing happens.
const TICK: Duration = Duration::from_millis(50);

/// For both.
const EVENTS: [&str; 4] =
    ["network.beforeRequestSent", "browsingContext.contextCreated", "browsingContext.load", "log.entryAdded"];
const FIREFOX_EVENTS: [&str; 3] = ["network.responseStarted", "network.responseCompleted", "network.fetchError"];
/// Instead of those: each event that nobody reads costs the browser time in which it could load the page.
const CHROME_EVENTS: [&str; 6] = [
    "goog:cdp.Network.responseReceivedExtraInfo",
    "goog:cdp.Network.requestWillBeSent",
    "goog:cdp.Network.responseReceived",
    "goog:cdp.Network.loadingFinished",
    "goog:cdp.Network.loadingFailed",
    "goog:cdp.Inspector.targetCrashed",
];

/// In a world of its own, where the page's scripts have changed nothing.
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
/// What observers are told of is told this much later.
const OBSERVED: Duration = Duration::from_millis(5);

/// How the waiting for a page ended.
enum End {
    /// The vitals have been asked for.
    Loaded(Option<Answer>),
    Failed(String),
    Stopped(Failure),
    Crashed,
    Gone,
}

/// A user context with a window, in which nothing has been loaded yet.
pub struct Prepared {
    user_context: String,
    context: String,
    verify_tls: bool,
    door: Door,
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
    match renewed(session, used).await {
        Ok(spare) => session.spare = Some(spare),
        Err(error) => tracing::warn!(browser = session.name, %error, "browser ended: it cannot be used again"),
    }
    session.spare.is_some()
}

async fn renewed(session: &Session, used: &Prepared) -> Result<Prepared, BidiError> {
    forget(session, used).await?;
    prepare(session, true).await
}

/// Ends all of a page. What the browser's own context keeps of it no other page sees, and nothing of it gets through the
/// gate any more.
async fn forget(session: &Session, used: &Prepared) -> Result<(), BidiError> {
    let bidi = &session.bidi;
    if used.door == Door::Page {
        let gone = json!({"userContext": used.user_context});
        return bidi.call("browser.removeUserContext", gone, ASK).await.map(drop);
    }
    let tree = bidi.call("browsingContext.getTree", json!({"maxDepth": 0}), ASK).await?;
    // Chrome ends with the last window of its own context.
    bidi.call("browsingContext.create", json!({"type": "tab", "userContext": used.user_context}), PROMPT).await?;
    let all = tree["contexts"].as_array().into_iter().flatten();
    for window in all.filter(|window| window["userContext"] == json!(used.user_context)) {
        let gone = json!({"context": window["context"], "promptUnload": false});
        bidi.call("browsingContext.close", gone, ASK).await?;
    }
    Ok(())
}

/// A user context for this request: the one that is ready, or another one.
pub async fn ready(session: &mut Session, request: &Request) -> Result<Prepared, BidiError> {
    while session.bidi.events.try_recv().is_ok() {}
    let prepared = match session.spare.take() {
        Some(spare) if spare.verify_tls == request.verify_tls => spare,
        other => {
            if let Some(spare) = other {
                forget(session, &spare).await?;
            }
            prepare(session, request.verify_tls).await?
        }
    };
    if !request.headers.is_empty() {
        let header = |(name, value): &Header| json!({"name": name, "value": {"type": "string", "value": value}});
        let headers: Vec<Value> = request.headers.iter().map(header).collect();
        let wanted = json!({"headers": headers, "userContexts": [prepared.user_context]});
        session.bidi.call("network.setExtraHeaders", wanted, PROMPT).await?;
    }
    Ok(prepared)
}

/// A user context of the page's own, with a window in it.
async fn prepare(session: &Session, verify_tls: bool) -> Result<Prepared, BidiError> {
    let bidi = &session.bidi;
    let no_proxy: &[&str] = if session.kind == Kind::Chrome { &["<-loopback>"] } else { &[] };
    let wanted = json!({
        "acceptInsecureCerts": !verify_tls,
        "proxy": {"proxyType": "manual", "socksProxy": format!("127.0.0.1:{}", session.gate.port), "socksVersion": 5,
                  "noProxy": no_proxy},
    });
    let made = bidi.call("browser.createUserContext", wanted, PROMPT).await?;
    let user_context = made["userContext"].as_str().unwrap_or_default().to_owned();
    let watched = watch_all(session, &user_context);
    // Firefox does not paint what is in a background tab.
    let window =
        json!({"type": if session.kind == Kind::Firefox { "window" } else { "tab" }, "userContext": user_context});
    let (made, ()) = tokio::try_join!(bidi.call("browsingContext.create", window, PROMPT), watched)?;
    let context = made["context"].as_str().unwrap_or_default().to_owned();
    watch(session, &context).await?;
    Ok(Prepared { user_context, context, verify_tls, door: Door::Page })
}

/// The window that a new Chrome opens by itself, in its own context: another one would take it 150 ms more. For its first
/// page only, and so as `verify_tls` says, as the session was made.
pub async fn first(session: &Session, verify_tls: bool) -> Result<Prepared, BidiError> {
    const OWN: &str = "default";
    let (tree, ()) =
        tokio::try_join!(session.bidi.call("browsingContext.getTree", json!({}), PROMPT), watch_all(session, OWN))?;
    let context = tree["contexts"][0]["context"].as_str().unwrap_or_default().to_owned();
    watch(session, &context).await?;
    Ok(Prepared { user_context: OWN.into(), context, verify_tls, door: Door::Own })
}

/// Asks for the events of a user context, and denies it downloads.
async fn watch_all(session: &Session, user_context: &str) -> Result<(), BidiError> {
    let mut events: Vec<&str> = EVENTS.into();
    match session.kind {
        Kind::Chrome => events.extend(CHROME_EVENTS),
        Kind::Firefox => events.extend(FIREFOX_EVENTS),
    }
    let contexts = json!([user_context]);
    let subscribe = session.bidi.call("session.subscribe", json!({"events": events, "userContexts": contexts}), PROMPT);
    let downloads = json!({"downloadBehavior": {"type": "denied"}, "userContexts": contexts});
    let downloads = session.bidi.call("browser.setDownloadBehavior", downloads, PROMPT);
    tokio::try_join!(subscribe, downloads).map(drop)
}

/// Gives a window its size, and asks to be told when its process crashes.
async fn watch(session: &Session, context: &str) -> Result<(), BidiError> {
    let bidi = &session.bidi;
    let view = json!({"context": context, "viewport": {"width": 1280, "height": 720}});
    let view = bidi.call("browsingContext.setViewport", view, PROMPT);
    let watch = async {
        if session.kind == Kind::Chrome {
            let own = bidi.call("goog:cdp.getSession", json!({"context": context}), PROMPT).await?;
            let command = json!({"method": "Inspector.enable", "params": {}, "session": own["session"]});
            bidi.call("goog:cdp.sendCommand", command, PROMPT).await?;
        }
        Ok(())
    };
    tokio::try_join!(view, watch).map(drop)
}

async fn visit(
    session: &mut Session,
    request: &Request,
    life: Duration,
    prepared: &Prepared,
) -> Result<(Page, bool), BrowserError> {
    let gate = std::sync::Arc::clone(&session.gate);
    let admitted = gate.admit(prepared.door);
    let context = prepared.context.as_str();
    let mut collector = Collector::new(session.kind, context);
    let began = gate::unix_ms();
    let mut end = wait(session, request, life, context, &mut collector, &admitted.visit).await;
    match &end {
        End::Gone => {
            return Err(BrowserError::Crashed(format!("{} died while it was loading the page", session.kind)));
        }
        End::Crashed => return Err(BrowserError::Crashed("The page's process crashed".into())),
        _ => {}
    }
    // What ends from now on is ended by us.
    let too_large = matches!(&end, End::Stopped(failure) if failure.kind == FailureKind::TooLarge);
    collector.stop(gate::unix_ms(), if too_large { errors::CUT } else { errors::STOPPED });
    let bidi = &session.bidi;
    let mut healthy = true;
    let answered = collector.entries.iter().any(|entry| entry.top && entry.exchange.status.is_some());
    if matches!(end, End::Stopped(_)) && answered {
        let stop = json!({"expression": "window.stop()", "target": {"context": context}, "awaitPromise": false});
        healthy = bidi.call("script.evaluate", stop, ASK).await.is_ok();
    }
    // There may be an error page of the browser's own, whose times are nobody's.
    let there = healthy && answered;
    let loaded = collector.loaded() && matches!(end, End::Loaded(_));
    let vitals = match &mut end {
        End::Loaded(asked) if there => match asked.take() {
            Some(asked) => vitals(asked).await,
            None => vitals(ask_vitals(bidi, context, OBSERVED).await).await,
        },
        End::Stopped(_) if there => vitals(ask_vitals(bidi, context, OBSERVED).await).await,
        _ => Vitals::default(),
    };
    let screenshot = if there && request.screenshot_bytes > 0 { screenshot(bidi, context).await } else { None };
    let console = std::mem::take(&mut collector.console);
    let (entries, left_out) = collector.finish(began);
    let (stopped, navigation_error) = match end {
        End::Stopped(failure) => (Some(failure), None),
        End::Failed(reason) => (None, Some(reason)),
        _ => (None, None),
    };
    let page = Page {
        browser: session.name.clone(),
        started_at_ms: began,
        exchanges: with_records(entries, &admitted.visit.records()),
        left_out,
        loaded,
        stopped,
        navigation_error,
        vitals,
        console,
        screenshot: screenshot.filter(|picture| picture.len() <= request.screenshot_bytes),
    };
    Ok((page, healthy))
}

/// Until the page is there, or will not be.
async fn wait(
    session: &mut Session,
    request: &Request,
    life: Duration,
    context: &str,
    collector: &mut Collector,
    visit: &Visit,
) -> End {
    let deadline = Instant::now() + request.timeout.min(life);
    let too_large = |limit: &str| {
        End::Stopped(Failure { kind: FailureKind::TooLarge, reason: format!("The page was stopped: {limit}") })
    };
    let wanted = json!({"context": context, "url": request.url.as_str(), "wait": "none"});
    // Not before the document is there does it answer; nobody waits for that.
    let mut answer = session.bidi.send("browsingContext.navigate", wanted).await;
    let (mut answered, mut failed) = (false, None);
    let mut quiet_since: Option<Instant> = None;
    let mut vitals = None;
    loop {
        let still = (collector.loaded() || failed.is_some()) && !collector.busy();
        if !still {
            (quiet_since, vitals) = (None, None);
        } else if quiet_since.get_or_insert_with(Instant::now).elapsed() >= QUIET {
            return failed.map_or(End::Loaded(vitals), End::Failed);
        } else if vitals.is_none() && failed.is_none() {
            // Their script is the same CPU's work as the page's: it is there before the quiet time ends.
            vitals = Some(ask_vitals(&session.bidi, context, QUIET.saturating_sub(OBSERVED)).await);
        }
        // At the end of the quiet time, not at some time after it.
        let wake = quiet_since.map_or(Instant::now() + TICK, |since| since + QUIET).min(deadline);
        tokio::select! {
            event = session.bidi.events.recv() => match event {
                Some(event) => {
                    // What breaks because of a limit of ours must not be told as the target's failure.
                    if let Some(limit) = visit.limit() {
                        return too_large(limit);
                    }
                    collector.event(&event);
                    if collector.crashed {
                        return End::Crashed;
                    }
                }
                None => return End::Gone,
            },
            navigated = &mut answer, if !answered => {
                answered = true;
                match navigated {
                    Ok(Ok(_)) => {}
                    Ok(Err(BidiError::Refused { message, .. })) => failed = Some(message),
                    Ok(Err(_)) | Err(_) => return End::Gone,
                }
            }
            () = session.keeper.ended() => return End::Gone,
            () = tokio::time::sleep_until(wake) => {}
        }
        if let Some(limit) = visit.limit() {
            return too_large(limit);
        }
        if collector.requests > REQUESTS {
            return too_large(&format!("it makes more than {REQUESTS} requests"));
        }
        if Instant::now() >= deadline {
            let reason = format!("The page did not load within {} ms", request.timeout.min(life).as_millis());
            return End::Stopped(Failure { kind: FailureKind::Timeout, reason });
        }
    }
}

type Answer = tokio::sync::oneshot::Receiver<Result<Value, BidiError>>;

/// Asks for the vitals as they will be after so long.
async fn ask_vitals(bidi: &Bidi, context: &str, after: Duration) -> Answer {
    let target = json!({"context": context, "sandbox": "scouter"});
    let script = VITALS.replace("WAIT", &after.as_millis().to_string());
    bidi.send("script.evaluate", json!({"expression": script, "target": target, "awaitPromise": true})).await
}

async fn vitals(answer: Answer) -> Vitals {
    let answer = tokio::time::timeout(ASK, answer).await;
    let answer = answer.ok().and_then(Result::ok).and_then(Result::ok);
    let text = answer.as_ref().and_then(|answer| answer["result"]["value"].as_str()).unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default()
}

async fn screenshot(bidi: &Bidi, context: &str) -> Option<Vec<u8>> {
    let wanted = json!({"context": context, "origin": "viewport", "format": {"type": "image/png"}});
    let taken = bidi.call("browsingContext.captureScreenshot", wanted, PROMPT).await.ok()?;
    base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str()?).ok()
}

/// The gate's part of each exchange: addresses, times of lookup and connection, causes of failure.
fn with_records(entries: Vec<Entry>, records: &[Record]) -> Vec<Exchange> {
    let mut used = vec![false; records.len()];
    let mut by_connection = std::collections::HashMap::new();
    let mut done = Vec::with_capacity(entries.len());
    for mut entry in entries {
        let same = |record: &Record| record.port == entry.port && record.host.eq_ignore_ascii_case(&entry.host);
        let at = entry.connect_at.unwrap_or(entry.started);
        let nearest = |wanted: &dyn Fn(usize, &Record) -> bool| {
            let fitting = records.iter().enumerate().filter(|(place, record)| same(record) && wanted(*place, record));
            fitting.min_by(|(_, a), (_, b)| (a.asked_ms - at).abs().total_cmp(&(b.asked_ms - at).abs()))
        };
        let mut cause = None;
        let unanswered = entry.error.is_some() && entry.exchange.status.is_none();
        // The two clocks are one, but a browser may round its marks.
        let since = |record: &Record| record.asked_ms + CLOCK_MS >= entry.started;
        let own = |place: usize, record: &Record| {
            !used[place] && if unanswered { since(record) } else { record.cause.is_none() }
        };
        if (unanswered || entry.connect_at.is_some())
            && let Some((place, record)) = nearest(&own)
        {
            used[place] = true;
            let timings = &mut entry.exchange.timings;
            (timings.dns, timings.connect) = (record.dns_ms, record.connect_ms);
            entry.exchange.remote = record.address.map(|address| (address, record.port));
            cause = record.cause.as_ref();
            if let Some(id) = entry.connection {
                by_connection.insert(id, place);
            }
        } else {
            entry.exchange.timings.connect = None;
            if entry.exchange.status.is_some() {
                // Over a connection that there was already.
                let known = entry.connection.and_then(|id| by_connection.get(&id)).map(|place| &records[*place]);
                let record = known.or_else(|| nearest(&|_, record| record.connect_ms.is_some()).map(|(_, r)| r));
                entry.exchange.remote = record.and_then(|record| Some((record.address?, record.port)));
            }
        }
        entry.exchange.failure = entry.error.as_deref().map(|word| errors::failure(word, cause));
        done.push(entry.exchange);
    }
    done
}
