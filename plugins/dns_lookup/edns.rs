//! The OPT record of an answer (RFC 6891).

use scouter_sdk::prelude::*;

/// The OPT record.
#[derive(Serialize, JsonSchema)]
pub struct Edns {
    /// Bytes of the largest query over UDP that the name server takes.
    udp_payload_size: u16,
    version: u8,
    /// The upper 8 bits of the response code, which `rcode` includes.
    extended_rcode: u8,
    /// DO bit.
    dnssec_ok: bool,
    /// RFC 8914.
    extended_errors: Vec<ExtendedError>,
    /// Identifier of the name server (RFC 5001).
    nsid: Option<Nsid>,
    /// RFC 7871.
    client_subnet: Option<ClientSubnet>,
    /// Bytes of padding (RFC 7830).
    padding: Option<u16>,
    /// RFC 7873.
    cookie: Option<Cookie>,
    /// Options of other kinds, malformed and repeated ones.
    options: Vec<EdnsOption>,
}

#[derive(Serialize, JsonSchema)]
struct ExtendedError {
    code: u16,
    /// As IANA has it; null for codes without a name.
    name: Option<String>,
    /// The name server's own words.
    text: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Nsid {
    /// Hexadecimal.
    hex: String,
    /// The same bytes as text; null when they are not printable ASCII.
    text: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct ClientSubnet {
    address: String,
    /// Bits of the address that the query had.
    source_prefix_length: u8,
    /// Bits of the address that the answer holds for.
    scope_prefix_length: u8,
}

#[derive(Serialize, JsonSchema)]
struct Cookie {
    /// Hexadecimal.
    client: String,
    /// Hexadecimal.
    server: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct EdnsOption {
    /// Number of the option at IANA.
    code: u16,
    /// Hexadecimal.
    data: String,
}

impl From<Vec<u8>> for Nsid {
    fn from(bytes: Vec<u8>) -> Self {
        let printable = !bytes.is_empty() && bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
        Self { hex: hex::encode(&bytes), text: String::from_utf8(bytes).ok().filter(|_| printable) }
    }
}

impl From<dns::Opt> for Edns {
    fn from(opt: dns::Opt) -> Self {
        let errors = opt.extended_errors.into_iter();
        let others = opt.others.into_iter();
        Self {
            udp_payload_size: opt.udp_payload_size,
            version: opt.version,
            extended_rcode: opt.extended_rcode,
            dnssec_ok: opt.dnssec_ok,
            extended_errors: errors.map(|e| ExtendedError { code: e.code, name: e.name, text: e.text }).collect(),
            nsid: opt.nsid.map(Nsid::from),
            client_subnet: opt.client_subnet.map(|subnet| ClientSubnet {
                address: subnet.address,
                source_prefix_length: subnet.source_prefix_length,
                scope_prefix_length: subnet.scope_prefix_length,
            }),
            padding: opt.padding,
            cookie: opt
                .cookie
                .map(|cookie| Cookie { client: hex::encode(cookie.client), server: cookie.server.map(hex::encode) }),
            options: others.map(|option| EdnsOption { code: option.code, data: hex::encode(option.data) }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn bytes_are_shown_in_hexadecimal_and_identifiers_as_text_where_they_are_text() {
        let opt = dns::Opt {
            udp_payload_size: 1232,
            version: 0,
            extended_rcode: 1,
            dnssec_ok: true,
            extended_errors: vec![dns::ExtendedError { code: 18, name: Some("Prohibited".into()), text: None }],
            nsid: Some(b"ns 1".to_vec()),
            client_subnet: Some(dns::ClientSubnet {
                address: "192.0.2.0".into(),
                source_prefix_length: 24,
                scope_prefix_length: 0,
            }),
            padding: Some(12),
            cookie: Some(dns::Cookie { client: vec![1; 8], server: Some(vec![255; 8]) }),
            others: vec![dns::EdnsOption { code: 11, data: vec![0, 100] }],
        };
        let shown = serde_json::to_value(Edns::from(opt)).expect("JSON");
        let expected = json!({
            "udp_payload_size": 1232, "version": 0, "extended_rcode": 1, "dnssec_ok": true,
            "extended_errors": [{"code": 18, "name": "Prohibited", "text": null}],
            "nsid": {"hex": "6e732031", "text": "ns 1"},
            "client_subnet": {"address": "192.0.2.0", "source_prefix_length": 24, "scope_prefix_length": 0},
            "padding": 12,
            "cookie": {"client": "0101010101010101", "server": "ffffffffffffffff"},
            "options": [{"code": 11, "data": "0064"}],
        });
        assert_eq!(shown, expected);
        for bytes in [&b"\x01\xff"[..], b"a\n", b""] {
            let nsid = serde_json::to_value(Nsid::from(bytes.to_vec())).expect("JSON");
            assert_eq!((&nsid["hex"], &nsid["text"]), (&json!(hex::encode(bytes)), &Value::Null));
        }
    }
}
