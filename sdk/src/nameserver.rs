//! What tests of name servers share.

use schemars::JsonSchema;
use serde::Deserialize;

/// One name server, or several in order.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum NameServers {
    One(#[schemars(length(min = 1, max = 255))] String),
    Several(#[schemars(length(min = 1, max = 10))] Vec<String>),
}

/// The first version's words for the codes of RFC 1035; the IANA mnemonic for the others.
#[must_use]
pub fn rcode(code: u16, mnemonic: String) -> String {
    match code {
        0 => "ok".into(),
        1 => "format-error".into(),
        2 => "server-failure".into(),
        3 => "name-error".into(),
        4 => "not-implemented".into(),
        _ => mnemonic,
    }
}
