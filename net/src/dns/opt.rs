//! The OPT record of a response (RFC 6891) and the options in it. Pure.

use std::net::IpAddr;

use domain::base::iana::OptionCode;
use domain::base::opt::{ClientSubnet as WireSubnet, Cookie as WireCookie, ExtendedError as WireError, UnknownOptData};
use domain::base::{Message, opt::OptRecord};
use domain::dep::octseq::Parser;

/// Further options are dropped.
const MAX_OPTIONS: usize = 256;

/// What a query says of EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Bytes of the largest response over UDP that is taken.
    pub udp_payload_size: u16,
    pub dnssec_ok: bool,
    /// Ask for the server's identifier (RFC 5001).
    pub nsid: bool,
}

impl Default for Edns {
    fn default() -> Self {
        // Fits the smallest MTU of IPv6 paths (DNS flag day 2020).
        Self { udp_payload_size: 1232, dnssec_ok: false, nsid: false }
    }
}

/// An OPT record. An option that does not fit its format, or that comes again where there is one at most, is among the
/// `others`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opt {
    pub udp_payload_size: u16,
    pub version: u8,
    /// The upper 8 bits of the response code.
    pub extended_rcode: u8,
    pub dnssec_ok: bool,
    pub extended_errors: Vec<ExtendedError>,
    pub nsid: Option<Vec<u8>>,
    pub client_subnet: Option<ClientSubnet>,
    /// Bytes.
    pub padding: Option<u16>,
    pub cookie: Option<Cookie>,
    pub others: Vec<RawOption>,
}

/// RFC 8914.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendedError {
    pub code: u16,
    /// IANA "Extended DNS Error Codes"; None for others.
    pub name: Option<&'static str>,
    pub text: Option<String>,
}

/// RFC 7871.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSubnet {
    pub address: IpAddr,
    pub source_prefix: u8,
    pub scope_prefix: u8,
}

/// RFC 7873.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    pub client: Vec<u8>,
    pub server: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawOption {
    pub code: u16,
    pub data: Vec<u8>,
}

/// The OPT record of a message, if there is one that can be read.
pub fn opt(message: &Message<Vec<u8>>) -> Option<Opt> {
    let record: OptRecord<_> = message.opt()?;
    let mut opt = Opt {
        udp_payload_size: record.udp_payload_size(),
        version: record.version(),
        extended_rcode: record.rcode(message.header()).ext(),
        dnssec_ok: record.dnssec_ok(),
        extended_errors: vec![],
        nsid: None,
        client_subnet: None,
        padding: None,
        cookie: None,
        others: vec![],
    };
    for option in record.opt().iter::<UnknownOptData<_>>().take(MAX_OPTIONS).map_while(Result::ok) {
        opt.add(option.code(), option.as_slice());
    }
    Some(opt)
}

impl Opt {
    fn add(&mut self, code: OptionCode, data: &[u8]) {
        let known = match code {
            OptionCode::EXTENDED_ERROR => extended_error(data).map(|error| self.extended_errors.push(error)),
            OptionCode::NSID => once(&mut self.nsid, Some(data.to_vec())),
            OptionCode::CLIENT_SUBNET => once(&mut self.client_subnet, client_subnet(data)),
            OptionCode::PADDING => once(&mut self.padding, u16::try_from(data.len()).ok()),
            OptionCode::COOKIE => once(&mut self.cookie, cookie(data)),
            _ => None,
        };
        if known.is_none() {
            self.others.push(RawOption { code: code.to_int(), data: data.to_vec() });
        }
    }
}

/// None: there is no value, or there was one already.
fn once<T>(place: &mut Option<T>, value: Option<T>) -> Option<()> {
    if place.is_some() {
        return None;
    }
    *place = value;
    place.as_ref().map(|_| ())
}

fn extended_error(data: &[u8]) -> Option<ExtendedError> {
    let error = WireError::parse(&mut Parser::from_ref(data)).ok()?;
    // The text may end in a null byte (RFC 8914, section 2).
    let text = error.text_slice().map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Some(ExtendedError {
        code: error.code().to_int(),
        name: error.code().to_mnemonic_str(),
        text: text.filter(|text| !text.is_empty()),
    })
}

fn client_subnet(data: &[u8]) -> Option<ClientSubnet> {
    let subnet = WireSubnet::parse(&mut Parser::from_ref(&data)).ok()?;
    Some(ClientSubnet {
        address: subnet.addr(),
        source_prefix: subnet.source_prefix_len(),
        scope_prefix: subnet.scope_prefix_len(),
    })
}

fn cookie(data: &[u8]) -> Option<Cookie> {
    WireCookie::parse(&mut Parser::from_ref(data)).ok()?;
    let (client, server) = data.split_at_checked(8)?;
    Some(Cookie { client: client.to_vec(), server: (!server.is_empty()).then(|| server.to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response without a question, with one OPT record: server's buffer 1400, extended rcode 1, version 0, DO.
    fn parsed(options: &[(u16, &[u8])]) -> Option<Opt> {
        let mut data = vec![];
        for (code, option) in options {
            data.extend(code.to_be_bytes());
            data.extend(u16::try_from(option.len()).expect("short").to_be_bytes());
            data.extend(*option);
        }
        let mut message = vec![0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 41, 5, 120, 1, 0, 0x80, 0];
        message.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
        message.extend(data);
        opt(&Message::from_octets(message).expect("a message"))
    }

    #[test]
    fn every_field_and_option_is_read() {
        let opt = parsed(&[
            (15, b"\0\x07the signature\xff ended\0"),
            (15, &[0, 22]),
            (15, &[0xc0, 0, b'x']),
            (3, b"ns1"),
            (8, &[0, 1, 24, 16, 192, 0, 2]),
            (12, &[0; 5]),
            (10, b"clientckserverck"),
            (11, &[0, 100]),
        ]);
        let error = |code, name, text: Option<&str>| ExtendedError { code, name, text: text.map(str::to_owned) };
        let expected = Opt {
            udp_payload_size: 1400,
            version: 0,
            extended_rcode: 1,
            dnssec_ok: true,
            extended_errors: vec![
                error(7, Some("Signature Expired"), Some("the signature\u{fffd} ended")),
                error(22, Some("No Reachable Authority"), None),
                error(0xc000, None, Some("x")),
            ],
            nsid: Some(b"ns1".to_vec()),
            client_subnet: Some(ClientSubnet {
                address: IpAddr::from([192, 0, 2, 0]),
                source_prefix: 24,
                scope_prefix: 16,
            }),
            padding: Some(5),
            cookie: Some(Cookie { client: b"clientck".to_vec(), server: Some(b"serverck".to_vec()) }),
            others: vec![RawOption { code: 11, data: vec![0, 100] }],
        };
        assert_eq!(opt, Some(expected));
    }

    #[test]
    fn options_that_do_not_fit_or_come_again_are_shown_as_bytes() {
        let opt = parsed(&[(15, &[0]), (8, &[0, 1, 33, 0, 1, 2, 3, 4, 5]), (10, b"short"), (3, b"a"), (3, b"b")])
            .expect("an OPT record");
        let others: Vec<_> = opt.others.iter().map(|option| (option.code, option.data.len())).collect();
        assert_eq!(others, [(15, 1), (8, 9), (10, 5), (3, 1)]);
        assert_eq!((opt.nsid, opt.client_subnet, opt.cookie), (Some(b"a".to_vec()), None, None));
        let many = vec![(3, &[][..]); MAX_OPTIONS + 10];
        assert_eq!(parsed(&many).map(|opt| opt.others.len()), Some(MAX_OPTIONS - 1));
        let bare = Message::from_octets(vec![0; 12]).expect("a message");
        assert_eq!(super::opt(&bare), None);
    }
}
