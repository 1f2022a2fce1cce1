//! Where a response leads to. Pure: following it is another exchange, vetted like the first.

use http::HeaderMap;
use http::header::LOCATION;
use url::Url;

/// The target of the `location` header (RFC 9110, section 10.2.2) of a response to a request for `url`. None: its status is
/// not one that leads elsewhere, or there is no such header, or it is no URL.
#[must_use]
pub fn redirect(url: &Url, status: u16, headers: &HeaderMap) -> Option<Url> {
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = String::from_utf8_lossy(headers.get(LOCATION)?.as_bytes()).into_owned();
    let mut to = url.join(&location).ok()?;
    // The fragment is inherited.
    if to.fragment().is_none() {
        to.set_fragment(url.fragment());
    }
    Some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str, status: u16, location: &[u8]) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, http::HeaderValue::from_bytes(location).expect("a value"));
        redirect(&url.parse().expect("a URL"), status, &headers).map(Into::into)
    }

    #[test]
    fn relative_targets_and_fragments_are_resolved() {
        let from = |to: &[u8]| location("https://a.example/b/c?d#e", 302, to);
        assert_eq!(from(b"/x").as_deref(), Some("https://a.example/x#e"));
        assert_eq!(from(b"x?y").as_deref(), Some("https://a.example/b/x?y#e"));
        assert_eq!(from(b"//other.example").as_deref(), Some("https://other.example/#e"));
        assert_eq!(from(b"http://other.example/#f").as_deref(), Some("http://other.example/#f"));
        assert_eq!(from("/\u{fc}".as_bytes()).as_deref(), Some("https://a.example/%C3%BC#e"));
        assert_eq!(from(b"/\xff").as_deref(), Some("https://a.example/%EF%BF%BD#e"));
        assert_eq!(from(b"http://[").as_deref(), None);
        assert_eq!(location("https://a.example/", 200, b"/x"), None);
    }
}
