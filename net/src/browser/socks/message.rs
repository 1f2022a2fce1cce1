//! The messages of SOCKS version 5 (RFC 1928). Pure: no sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A request for a name of 255 bytes.
pub const REQUEST_BYTES: usize = 4 + 1 + 255 + 2;
/// A greeting with 255 methods.
pub const GREETING_BYTES: usize = 2 + 255;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;

/// The answer to a [`greeting`]: no authentication.
pub const ACCEPTED: [u8; 2] = [VERSION, NO_AUTHENTICATION];

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SOCKS5 message that is served here")]
pub struct Invalid;

/// Where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name, or an address.
    pub host: String,
    pub port: u16,
}

/// Section 3: how long the greeting is. None: it is not complete.
///
/// # Errors
/// When it is none, or "no authentication" is not among its methods.
pub fn greeting(bytes: &[u8]) -> Result<Option<usize>, Invalid> {
    match bytes {
        [] | [VERSION] => Ok(None),
        [VERSION, count, methods @ ..] => {
            let Some(methods) = methods.get(..usize::from(*count)) else { return Ok(None) };
            if methods.contains(&NO_AUTHENTICATION) { Ok(Some(2 + methods.len())) } else { Err(Invalid) }
        }
        _ => Err(Invalid),
    }
}

/// Section 4: the target of a CONNECT, and how long the request is. None: it is not complete.
///
/// # Errors
/// When it is none.
pub fn request(bytes: &[u8]) -> Result<Option<(Target, usize)>, Invalid> {
    let expected = [VERSION, CONNECT];
    if bytes.iter().zip(&expected).any(|(byte, expected)| byte != expected) {
        return Err(Invalid);
    }
    let Some((kind, rest)) = bytes.get(3..).and_then(<[u8]>::split_first) else { return Ok(None) };
    let (host, rest) = match kind {
        1 => match rest.split_first_chunk::<4>() {
            Some((address, rest)) => (IpAddr::from(Ipv4Addr::from(*address)).to_string(), rest),
            None => return Ok(None),
        },
        4 => match rest.split_first_chunk::<16>() {
            Some((address, rest)) => (IpAddr::from(Ipv6Addr::from(*address)).to_string(), rest),
            None => return Ok(None),
        },
        3 => {
            let Some((length, rest)) = rest.split_first() else { return Ok(None) };
            let Some((name, rest)) = rest.split_at_checked(usize::from(*length)) else { return Ok(None) };
            (std::str::from_utf8(name).map_err(|_| Invalid)?.to_owned(), rest)
        }
        _ => return Err(Invalid),
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
    Ok(Some((Target { host, port: u16::from_be_bytes(*port) }, bytes.len() - rest.len())))
}

/// Section 6. The bound address is of no use to a browser: 0.0.0.0:0.
#[must_use]
pub fn reply(code: u8) -> [u8; 10] {
    [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_when_it_is_complete() {
        for (bytes, result) in [
            (&[][..], Ok(None)),
            (&[5], Ok(None)),
            (&[5, 2, 0], Ok(None)),
            (&[5, 2, 0, 2], Ok(Some(4))),
            (&[5, 1, 0, 9], Ok(Some(3))),
            (&[5, 1, 2], Err(Invalid)),
            (&[5, 0], Err(Invalid)),
            (&[4, 1, 0], Err(Invalid)),
        ] {
            assert_eq!(greeting(bytes), result, "{bytes:?}");
        }
    }

    #[test]
    fn a_request_is_read_when_it_is_complete_and_not_before() {
        let name = [&[5, 1, 0, 3, 8][..], b"lab.test", &[1, 187]].concat();
        let v4 = vec![5, 1, 0, 1, 10, 77, 0, 2, 0, 80];
        let v6 = [&[5, 1, 0, 4][..], &[0; 15], &[1, 0, 80]].concat();
        for (bytes, host, port) in [(name, "lab.test", 443), (v4, "10.77.0.2", 80), (v6, "::1", 80)] {
            for length in 0..bytes.len() {
                assert_eq!(request(&bytes[..length]), Ok(None), "{length} of {bytes:?}");
            }
            let target = Target { host: host.into(), port };
            assert_eq!(request(&bytes), Ok(Some((target.clone(), bytes.len()))));
            let more = [&bytes[..], b"GET"].concat();
            assert_eq!(request(&more), Ok(Some((target, bytes.len()))));
        }
    }

    #[test]
    fn anything_else_is_invalid() {
        for bytes in [
            &[4, 1][..],
            &[5, 2],                      // BIND
            &[5, 3],                      // UDP ASSOCIATE
            &[5, 1, 0, 2, 0],             // no such kind of address
            &[5, 1, 0, 3, 1, 255, 0, 80], // not UTF-8
        ] {
            assert_eq!(request(bytes), Err(Invalid), "{bytes:?}");
        }
        assert_eq!(request(&[5, 1, 0, 3, 0, 0, 80]).expect("complete").expect("complete").0.host, "");
    }
}
