//! The report as Markdown: its tables, to be kept in a repository.

use std::fmt::Write as _;

use super::{Cells, Report, rows, targets};

/// The page.
pub fn page(report: &Report<'_>) -> String {
    let mut text = format!(
        "# Picocenter, measured\n\n{}.\n\n{}: `{}`\n",
        super::host(report.host),
        report.date,
        report.command
    );
    if !report.targets.is_empty() {
        let _ = write!(text, "\n## Targets\n\n{}", table(&targets(report.targets)));
    }
    for (name, outcome) in report.benches {
        let _ = write!(text, "\n## {name}\n");
        for note in &outcome.notes {
            let _ = write!(text, "\n{note}\n");
        }
        let _ = write!(text, "\n{}", table(&rows(outcome)));
    }
    text
}

fn table(cells: &Cells) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(cells.headers.iter().map(|header| (*header).to_owned()).collect());
    text.push_str(&line(vec!["---".to_owned(); cells.headers.len()]));
    for row in &cells.rows {
        text.push_str(&line(row.iter().map(|cell| cell.replace('|', "\\|")).collect()));
    }
    text
}
