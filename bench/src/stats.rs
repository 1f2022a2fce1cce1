//! What samples say: order statistics only, which no outlier moves.

/// The value that so many of a hundred are at or below (nearest rank); NaN of nothing.
pub fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count => sorted[(count * percent).div_ceil(100).clamp(1, count) - 1],
    }
}

/// The middle one, or the mean of the two in the middle; NaN of nothing.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// A median, and between which values the rest is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    /// From the least to the greatest: of rounds.
    pub fn of(samples: &[f64]) -> Self {
        Self { low: percentile(samples, 0), median: median(samples), high: percentile(samples, 100) }
    }

    /// The middle half: of many single samples.
    pub fn quartiles(samples: &[f64]) -> Self {
        Self { low: percentile(samples, 25), median: median(samples), high: percentile(samples, 75) }
    }

    /// Median, then the ends in brackets, with three significant digits.
    pub fn text(&self) -> String {
        format!("{} ({}–{})", digits(self.median), digits(self.low), digits(self.high))
    }
}

/// Ours over theirs, round by round: what both rounds of a pair had in common (a busy machine) cancels out.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

/// A number with three significant digits, all of them before the point when there are more; a dash for none.
pub fn digits(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let size = value.abs();
    let decimals = match size {
        _ if size >= 100.0 || size == 0.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ if size >= 0.1 => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    // Thousands apart: 12,345.
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), String::new()), |(w, r)| (w, format!(".{r}")));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let groups: Vec<&str> = whole.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    format!("{sign}{}{rest}", groups.join(","))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "what is compared is what was put in")]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let at = [0, 1, 50, 99, 100].map(|percent| percentile(&samples, percent));
        assert_eq!(at, [1.0, 2.0, 100.0, 198.0, 200.0]);
        assert!(percentile(&[], 50).is_nan());
    }

    #[test]
    fn a_spread_has_the_ends_of_rounds_or_the_middle_half_of_samples() {
        let samples = [5.0, 1.0, 2.0, 3.0, 100.0];
        assert_eq!(Spread::of(&samples), Spread { low: 1.0, median: 3.0, high: 100.0 });
        assert_eq!(Spread::quartiles(&samples), Spread { low: 2.0, median: 3.0, high: 5.0 });
        assert_eq!(Spread::of(&samples).text(), "3.00 (1.00–100)");
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
    }

    #[test]
    fn numbers_have_three_digits_and_commas() {
        for (value, text) in [
            (0.0, "0"),
            (0.012_34, "0.0123"),
            (0.5, "0.500"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (999.6, "1,000"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(digits(value), text);
        }
    }
}
