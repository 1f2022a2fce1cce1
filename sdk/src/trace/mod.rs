//! Traces: the probe packets to send, the path assembled from the responses (`path`), and its JSON (`hop`).

mod hop;
mod path;

use schemars::JsonSchema;
use serde::Serialize;

use crate::IpVersion;
use crate::bindings::scouter::probe::hops::{Protocol, ResponseKind, Trace, TraceParameters, TraceProperties};
use crate::bindings::scouter::probe::icmp::Mode;
use crate::bindings::scouter::probe::net::NetError;
use crate::bindings::scouter::probe::{asn, resolver};

pub use hop::{Extension, FlowPath, Hop, Icmp, Label, OtherSource, SendError, StopReason, StoppedBy};
use path::Path;

/// Least time between two packets, in microseconds: the host's window bounds how many leave together.
const INTERVAL_US: u32 = 0;

/// Parameters of a trace.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Address of the target.
    pub target: String,
    pub protocol: Protocol,
    /// First TTL, 1–255.
    pub first_ttl: u8,
    /// Last TTL, from `first_ttl` to 255.
    pub max_ttl: u8,
    /// Probes for each TTL and flow.
    pub probes: u16,
    /// Flows, 1–16.
    pub flows: u16,
    /// Bytes of data in each probe.
    pub payload_size: u16,
    /// Time to wait for each response at most, in milliseconds.
    pub timeout_ms: u32,
}

/// The part of a result that all traces have in common.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TraceResult {
    /// Address of the target.
    pub address: String,
    /// 4 or 6.
    pub family: u8,
    /// Bytes of data in each probe.
    pub payload_size: u16,
    /// Bytes of each IP packet.
    pub packet_size: u32,
    /// One hop for each TTL, to the target or the last TTL.
    pub trace: Vec<Hop>,
    /// The path of each flow, when there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<FlowPath>,
    /// Whether the target itself responded.
    pub reached: bool,
    /// End of the path; null while the trace is running.
    pub stopped_by: Option<StoppedBy>,
    /// Socket type of the probes: `raw` or `datagram`.
    pub mode: &'static str,
    /// Whether all probes of a flow took one path, as far as routers balance by flow.
    pub constant_flow: bool,
    /// Probes that this host could not send.
    pub errors: Vec<SendError>,
    /// `host_receive_overflow` when this host dropped packets during the trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<&'static str>,
}

/// A finished trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub result: TraceResult,
    /// The target's response that ended the path.
    pub target_response: Option<ResponseKind>,
}

/// Traces the path to the target, and looks up names and autonomous systems of its hops. `progress` receives the result
/// each time the path has grown.
///
/// # Errors
/// When the trace could not be started.
pub fn run(parameters: &Parameters, mut progress: impl FnMut(&TraceResult)) -> Result<Finished, NetError> {
    let mut path = Path::new(parameters);
    let trace = Trace::start(&parameters.packets(&path))?;
    let mut result = TraceResult::new(parameters, &trace.properties());
    loop {
        let batch = trace.next();
        let growths = batch.events.into_iter().map(|event| path.add(event)).filter(|has_grown| *has_grown).count();
        if batch.complete {
            break;
        }
        if growths > 0 {
            if let Some(ttl) = path.end_ttl() {
                trace.limit_ttl(ttl);
            }
            result.update(&path);
            progress(&result);
        }
    }
    let addresses = path.addresses();
    let (hostnames, systems) = (resolver::reverse(&addresses), asn::lookup(&addresses));
    path.set_owners(addresses.into_iter().zip(hostnames.into_iter().zip(systems)));
    result.finish(&path);
    Ok(Finished { result, target_response: path.target_response().cloned() })
}

impl Parameters {
    fn packets(&self, path: &Path) -> TraceParameters {
        let packets = path.packets().to_vec();
        TraceParameters {
            target: self.target.clone(),
            protocol: self.protocol.clone(),
            interval_us: INTERVAL_US,
            packets,
            payload_size: self.payload_size,
            timeout_ms: self.timeout_ms,
        }
    }
}

impl TraceResult {
    fn new(parameters: &Parameters, properties: &TraceProperties) -> Self {
        Self {
            address: parameters.target.clone(),
            family: IpVersion::of(&parameters.target).number(),
            payload_size: properties.payload_size,
            packet_size: properties.packet_size,
            trace: vec![],
            paths: vec![],
            reached: false,
            stopped_by: None,
            mode: match properties.mode {
                Mode::Raw => "raw",
                Mode::Datagram => "datagram",
            },
            constant_flow: properties.constant_flow,
            errors: vec![],
            degraded: None,
        }
    }

    fn update(&mut self, path: &Path) {
        self.trace = path.known_hops();
        self.reached = path.reached();
    }

    fn finish(&mut self, path: &Path) {
        self.trace = path.hops();
        self.reached = path.reached();
        self.paths = path.flows();
        self.stopped_by = Some(path.stopped_by());
        self.degraded = path.overflowed().then_some("host_receive_overflow");
        self.errors = path.send_errors().to_vec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::scouter::probe::hops::{HopEvent, HopResponse};

    fn parameters(max_ttl: u8) -> Parameters {
        Parameters {
            target: "2001:db8::9".into(),
            protocol: Protocol::Icmp,
            first_ttl: 1,
            max_ttl,
            probes: 1,
            flows: 1,
            payload_size: 56,
            timeout_ms: 1000,
        }
    }

    #[test]
    fn a_result_grows_with_its_path_and_says_how_it_ended() {
        let parameters = parameters(3);
        let properties =
            TraceProperties { mode: Mode::Datagram, payload_size: 56, packet_size: 104, constant_flow: false };
        let mut path = Path::new(&parameters);
        let mut result = TraceResult::new(&parameters, &properties);
        assert_eq!((result.family, result.mode, result.packet_size, result.reached), (6, "datagram", 104, false));
        let response = HopResponse {
            packet: 1,
            source: "2001:db8::9".into(),
            rtt_ns: Some(2_000_000),
            kind: ResponseKind::EchoReply,
        };
        path.add(HopEvent::Response(response));
        result.update(&path);
        assert_eq!((result.reached, result.trace.len(), &result.stopped_by), (true, 2, &None));
        path.add(HopEvent::TimedOut(0));
        path.add(HopEvent::Overflow(1));
        result.finish(&path);
        let stopped_by = result.stopped_by.as_ref().map(|stopped| (stopped.reason, stopped.ttl));
        assert_eq!((stopped_by, result.degraded), (Some((StopReason::Target, 2)), Some("host_receive_overflow")));
        assert_eq!(path.target_response(), Some(&ResponseKind::EchoReply));
    }
}
