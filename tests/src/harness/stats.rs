//! Numbers of repeated measurements: what a row of a bench says.

use std::time::Duration;

use serde::Serialize;

/// Measurements of one thing, in the order they were taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

/// What a report says of [`Samples`]; in the unit they were taken in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many measurements.
    pub count: usize,
    /// The middle one.
    pub p50: f64,
    /// 95 of 100 are not above this.
    pub p95: f64,
    /// The greatest.
    pub max: f64,
    /// Width of the middle half (75th less 25th percentile): how far two measurements differ.
    pub spread: f64,
}

impl Samples {
    /// Adds a measurement.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a time, in milliseconds.
    pub fn push_ms(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e3);
    }

    /// Every measurement changed in the same way.
    #[must_use]
    pub fn map(&self, change: impl Fn(f64) -> f64) -> Self {
        self.0.iter().copied().map(change).collect()
    }

    /// All of them, in the order they were taken.
    pub fn values(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that `share` (0 to 1) of all are not above: the smallest such one that was measured.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank, between 0 and the number of samples"
        )]
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }

    /// The median: of an even number, the mean of the two in the middle.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        if sorted.len() % 2 == 1 {
            Some(upper)
        } else {
            Some(f64::midpoint(sorted[middle - 1], upper))
        }
    }

    /// All of it for a report; nothing when nothing was measured.
    pub fn summary(&self) -> Option<Summary> {
        Some(Summary {
            count: self.len(),
            p50: self.median()?,
            p95: self.percentile(0.95)?,
            max: self.percentile(1.0)?,
            spread: self.percentile(0.75)? - self.percentile(0.25)?,
        })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Samples(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_middle_tail_and_spread() {
        let samples: Samples = (1..=100).rev().map(f64::from).collect();
        let expected = Summary {
            count: 100,
            p50: 50.5,
            p95: 95.0,
            max: 100.0,
            spread: 50.0,
        };
        assert_eq!(samples.summary(), Some(expected));
    }

    #[test]
    fn one_sample_is_its_own_summary_and_none_has_none() {
        let one: Samples = [7.0].into_iter().collect();
        assert_eq!(
            one.summary(),
            Some(Summary {
                count: 1,
                p50: 7.0,
                p95: 7.0,
                max: 7.0,
                spread: 0.0
            })
        );
        assert_eq!(Samples::default().summary(), None);
    }

    #[test]
    fn the_median_of_five_ignores_an_outlier() {
        let samples: Samples = [20.0, 21.0, 19.0, 20.5, 900.0].into_iter().collect();
        assert_eq!(samples.median(), Some(20.5));
    }
}
