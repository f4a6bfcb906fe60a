//! The predictors that were tried, behind one trait, and how well each does on the windows of a trace.
//!
//! `per-port` is what the agent uses ([`ActiveSets::predict`]); the others are what it is compared with.
//! kernel-notes/prediction.md has the comparison.

use std::collections::BTreeSet;

use serde::Serialize;

use super::learned::Logistic;
use super::model::ActiveSets;
use super::observe::{Kind, Observation, PageId, Window};
use super::predict::Costs;
use crate::port::{Port, Proto};

/// What a predictor would bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guess {
    /// These pages.
    Pages(BTreeSet<PageId>),
    /// The whole checkpoint.
    All,
}

/// Something that learns from windows and names pages for the next wake.
pub trait Predictor {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// Takes a window in.
    fn learn(&mut self, window: &Window);
    /// What to bring for a wake by a port.
    fn predict(&self, port: Option<Port>, costs: &Costs) -> Guess;
}

/// One of each.
pub fn predictors() -> Vec<Box<dyn Predictor>> {
    vec![
        Box::new(Fixed { all: false }),
        Box::new(Fixed { all: true }),
        Box::new(LastWindow(BTreeSet::new())),
        Box::new(Global(ActiveSets::new(0))),
        Box::new(PerPort(ActiveSets::new(0))),
        Box::new(Logistic::new()),
    ]
}

/// `none`: every page is asked for. `full`: the whole checkpoint comes first.
struct Fixed {
    all: bool,
}

impl Predictor for Fixed {
    fn name(&self) -> &'static str {
        if self.all { "full" } else { "none" }
    }

    fn learn(&mut self, _: &Window) {}

    fn predict(&self, _: Option<Port>, _: &Costs) -> Guess {
        match self.all {
            true => Guess::All,
            false => Guess::Pages(BTreeSet::new()),
        }
    }
}

/// `last-window`: what was touched since the last restore, as the paper does.
struct LastWindow(BTreeSet<PageId>);

impl Predictor for LastWindow {
    fn name(&self) -> &'static str {
        "last-window"
    }

    fn learn(&mut self, window: &Window) {
        self.0 = window.touched().iter().map(|touch| touch.at).collect();
    }

    fn predict(&self, _: Option<Port>, _: &Costs) -> Guess {
        Guess::Pages(self.0.clone())
    }
}

/// `global`: the model, told that all ports are one.
struct Global(ActiveSets);

/// The port that all are taken for.
const ANY: Port = Port {
    number: 1,
    proto: Proto::Tcp,
};

impl Predictor for Global {
    fn name(&self) -> &'static str {
        "global"
    }

    fn learn(&mut self, window: &Window) {
        let mut merged = Window::new(window.kind, Some(ANY));
        merged.begin(ANY);
        for Observation {
            at, write, source, ..
        } in window.touched()
        {
            merged.observe(*at, *write, Some(ANY), *source);
        }
        window
            .pages_prefetched()
            .iter()
            .for_each(|page| merged.prefetched(*page));
        if window.has_accessed_bits() {
            merged.accessed_bits_read();
        }
        if !window.is_complete() {
            merged.lost();
        }
        self.0.learn(&merged);
    }

    fn predict(&self, _: Option<Port>, costs: &Costs) -> Guess {
        guess(&self.0, Some(ANY), costs)
    }
}

/// `per-port`: what the agent does.
struct PerPort(ActiveSets);

impl Predictor for PerPort {
    fn name(&self) -> &'static str {
        "per-port"
    }

    fn learn(&mut self, window: &Window) {
        self.0.learn(window);
    }

    fn predict(&self, port: Option<Port>, costs: &Costs) -> Guess {
        guess(&self.0, port, costs)
    }
}

fn guess(sets: &ActiveSets, port: Option<Port>, costs: &Costs) -> Guess {
    Guess::Pages(
        sets.predict(port, costs)
            .pages
            .into_iter()
            .map(|page| page.at)
            .collect(),
    )
}

/// How a predictor did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Score {
    /// Its name.
    pub predictor: &'static str,
    /// Wakes that were predicted.
    pub wakes: u64,
    /// Pages they needed, together.
    pub needed: u64,
    /// Pages that were brought.
    pub brought: u64,
    /// Pages that were brought and needed.
    pub used: u64,
    /// Part of the needed pages that were brought.
    pub recall: Option<f64>,
    /// Part of the brought pages that were needed.
    pub precision: Option<f64>,
    /// Pages brought for nothing.
    pub wasted: u64,
    /// Mean time of a wake in its pages: every miss, and moving and installing what was brought, one after the other.
    pub mean_ms: Option<f64>,
}

impl Score {
    #[expect(clippy::cast_precision_loss, reason = "counts of pages are far below 2^53")]
    fn finish(&mut self, costs: &Costs) {
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        self.recall = ratio(self.used, self.needed);
        self.precision = ratio(self.used, self.brought);
        self.wasted = self.brought - self.used;
        let missed = (self.needed - self.used) as f64 * costs.miss_ns as f64;
        let ahead = self.brought as f64 * (costs.move_ns + costs.install_ns) as f64;
        self.mean_ms = (self.wakes > 0).then(|| (missed + ahead) / 1e6 / self.wakes as f64);
    }
}

/// Replays windows through predictors: each wake is first predicted, then learned from, so no predictor has seen what
/// it is asked for. Wakes on `only`, where it is given, and only after the first `warmup` windows.
pub fn evaluate(
    predictors: &mut [Box<dyn Predictor>],
    windows: &[Window],
    costs: &Costs,
    warmup: usize,
    only: Option<Port>,
) -> Vec<Score> {
    let mut scores: Vec<Score> = predictors
        .iter()
        .map(|predictor| Score {
            predictor: predictor.name(),
            ..Score::default()
        })
        .collect();
    for (at, window) in windows.iter().enumerate() {
        let counts = window.kind == Kind::Wake
            && at >= warmup
            && window.is_complete()
            && window.trigger.is_some()
            && (only.is_none() || window.trigger == only);
        let needed = window.needed_by(window.trigger);
        for (predictor, score) in predictors.iter_mut().zip(&mut scores) {
            if counts {
                score.wakes += 1;
                score.needed += needed.len() as u64;
                let (brought, used) = match predictor.predict(window.trigger, costs) {
                    Guess::All => (
                        window.checkpoint_pages.max(needed.len() as u64),
                        needed.len() as u64,
                    ),
                    Guess::Pages(pages) => (pages.len() as u64, pages.intersection(&needed).count() as u64),
                };
                score.brought += brought;
                score.used += used;
            }
            predictor.learn(window);
        }
    }
    scores.iter_mut().for_each(|score| score.finish(costs));
    scores
}
