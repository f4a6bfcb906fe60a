//! The model of one app: what each port used in which of its last windows.

use std::collections::{BTreeMap, BTreeSet};

use super::calibration::{self, Calibration, Counts, Known};
use super::evidence::{Evidence, Key, Verdict};
use super::format::SetsError;
use super::history::History;
use super::observe::{PageId, Window};
use super::report::{Tally, WakeReport};
use crate::port::Port;

/// Most pages a port keeps a history of: 1 GiB of memory. The least used give way.
pub(super) const PAGES_MAX: usize = 1 << 18;
/// Most ports of an app.
pub(super) const PORTS_MAX: usize = 256;
/// A page is kept as "nothing known" beside this many windows at most; after that it counts as not used.
const UNKNOWN_WINDOWS: u32 = 3;
/// Below these, what was expected of a port did not come, and other pages did: it does something else now.
const RELEARN_BELOW: f64 = 0.5;

/// A window that used this many times as many pages as were expected is no usual one.
const HUGE: usize = 4;

/// What is remembered of a page for one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) history: History,
    /// Where among the first touches of a request it comes, smoothed over windows.
    pub(super) rank: u16,
    /// Whether the last use wrote to it.
    pub(super) write: bool,
    /// Windows in which it was used, over all times.
    pub(super) hits: u32,
    /// The last of them, by [`ActiveSets::windows`].
    pub(super) last: u64,
}

/// One port, or the work of no port.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct PortSet {
    /// Windows in which it ran.
    pub(super) windows: u32,
    /// Whether its last window was unlike those before.
    pub(super) relearning: bool,
    pub(super) counts: Counts,
    pub(super) tally: Tally,
    pub(super) pages: BTreeMap<PageId, Entry>,
}

impl PortSet {
    /// The history of a page, also of one that has no entry.
    fn history(&self, page: PageId) -> History {
        let entry = self.pages.get(&page);
        entry.map_or(History::unused(self.windows), |entry| entry.history)
    }

    /// Whether requests of the port need the page more often than not; `None` when that is not known.
    fn needs(&self, page: PageId) -> Option<bool> {
        let history = self.history(page);
        (!history.is_empty()).then(|| 2 * history.uses() > history.windows())
    }
}

/// The ActiveSets of one app.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveSets {
    pub(super) lineage: u64,
    pub(super) windows: u64,
    pub(super) counts: Counts,
    pub(super) ports: BTreeMap<Key, PortSet>,
    /// What the last window touched, in that order.
    pub(super) last: Vec<PageId>,
}

/// What was learned of one port from a window, and how well it had been known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// The port; `None`: the work of no port.
    pub port: Option<Port>,
    /// Pages that were expected and of which the window says whether they were used.
    pub expected: usize,
    /// Those of them that were used.
    pub expected_used: usize,
    /// Pages that were used.
    pub used: usize,
    /// Whether the port does something else than before.
    pub relearning: bool,
}

/// A port's set, for people and programs to see.
#[derive(Debug, Clone, PartialEq)]
pub struct PortView {
    /// The port; `None`: the work of no port.
    pub port: Option<Port>,
    /// Windows in which it ran.
    pub windows: u32,
    /// Whether its last window was unlike those before.
    pub relearning: bool,
    /// How its wakes went.
    pub tally: Tally,
    /// Pages with any use in the history, by address.
    pub pages: Vec<PageView>,
}

/// A page of a [`PortView`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PageView {
    /// Which page.
    pub at: PageId,
    /// The chance that the next request uses it.
    pub chance: f32,
    /// Windows in which it was used, over all times.
    pub hits: u32,
    /// How many windows of the app ago the last one was; 0 is the last.
    pub age: u64,
    /// Place among the first touches: 0 first, 65,535 last.
    pub rank: u16,
    /// Whether the last use wrote to it.
    pub write: bool,
}

impl ActiveSets {
    /// Sets that know nothing. `lineage` names the life of the app from one fresh start on: page numbers of another
    /// life mean nothing in this one.
    pub fn new(lineage: u64) -> Self {
        ActiveSets {
            lineage,
            windows: 0,
            counts: Counts::default(),
            ports: BTreeMap::new(),
            last: Vec::new(),
        }
    }

    /// The life of the app that this was learned from.
    pub fn lineage(&self) -> u64 {
        self.lineage
    }

    /// How many windows were learned.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// What the last window touched, in that order: all that the paper's predictor knows.
    pub fn last_window(&self) -> &[PageId] {
        &self.last
    }

    /// Takes a window in. One row for each port that ran in it.
    pub fn learn(&mut self, window: &Window) -> Vec<Learned> {
        let evidence = Evidence::of(window);
        self.windows += 1;
        let learned = evidence
            .keys()
            .into_iter()
            .filter_map(|key| self.learn_port(key, &evidence))
            .collect();
        if !window.touched().is_empty() {
            let mut seen = BTreeSet::new();
            let touched = window.touched().iter().map(|touch| touch.at);
            self.last = touched
                .filter(|page| seen.insert(*page))
                .take(PAGES_MAX)
                .collect();
        }
        learned
    }

    fn learn_port(&mut self, key: Key, evidence: &Evidence<'_>) -> Option<Learned> {
        let mut set = match self.ports.remove(&key) {
            Some(set) => set,
            None if self.ports.len() < PORTS_MAX => PortSet::default(),
            None => return None,
        };
        let mut learned = Learned {
            port: key,
            expected: 0,
            expected_used: 0,
            used: evidence.used_by(key).count(),
            relearning: false,
        };
        let unknown = self.judge(key, &set, evidence, &mut learned);
        let low = |part: usize, whole: usize| (part as f64) < RELEARN_BELOW * whole as f64;
        if is_outlier(&set, &learned) {
            self.ports.insert(key, set);
            return Some(learned);
        }
        let judged = self.judgements(key, &set, evidence);
        // The work of no port is little and regular: it says nothing of what requests need again.
        let mut of_no_port = Counts::default();
        let app = if key.is_some() {
            &mut self.counts
        } else {
            &mut of_no_port
        };
        calibration::take(app, &mut set.counts, &judged);
        self.remember(key, &mut set, evidence);
        // A request that uses much more than before is one thing, a request that leaves the known unused another.
        learned.relearning = learned.expected >= unknown
            && low(learned.expected_used, learned.expected)
            && low(learned.expected_used, learned.used);
        set.relearning = learned.relearning;
        self.ports.insert(key, set);
        Some(learned)
    }

    /// How well the window was expected. Gives the number of expected pages of which it says nothing.
    fn judge(&self, key: Key, set: &PortSet, evidence: &Evidence<'_>, learned: &mut Learned) -> usize {
        let mut unknown = 0;
        for (page, entry) in &set.pages {
            if self.chance(set, *page, entry.history, key) < 0.5 {
                continue;
            }
            match evidence.verdict(key, *page) {
                Verdict::Used(_) => {
                    learned.expected += 1;
                    learned.expected_used += 1;
                }
                Verdict::Unused => learned.expected += 1,
                Verdict::Unknown => unknown += 1,
            }
        }
        unknown
    }

    /// What came of each history, for the chances of the next time.
    fn judgements(&self, key: Key, set: &PortSet, evidence: &Evidence<'_>) -> Counts {
        let mut counts = Counts::default();
        let mut pages: BTreeSet<PageId> = set.pages.keys().copied().chain(evidence.touched()).collect();
        if set.windows == 0 {
            // Of a new port, also what others need and it does not: otherwise all would seem to be shared.
            pages.extend(self.ports.values().flat_map(|other| other.pages.keys()));
        }
        for page in pages {
            let used = match evidence.verdict(key, page) {
                Verdict::Used(_) => true,
                Verdict::Unused => false,
                Verdict::Unknown => continue,
            };
            let known = self.known(page, set.history(page), key);
            match known {
                // There is no end of pages that were never used.
                Known::History(history) if history.uses() == 0 => {}
                // What is new after a change of behaviour is no request's own data.
                Known::History(history) if set.relearning && history.uses() == 1 => {}
                Known::Others { needing, .. } if needing == 0 || key.is_none() => {}
                known => counts.judge(known, used),
            }
        }
        counts
    }

    fn remember(&self, key: Key, set: &mut PortSet, evidence: &Evidence<'_>) {
        let before = set.windows;
        set.windows = set.windows.saturating_add(1);
        for (page, entry) in &mut set.pages {
            match evidence.verdict(key, *page) {
                Verdict::Used(_) => {} // below, with the pages that are new
                Verdict::Unused => entry.history.push(false),
                Verdict::Unknown => {}
            }
        }
        for (page, used) in evidence.used_by(key) {
            let entry = set.pages.entry(page).or_insert(Entry {
                history: History::unused(before),
                rank: used.rank,
                write: used.write,
                hits: 0,
                last: 0,
            });
            entry.history.push(true);
            #[expect(clippy::cast_possible_truncation, reason = "a mean of numbers of 16 bits")]
            {
                entry.rank = ((u32::from(entry.rank) * 3 + u32::from(used.rank)) / 4) as u16;
            }
            entry.write = used.write;
            entry.hits = entry.hits.saturating_add(1);
            entry.last = self.windows;
        }
        // What ports share says nothing of the work of no port.
        if before < UNKNOWN_WINDOWS && key.is_some() {
            for page in evidence.touched() {
                if evidence.verdict(key, page) == Verdict::Unknown {
                    set.pages.entry(page).or_insert(Entry {
                        history: History::unused(before),
                        rank: u16::MAX,
                        write: false,
                        hits: 0,
                        last: 0,
                    });
                }
            }
        }
        let settled = set.windows.min(UNKNOWN_WINDOWS);
        set.pages
            .retain(|_, entry| entry.history.uses() > 0 || entry.history.windows() < settled);
        bound(&mut set.pages);
    }

    /// Keeps how a wake went with the port that woke the app, if that is known.
    pub fn tally(&mut self, report: &WakeReport) {
        if let Some(set) = self.ports.get_mut(&report.port) {
            set.tally.add(report);
        }
    }

    /// Forgets pages that are in no checkpoint any more.
    pub fn retain(&mut self, mut exists: impl FnMut(PageId) -> bool) {
        for set in self.ports.values_mut() {
            set.pages.retain(|page, _| exists(*page));
        }
        self.last.retain(|page| exists(*page));
    }

    /// Forgets what is known of one port, or of the work of no port; false when nothing was.
    pub fn reset(&mut self, port: Option<Port>) -> bool {
        self.ports.remove(&port).is_some()
    }

    /// Takes in what another host learned of the same life of the app: ports that are new here, and of each page the
    /// history that reaches back further.
    ///
    /// # Errors
    /// [`SetsError::Foreign`] when the other is of another life; nothing changes then.
    pub fn merge(&mut self, other: &ActiveSets) -> Result<(), SetsError> {
        if self.lineage != other.lineage {
            return Err(SetsError::Foreign {
                found: other.lineage,
                expected: self.lineage,
            });
        }
        let own_windows = self.windows;
        self.windows = self.windows.max(other.windows);
        let later = self.windows - own_windows;
        for entry in self.ports.values_mut().flat_map(|set| set.pages.values_mut()) {
            entry.last += later;
        }
        for (key, theirs) in &other.ports {
            if !self.ports.contains_key(key) && self.ports.len() >= PORTS_MAX {
                continue;
            }
            let mine = self.ports.entry(*key).or_default();
            for (page, entry) in &theirs.pages {
                // Ages stay what they are: a number of windows ago.
                let last = self.windows - (other.windows - entry.last);
                let entry = Entry { last, ..*entry };
                let known = mine.pages.entry(*page).or_insert(entry);
                if known.history.windows() < entry.history.windows() {
                    *known = entry;
                }
            }
            if mine.windows < theirs.windows {
                (mine.windows, mine.relearning) = (theirs.windows, theirs.relearning);
                mine.counts = theirs.counts.clone();
                mine.tally = theirs.tally.clone();
            }
            bound(&mut mine.pages);
        }
        if own_windows < other.windows {
            self.counts = other.counts.clone();
        }
        if self.last.is_empty() {
            self.last.clone_from(&other.last);
        }
        Ok(())
    }

    /// The ports that were learned.
    pub fn ports(&self) -> impl Iterator<Item = Port> + '_ {
        self.ports.keys().filter_map(|key| *key)
    }

    /// The set of one port, or of the work of no port.
    pub fn view(&self, port: Option<Port>) -> Option<PortView> {
        let set = self.ports.get(&port)?;
        let pages = set.pages.iter().filter(|(_, entry)| entry.history.uses() > 0);
        let pages = pages.map(|(page, entry)| PageView {
            at: *page,
            chance: self.chance(set, *page, entry.history, port),
            hits: entry.hits,
            age: self.windows - entry.last,
            rank: entry.rank,
            write: entry.write,
        });
        Some(PortView {
            port,
            windows: set.windows,
            relearning: set.relearning,
            tally: set.tally.clone(),
            pages: pages.collect(),
        })
    }

    /// What the chance of a page is counted by.
    fn known(&self, page: PageId, history: History, key: Key) -> Known {
        if !history.is_empty() {
            return Known::History(history);
        }
        self.others(page, key)
    }

    /// What the other ports know of a page.
    pub(super) fn others(&self, page: PageId, key: Key) -> Known {
        let (mut needing, mut knowing) = (0, 0);
        let others = self
            .ports
            .iter()
            .filter(|(other, _)| other.is_some() && **other != key);
        for needs in others.filter_map(|(_, set)| set.needs(page)) {
            knowing += 1;
            needing += u32::from(needs);
        }
        Known::Others { needing, knowing }
    }

    /// The chance that the next window of a port uses a page, of which this is the history.
    pub(super) fn chance(&self, set: &PortSet, page: PageId, history: History, key: Key) -> f32 {
        let calibration = Calibration {
            app: &self.counts,
            port: &set.counts,
        };
        let chance = calibration.chance(self.known(page, history, key));
        let new = history.uses() == 1 && history.streak() == 1;
        if new && set.relearning {
            chance.max(0.5)
        } else {
            chance
        }
    }
}

/// Whether a window is one huge request, such as a dump of everything, of which nothing is to be learned: the known pages
/// were used as always, and many times as many others. A second one in a row counts.
fn is_outlier(set: &PortSet, window: &Learned) -> bool {
    let usual = set.windows >= 2 && window.expected > 0 && 2 * window.expected_used >= window.expected;
    let before = set.tally.last.recall();
    usual && window.used > HUGE * window.expected && before.is_some_and(|recall| recall >= RELEARN_BELOW)
}

/// Lets the least used pages go when there are too many.
fn bound(pages: &mut BTreeMap<PageId, Entry>) {
    if pages.len() <= PAGES_MAX {
        return;
    }
    let mut order: Vec<(u32, u64, PageId)> = pages
        .iter()
        .map(|(page, entry)| (entry.history.uses(), entry.last, *page))
        .collect();
    let surplus = order.len() - PAGES_MAX;
    order.select_nth_unstable(surplus - 1);
    for (_, _, page) in &order[..surplus] {
        pages.remove(page);
    }
}
