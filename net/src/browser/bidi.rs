//! WebDriver BiDi over a websocket: commands with their answers, and events in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::task::AbortOnDropHandle;

/// A screenshot of a large page fits; what a page can blow an event up to does not.
const MESSAGE_BYTES: usize = 24 << 20;
/// Events that wait to be looked at. A page with more is in no state to be measured.
const EVENTS: usize = 20_000;

#[derive(Debug, Clone, thiserror::Error)]
pub enum BidiError {
    /// The browser's own refusal: error code and words.
    #[error("{message} ({code})")]
    Refused { code: String, message: String },
    #[error("the browser is gone")]
    Gone,
    #[error("the browser did not answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
}

#[derive(Debug)]
pub struct Event {
    pub method: String,
    pub params: Value,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, BidiError>>>>>;

/// A connection to one browser.
pub struct Bidi {
    next: AtomicU64,
    waiting: Waiting,
    outgoing: mpsc::Sender<String>,
    pub events: mpsc::Receiver<Event>,
    _worker: AbortOnDropHandle<()>,
}

impl Bidi {
    /// # Errors
    /// When there is no connection.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let config =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES)).max_frame_size(Some(MESSAGE_BYTES));
        let (socket, _) = tokio_tungstenite::connect_async_with_config(url, Some(config), true).await?;
        let (outgoing, commands) = mpsc::channel(64);
        let (told, events) = mpsc::channel(EVENTS);
        let waiting = Waiting::default();
        let worker = tokio::spawn(work(socket, commands, told, Arc::clone(&waiting)));
        Ok(Self { next: AtomicU64::new(1), waiting, outgoing, events, _worker: AbortOnDropHandle::new(worker) })
    }

    /// Sends a command; its answer comes when it comes.
    pub async fn send(&self, method: &str, params: Value) -> oneshot::Receiver<Result<Value, BidiError>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, answer) = oneshot::channel();
        self.waiting.lock().insert(id, tell);
        let message = json!({"id": id, "method": method, "params": params}).to_string();
        if self.outgoing.send(message).await.is_err() {
            self.waiting.lock().remove(&id);
        }
        answer
    }

    /// A command and its answer.
    ///
    /// # Errors
    /// See [`BidiError`].
    pub async fn call(&self, method: &str, params: Value, within: Duration) -> Result<Value, BidiError> {
        match tokio::time::timeout(within, self.send(method, params).await).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(BidiError::Gone),
            Err(_) => Err(BidiError::Timeout(within)),
        }
    }
}

async fn work(
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    mut commands: mpsc::Receiver<String>,
    events: mpsc::Sender<Event>,
    waiting: Waiting,
) {
    let (mut sink, mut stream) = socket.split();
    loop {
        tokio::select! {
            command = commands.recv() => {
                let Some(command) = command else { break };
                if sink.send(Message::text(command)).await.is_err() {
                    break;
                }
            }
            message = stream.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    if !dispatch(&text, &events, &waiting) {
                        break;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
        }
    }
    // Whoever waits is told by its sender's end.
    waiting.lock().clear();
}

/// False: the events overflow.
fn dispatch(text: &str, events: &mpsc::Sender<Event>, waiting: &Waiting) -> bool {
    let Ok(Value::Object(mut message)) = serde_json::from_str(text) else { return true };
    let field = |message: &serde_json::Map<String, Value>, name: &str| {
        message.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    if let Some(id) = message.get("id").and_then(Value::as_u64) {
        let answer = if field(&message, "type") == "error" {
            Err(BidiError::Refused { code: field(&message, "error"), message: field(&message, "message") })
        } else {
            Ok(message.remove("result").unwrap_or_default())
        };
        if let Some(tell) = waiting.lock().remove(&id) {
            let _ = tell.send(answer);
        }
        return true;
    }
    let event = Event { method: field(&message, "method"), params: message.remove("params").unwrap_or_default() };
    events.try_send(event).is_ok()
}
