//! URLs as options and in results.

/// The scheme of a URL (RFC 3986, section 3.1) that has an authority: `http` of `http://example.com/`.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once("://")?;
    let mut bytes = scheme.bytes();
    let valid = bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    valid.then_some(scheme)
}

/// The URL with a scheme: `http` when it has none.
#[must_use]
pub fn with_scheme(url: &str) -> String {
    let url = url.trim();
    if scheme(url).is_some() { url.to_owned() } else { format!("http://{url}") }
}

/// The URL for results and messages: unchanged, with `***` in place of a password.
#[must_use]
pub fn without_password(url: &str) -> String {
    let start = scheme(url).map_or(0, |scheme| scheme.len() + "://".len());
    let (before, rest) = url.split_at(start);
    let authority = &rest[..rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len())];
    // A password with an unencoded delimiter makes the URL invalid: its beginning is where the port should be. It is
    // hidden all the same.
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    let valid = authority.contains('@') || port.ends_with(']') || port.bytes().all(|byte| byte.is_ascii_digit());
    // The last `@` ends the user information (URL Standard); its first `:` begins the password.
    let Some(at) = (if valid { authority } else { rest }).rfind('@') else { return url.to_owned() };
    let (user_information, after) = rest.split_at(at);
    match user_information.split_once(':') {
        Some((user, password)) if !password.is_empty() => format!("{before}{user}:***{after}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_scheme_at_the_beginning_is_a_scheme() {
        for (given, requested) in [
            ("example.com", "http://example.com"),
            ("example.com/?next=http://x", "http://example.com/?next=http://x"),
            ("example.com/a://b", "http://example.com/a://b"),
            ("localhost:8080/", "http://localhost:8080/"),
            ("user:p@ss@example.com", "http://user:p@ss@example.com"),
            ("//example.com", "http:////example.com"),
            ("[2001:db8::1]/", "http://[2001:db8::1]/"),
            (" https://example.com/\n", "https://example.com/"),
            ("HTTPS://example.com", "HTTPS://example.com"),
            ("ftp://example.com", "ftp://example.com"),
            ("1http://example.com", "http://1http://example.com"),
        ] {
            assert_eq!(with_scheme(given), requested);
        }
    }

    #[test]
    fn passwords_are_replaced_and_nothing_else_changes() {
        for (given, shown) in [
            ("http://user:secret@example.com/a?b#c", "http://user:***@example.com/a?b#c"),
            ("user:secret@example.com", "user:***@example.com"),
            ("https://user:p@ss:w&rd@example.com:8443", "https://user:***@example.com:8443"),
            ("http://user:sec/r?e#t@example.com/", "http://user:***@example.com/"),
            ("http://[2001:db8::1]/@", "http://[2001:db8::1]/@"),
            ("http://:secret@example.com", "http://:***@example.com"),
            ("http://user:@example.com", "http://user:@example.com"),
            ("http://user@example.com", "http://user@example.com"),
            ("http://example.com/?user:secret@x", "http://example.com/?user:secret@x"),
            ("http://example.com:80/@", "http://example.com:80/@"),
            ("EXAMPLE.com", "EXAMPLE.com"),
            ("", ""),
        ] {
            assert_eq!(without_password(given), shown);
        }
    }
}
