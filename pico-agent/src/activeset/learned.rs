//! `logistic`: a predictor learned from data, to see whether one beats the counted chances.
//!
//! Logistic regression over what is cheap to know of a page and a port: its history, what the work of no port and the
//! other ports do with it, whether its neighbours are in the set, whether it is written. Trained by stochastic gradient
//! descent, window after window; it may be trained on one trace and asked about another.

use std::collections::BTreeSet;

use super::evidence::{Evidence, Key, Verdict};
use super::history::History;
use super::model::ActiveSets;
use super::observe::{Kind, PageId, Window};
use super::predict::Costs;
use super::predictor::{Guess, Predictor};
use crate::port::Port;

const FEATURES: usize = 10;
/// Step of the descent for one page.
const RATE: f64 = 0.05;

/// The predictor.
#[derive(Debug, Clone)]
pub struct Logistic {
    sets: ActiveSets,
    weights: [f64; FEATURES],
}

impl Default for Logistic {
    fn default() -> Self {
        Self::new()
    }
}

impl Logistic {
    /// Untrained: what was used more often than not is likely.
    pub fn new() -> Self {
        let mut weights = [0.0; FEATURES];
        (weights[0], weights[1], weights[2]) = (-4.0, 4.0, 4.0);
        Logistic {
            sets: ActiveSets::new(0),
            weights,
        }
    }

    /// As trained, for another app: it knows nothing of that one's pages.
    pub fn transferred(&self) -> Self {
        Logistic {
            sets: ActiveSets::new(0),
            weights: self.weights,
        }
    }

    fn history(&self, key: Key, page: PageId) -> (History, bool) {
        match self.sets.ports.get(&key) {
            None => (History::default(), false),
            Some(set) => match set.pages.get(&page) {
                Some(entry) => (entry.history, entry.write),
                None => (History::unused(set.windows), false),
            },
        }
    }

    fn features(&self, key: Key, page: PageId) -> [f64; FEATURES] {
        let (own, write) = self.history(key, page);
        let (none, _) = self.history(None, page);
        let share = |history: History| match history.windows() {
            0 => 0.0,
            windows => f64::from(history.uses()) / f64::from(windows),
        };
        let (mut needing, mut knowing) = (0.0, 0.0);
        for port in self.sets.ports().filter(|port| Some(*port) != key) {
            knowing += 1.0;
            needing += share(self.history(Some(port), page).0);
        }
        let near = [page.page.wrapping_sub(1), page.page.wrapping_add(1)];
        let near = near.map(|number| PageId { page: number, ..page });
        let neighbours = near
            .iter()
            .map(|page| share(self.history(key, *page).0))
            .sum::<f64>();
        let flag = |set: bool| f64::from(u8::from(set));
        [
            1.0,
            share(own),
            flag(own.streak() > 0),
            flag(own.streak() > 1),
            flag(own.is_empty()),
            flag(own.uses() == 1 && own.windows() > 1),
            share(none),
            if knowing > 0.0 { needing / knowing } else { 0.0 },
            neighbours / 2.0,
            flag(write),
        ]
    }

    fn chance(&self, features: &[f64; FEATURES]) -> f64 {
        let sum: f64 = self
            .weights
            .iter()
            .zip(features)
            .map(|(weight, feature)| weight * feature)
            .sum();
        1.0 / (1.0 + (-sum).exp())
    }

    /// Every page of which anything is known.
    fn candidates(&self) -> BTreeSet<PageId> {
        let sets = self.sets.ports.values();
        sets.flat_map(|set| set.pages.keys().copied()).collect()
    }

    fn train(&mut self, key: Key, evidence: &Evidence<'_>) {
        for page in self.candidates() {
            let used = match (evidence.verdict(key, page), evidence.verdict(None, page)) {
                (Verdict::Used(_), _) | (_, Verdict::Used(_)) => 1.0,
                (Verdict::Unused, _) => 0.0,
                (Verdict::Unknown, _) => continue,
            };
            let features = self.features(key, page);
            let error = used - self.chance(&features);
            for (weight, feature) in self.weights.iter_mut().zip(features) {
                *weight += RATE * error * feature;
            }
        }
    }
}

impl Predictor for Logistic {
    fn name(&self) -> &'static str {
        "logistic"
    }

    fn learn(&mut self, window: &Window) {
        if window.kind == Kind::Wake && window.trigger.is_some() {
            self.train(window.trigger, &Evidence::of(window));
        }
        self.sets.learn(window);
    }

    fn predict(&self, port: Option<Port>, costs: &Costs) -> Guess {
        let worth = |page: &PageId| self.chance(&self.features(port, *page)) > costs.threshold();
        Guess::Pages(self.candidates().into_iter().filter(worth).collect())
    }
}
