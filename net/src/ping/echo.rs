//! The requests of one series, and which messages answer them: the same in both modes. Pure: no sockets.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{EchoResponse, PingParameters};
use crate::Family;
use crate::packet::icmp;
use crate::packet::token::{EchoPayloads, TokenKey};
use crate::policy::Permitted;
use crate::series::Arrival;

/// Sequence number of a request, from 0.
#[must_use]
pub fn seq(index: u32) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

pub struct EchoDemultiplexer {
    family: Family,
    target: IpAddr,
    destination: SocketAddr,
    payloads: EchoPayloads,
}

impl EchoDemultiplexer {
    /// `series` never repeats in a process.
    pub fn new(target: Permitted, parameters: &PingParameters, key: &TokenKey, series: u64) -> Self {
        let (destination, target) = (target.socket_address(0), target.address());
        let payloads = EchoPayloads::new(key, series, target, parameters.payload_size.into());
        Self { family: Family::of(target), target, destination, payloads }
    }

    /// Where requests are sent, with the interface of a link-local address.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    pub fn request(&self, identifier: u16, index: u32) -> Vec<u8> {
        let seq = seq(index);
        icmp::echo_request(self.family, identifier, seq, self.payloads.payload(seq))
    }

    /// The request that a reply answers. When the payload is too short for a token, only the source is compared.
    pub fn reply(
        &self,
        source: IpAddr,
        timestamp: Option<Duration>,
        seq: u16,
        payload: &[u8],
        response: EchoResponse,
    ) -> Option<Arrival<EchoResponse>> {
        let is_ours =
            self.payloads.verify(seq, payload) && (source == self.target || self.payloads.hold_whole_tokens());
        is_ours.then(|| Arrival { index: seq.into(), source, timestamp, settles: true, response })
    }

    /// The request that an ICMP error from `source` quotes. `quoted_target` is the destination of the quoted packet, and
    /// `quoted` what follows its IP header.
    pub fn error(
        &self,
        source: IpAddr,
        timestamp: Option<Duration>,
        quoted_target: Option<IpAddr>,
        quoted: &[u8],
        kind: icmp::ErrorKind,
    ) -> Option<Arrival<EchoResponse>> {
        let (_, seq) = icmp::parse_echo_request(self.family, quoted)?;
        let is_ours =
            quoted_target == Some(self.target) && self.payloads.may_be_quoted(seq, quoted.get(icmp::HEADER..)?);
        let response = EchoResponse::Error(kind);
        is_ours.then(|| Arrival { index: seq.into(), source, timestamp, settles: false, response })
    }

    pub fn family(&self) -> Family {
        self.family
    }
}
