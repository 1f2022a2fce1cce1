//! The `location` header of a response (RFC 9110, section 10.2.2), whatever bytes a server puts there: what it leads to is
//! a URL that reads the same when it is read again, and nothing of it is another header's.

#![no_main]

use http::HeaderMap;
use http::header::{HeaderValue, LOCATION};
use scouter_net::http::redirect;
use url::Url;

const FROM: [&str; 3] = ["https://a.example/b/c?d#e", "http://[2001:db8::1]:8080/", "http://192.0.2.1/%2e%2e/x"];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((choice, location)) = data.split_first() else { return };
    let Ok(location) = HeaderValue::from_bytes(location) else { return };
    let from: Url = FROM[usize::from(*choice) % FROM.len()].parse().expect("a URL");
    let headers = HeaderMap::from_iter([(LOCATION, location)]);
    assert_eq!(redirect(&from, 200, &headers), None);
    let Some(to) = redirect(&from, 302, &headers) else { return };
    // Other schemes are refused, and may have blanks in their paths.
    if !matches!(to.scheme(), "http" | "https") {
        return;
    }
    assert!(!to.as_str().bytes().any(|byte| byte.is_ascii_control() || byte == b' ' || !byte.is_ascii()), "{to}");
    let again: Url = to.as_str().parse().expect("a URL");
    assert_eq!(again, to);
    if to.origin() == from.origin() {
        assert_eq!((to.scheme(), to.host(), to.port_or_known_default()), (from.scheme(), from.host(), from.port_or_known_default()));
    }
});
