//! `hops`: probes with a limited time to live, and what answers them.

use std::time::Duration;

use scouter_net::dns::{Question, Transport, mnemonic};
use scouter_net::packet::quoted::{ExtensionObject, MplsLabel};
use scouter_net::policy::Policy;
use scouter_net::series::{Event, Verdict};
use scouter_net::trace::{self, ProbePacket, ProbeResponse, Protocol, ResponseKind, TraceError, TraceParameters};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::Resource;

use super::events::Events;
use super::weight::{Weigh, records};
use super::{EngineError, RunState, parse_address, wit};
use crate::sandbox::budget::Use;
use wit::hops as guest;
use wit::net::NetError;

/// Probes of one trace.
const MAX_PROBES: usize = 4096;
/// Flows of one trace.
const MAX_FLOWS: u16 = 128;

/// Probes under way. Dropping it ends the sending and frees its ports and identifiers.
pub struct Trace {
    engine: trace::Trace,
    events: Events<ProbeResponse>,
    _counted: OwnedSemaphorePermit,
}

/// Headers of a probe: IPv6 and TCP, which are the largest.
const HEADERS: u32 = 60;

fn checked(plan: guest::TraceParameters) -> Result<TraceParameters, NetError> {
    let invalid = |what: String| Err(NetError::Invalid(what));
    if !(1..=MAX_PROBES).contains(&plan.packets.len()) {
        return invalid(format!("{} probes are not from 1 to {MAX_PROBES}", plan.packets.len()));
    }
    if plan.packets.iter().any(|probe| probe.ttl == 0) {
        return invalid("TTL 0 is not from 1 to 255".into());
    }
    if let Some(probe) = plan.packets.iter().find(|probe| probe.flow >= MAX_FLOWS) {
        return invalid(format!("flow {} is not from 0 to {}", probe.flow, MAX_FLOWS - 1));
    }
    if !plan.packets.is_sorted_by_key(|probe| probe.round) {
        return invalid("the rounds of the probes are not in ascending order".into());
    }
    if plan.interval_us > 1_000_000 {
        return invalid(format!("interval {} us is not from 0 to 1000000 us", plan.interval_us));
    }
    if !(1..=60_000).contains(&plan.timeout_ms) {
        return invalid(format!("timeout {} ms is not from 1 to 60000 ms", plan.timeout_ms));
    }
    if plan.payload_size > 65_000 {
        return invalid(format!("payload size {} is not from 0 to 65000 bytes", plan.payload_size));
    }
    let protocol = match plan.protocol {
        guest::Protocol::Icmp => Protocol::Icmp,
        guest::Protocol::Tcp(port) => Protocol::Tcp(port),
        guest::Protocol::Udp(port) => Protocol::Udp(port),
        guest::Protocol::Dns(asked) => {
            Protocol::Dns(Question { name: asked.name, rtype: asked.type_, class: asked.class })
        }
    };
    Ok(TraceParameters {
        protocol,
        packets: plan.packets.iter().map(|p| ProbePacket { ttl: p.ttl, flow: p.flow, round: p.round }).collect(),
        payload_size: plan.payload_size,
        interval: Duration::from_micros(plan.interval_us.into()),
        timeout: Duration::from_millis(plan.timeout_ms.into()),
    })
}

impl RunState {
    async fn start_trace(&mut self, plan: guest::TraceParameters) -> wasmtime::Result<Result<Trace, NetError>> {
        let question = matches!(plan.protocol, guest::Protocol::Dns(_));
        let allowed = parse_address(&plan.target)
            .and_then(|address| {
                self.permit(address, |policy: &Policy, address, name| {
                    if question {
                        policy.permit_question(address, Transport::Udp.port(), name)
                    } else {
                        policy.permit(address, name)
                    }
                })
            })
            .and_then(|target| checked(plan).map(|plan| (target, plan)));
        let (target, plan) = match allowed {
            Ok(planned) => planned,
            Err(error) => return Ok(Err(error)),
        };
        let bytes = u32::from(plan.payload_size) + HEADERS;
        let need = Use::probes(target.address(), u32::try_from(plan.packets.len()).unwrap_or(u32::MAX), bytes);
        let counted = match self.guest.budget.session().and_then(|session| self.take(need).map(|()| session)) {
            Ok(session) => session,
            Err(exceeded) => return Ok(Err(exceeded.into())),
        };
        let (services, rate) = (self.services.clone(), self.guest.budget.rate(bytes));
        // On the I/O runtime: the trace's task and sockets must live there.
        let start = async move { services.net.trace.start(target, &plan, rate, &services.net.lag).await };
        Ok(match self.on_io(start).await? {
            Ok((engine, events)) => {
                Ok(Trace { engine, events: Events::every(Duration::ZERO, events), _counted: counted })
            }
            Err(TraceError::Start(error)) => Err(error.into()),
            Err(TraceError::Question(why)) => Err(NetError::Invalid(why.to_string())),
        })
    }
}

impl guest::Host for RunState {}

impl guest::HostTrace for RunState {
    async fn start(&mut self, plan: guest::TraceParameters) -> wasmtime::Result<Result<Resource<Trace>, NetError>> {
        self.call(&plan)?;
        match self.start_trace(plan).await? {
            Ok(trace) => Ok(Ok(self.push(trace)?)),
            Err(error) => Ok(Err(self.give(error)?)),
        }
    }

    async fn properties(&mut self, trace: Resource<Trace>) -> wasmtime::Result<guest::TraceProperties> {
        self.call(&())?;
        let properties = self.guest.table.get(&trace)?.engine.properties;
        Ok(guest::TraceProperties {
            mode: properties.mode.into(),
            payload_size: properties.payload_size,
            packet_size: properties.packet_size,
            constant_flow: properties.constant_flow,
        })
    }

    async fn limit_ttl(&mut self, trace: Resource<Trace>, max_ttl: u8) -> wasmtime::Result<()> {
        self.call(&())?;
        self.guest.table.get(&trace)?.engine.limit_ttl(max_ttl);
        Ok(())
    }

    async fn next(&mut self, trace: Resource<Trace>) -> wasmtime::Result<guest::HopBatch> {
        self.call(&())?;
        let trace = self.guest.table.get_mut(&trace)?;
        let (events, complete) = trace.events.next().await;
        if complete && trace.engine.has_panicked().await {
            return Err(wasmtime::Error::new(EngineError::Panicked));
        }
        self.give(guest::HopBatch { events: events.into_iter().map(guest::HopEvent::from).collect(), complete })
    }

    async fn drop(&mut self, trace: Resource<Trace>) -> wasmtime::Result<()> {
        self.guest.table.delete(trace)?;
        Ok(())
    }
}

records! {
    guest::HopBatch { events, complete }
    guest::TraceParameters { target, protocol, packets, payload_size, interval_us, timeout_ms }
    guest::ProbePacket { ttl, flow, round }
    guest::MplsLabel { label, traffic_class, bottom_of_stack, ttl }
    guest::Extension { class, class_type, data }
    guest::IcmpMessage { kind, icmp_type, icmp_code, mtu, mpls, extensions }
    guest::HopResponse { packet, source, rtt_ns, kind }
    guest::SendFailure { packet, reason }
}

impl Weigh for guest::Protocol {
    fn referred(&self) -> usize {
        match self {
            Self::Dns(question) => question.referred(),
            Self::Icmp | Self::Tcp(_) | Self::Udp(_) => 0,
        }
    }
}

impl Weigh for guest::ResponseKind {
    fn referred(&self) -> usize {
        match self {
            Self::Icmp(message) => message.referred(),
            Self::Dns(answer) => answer.mnemonic.referred(),
            Self::EchoReply | Self::SynAck | Self::Reset | Self::Datagram => 0,
        }
    }
}

impl Weigh for guest::HopEvent {
    fn referred(&self) -> usize {
        match self {
            Self::Response(response) | Self::Duplicate(response) | Self::Late(response) => response.referred(),
            Self::SendFailed(failure) => failure.referred(),
            Self::Sent(_) | Self::TimedOut(_) | Self::Overflow(_) => 0,
        }
    }
}

impl From<ResponseKind> for guest::ResponseKind {
    fn from(kind: ResponseKind) -> Self {
        let (kind, extensions) = match kind {
            ResponseKind::Icmp(kind, extensions) => (kind, extensions),
            ResponseKind::EchoReply => return Self::EchoReply,
            ResponseKind::SynAck => return Self::SynAck,
            ResponseKind::Reset => return Self::Reset,
            ResponseKind::Datagram => return Self::Datagram,
            ResponseKind::Dns { rcode } => {
                let rcode = u16::from(rcode);
                return Self::Dns(guest::DnsAnswer { rcode, mnemonic: mnemonic(rcode) });
            }
        };
        let (labels, others) = extensions.map(|found| (found.labels, found.others)).unzip();
        let label = |l: MplsLabel| guest::MplsLabel {
            label: l.value,
            traffic_class: l.traffic_class,
            bottom_of_stack: l.bottom_of_stack,
            ttl: l.ttl,
        };
        let object = |o: ExtensionObject| guest::Extension { class: o.class, class_type: o.class_type, data: o.data };
        Self::Icmp(guest::IcmpMessage {
            kind: kind.description.to_owned(),
            icmp_type: kind.icmp_type,
            icmp_code: kind.icmp_code,
            mtu: kind.mtu,
            mpls: labels.map(|labels| labels.into_iter().map(label).collect()),
            extensions: others.map(|others| others.into_iter().map(object).collect()),
        })
    }
}

impl From<Event<ProbeResponse>> for guest::HopEvent {
    fn from(event: Event<ProbeResponse>) -> Self {
        match event {
            Event::Sent(packet) => Self::Sent(packet),
            Event::SendFailed { index, reason } => Self::SendFailed(guest::SendFailure { packet: index, reason }),
            Event::Lost(packet) => Self::TimedOut(packet),
            Event::Overflow(packets) => Self::Overflow(packets),
            Event::Received { index, verdict, source, rtt, response } => {
                let rtt_ns = response.rtt_valid.then(|| u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX));
                let kind = response.kind.into();
                let response = guest::HopResponse { packet: index, source: source.to_string(), rtt_ns, kind };
                match verdict {
                    Verdict::Answer | Verdict::NotSettling => Self::Response(response),
                    Verdict::Duplicate => Self::Duplicate(response),
                    Verdict::Late => Self::Late(response),
                }
            }
        }
    }
}
