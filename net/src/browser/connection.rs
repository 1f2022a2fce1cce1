//! The control channel to one browser: commands with their answers, and events in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::framing::{Decoder, Framing, Incoming};
use super::message::{self, ErrorResponse, Event, Message};
use crate::metered::{Metered, Received};

/// Commands that wait to be written. A page that opens thousands of frames makes that many.
const COMMANDS: usize = 4096;
const CHUNK: usize = 64 << 10;
/// A longer message is read on a thread for such work: a page decides what is in it.
const LONG_BYTES: usize = 32 << 10;

#[derive(Debug, Clone, thiserror::Error)]
pub enum CommandError {
    #[error("{} ({})", .0.message, .0.code)]
    Refused(ErrorResponse),
    #[error("the browser is gone")]
    Gone,
    #[error("the browser did not answer {method} within {} s", .within.as_secs_f64())]
    Timeout { method: &'static str, within: Duration },
    #[error("the browser's answer is not the one that its protocol has")]
    Invalid,
}

/// A command to the browser.
#[derive(Debug, Clone)]
pub struct Command {
    method: &'static str,
    params: Value,
    /// The `DevTools` session that it is for.
    session: Option<String>,
}

impl Command {
    #[must_use]
    pub fn new(method: &'static str, params: Value) -> Self {
        Self { method, params, session: None }
    }

    #[must_use]
    pub fn to(self, session: &str) -> Self {
        Self { session: Some(session.to_owned()), ..self }
    }
}

/// A message that is no answer to a command.
#[derive(Debug)]
pub enum Notice<'a> {
    Event(Event<'a>),
    /// A message too long to be kept: its beginning, and its length.
    TooLong(&'a [u8], u64),
}

/// The result as JSON.
pub type Answer = oneshot::Receiver<Result<String, CommandError>>;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<String, CommandError>>>>>;

/// A connection to one browser; dropping it closes the channel.
pub struct Connection {
    framing: Framing,
    next: Arc<AtomicU64>,
    waiting: Waiting,
    outgoing: mpsc::Sender<Vec<u8>>,
    closed: CancellationToken,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Connection {
    /// `react` is called with every event, in order, before any later message is read. The commands that it returns are
    /// sent; their answers are ignored.
    pub fn open(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        framing: Framing,
        react: impl FnMut(Notice<'_>) -> Vec<Command> + Send + 'static,
    ) -> Self {
        let (from, mut to) = tokio::io::split(stream);
        let (outgoing, mut commands) = mpsc::channel::<Vec<u8>>(COMMANDS);
        let (waiting, next, closed) = (Waiting::default(), Arc::new(AtomicU64::new(1)), CancellationToken::new());
        // Two tasks: a browser that waits until it is read from reads nothing meanwhile.
        let write = async move {
            while let Some(bytes) = commands.recv().await {
                if to.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        };
        let reader = Reader {
            framing,
            next: Arc::clone(&next),
            waiting: Arc::clone(&waiting),
            outgoing: outgoing.clone(),
            react,
        };
        let over = closed.clone().drop_guard();
        let read = async move {
            let waiting = Arc::clone(&reader.waiting);
            // Any error is the end of the channel.
            let _ = reader.read(Metered::new(from, Received::default())).await;
            // In this order: later commands see that the channel is closed; earlier ones fail when their senders are
            // dropped.
            drop(over);
            waiting.lock().clear();
        };
        let tasks = [tokio::spawn(write), tokio::spawn(read)].map(AbortOnDropHandle::new);
        Self { framing, next, waiting, outgoing, closed, _tasks: tasks }
    }

    /// Sends a command; its answer comes when it comes.
    pub async fn send(&self, command: Command) -> Answer {
        let (sender, answer) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().insert(id, sender);
        if self.is_closed() || self.outgoing.send(encoded(self.framing, id, command)).await.is_err() {
            self.waiting.lock().remove(&id);
        }
        answer
    }

    /// A command and its answer.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn call<T>(&self, command: Command, within: Duration) -> Result<T, CommandError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (method, asked) = (command.method, Instant::now());
        let answer = tokio::time::timeout(within, self.send(command).await).await;
        tracing::trace!(method, took = ?asked.elapsed(), "command to a browser");
        match answer {
            Ok(Ok(Ok(result))) => parsed(result).await,
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(CommandError::Gone),
            Err(_) => Err(CommandError::Timeout { method, within }),
        }
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until the browser has closed it.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

async fn parsed<T: DeserializeOwned + Send + 'static>(result: String) -> Result<T, CommandError> {
    let parse = |result: &str| serde_json::from_str(result).map_err(|_| CommandError::Invalid);
    if result.len() <= LONG_BYTES {
        return parse(&result);
    }
    tokio::task::spawn_blocking(move || parse(&result)).await.map_err(|_| CommandError::Gone)?
}

fn encoded(framing: Framing, id: u64, command: Command) -> Vec<u8> {
    let mut message = json!({"id": id, "method": command.method, "params": command.params});
    if let Some(session) = command.session {
        message["sessionId"] = Value::String(session);
    }
    framing.encode(message.to_string())
}

struct Reader<R> {
    framing: Framing,
    next: Arc<AtomicU64>,
    waiting: Waiting,
    outgoing: mpsc::Sender<Vec<u8>>,
    react: R,
}

impl<R: FnMut(Notice<'_>) -> Vec<Command> + Send + 'static> Reader<R> {
    /// To the end of the channel.
    async fn read(mut self, mut from: impl AsyncRead + Unpin) -> std::io::Result<()> {
        let (mut decoder, mut chunk) = (Decoder::new(self.framing), vec![0; CHUNK]);
        loop {
            let count = from.read(&mut chunk).await?;
            if count == 0 {
                return Ok(());
            }
            let mut bytes = &chunk[..count];
            while let Some(incoming) = decoder.next(&mut bytes).map_err(std::io::Error::other)? {
                let open = match incoming {
                    Incoming::Message(message) if message.len() > LONG_BYTES => {
                        let message = decoder.take();
                        let read = tokio::task::spawn_blocking(move || {
                            let open = self.take(&Incoming::Message(&message));
                            (self, open)
                        });
                        let (reader, open) = read.await?;
                        self = reader;
                        open
                    }
                    incoming => self.take(&incoming),
                };
                if !open {
                    return Ok(());
                }
            }
        }
    }

    /// False: the browser closes the channel.
    fn take(&mut self, incoming: &Incoming<'_>) -> bool {
        match *incoming {
            Incoming::Message(bytes) => {
                message::read(bytes, |message| match message {
                    Message::Answer(id, answer) => {
                        self.answer(id, answer.map(ToOwned::to_owned).map_err(CommandError::Refused));
                    }
                    Message::Event(event) => self.notice(Notice::Event(event)),
                });
            }
            Incoming::TooLong { head, bytes } => match message::answers(head) {
                Some(id) => self.answer(id, Err(CommandError::Invalid)),
                None => self.notice(Notice::TooLong(head, bytes)),
            },
            Incoming::Ping(payload) => drop(self.outgoing.try_send(Framing::pong(payload))),
            Incoming::Close => return false,
        }
        true
    }

    fn answer(&self, id: u64, answer: Result<String, CommandError>) {
        if let Some(sender) = self.waiting.lock().remove(&id) {
            let _ = sender.send(answer);
        }
    }

    fn notice(&mut self, notice: Notice<'_>) {
        for command in (self.react)(notice) {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            // A browser that reads nothing more is not waited for here: whatever waits for its answers has a deadline.
            let _ = self.outgoing.try_send(encoded(self.framing, id, command));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One thread does all I/O; what a page logs must not stop it.
    #[tokio::test]
    async fn a_long_message_holds_up_nothing_else() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let (sender, mut events) = mpsc::unbounded_channel();
        let connection = Connection::open(ours, Framing::NulTerminated, move |notice| {
            if let Notice::Event(event) = notice {
                let thread = std::thread::current().id();
                let _ =
                    sender.send((event.method.to_owned(), event.params::<serde::de::IgnoredAny>().is_some(), thread));
            }
            vec![]
        });
        let nulls = vec!["null"; 1 << 20].join(",");
        let long = format!(r#"{{"method":"long","params":{{"args":[{nulls}]}}}}"#);
        assert!(long.len() > 5 << 20);
        let write = tokio::spawn(async move {
            for message in [r#"{"method":"before","params":{}}"#, &long, r#"{"method":"after","params":{}}"#] {
                theirs.write_all(message.as_bytes()).await.expect("written");
                theirs.write_all(&[0]).await.expect("written");
            }
            theirs
        });
        let mut seen = vec![];
        while seen.len() < 3 {
            seen.push(events.recv().await.expect("an event"));
        }
        let methods: Vec<_> = seen.iter().map(|(method, read, _)| (method.as_str(), *read)).collect();
        assert_eq!(methods, [("before", true), ("long", true), ("after", true)], "in order");
        let here = std::thread::current().id();
        assert_eq!([seen[0].2 == here, seen[1].2 == here, seen[2].2 == here], [true, false, true]);
        drop(write.await.expect("written"));
        let start = Instant::now();
        connection.closed().await;
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
