//! What is counted, for `GET /metrics` (Prometheus). Labels come from what is loaded and from fixed lists, never from
//! what callers write: there are as many series as there are test types, and none shows a target.

use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Test {
    r#type: String,
    /// `ok`, `failed`, `refused` (bad options, unknown type), or why the plugin was stopped.
    outcome: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Type {
    r#type: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Browser {
    driver: &'static str,
    state: &'static str,
}

/// A method that HTTP has a name for, else `other`: strangers write what they like.
#[must_use]
pub fn known_method(method: &str) -> &'static str {
    let known = ["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"];
    known.into_iter().find(|known| *known == method).unwrap_or("other")
}

/// From milliseconds to the longest test.
const DURATIONS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Values at one moment.
#[derive(Debug, Default, Clone)]
pub struct Now {
    pub waiting: usize,
    pub busy: usize,
    pub slots: usize,
    pub sandboxes: u64,
    pub receipts_running: usize,
    pub receipts_finished: u64,
    pub receipt_bytes: u64,
    pub icmp_dropped: u64,
    pub refusals: u64,
    pub browsers: Vec<(&'static str, &'static str)>,
    pub asn_database: bool,
    pub uptime: Duration,
}

pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    tests: Family<Test, Counter>,
    durations: Family<Type, Histogram>,
    queued: Histogram,
    refusals: Counter,
    waiting: Gauge,
    busy: Gauge,
    slots: Gauge,
    sandboxes: Counter,
    receipts_running: Gauge,
    receipts_finished: Gauge,
    receipt_bytes: Gauge,
    icmp_dropped: Counter,
    browsers: Family<Browser, Gauge>,
    asn_database: Gauge,
    uptime: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("scouter");
        let requests = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let tests = Family::default();
        registry.register("tests", "Tests finished, by outcome", tests.clone());
        let histogram = || Histogram::new(DURATIONS);
        let durations = Family::new_with_constructor(histogram as fn() -> Histogram);
        registry.register_with_unit("test_duration", "From permit to outcome", Unit::Seconds, durations.clone());
        let queued = histogram();
        registry.register_with_unit("test_queue", "Waiting for a permit", Unit::Seconds, queued.clone());
        let refusals = Counter::default();
        registry.register("policy_refusals", "Addresses that the target policy refused", refusals.clone());
        let sandboxes = Counter::default();
        registry.register("sandboxes", "Sandboxes made", sandboxes.clone());
        let icmp_dropped = Counter::default();
        let help = "ICMP messages dropped because a receive buffer of this host was full";
        registry.register("icmp_dropped", help, icmp_dropped.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let waiting = gauge("tests_waiting", "Tests waiting for a permit");
        let busy = gauge("tests_running", "Tests running");
        let slots = gauge("test_slots", "Tests that may run concurrently");
        let receipts_running = gauge("receipts_running", "Receipts with tests under way");
        let receipts_finished = gauge("receipts_finished", "Finished receipts kept");
        let receipt_bytes = gauge("receipts_bytes", "What finished receipts count towards their budget, in bytes");
        let asn_database = gauge("asn_database", "1 with an ASN database, else 0");
        let uptime = gauge("uptime_seconds", "Since the start");
        let browsers = Family::default();
        registry.register("browsers", "Browsers running", browsers.clone());
        Self {
            registry,
            requests,
            tests,
            durations,
            queued,
            refusals,
            waiting,
            busy,
            slots,
            sandboxes,
            receipts_running,
            receipts_finished,
            receipt_bytes,
            icmp_dropped,
            browsers,
            asn_database,
            uptime,
        }
    }
}

impl Metrics {
    /// `route` is the route's pattern, and `method` one that the API knows: what strangers write is no label.
    pub fn request(&self, method: &str, route: &str, status: u16) {
        let method = known_method(method).to_owned();
        self.requests.get_or_create(&Request { method, route: route.to_owned(), status }).inc();
    }

    /// `name` is a loaded plugin's; None: there is no such type.
    pub fn test(&self, name: Option<&str>, outcome: &'static str) {
        self.tests.get_or_create(&Test { r#type: name.unwrap_or("unknown").to_owned(), outcome }).inc();
    }

    pub fn ran(&self, name: &str, waited: Duration, took: Duration) {
        self.queued.observe(waited.as_secs_f64());
        self.durations.get_or_create(&Type { r#type: name.to_owned() }).observe(took.as_secs_f64());
    }

    /// The text exposition format.
    ///
    /// # Errors
    /// Never, as it writes to a text.
    pub fn text(&self, now: &Now) -> Result<String, std::fmt::Error> {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let count = |gauge: &Gauge, value: usize| set(gauge, u64::try_from(value).unwrap_or(u64::MAX));
        count(&self.waiting, now.waiting);
        count(&self.busy, now.busy);
        count(&self.slots, now.slots);
        count(&self.receipts_running, now.receipts_running);
        set(&self.receipts_finished, now.receipts_finished);
        set(&self.receipt_bytes, now.receipt_bytes);
        for (counter, total) in
            [(&self.sandboxes, now.sandboxes), (&self.icmp_dropped, now.icmp_dropped), (&self.refusals, now.refusals)]
        {
            // Counted elsewhere, where it happens.
            counter.inner().store(total, Ordering::Relaxed);
        }
        set(&self.asn_database, now.asn_database.into());
        set(&self.uptime, now.uptime.as_secs());
        self.browsers.clear();
        for driver in ["chrome", "firefox"] {
            for state in ["idle", "busy"] {
                let running = now.browsers.iter().filter(|browser| **browser == (driver, state)).count();
                count(&self.browsers.get_or_create(&Browser { driver, state }), running);
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
