//! Which connections are open, and what each waits for. A connection that waits for its client has a deadline, however
//! many bytes trickle in; and when there are too many connections, or too much is waiting to be written, the connection
//! that has waited longest for its client is closed. So a client that says nothing, or reads nothing, takes no place
//! from one that does.
//!
//! Responses wait to be written as bytes of their own, or as buffers that all responses share. Both count on their
//! connection, on which further requests wait meanwhile; only the former take memory for each response, and count among
//! what all connections hold. No request is refused for either: a connection whose client has read everything goes on,
//! and any other one waits for its own client.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Version;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often deadlines are looked at.
pub const TICK: Duration = Duration::from_millis(250);
/// A response that was not read for this long makes its connection one that can be closed for others.
const STALLED: Duration = Duration::from_secs(1);
/// Connections chosen in one pass over all, when there are too many.
const BATCH: usize = 64;

/// What connections may hold, and how long they may wait for their clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connections: usize,
    /// Connections beyond those, when all of those are busy: `/healthz` and `/readyz` are answered on them.
    pub reserve: usize,
    /// From accept, or from the first byte of a later request, to the end of the request's head. TLS is part of it.
    pub head: Duration,
    /// From one request to the next.
    pub idle: Duration,
    /// For a client to take what is written to it.
    pub unread: Duration,
    /// Bytes of responses waiting to be written on one connection; further requests on it wait.
    pub unwritten_each: usize,
    /// The same on all connections, without what responses share. Requests that began before may pass it.
    pub unwritten: usize,
}

impl Limits {
    #[must_use]
    pub fn new(connections: usize) -> Self {
        Self {
            connections,
            reserve: 32,
            head: Duration::from_secs(5),
            // Longer than proxies keep a connection to a server open without use (nginx: 60 s), so that they close first.
            idle: Duration::from_secs(75),
            unread: Duration::from_secs(30),
            unwritten_each: 1 << 20,
            unwritten: 64 << 20,
        }
    }
}

/// What a connection waits for, and since when. The order is the one in which connections are closed for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Waiting {
    /// For the rest of a request's head.
    Head(Instant),
    /// For the next request.
    Idle(Instant),
    /// For the client to read.
    Unread(Instant),
}

pub struct Connections {
    limits: Limits,
    open: Mutex<Open>,
    /// Bytes waiting to be written, without what responses share.
    unwritten: AtomicUsize,
    /// They are within the limit again.
    written: Notify,
}

#[derive(Default)]
struct Open {
    by_id: HashMap<u64, Arc<Connection>>,
    last: u64,
    /// Chosen to be closed when there are too many: what they waited for then.
    chosen: VecDeque<(Arc<Connection>, Waiting)>,
}

impl Open {
    /// Closes the connection that has waited longest for its client.
    fn evict(&mut self, now: Instant) {
        for _ in 0..2 {
            while let Some((connection, chosen_for)) = self.chosen.pop_front() {
                // It may have gone on, or away, since it was chosen.
                if connection.waiting() == Some(chosen_for) && self.by_id.remove(&connection.id).is_some() {
                    connection.close("too many connections", chosen_for);
                    return;
                }
            }
            // Looking at all of them for each new one would make a flood of connections cost its square.
            let ripe = |waiting: &Waiting| !matches!(waiting, Waiting::Unread(at) if now.duration_since(*at) < STALLED);
            let waiting = self.by_id.values().filter_map(|one| Some((one, one.waiting().filter(ripe)?)));
            let mut waiting: Vec<_> = waiting.map(|(one, waiting)| (Arc::clone(one), waiting)).collect();
            if waiting.len() > BATCH {
                waiting.select_nth_unstable_by_key(BATCH, |(_, waiting)| *waiting);
                waiting.truncate(BATCH);
            }
            waiting.sort_unstable_by_key(|(_, waiting)| *waiting);
            self.chosen = waiting.into();
        }
    }
}

/// One open connection.
pub struct Connection {
    id: u64,
    /// Beyond the limit: for `/healthz` and `/readyz` only.
    reserved: AtomicBool,
    state: Mutex<State>,
    close: CancellationToken,
    /// Less is waiting to be written.
    written: Notify,
}

struct State {
    version: Option<Version>,
    head_since: Option<Instant>,
    idle_since: Instant,
    /// The socket takes no more bytes.
    blocked_since: Option<Instant>,
    exchanges: Vec<ExchangeState>,
    last_exchange: u64,
    /// Bytes of responses waiting to be written.
    unwritten: usize,
    /// Those of them that are not shared.
    unshared: usize,
}

/// A request and its response.
struct ExchangeState {
    id: u64,
    /// Slices of the response that are on their way to the client.
    slices: usize,
    /// When the first of them was given, or the last one before them was taken.
    since: Instant,
}

impl Connections {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, open: Mutex::default(), unwritten: AtomicUsize::new(0), written: Notify::new() }
    }

    /// A place for a new connection, if need be that of one which waits for its client. None when every place is taken
    /// by a connection that the server works for.
    #[must_use]
    pub fn admit(self: &Arc<Self>, now: Instant) -> Option<Ticket> {
        let mut open = self.open.lock();
        if open.by_id.len() >= self.limits.connections {
            open.evict(now);
        }
        let reserved = open.by_id.len() >= self.limits.connections;
        if open.by_id.len() >= self.limits.connections + self.limits.reserve {
            return None;
        }
        open.last += 1;
        let connection = Arc::new(Connection::new(open.last, reserved, now));
        open.by_id.insert(connection.id, Arc::clone(&connection));
        Some(Ticket { connections: Arc::clone(self), connection })
    }

    /// Closes the connection that has waited longest for its client.
    pub fn evict(&self, now: Instant) {
        self.open.lock().evict(now);
    }

    /// Closes connections whose clients took too long. To be called every [`TICK`].
    pub fn sweep(&self, now: Instant) {
        self.relieve(now);
        for connection in self.open.lock().by_id.values() {
            let Some(waiting) = connection.waiting() else { continue };
            let (since, limit, why) = match waiting {
                Waiting::Head(at) => (at, self.limits.head, "no request in time"),
                Waiting::Idle(at) => (at, self.limits.idle, "idle"),
                Waiting::Unread(at) => (at, self.limits.unread, "the client does not read"),
            };
            if now.duration_since(since) >= limit {
                connection.close(why, waiting);
            }
        }
    }

    /// Closes connections whose clients do not read, those that have waited longest first, until no more is waiting to be
    /// written than is allowed.
    fn relieve(&self, now: Instant) {
        let excess = self.unwritten.load(Ordering::Relaxed).saturating_sub(self.limits.unwritten);
        if excess == 0 {
            return;
        }
        let open = self.open.lock();
        let (mut given_back, mut stalled) = (0, vec![]);
        for one in open.by_id.values() {
            let unshared = one.state.lock().unshared;
            match one.waiting() {
                // What a connection holds that is being closed is on its way back.
                _ if one.close.is_cancelled() => given_back += unshared,
                Some(Waiting::Unread(at)) if unshared > 0 && now.duration_since(at) >= STALLED => {
                    stalled.push((at, unshared, one));
                }
                _ => {}
            }
        }
        stalled.sort_unstable_by_key(|(at, ..)| *at);
        for (at, unshared, one) in stalled {
            if given_back >= excess {
                break;
            }
            one.close("too much waits to be written", Waiting::Unread(at));
            given_back += unshared;
        }
    }

    fn add(&self, connection: &Connection, bytes: usize, unshared: usize) {
        let mut state = connection.state.lock();
        state.unwritten += bytes;
        state.unshared += unshared;
        drop(state);
        // Who has not read for long enough is looked for once a tick: that takes a pass over all connections.
        self.unwritten.fetch_add(unshared, Ordering::Relaxed);
    }

    fn subtract(&self, connection: &Connection, bytes: usize, unshared: usize) {
        let before = self.unwritten.fetch_sub(unshared, Ordering::Relaxed);
        let mut state = connection.state.lock();
        state.unwritten -= bytes;
        state.unshared -= unshared;
        drop(state);
        connection.written.notify_waiters();
        let limit = self.limits.unwritten;
        if before > limit && before - unshared <= limit {
            self.written.notify_waiters();
        }
    }
}

/// A connection's place; free again when this is dropped.
pub struct Ticket {
    connections: Arc<Connections>,
    pub connection: Arc<Connection>,
}

impl Ticket {
    /// For what is asked on this connection; it takes no place.
    #[must_use]
    pub fn requests(&self) -> Requests {
        Requests { connections: Arc::clone(&self.connections), connection: Arc::clone(&self.connection) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.connections.open.lock().by_id.remove(&self.connection.id);
        // Requests that still wait for something need not go on.
        self.connection.close.cancel();
    }
}

#[derive(Clone)]
pub struct Requests {
    connections: Arc<Connections>,
    pub connection: Arc<Connection>,
}

impl Requests {
    /// A request has come: its head is complete. Where there is a place by now, a connection of the reserve is one like
    /// all others from here on: over HTTP/2 it would be refused for as long as it lasts.
    #[must_use]
    pub fn begin(&self, version: Version) -> Exchange {
        if self.connection.reserved() && self.connections.open.lock().by_id.len() <= self.connections.limits.connections
        {
            self.connection.reserved.store(false, Ordering::Relaxed);
        }
        let mut state = self.connection.state.lock();
        state.version = Some(version);
        state.head_since = None;
        state.last_exchange += 1;
        let id = state.last_exchange;
        state.exchanges.push(ExchangeState { id, slices: 0, since: Instant::now() });
        drop(state);
        Exchange { requests: self.clone(), id }
    }
}

impl Connection {
    fn new(id: u64, reserved: bool, now: Instant) -> Self {
        let state = State {
            version: None,
            head_since: Some(now),
            idle_since: now,
            blocked_since: None,
            exchanges: vec![],
            last_exchange: 0,
            unwritten: 0,
            unshared: 0,
        };
        Self {
            id,
            reserved: AtomicBool::new(reserved),
            state: Mutex::new(state),
            close: CancellationToken::new(),
            written: Notify::new(),
        }
    }

    /// Is it one for `/healthz` and `/readyz` only?
    #[must_use]
    pub fn reserved(&self) -> bool {
        self.reserved.load(Ordering::Relaxed)
    }

    /// What it waits for its client to do; None when the server has something to do for it.
    fn waiting(&self) -> Option<Waiting> {
        let state = self.state.lock();
        let given = state.exchanges.iter().filter(|exchange| exchange.slices > 0).map(|exchange| exchange.since);
        let unread = given.chain(state.blocked_since).min();
        if let Some(at) = unread {
            Some(Waiting::Unread(at))
        } else if !state.exchanges.is_empty() {
            None
        } else {
            Some(state.head_since.map_or(Waiting::Idle(state.idle_since), Waiting::Head))
        }
    }

    fn close(&self, why: &str, waiting: Waiting) {
        if !self.close.is_cancelled() {
            tracing::debug!(why, ?waiting, "closing a connection");
            self.close.cancel();
        }
    }

    /// Until it is to be closed.
    pub async fn closed(&self) {
        self.close.cancelled().await;
    }

    /// The socket gave bytes. Between requests of HTTP/1 they are the beginning of a head; HTTP/2 has other frames.
    pub fn received(&self) {
        let mut state = self.state.lock();
        let http1 = state.version.is_some_and(|version| version < Version::HTTP_2);
        if http1 && state.exchanges.is_empty() && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// The socket took bytes, or it did not.
    pub fn wrote(&self, any: bool) {
        let mut state = self.state.lock();
        if any {
            state.blocked_since = None;
        } else {
            state.blocked_since.get_or_insert_with(Instant::now);
        }
    }
}

/// One request and its response, until all of it has been taken.
pub struct Exchange {
    requests: Requests,
    id: u64,
}

impl Exchange {
    /// Waits while too much is waiting to be written: on this connection, or on all of them and this one too. False when
    /// the connection is closed.
    pub async fn turn(&self) -> bool {
        let Requests { connections, connection } = &self.requests;
        loop {
            let mut here = std::pin::pin!(connection.written.notified());
            let mut anywhere = std::pin::pin!(connections.written.notified());
            // From here on they are notified of every change.
            here.as_mut().enable();
            anywhere.as_mut().enable();
            if connection.close.is_cancelled() {
                return false;
            }
            let unwritten = connection.state.lock().unwritten;
            let within = unwritten <= connections.limits.unwritten_each
                && connections.unwritten.load(Ordering::Relaxed) <= connections.limits.unwritten;
            if unwritten == 0 || within {
                return true;
            }
            tokio::select! {
                () = here => {}
                () = anywhere => {}
                () = connection.closed() => {}
            }
        }
    }

    /// More bytes are waiting to be written; so many of them take memory for this response alone.
    pub fn add(&self, bytes: usize, unshared: usize) {
        self.requests.connections.add(&self.requests.connection, bytes, unshared);
    }

    /// Less is waiting to be written.
    pub fn subtract(&self, bytes: usize, unshared: usize) {
        self.requests.connections.subtract(&self.requests.connection, bytes, unshared);
    }

    /// A slice of the response is on its way to the client.
    pub fn given(&self) {
        self.change(|exchange| {
            if exchange.slices == 0 {
                exchange.since = Instant::now();
            }
            exchange.slices += 1;
        });
    }

    /// One of them has been taken.
    pub fn taken(&self) {
        self.change(|exchange| {
            exchange.since = Instant::now();
            exchange.slices -= 1;
        });
    }

    fn change(&self, how: impl FnOnce(&mut ExchangeState)) {
        let mut state = self.requests.connection.state.lock();
        if let Some(exchange) = state.exchanges.iter_mut().find(|exchange| exchange.id == self.id) {
            how(exchange);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.requests.connection.state.lock();
        state.exchanges.retain(|exchange| exchange.id != self.id);
        state.idle_since = Instant::now();
    }
}
