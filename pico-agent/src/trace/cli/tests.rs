//! The command line is whole and documented; drawings show what is there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use clap::{CommandFactory, Parser};

use super::args::Args;
use super::heatmap::Heatmap;
use super::svg;
use crate::activeset::PageId;
use crate::port::Port;
use crate::trace::Mapping;

fn pages(command: &mut clap::Command, found: &mut Vec<String>) {
    found.push(command.render_long_help().to_string());
    for sub in command
        .get_subcommands_mut()
        .filter(|sub| sub.get_name() != "help")
    {
        pages(sub, found);
    }
}

#[test]
fn every_help_page_has_examples_that_parse_and_exit_codes() {
    Args::command().debug_assert();
    let mut found = Vec::new();
    pages(&mut Args::command(), &mut found);
    assert!(found.len() > 20);
    for page in found {
        let (_, examples) = page.split_once("Examples:").unwrap_or_else(|| panic!("{page}"));
        assert!(examples.contains("Exit codes:"), "{page}");
        let examples: Vec<&str> = examples
            .lines()
            .filter_map(|line| line.strip_prefix("  pico-trace "))
            .collect();
        assert!(!examples.is_empty(), "{page}");
        for example in examples {
            let words = ["pico-trace"].into_iter().chain(example.split_whitespace());
            Args::try_parse_from(words).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
}

#[test]
fn every_command_is_where_help_after_it_looks_for_it() {
    for line in [
        "prog list",
        "map list",
        "event tracelog",
        "fault list",
        "fault top",
        "fault dump",
        "set list",
        "set show",
        "set diff",
        "set merge",
        "set export",
        "set import",
        "set reset",
        "predict eval",
        "feature probe",
    ] {
        let words = ["pico-trace"].into_iter().chain(line.split(' '));
        let args = Args::try_parse_from(words).unwrap();
        assert_eq!(args.object.path().join(" "), line);
        let mut command = Args::command();
        let found = args
            .object
            .path()
            .into_iter()
            .try_fold(&mut command, |command, word| command.find_subcommand_mut(word));
        assert!(found.is_some(), "{line}");
    }
}

fn set(pages: &[u64]) -> BTreeSet<PageId> {
    pages
        .iter()
        .map(|page| PageId {
            space: 1,
            page: *page,
        })
        .collect()
}

fn drawing() -> Heatmap {
    let ports: [Port; 2] = ["53/udp".parse().unwrap(), "80/tcp".parse().unwrap()];
    let sets = BTreeMap::from([
        (ports[0], set(&[0x102, 0x104])),
        (ports[1], set(&[0x103, 0x104, 0x9000])),
    ]);
    let heap = Mapping {
        space: 1,
        start: 0x100,
        end: 0x200,
        offset: 0,
        name: "[heap]".to_owned(),
    };
    Heatmap::new(&set(&[0x100]), &sets, &[heap])
}

#[test]
fn the_address_space_is_drawn_with_base_and_each_port() {
    let text = drawing().text(false);
    assert_eq!(
        text,
        "space 1 [heap]\n\
         \x20       0x100000 #.AB+\n\
         space 1 ?\n\
         \x20      0x9000000 B\n\
         \n\
         one cell: 4 KiB; # base, A 53/udp, B 80/tcp, + several ports, . not used\n"
    );
    assert!(drawing().text(true).contains("\x1b[48;2;0;114;178;30mA\x1b[0m"));
}

#[test]
fn a_large_address_space_is_drawn_in_coarser_cells() {
    let sets = BTreeMap::from([(
        "80/tcp".parse().unwrap(),
        (0..100_000).map(|page| PageId { space: 1, page }).collect(),
    )]);
    let heatmap = Heatmap::new(&BTreeSet::new(), &sets, &[]);
    assert_eq!(heatmap.pages_per_cell, 17);
    let cells: usize = heatmap.regions.iter().map(|region| region.cells.len()).sum();
    assert_eq!(cells, 100_000_usize.div_ceil(17));
}

#[test]
fn the_svg_names_what_it_shows_and_escapes_it() {
    let text = svg::draw(&drawing(), "a <b> & c");
    assert!(text.starts_with("<svg xmlns=") && text.ends_with("</svg>\n"));
    for part in [
        "a &lt;b&gt; &amp; c",
        "space 1 [heap]",
        "0x104000 53/udp 1, 80/tcp 1",
        ">53/udp</text>",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // One grey, four that are used by one port or base, two stripes for the shared one.
    assert_eq!(text.matches("</g>").count(), 6);
}
