//! The JSON of a path.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;

use crate::bindings::scouter::probe::hops::{MplsLabel, ResponseKind};

/// One TTL of a path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Hop {
    pub ttl: u8,
    /// Source of the first response, in the order in which the probes were sent.
    pub src: Option<String>,
    /// Name of `src`: empty when it has none, null when there was no response.
    pub hostname: Option<String>,
    /// Shortest round-trip time to `src` in milliseconds; null when there was no response.
    pub rtt_ms: Option<f64>,
    /// Round-trip time in milliseconds of each probe with this TTL, except those that `others` answered; null for
    /// probes without a response.
    pub rtts_ms: Vec<Option<f64>>,
    /// True when every probe timed out. Null while a probe is waiting, and when this host could not send a probe or dropped
    /// packets.
    pub no_response: Option<bool>,
    /// Kind of the response: `time exceeded in transit`, `echo reply`, `SYN-ACK`, …
    pub answer: Option<String>,
    /// Number of the autonomous system that announces `src`; null when it is unknown.
    pub asn: Option<u32>,
    /// Organisation of the autonomous system.
    pub as_name: Option<String>,
    /// The ICMP error, when the response was one.
    pub icmp: Option<Icmp>,
    /// MPLS label stack of the probe when it reached `src` (RFC 4950); null in `datagram` mode.
    pub mpls: Option<Vec<Label>>,
    /// Other extension objects of the ICMP error (RFC 4884).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<Extension>,
    /// Other sources of responses at this TTL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherSource>,
    /// Number of further responses to probes that had one.
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicates: u32,
    /// Number of responses after `timeout_ms`. Their probes count as timed out.
    #[serde(skip_serializing_if = "is_zero")]
    pub late: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Another source at the same TTL.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct OtherSource {
    pub asn: Option<u32>,
    pub as_name: Option<String>,
    pub src: String,
    /// Empty when it has none.
    pub hostname: Option<String>,
    pub rtts_ms: Vec<Option<f64>>,
    pub answer: String,
    pub icmp: Option<Icmp>,
    pub mpls: Option<Vec<Label>>,
}

/// An ICMP error (RFC 792, RFC 4443).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Icmp {
    /// Name of type and code.
    pub kind: String,
    #[serde(rename = "type")]
    pub icmp_type: u8,
    pub code: u8,
    /// Next-hop MTU in bytes of `fragmentation needed` and `packet too big`.
    pub mtu: Option<u32>,
}

/// An entry of an MPLS label stack.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Label {
    pub label: u32,
    pub traffic_class: u8,
    pub bottom_of_stack: bool,
    pub ttl: u8,
}

/// An ICMP extension object.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Extension {
    pub class: u8,
    pub class_type: u8,
    /// Hexadecimal.
    pub data: String,
}

/// End of the path.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct StoppedBy {
    pub reason: StopReason,
    /// TTL of the last hop.
    pub ttl: u8,
    /// Source of the response that ended the path; null for `max_ttl`.
    pub src: Option<String>,
    pub icmp: Option<Icmp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The target responded.
    Target,
    /// A router reported the target as unreachable; `icmp` is its error.
    Unreachable,
    /// The last TTL was probed.
    MaxTtl,
}

/// The path of one flow.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct FlowPath {
    /// Number of the flow, from 0.
    pub flow: u16,
    pub reached: bool,
    /// Source of the response at each TTL; null when there was none.
    pub srcs: Vec<Option<String>>,
}

/// A probe that this host could not send.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct SendError {
    pub ttl: u8,
    pub reason: String,
}

impl Icmp {
    pub(super) fn of(response: &ResponseKind) -> Option<Self> {
        let ResponseKind::Icmp(icmp) = response else { return None };
        Some(Self { kind: icmp.kind.clone(), icmp_type: icmp.icmp_type, code: icmp.icmp_code, mtu: icmp.mtu })
    }
}

/// The name of a response for results.
pub(super) fn name(response: &ResponseKind) -> String {
    match response {
        ResponseKind::Icmp(icmp) => icmp.kind.clone(),
        ResponseKind::EchoReply => "echo reply".into(),
        ResponseKind::SynAck => "SYN-ACK".into(),
        ResponseKind::Reset => "RST".into(),
        ResponseKind::Datagram => "datagram".into(),
        ResponseKind::Dns(answer) => format!("DNS {}", answer.mnemonic),
    }
}

pub(super) fn labels(response: &ResponseKind) -> Option<Vec<Label>> {
    let ResponseKind::Icmp(icmp) = response else { return None };
    let label = |l: &MplsLabel| Label {
        label: l.label,
        traffic_class: l.traffic_class,
        bottom_of_stack: l.bottom_of_stack,
        ttl: l.ttl,
    };
    icmp.mpls.as_ref().map(|labels| labels.iter().map(label).collect())
}

pub(super) fn extensions(response: &ResponseKind) -> Vec<Extension> {
    let ResponseKind::Icmp(icmp) = response else { return vec![] };
    let hex = |data: &[u8]| {
        data.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    let all = icmp.extensions.iter().flatten();
    all.map(|e| Extension { class: e.class, class_type: e.class_type, data: hex(&e.data) }).collect()
}
