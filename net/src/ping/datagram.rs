//! Datagram mode, for processes without `CAP_NET_RAW`: the kernel picks the identifier and hands each socket its own
//! replies; errors come through the error queue (`IP_RECVERR`).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{MsgFlags, send};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Plan, What};
use crate::packet::StartError;
use crate::packet::datagram::{connected, send_now, unavailable};
use crate::packet::icmp::{self, Message, Secret};
use crate::packet::options::{self, Fragments};
use crate::packet::socket::{self, Inbox, Received, Stamp};
use crate::policy::Permitted;
use crate::series::{Arrival, Link};

static SERIES: AtomicU64 = AtomicU64::new(1 << 63);

pub struct Datagram {
    socket: Arc<AsyncFd<Socket>>,
    inbox: Inbox,
    judge: Judge,
}

struct Judge {
    v6: bool,
    secret: Arc<Secret>,
    series: u64,
    target: IpAddr,
    payload_size: usize,
}

impl Datagram {
    pub fn open(target: Permitted, plan: &Plan, secret: Arc<Secret>) -> Result<Self, StartError> {
        let target = target.address();
        let v6 = target.is_ipv6();
        let unavailable = |error| unavailable(&error, v6);
        let socket = connected(target, if plan.dont_fragment { Fragments::Forbidden } else { Fragments::Allowed })?;
        if let Some(ttl) = plan.ttl {
            options::ttl(&socket, v6, ttl).map_err(unavailable)?;
        }
        let socket = socket::watched(socket, Interest::READABLE | Interest::ERROR).map_err(unavailable)?;
        let socket = Arc::new(socket);
        let series = SERIES.fetch_add(1, Ordering::Relaxed);
        // A reply is as long as its request; some more shows one that is not.
        let inbox = Inbox::new(Arc::clone(&socket), usize::from(plan.payload_size) + 2048);
        let judge = Judge { v6, secret, series, target, payload_size: plan.payload_size.into() };
        Ok(Self { socket, inbox, judge })
    }
}

impl Judge {
    /// What the message says, if it is ours.
    fn arrival(&self, received: &Received, message: &[u8]) -> Option<Arrival<What>> {
        let (at, ttl) = (received.at, received.ttl);
        if let Some(error) = received.error {
            // The error queue hands back the request that the error quotes; the kernel has matched its identifier only.
            let (_, seq) = icmp::request_in(self.v6, message)?;
            let sent = self.secret.data(self.series, self.target, seq, self.payload_size);
            if received.source != Some(self.target) || !icmp::may_quote(&sent, message.get(icmp::HEADER..)?) {
                return None;
            }
            let kind = icmp::error_kind(self.v6, error.icmp_type, error.icmp_code, error.info.to_be_bytes())?;
            let index = u32::from(seq);
            return Some(Arrival { index, source: error.source, at, aside: true, what: What::Error(kind) });
        }
        match icmp::parse(self.v6, message)? {
            Message::Reply { seq, data, .. }
                if self.secret.verifies(self.series, self.target, seq, self.payload_size, data) =>
            {
                let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
                let source = received.source.unwrap_or(self.target);
                let index = u32::from(seq);
                Some(Arrival { index, source, at, aside: false, what: What::Reply { ttl, length } })
            }
            _ => None,
        }
    }
}

impl Link for Datagram {
    type What = What;

    async fn send(&mut self, index: u32) -> Result<Stamp, String> {
        let (judge, seq) = (&self.judge, super::seq(index));
        let data = judge.secret.data(judge.series, judge.target, seq, judge.payload_size);
        let packet = icmp::echo_request(judge.v6, 0, seq, &data);
        send_now(&*self.socket, |fd| send(fd, &packet, MsgFlags::MSG_DONTWAIT).map(drop))
    }

    async fn arrival(&mut self) -> Option<Arrival<What>> {
        loop {
            let (received, message) = self.inbox.next().await;
            if let Some(arrival) = self.judge.arrival(&received, message) {
                return Some(arrival);
            }
        }
    }

    fn overflow(&self) -> u32 {
        self.inbox.dropped
    }
}
