//! The benches of `pico-bench`, the form of their report, and the targets they are held to.
//!
//! A bench measures; a lost request or a wrong state is its error, never a data point. What the numbers
//! should be stands in `tests/targets.toml`.

pub mod concurrent;
pub mod cost;
pub mod criu;
pub mod hub;
pub mod memory;
pub mod report;
pub mod sandbox;
pub mod swapout;
pub mod targets;
pub mod wake;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::report::plot::Plot;
use crate::harness::Samples;
use crate::harness::stats::Summary;

/// How much a bench measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Enough to see that it works and where the numbers are.
    Quick,
    /// Enough to compare.
    Full,
}

/// One line of a bench's result.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured of what: `nginx`, `warm`.
    pub app: String,
    /// The quantity.
    pub what: String,
    /// Its unit.
    pub unit: &'static str,
    /// The numbers.
    #[serde(flatten)]
    pub summary: Summary,
}

/// What a bench found.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// All rows, in the order of the table.
    pub rows: Vec<Row>,
    /// The values that targets are about, by target name.
    #[serde(skip)]
    pub values: BTreeMap<String, f64>,
    /// Pictures for the report, besides the bars of the rows.
    #[serde(skip)]
    pub plots: Vec<Plot>,
    /// What a reader must know: conditions, sources, what could not be had.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Outcome {
    /// Adds a row.
    ///
    /// # Errors
    /// When nothing was measured.
    pub fn row(&mut self, app: &str, what: &str, unit: &'static str, samples: &Samples) -> Result<f64> {
        let summary = samples
            .summary()
            .with_context(|| format!("nothing measured of {app} {what}"))?;
        self.rows.push(Row {
            app: app.to_owned(),
            what: what.to_owned(),
            unit,
            summary,
        });
        Ok(summary.p50)
    }
}

/// A bench by name.
type Run = fn(Effort, &mut dyn FnMut(&str)) -> Result<Outcome>;

/// All benches.
const ALL: [(&str, Run); 6] = [
    ("concurrent", concurrent::run),
    ("cost", cost::run),
    ("hub", hub::run),
    ("memory", memory::run),
    ("swapout", swapout::run),
    ("wake", wake::run),
];

/// The names of all benches.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}

/// Runs one bench; `progress` gets a line now and then.
///
/// # Errors
/// When there is no such bench, a request is lost, or a state is wrong.
pub fn run(name: &str, effort: Effort, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let Some((_, bench)) = ALL.iter().find(|(known, _)| *known == name) else {
        bail!("there is no bench '{name}'; try: {}", names().join(", "));
    };
    bench(effort, progress)
}

/// The machine, for the report.
#[derive(Debug, Serialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// Model of the first CPU.
    pub cpu: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Load average over the last minute before the benches.
    pub load: f64,
}

impl Host {
    /// Looks at this machine.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn look() -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let meminfo = read("/proc/meminfo")?;
        let kilobytes = meminfo
            .split_whitespace()
            .nth(1)
            .and_then(|value| value.parse::<u64>().ok());
        let load = read("/proc/loadavg")?
            .split(' ')
            .next()
            .and_then(|value| value.parse().ok());
        Ok(Host {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            cpu: model.map(|(_, model)| model.to_owned()).unwrap_or_default(),
            memory_bytes: kilobytes.unwrap_or(0) * 1024,
            load: load.unwrap_or(0.0),
        })
    }
}
