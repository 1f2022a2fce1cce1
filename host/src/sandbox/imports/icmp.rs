//! `icmp`: echo requests and what comes back.

use std::time::Duration;

use scouter_net::packet::{Mode, StartError};
use scouter_net::ping::{EchoResponse, PingParameters, Session, seq};
use scouter_net::policy::Policy;
use scouter_net::series::{Event, Verdict};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::Resource;

use super::events::Events;
use super::weight::{Weigh, records};
use super::{EngineError, RunState, parse_address, wit};
use crate::sandbox::budget::Use;
use wit::icmp::{EchoBatch, EchoEvent, EchoParameters, EchoReply, IcmpError, SendFailure};
use wit::net::NetError;

/// A series under way. Dropping it ends the sending and frees its identifier.
pub struct Echoes {
    session: Session,
    events: Events<EchoResponse>,
    _counted: OwnedSemaphorePermit,
}

/// Events of so long a time are one batch: each batch costs a plugin a host call and a partial result.
const BATCH: Duration = Duration::from_millis(100);

/// Headers of an echo request: IPv6 and ICMP.
const HEADERS: u32 = 48;

fn checked(plan: &EchoParameters) -> Result<PingParameters, NetError> {
    let invalid = |what: String| Err(NetError::Invalid(what));
    if !(1..=1000).contains(&plan.count) {
        return invalid(format!("count {} is not from 1 to 1000", plan.count));
    }
    if !(10..=60_000).contains(&plan.interval_ms) {
        return invalid(format!("interval {} ms is not from 10 to 60000 ms", plan.interval_ms));
    }
    if !(1..=60_000).contains(&plan.timeout_ms) {
        return invalid(format!("timeout {} ms is not from 1 to 60000 ms", plan.timeout_ms));
    }
    if plan.payload_size > 65_000 {
        return invalid(format!("payload size {} is not from 0 to 65000 bytes", plan.payload_size));
    }
    if plan.ttl == Some(0) {
        return invalid("TTL 0 is not from 1 to 255".into());
    }
    Ok(PingParameters {
        count: plan.count,
        interval: Duration::from_millis(plan.interval_ms.into()),
        timeout: Duration::from_millis(plan.timeout_ms.into()),
        payload_size: plan.payload_size,
        ttl: plan.ttl,
        dont_fragment: plan.dont_fragment,
    })
}

impl RunState {
    async fn start_echoes(&mut self, plan: EchoParameters) -> wasmtime::Result<Result<Echoes, NetError>> {
        let allowed = parse_address(&plan.target)
            .and_then(|address| self.permit(address, Policy::permit))
            .and_then(|target| checked(&plan).map(|plan| (target, plan)));
        let (target, plan) = match allowed {
            Ok(planned) => planned,
            Err(error) => return Ok(Err(error)),
        };
        let bytes = u32::from(plan.payload_size) + HEADERS;
        let need = Use::probes(target.address(), plan.count.into(), bytes);
        let counted = match self.guest.budget.session().and_then(|session| self.take(need).map(|()| session)) {
            Ok(session) => session,
            Err(exceeded) => return Ok(Err(exceeded.into())),
        };
        let (services, rate) = (self.services.clone(), self.guest.budget.rate(bytes));
        // On the I/O runtime: the session's task and sockets must live there.
        Ok(match self.on_io(async move { services.net.ping.start(target, &plan, rate) }).await? {
            Ok((session, events)) => Ok(Echoes { session, events: Events::every(BATCH, events), _counted: counted }),
            Err(error) => Err(error.into()),
        })
    }
}

impl wit::icmp::Host for RunState {}

impl wit::icmp::HostEchoes for RunState {
    async fn start(&mut self, plan: EchoParameters) -> wasmtime::Result<Result<Resource<Echoes>, NetError>> {
        self.call(&plan)?;
        match self.start_echoes(plan).await? {
            Ok(echoes) => Ok(Ok(self.push(echoes)?)),
            Err(error) => Ok(Err(self.give(error)?)),
        }
    }

    async fn mode(&mut self, echoes: Resource<Echoes>) -> wasmtime::Result<wit::icmp::Mode> {
        self.call(&())?;
        Ok(self.guest.table.get(&echoes)?.session.mode().into())
    }

    async fn next(&mut self, echoes: Resource<Echoes>) -> wasmtime::Result<EchoBatch> {
        self.call(&())?;
        let echoes = self.guest.table.get_mut(&echoes)?;
        let (events, complete) = echoes.events.next().await;
        if complete && echoes.session.has_panicked().await {
            return Err(wasmtime::Error::new(EngineError::Panicked));
        }
        self.give(EchoBatch { events: events.into_iter().map(EchoEvent::from).collect(), complete })
    }

    async fn drop(&mut self, echoes: Resource<Echoes>) -> wasmtime::Result<()> {
        self.guest.table.delete(echoes)?;
        Ok(())
    }
}

records! {
    EchoBatch { events, complete }
    EchoParameters { target, count, interval_ms, timeout_ms, payload_size, ttl, dont_fragment }
    EchoReply { seq, source, ttl, length, rtt_ns }
    IcmpError { seq, source, kind, icmp_type, icmp_code, mtu }
    SendFailure { seq, reason }
}

impl Weigh for EchoEvent {
    fn referred(&self) -> usize {
        match self {
            Self::Reply(reply) | Self::Duplicate(reply) | Self::Late(reply) => reply.referred(),
            Self::Error(error) => error.referred(),
            Self::SendFailed(failure) => failure.referred(),
            Self::Sent(_) | Self::TimedOut(_) | Self::Overflow(_) => 0,
        }
    }
}

impl From<StartError> for NetError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Unavailable(why) => Self::Unavailable(why),
            StartError::Unreachable(why) => Self::Unreachable(why),
        }
    }
}

impl From<Mode> for wit::icmp::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Raw => Self::Raw,
            Mode::Datagram => Self::Datagram,
        }
    }
}

impl From<Event<EchoResponse>> for EchoEvent {
    fn from(event: Event<EchoResponse>) -> Self {
        match event {
            Event::Sent(index) => Self::Sent(seq(index)),
            Event::SendFailed { index, reason } => Self::SendFailed(SendFailure { seq: seq(index), reason }),
            Event::Received { index, verdict, source, rtt, response: EchoResponse::Reply { ttl, length } } => {
                let rtt_ns = u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX);
                let reply = EchoReply { seq: seq(index), source: source.to_string(), ttl, length, rtt_ns };
                match verdict {
                    Verdict::Answer | Verdict::NotSettling => Self::Reply(reply),
                    Verdict::Duplicate => Self::Duplicate(reply),
                    Verdict::Late => Self::Late(reply),
                }
            }
            Event::Received { index, source, response: EchoResponse::Error(kind), .. } => Self::Error(IcmpError {
                seq: seq(index),
                source: source.to_string(),
                kind: kind.description.to_owned(),
                icmp_type: kind.icmp_type,
                icmp_code: kind.icmp_code,
                mtu: kind.mtu,
            }),
            Event::Lost(index) => Self::TimedOut(seq(index)),
            Event::Overflow(packets) => Self::Overflow(packets),
        }
    }
}
