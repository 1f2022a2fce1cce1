//! `dns`: one question to one name server.

use std::time::Duration;

use scouter_net::dns::{self, AskError, Edns, QueryBits, Question, Request, Transport};
use scouter_net::lag::DEGRADED;
use scouter_net::metered::Received;

use super::weight::{Weigh, plain, records};
use super::{RunState, parse_address, wit};
use crate::sandbox::budget::{PACKETS_OF, Target, Use};
use wit::dns::{AnswerFlags, DnsError, Opt, ResourceRecord};
use wit::net::NetError;

impl From<wit::dns::Transport> for Transport {
    fn from(transport: wit::dns::Transport) -> Self {
        match transport {
            wit::dns::Transport::Udp => Self::Udp,
            wit::dns::Transport::Tcp => Self::Tcp,
            wit::dns::Transport::Tls => Self::Tls,
            wit::dns::Transport::Https => Self::Https,
            wit::dns::Transport::Quic => Self::Quic,
        }
    }
}

impl From<Transport> for wit::dns::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Udp => Self::Udp,
            Transport::Tcp => Self::Tcp,
            Transport::Tls => Self::Tls,
            Transport::Https => Self::Https,
            Transport::Quic => Self::Quic,
        }
    }
}

impl From<AskError> for DnsError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Timeout => Self::Net(NetError::Timeout),
            AskError::Refused => Self::Net(NetError::Refused),
            AskError::Unreachable(why) => Self::Net(NetError::Unreachable(why)),
            AskError::Unavailable(why) => Self::Net(NetError::Unavailable(why)),
            AskError::BadName(why) => Self::BadName(why),
            AskError::UnknownType(which) => Self::UnknownType(which),
            AskError::UnknownClass(which) => Self::UnknownClass(which),
            AskError::ZoneTransfer(which) => Self::ZoneTransfer(which),
            AskError::Malformed(why) => Self::Malformed(why),
            AskError::Insecure(why) => Self::Handshake(why),
        }
    }
}

impl From<dns::Record> for ResourceRecord {
    fn from(r: dns::Record) -> Self {
        Self { name: r.name, type_: r.rtype, class: r.class, ttl: r.ttl, data_length: r.data_length, data: r.data }
    }
}

impl From<dns::Opt> for Opt {
    fn from(opt: dns::Opt) -> Self {
        let errors = opt.extended_errors.into_iter();
        Self {
            udp_payload_size: opt.udp_payload_size,
            version: opt.version,
            extended_rcode: opt.extended_rcode,
            dnssec_ok: opt.dnssec_ok,
            extended_errors: errors
                .map(|e| wit::dns::ExtendedError { code: e.code, name: e.name.map(str::to_owned), text: e.text })
                .collect(),
            nsid: opt.nsid,
            client_subnet: opt.client_subnet.map(|subnet| wit::dns::ClientSubnet {
                address: subnet.address.to_string(),
                source_prefix_length: subnet.source_prefix,
                scope_prefix_length: subnet.scope_prefix,
            }),
            padding: opt.padding,
            cookie: opt.cookie.map(|cookie| wit::dns::Cookie { client: cookie.client, server: cookie.server }),
            others: opt.others.into_iter().map(|o| wit::dns::EdnsOption { code: o.code, data: o.data }).collect(),
        }
    }
}

impl wit::dns::Answer {
    fn new(answer: dns::Answer, degraded: bool) -> Self {
        let records = |records: Vec<dns::Record>| records.into_iter().map(ResourceRecord::from).collect();
        let f = answer.flags;
        let flags = [
            (f.authoritative, AnswerFlags::AUTHORITATIVE),
            (f.truncated, AnswerFlags::TRUNCATED),
            (f.recursion_desired, AnswerFlags::RECURSION_DESIRED),
            (f.recursion_available, AnswerFlags::RECURSION_AVAILABLE),
            (f.authentic_data, AnswerFlags::AUTHENTIC_DATA),
            (f.checking_disabled, AnswerFlags::CHECKING_DISABLED),
        ];
        let (name, type_, class) = answer.question;
        Self {
            rcode: answer.rcode,
            mnemonic: answer.mnemonic,
            flags: flags.into_iter().filter(|(set, _)| *set).fold(AnswerFlags::empty(), |all, (_, flag)| all | flag),
            question: wit::dns::Question { name, type_, class },
            answers: records(answer.answers),
            authorities: records(answer.authorities),
            additionals: records(answer.additionals),
            opt: answer.opt.map(Into::into),
            size: answer.size,
            transport: answer.transport.into(),
            elapsed_ns: u64::try_from(answer.elapsed.as_nanos()).unwrap_or(u64::MAX),
            degraded: degraded.then(|| DEGRADED.to_owned()),
        }
    }
}

impl wit::dns::Host for RunState {
    async fn ask(&mut self, query: wit::dns::Query) -> wasmtime::Result<Result<wit::dns::Answer, DnsError>> {
        self.call(&query)?;
        let answered = self.answer(query).await?;
        self.give(answered)
    }
}

records! {
    wit::dns::Query {
        question, server, port, transport, server_name, recursion_desired, authentic_data, checking_disabled, edns,
        timeout_ms,
    }
    wit::dns::Question { name, type_, class }
    ResourceRecord { name, type_, class, ttl, data_length, data }
    wit::dns::Answer {
        rcode, mnemonic, flags, question, answers, authorities, additionals, opt, size, transport, elapsed_ns, degraded,
    }
    Opt {
        udp_payload_size, version, extended_rcode, dnssec_ok, extended_errors, nsid, client_subnet, padding, cookie,
        others,
    }
    wit::dns::ExtendedError { code, name, text }
    wit::dns::ClientSubnet { address, source_prefix_length, scope_prefix_length }
    wit::dns::Cookie { client, server }
    wit::dns::EdnsOption { code, data }
}
plain!(wit::dns::Transport, wit::dns::Edns, AnswerFlags);

impl Weigh for DnsError {
    fn referred(&self) -> usize {
        match self {
            Self::Net(error) => error.referred(),
            Self::BadName(text)
            | Self::UnknownType(text)
            | Self::UnknownClass(text)
            | Self::ZoneTransfer(text)
            | Self::Malformed(text)
            | Self::Handshake(text) => text.referred(),
        }
    }
}

impl RunState {
    async fn answer(&mut self, query: wit::dns::Query) -> wasmtime::Result<Result<wit::dns::Answer, DnsError>> {
        let transport = Transport::from(query.transport);
        let port = query.port.unwrap_or(transport.port());
        let server = match parse_address(&query.server)
            .and_then(|server| self.permit(server, |policy, server, name| policy.permit_question(server, port, name)))
        {
            Ok(server) => server,
            Err(error) => return Ok(Err(DnsError::Net(error))),
        };
        if !(1..=60_000).contains(&query.timeout_ms) {
            let why = format!("timeout {} ms is not from 1 to 60000 ms", query.timeout_ms);
            return Ok(Err(DnsError::Net(NetError::Invalid(why))));
        }
        if let Some(edns) = query.edns.filter(|edns| !(512..=4096).contains(&edns.udp_payload_size)) {
            let why = format!("UDP payload size {} is not from 512 to 4096 bytes", edns.udp_payload_size);
            return Ok(Err(DnsError::Net(NetError::Invalid(why))));
        }
        let packets = if transport == Transport::Udp { PACKETS_OF.question } else { PACKETS_OF.connected_question };
        if let Err(exceeded) = self.take(Use { target: Some(Target::Address(server.address())), names: 0, packets }) {
            return Ok(Err(DnsError::Net(exceeded.into())));
        }
        self.pace(packets).await;
        let asked = Request {
            question: Question { name: query.question.name, rtype: query.question.type_, class: query.question.class },
            port,
            transport,
            server_name: query.server_name,
            bits: QueryBits {
                recursion_desired: query.recursion_desired,
                authentic_data: query.authentic_data,
                checking_disabled: query.checking_disabled,
            },
            edns: query.edns.map(|edns| Edns {
                udp_payload_size: edns.udp_payload_size,
                dnssec_ok: edns.dnssec_ok,
                nsid: edns.nsid,
            }),
            timeout: Duration::from_millis(query.timeout_ms.into()),
        };
        let services = self.services.clone();
        let received = Received::default();
        let meter = received.clone();
        let ask = async move {
            let watch = services.net.lag.watch();
            let answer = dns::ask(&services.net.tls, server, &asked, &meter).await?;
            // Over UDP the kernel's timestamp is the end.
            let degraded = answer.transport != Transport::Udp && watch.degrades_last(answer.elapsed);
            Ok((answer, degraded))
        };
        let answered = self.on_io(Box::pin(ask)).await?;
        self.guest.budget.received(received.bytes(), None);
        Ok(answered
            .map(|(answer, degraded)| wit::dns::Answer::new(answer, degraded))
            .map_err(|error: AskError| error.into()))
    }
}
