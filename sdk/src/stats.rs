//! Statistics and units of times.

use schemars::JsonSchema;
use serde::Serialize;

/// Nanoseconds in milliseconds, rounded to microseconds.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "round-trip times are far below 2^52 ns")]
pub fn ms(ns: u64) -> f64 {
    ((ns as f64) / 1e3).round() / 1e3
}

/// A number rounded to three decimals.
#[must_use]
pub fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Nanoseconds in milliseconds with three decimals, as `ping(8)` prints them.
#[must_use]
pub fn ms_text(ns: u64) -> String {
    format!("{:.3}", ms(ns))
}

/// Nanoseconds in seconds, rounded to microseconds.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "times of a test are far below 2^52 ns")]
pub fn seconds(ns: u64) -> f64 {
    ((ns as f64) / 1e3).round() / 1e6
}

/// Nanoseconds in seconds with three decimals, as `curl -w` prints them.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "times of a test are far below 2^52 ns")]
pub fn seconds_text(ns: u64) -> String {
    format!("{:.3}", ns as f64 / 1e9)
}

/// Statistics of round-trip times in milliseconds; null without a sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Statistics {
    pub min_ms: Option<f64>,
    pub max_ms: Option<f64>,
    pub avg_ms: Option<f64>,
    /// Population standard deviation: the mdev of `ping(8)`.
    pub stddev_ms: Option<f64>,
    /// Mean absolute difference between successive samples (RFC 3393); null with one sample.
    pub jitter_ms: Option<f64>,
    /// Median (nearest rank).
    pub p50_ms: Option<f64>,
    /// 95th percentile (nearest rank).
    pub p95_ms: Option<f64>,
}

impl Statistics {
    /// The statistics of samples in nanoseconds, in the order of their measurement.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "means of nanoseconds"
    )]
    pub fn of(samples: &[u64]) -> Self {
        if samples.is_empty() {
            return Self::default();
        }
        let count = samples.len() as f64;
        let mean = samples.iter().map(|ns| *ns as f64).sum::<f64>() / count;
        let variance = samples.iter().map(|ns| (*ns as f64 - mean).powi(2)).sum::<f64>() / count;
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let rank = |percent: f64| sorted.get(((percent / 100.0 * count).ceil() as usize).max(1) - 1).copied().map(ms);
        let differences: Vec<f64> = samples.windows(2).map(|pair| pair[0].abs_diff(pair[1]) as f64).collect();
        let jitter =
            (!differences.is_empty()).then(|| ms((differences.iter().sum::<f64>() / differences.len() as f64) as u64));
        Self {
            min_ms: sorted.first().copied().map(ms),
            max_ms: sorted.last().copied().map(ms),
            avg_ms: Some(ms(mean as u64)),
            stddev_ms: Some(ms(variance.sqrt() as u64)),
            jitter_ms: jitter,
            p50_ms: rank(50.0),
            p95_ms: rank(95.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_known_samples() {
        let summary =
            Statistics::of(&[2_000_000, 4_000_000, 4_000_000, 4_000_000, 5_000_000, 5_000_000, 7_000_000, 9_000_000]);
        assert_eq!(
            summary,
            Statistics {
                min_ms: Some(2.0),
                max_ms: Some(9.0),
                avg_ms: Some(5.0),
                stddev_ms: Some(2.0),
                jitter_ms: Some(1.0),
                p50_ms: Some(4.0),
                p95_ms: Some(9.0),
            }
        );
    }

    #[test]
    fn statistics_are_null_without_samples() {
        assert_eq!(Statistics::of(&[]), Statistics::default());
    }

    #[test]
    fn one_sample_has_every_statistic_but_jitter() {
        let statistics = Statistics::of(&[1_500]);
        let same = Some(0.002);
        assert_eq!((statistics.min_ms, statistics.avg_ms, statistics.p95_ms), (same, same, same));
        assert_eq!((statistics.stddev_ms, statistics.jitter_ms), (Some(0.0), None));
    }

    #[test]
    fn percentiles_do_not_depend_on_the_order_and_jitter_does() {
        let samples: Vec<u64> = (1..=100).map(|ms| ms * 1_000_000).collect();
        let (rising, alternating): (Vec<u64>, Vec<u64>) = (
            samples.clone(),
            samples.iter().zip(samples.iter().rev()).take(50).flat_map(|(low, high)| [*low, *high]).collect(),
        );
        let (rising, alternating) = (Statistics::of(&rising), Statistics::of(&alternating));
        assert_eq!((rising.p50_ms, rising.p95_ms), (Some(50.0), Some(95.0)));
        assert_eq!((alternating.p50_ms, alternating.p95_ms), (Some(50.0), Some(95.0)));
        assert_eq!((rising.jitter_ms, alternating.jitter_ms), (Some(1.0), Some(50.0)));
    }

    #[test]
    fn times_are_rounded_to_microseconds() {
        assert_eq!((ms(1_234_567), ms(499), ms(500)), (1.235, 0.0, 0.001));
        assert_eq!((ms_text(1_234_567), ms_text(0)), ("1.235".into(), "0.000".into()));
        assert_eq!((rounded(0.123_45), rounded(2.0)), (0.123, 2.0));
        assert_eq!((seconds(1_234_567_890), seconds_text(1_234_567_890)), (1.234_568, "1.235".into()));
    }
}
