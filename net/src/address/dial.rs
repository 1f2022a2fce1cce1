//! Connections to permitted addresses: Happy Eyeballs (RFC 8305), for any transport.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use super::Resolved;
use super::attempts::Attempts;
use crate::os_error::description;
use crate::packet::route::has_route;
use crate::policy::{Denied, Names, Permitted, Policy};

/// Connection Attempt Delay: from one attempt to the next, while none has succeeded (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Why there is nothing to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Denied(#[from] Denied),
    /// A packet that never left must not read as the target's silence.
    #[error("This host has no route to the target.")]
    NoRoute,
}

/// The addresses to connect to, in this order: those that may be reached and that this host has a route to.
///
/// # Errors
/// See [`PlanError`]. A name none of whose addresses may be reached is denied.
pub fn plan(policy: &Policy, found: &Resolved) -> Result<Vec<Permitted>, PlanError> {
    let open = vet(policy, &found.addresses, Some(&found.names))?;
    let routed: Vec<_> = open.into_iter().filter(|permitted| has_route(*permitted)).collect();
    if routed.is_empty() { Err(PlanError::NoRoute) } else { Ok(routed) }
}

/// The addresses that may be reached, IPv6 and IPv4 in turn (RFC 8305, section 4), beginning with the family of the first.
fn vet(policy: &Policy, addresses: &[IpAddr], names: Option<&Names>) -> Result<Vec<Permitted>, Denied> {
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

/// Makes the connection that is there first: the next attempt begins when one fails, and while none ends, after 250 ms.
/// Connections that come too late are dropped. The caller bounds the time.
///
/// # Errors
/// The failure of the last attempt that ended. None: there was no address.
pub async fn race<T, E, F>(
    addresses: &[Permitted],
    port: u16,
    attempts: &Attempts,
    connect: impl Fn(Permitted) -> F,
) -> Result<(T, SocketAddr), Option<(E, SocketAddr)>>
where
    F: Future<Output = Result<T, E>>,
    E: Display,
{
    let mut waiting = addresses.iter().copied();
    let mut running = FuturesUnordered::new();
    let mut last = None;
    let attempt = |permitted: Permitted| {
        let address = permitted.socket_address(port);
        let number = attempts.begin(address);
        let connecting = connect(permitted);
        async move { (number, address, connecting.await) }
    };
    loop {
        if running.is_empty() {
            match waiting.next() {
                Some(permitted) => running.push(attempt(permitted)),
                None => return Err(last),
            }
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some((number, address, ended)) = running.next() => match ended {
                Ok(connection) => {
                    attempts.succeed(number);
                    return Ok((connection, address));
                }
                Err(error) => {
                    attempts.fail(number, error.to_string());
                    last = Some((error, address));
                    running.extend(waiting.next().map(attempt));
                }
            },
            () = tokio::time::sleep(ATTEMPT_DELAY), if more => running.extend(waiting.next().map(attempt)),
        }
    }
}

/// No TCP connection.
#[derive(Debug, thiserror::Error)]
#[error("{}", description(.0))]
pub struct TcpError(pub std::io::Error);

/// A TCP connection to the address that answers first.
///
/// # Errors
/// As [`race`].
pub async fn tcp(
    addresses: &[Permitted],
    port: u16,
    attempts: &Attempts,
) -> Result<(TcpStream, SocketAddr), Option<(TcpError, SocketAddr)>> {
    let connect = |permitted: Permitted| async move {
        let stream = TcpStream::connect(permitted.socket_address(port)).await.map_err(TcpError)?;
        // Small writes leave immediately: a delayed one would be measured as the target's time.
        stream.set_nodelay(true).map_err(TcpError)?;
        Ok(stream)
    };
    race(addresses, port, attempts, connect).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

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

    fn open(addresses: &[&str]) -> Vec<Permitted> {
        let policy = Policy::new(vec!["any".parse().expect("rule")], vec![], Arc::default());
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().expect("address")).collect();
        vet(&policy, &addresses, None).expect("open")
    }

    #[tokio::test]
    async fn the_second_address_is_tried_when_the_first_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("listen");
        let port = listener.local_addr().expect("address").port();
        let attempts = Attempts::since(Instant::now());
        let (_, address) = tcp(&open(&["127.0.0.1", "127.0.0.2"]), port, &attempts).await.expect("connected");
        assert_eq!(address.ip().to_string(), "127.0.0.2");
        let list = attempts.list();
        let errors: Vec<_> = list.iter().map(|attempt| attempt.error.as_deref()).collect();
        assert_eq!(errors, [Some("Connection refused"), None], "{list:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_silent_has_250_ms_before_the_next_begins() {
        let attempts = Attempts::since(Instant::now());
        let started = tokio::time::Instant::now();
        let connect = |permitted: Permitted| async move {
            let delay = match permitted.address().to_string().as_str() {
                "192.0.2.1" => 600,
                "192.0.2.2" => 400,
                _ => 10_000,
            };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            Ok::<_, &str>(permitted.address())
        };
        let (first, _) =
            race(&open(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]), 80, &attempts, connect).await.expect("one");
        assert_eq!((first.to_string().as_str(), started.elapsed().as_millis()), ("192.0.2.1", 600));
        assert_eq!(attempts.list().len(), 3, "at 0, 250 and 500 ms");
    }

    #[tokio::test]
    async fn the_last_failure_is_that_of_all() {
        let attempts = Attempts::since(Instant::now());
        let fail = |permitted: Permitted| async move { Err::<(), _>(permitted.address().to_string()) };
        let failed = race(&open(&["192.0.2.1", "192.0.2.2"]), 80, &attempts, fail).await.expect_err("no connection");
        assert_eq!(failed.map(|(error, _)| error).as_deref(), Some("192.0.2.2"));
        let none = race(&[], 80, &attempts, fail).await.expect_err("no address");
        assert_eq!((none, attempts.list().len()), (None, 2));
    }
}
