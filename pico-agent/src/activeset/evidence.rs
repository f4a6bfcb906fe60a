//! What one window says of a page and a port: used, not used, or nothing.
//!
//! A fault shows who touched a page first. Who ran later found the page in memory: of that one nothing is known. Who
//! had ended before did not use it. A page that was put there ahead shows nothing either, unless accessed bits were
//! read.

use std::collections::{BTreeMap, HashMap};

use super::observe::{Kind, Observation, PageId, Source, Window};
use crate::port::Port;

/// A port, or the work of no port.
pub(super) type Key = Option<Port>;

/// What is known after a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was used.
    Used(Use),
    /// It was not.
    Unused,
    /// It may have been.
    Unknown,
}

/// How a page was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// Place among the first touches of the port, 0 for the first and 65,535 for the last of its pages.
    pub(super) rank: u16,
    /// Whether it was written to.
    pub(super) write: bool,
}

/// Uses of one key, and the first fault on each page by anyone.
pub(super) struct Evidence<'w> {
    window: &'w Window,
    ports: BTreeMap<Port, u32>,
    uses: BTreeMap<Key, BTreeMap<PageId, Use>>,
    /// Order of the first fault; `None`: seen only by its accessed bit.
    first: HashMap<PageId, Option<u32>>,
}

impl<'w> Evidence<'w> {
    /// Reads a window.
    pub(super) fn of(window: &'w Window) -> Self {
        let ports = window.ports();
        let sole = match ports.len() {
            1 => ports.keys().next().copied(),
            _ => None,
        };
        let mut evidence = Evidence {
            window,
            ports,
            uses: BTreeMap::new(),
            first: HashMap::new(),
        };
        let mut by: BTreeMap<Key, Vec<(PageId, bool)>> = BTreeMap::new();
        for touch in window.touched() {
            let fault = (touch.source == Source::Fault).then_some(touch.order);
            let first = evidence.first.entry(touch.at).or_insert(fault);
            *first = first.or(fault);
            if let Some(key) = Self::key_of(touch, sole) {
                by.entry(key).or_default().push((touch.at, touch.write));
            }
        }
        for (key, touches) in by {
            let last = touches.len().saturating_sub(1).max(1);
            let uses = evidence.uses.entry(key).or_default();
            for (at, (page, write)) in touches.into_iter().enumerate() {
                let rank = u16::try_from(at * usize::from(u16::MAX) / last).unwrap_or(u16::MAX);
                uses.entry(page)
                    .and_modify(|known| known.write |= write)
                    .or_insert(Use { rank, write });
            }
        }
        evidence
    }

    /// Whose use a touch was, if that is known.
    fn key_of(touch: &Observation, sole: Option<Port>) -> Option<Key> {
        match (touch.port, touch.source) {
            (Some(port), _) => Some(Some(port)),
            (None, Source::Fault) => Some(None),
            (None, Source::Accessed) if sole.is_some() => Some(sole),
            // Where several ports had requests, any of them may have used it; also one that it was not brought for.
            (None, Source::Accessed) => None,
        }
    }

    /// Who ran in the window.
    pub(super) fn keys(&self) -> Vec<Key> {
        let ports = self.ports.keys().map(|port| Some(*port));
        let no_port = (self.window.kind == Kind::Wake).then_some(None);
        no_port.into_iter().chain(ports).collect()
    }

    /// What `key` is known to have used.
    pub(super) fn used_by(&self, key: Key) -> impl Iterator<Item = (PageId, Use)> + '_ {
        let uses = self.uses.get(&key);
        uses.into_iter().flatten().map(|(page, used)| (*page, *used))
    }

    /// All pages that anyone touched, each once, in no order.
    pub(super) fn touched(&self) -> impl Iterator<Item = PageId> + '_ {
        self.first.keys().copied()
    }

    /// What is known of `key` and `page`.
    pub(super) fn verdict(&self, key: Key, page: PageId) -> Verdict {
        if let Some(used) = self.uses.get(&key).and_then(|uses| uses.get(&page)) {
            return Verdict::Used(*used);
        }
        let unused = match (self.first.get(&page), key) {
            (None, _) => self.window.absence_is_known(page),
            // Faults of a wake are first touches: who had ended by then did not touch the page before.
            (Some(Some(first)), Some(port)) if self.window.kind == Kind::Wake => {
                let ended = self.ports.get(&port).is_some_and(|end| end <= first);
                ended && self.window.is_complete() && !self.window.pages_prefetched().contains(&page)
            }
            (Some(_), _) => false,
        };
        if unused { Verdict::Unused } else { Verdict::Unknown }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn page(page: u64) -> PageId {
        PageId { space: 1, page }
    }

    fn port(number: u16) -> Port {
        format!("{number}/tcp").parse().unwrap()
    }

    fn is_used(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Used(_))
    }

    /// Port 1 touches pages 1 and 2 and ends, then port 2 touches page 3.
    fn one_after_the_other(kind: Kind) -> Window {
        let mut window = Window::new(kind, Some(port(1)));
        window.observe(page(9), false, None, Source::Fault);
        window.begin(port(1));
        window.observe(page(1), false, Some(port(1)), Source::Fault);
        window.observe(page(2), true, Some(port(1)), Source::Fault);
        window.end(port(1));
        window.begin(port(2));
        window.observe(page(3), false, Some(port(2)), Source::Fault);
        window.end(port(2));
        window
    }

    #[test]
    fn who_came_later_may_have_used_what_was_there_and_who_had_ended_did_not() {
        let window = one_after_the_other(Kind::Wake);
        let evidence = Evidence::of(&window);
        assert_eq!(evidence.keys(), [None, Some(port(1)), Some(port(2))]);
        assert!(is_used(evidence.verdict(Some(port(1)), page(1))));
        assert_eq!(evidence.verdict(Some(port(2)), page(1)), Verdict::Unknown);
        assert_eq!(evidence.verdict(Some(port(1)), page(3)), Verdict::Unused);
        assert_eq!(evidence.verdict(Some(port(1)), page(7)), Verdict::Unused);
        assert_eq!(evidence.verdict(None, page(1)), Verdict::Unknown);
        assert!(is_used(evidence.verdict(None, page(9))));
    }

    #[test]
    fn absence_says_nothing_when_events_were_lost_or_the_page_was_brought_ahead() {
        let mut window = one_after_the_other(Kind::Wake);
        window.prefetched(page(7));
        let evidence = Evidence::of(&window);
        assert_eq!(evidence.verdict(Some(port(1)), page(7)), Verdict::Unknown);
        assert_eq!(evidence.verdict(Some(port(1)), page(8)), Verdict::Unused);
        window.accessed_bits_read();
        assert_eq!(
            Evidence::of(&window).verdict(Some(port(1)), page(7)),
            Verdict::Unused
        );
        window.lost();
        let evidence = Evidence::of(&window);
        assert_eq!(evidence.verdict(Some(port(1)), page(8)), Verdict::Unknown);
        assert_eq!(evidence.verdict(Some(port(1)), page(3)), Verdict::Unknown);
    }

    #[test]
    fn a_hot_period_knows_what_was_not_used_only_by_accessed_bits() {
        let mut window = one_after_the_other(Kind::Hot);
        assert_eq!(
            Evidence::of(&window).verdict(Some(port(1)), page(7)),
            Verdict::Unknown
        );
        assert_eq!(
            Evidence::of(&window).verdict(Some(port(1)), page(3)),
            Verdict::Unknown
        );
        window.accessed_bits_read();
        assert_eq!(
            Evidence::of(&window).verdict(Some(port(1)), page(7)),
            Verdict::Unused
        );
    }

    #[test]
    fn an_accessed_page_belongs_to_the_only_port() {
        let mut window = Window::new(Kind::Hot, None);
        window.begin(port(1));
        window.observe(page(1), false, None, Source::Accessed);
        assert!(is_used(Evidence::of(&window).verdict(Some(port(1)), page(1))));
        window.begin(port(2));
        window.trigger = Some(port(2));
        window.prefetched(page(1));
        for either in [1, 2] {
            let verdict = Evidence::of(&window).verdict(Some(port(either)), page(1));
            assert_eq!(verdict, Verdict::Unknown);
        }
    }

    #[test]
    fn ranks_follow_the_first_touches() {
        let window = one_after_the_other(Kind::Wake);
        let evidence = Evidence::of(&window);
        let ranks: Vec<(u64, u16)> = evidence
            .used_by(Some(port(1)))
            .map(|(page, used)| (page.page, used.rank))
            .collect();
        assert_eq!(ranks, [(1, 0), (2, u16::MAX)]);
    }
}
