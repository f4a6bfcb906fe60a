//! How what is wrong with agent.toml is told: where, what, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::units::nearest;

/// One thing that is wrong: where, what, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Such as `app 'web', key 'ports'`.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl Problem {
    /// Puts one together.
    pub fn new(place: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Problem {
            place: place.into(),
            what: what.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; try: {}", self.place, self.what, self.fix)
    }
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path} ({source})")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that cannot be.
    #[error("{} has {}:{}", path.display(), count(problems.len()), lines(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything found wrong, in the order of the file as far as possible.
        problems: Vec<Problem>,
    },
}

fn count(problems: usize) -> String {
    if problems == 1 {
        "1 problem".to_owned()
    } else {
        format!("{problems} problems")
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// What is wrong with a table, from what the TOML reader says of it.
pub(super) fn section_problem(error: &toml::de::Error, place: &str, more_keys: &[&str]) -> Problem {
    let message = error.message();
    // The crate tells the path of the key only in its printed form, on a line of its own.
    let printed = error.to_string();
    let path = printed
        .lines()
        .find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'));
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut words = rest.split('`').skip(1).step_by(2);
        let unknown = words.next().unwrap_or_default();
        let known: Vec<&str> = words.chain(more_keys.iter().copied()).collect();
        let place = match path {
            Some(table) => format!("{place}, table '{table}'"),
            None => place.to_owned(),
        };
        let fix = match nearest(unknown, known.iter().copied()) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("the keys there are {}", known.join(", ")),
        };
        return Problem::new(place, format!("unknown key '{unknown}'"), fix);
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        let key = key.trim_matches('`');
        return Problem::new(
            place,
            format!("the key '{key}' is missing"),
            format!("add {key} = ..."),
        );
    }
    let place = match path {
        Some(path) => format!("{place}, key '{path}'"),
        None => place.to_owned(),
    };
    // Messages of our own types say already how it is written.
    let (what, fix) = message
        .rsplit_once("; ")
        .unwrap_or((message, "correct the value"));
    Problem::new(place, what, fix)
}

/// What is wrong with a file that is no TOML.
pub(super) fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes()[..at]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1;
    let what = error.message().replace('\n', ", ");
    Problem::new(format!("line {line}"), what, "correct the TOML syntax there")
}
