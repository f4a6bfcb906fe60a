//! What can be drawn: data with its titles, no shapes.

use crate::bench::Outcome;

/// A picture of a report.
#[derive(Debug, Clone, PartialEq)]
pub enum Plot {
    /// Medians as bars, a line to the 95th percentile.
    Bars(Bars),
    /// Curves over a number.
    Lines(Lines),
}

/// Groups of horizontal bars.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// What is seen.
    pub title: String,
    /// Of all values.
    pub unit: String,
    /// Name of the group, and its bars.
    pub groups: Vec<(String, Vec<Bar>)>,
}

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Its length.
    pub p50: f64,
    /// Where its line ends.
    pub p95: f64,
}

/// Curves in one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    /// What is seen.
    pub title: String,
    /// From left to right.
    pub x: Axis,
    /// From below.
    pub y: Axis,
    /// Name and points of each curve.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// An axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// With its unit.
    pub label: String,
    /// Whether equal steps are equal factors. Values that are not above 0 are left out then.
    pub log: bool,
}

/// The bars of a bench: a picture per unit that at least two rows share. What was reckoned and not measured, a row of
/// one value, is no bar.
pub fn bars(bench: &str, outcome: &Outcome) -> Vec<Plot> {
    let mut plots: Vec<Bars> = Vec::new();
    for row in outcome.rows.iter().filter(|row| row.summary.count > 1) {
        let bar = Bar {
            name: row.what.clone(),
            p50: row.summary.p50,
            p95: row.summary.p95,
        };
        let position = plots.iter().position(|plot| plot.unit == row.unit);
        let plot = match position {
            Some(position) => &mut plots[position],
            None => {
                plots.push(Bars {
                    title: format!("{bench}: {}", row.unit),
                    unit: row.unit.to_owned(),
                    groups: Vec::new(),
                });
                let last = plots.len() - 1;
                &mut plots[last]
            }
        };
        match plot.groups.iter_mut().find(|(name, _)| *name == row.app) {
            Some((_, bars)) => bars.push(bar),
            None => plot.groups.push((row.app.clone(), vec![bar])),
        }
    }
    plots
        .into_iter()
        .filter(|plot| plot.groups.iter().map(|(_, bars)| bars.len()).sum::<usize>() > 1)
        .map(Plot::Bars)
        .collect()
}
