//! Plots as SVG: shapes and text, colours by class, so that the page decides how they look.

use std::fmt::Write as _;

use super::number;
use super::plot::{Axis, Bars, Lines, Plot};

const WIDTH: f64 = 860.0;
/// Room for names at the left of bars.
const NAMES: f64 = 250.0;
/// Room for numbers at the right of bars.
const NUMBERS: f64 = 110.0;
const BAR: f64 = 15.0;
const STEP: f64 = 21.0;
const GROUP: f64 = 28.0;
const FRAME: (f64, f64, f64, f64) = (70.0, 40.0, 640.0, 340.0);
/// As many as the page has colours.
pub const COLOURS: usize = 8;

/// One picture.
pub fn draw(plot: &Plot) -> String {
    match plot {
        Plot::Bars(bars) => draw_bars(bars),
        Plot::Lines(lines) => draw_lines(lines),
    }
}

/// Text that may stand in HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn open(height: f64, title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>\n\
         <text class=\"title\" x=\"0\" y=\"18\">{0}</text>\n",
        escape(title)
    )
}

fn draw_bars(plot: &Bars) -> String {
    let all = || plot.groups.iter().flat_map(|(_, bars)| bars);
    let greatest = all()
        .map(|bar| bar.p95.max(bar.p50))
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - NAMES - NUMBERS) / greatest;
    let height = 40.0 + plot.groups.len() as f64 * GROUP + all().count() as f64 * STEP;
    let mut text = open(height, &plot.title);
    let mut y = 34.0;
    for (group, bars) in &plot.groups {
        let _ = writeln!(
            text,
            "<text class=\"group\" x=\"0\" y=\"{}\">{}</text>",
            y + 16.0,
            escape(group)
        );
        y += GROUP;
        for (index, bar) in bars.iter().enumerate() {
            let (length, end) = (bar.p50.max(0.0) * scale, NAMES + bar.p95.max(0.0) * scale);
            let (middle, base) = (y + BAR / 2.0, y + BAR - 3.0);
            let _ = writeln!(
                text,
                "<text class=\"name\" x=\"{}\" y=\"{base}\">{}</text>\
                 <rect class=\"c{}\" x=\"{NAMES}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\"/>\
                 <line class=\"tail\" x1=\"{:.1}\" y1=\"{middle}\" x2=\"{end:.1}\" y2=\"{middle}\"/>\
                 <text class=\"value\" x=\"{:.1}\" y=\"{base}\">{} {}</text>",
                NAMES - 8.0,
                escape(&bar.name),
                index % COLOURS,
                NAMES + length,
                end.max(NAMES + length) + 6.0,
                number(bar.p50),
                escape(&plot.unit)
            );
            y += STEP;
        }
    }
    text.push_str("</svg>\n");
    text
}

/// Where values lie on an axis of `length`.
struct Scale {
    log: bool,
    low: f64,
    high: f64,
    length: f64,
}

impl Scale {
    fn of(axis: &Axis, values: impl Iterator<Item = f64>, length: f64) -> Scale {
        let usable = values.filter(|value| value.is_finite() && (!axis.log || *value > 0.0));
        let (low, high) = usable.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (low, high) = match (low.is_finite(), axis.log) {
            (false, _) => (1.0, 10.0),
            (true, true) => (10f64.powf(low.log10().floor()), 10f64.powf(high.log10().ceil())),
            (true, false) => (low.min(0.0), high),
        };
        let high = if high > low {
            high
        } else {
            low.abs().max(1.0) * 10.0
        };
        Scale {
            log: axis.log,
            low,
            high,
            length,
        }
    }

    fn at(&self, value: f64) -> Option<f64> {
        if self.log && value <= 0.0 {
            return None;
        }
        let position = |v: f64| if self.log { v.log10() } else { v };
        Some(
            (position(value) - position(self.low)) / (position(self.high) - position(self.low)) * self.length,
        )
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let mut tick = self.low;
            let mut ticks = Vec::new();
            while tick <= self.high * 1.001 {
                ticks.push(tick);
                tick *= 10.0;
            }
            ticks
        } else {
            (0..=5)
                .map(|step| self.low + (self.high - self.low) * f64::from(step) / 5.0)
                .collect()
        }
    }
}

/// A mark of an axis: round numbers, so no digits that say nothing.
fn mark(value: f64) -> String {
    match value.abs() {
        v if v != 0.0 && !(1e-3..1e6).contains(&v) => format!("{value:.0e}"),
        v if v >= 100.0 => format!("{value:.0}"),
        _ => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

fn draw_lines(plot: &Lines) -> String {
    let (left, top, width, height) = FRAME;
    let points = || plot.series.iter().flat_map(|(_, points)| points);
    let x = Scale::of(&plot.x, points().map(|point| point.0), width);
    let y = Scale::of(&plot.y, points().map(|point| point.1), height);
    let (right, bottom) = (left + width, top + height);
    let mut text = open(bottom + 50.0, &plot.title);
    for tick in x.ticks() {
        let at = left + x.at(tick).unwrap_or(0.0);
        let _ = writeln!(
            text,
            "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{}\">{}</text>",
            bottom + 16.0,
            mark(tick)
        );
    }
    for tick in y.ticks() {
        let at = bottom - y.at(tick).unwrap_or(0.0);
        let _ = writeln!(
            text,
            "<line class=\"grid\" x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
             <text class=\"name\" x=\"{}\" y=\"{:.1}\">{}</text>",
            left - 6.0,
            at + 4.0,
            mark(tick)
        );
    }
    let _ = writeln!(
        text,
        "<text class=\"tick\" x=\"{}\" y=\"{}\">{}</text><text class=\"group\" x=\"0\" y=\"{}\">{}</text>",
        left + width / 2.0,
        bottom + 38.0,
        escape(&plot.x.label),
        top - 6.0,
        escape(&plot.y.label)
    );
    for (index, (name, points)) in plot.series.iter().enumerate() {
        let place = |point: &(f64, f64)| Some((left + x.at(point.0)?, bottom - y.at(point.1)?));
        let path: Vec<String> = points
            .iter()
            .filter_map(place)
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let (colour, row) = (index % COLOURS, top + 14.0 + index as f64 * STEP);
        let _ = writeln!(
            text,
            "<polyline class=\"s{colour}\" points=\"{}\"/>\
             <rect class=\"c{colour}\" x=\"{}\" y=\"{}\" width=\"12\" height=\"12\"/>\
             <text class=\"value\" x=\"{}\" y=\"{row}\">{}</text>",
            path.join(" "),
            right + 12.0,
            row - 11.0,
            right + 30.0,
            escape(name)
        );
    }
    text.push_str("</svg>\n");
    text
}
