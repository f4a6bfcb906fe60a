//! `predict eval`: a trace, replayed through every predictor.

use serde_json::json;

use super::super::windows;
use super::event::incomplete;
use super::fault::about;
use super::source::{Agent, Handle};
use super::words::{APP, FILE, Keyword, PORT, Which, Words, usage};
use crate::activeset::{Costs, evaluate, predictors};
use crate::cli::exit::Exit;
use crate::cli::output::{Output, table};
use crate::control::protocol::Failure;

/// A checkpoint on a local disk, in the page cache: a fault through the pager, and a page of a large copy.
const WARM: Costs = Costs {
    miss_ns: 40_000,
    move_ns: 500,
    install_ns: 1_000,
    pages_max: 1 << 18,
};
/// A store with 25 ms to the first byte and 100 MB/s.
const COLD: Costs = Costs {
    miss_ns: 25_000_000,
    move_ns: 40_000,
    ..WARM
};

fn costs(words: &Words) -> Result<Costs, Failure> {
    let mut costs = match words.value("tier") {
        None | Some("cold") => COLD,
        Some("warm") => WARM,
        Some(_) => return Err(usage("a tier is warm or cold")),
    };
    let micros = |name: &str| -> Result<Option<u64>, Failure> {
        let number = words.value(name).map(|text| text.parse::<u32>());
        match number.transpose() {
            Ok(number) => Ok(number.map(|number| u64::from(number) * 1_000)),
            Err(_) => Err(usage(format!("'{name}' needs a number of microseconds after it"))),
        }
    };
    if let Some(ns) = micros("miss-us")? {
        costs.miss_ns = ns;
    }
    if let Some(ns) = micros("ahead-us")? {
        (costs.move_ns, costs.install_ns) = (ns, 0);
    }
    Ok(costs)
}

/// `predict eval`
pub(super) fn eval(agent: &Agent, words: &[String], output: &Output) -> Result<Exit, Failure> {
    let keywords = ["warmup", "tier", "miss-us", "ahead-us"].map(|name| Keyword(name, true));
    let words = Words::parse(words, &[&[APP, FILE, PORT][..], &keywords].concat())?;
    let only = match words.port(Which::Any)? {
        Which::Of(port) => Some(port),
        Which::Any => None,
        Which::NoPort => return Err(usage("a wake always has a port")),
    };
    let warmup = words.value("warmup").unwrap_or("0").parse::<usize>();
    let warmup = warmup.map_err(|_| usage("'warmup' needs a number of windows after it"))?;
    let costs = costs(&words)?;
    let trace = Handle::of(&words)?.trace(agent)?;
    let windows = windows(&trace.events);
    let scores = evaluate(&mut predictors(), &windows, &costs, warmup, only);
    let document = json!({
        "trace": about(&trace),
        "windows": windows.len(),
        "costs": costs,
        "scores": scores,
    });
    output.document(&document, || {
        let header = [
            "PREDICTOR",
            "WAKES",
            "NEEDED",
            "BROUGHT",
            "RECALL",
            "PRECISION",
            "WASTED",
            "EST. MS",
        ];
        let share = |part: Option<f64>| part.map_or("-".to_owned(), |part| format!("{part:.3}"));
        let mut text = table(
            &header,
            scores.iter().map(|score| {
                vec![
                    score.predictor.to_owned(),
                    score.wakes.to_string(),
                    score.needed.to_string(),
                    score.brought.to_string(),
                    share(score.recall),
                    share(score.precision),
                    score.wasted.to_string(),
                    score.mean_ms.map_or("-".to_owned(), |ms| format!("{ms:.2}")),
                ]
            }),
        );
        if !trace.is_complete() {
            text.push_str(&format!("{}\n", incomplete(&trace)));
        }
        text
    })
}
