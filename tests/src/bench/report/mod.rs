//! The report of a run for people: one HTML file that needs nothing else, and the same as Markdown. Pure but
//! for [`write()`]; knows what was measured and nothing of how.

mod html;
mod markdown;
pub mod plot;
mod svg;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::targets::Target;
use super::{Host, Outcome};
use crate::harness::table;

/// All that a report tells.
#[derive(Debug)]
pub struct Report<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The day, as `2026-11-25`.
    pub date: &'a str,
    /// The command that makes it again.
    pub command: &'a str,
    /// What was measured, by bench.
    pub benches: &'a BTreeMap<String, Outcome>,
    /// How the targets are met.
    pub targets: &'a [Target],
}

/// Writes `report.html` and `report.md` into `dir`, which is made.
///
/// # Errors
/// When a file cannot be written.
pub fn write(report: &Report<'_>, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, text) in [
        ("report.html", html::page(report)),
        ("report.md", markdown::page(report)),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A table before it is drawn: headers, and rows of as many cells.
struct Cells {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

fn rows(outcome: &Outcome) -> Cells {
    let line = |row: &super::Row| {
        let s = &row.summary;
        let mut cells = vec![row.app.clone(), row.what.clone(), row.unit.to_owned()];
        cells.extend([s.p50, s.p95, s.max, s.spread].map(number));
        cells.push(s.count.to_string());
        cells
    };
    Cells {
        headers: vec!["of", "what", "unit", "p50", "p95", "max", "spread", "count"],
        rows: outcome.rows.iter().map(line).collect(),
    }
}

fn targets(targets: &[Target]) -> Cells {
    let line = |target: &Target| {
        let value = target.value.map_or("not measured".to_owned(), number);
        let met = if target.met { "met" } else { "missed" };
        vec![target.name.clone(), value, target.goal.clone(), met.to_owned()]
    };
    Cells {
        headers: vec!["target", "value", "goal", ""],
        rows: targets.iter().map(line).collect(),
    }
}

/// The machine in one line.
fn host(host: &Host) -> String {
    format!(
        "{}, {} processors, {} of memory, Linux {}, load {:.1} before the run",
        host.cpu,
        host.cpus,
        table::bytes(host.memory_bytes),
        host.kernel,
        host.load
    )
}

/// A number with the digits that mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v < 0.01 => format!("{value:.2e}"),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests;
