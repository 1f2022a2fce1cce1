//! Authentication of API clients by a shared secret.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use moka::sync::Cache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{Api, ApiError};

/// Wrong secrets of one address: burst, and rate per second after it.
const GUESSES: NonZeroU32 = NonZeroU32::new(100).unwrap();
const GUESSES_PER_SECOND: NonZeroU32 = NonZeroU32::new(2).unwrap();
/// How long a network is known for a right secret.
const KNOWN: Duration = Duration::from_mins(10);
/// Addresses remembered before the list is tidied.
const ADDRESSES: usize = 10_000;

type SecretDigest = [u8; 32];

/// Digests of the secrets, the rate of wrong secrets of each network, and the rate of requests of each secret.
pub struct Auth {
    digests: RwLock<Arc<[SecretDigest]>>,
    guesses: DefaultKeyedRateLimiter<IpAddr, StateInformationMiddleware>,
    /// Networks that have used up their wrong secrets, and until when nothing of theirs is compared.
    blocked: Mutex<HashMap<IpAddr, Instant>>,
    /// Networks that have given a right secret lately: a proxy is one, and its clients are not locked out by others of them.
    known: Cache<IpAddr, ()>,
    /// Of each secret.
    requests: Option<DefaultKeyedRateLimiter<SecretDigest>>,
}

impl Auth {
    /// `rate`: requests that each secret may make in a second; None: any number.
    #[must_use]
    pub fn new(digests: Vec<SecretDigest>, rate: Option<NonZeroU32>) -> Self {
        let quota = Quota::per_second(GUESSES_PER_SECOND).allow_burst(GUESSES);
        Self {
            digests: RwLock::new(digests.into()),
            guesses: RateLimiter::keyed(quota).with_middleware(),
            blocked: Mutex::default(),
            known: Cache::builder().max_capacity(ADDRESSES as u64).time_to_idle(KNOWN).build(),
            requests: rate.map(|rate| RateLimiter::keyed(Quota::per_second(rate))),
        }
    }

    /// These from now on, and no others.
    pub fn replace(&self, digests: Vec<SecretDigest>) {
        if let Some(requests) = &self.requests {
            requests.retain_recent();
        }
        *self.digests.write().unwrap_or_else(PoisonError::into_inner) = digests.into();
    }

    /// May this request be answered?
    fn check(&self, headers: &HeaderMap, from: Option<IpAddr>, now: Instant) -> Result<(), ApiError> {
        self.check_blocked(from, now)?;
        match self.accepts(headers) {
            Some(secret) => {
                if let Some(from) = from.map(network_of)
                    // To ask is to renew.
                    && self.known.get(&from).is_none()
                {
                    self.known.insert(from, ());
                }
                self.slow_down(secret)
            }
            None => Err(self.refuse(from, now)),
        }
    }

    /// Which secret it is, if it is one. The same work whether or not the header is there and however much of it is right:
    /// digests are compared, all of them, in constant time (threat 27).
    #[must_use]
    pub fn accepts(&self, headers: &HeaderMap) -> Option<SecretDigest> {
        let given = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let bearer = match given.split_first_chunk::<7>() {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"Bearer ") => rest,
            _ => given,
        };
        let (plain, bearer) = (Sha256::digest(given), Sha256::digest(bearer));
        let digests = Arc::clone(&self.digests.read().unwrap_or_else(PoisonError::into_inner));
        let (mut found, mut which) = (Choice::from(0), [0; 32]);
        for digest in digests.iter() {
            let same = digest[..].ct_eq(&plain) | digest[..].ct_eq(&bearer);
            found |= same;
            which.iter_mut().zip(digest).for_each(|(to, from)| to.conditional_assign(from, same));
        }
        bool::from(found).then_some(which)
    }

    fn slow_down(&self, secret: SecretDigest) -> Result<(), ApiError> {
        let Some(requests) = &self.requests else { return Ok(()) };
        requests.check_key(&secret).map_err(|until| {
            let wait = until.wait_time_from(requests.clock().now());
            ApiError::TooManyRequests { retry_after_s: wait.as_secs() + 1 }
        })
    }

    /// Refuses a network that has used up its wrong secrets, before anything is compared: otherwise a
    /// guesser would learn the right secret at any rate.
    fn check_blocked(&self, from: Option<IpAddr>, now: Instant) -> Result<(), ApiError> {
        let Some(from) = from.map(network_of) else { return Ok(()) };
        let mut blocked = self.blocked.lock();
        if blocked.is_empty() || self.known.contains_key(&from) {
            return Ok(());
        }
        match blocked.get(&from) {
            Some(until) if *until > now => Err(too_many_guesses(until.duration_since(now))),
            Some(_) => {
                blocked.remove(&from);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Counts a wrong secret. The last one that the rate allows blocks its network until the next one is allowed.
    fn refuse(&self, from: Option<IpAddr>, now: Instant) -> ApiError {
        let Some(from) = from.map(network_of) else { return ApiError::Unauthorized };
        if self.guesses.len() > ADDRESSES {
            self.guesses.retain_recent();
        }
        let (error, wait) = match self.guesses.check_key(&from) {
            Ok(left) if left.remaining_burst_capacity() > 0 => return ApiError::Unauthorized,
            Ok(left) => (ApiError::Unauthorized, left.quota().replenish_interval()),
            // Requests that were compared at the same time.
            Err(until) => {
                let wait = until.wait_time_from(self.guesses.clock().now());
                (too_many_guesses(wait), wait)
            }
        };
        let mut blocked = self.blocked.lock();
        if blocked.len() > ADDRESSES {
            blocked.retain(|_, until| *until > now);
        }
        blocked.insert(from, now + wait);
        error
    }
}

fn too_many_guesses(wait: Duration) -> ApiError {
    ApiError::TooManyGuesses { retry_after_s: wait.as_secs() + 1 }
}

/// An IPv6 client has a whole /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        IpAddr::V4(v4) => v4.into(),
    }
}

pub async fn require(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    match api.auth.check(request.headers(), from, Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(auth: &Auth, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().expect("a header value"));
        auth.accepts(&headers).is_some()
    }

    #[test]
    fn every_secret_is_taken_plain_and_as_bearer_and_nothing_else() {
        let auth = Auth::new(vec![Sha256::digest("first secret").into(), Sha256::digest("second").into()], None);
        for good in ["first secret", "second", "Bearer second", "bearer first secret"] {
            assert!(accepts(&auth, good), "{good}");
        }
        for bad in ["", "first", "first secret ", "Bearer", "Bearer ", "Basic second", "SECOND"] {
            assert!(!accepts(&auth, bad), "{bad}");
        }
        assert!(auth.accepts(&HeaderMap::new()).is_none());
    }

    #[test]
    fn each_secret_has_a_rate_of_its_own() {
        let (first, second) = ([1; 32], [2; 32]);
        let auth = Auth::new(vec![first, second], NonZeroU32::new(5));
        let slowed = (0..20).filter(|_| auth.slow_down(first).is_err()).count();
        assert!((14..=15).contains(&slowed), "{slowed}");
        assert!(auth.slow_down(second).is_ok());
        assert!((0..20).all(|_| Auth::new(vec![first], None).slow_down(first).is_ok()));
    }

    #[test]
    fn guessing_is_slowed_down_by_network() {
        let auth = Auth::new(vec![], None);
        let now = Instant::now();
        let guess = |text: &str, now| {
            auth.check(&HeaderMap::new(), Some(text.parse().expect("address")), now).expect_err("no secret")
        };
        let slowed = (0..1000).filter(|_| matches!(guess("2600::1", now), ApiError::TooManyGuesses { .. })).count();
        // A few more are allowed meanwhile on a slow machine.
        assert!((890..=900).contains(&slowed), "{slowed}");
        assert!(matches!(guess("2600::ffff", now), ApiError::TooManyGuesses { retry_after_s: 1 }));
        assert!(matches!(guess("2600:0:0:1::1", now), ApiError::Unauthorized));
    }

    #[test]
    fn nothing_is_compared_for_a_network_over_its_rate_of_wrong_secrets() {
        let auth = Auth::new(vec![Sha256::digest("right").into()], None);
        let (guesser, other, proxy) =
            (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 2].into()), Some([192, 0, 2, 3].into()));
        let right = HeaderMap::from_iter([(header::AUTHORIZATION, "right".parse().expect("a header value"))]);
        let now = Instant::now();
        assert!(auth.check(&right, proxy, now).is_ok(), "not over the rate yet");
        for from in [guesser, proxy] {
            let wrong = || auth.check(&HeaderMap::new(), from, now);
            let tried = (0..1000).find(|_| matches!(wrong(), Err(ApiError::TooManyGuesses { .. })));
            assert!(tried.is_some_and(|tried| tried >= GUESSES.get()), "{tried:?}");
        }
        assert!(auth.check(&right, proxy, now).is_ok(), "clients that are known there are not locked out");
        assert!(matches!(auth.check(&right, guesser, now), Err(ApiError::TooManyGuesses { retry_after_s: 1 })));
        assert!(auth.check(&right, other, now).is_ok(), "another client");
        assert!(auth.check(&right, guesser, now + Duration::from_secs(1)).is_ok(), "after `Retry-After`");
    }
}
