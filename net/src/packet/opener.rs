//! Raw TCP sockets, opened by a thread of its own: the only one that keeps `CAP_NET_RAW` once the server listens. The
//! other raw sockets are opened at the start; a TCP trace needs some of its own, filtered for its ports.

use std::io;
use std::sync::mpsc::{Sender, channel};

use socket2::{Protocol, Socket, Type};
use tokio::sync::oneshot;

use super::options;
use crate::Family;
use crate::privilege;

struct Request {
    family: Family,
    opened: oneshot::Sender<io::Result<Socket>>,
}

/// The thread; it ends when this is dropped.
pub(crate) struct Opener(Sender<Request>);

impl Opener {
    /// Must be called on a thread with `CAP_NET_RAW`, which the new one inherits.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let (requests, received) = channel::<Request>();
        std::thread::Builder::new().name("opener".into()).spawn(move || {
            privilege::drop_or_warn(privilege::RAW_SOCKETS);
            for Request { family, opened } in received {
                // The caller may be gone: the socket is closed then.
                let _ = opened.send(open(family));
            }
        })?;
        Ok(Self(requests))
    }

    /// A non-blocking raw TCP socket that receives nothing yet.
    ///
    /// # Errors
    /// As from socket(2).
    pub async fn raw_tcp(&self, family: Family) -> io::Result<Socket> {
        let gone = || io::Error::other("the thread that opens raw sockets has ended");
        let (opened, socket) = oneshot::channel();
        self.0.send(Request { family, opened }).map_err(|_| gone())?;
        socket.await.map_err(|_| gone())?
    }
}

fn open(family: Family) -> io::Result<Socket> {
    let socket = Socket::new(family.domain(), Type::RAW, Some(Protocol::TCP))?;
    // Immediately: without a filter the socket receives every segment that reaches this host.
    options::attach_reject_filter(&socket)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
