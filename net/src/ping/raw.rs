//! Raw mode: for each family the shared receiver and two sockets that only send, one of which forbids fragmentation. All
//! series share them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::echo::EchoDemultiplexer;
use super::{EchoResponse, PingParameters};
use crate::Family;
use crate::packet::StartError;
use crate::packet::header::FlowLabel;
use crate::packet::icmp::Message;
use crate::packet::options::Fragmentation;
use crate::packet::receiver::{Claim, Demultiplexer, IcmpReceiver, ReceivedMessage};
use crate::packet::route::Route;
use crate::packet::sender::{AwaitedDepartures, Outgoing, RawSender};
use crate::packet::socket::Timestamp;
use crate::packet::token::TokenKey;
use crate::policy::Permitted;
use crate::series::{Arrival, ArrivalSink, Channel};

/// The raw sockets of one family.
pub struct RawSockets {
    key: Arc<TokenKey>,
    fragmenting: RawSender,
    unfragmented: RawSender,
    pub receiver: Arc<IcmpReceiver>,
    next_series: AtomicU64,
}

impl RawSockets {
    pub fn open(family: Family, key: Arc<TokenKey>) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            key,
            fragmenting: RawSender::open(family, family.icmp(), Fragmentation::Allowed)?,
            unfragmented: RawSender::open(family, family.icmp(), Fragmentation::Forbidden)?,
            receiver: IcmpReceiver::open(family)?,
            next_series: AtomicU64::new(0),
        }))
    }

    pub fn open_channel(
        self: &Arc<Self>,
        target: Permitted,
        parameters: &PingParameters,
        route: Option<Route>,
    ) -> Result<RawChannel, StartError> {
        let series = self.next_series.fetch_add(1, Ordering::Relaxed);
        let echo = EchoDemultiplexer::new(target, parameters, &self.key, series);
        let (sink, arrivals) = ArrivalSink::new();
        let flow = Arc::new(EchoFlow { echo, sink });
        let (identifier, claim) = self.receiver.claim_identifier(Arc::clone(&flow) as _)?;
        Ok(RawChannel {
            sockets: Arc::clone(self),
            identifier,
            flow,
            // The kernel chooses the source of each IPv4 packet: it may change while the series runs.
            source: route.map(|route| route.source.ip()).filter(IpAddr::is_ipv6),
            ttl: parameters.ttl.or(route.and_then(|route| route.ttl)),
            label: FlowLabel::random(),
            dont_fragment: parameters.dont_fragment,
            arrivals,
            awaited: AwaitedDepartures::default(),
            dropped_before: self.receiver.dropped(),
            _claim: claim,
        })
    }
}

/// The receiving end of one series.
struct EchoFlow {
    echo: EchoDemultiplexer,
    sink: ArrivalSink<EchoResponse>,
}

impl Demultiplexer for EchoFlow {
    fn receive(&self, received: &ReceivedMessage<'_>) {
        let arrival = match &received.message {
            Message::EchoReply { seq, payload, .. } => {
                let length = u16::try_from(received.length).unwrap_or(u16::MAX);
                let response = EchoResponse::Reply { ttl: received.ttl, length };
                self.echo.reply(received.source, received.timestamp, *seq, payload, response)
            }
            Message::Error(error) => {
                let quoted = &error.quoted;
                self.echo.error(received.source, received.timestamp, Some(quoted.target), quoted.transport, error.kind)
            }
        };
        if let Some(arrival) = arrival {
            self.sink.push(arrival);
        }
    }
}

/// One series on the shared sockets.
pub struct RawChannel {
    sockets: Arc<RawSockets>,
    identifier: u16,
    flow: Arc<EchoFlow>,
    source: Option<IpAddr>,
    ttl: Option<u8>,
    label: FlowLabel,
    dont_fragment: bool,
    arrivals: mpsc::Receiver<Arrival<EchoResponse>>,
    awaited: AwaitedDepartures,
    dropped_before: u32,
    _claim: Claim,
}

impl Channel for RawChannel {
    type Response = EchoResponse;

    async fn send(&mut self, index: u32) -> Result<Timestamp, String> {
        let packet = self.flow.echo.request(self.identifier, index);
        let sender = if self.dont_fragment { &self.sockets.unfragmented } else { &self.sockets.fragmenting };
        let (to, source, ttl, label) = (self.flow.echo.destination(), self.source, self.ttl, self.label);
        let departure = sender.send(Outgoing { transport: &packet, to, source, ttl, label }).await?;
        Ok(self.awaited.add(index, departure))
    }

    async fn arrival(&mut self) -> Option<Arrival<EchoResponse>> {
        // `flow` keeps the queue open as long as this channel lives.
        self.arrivals.recv().await
    }

    fn late_departure(&mut self, index: u32) -> Option<Timestamp> {
        let sender = if self.dont_fragment { &self.sockets.unfragmented } else { &self.sockets.fragmenting };
        self.awaited.find(index, sender)
    }

    fn may_be_queued(&self, index: u32) -> bool {
        self.awaited.contains(index)
    }

    fn overflow(&self) -> u32 {
        self.sockets.receiver.dropped().wrapping_sub(self.dropped_before).saturating_add(self.flow.sink.dropped())
    }
}
