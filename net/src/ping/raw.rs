//! Raw mode: two sending sockets of each family that receive nothing (one of them forbids fragmentation), and the
//! receiver, all of them shared by all series.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use socket2::Protocol;
use tokio::sync::mpsc;

use super::{Plan, What};
use crate::packet::StartError;
use crate::packet::icmp::{self, Message, Secret};
use crate::packet::options::Fragments;
use crate::packet::receiver::{Claim, Heard, Listener, Receiver};
use crate::packet::sender::Sender;
use crate::packet::socket::Stamp;
use crate::policy::Permitted;
use crate::series::{Arrival, Link, SERIES_ROOM};

pub struct Raw {
    v6: bool,
    secret: Arc<Secret>,
    plain: Sender,
    unfragmented: Sender,
    pub receiver: Arc<Receiver>,
    count: AtomicU64,
}

impl Raw {
    pub fn open(v6: bool, secret: Arc<Secret>) -> std::io::Result<Arc<Self>> {
        let protocol = if v6 { Protocol::ICMPV6 } else { Protocol::ICMPV4 };
        Ok(Arc::new(Self {
            v6,
            secret,
            plain: Sender::open(v6, protocol, Fragments::Allowed)?,
            unfragmented: Sender::open(v6, protocol, Fragments::Forbidden)?,
            receiver: Receiver::open(v6)?,
            count: AtomicU64::new(0),
        }))
    }

    pub fn attach(self: &Arc<Self>, target: Permitted, plan: &Plan) -> Result<RawLink, StartError> {
        let series = self.count.fetch_add(1, Ordering::Relaxed);
        let (sender, arrivals) = mpsc::channel(SERIES_ROOM);
        let listener = Arc::new(Judge {
            secret: Arc::clone(&self.secret),
            series,
            target: target.address(),
            payload_size: plan.payload_size.into(),
            arrivals: sender,
            dropped: AtomicU32::new(0),
        });
        let (identifier, claim) = self.receiver.claim_identifier(Arc::clone(&listener) as _)?;
        Ok(RawLink {
            raw: Arc::clone(self),
            identifier,
            judge: listener,
            ttl: plan.ttl,
            dont_fragment: plan.dont_fragment,
            arrivals,
            dropped_before: self.receiver.dropped(),
            _claim: claim,
        })
    }
}

/// Tells the messages of one series from those of forgers.
struct Judge {
    secret: Arc<Secret>,
    series: u64,
    target: IpAddr,
    payload_size: usize,
    arrivals: mpsc::Sender<Arrival<What>>,
    dropped: AtomicU32,
}

impl Listener for Judge {
    fn heard(&self, heard: &Heard<'_>) {
        let (seq, aside, what) = match &heard.message {
            Message::Reply { seq, data, .. } => {
                // Without room for a token the source is all that tells ours from a forger's.
                let trusted = self.secret.verifies(self.series, self.target, *seq, self.payload_size, data)
                    && (heard.source == self.target || self.payload_size >= 16);
                if !trusted {
                    return;
                }
                let length = u16::try_from(heard.length).unwrap_or(u16::MAX);
                (*seq, false, What::Reply { ttl: heard.ttl, length })
            }
            Message::Error(error) => {
                if error.quoted.target != self.target {
                    return;
                }
                let quoted = error.quoted.transport;
                let Some((_, seq)) = icmp::request_in(self.target.is_ipv6(), quoted) else { return };
                let sent = self.secret.data(self.series, self.target, seq, self.payload_size);
                if !quoted.get(icmp::HEADER..).is_some_and(|data| icmp::may_quote(&sent, data)) {
                    return;
                }
                (seq, true, What::Error(error.kind))
            }
        };
        let index = u32::from(seq);
        let arrival = Arrival { index, source: heard.source, at: heard.at, aside, what };
        if self.arrivals.try_send(arrival).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One series' end of the shared sockets.
pub struct RawLink {
    raw: Arc<Raw>,
    identifier: u16,
    judge: Arc<Judge>,
    ttl: Option<u8>,
    dont_fragment: bool,
    arrivals: mpsc::Receiver<Arrival<What>>,
    dropped_before: u32,
    _claim: Claim,
}

impl Link for RawLink {
    type What = What;

    async fn send(&mut self, index: u32) -> Result<Stamp, String> {
        let (judge, seq) = (&self.judge, super::seq(index));
        let data = self.raw.secret.data(judge.series, judge.target, seq, judge.payload_size);
        let packet = icmp::echo_request(self.raw.v6, self.identifier, seq, &data);
        let sender = if self.dont_fragment { &self.raw.unfragmented } else { &self.raw.plain };
        sender.send(&packet, judge.target, self.ttl, None).await
    }

    async fn arrival(&mut self) -> Option<Arrival<What>> {
        // The judge holds the sender as long as this link lives.
        self.arrivals.recv().await
    }

    fn overflow(&self) -> u32 {
        let kernel = self.raw.receiver.dropped().wrapping_sub(self.dropped_before);
        kernel.saturating_add(self.judge.dropped.load(Ordering::Relaxed))
    }
}
