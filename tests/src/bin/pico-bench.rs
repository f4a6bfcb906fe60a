//! `pico-bench`: runs benches by name, prints their rows and how the targets are met.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use pico_tests::bench::{self, Effort, Host, Outcome, report, targets};
use pico_tests::harness::{interrupt, process, table};
use serde::Serialize;

/// Measure Picocenter on this machine.
///
/// A lost request or a wrong state is an error (exit 1). A missed target is not: it is reported.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  pico-bench wake --quick\n  pico-bench wake cost --json figures.json --report report\n\n\
Exit codes:\n  0 measured  1 a request was lost or a state was wrong  2 usage  130 interrupted"
)]
struct Options {
    /// Benches to run: concurrent, cost, hub, memory, swapout, wake
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report for people, report.html and report.md, into this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    host: &'a Host,
    benches: &'a BTreeMap<String, Outcome>,
    targets: &'a [targets::Target],
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(unknown) = options
        .names
        .iter()
        .find(|name| !bench::names().contains(&name.as_str()))
    {
        bail!(
            "there is no bench '{unknown}'; try: {}",
            bench::names().join(", ")
        );
    }
    interrupt::watch()?;
    let host = Host::look()?;
    let start = Instant::now();
    let mut progress = |line: &str| eprintln!("[{:6.1} s] {line}", start.elapsed().as_secs_f64());
    let effort = if options.quick {
        Effort::Quick
    } else {
        Effort::Full
    };
    let mut benches = BTreeMap::new();
    let mut values = BTreeMap::new();
    for name in &options.names {
        let mut outcome = bench::run(name, effort, &mut progress)?;
        values.append(&mut outcome.values);
        println!("{name}\n{}\n", rows(&outcome));
        benches.insert(name.clone(), outcome);
    }
    let targets = targets::compare(&options.names, &values)?;
    println!("targets\n{}", met(&targets));
    if let Some(path) = &options.json {
        let report = Report {
            schema: "pico.bench/1",
            host: &host,
            benches: &benches,
            targets: &targets,
        };
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(dir) = &options.report {
        let report = report::Report {
            host: &host,
            date: &today()?,
            command: &command(options),
            benches: &benches,
            targets: &targets,
        };
        report::write(&report, dir)?;
    }
    Ok(())
}

/// The day, in UTC.
fn today() -> Result<String> {
    let text = process::output(Command::new("date").args(["--utc", "+%F"]))?;
    Ok(text.trim().to_owned())
}

/// What a reader types to measure the same.
fn command(options: &Options) -> String {
    let quick = if options.quick { " --quick" } else { "" };
    format!("cargo xtask bench {}{quick}", options.names.join(" "))
}

fn rows(outcome: &Outcome) -> String {
    let number = report::number;
    let line = |row: &bench::Row| {
        let s = &row.summary;
        let mut cells = vec![row.app.clone(), row.what.clone()];
        cells.extend([
            number(s.p50),
            number(s.p95),
            number(s.max),
            number(s.spread),
            s.count.to_string(),
        ]);
        cells.push(row.unit.to_owned());
        cells
    };
    let lines: Vec<_> = outcome.rows.iter().map(line).collect();
    table::render(
        &["app", "what", "p50", "p95", "max", "spread", "count", "unit"],
        &lines,
    )
}

fn met(targets: &[targets::Target]) -> String {
    let line = |target: &targets::Target| {
        let value = target.value.map_or("not measured".to_owned(), report::number);
        let met = if target.met { "met" } else { "MISSED" };
        vec![target.name.clone(), value, target.goal.clone(), met.to_owned()]
    };
    let lines: Vec<_> = targets.iter().map(line).collect();
    table::render(&["name", "value", "goal", ""], &lines)
}
