//! DNS messages: encoding of queries, parsing of responses (RFC 1035, RFC 6891, RFC 3597). Pure.

use std::str::FromStr;
use std::time::Duration;

use domain::base::iana::{Class, Rtype};
use domain::base::message_builder::MessageBuilder;
use domain::base::rdata::UnknownRecordData;
use domain::base::zonefile_fmt::{DisplayKind, ZonefileFmt};
use domain::base::{Message, Name, ParsedRecord, ToName};
use domain::rdata::AllRecordData;

use super::opt::{Edns, Opt, opt};
use super::{AskError, Question, Request, Transport, rdata};
use crate::name::idna_to_ascii;

/// Further records of a section are dropped.
const MAX_RECORDS: usize = 4096;

/// An encoded query.
#[derive(Debug, Clone)]
pub struct Query {
    /// With a random identifier.
    pub bytes: Vec<u8>,
    pub id: u16,
}

impl Query {
    /// # Errors
    /// When name, type or class cannot be put on the wire, or the type is that of a zone transfer.
    pub fn new(request: &Request) -> Result<Self, AskError> {
        Self::build(&request.question, request.bits, request.edns)
    }

    /// With recursion desired.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(question: &Question) -> Result<Self, AskError> {
        Self::build(question, QueryBits::RECURSION, Some(Edns::default()))
    }

    fn build(question: &Question, bits: QueryBits, edns: Option<Edns>) -> Result<Self, AskError> {
        let name = name(&question.name)?;
        let rtype = Rtype::from_str(&question.rtype.to_ascii_uppercase())
            .map_err(|_| AskError::UnknownType(question.rtype.clone()))?;
        // The answer is a zone in as many messages as it takes (RFC 5936): one of them would pass for all of it.
        if matches!(rtype, Rtype::AXFR | Rtype::IXFR) {
            return Err(AskError::ZoneTransfer(question.rtype.clone()));
        }
        let class = class(&question.class).ok_or_else(|| AskError::UnknownClass(question.class.clone()))?;
        let id = rand::random();
        // Writing to memory has no limit that a question could reach.
        let full = |_| AskError::BadName("the question is too long".into());
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(id);
        builder.header_mut().set_rd(bits.recursion_desired);
        builder.header_mut().set_ad(bits.authentic_data);
        builder.header_mut().set_cd(bits.checking_disabled);
        let mut builder = builder.question();
        builder.push((name, rtype, class)).map_err(full)?;
        let mut builder = builder.additional();
        if let Some(edns) = edns {
            let opt = builder.opt(|opt| {
                opt.set_udp_payload_size(edns.udp_payload_size);
                opt.set_dnssec_ok(edns.dnssec_ok);
                if edns.nsid { opt.client_nsid() } else { Ok(()) }
            });
            opt.map_err(full)?;
        }
        Ok(Self { bytes: builder.finish(), id })
    }

    /// With identifier 0, for transports that match responses to queries themselves (RFC 8484, 4.1; RFC 9250, 4.2.1).
    #[must_use]
    pub fn without_id(&self) -> Vec<u8> {
        self.with_id([0, 0])
    }

    /// The same question with another identifier.
    #[must_use]
    pub fn with_id(&self, id: [u8; 2]) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id);
        bytes
    }

    /// Is this a response to this query? The caller checks the identifier where the transport needs one.
    fn is_answered_by(&self, reply: &Message<Vec<u8>>) -> bool {
        let Ok(asked) = Message::from_octets(&self.bytes) else { return false };
        if !reply.header().qr() {
            return false;
        }
        // A server that could not parse the query may leave the question out.
        let bare_error = reply.header_counts().qdcount() == 0 && reply.is_error();
        let same = match (asked.sole_question(), reply.sole_question()) {
            (Ok(asked), Ok(reply)) => {
                asked.qname().name_eq(reply.qname())
                    && asked.qtype() == reply.qtype()
                    && asked.qclass() == reply.qclass()
            }
            _ => false,
        };
        bare_error || same
    }

    /// For datagrams, which may be forged: identifier and question must both be those of this query.
    #[must_use]
    pub fn accepts(&self, datagram: &[u8]) -> bool {
        self.accepts_as(self.id.to_be_bytes(), datagram)
    }

    /// As [`accepts`](Self::accepts), for a query that was sent with this identifier.
    #[must_use]
    pub fn accepts_as(&self, id: [u8; 2], datagram: &[u8]) -> bool {
        Message::from_octets(datagram.to_vec())
            .is_ok_and(|reply| reply.header().id() == u16::from_be_bytes(id) && self.is_answered_by(&reply))
    }
}

fn name(text: &str) -> Result<Name<Vec<u8>>, AskError> {
    let bad = |reason: &str| AskError::BadName(format!("'{}' is not a domain name: {reason}", text.escape_debug()));
    if text.is_empty() {
        return Err(bad("it is empty"));
    }
    let ascii = if text.is_ascii() {
        text.to_owned()
    } else {
        idna_to_ascii(text).ok_or_else(|| bad("it cannot be encoded"))?
    };
    if ascii.bytes().any(|b| b.is_ascii_control()) {
        return Err(bad("it contains control characters"));
    }
    Name::from_str(&ascii).map_err(|error| bad(&error.to_string()))
}

fn class(text: &str) -> Option<Class> {
    Some(match text.to_ascii_uppercase().as_str() {
        "IN" => Class::IN,
        "CH" => Class::CH,
        "HS" => Class::HS,
        "NONE" => Class::NONE,
        "ANY" => Class::ANY,
        _ => return None,
    })
}

/// Header bits of a query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueryBits {
    pub recursion_desired: bool,
    /// The AD bit of the response is of interest (RFC 6840, section 5.7).
    pub authentic_data: bool,
    pub checking_disabled: bool,
}

impl QueryBits {
    pub const RECURSION: Self = Self { recursion_desired: true, authentic_data: false, checking_disabled: false };
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the header's bits")]
pub struct Flags {
    pub authoritative: bool,
    pub truncated: bool,
    pub recursion_desired: bool,
    pub recursion_available: bool,
    pub authentic_data: bool,
    pub checking_disabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub rtype: String,
    pub class: String,
    pub ttl: u32,
    pub data_length: u16,
    pub data: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub rcode: u16,
    pub mnemonic: String,
    pub flags: Flags,
    /// Name, type and class as the server gave them back, or as they were asked when it did not.
    pub question: (String, String, String),
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// None: the response has none, or one that is malformed.
    pub opt: Option<Opt>,
    pub size: u32,
    pub transport: Transport,
    pub elapsed: Duration,
}

/// # Errors
/// [`AskError::Malformed`], saying where.
pub fn parse(query: &Query, reply: &[u8], transport: Transport, elapsed: Duration) -> Result<Answer, AskError> {
    let malformed = |what: &str| AskError::Malformed(format!("the answer is malformed: {what}"));
    let message = Message::from_octets(reply.to_vec()).map_err(|_| malformed("shorter than a header"))?;
    if !query.is_answered_by(&message) {
        return Err(malformed("it answers another question"));
    }
    let (question, answer, authority, additional) =
        message.sections().map_err(|_| malformed("a section breaks off"))?;
    let asked = Message::from_octets(&query.bytes)
        .ok()
        .and_then(|asked| asked.first_question().map(|q| (dotted(q.qname()), q.qtype(), q.qclass())));
    let (name, rtype, class) = question
        .into_iter()
        .find_map(Result::ok)
        .map(|q| (dotted(q.qname()), q.qtype(), q.qclass()))
        .or(asked)
        .ok_or_else(|| malformed("no question"))?;
    let records = |section: domain::base::message::RecordSection<'_, Vec<u8>>, what: &str| {
        let mut records = vec![];
        for parsed in section.take(MAX_RECORDS) {
            let parsed = parsed.map_err(|_| malformed(&format!("a record of the {what} section")))?;
            // OPT is a pseudo-record: part of the exchange, not of the zone (RFC 6891).
            if parsed.rtype() != Rtype::OPT {
                records.push(
                    record(&parsed).ok_or_else(|| malformed(&format!("data of a record of the {what} section")))?,
                );
            }
        }
        Ok(records)
    };
    // A truncated response may end anywhere, and is asked for again over TCP.
    let truncated = message.header().tc() && transport == Transport::Udp;
    let section = |section, what: &str| {
        if truncated { Ok(records(section, what).unwrap_or_default()) } else { records(section, what) }
    };
    let header = message.header();
    let rcode = message.opt_rcode();
    Ok(Answer {
        rcode: rcode.to_int(),
        mnemonic: mnemonic(rcode.to_int()),
        flags: Flags {
            authoritative: header.aa(),
            truncated: header.tc(),
            recursion_desired: header.rd(),
            recursion_available: header.ra(),
            authentic_data: header.ad(),
            checking_disabled: header.cd(),
        },
        question: (name, rtype.to_string(), class.to_string()),
        answers: section(answer, "answer")?,
        authorities: section(authority, "authority")?,
        additionals: section(additional, "additional")?,
        opt: opt(&message),
        size: u32::try_from(reply.len()).unwrap_or(u32::MAX),
        transport,
        elapsed,
    })
}

/// Presentation form of an absolute name.
fn dotted(name: &impl ToName) -> String {
    let text = name.to_vec().to_string();
    if text.ends_with('.') { text } else { format!("{text}.") }
}

fn record(parsed: &ParsedRecord<'_, Vec<u8>>) -> Option<Record> {
    let known = parsed.to_any_record::<AllRecordData<_, _>>().ok().map(|record| match record.data() {
        AllRecordData::Unknown(raw) => rdata::presentation(parsed.rtype(), raw.data())
            .unwrap_or_else(|| raw.display_zonefile(DisplayKind::Simple).to_string()),
        known => known.display_zonefile(DisplayKind::Simple).to_string(),
    });
    // Data that does not fit its type is shown as bytes (RFC 3597).
    let data = known.or_else(|| {
        let raw = parsed.to_record::<UnknownRecordData<_>>().ok()??;
        Some(raw.data().display_zonefile(DisplayKind::Simple).to_string())
    });
    Some(Record {
        name: dotted(&parsed.owner()),
        rtype: parsed.rtype().to_string(),
        class: parsed.class().to_string(),
        ttl: parsed.ttl().as_secs(),
        data_length: parsed.rdlen(),
        data: data?,
    })
}

/// IANA "DNS RCODEs", in lower case.
#[must_use]
pub fn mnemonic(rcode: u16) -> String {
    let known = match rcode {
        0 => "noerror",
        1 => "formerr",
        2 => "servfail",
        3 => "nxdomain",
        4 => "notimp",
        5 => "refused",
        6 => "yxdomain",
        7 => "yxrrset",
        8 => "nxrrset",
        9 => "notauth",
        10 => "notzone",
        11 => "dsotypeni",
        16 => "badvers",
        17 => "badkey",
        18 => "badtime",
        19 => "badmode",
        20 => "badname",
        21 => "badalg",
        22 => "badtrunc",
        23 => "badcookie",
        other => return format!("rcode{other}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Question;
    use super::*;

    fn request(name: &str, rtype: &str) -> Request {
        Request {
            question: Question { name: name.into(), rtype: rtype.into(), class: "in".into() },
            port: 53,
            transport: Transport::Udp,
            server_name: None,
            bits: QueryBits::RECURSION,
            edns: Some(Edns::default()),
            timeout: Duration::from_secs(1),
        }
    }

    fn answer(query: &Query, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut reply = query.bytes.clone();
        // The OPT record at the end (11 bytes) is removed to append the answers.
        reply.truncate(reply.len() - 11);
        reply[2] |= 0x80;
        reply[7] = u8::try_from(records.len()).expect("few");
        reply[11] = 0;
        for (rtype, data) in records {
            reply.extend([0xc0, 12]);
            reply.extend(rtype.to_be_bytes());
            reply.extend([0, 1, 0, 0, 0, 60]);
            reply.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
            reply.extend(*data);
        }
        reply
    }

    fn parsed(records: &[(u16, &[u8])]) -> Answer {
        let query = Query::new(&request("Example.com", "a")).expect("query");
        parse(&query, &answer(&query, records), Transport::Udp, Duration::ZERO).expect("answer")
    }

    #[test]
    fn data_has_presentation_form_and_wire_length() {
        let mx = [&[0, 10, 4][..], b"mail", &[0xc0, 12]].concat();
        let txt = [&[5][..], b"a \"b\"", &[1], b"c"].concat();
        let answer = parsed(&[(1, &[192, 0, 2, 1]), (15, &mx), (16, &txt), (65280, &[1, 2, 3]), (1, &[1])]);
        let shown: Vec<_> = answer.answers.iter().map(|r| (r.rtype.as_str(), r.data_length, r.data.as_str())).collect();
        assert_eq!(
            shown,
            [
                ("A", 4, "192.0.2.1"),
                ("MX", 9, "10 mail.Example.com."),
                ("TXT", 8, r#""a \"b\"" "c""#),
                ("TYPE65280", 3, r"\# 3 01 02 03"),
                ("A", 1, r"\# 1 01"),
            ]
        );
        assert_eq!(answer.question, ("Example.com.".into(), "A".into(), "IN".into()));
        assert_eq!(answer.answers[0].name, "Example.com.");
    }

    #[test]
    fn only_an_answer_to_the_question_is_taken() {
        let query = Query::new(&request("example.com", "A")).expect("query");
        let reply = answer(&query, &[]);
        assert!(query.accepts(&reply));
        let mut wrong_id = reply.clone();
        wrong_id[0] ^= 1;
        assert!(!query.accepts(&wrong_id));
        assert!(!query.accepts(&query.bytes), "our own question is no answer");
        let other = Query::new(&request("example.net", "A")).expect("query");
        let mut other = answer(&other, &[]);
        other[..2].copy_from_slice(&reply[..2]);
        assert!(!query.accepts(&other));
        let mut formerr = reply[..12].to_vec();
        formerr[5] = 0;
        formerr[3] |= 1;
        assert!(query.accepts(&formerr), "an error without the question");
    }

    #[test]
    fn names_types_and_classes_are_checked() {
        assert!(matches!(Query::new(&request("a..b", "A")), Err(AskError::BadName(_))));
        assert!(matches!(Query::new(&request("", "A")), Err(AskError::BadName(_))));
        assert!(matches!(Query::new(&request(&"a".repeat(64), "A")), Err(AskError::BadName(_))));
        assert!(matches!(Query::new(&request("a\nb", "A")), Err(AskError::BadName(_))));
        assert!(matches!(Query::new(&request("a", "BOGUS")), Err(AskError::UnknownType(_))));
        for fine in ["A", "type257", "LOC", "uri", "caa", "https"] {
            assert!(Query::new(&request("_x.bücher.example.", fine)).is_ok(), "{fine}");
        }
        assert!(Query::new(&request(".", "NS")).is_ok());
    }

    #[test]
    fn zone_transfers_are_no_questions() {
        for rtype in ["AXFR", "ixfr", "TYPE252", "type251"] {
            assert_eq!(Query::new(&request("a", rtype)).map(|_| ()), Err(AskError::ZoneTransfer(rtype.into())));
        }
    }

    #[test]
    fn a_query_has_the_bits_and_the_opt_record_that_were_asked_for() {
        let plain = Query::new(&request("a.example", "A")).expect("a query").bytes;
        let bare = plain.len() - 11;
        assert_eq!((&plain[2..4], &plain[bare..]), (&[1, 0][..], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0][..]));
        let bits = QueryBits { recursion_desired: false, authentic_data: true, checking_disabled: true };
        let edns = Edns { udp_payload_size: 512, dnssec_ok: true, nsid: true };
        let all = Request { bits, edns: Some(edns), ..request("a.example", "A") };
        let all = Query::new(&all).expect("a query").bytes;
        assert_eq!(
            (&all[2..4], &all[bare..]),
            (&[0, 0x30][..], &[0, 0, 41, 2, 0, 0, 0, 0x80, 0, 0, 4, 0, 3, 0, 0][..])
        );
        let none = Query::new(&Request { edns: None, ..request("a.example", "A") }).expect("a query").bytes;
        assert_eq!((none.len(), none[11]), (bare, 0));
    }

    #[test]
    fn no_cut_or_flip_of_an_answer_panics_or_hangs() {
        let query = Query::new(&request("example.com", "A")).expect("query");
        let soa = [&[0xc0, 12, 0xc0, 12][..], &[0; 20]].concat();
        let whole = answer(&query, &[(1, &[192, 0, 2, 1]), (6, &soa), (2, &[0xc0, 12])]);
        for cut in 0..whole.len() {
            let _ = parse(&query, &whole[..cut], Transport::Tcp, Duration::ZERO);
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = parse(&query, &flipped, Transport::Tcp, Duration::ZERO);
        }
        // A name that points at itself.
        let mut looped = answer(&query, &[(2, &[0, 0])]);
        let end = looped.len() - 2;
        let pointer = 0xc000 | u16::try_from(end).expect("short");
        looped[end..].copy_from_slice(&pointer.to_be_bytes());
        let _ = parse(&query, &looped, Transport::Tcp, Duration::ZERO);
    }
}
