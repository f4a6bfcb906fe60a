//! What came of equal histories: the chance that a page is used, counted instead of assumed.
//!
//! For each class of histories it counts how often a page that had one was used in the next window. A port's counts
//! stand on those of the app, and those on a prior (`prior`), so that a port with little data is judged by what the
//! app's other ports do. Counts decay, and no window counts for more than [`WINDOW_WEIGHT`] pages in a class: a
//! request that touches everything cannot outvote the others.

use super::history::{CONTEXTS, History};

/// Classes beside those of [`History::context`], for pages of which the port knows nothing itself.
const SHARED: usize = 3;
/// All classes.
pub(super) const CLASSES: usize = CONTEXTS + SHARED;

/// How much of its weight a count keeps with each window.
const DECAY: f32 = 0.9;
/// Most pages one window counts for, in a class.
const WINDOW_WEIGHT: f32 = 64.0;
/// As how many pages the prior counts against the app's own data.
const PRIOR_WEIGHT: f32 = 2.0;
/// As how many pages the app's chance counts against the port's own data.
const APP_WEIGHT: f32 = 4.0;

/// What is known of a page and a port, as far as chances are counted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The port's own history with the page, not empty.
    History(History),
    /// The port knows nothing of the page; of the ports that do, this is how many need it.
    Others { needing: u32, knowing: u32 },
}

impl Known {
    fn class(self) -> usize {
        match self {
            Known::History(history) => history.context(),
            Known::Others { knowing: 0 | 1, .. } => CONTEXTS,
            Known::Others { needing, knowing } if needing < knowing => CONTEXTS + 1,
            Known::Others { .. } => CONTEXTS + 2,
        }
    }

    /// The chance without data. A page that was needed twice in a row belongs to the set. One that came up once
    /// although the set was known already is presumed to be the request's own data.
    fn prior(self) -> f32 {
        match self {
            Known::History(history) => match (history.windows(), history.uses(), history.streak()) {
                (_, 0, _) => 0.0005,
                (1, ..) => 0.9,
                (_, _, 2..) => 0.95,
                (_, 1, _) => 0.001,
                (_, _, 1) => 0.5,
                _ => match history.idle() {
                    0 | 1 => 0.3,
                    2 => 0.1,
                    _ => 0.02,
                },
            },
            Known::Others { needing: 0, .. } => 0.0005,
            Known::Others { knowing: 0 | 1, .. } => 0.5,
            Known::Others { needing, knowing } if needing < knowing => 0.05,
            Known::Others { .. } => 0.9,
        }
    }
}

/// Counts of one port, or of all ports of an app.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Counts {
    /// For each class: pages judged, and those of them that were used.
    classes: Vec<(f32, f32)>,
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            classes: vec![(0.0, 0.0); CLASSES],
        }
    }
}

impl Counts {
    /// The classes with any weight: class, pages, used.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, f32, f32)> {
        let all = self.classes.iter().enumerate();
        all.filter(|(_, (pages, _))| *pages > 0.0)
            .map(|(class, (pages, used))| (class, *pages, *used))
    }

    /// Sets one class; false when the numbers are none that counting leads to.
    pub(super) fn set(&mut self, class: usize, pages: f32, used: f32) -> bool {
        let most = WINDOW_WEIGHT / (1.0 - DECAY) * 1.01;
        let fits = pages > 0.0 && pages <= most && (0.0..=pages).contains(&used);
        match self.classes.get_mut(class) {
            Some(counts) if fits => {
                *counts = (pages, used);
                true
            }
            _ => false,
        }
    }

    fn add(&mut self, window: &Counts) {
        for (mine, (pages, used)) in self.classes.iter_mut().zip(&window.classes) {
            if *pages > 0.0 {
                let scale = (WINDOW_WEIGHT / pages).min(1.0);
                mine.0 = mine.0 * DECAY + pages * scale;
                mine.1 = (mine.1 * DECAY + used * scale).min(mine.0);
            }
        }
    }

    /// One page that was judged by `known`, and what came of it.
    pub(super) fn judge(&mut self, known: Known, used: bool) {
        let (pages, uses) = &mut self.classes[known.class()];
        *pages += 1.0;
        *uses += f32::from(u8::from(used));
    }
}

/// The counts of an app, and of one of its ports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calibration<'a> {
    pub(super) app: &'a Counts,
    pub(super) port: &'a Counts,
}

impl Calibration<'_> {
    /// The chance that a page is used in the port's next window.
    pub(super) fn chance(&self, known: Known) -> f32 {
        let class = known.class();
        let (pages, used) = self.app.classes[class];
        let app = (used + PRIOR_WEIGHT * known.prior()) / (pages + PRIOR_WEIGHT);
        let (pages, used) = self.port.classes[class];
        (used + APP_WEIGHT * app) / (pages + APP_WEIGHT)
    }
}

/// Takes the judgements of one window into the counts of the app and of the port.
pub(super) fn take(app: &mut Counts, port: &mut Counts, window: &Counts) {
    app.add(window);
    port.add(window);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn history(uses: &[bool]) -> Known {
        let mut history = History::default();
        uses.iter().for_each(|used| history.push(*used));
        Known::History(history)
    }

    fn after(windows: &[(Known, u32, u32)]) -> (Counts, Counts) {
        let (mut app, mut port) = (Counts::default(), Counts::default());
        for (known, pages, used) in windows {
            let mut window = Counts::default();
            (0..*pages).for_each(|i| window.judge(*known, i < *used));
            take(&mut app, &mut port, &window);
        }
        (app, port)
    }

    #[test]
    fn data_outweighs_the_prior() {
        let once = history(&[false, true]);
        let (app, port) = (Counts::default(), Counts::default());
        let calibration = Calibration {
            app: &app,
            port: &port,
        };
        assert!(calibration.chance(once) < 0.01);
        assert!(calibration.chance(history(&[true, true])) > 0.9);
        let (app, port) = after(&[(once, 40, 20)]);
        let chance = Calibration {
            app: &app,
            port: &port,
        }
        .chance(once);
        assert!((0.4..0.55).contains(&chance), "{chance}");
    }

    #[test]
    fn a_port_without_data_is_judged_by_the_app() {
        let once = history(&[false, true]);
        let (app, _) = after(&[(once, 40, 20)]);
        let other = Counts::default();
        assert!(
            Calibration {
                app: &app,
                port: &other
            }
            .chance(once)
                > 0.4
        );
    }

    #[test]
    fn one_huge_window_counts_no_more_than_its_share() {
        let once = history(&[false, true]);
        let (app, port) = after(&[(once, 60, 30), (once, 60, 30), (once, 1_000_000, 0)]);
        let chance = Calibration {
            app: &app,
            port: &port,
        }
        .chance(once);
        assert!(chance > 0.2, "{chance}");
    }

    #[test]
    fn counts_that_counting_never_leads_to_are_refused() {
        let mut counts = Counts::default();
        assert!(counts.set(0, 10.0, 10.0));
        for (class, pages, used) in [
            (CLASSES, 1.0, 0.0),
            (0, -1.0, 0.0),
            (0, 0.0, 0.0),
            (0, 1.0, 2.0),
            (0, f32::NAN, 0.0),
            (0, 1.0, f32::NAN),
            (0, f32::INFINITY, 0.0),
            (0, 1e9, 0.0),
        ] {
            assert!(!counts.set(class, pages, used), "{class} {pages} {used}");
        }
        assert_eq!(counts.entries().collect::<Vec<_>>(), [(0, 10.0, 10.0)]);
    }
}
