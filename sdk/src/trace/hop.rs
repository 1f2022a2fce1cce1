//! A path as results show it.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;

use crate::bindings::scouter::probe::hops::{Answer, MplsLabel};

/// One TTL of a path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Hop {
    pub ttl: u8,
    /// Who answered first, in the order in which the probes were sent.
    pub src: Option<String>,
    pub hostname: Option<String>,
    /// The shortest round trip to `src`, in milliseconds; unknown when nothing answered.
    pub rtt_ms: Option<f64>,
    /// One for each probe with this TTL that `src` answered or nobody did; unknown where nobody did.
    pub rtts_ms: Vec<Option<f64>>,
    /// No probe was answered. Unknown while one still may be, and when the probing host itself could not tell.
    pub no_response: Option<bool>,
    /// What the answer was: `time exceeded in transit`, `echo reply`, `SYN-ACK`, …
    pub answer: Option<String>,
    /// Number of the autonomous system that announces the address; unknown without a database.
    pub asn: Option<u32>,
    /// The organisation that has it.
    pub as_name: Option<String>,
    /// The ICMP error, when it was one.
    pub icmp: Option<Icmp>,
    /// MPLS label stack with which the probe arrived (RFC 4950); unknown in `datagram` mode.
    pub mpls: Option<Vec<Label>>,
    /// Further extensions of the ICMP error (RFC 4884).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<Extension>,
    /// Other addresses that answered at this TTL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Other>,
    /// Answers beyond the first to one probe.
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicates: u32,
    /// Answers after `timeout_ms`; they count as no response.
    #[serde(skip_serializing_if = "is_zero")]
    pub late: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Another address at the same TTL.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Other {
    pub asn: Option<u32>,
    pub as_name: Option<String>,
    pub src: String,
    pub hostname: Option<String>,
    pub rtts_ms: Vec<Option<f64>>,
    pub answer: String,
    pub icmp: Option<Icmp>,
    pub mpls: Option<Vec<Label>>,
}

/// An ICMP error, in words and as on the wire (RFC 792, RFC 4443).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Icmp {
    pub kind: String,
    #[serde(rename = "type")]
    pub icmp_type: u8,
    pub code: u8,
    /// Next-hop MTU in bytes, where the error says it.
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

/// Another extension object.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Extension {
    pub class: u8,
    pub class_type: u8,
    /// Hexadecimal.
    pub data: String,
}

/// Why the path ends where it does.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Stop {
    pub reason: Reason,
    /// Where.
    pub ttl: u8,
    /// Who said so; unknown when nobody did.
    pub src: Option<String>,
    pub icmp: Option<Icmp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The target itself answered.
    Target,
    /// A router says that the target cannot be reached: see `icmp`.
    Unreachable,
    /// The last TTL.
    MaxTtl,
}

/// The path of one flow.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Flow {
    /// From 0.
    pub flow: u16,
    pub reached: bool,
    /// One for each TTL: who answered; unknown when nobody did.
    pub srcs: Vec<Option<String>>,
}

/// A probe that the probing host could not send.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Unsent {
    pub ttl: u8,
    pub reason: String,
}

impl Icmp {
    pub(super) fn of(answer: &Answer) -> Option<Self> {
        let Answer::Icmp(icmp) = answer else { return None };
        Some(Self { kind: icmp.kind.clone(), icmp_type: icmp.icmp_type, code: icmp.icmp_code, mtu: icmp.mtu })
    }
}

pub(super) fn words(answer: &Answer) -> String {
    match answer {
        Answer::Icmp(icmp) => icmp.kind.clone(),
        Answer::EchoReply => "echo reply".into(),
        Answer::SynAck => "SYN-ACK".into(),
        Answer::Reset => "RST".into(),
        Answer::Datagram => "datagram".into(),
        Answer::Dns(answer) => format!("DNS {}", answer.mnemonic),
    }
}

pub(super) fn labels(answer: &Answer) -> Option<Vec<Label>> {
    let Answer::Icmp(icmp) = answer else { return None };
    let label = |l: &MplsLabel| Label {
        label: l.label,
        traffic_class: l.traffic_class,
        bottom_of_stack: l.bottom_of_stack,
        ttl: l.ttl,
    };
    icmp.mpls.as_ref().map(|labels| labels.iter().map(label).collect())
}

pub(super) fn extensions(answer: &Answer) -> Vec<Extension> {
    let Answer::Icmp(icmp) = answer else { return vec![] };
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
