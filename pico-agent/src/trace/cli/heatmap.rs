//! The address space as a row of cells, each coloured by the ports whose requests use it. Pure; the terminal's form is
//! here, the other in `svg`.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Mapping;
use super::fault::mapping_name;
use crate::activeset::PageId;
use crate::port::Port;

/// A gap of more pages begins another region.
const GAP: u64 = 512;
/// Most cells of a drawing: beyond, a cell stands for more pages.
const CELLS_MAX: u64 = 6_000;
/// Cells in one row of the terminal.
const ROW: usize = 64;

/// Colours of ports that most people can tell apart (Okabe and Ito, 2008), and of the base set.
pub(super) const PORT_COLOURS: [&str; 7] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442",
];
pub(super) const BASE_COLOUR: &str = "#555555";
const LETTERS: [char; 7] = ['A', 'B', 'C', 'D', 'E', 'F', 'G'];

/// What uses a cell: positions in [`Heatmap::ports`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cell {
    /// Pages that every request needs.
    pub(super) base: u64,
    /// Pages of each port.
    pub(super) ports: BTreeMap<usize, u64>,
}

/// Adjacent cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) space: u32,
    /// First page.
    pub(super) start: u64,
    /// What is mapped there.
    pub(super) name: String,
    pub(super) cells: Vec<Cell>,
}

/// A drawing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heatmap {
    pub(super) ports: Vec<Port>,
    /// Pages that a cell stands for.
    pub(super) pages_per_cell: u64,
    pub(super) regions: Vec<Region>,
}

impl Heatmap {
    /// Draws the pages of a base set and of ports.
    pub(super) fn new(
        base: &BTreeSet<PageId>,
        sets: &BTreeMap<Port, BTreeSet<PageId>>,
        mappings: &[Mapping],
    ) -> Self {
        let all: BTreeSet<PageId> = base.iter().chain(sets.values().flatten()).copied().collect();
        let mut extents: Vec<(PageId, u64)> = Vec::new();
        for page in all {
            match extents.last_mut() {
                Some((start, end)) if start.space == page.space && page.page - *end <= GAP => {
                    *end = page.page + 1
                }
                _ => extents.push((page, page.page + 1)),
            }
        }
        let pages: u64 = extents.iter().map(|(start, end)| end - start.page).sum();
        let pages_per_cell = pages.div_ceil(CELLS_MAX).max(1);
        let ports: Vec<Port> = sets.keys().copied().collect();
        let regions = extents.into_iter().map(|(start, end)| {
            let count = (end - start.page).div_ceil(pages_per_cell);
            let mut cells = vec![Cell::default(); usize::try_from(count).unwrap_or_default()];
            let last = PageId {
                space: start.space,
                page: end - 1,
            };
            let place = |page: &PageId| {
                usize::try_from((page.page - start.page) / pages_per_cell).unwrap_or_default()
            };
            for page in base.range(start..=last) {
                cells[place(page)].base += 1;
            }
            for (at, port) in ports.iter().enumerate() {
                for page in sets[port].range(start..=last) {
                    *cells[place(page)].ports.entry(at).or_default() += 1;
                }
            }
            Region {
                space: start.space,
                start: start.page,
                name: mapping_name(mappings.iter().rev().find(|mapping| mapping.holds(start))).to_owned(),
                cells,
            }
        });
        Heatmap {
            regions: regions.collect(),
            ports,
            pages_per_cell,
        }
    }

    /// As lines for a terminal; letters where it has no colours.
    pub(super) fn text(&self, colour: bool) -> String {
        let mut text = String::new();
        for region in &self.regions {
            text.push_str(&format!("space {} {}\n", region.space, region.name));
            for (row, cells) in region.cells.chunks(ROW).enumerate() {
                let page = region.start + (row * ROW) as u64 * self.pages_per_cell;
                text.push_str(&format!("{:>#16x} ", page * crate::checkpoint::index::PAGE_SIZE));
                cells.iter().for_each(|cell| text.push_str(&mark(cell, colour)));
                text.push('\n');
            }
        }
        let kilobytes = self.pages_per_cell * 4;
        text.push_str(&format!(
            "\none cell: {kilobytes} KiB; {} base",
            mark_of("#", BASE_COLOUR, colour)
        ));
        for (at, port) in self.ports.iter().enumerate() {
            let letter = LETTERS[at % LETTERS.len()].to_string();
            text.push_str(&format!(", {} {port}", mark_of(&letter, port_colour(at), colour)));
        }
        text.push_str(", + several ports, . not used\n");
        text
    }
}

/// The colour of the port at a position.
pub(super) fn port_colour(at: usize) -> &'static str {
    PORT_COLOURS[at % PORT_COLOURS.len()]
}

fn mark(cell: &Cell, colour: bool) -> String {
    let mut ports = cell.ports.keys();
    match (cell.base > 0, ports.next(), ports.next()) {
        (true, ..) => mark_of("#", BASE_COLOUR, colour),
        (false, None, _) => ".".to_owned(),
        (false, Some(at), None) => {
            mark_of(&LETTERS[at % LETTERS.len()].to_string(), port_colour(*at), colour)
        }
        (false, Some(_), Some(_)) => mark_of("+", "#ffffff", colour),
    }
}

/// A letter on its colour.
fn mark_of(letter: &str, rgb: &str, colour: bool) -> String {
    let part = |at: usize| u8::from_str_radix(&rgb[at..at + 2], 16).unwrap_or_default();
    match colour {
        true => format!("\x1b[48;2;{};{};{};30m{letter}\x1b[0m", part(1), part(3), part(5)),
        false => letter.to_owned(),
    }
}
