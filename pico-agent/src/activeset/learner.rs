//! One app's learning as it happens: the window that is open, what was brought for it, and how that turned out.
//!
//! Whoever sees faults, sockets and accessed bits tells them here; nobody else needs to know what a window is.

use std::collections::BTreeSet;

use super::model::{ActiveSets, Learned};
use super::observe::{Kind, PageId, Source, Window};
use super::predict::{Costs, Prediction};
use super::report::WakeReport;
use crate::port::Port;

/// Wakes of a port in a row after which one installs on fault instead of ahead, where accessed bits cannot be read: so
/// that pages which nobody uses any more are seen.
const BLIND_WAKES: u32 = 16;

/// The sets of an app, and what is being learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Learner {
    sets: ActiveSets,
    open: Option<Open>,
    /// Wakes since one whose unused pages were seen.
    blind: u32,
}

#[derive(Debug, Clone, PartialEq)]
struct Open {
    window: Window,
    late: BTreeSet<PageId>,
    faulted: BTreeSet<PageId>,
    bytes: u64,
}

/// A window that was taken in.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// How the prefetch of a wake turned out; `None` for a slice of a hot period.
    pub report: Option<WakeReport>,
    /// What was learned of each port.
    pub learned: Vec<Learned>,
}

impl Learner {
    /// Goes on from what is known.
    pub fn new(sets: ActiveSets) -> Self {
        Learner {
            sets,
            open: None,
            blind: 0,
        }
    }

    /// What is known.
    pub fn sets(&self) -> &ActiveSets {
        &self.sets
    }

    /// As [`Learner::sets`], to forget pages or ports.
    pub fn sets_mut(&mut self) -> &mut ActiveSets {
        &mut self.sets
    }

    /// The pages to bring for a wake. Empty now and then where accessed bits cannot be read (`sees_unused` is false):
    /// such a wake is slower, and shows which pages are needed still.
    pub fn predict(&self, port: Option<Port>, costs: &Costs, sees_unused: bool) -> Prediction {
        let mut prediction = self.sets.predict(port, costs);
        if !sees_unused && self.blind >= BLIND_WAKES {
            prediction.pages.clear();
        }
        prediction
    }

    /// The app is being woken by a packet for `trigger`; `pages`: lazy pages of its checkpoint. A window that is open is
    /// closed without accessed bits.
    pub fn wake(&mut self, trigger: Option<Port>, pages: u64) {
        let mut window = Window::new(Kind::Wake, trigger);
        window.checkpoint_pages = pages;
        // The packet that woke it is a request, even if its receipt is not seen.
        if let Some(port) = trigger {
            window.begin(port);
        }
        self.begin(window);
    }

    /// Accessed bits were cleared: a slice of a hot period begins.
    pub fn hot(&mut self) {
        self.begin(Window::new(Kind::Hot, None));
    }

    fn begin(&mut self, window: Window) {
        self.close(None::<[_; 0]>);
        self.open = Some(Open {
            window,
            late: BTreeSet::new(),
            faulted: BTreeSet::new(),
            bytes: 0,
        });
    }

    /// A page is brought although nobody asked for it; `bytes` were moved for it.
    pub fn ahead(&mut self, page: PageId, bytes: u64) {
        if let Some(open) = &mut self.open {
            open.window.prefetched(page);
            open.bytes += bytes;
        }
    }

    /// A thread that served `port` waited for a page.
    pub fn fault(&mut self, page: PageId, write: bool, port: Option<Port>) {
        let Some(open) = &mut self.open else { return };
        open.window.observe(page, write, port, Source::Fault);
        if open.window.pages_prefetched().contains(&page) {
            open.late.insert(page);
        } else if port.is_none() || port == open.window.trigger {
            open.faulted.insert(page);
        }
    }

    /// A thread received a request.
    pub fn received(&mut self, port: Port) {
        if let Some(open) = &mut self.open {
            open.window.begin(port);
        }
    }

    /// A thread answered.
    pub fn sent(&mut self, port: Port) {
        if let Some(open) = &mut self.open {
            open.window.end(port);
        }
    }

    /// Events were lost.
    pub fn lost(&mut self) {
        if let Some(open) = &mut self.open {
            open.window.lost();
        }
    }

    /// Ends the open window and learns from it. `accessed`: each page whose accessed bit is set, and whether it was
    /// written; `None` when they were not read.
    pub fn close(&mut self, accessed: Option<impl IntoIterator<Item = (PageId, bool)>>) -> Option<Closed> {
        let mut open = self.open.take()?;
        let mut seen = None;
        if let Some(accessed) = accessed {
            let hot = open.window.kind == Kind::Hot;
            let seen = seen.insert(BTreeSet::new());
            for (page, write) in accessed {
                // What was faulted in is there with its port already. Of a wake, the others are pages brought ahead.
                if hot || open.window.pages_prefetched().contains(&page) {
                    seen.insert(page);
                    if !open.late.contains(&page) {
                        open.window.observe(page, write, None, Source::Accessed);
                    }
                }
            }
            open.window.accessed_bits_read();
        }
        let report = (open.window.kind == Kind::Wake).then(|| self.report(&open, seen.as_ref()));
        let learned = self.sets.learn(&open.window);
        if let Some(report) = &report {
            self.sets.tally(report);
        }
        Some(Closed { report, learned })
    }

    fn report(&mut self, open: &Open, accessed: Option<&BTreeSet<PageId>>) -> WakeReport {
        let prefetched = open.window.pages_prefetched();
        let rest = prefetched.difference(&open.late);
        let (mut used, mut wasted, mut unknown) = (0, 0, 0);
        for page in rest {
            match accessed.map(|accessed| accessed.contains(page)) {
                Some(true) => used += 1,
                Some(false) => wasted += 1,
                None => unknown += 1,
            }
        }
        self.blind = match unknown {
            0 => 0,
            _ => self.blind + 1,
        };
        WakeReport {
            port: open.window.trigger,
            prefetched: prefetched.len() as u64,
            used,
            late: open.late.len() as u64,
            wasted,
            unknown,
            faulted: open.faulted.len() as u64,
            bytes: open.bytes,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::synth::port;
    use super::*;

    const COSTS: Costs = Costs {
        miss_ns: 1_000_000,
        move_ns: 10_000,
        install_ns: 1_000,
        pages_max: 1000,
    };

    fn page(page: u64) -> PageId {
        PageId { space: 1, page }
    }

    /// A wake by port 1 that needs pages 0 to 9, of which those in `ahead` are there.
    fn wake(learner: &mut Learner, ahead: &[u64], accessed: bool) -> WakeReport {
        learner.wake(Some(port(1)), 100);
        ahead.iter().for_each(|number| learner.ahead(page(*number), 4096));
        for number in (0..10).filter(|number| !ahead.contains(number)) {
            learner.fault(page(number), false, Some(port(1)));
        }
        learner.sent(port(1));
        let bits = (0..10).map(|number| (page(number), false));
        learner.close(accessed.then_some(bits)).unwrap().report.unwrap()
    }

    #[test]
    fn a_report_says_what_became_of_each_page() {
        let mut learner = Learner::new(ActiveSets::new(1));
        learner.wake(Some(port(1)), 100);
        (0..5).for_each(|number| learner.ahead(page(number), 4096));
        learner.fault(page(0), false, Some(port(1)));
        learner.fault(page(7), false, None);
        learner.fault(page(8), false, Some(port(2)));
        let bits = [0, 1, 2, 7, 8, 99].map(|number| (page(number), true));
        let closed = learner.close(Some(bits)).unwrap();
        assert_eq!(
            closed.report,
            Some(WakeReport {
                port: Some(port(1)),
                prefetched: 5,
                used: 2,
                late: 1,
                wasted: 2,
                unknown: 0,
                faulted: 1,
                bytes: 5 * 4096,
            })
        );
        assert_eq!(learner.close(None::<[_; 0]>), None);
        let view = learner.sets().view(Some(port(1))).unwrap();
        let pages: Vec<u64> = view.pages.iter().map(|page| page.at.page).collect();
        assert_eq!(
            pages,
            [0],
            "asked for by the port; any of the two that ran may have used the others"
        );
        assert_eq!(view.tally.wakes, 1);
        assert_eq!(view.tally.last.recall(), Some(0.75));
    }

    #[test]
    fn what_is_predicted_is_learned_further_and_dropped_when_nobody_uses_it() {
        let mut learner = Learner::new(ActiveSets::new(1));
        for _ in 0..2 {
            wake(&mut learner, &[], true);
        }
        let pages = |learner: &Learner| -> Vec<u64> {
            let prediction = learner.predict(Some(port(1)), &COSTS, true);
            prediction.pages.iter().map(|page| page.at.page).collect()
        };
        let mut ahead = pages(&learner);
        ahead.sort_unstable();
        assert_eq!(ahead, (0..10).collect::<Vec<_>>());
        ahead.push(50);
        for _ in 0..3 {
            let report = wake(&mut learner, &ahead, true);
            assert_eq!((report.used, report.wasted, report.faulted), (10, 1, 0));
        }
        assert_eq!(pages(&learner).len(), 10);
    }

    #[test]
    fn without_accessed_bits_one_wake_now_and_then_brings_nothing_to_see_what_is_needed() {
        let mut learner = Learner::new(ActiveSets::new(1));
        for _ in 0..2 {
            wake(&mut learner, &[], false);
        }
        let mut empty = 0;
        for _ in 0..40 {
            let pages = learner.predict(Some(port(1)), &COSTS, false).pages;
            empty += u32::from(pages.is_empty());
            let ahead: Vec<u64> = pages.iter().map(|page| page.at.page).collect();
            let report = wake(&mut learner, &ahead, false);
            assert_eq!(report.unknown, ahead.len() as u64);
            assert_eq!(report.precision(), None);
        }
        assert_eq!(empty, 2);
    }

    #[test]
    fn a_slice_of_a_hot_period_teaches_before_the_first_swap_out() {
        let mut learner = Learner::new(ActiveSets::new(1));
        for _ in 0..2 {
            learner.hot();
            learner.received(port(1));
            learner.sent(port(1));
            let bits = (0..10).map(|number| (page(number), false));
            let closed = learner.close(Some(bits)).unwrap();
            assert_eq!(closed.report, None);
        }
        assert_eq!(learner.predict(Some(port(1)), &COSTS, true).pages.len(), 10);
    }
}
