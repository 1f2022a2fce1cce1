//! Domain names as they go on the wire (RFC 1035, UTS 46), and the hosts of URLs.

use std::net::IpAddr;

/// The name as it goes on the wire: internationalised labels encoded (UTS 46), lengths checked (RFC 1035 2.3.4).
#[must_use]
pub fn ascii_name(name: &str) -> Option<String> {
    let ascii = if name.is_ascii() { name.to_owned() } else { idna_to_ascii(name)? };
    let bare = ascii.strip_suffix('.').unwrap_or(&ascii);
    let valid = !bare.is_empty()
        && bare.len() <= 253
        && bare.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    valid.then_some(ascii)
}

/// UTS 46, without a deny list: which ASCII characters a name may hold is the caller's business.
#[must_use]
pub fn idna_to_ascii(name: &str) -> Option<String> {
    idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::EMPTY).ok().map(Into::into)
}

/// One spelling for each name: encoded, in lower case, without the dot at its end. What cannot be encoded stays.
#[must_use]
pub fn canonical_name(name: &str) -> String {
    let ascii = if name.is_ascii() { None } else { idna_to_ascii(name) };
    let name = ascii.as_deref().unwrap_or(name);
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The host of a URL, without brackets: an address in its canonical form (an IPv4-mapped one is IPv4), a name as it is.
#[must_use]
pub fn canonical_host(host: &str) -> String {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().map_or_else(|_| bare.to_owned(), |address: IpAddr| address.to_canonical().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_one_form() {
        for (host, form) in [
            ("[::ffff:a4d:2]", "10.77.0.2"),
            ("::ffff:10.77.0.2", "10.77.0.2"),
            ("[FD77:0::2]", "fd77::2"),
            ("192.0.2.1", "192.0.2.1"),
            ("www.lab.test", "www.lab.test"),
            ("", ""),
        ] {
            assert_eq!(canonical_host(host), form, "{host}");
        }
    }

    #[test]
    fn names_are_encoded_and_their_lengths_checked() {
        assert_eq!(ascii_name("example.com."), Some("example.com.".into()));
        assert_eq!(ascii_name("_dmarc.example.com"), Some("_dmarc.example.com".into()));
        assert_eq!(ascii_name("bücher.example"), Some("xn--bcher-kva.example".into()));
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = ["a".repeat(60).as_str(); 5].join(".");
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a\0b",
            "a\nb",
            "💥..x",
            long_label.as_str(),
            long_name.as_str(),
            "http://x",
            "a/b",
            "a%b",
            "-\u{7f}",
        ] {
            assert_eq!(ascii_name(bad), None, "{bad:?}");
        }
    }
}
