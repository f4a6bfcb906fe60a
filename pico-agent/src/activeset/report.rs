//! How a prediction turned out: what every wake tells of its prefetch.

use serde::{Deserialize, Serialize};

use crate::port::Port;

/// The prefetch of one wake, in pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeReport {
    /// The port whose packet woke the app.
    pub port: Option<Port>,
    /// Put into memory ahead, or on their way when they were asked for.
    pub prefetched: u64,
    /// Of these, used after they were there.
    pub used: u64,
    /// Of these, asked for before they were there: the thread waited for them.
    pub late: u64,
    /// Of these, not used in the window.
    pub wasted: u64,
    /// Of these, nobody knows: no accessed bits were read.
    pub unknown: u64,
    /// Fetched because a thread asked for them, and not predicted.
    pub faulted: u64,
    /// Bytes that were moved ahead.
    pub bytes: u64,
}

impl WakeReport {
    /// The part of the needed pages that had been predicted; `None` when nothing was needed.
    pub fn recall(&self) -> Option<f64> {
        ratio(self.used + self.late, self.used + self.late + self.faulted)
    }

    /// The part of the predicted pages that were needed; `None` when nothing was predicted or nothing is known of it.
    pub fn precision(&self) -> Option<f64> {
        ratio(self.used + self.late, self.used + self.late + self.wasted)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of pages are far below 2^53")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// What a port's wakes came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub wakes: u64,
    /// All together.
    pub total: WakeReport,
    /// The last one.
    pub last: WakeReport,
}

impl Tally {
    /// One wake more.
    pub fn add(&mut self, report: &WakeReport) {
        self.wakes += 1;
        let total = &mut self.total;
        total.port = report.port;
        for (sum, part) in [
            (&mut total.prefetched, report.prefetched),
            (&mut total.used, report.used),
            (&mut total.late, report.late),
            (&mut total.wasted, report.wasted),
            (&mut total.unknown, report.unknown),
            (&mut total.faulted, report.faulted),
            (&mut total.bytes, report.bytes),
        ] {
            *sum = sum.saturating_add(part);
        }
        self.last = report.clone();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn recall_and_precision_are_of_what_is_known() {
        let mut report = WakeReport {
            prefetched: 12,
            used: 8,
            late: 1,
            wasted: 1,
            unknown: 2,
            faulted: 3,
            ..WakeReport::default()
        };
        assert_eq!(report.recall(), Some(0.75));
        assert_eq!(report.precision(), Some(0.9));
        (report.used, report.late, report.wasted) = (0, 0, 0);
        assert_eq!(report.precision(), None);
        assert_eq!(WakeReport::default().recall(), None);
    }

    #[test]
    fn a_tally_is_the_sum_of_its_wakes() {
        let mut tally = Tally::default();
        let report = |used| WakeReport {
            used,
            bytes: 4096 * used,
            ..WakeReport::default()
        };
        tally.add(&report(3));
        tally.add(&report(4));
        assert_eq!(
            (tally.wakes, tally.total.used, tally.total.bytes),
            (2, 7, 7 * 4096)
        );
        assert_eq!(tally.last, report(4));
    }
}
