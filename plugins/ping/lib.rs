//! `ping`: loss and round-trip times of ICMP echo.

mod result;

use result::PingResult;
use scouter_sdk::options::{FamilyOption, in_range};
use scouter_sdk::prelude::*;

struct Ping;

/// Default of the option `count`, and its range.
const COUNT: u32 = 10;
const MIN_COUNT: u32 = 1;
const MAX_COUNT: u32 = 20;

/// Options of a ping.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Name or address of the target.
    #[schemars(length(min = 1, max = 255))]
    dst: String,
    /// Number of echo requests, 1–20; 10 when the value is outside that range.
    #[serde(default = "count")]
    count: u64,
    /// Bytes of data in each request, 0–1472.
    #[serde(default = "payload_size")]
    #[schemars(range(min = 0, max = 1472))]
    payload_size: u16,
    /// Milliseconds between two requests, 10–1000.
    #[serde(default = "interval_ms")]
    #[schemars(range(min = 10, max = 1000))]
    interval_ms: u32,
    /// Milliseconds to wait for each reply, 1–10000.
    #[serde(default = "timeout_ms")]
    #[schemars(range(min = 1, max = 10_000))]
    timeout_ms: u32,
    /// Addresses of a name: any, 4 (IPv4) or 6 (IPv6).
    #[serde(default)]
    family: FamilyOption,
    /// Time to live (hop limit) of the requests, 1–255; without it the system's default.
    #[schemars(range(min = 1, max = 255))]
    ttl: Option<u8>,
    /// Forbid fragmentation.
    #[serde(default)]
    dont_fragment: bool,
}

fn count() -> u64 {
    COUNT.into()
}
fn payload_size() -> u16 {
    56
}
fn interval_ms() -> u32 {
    200
}
fn timeout_ms() -> u32 {
    1000
}

impl Probe for Ping {
    type Options = Options;
    type Result = PingResult;
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &str = "Sends ICMP echo requests and reports loss and round-trip times";

    fn run(options: Options) -> Result<PingResult, Error> {
        let mut comment = None;
        let address = first_address(&options.dst, options.family.into())?;
        let echoes = icmp::Echoes::start(&parameters(&options, address.clone(), &mut comment))?;
        let mut result = PingResult::new(&options, address, echoes.mode(), comment);
        loop {
            let batch = echoes.next();
            for event in batch.events {
                result.add(event);
            }
            result.update_statistics();
            if batch.complete {
                return Ok(result);
            }
            report_progress(&result);
        }
    }
}

fn parameters(options: &Options, target: String, comment: &mut Option<String>) -> icmp::EchoParameters {
    let count = in_range("count", options.count, COUNT, MIN_COUNT, MAX_COUNT, comment);
    icmp::EchoParameters {
        target,
        count: u16::try_from(count).unwrap_or(u16::MAX),
        interval_ms: options.interval_ms,
        timeout_ms: options.timeout_ms,
        payload_size: options.payload_size,
        ttl: options.ttl,
        dont_fragment: options.dont_fragment,
    }
}

scouter_sdk::export!(Ping);

#[cfg(test)]
mod tests {
    use scouter_sdk::testing;
    use serde_json::{Value, json};

    use super::*;

    fn options(options: Value) -> Result<Options, String> {
        testing::options::<Ping>(options)
    }

    #[test]
    fn only_the_target_is_required() {
        let mut comment = None;
        let defaults = options(json!({"dst": "example.com"})).expect("valid");
        assert_eq!(defaults.family, FamilyOption::Any);
        let expected = icmp::EchoParameters {
            target: "192.0.2.1".into(),
            count: 10,
            interval_ms: 200,
            timeout_ms: 1000,
            payload_size: 56,
            ttl: None,
            dont_fragment: false,
        };
        assert_eq!((parameters(&defaults, "192.0.2.1".into(), &mut comment), comment), (expected, None));
        assert!(options(json!({})).is_err_and(|error| error.contains("\"dst\" is a required property")));
    }

    #[test]
    fn a_count_outside_its_range_is_ten_with_a_comment() {
        for (count, used) in [(1, 1), (20, 20), (0, 10), (21, 10), (u64::MAX, 10)] {
            let mut comment = None;
            let options = options(json!({"dst": "x", "count": count})).expect("valid");
            assert_eq!(parameters(&options, "x".into(), &mut comment).count, used);
            let text = format!("Provided count of '{count}' is not allowed. Defaulting to 10. Min: 1, Max: 20.");
            assert_eq!(comment, (u64::from(used) != count).then_some(text));
        }
    }

    #[test]
    fn every_option_has_its_range() {
        for (name, valid, invalid) in [
            ("dst", vec![json!("a"), json!("a".repeat(255))], vec![json!(""), json!("a".repeat(256)), json!(1)]),
            ("count", vec![json!(0), json!(1000)], vec![json!(-1), json!(1.5), json!("x"), json!(true)]),
            ("payload_size", vec![json!(0), json!(1472)], vec![json!(-1), json!(1473)]),
            ("interval_ms", vec![json!(10), json!(1000)], vec![json!(9), json!(1001)]),
            ("timeout_ms", vec![json!(1), json!(10_000)], vec![json!(0), json!(10_001)]),
            ("family", vec![json!("any"), json!("4"), json!("6")], vec![json!("5")]),
            ("ttl", vec![json!(1), json!(255)], vec![json!(0), json!(256)]),
            ("dont_fragment", vec![json!(true), json!(false)], vec![json!(1)]),
            ("other", vec![], vec![json!(1)]),
        ] {
            let with = |value: &Value| {
                let mut all = json!({"dst": "x"});
                all[name] = value.clone();
                options(all).map(|_| ())
            };
            for value in &valid {
                assert_eq!(with(value), Ok(()), "{name} {value}");
            }
            for value in &invalid {
                assert!(with(value).is_err(), "{name} {value}");
            }
        }
    }
}
