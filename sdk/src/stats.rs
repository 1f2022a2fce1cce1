//! Statistics of round-trip times.

use schemars::JsonSchema;
use serde::Serialize;

/// Nanoseconds as milliseconds with microsecond precision.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "round-trip times are far below 2^52 ns")]
pub fn ms(ns: u64) -> f64 {
    ((ns as f64) / 1e3).round() / 1e3
}

/// A number with three decimals.
#[must_use]
pub fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Milliseconds as text with three decimals, as `ping(8)` prints them.
#[must_use]
pub fn ms_text(ns: u64) -> String {
    format!("{:.3}", ms(ns))
}

/// Statistics in milliseconds; all unknown without a sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Summary {
    pub min_ms: Option<f64>,
    pub max_ms: Option<f64>,
    pub avg_ms: Option<f64>,
    /// Population standard deviation, as `ping(8)`'s mdev.
    pub stddev_ms: Option<f64>,
    /// Mean difference of one sample to the one before (RFC 3393 between neighbours); unknown with one sample.
    pub jitter_ms: Option<f64>,
    pub p50_ms: Option<f64>,
    /// Nearest-rank percentiles.
    pub p95_ms: Option<f64>,
}

impl Summary {
    /// Of samples in nanoseconds, in the order in which they were taken.
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
        let steps: Vec<f64> = samples.windows(2).map(|pair| pair[0].abs_diff(pair[1]) as f64).collect();
        let jitter = (!steps.is_empty()).then(|| ms((steps.iter().sum::<f64>() / steps.len() as f64) as u64));
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
            Summary::of(&[2_000_000, 4_000_000, 4_000_000, 4_000_000, 5_000_000, 5_000_000, 7_000_000, 9_000_000]);
        assert_eq!(
            summary,
            Summary {
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
    fn nothing_is_known_without_samples() {
        assert_eq!(Summary::of(&[]), Summary::default());
        assert_eq!(Summary::of(&[1_500]).jitter_ms, None);
        assert_eq!(ms_text(1_234_567), "1.235");
    }
}
