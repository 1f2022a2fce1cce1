//! Datagram mode, for processes without `CAP_NET_RAW`: the kernel picks the identifier and passes each socket its own
//! replies; errors come through the error queue (`IP_RECVERR`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{MsgFlags, send};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::echo::EchoDemultiplexer;
use super::{EchoResponse, PingParameters};
use crate::packet::StartError;
use crate::packet::datagram::{open_connected, send_past_pending_errors, unavailable};
use crate::packet::icmp::{self, Message};
use crate::packet::options::{self, Fragmentation};
use crate::packet::socket::{self, Received, SocketReader, Timestamp};
use crate::packet::token::TokenKey;
use crate::policy::Permitted;
use crate::series::{Arrival, Channel};

/// Series of datagram mode; those of raw mode count from 0, so that the two never have the same number.
static NEXT_SERIES: AtomicU64 = AtomicU64::new(1 << 63);

/// Bytes read beyond the length of a request, which show a reply that is longer.
const EXCESS: usize = 2048;

/// One series on a socket of its own.
pub struct DatagramChannel {
    socket: Arc<AsyncFd<Socket>>,
    reader: SocketReader,
    echo: EchoDemultiplexer,
}

impl DatagramChannel {
    pub fn open(target: Permitted, parameters: &PingParameters, key: &TokenKey) -> Result<Self, StartError> {
        let echo = EchoDemultiplexer::new(target, parameters, key, NEXT_SERIES.fetch_add(1, Ordering::Relaxed));
        let family = echo.family();
        let unavailable = |error| unavailable(&error, family);
        let fragmentation = if parameters.dont_fragment { Fragmentation::Forbidden } else { Fragmentation::Allowed };
        let socket = open_connected(echo.destination(), fragmentation)?;
        if let Some(ttl) = parameters.ttl {
            options::set_ttl(&socket, family, ttl).map_err(unavailable)?;
        }
        let socket = Arc::new(socket::register(socket, Interest::READABLE | Interest::ERROR).map_err(unavailable)?);
        let reader = SocketReader::new(Arc::clone(&socket), usize::from(parameters.payload_size) + EXCESS);
        Ok(Self { socket, reader, echo })
    }
}

/// The arrival that a message stands for, if it belongs to the series.
fn demultiplex(echo: &EchoDemultiplexer, received: &Received, message: &[u8]) -> Option<Arrival<EchoResponse>> {
    if let Some(error) = received.error {
        // The error queue returns the quoted request; the kernel has matched only its identifier.
        let kind = icmp::error_kind(echo.family(), error.icmp_type, error.icmp_code, error.info.to_be_bytes())?;
        echo.error(error.source, received.timestamp, received.source, message, kind)
    } else {
        let Message::EchoReply { seq, payload, .. } = icmp::parse(echo.family(), message)? else { return None };
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        echo.reply(
            received.source?,
            received.timestamp,
            seq,
            payload,
            EchoResponse::Reply { ttl: received.ttl, length },
        )
    }
}

impl Channel for DatagramChannel {
    type Response = EchoResponse;

    async fn send(&mut self, index: u32) -> Result<Timestamp, String> {
        // The kernel replaces the identifier.
        let packet = self.echo.request(0, index);
        send_past_pending_errors(&*self.socket, |fd| send(fd, &packet, MsgFlags::MSG_DONTWAIT).map(drop))
    }

    async fn arrival(&mut self) -> Option<Arrival<EchoResponse>> {
        loop {
            let (received, message) = self.reader.next().await;
            if let Some(arrival) = demultiplex(&self.echo, &received, message) {
                return Some(arrival);
            }
        }
    }

    fn overflow(&self) -> u32 {
        options::dropped(self.socket.get_ref())
    }
}
