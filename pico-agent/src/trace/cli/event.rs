//! `event`: everything in a trace, in its order.

use std::io::{self, Write};

use serde_json::json;

use super::super::{Event, What};
use super::source::{Agent, Handle};
use super::words::{APP, FILE, Keyword, PORT, Which, Words, usage};
use crate::cli::exit::Exit;
use crate::cli::output::Output;
use crate::control::protocol::{self, ErrorCode, Failure};
use crate::port::Port;

const TYPES: [&str; 10] = [
    "fault",
    "accessed",
    "recv",
    "send",
    "accept",
    "prefetched",
    "wake-start",
    "hot-start",
    "end",
    "lost",
];

/// The word for what happened.
pub(super) fn name(what: &What) -> &'static str {
    match what {
        What::Fault(_) => "fault",
        What::Accessed { .. } => "accessed",
        What::Recv { .. } => "recv",
        What::Send { .. } => "send",
        What::Accept { .. } => "accept",
        What::Prefetched { .. } => "prefetched",
        What::WakeStart { .. } => "wake-start",
        What::HotStart => "hot-start",
        What::End { .. } => "end",
        What::Lost { .. } => "lost",
    }
}

fn port(what: &What) -> Option<Port> {
    match what {
        What::Fault(fault) => fault.port,
        What::Recv { port, .. } | What::Send { port, .. } | What::Accept { port } => Some(*port),
        What::WakeStart { trigger, .. } => *trigger,
        _ => None,
    }
}

fn text(event: &Event) -> String {
    let rest = match event.what {
        What::Fault(fault) => format!(
            "space {} address {:#x} {} {} tid {} ip {:#x}",
            fault.space,
            fault.address,
            if fault.write { "write" } else { "read" },
            if fault.user { "user" } else { "kernel" },
            fault.tid,
            fault.ip,
        ),
        What::Accessed { at, write } => {
            format!(
                "space {} page {:#x}{}",
                at.space,
                at.page,
                if write { " written" } else { "" }
            )
        }
        What::Recv { tid, bytes, .. } | What::Send { tid, bytes, .. } => format!("{bytes} bytes tid {tid}"),
        What::Prefetched { at } => format!("space {} page {:#x}", at.space, at.page),
        What::WakeStart { pages, .. } => format!("{pages} lazy pages"),
        What::End { accessed: true } => "accessed bits read".to_owned(),
        What::Lost { count } => format!("{count} events"),
        What::Accept { .. } | What::HotStart | What::End { accessed: false } => String::new(),
    };
    let port = port(&event.what).map_or("-".to_owned(), |port| port.to_string());
    let line = format!(
        "{:>14.6} {:<10} {port:<9} {rest}",
        seconds(event.time_ns),
        name(&event.what)
    );
    line.trim_end().to_owned()
}

/// Nanoseconds as seconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "for people; microseconds of a hundred days are exact"
)]
pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// `event tracelog`
pub(super) fn tracelog(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let words = Words::parse(words, &[APP, FILE, PORT, Keyword("type", true)])?;
    let which = words.port(Which::Any)?;
    let kind = words.value("type");
    if let Some(kind) = kind
        && !TYPES.contains(&kind)
    {
        return Err(usage(format!("'{}' is no type of event", kind.escape_debug())).hint(TYPES.join(", ")));
    }
    let trace = Handle::of(&words)?.trace(agent)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut print = || -> io::Result<()> {
        for event in &trace.events {
            if which.matches(port(&event.what)) && kind.is_none_or(|kind| kind == name(&event.what)) {
                match output.json() {
                    true => writeln!(out, "{}", json!({ "schema": protocol::SCHEMA, "event": event }))?,
                    false => writeln!(out, "{}", text(event))?,
                }
            }
        }
        out.flush()
    };
    match print() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(Failure::new(ErrorCode::Failed, format!("cannot print ({error})")));
        }
        _ => {}
    }
    if !trace.is_complete() {
        eprintln!("{}", incomplete(&trace));
    }
    Ok(Exit::OK)
}

/// What is said of a trace in which something is missing.
pub(super) fn incomplete(trace: &super::super::Trace) -> String {
    match (trace.lost(), trace.ended) {
        (lost, true) => format!("incomplete: {lost} events were lost"),
        (0, false) => "incomplete: the recording was cut off".to_owned(),
        (lost, false) => format!("incomplete: {lost} events were lost, and the recording was cut off"),
    }
}
