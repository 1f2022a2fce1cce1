//! TCP connections to permitted addresses: Happy Eyeballs (RFC 8305).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use crate::os_error::description;
use crate::policy::{Denied, Names, Permitted, Policy};

/// Connection Attempt Delay: from one attempt to the next, while none has succeeded (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("Failed to connect to {address}: {}", description(error))]
    Failed { address: SocketAddr, error: std::io::Error },
}

/// The addresses that may be reached, IPv6 and IPv4 in turn (RFC 8305, section 4), beginning with the family of the first.
/// A name none of whose addresses is open is refused.
///
/// # Errors
/// The first denial, when no address is left.
pub fn vet(policy: &Policy, addresses: &[IpAddr], names: Option<&Names>) -> Result<Vec<Permitted>, Denied> {
    let mut refused = None;
    let (mut v6, mut v4) = (vec![], vec![]);
    for address in addresses {
        match policy.permit(*address, names) {
            Ok(permitted) if permitted.address().is_ipv6() => v6.push(permitted),
            Ok(permitted) => v4.push(permitted),
            Err(denied) => refused = refused.or(Some(denied)),
        }
    }
    let mut open = Vec::with_capacity(v6.len() + v4.len());
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    // The family of the first address begins: the order that was handed over is that of RFC 6724.
    if addresses.first().is_some_and(|first| first.to_canonical().is_ipv4()) {
        open.extend(v4.next());
    }
    loop {
        let before = open.len();
        open.extend(v6.next());
        open.extend(v4.next());
        if open.len() == before {
            break;
        }
    }
    match refused {
        Some(denied) if open.is_empty() => Err(denied),
        _ => Ok(open),
    }
}

/// Connects to the address that answers first. The caller sets the timeout, and is told of each address when it is tried.
///
/// # Errors
/// The last failure, when every address failed.
pub async fn dial(
    addresses: &[Permitted],
    port: u16,
    tries: impl Fn(SocketAddr),
) -> Result<(TcpStream, SocketAddr), DialError> {
    let mut waiting = addresses.iter().map(|permitted| permitted.socket_address(port));
    let mut attempts = FuturesUnordered::new();
    let mut last = None;
    let connect = |address: SocketAddr| {
        tries(address);
        async move {
            let stream = TcpStream::connect(address).await;
            (address, stream)
        }
    };
    loop {
        let more = waiting.len() > 0;
        if attempts.is_empty() {
            match waiting.next() {
                Some(address) => attempts.push(connect(address)),
                None => break,
            }
        }
        tokio::select! {
            Some((address, attempt)) = attempts.next() => match attempt {
                Ok(stream) => {
                    // Small writes leave immediately: a delayed one would be measured as the target's time.
                    if let Err(error) = stream.set_nodelay(true) {
                        return Err(DialError::Failed { address, error });
                    }
                    return Ok((stream, address));
                }
                Err(error) => {
                    last = Some(DialError::Failed { address, error });
                    attempts.extend(waiting.next().map(connect));
                }
            },
            () = tokio::time::sleep(ATTEMPT_DELAY), if more => attempts.extend(waiting.next().map(connect)),
        }
    }
    Err(last.unwrap_or_else(|| DialError::Failed {
        address: SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port),
        error: std::io::Error::other("no address to connect to"),
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn vetted(allow: &str, addresses: &[&str]) -> Result<Vec<String>, Denied> {
        let policy = Policy::new(vec![allow.parse().expect("rule")], vec![], Arc::default());
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().expect("address")).collect();
        vet(&policy, &addresses, Some(&Names::of("x.example")))
            .map(|open| open.iter().map(|p| p.address().to_string()).collect())
    }

    #[test]
    fn only_open_addresses_are_dialled_in_turn_of_their_families() {
        let order = |addresses: &[&str]| vetted("10.0.0.0/8", addresses).expect("open").join(" ");
        assert_eq!(order(&["2600::1", "10.0.0.1", "10.0.0.2", "127.0.0.1"]), "2600::1 10.0.0.1 10.0.0.2");
        // A host without a route to IPv6 has IPv4 first.
        assert_eq!(order(&["10.0.0.1", "10.0.0.2", "127.0.0.1", "2600::1"]), "10.0.0.1 2600::1 10.0.0.2");
        let denied = vetted("10.0.0.0/8", &["127.0.0.1", "::1"]).expect_err("closed");
        assert_eq!(denied.to_string(), "Target 'x.example (127.0.0.1)' is not allowed: it is a loopback address.");
    }

    #[tokio::test]
    async fn the_second_address_is_tried_when_the_first_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("listen");
        let port = listener.local_addr().expect("address").port();
        let policy = Policy::new(vec!["any".parse().expect("rule")], vec![], Arc::default());
        let addresses =
            vet(&policy, &["127.0.0.1".parse().expect("a"), "127.0.0.2".parse().expect("a")], None).expect("open");
        let tried = std::cell::RefCell::new(vec![]);
        let record = |address: SocketAddr| tried.borrow_mut().push(address.ip().to_string());
        let (_, address) = dial(&addresses, port, record).await.expect("connected");
        assert_eq!(address.ip().to_string(), "127.0.0.2");
        assert_eq!(tried.into_inner(), ["127.0.0.1", "127.0.0.2"]);
    }
}
