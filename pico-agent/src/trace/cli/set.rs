//! `set`: ActiveSets, listed, shown, drawn, compared, put together, copied and forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::super::Mapping;
use super::args::{Form, SetCommand};
use super::fault::mapping_name;
use super::heatmap::Heatmap;
use super::source::{Agent, Handle, write};
use super::svg;
use super::words::{APP, FILE, Keyword, PORT, Which, Words, usage};
use crate::activeset::{ActiveSets, PageId, PageView, PortView};
use crate::checkpoint::index::PAGE_SIZE;
use crate::cli::exit::Exit;
use crate::cli::output::{Output, table};
use crate::control::protocol::{ErrorCode, Failure};
use crate::port::Port;
use crate::units::format_bytes;

/// A page counts as in the set from this chance on.
const LIKELY: f32 = 0.5;

/// Does what a `set` command says.
pub(super) fn execute(
    agent: &Agent,
    command: SetCommand,
    colour: bool,
    output: &Output,
) -> Result<Exit, Failure> {
    match command {
        SetCommand::List { words } => list(agent, &words, output),
        SetCommand::Show {
            words,
            output: form,
            svg,
        } => show(agent, &words, form, svg.as_deref(), colour, output),
        SetCommand::Diff { words } => diff(agent, &words, output),
        SetCommand::Merge { words } => merge(agent, &words, output),
        SetCommand::Export { words } => export(agent, &words, output),
        SetCommand::Import { words } => import(agent, &words, output),
        SetCommand::Reset { words } => reset(agent, &words, output),
    }
}

fn name(port: Option<Port>) -> String {
    port.map_or("none".to_owned(), |port| port.to_string())
}

/// All sets, that of no port first.
fn views(sets: &ActiveSets) -> Vec<PortView> {
    let keys = std::iter::once(None).chain(sets.ports().map(Some));
    keys.filter_map(|key| sets.view(key)).collect()
}

fn likely(view: &PortView) -> BTreeSet<PageId> {
    let pages = view.pages.iter().filter(|page| page.chance >= LIKELY);
    pages.map(|page| page.at).collect()
}

fn list(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let words = Words::parse(words, &[APP, FILE])?;
    let sets = Handle::of(&words)?.sets(agent)?;
    let rows: Vec<Value> = views(&sets)
        .iter()
        .map(|view| {
            let pages = likely(view).len() as u64;
            json!({
                "port": view.port,
                "windows": view.windows,
                "pages": pages,
                "bytes": pages * PAGE_SIZE,
                "pages_seen": view.pages.len(),
                "relearning": view.relearning,
                "wakes": view.tally.wakes,
                "recall": view.tally.total.recall(),
                "precision": view.tally.total.precision(),
                "last_wake": (view.tally.wakes > 0).then_some(&view.tally.last),
            })
        })
        .collect();
    let document = json!({ "lineage": sets.lineage(), "windows": sets.windows(), "sets": rows });
    output.document(&document, || {
        table(
            &[
                "PORT",
                "WINDOWS",
                "PAGES",
                "SIZE",
                "SEEN",
                "WAKES",
                "RECALL",
                "PRECISION",
                "STATE",
            ],
            rows.iter().map(|row| {
                vec![
                    row["port"].as_str().unwrap_or("none").to_owned(),
                    row["windows"].to_string(),
                    row["pages"].to_string(),
                    format_bytes(row["bytes"].as_u64().unwrap_or_default()),
                    row["pages_seen"].to_string(),
                    row["wakes"].to_string(),
                    share(&row["recall"]),
                    share(&row["precision"]),
                    if row["relearning"] == true {
                        "relearning"
                    } else {
                        "known"
                    }
                    .to_owned(),
                ]
            }),
        )
    })
}

fn share(value: &Value) -> String {
    value
        .as_f64()
        .map_or("-".to_owned(), |share| format!("{share:.3}"))
}

/// Adjacent pages of one mapping that are known equally well.
struct Range<'a> {
    first: PageView,
    pages: u64,
    name: &'a str,
}

fn ranges<'a>(view: &PortView, mappings: &'a [Mapping]) -> Vec<Range<'a>> {
    let mut ranges: Vec<Range<'a>> = Vec::new();
    for page in &view.pages {
        let mapping = mappings.iter().rev().find(|mapping| mapping.holds(page.at));
        let name = mapping_name(mapping);
        match ranges.last_mut() {
            Some(range)
                if range.first.at.space == page.at.space
                    && range.first.at.page + range.pages == page.at.page
                    && range.name == name
                    && (range.first.chance - page.chance).abs() < 0.005
                    && (range.first.hits, range.first.age) == (page.hits, page.age) =>
            {
                range.pages += 1;
            }
            _ => ranges.push(Range {
                first: *page,
                pages: 1,
                name,
            }),
        }
    }
    ranges
}

fn chosen(sets: &ActiveSets, which: Which) -> Result<Vec<PortView>, Failure> {
    let missing = |port| {
        let known: Vec<String> = sets.ports().map(|port| port.to_string()).collect();
        Failure::new(ErrorCode::NotFound, format!("there is no set of {}", name(port)))
            .hint(format!("there are sets of: {}", known.join(", ")))
    };
    match which {
        Which::Any => Ok(views(sets)),
        Which::NoPort => Ok(vec![sets.view(None).ok_or_else(|| missing(None))?]),
        Which::Of(port) => Ok(vec![sets.view(Some(port)).ok_or_else(|| missing(Some(port)))?]),
    }
}

fn show(
    agent: &Agent,
    words: &[String],
    form: Form,
    svg: Option<&Path>,
    colour: bool,
    output: &Output,
) -> Result<Exit, Failure> {
    let words = Words::parse(words, &[APP, FILE, PORT, Keyword("trace", true)])?;
    let which = words.port(Which::Any)?;
    let sets = Handle::of(&words)?.sets(agent)?;
    let mappings = match words.value("trace") {
        None => Vec::new(),
        Some(file) => Handle::File(file.into()).trace(agent)?.mappings,
    };
    let views = chosen(&sets, which)?;
    let heatmap = draw(&views, &mappings);
    if let Some(path) = svg {
        write(path, svg::draw(&heatmap, "ActiveSets").as_bytes())?;
    }
    let shown: Vec<Value> = views.iter().map(|view| set_json(view, &mappings)).collect();
    let document = json!({ "lineage": sets.lineage(), "windows": sets.windows(), "sets": shown });
    output.document(&document, || match form {
        Form::Heatmap => heatmap.text(colour),
        Form::Table => views.iter().map(|view| set_text(view, &mappings)).collect(),
    })
}

/// What all chosen ports need is drawn as base, with the work of no port.
fn draw(views: &[PortView], mappings: &[Mapping]) -> Heatmap {
    let mut base = BTreeSet::new();
    let mut ports: BTreeMap<Port, BTreeSet<PageId>> = BTreeMap::new();
    for view in views {
        match view.port {
            None => base.extend(likely(view)),
            Some(port) => drop(ports.insert(port, likely(view))),
        }
    }
    if ports.len() > 1 {
        let mut sets = ports.values();
        let first = sets.next().cloned().unwrap_or_default();
        let shared: BTreeSet<PageId> =
            sets.fold(first, |shared, set| shared.intersection(set).copied().collect());
        base.extend(shared);
    }
    for set in ports.values_mut() {
        set.retain(|page| !base.contains(page));
    }
    Heatmap::new(&base, &ports, mappings)
}

fn set_json(view: &PortView, mappings: &[Mapping]) -> Value {
    let ranges: Vec<Value> = ranges(view, mappings)
        .iter()
        .map(|range| {
            json!({
                "space": range.first.at.space,
                "start": range.first.at.page * PAGE_SIZE,
                "pages": range.pages,
                "mapping": range.name,
                "chance": range.first.chance,
                "hits": range.first.hits,
                "last_hit": range.first.age,
                "first_touch": range.first.rank,
                "write": range.first.write,
            })
        })
        .collect();
    json!({
        "port": view.port,
        "windows": view.windows,
        "relearning": view.relearning,
        "pages": view.pages.len(),
        "ranges": ranges,
    })
}

fn set_text(view: &PortView, mappings: &[Mapping]) -> String {
    let header = [
        "SPACE",
        "RANGE",
        "PAGES",
        "CHANCE",
        "HITS",
        "LAST_HIT",
        "FIRST_TOUCH",
        "VMA/FILE",
    ];
    let rows = ranges(view, mappings);
    let pages = likely(view).len() as u64;
    let mut text = format!("port {}\n", name(view.port));
    text.push_str(&table(
        &header,
        rows.iter().map(|range| {
            let start = range.first.at.page * PAGE_SIZE;
            vec![
                range.first.at.space.to_string(),
                format!("{start:#x}-{:#x}", start + range.pages * PAGE_SIZE),
                range.pages.to_string(),
                format!("{:.3}", range.first.chance),
                range.first.hits.to_string(),
                range.first.age.to_string(),
                format!("{:.0}%", f64::from(range.first.rank) / 655.35),
                range.name.to_owned(),
            ]
        }),
    ));
    text.push_str(&format!(
        "{pages} likely pages, {}, of {} seen, after {} windows\n\n",
        format_bytes(pages * PAGE_SIZE),
        view.pages.len(),
        view.windows
    ));
    text
}

/// The words before and after one that stands between them.
fn split<'w>(words: &'w [String], between: &str) -> Result<(&'w [String], &'w [String]), Failure> {
    match words.iter().position(|word| word == between) {
        Some(at) => Ok((&words[..at], &words[at + 1..])),
        None => Err(usage(format!("'{between}' and what comes after it are missing"))
            .hint("the same command with help")),
    }
}

fn diff(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let (left, right) = split(words, "with")?;
    let left = Words::parse(left, &[APP, FILE, PORT])?;
    let right = Words::parse(right, &[APP, FILE, PORT])?;
    let handle = Handle::of(&left)?;
    let other = match right.has("app") || right.has("file") {
        true => Handle::of(&right)?,
        false => handle.clone(),
    };
    let pages = |handle: &Handle, which| -> Result<BTreeSet<PageId>, Failure> {
        Ok(chosen(&handle.sets(agent)?, which)?
            .iter()
            .flat_map(likely)
            .collect())
    };
    let which = left.port(Which::Any)?;
    let a = pages(&handle, which)?;
    let b = pages(&other, right.port(which)?)?;
    let only =
        |a: &BTreeSet<PageId>, b: &BTreeSet<PageId>| -> Vec<PageId> { a.difference(b).copied().collect() };
    let (removed, added) = (only(&a, &b), only(&b, &a));
    let document = json!({
        "same": removed.is_empty() && added.is_empty(),
        "common": a.intersection(&b).count(),
        "only_first": removed,
        "only_second": added,
    });
    output.document(&document, || {
        let line =
            |sign: char, page: &PageId| format!("{sign} space {} {:#x}\n", page.space, page.page * PAGE_SIZE);
        let mut text: String = removed.iter().map(|page| line('-', page)).collect();
        text.extend(added.iter().map(|page| line('+', page)));
        text
    })?;
    Ok(if removed.is_empty() && added.is_empty() {
        Exit::OK
    } else {
        Exit::FAILURE
    })
}

/// Writes sets and says so.
fn put(path: &Path, sets: &ActiveSets, output: &Output) -> Result<Exit, Failure> {
    let bytes = sets.encode();
    write(path, &bytes)?;
    let document = json!({ "written": path, "bytes": bytes.len(), "lineage": sets.lineage() });
    output.document(&document, || {
        format!(
            "wrote {} ({})\n",
            path.display(),
            format_bytes(bytes.len() as u64)
        )
    })
}

fn merge(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let (left, right) = split(words, "with")?;
    let right = Words::parse(right, &[APP, FILE, Keyword("to", true)])?;
    let to = right.needed("to")?;
    let mut sets = Handle::of(&Words::parse(left, &[APP, FILE])?)?.sets(agent)?;
    sets.merge(&Handle::of(&right)?.sets(agent)?).map_err(|error| {
        Failure::new(
            ErrorCode::Failed,
            format!("these cannot be put together ({error})"),
        )
    })?;
    put(Path::new(to), &sets, output)
}

fn export(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let words = Words::parse(words, &[APP, FILE, Keyword("to", true)])?;
    let to = words.needed("to")?;
    put(Path::new(to), &Handle::of(&words)?.sets(agent)?, output)
}

fn import(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let words = Words::parse(words, &[APP, FILE, Keyword("from", true)])?;
    let from = Handle::File(words.needed("from")?.into());
    let sets = from.sets(agent)?;
    let handle = Handle::of(&words)?;
    let path = handle.sets_path_to_change(agent)?;
    // Page numbers of another start of the app would be noise.
    if let Ok(present) = handle.sets(agent)
        && present.lineage() != sets.lineage()
    {
        return Err(Failure::new(
            ErrorCode::Failed,
            format!(
                "those sets are of another start of the app ({}, it is {})",
                sets.lineage(),
                present.lineage()
            ),
        ));
    }
    put(&path, &sets, output)
}

fn reset(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let words = Words::parse(words, &[APP, FILE, PORT])?;
    let which = words.port(Which::Any)?;
    let handle = Handle::of(&words)?;
    let path = handle.sets_path_to_change(agent)?;
    let mut sets = handle.sets(agent)?;
    match which {
        Which::Any => sets = ActiveSets::new(sets.lineage()),
        Which::NoPort | Which::Of(_) => {
            let port = if let Which::Of(port) = which {
                Some(port)
            } else {
                None
            };
            chosen(&sets, which)?;
            sets.reset(port);
        }
    }
    put(&path, &sets, output)
}
