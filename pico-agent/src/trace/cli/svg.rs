//! A [`Heatmap`] as SVG: a cell is a square, in stripes where several ports use it; its tooltip says what it is.

use super::heatmap::{BASE_COLOUR, Heatmap, Region, port_colour};
use crate::checkpoint::index::PAGE_SIZE;

const CELL: usize = 9;
const STEP: usize = 10;
const PER_ROW: usize = 96;
const LEFT: usize = 130;
const TOP: usize = 60;
const NOT_USED: &str = "#ececec";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The drawing as a file.
pub(super) fn draw(heatmap: &Heatmap, title: &str) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for region in &heatmap.regions {
        y = draw_region(heatmap, region, y, &mut body);
    }
    let width = LEFT + PER_ROW * STEP + 20;
    let height = y + 10;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    svg.push_str(&legend(heatmap));
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

fn legend(heatmap: &Heatmap) -> String {
    let mut entries = vec![("base: every request".to_owned(), BASE_COLOUR)];
    let ports = heatmap.ports.iter().enumerate();
    entries.extend(ports.map(|(at, port)| (port.to_string(), port_colour(at))));
    entries.push((
        format!(
            "not used; one cell: {} KiB",
            heatmap.pages_per_cell * PAGE_SIZE / 1024
        ),
        NOT_USED,
    ));
    let mut text = String::new();
    let mut x = 10;
    for (name, colour) in entries {
        text.push_str(&format!(
            "<rect x=\"{x}\" y=\"31\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"40\">{}</text>\n",
            x + 14,
            escape(&name)
        ));
        x += 34 + name.chars().count() * 7;
    }
    text
}

/// Draws a region below `y`; returns where the next one begins.
fn draw_region(heatmap: &Heatmap, region: &Region, y: usize, out: &mut String) -> usize {
    out.push_str(&format!(
        "<text x=\"{LEFT}\" y=\"{}\" fill=\"#333333\">space {} {}</text>\n",
        y + 10,
        region.space,
        escape(&region.name)
    ));
    let top = y + 15;
    for (at, cell) in region.cells.iter().enumerate() {
        let (row, column) = (at / PER_ROW, at % PER_ROW);
        let address = (region.start + at as u64 * heatmap.pages_per_cell) * PAGE_SIZE;
        let (x, y) = (LEFT + column * STEP, top + row * STEP);
        if column == 0 {
            out.push_str(&format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-family=\"monospace\" font-size=\"10\">{address:#x}</text>\n",
                LEFT - 6,
                y + CELL
            ));
        }
        let mut stripes: Vec<(String, &str)> = Vec::new();
        if cell.base > 0 {
            stripes.push((format!("base {}", cell.base), BASE_COLOUR));
        }
        for (port, pages) in &cell.ports {
            stripes.push((format!("{} {pages}", heatmap.ports[*port]), port_colour(*port)));
        }
        let tip: Vec<&str> = stripes.iter().map(|(name, _)| name.as_str()).collect();
        out.push_str(&format!(
            "<g><title>{address:#x} {}</title>",
            escape(&tip.join(", "))
        ));
        if stripes.is_empty() {
            stripes.push((String::new(), NOT_USED));
        }
        let count = stripes.len();
        for (nth, (_, colour)) in stripes.iter().enumerate() {
            let (from, to) = (CELL * nth / count, CELL * (nth + 1) / count);
            out.push_str(&format!(
                "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{CELL}\" fill=\"{colour}\"/>",
                x + from,
                to - from
            ));
        }
        out.push_str("</g>\n");
    }
    top + region.cells.len().div_ceil(PER_ROW) * STEP + 8
}
