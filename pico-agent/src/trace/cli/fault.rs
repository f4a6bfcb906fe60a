//! `fault`: the page faults in a trace, one by one, or counted by page or mapping.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::super::{Fault, Mapping, Trace, What};
use super::event::{incomplete, seconds};
use super::source::{Agent, Handle};
use super::words::{APP, FILE, Keyword, PORT, Which, Words, usage};
use crate::cli::exit::Exit;
use crate::cli::output::{Output, table};
use crate::control::protocol::Failure;
use crate::units::parse_duration;

const SINCE: Keyword = Keyword("since", true);
const VMA: Keyword = Keyword("vma", false);

/// What is said of a trace in every answer about it.
pub(super) fn about(trace: &Trace) -> Value {
    json!({
        "app": trace.header.app,
        "lineage": trace.header.lineage,
        "started": trace.header.started,
        "kernel": trace.header.kernel,
        "events": trace.events.len(),
        "lost": trace.lost(),
        "ended": trace.ended,
        "complete": trace.is_complete(),
    })
}

/// The name of what a mapping maps.
pub(super) fn mapping_name(mapping: Option<&Mapping>) -> &str {
    match mapping {
        None => "?",
        Some(mapping) if mapping.name.is_empty() => "[anonymous]",
        Some(mapping) => &mapping.name,
    }
}

struct Chosen {
    trace: Trace,
    faults: Vec<(u64, Fault)>,
    by_mapping: bool,
}

fn choose(agent: &Agent, words: &[String], known: &[Keyword]) -> Result<Chosen, Failure> {
    let words = Words::parse(words, known)?;
    let which = words.port(Which::Any)?;
    let since = words.value("since").map(parse_duration).transpose();
    let since = since
        .map_err(|error| usage(error.to_string()))?
        .unwrap_or_default();
    let trace = Handle::of(&words)?.trace(agent)?;
    let faults = trace.events.iter().filter_map(|event| match event.what {
        What::Fault(fault) if which.matches(fault.port) && u128::from(event.time_ns) >= since.as_nanos() => {
            Some((event.time_ns, fault))
        }
        _ => None,
    });
    Ok(Chosen {
        faults: faults.collect(),
        trace,
        by_mapping: words.has("vma"),
    })
}

fn port_name(fault: &Fault) -> String {
    fault.port.map_or("-".to_owned(), |port| port.to_string())
}

fn row(trace: &Trace, time_ns: u64, fault: &Fault) -> Value {
    json!({
        "time_ns": time_ns,
        "space": fault.space,
        "address": format!("{:#x}", fault.address),
        "write": fault.write,
        "user": fault.user,
        "port": fault.port,
        "tid": fault.tid,
        "ip": format!("{:#x}", fault.ip),
        "mapping": mapping_name(trace.mapping(fault.page())),
    })
}

fn print(chosen: &Chosen, output: &Output, document: Value, text: String) -> Result<Exit, Failure> {
    let mut whole = json!({ "trace": about(&chosen.trace) });
    if let (Some(whole), Value::Object(parts)) = (whole.as_object_mut(), document) {
        whole.extend(parts);
    }
    output.document(&whole, || match chosen.trace.is_complete() {
        true => text,
        false => format!("{text}{}\n", incomplete(&chosen.trace)),
    })
}

/// `fault list`
pub(super) fn list(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let chosen = choose(agent, words, &[APP, FILE, PORT, SINCE])?;
    let header = ["TIME", "SPACE", "ADDRESS", "ACCESS", "PORT", "MAPPING"];
    let rows = chosen.faults.iter().map(|(time, fault)| {
        vec![
            format!("{:.6}", seconds(*time)),
            fault.space.to_string(),
            format!("{:#x}", fault.address),
            if fault.write { "write" } else { "read" }.to_owned(),
            port_name(fault),
            mapping_name(chosen.trace.mapping(fault.page())).to_owned(),
        ]
    });
    let text = table(&header, rows);
    let rows: Vec<Value> = chosen
        .faults
        .iter()
        .map(|(time, fault)| row(&chosen.trace, *time, fault))
        .collect();
    print(&chosen, output, json!({ "faults": rows }), text)
}

/// `fault dump`
pub(super) fn dump(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let chosen = choose(agent, words, &[APP, FILE, PORT, SINCE])?;
    let rows: Vec<Value> = chosen
        .faults
        .iter()
        .map(|(time, fault)| row(&chosen.trace, *time, fault))
        .collect();
    let line = |row: &Value| {
        let fields = row.as_object().into_iter().flatten();
        let fields: Vec<String> = fields
            .map(|(name, value)| match value.as_str() {
                Some(text) => format!("{name}={text}"),
                None => format!("{name}={value}"),
            })
            .collect();
        format!("{}\n", fields.join(" "))
    };
    let text = rows.iter().map(line).collect();
    print(&chosen, output, json!({ "faults": rows }), text)
}

/// `fault top`
pub(super) fn top(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let chosen = choose(agent, words, &[APP, FILE, PORT, SINCE, VMA])?;
    let mut counts: BTreeMap<(String, String), (u64, BTreeSet<String>)> = BTreeMap::new();
    for (_, fault) in &chosen.faults {
        let mapping = mapping_name(chosen.trace.mapping(fault.page())).to_owned();
        let page = match chosen.by_mapping {
            true => String::new(),
            false => format!("{}:{:#x}", fault.space, fault.page().page),
        };
        let (count, ports) = counts.entry((page, mapping)).or_default();
        *count += 1;
        ports.insert(port_name(fault));
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(a, (x, _)), (b, (y, _))| y.cmp(x).then_with(|| a.cmp(b)));
    let ports = |ports: &BTreeSet<String>| ports.iter().cloned().collect::<Vec<_>>();
    let rows: Vec<Value> = counts
        .iter()
        .map(|((page, mapping), (count, by))| match chosen.by_mapping {
            true => json!({ "mapping": mapping, "faults": count, "ports": ports(by) }),
            false => json!({ "page": page, "mapping": mapping, "faults": count, "ports": ports(by) }),
        })
        .collect();
    let cells = counts.iter().map(|((page, mapping), (count, by))| {
        let mut cells = vec![count.to_string(), ports(by).join(","), mapping.clone()];
        if !chosen.by_mapping {
            cells.insert(1, page.clone());
        }
        cells
    });
    let text = match chosen.by_mapping {
        true => table(&["FAULTS", "PORTS", "MAPPING"], cells),
        false => table(&["FAULTS", "PAGE", "PORTS", "MAPPING"], cells),
    };
    print(&chosen, output, json!({ "top": rows }), text)
}
