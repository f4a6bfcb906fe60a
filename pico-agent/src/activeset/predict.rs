//! From chances to pages worth bringing, and to the packs that hold them.
//!
//! A page goes ahead when the chance that it is used, times what a miss costs, exceeds what it costs to bring it. Both
//! costs are measured by others, for the tier the app wakes from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::{ActiveSets, Entry};
use super::observe::PageId;
use crate::port::Port;

/// What pages cost on this host and from this store, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// A page that is asked for and not there: from the fault until the thread goes on, with the fetch from this
    /// tier. Where a fetch brings neighbours that are used too, its share of it.
    pub miss_ns: u64,
    /// Moving one page ahead of its use to this host: its share of the bandwidth. 0 where it is here.
    pub move_ns: u64,
    /// Putting one page into memory ahead of its use.
    pub install_ns: u64,
    /// Most pages to bring; the least likely are left out.
    pub pages_max: usize,
}

impl Costs {
    /// The least chance at which a page is worth bringing.
    #[expect(
        clippy::cast_precision_loss,
        reason = "times of this size need no more than 53 bits"
    )]
    pub fn threshold(&self) -> f64 {
        let ahead = self.move_ns.saturating_add(self.install_ns) as f64;
        ahead / (self.miss_ns.max(1) as f64)
    }

    fn is_worth(&self, chance: f32) -> bool {
        f64::from(chance) > self.threshold()
    }
}

/// What a prediction stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// What requests of the port used before.
    Port,
    /// The port is new: what the app's other ports share.
    OtherPorts,
    /// Nothing is known of any port: the pages of the last window, as the paper does.
    LastWindow,
}

/// A page to bring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// Which page.
    pub at: PageId,
    /// The chance that it is used.
    pub chance: f32,
    /// Whether every request needs it, whatever its port.
    pub base: bool,
    /// Whether it will be written to.
    pub write: bool,
}

/// Pages to bring for one wake.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// What it stands on.
    pub basis: Basis,
    /// The pages: base first, then those of the port, each part in the order of first touch.
    pub pages: Vec<Predicted>,
    /// Pages that were worth it beyond [`Costs::pages_max`].
    pub left_out: usize,
}

/// What a swap-out lays together: a wake on a port reads the base pack and the pack of the port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packs {
    /// What every request needs, in the order of first touch.
    pub base: Vec<PageId>,
    /// What requests of a port need besides.
    pub ports: BTreeMap<Port, Vec<PageId>>,
}

/// A page on its way into a prediction.
struct Candidate {
    chance: f32,
    rank: u16,
    base: bool,
    write: bool,
}

impl ActiveSets {
    /// The pages worth bringing when a packet for `port` wakes the app; `None`: it will be woken, by what is unknown.
    pub fn predict(&self, port: Option<Port>, costs: &Costs) -> Prediction {
        let known = |port: &Port| self.ports.contains_key(&Some(*port));
        let basis = match (port.filter(known), self.ports().next()) {
            (Some(_), _) => Basis::Port,
            (None, Some(_)) => Basis::OtherPorts,
            (None, None) => Basis::LastWindow,
        };
        if basis == Basis::LastWindow && !self.last.is_empty() {
            return self.predict_last(costs);
        }
        let mut candidates = self.base(costs);
        match basis {
            Basis::Port => self.add_port(port, costs, &mut candidates),
            _ => self.add_shared(port, costs, &mut candidates),
        }
        let mut pages: Vec<(PageId, Candidate)> = candidates.into_iter().collect();
        let left_out = pages.len().saturating_sub(costs.pages_max);
        if left_out > 0 {
            pages.sort_by(|(a, x), (b, y)| y.chance.total_cmp(&x.chance).then(a.cmp(b)));
            pages.truncate(costs.pages_max);
        }
        pages.sort_by_key(|(page, candidate)| (!candidate.base, candidate.rank, *page));
        let pages = pages.into_iter().map(|(at, candidate)| Predicted {
            at,
            chance: candidate.chance,
            base: candidate.base,
            write: candidate.write,
        });
        Prediction {
            basis,
            pages: pages.collect(),
            left_out,
        }
    }

    fn predict_last(&self, costs: &Costs) -> Prediction {
        let pages = self.last.iter().map(|page| Predicted {
            at: *page,
            chance: 0.5,
            base: true,
            write: false,
        });
        Prediction {
            basis: Basis::LastWindow,
            pages: pages.take(costs.pages_max).collect(),
            left_out: self.last.len().saturating_sub(costs.pages_max),
        }
    }

    /// What is worth bringing whatever the port: what the work of no port uses, and what all ports need.
    fn base(&self, costs: &Costs) -> BTreeMap<PageId, Candidate> {
        let mut base = BTreeMap::new();
        for (page, entry, chance) in self.chances(None) {
            if costs.is_worth(chance) {
                base.insert(page, Candidate::new(entry, chance, true));
            }
        }
        let sets: Vec<_> = self
            .ports
            .iter()
            .filter(|(key, set)| key.is_some() && set.windows > 0)
            .collect();
        let [(_, first), others @ ..] = &sets[..] else {
            return base;
        };
        if others.is_empty() {
            return base;
        }
        for (page, entry) in &first.pages {
            // It must be in the set of every port.
            let mut chances = sets.iter().map(|(key, set)| {
                let history = set.pages.get(page).map(|entry| entry.history);
                let known = history.is_some_and(|history| history.uses() > 0);
                known.then(|| self.chance(set, *page, history.unwrap_or_default(), **key))
            });
            let least = chances.try_fold(1f32, |least, chance| chance.map(|chance| least.min(chance)));
            if let Some(chance) = least.filter(|chance| *chance >= 0.5 && costs.is_worth(*chance)) {
                base.entry(*page).or_insert(Candidate::new(entry, chance, true));
            }
        }
        base
    }

    fn add_port(&self, port: Option<Port>, costs: &Costs, candidates: &mut BTreeMap<PageId, Candidate>) {
        for (page, entry, chance) in self.chances(port) {
            match candidates.get_mut(&page) {
                Some(candidate) => candidate.chance = 1.0 - (1.0 - candidate.chance) * (1.0 - chance),
                None if costs.is_worth(chance) => {
                    candidates.insert(page, Candidate::new(entry, chance, false));
                }
                None => {}
            }
        }
    }

    /// For a port that is new: what is known of the others.
    fn add_shared(&self, port: Option<Port>, costs: &Costs, candidates: &mut BTreeMap<PageId, Candidate>) {
        let nothing = super::model::PortSet::default();
        for (_, set) in self.ports.iter().filter(|(key, _)| key.is_some()) {
            for (page, entry) in &set.pages {
                if candidates.contains_key(page) {
                    continue;
                }
                let chance = self.chance(&nothing, *page, Default::default(), port);
                if costs.is_worth(chance) {
                    candidates.insert(*page, Candidate::new(entry, chance, false));
                }
            }
        }
    }

    /// The pages of a port with the chance of each.
    fn chances(&self, key: Option<Port>) -> impl Iterator<Item = (PageId, &Entry, f32)> {
        let set = self.ports.get(&key);
        set.into_iter().flat_map(move |set| {
            set.pages
                .iter()
                .map(move |(page, entry)| (*page, entry, self.chance(set, *page, entry.history, key)))
        })
    }

    /// What is worth laying together at a swap-out.
    pub fn packs(&self, costs: &Costs) -> Packs {
        let mut packs = Packs::default();
        let mut base: Vec<(u16, PageId)> = self
            .base(costs)
            .into_iter()
            .map(|(page, candidate)| (candidate.rank, page))
            .collect();
        base.sort_unstable();
        packs.base = base.into_iter().map(|(_, page)| page).collect();
        for port in self.ports() {
            let pages = self.predict(Some(port), costs).pages;
            let own = pages.into_iter().filter(|page| !page.base).map(|page| page.at);
            packs.ports.insert(port, own.collect());
        }
        packs
    }
}

impl Candidate {
    fn new(entry: &Entry, chance: f32, base: bool) -> Self {
        Candidate {
            chance,
            rank: entry.rank,
            base,
            write: entry.write,
        }
    }
}
