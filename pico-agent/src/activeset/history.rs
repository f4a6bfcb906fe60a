//! What is remembered of one page for one port: in which of the last windows it was used.

/// Windows that a history reaches back.
pub(super) const DEPTH: u8 = 8;

/// The last windows in which the use of a page by a port is known, the newest in the lowest bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct History {
    bits: u8,
    len: u8,
}

impl History {
    /// The history of a page that was not used in `windows` windows.
    pub(super) fn unused(windows: u32) -> Self {
        History {
            bits: 0,
            #[expect(clippy::cast_possible_truncation, reason = "at most DEPTH")]
            len: windows.min(u32::from(DEPTH)) as u8,
        }
    }

    /// From its two numbers; `None` when they are those of no history.
    pub(super) fn from_parts(bits: u8, len: u8) -> Option<Self> {
        let fits = len <= DEPTH && (len == DEPTH || bits >> len == 0);
        fits.then_some(History { bits, len })
    }

    /// Its bits and how many of them count.
    pub(super) fn parts(self) -> (u8, u8) {
        (self.bits, self.len)
    }

    /// One window more.
    pub(super) fn push(&mut self, used: bool) {
        self.bits = self.bits << 1 | u8::from(used);
        self.len = (self.len + 1).min(DEPTH);
    }

    /// Whether nothing is known.
    pub(super) fn is_empty(self) -> bool {
        self.len == 0
    }

    /// In how many windows it was used.
    pub(super) fn uses(self) -> u32 {
        self.bits.count_ones()
    }

    /// Of how many windows it is known.
    pub(super) fn windows(self) -> u32 {
        u32::from(self.len)
    }

    /// In how many windows in a row it was used, up to now.
    pub(super) fn streak(self) -> u32 {
        self.bits.trailing_ones()
    }

    /// In how many windows in a row it was not used, up to now.
    pub(super) fn idle(self) -> u32 {
        self.bits.trailing_zeros().min(u32::from(self.len))
    }

    /// Which of [`CONTEXTS`] histories this one is like: the last three windows, how many uses there were in all, and
    /// how many windows are known. Finer classes learn more slowly and were not better on recorded traces.
    pub(super) fn context(self) -> usize {
        let known = match self.len {
            0 | 1 => 0,
            2 => 1,
            3 => 2,
            _ => 3,
        };
        let uses = match self.uses() {
            0 | 1 => 0,
            2 => 1,
            3 | 4 => 2,
            _ => 3,
        };
        (known * 4 + uses) * 8 + usize::from(self.bits & 7)
    }
}

/// How many classes of histories there are.
pub(super) const CONTEXTS: usize = 4 * 4 * 8;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_history_keeps_the_last_eight_windows(uses in prop::collection::vec(any::<bool>(), 0..30)) {
            let mut history = History::default();
            for used in &uses {
                history.push(*used);
            }
            let kept = &uses[uses.len().saturating_sub(8)..];
            prop_assert_eq!(history.windows() as usize, kept.len());
            prop_assert_eq!(history.uses() as usize, kept.iter().filter(|used| **used).count());
            prop_assert_eq!(
                history.streak() as usize,
                kept.iter().rev().take_while(|used| **used).count()
            );
            prop_assert!(history.context() < CONTEXTS);
            let (bits, len) = history.parts();
            prop_assert_eq!(History::from_parts(bits, len), Some(history));
        }
    }

    #[test]
    fn numbers_that_no_history_has_are_refused() {
        assert_eq!(History::from_parts(0, 9), None);
        assert_eq!(History::from_parts(0b100, 2), None);
        assert!(History::from_parts(0xff, 8).is_some());
    }
}
