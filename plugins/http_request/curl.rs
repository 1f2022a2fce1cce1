//! Failures and times in the terms of curl, which the first version of the API used.

use scouter_sdk::bindings::scouter::probe::net;
use scouter_sdk::prelude::*;

/// Code of a redirect loop (libcurl-errors(3)).
pub const TOO_MANY_REDIRECTS: u16 = 47;

/// The code of a failure (libcurl-errors(3)).
pub fn code(kind: http::FailureKind) -> u16 {
    use http::FailureKind as Kind;
    match kind {
        Kind::Invalid => 3,
        Kind::Name => 6,
        Kind::Denied | Kind::Unavailable | Kind::Connect => 7,
        Kind::Timeout => 28,
        Kind::Handshake => 35,
        Kind::EmptyReply => 52,
        Kind::Send => 55,
        Kind::Receive => 56,
        Kind::Certificate => 60,
        Kind::TooLarge => 63,
    }
}

/// Cumulative times of `curl -w` in nanoseconds since the start of a request; 0 for what did not happen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub namelookup: u64,
    pub connect: u64,
    pub appconnect: u64,
    pub starttransfer: u64,
    pub total: u64,
}

impl Times {
    /// The times of one request. HTTP/3 has one handshake for connection and TLS, and curl gives both the same time.
    pub fn of(timings: &http::Timings, attempts: &[net::ConnectionAttempt], is_tls: bool) -> Self {
        let mut times = Self { total: timings.total, ..Self::default() };
        let mut elapsed = timings.dns.unwrap_or(0);
        times.namelookup = elapsed;
        if let Some(connect) = timings.connect {
            // Attempts with other addresses may have been waited for before the one that succeeded.
            let succeeded = attempts.iter().find(|attempt| attempt.error.is_none());
            elapsed = succeeded.map_or(elapsed + connect, |attempt| attempt.started + attempt.elapsed);
            times.connect = elapsed;
        }
        if let Some(tls) = timings.tls {
            elapsed += tls;
            times.appconnect = elapsed;
        } else if is_tls {
            times.appconnect = times.connect;
        }
        if let Some(wait) = timings.wait {
            times.starttransfer = elapsed + timings.send.unwrap_or(0) + wait;
        }
        times
    }

    /// Adds the times of the next request: curl sums them over redirects.
    pub fn add(&mut self, next: &Self) {
        self.namelookup += next.namelookup;
        self.connect += next.connect;
        self.appconnect += next.appconnect;
        self.starttransfer += next.starttransfer;
        self.total += next.total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::samples;

    #[test]
    fn failures_have_the_codes_of_curl() {
        use http::FailureKind as Kind;
        for (kind, expected) in [
            (Kind::Invalid, 3),
            (Kind::Name, 6),
            (Kind::Denied, 7),
            (Kind::Unavailable, 7),
            (Kind::Connect, 7),
            (Kind::Timeout, 28),
            (Kind::Handshake, 35),
            (Kind::EmptyReply, 52),
            (Kind::Send, 55),
            (Kind::Receive, 56),
            (Kind::Certificate, 60),
            (Kind::TooLarge, 63),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }

    #[test]
    fn times_are_cumulative() {
        let times = Times::of(&samples::timings(), &[], true);
        let expected = Times { namelookup: 10, connect: 30, appconnect: 60, starttransfer: 110, total: 200 };
        assert_eq!(times, expected);
        let mut sum = times;
        sum.add(&expected);
        let doubled = Times { namelookup: 20, connect: 60, appconnect: 120, starttransfer: 220, total: 400 };
        assert_eq!(sum, doubled);
    }

    #[test]
    fn a_wait_for_another_address_is_part_of_what_curl_counts() {
        let attempt = |started, elapsed, error: Option<&str>| net::ConnectionAttempt {
            address: "192.0.2.1".into(),
            started,
            elapsed,
            error: error.map(Into::into),
        };
        let attempts = [attempt(11, 30, Some("refused")), attempt(41, 20, None)];
        let times = Times::of(&samples::timings(), &attempts, true);
        assert_eq!((times.namelookup, times.connect, times.appconnect, times.starttransfer), (10, 61, 91, 141));
    }

    #[test]
    fn phases_that_did_not_happen_are_zero() {
        let refused = http::Timings { connect: None, tls: None, send: None, wait: None, ..samples::timings() };
        assert_eq!(Times::of(&refused, &[], false), Times { namelookup: 10, total: 200, ..Times::default() });
        let plain = http::Timings { dns: None, tls: None, ..samples::timings() };
        let expected = Times { connect: 20, starttransfer: 70, total: 200, ..Times::default() };
        assert_eq!(Times::of(&plain, &[], false), expected);
        let http3 = http::Timings { tls: None, ..samples::timings() };
        let http3 = Times::of(&http3, &[], true);
        assert_eq!((http3.connect, http3.appconnect), (30, 30));
    }
}
