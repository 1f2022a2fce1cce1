//! What became of each attempt to connect.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One attempt to connect to one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub address: SocketAddr,
    /// When it began, since the exchange did.
    pub started: Duration,
    /// Until it succeeded or failed, or was given up.
    pub elapsed: Duration,
    /// None: it succeeded.
    pub error: Option<String>,
}

/// The attempts of one exchange, in the order in which they began: as many as a name has addresses at most.
#[derive(Debug)]
pub struct Attempts {
    start: Instant,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    attempts: Vec<(SocketAddr, Duration, Option<Ended>)>,
    /// When one of them succeeded: the others were given up then.
    decided: Option<Duration>,
}

#[derive(Debug)]
struct Ended {
    at: Duration,
    error: Option<String>,
}

impl Attempts {
    #[must_use]
    pub fn since(start: Instant) -> Self {
        Self { start, log: Mutex::default() }
    }

    /// Begins one; its number.
    pub fn begin(&self, address: SocketAddr) -> usize {
        let mut log = self.log.lock();
        log.attempts.push((address, self.start.elapsed(), None));
        log.attempts.len() - 1
    }

    pub fn fail(&self, number: usize, error: String) {
        self.end(number, Some(error));
    }

    pub fn succeed(&self, number: usize) {
        let at = self.end(number, None);
        self.log.lock().decided = Some(at);
    }

    fn end(&self, number: usize, error: Option<String>) -> Duration {
        let at = self.start.elapsed();
        if let Some((.., ended)) = self.log.lock().attempts.get_mut(number) {
            *ended = Some(Ended { at, error });
        }
        at
    }

    /// The address that one succeeded with; else the one of the last attempt.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        let log = self.log.lock();
        let succeeded = log.attempts.iter().find(|(.., ended)| has_succeeded(ended.as_ref()));
        succeeded.or(log.attempts.last()).map(|(address, ..)| *address)
    }

    /// When the one that succeeded began and ended, since the start.
    #[must_use]
    pub fn connected(&self) -> Option<(Duration, Duration)> {
        let log = self.log.lock();
        let (_, started, ended) = log.attempts.iter().find(|(.., ended)| has_succeeded(ended.as_ref()))?;
        Some((*started, ended.as_ref()?.at))
    }

    /// All of them. Those that have neither succeeded nor failed are given up now, or were when another one succeeded.
    #[must_use]
    pub fn list(&self) -> Vec<Attempt> {
        let now = self.start.elapsed();
        let log = self.log.lock();
        let given_up = match log.decided {
            Some(at) => (at, "another address answered first"),
            None => (now, "no answer"),
        };
        let attempt = |(address, started, ended): &(SocketAddr, Duration, Option<Ended>)| {
            let (end, error) = match ended {
                Some(ended) => (ended.at, ended.error.clone()),
                None => (given_up.0, Some(given_up.1.to_owned())),
            };
            Attempt { address: *address, started: *started, elapsed: end.saturating_sub(*started), error }
        };
        log.attempts.iter().map(attempt).collect()
    }
}

fn has_succeeded(ended: Option<&Ended>) -> bool {
    ended.is_some_and(|ended| ended.error.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_has_its_own_times_and_end() {
        let attempts = Attempts::since(Instant::now());
        let address = |n: u8| SocketAddr::from(([192, 0, 2, n], 80));
        let first = attempts.begin(address(1));
        let second = attempts.begin(address(2));
        let list = attempts.list();
        let errors = |list: &[Attempt]| list.iter().map(|attempt| attempt.error.clone()).collect::<Vec<_>>();
        assert_eq!(errors(&list), [Some("no answer".to_owned()), Some("no answer".to_owned())]);
        assert_eq!((attempts.remote(), attempts.connected()), (Some(address(2)), None));
        std::thread::sleep(Duration::from_millis(20));
        attempts.fail(first, "refused".into());
        let third = attempts.begin(address(3));
        std::thread::sleep(Duration::from_millis(20));
        attempts.succeed(third);
        std::thread::sleep(Duration::from_millis(20));
        let list = attempts.list();
        let given_up = Some("another address answered first".to_owned());
        assert_eq!(errors(&list), [Some("refused".to_owned()), given_up, None]);
        assert!(list[0].elapsed >= Duration::from_millis(20) && list[0].elapsed < list[1].elapsed, "{list:?}");
        assert_eq!(
            list[1].started + list[1].elapsed,
            list[2].started + list[2].elapsed,
            "until the other one answered"
        );
        assert!(list[2].started >= list[0].elapsed, "{list:?}");
        assert_eq!((attempts.remote(), second), (Some(address(3)), 1));
        let ends = attempts.connected().map(|(from, to)| to.saturating_sub(from));
        assert_eq!(ends, Some(list[2].elapsed));
    }
}
