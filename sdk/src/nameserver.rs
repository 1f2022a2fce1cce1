//! Name servers as options, and response codes as results.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::Error;

/// Name servers of one test.
const MAX_SERVERS: usize = 10;

/// One name server, or several in order.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum NameServers {
    /// Several are separated by blanks or commas.
    Text(#[schemars(length(min = 1, max = 2560))] String),
    List(#[schemars(length(min = 1, max = 10))] Vec<String>),
}

impl NameServers {
    /// The name servers in order, at least one.
    ///
    /// # Errors
    /// When there is none, or there are more than ten.
    pub fn list(&self) -> Result<Vec<String>, Error> {
        let texts = match self {
            Self::Text(text) => std::slice::from_ref(text),
            Self::List(list) => list,
        };
        let separator = |c: char| c.is_whitespace() || c == ',';
        let servers = texts.iter().flat_map(|text| text.split(separator)).filter(|server| !server.is_empty());
        let servers: Vec<String> = servers.map(str::to_owned).collect();
        if (1..=MAX_SERVERS).contains(&servers.len()) {
            return Ok(servers);
        }
        let count = servers.len();
        Err(format!("Provided value of option 'ns' has {count} name servers. Expected: 1 to {MAX_SERVERS}.").into())
    }
}

/// The name of a response code: for the codes 0–4 of RFC 1035 the names of the API's first version, for the others the
/// IANA mnemonic in lower case.
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

/// The question's name for the option `qname`: an empty name is the root.
#[must_use]
pub fn question_name(qname: &str) -> String {
    if qname.is_empty() { ".".into() } else { qname.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn list(ns: Value) -> Result<Vec<String>, String> {
        let servers: NameServers = serde_json::from_value(ns).map_err(|error| error.to_string())?;
        servers.list().map_err(|error| error.to_string())
    }

    #[test]
    fn several_name_servers_come_in_a_string_or_a_list() {
        let two = || Ok(vec!["192.0.2.1".into(), "ns.example".into()]);
        for ns in [
            json!("192.0.2.1 ns.example"),
            json!("192.0.2.1,ns.example"),
            json!(" 192.0.2.1,  ns.example "),
            json!("192.0.2.1\tns.example"),
            json!(["192.0.2.1", "ns.example"]),
            json!(["192.0.2.1 ns.example"]),
        ] {
            assert_eq!(list(ns.clone()), two(), "{ns}");
        }
        assert_eq!(list(json!("2001:db8::1")), Ok(vec!["2001:db8::1".into()]));
    }

    #[test]
    fn no_name_server_and_too_many_are_errors() {
        let message =
            |count| Err(format!("Provided value of option 'ns' has {count} name servers. Expected: 1 to 10."));
        assert_eq!(list(json!(" , ")), message(0));
        assert_eq!(list(json!([""])), message(0));
        assert_eq!(list(json!("a ".repeat(11))), message(11));
    }

    #[test]
    fn response_codes_have_the_names_of_the_first_version() {
        let names = ["ok", "format-error", "server-failure", "name-error", "not-implemented", "refused", "yxdomain"];
        for (code, name) in (0..).zip(names) {
            let mnemonic = if code < 5 { "unused".to_owned() } else { name.to_owned() };
            assert_eq!(rcode(code, mnemonic), name);
        }
    }

    #[test]
    fn an_empty_name_is_the_root() {
        assert_eq!((question_name(""), question_name("a.example")), (".".into(), "a.example".into()));
    }
}
