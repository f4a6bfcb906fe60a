//! The report as one HTML file: style and pictures inside, light and dark, no script.

use std::fmt::Write as _;

use super::svg::{self, escape};
use super::{Cells, Report, plot, rows, targets};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #d5dae3; --paper: #fff;
  --met: #1f7a4d; --missed: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #353c49; --paper: #14181f;
  --met: #59c08a; --missed: #f0857d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; } .soft { color: var(--soft); }
code { font-size: .92em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td.n { text-align: right; }
.met { color: var(--met); } .missed { color: var(--missed); font-weight: 600; }
figure { margin: 1.5rem 0; overflow-x: auto; } svg { width: 100%; min-width: 40rem; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg .title { font-size: 14px; font-weight: 600; }
svg .group { font-weight: 600; } svg .name { text-anchor: end; } svg .tick { text-anchor: middle; }
svg .grid { stroke: var(--line); } svg .tail { stroke: var(--ink); stroke-width: 1.5; }
svg polyline { fill: none; stroke-width: 2.2; }
";

/// Distinct for those who see few colours, too: they differ in lightness.
const PALETTE: [&str; svg::COLOURS] = [
    "#0b6e99", "#e08a1e", "#5b4bb5", "#2a9d5c", "#c2415b", "#7a8699", "#00a6a6", "#9a6a2f",
];

/// The page.
pub fn page(report: &Report<'_>) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Picocenter, measured</title>\n<style>{STYLE}{}</style></head><body>\n\
         <h1>Picocenter, measured</h1>\n<p>{}.<br>{}: <code>{}</code></p>\n\
         <p class=\"soft\">p50 is the median, p95 is not exceeded by 95 of 100, spread is the width of the middle \
         half. A lost request or a wrong state would have ended the run.</p>\n",
        colours(),
        escape(&super::host(report.host)),
        escape(report.date),
        escape(report.command)
    );
    if !report.targets.is_empty() {
        text.push_str("<h2>Targets</h2>\n");
        text.push_str(&table(&targets(report.targets)));
    }
    for (name, outcome) in report.benches {
        let _ = writeln!(text, "<h2>{}</h2>", escape(name));
        for note in &outcome.notes {
            let _ = writeln!(text, "<p>{}</p>", escape(note));
        }
        for plot in outcome.plots.iter().chain(&plot::bars(name, outcome)) {
            let _ = writeln!(text, "<figure>{}</figure>", svg::draw(plot));
        }
        text.push_str(&table(&rows(outcome)));
    }
    text.push_str("</body></html>\n");
    text
}

fn colours() -> String {
    PALETTE
        .iter()
        .enumerate()
        .fold(String::new(), |mut text, (index, colour)| {
            let _ = writeln!(
                text,
                "svg .c{index} {{ fill: {colour}; }} svg .s{index} {{ stroke: {colour}; }}"
            );
            text
        })
}

fn table(cells: &Cells) -> String {
    let mut text = String::from("<table><thead><tr>");
    for header in &cells.headers {
        let _ = write!(text, "<th>{}</th>", escape(header));
    }
    text.push_str("</tr></thead><tbody>\n");
    for row in &cells.rows {
        text.push_str("<tr>");
        for cell in row {
            let class = match cell.as_str() {
                "met" => " class=\"met\"",
                "missed" => " class=\"missed\"",
                cell if cell.starts_with(|c: char| c.is_ascii_digit() || c == '-') => " class=\"n\"",
                _ => "",
            };
            let _ = write!(text, "<td{class}>{}</td>", escape(cell));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table>\n");
    text
}
