//! Chrome's events of websockets, which are not among those of other requests.

use serde::Deserialize;

use super::super::message::{Event, LongText, Text};
use super::chrome::{Clock, Response};
use super::{Collector, REQUESTS, RequestStart};

/// What has happened to a websocket.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Created,
    HandshakeRequest,
    HandshakeResponse,
    Error,
    Closed,
}

impl Step {
    fn of(method: &str) -> Option<Self> {
        Some(match method {
            "Network.webSocketCreated" => Self::Created,
            "Network.webSocketWillSendHandshakeRequest" => Self::HandshakeRequest,
            "Network.webSocketHandshakeResponseReceived" => Self::HandshakeResponse,
            "Network.webSocketFrameError" => Self::Error,
            "Network.webSocketClosed" => Self::Closed,
            _ => return None,
        })
    }
}

/// The fields of all of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WebSocket {
    request_id: Text,
    url: LongText,
    timestamp: f64,
    wall_time: f64,
    response: Option<Response>,
    error_message: Text,
}

/// None: another event.
pub(super) fn read(event: &Event<'_>) -> Option<(Step, Box<WebSocket>)> {
    Some((Step::of(event.method)?, Box::new(event.params()?)))
}

impl Collector {
    pub(super) fn websocket(&mut self, step: Step, socket: WebSocket) {
        match step {
            Step::Created => {
                if self.websockets.len() < REQUESTS {
                    self.websockets.insert(socket.request_id.0, socket.url);
                }
            }
            Step::HandshakeRequest => self.websocket_begins(&socket),
            Step::HandshakeResponse => {
                if let (Some(place), Some(response)) = (self.place(&socket.request_id), socket.response) {
                    self.chrome_response(place, response);
                }
            }
            Step::Error => {
                // Of a websocket that has been opened it is an error of a message.
                let place = self.place(&socket.request_id);
                if let Some(entry) = place.and_then(|place| self.entries.get_mut(place))
                    && entry.exchange.status.is_none()
                {
                    entry.error = Some(socket.error_message.0);
                }
            }
            Step::Closed => {
                let Some(place) = self.place(&socket.request_id) else { return };
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.done = true;
                }
                self.chrome_end(place, socket.timestamp);
            }
        }
    }

    /// Chrome tells the time of the handshake, not of the beginning.
    fn websocket_begins(&mut self, socket: &WebSocket) {
        let Some(url) = self.websockets.remove(&*socket.request_id) else { return };
        let place = self.begin(RequestStart {
            key: (socket.request_id.0.clone(), 0),
            top: false,
            started: socket.wall_time * 1e3,
            url: &url,
            method: "GET",
            destination: "websocket".into(),
        });
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            entry.chrome = Clock { sent: socket.timestamp, wall: socket.wall_time };
        }
    }
}
