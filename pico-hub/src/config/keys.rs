//! Reads a TOML table key by key, so that each wrong key is told by its path, and all of them at once.

use serde::de::DeserializeOwned;

use super::Problem;

/// The keys of one table that are still to be read.
pub(super) struct Keys<'a> {
    /// `tls.`; empty at the top.
    path: String,
    table: toml::Table,
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(path: &str, table: toml::Table, problems: &'a mut Vec<Problem>) -> Self {
        Keys {
            path: path.to_owned(),
            table,
            known: Vec::new(),
            problems,
        }
    }

    /// The value of a key. `None` where it is missing, and where it is wrong, which is noted.
    pub(super) fn get<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let read = value.try_into();
        read.map_err(|error: toml::de::Error| self.note(key, error.message(), "see pico-hub config example"))
            .ok()
    }

    /// The same of a key that has no default.
    pub(super) fn need<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        if !self.table.contains_key(key) {
            self.note(
                key,
                "is missing",
                &format!("add {key} = ..., or leave out the section"),
            );
        }
        self.get(key)
    }

    /// A table inside, read by `read`; `None` where it is missing.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Keys<'_>) -> Option<T>,
    ) -> Option<T> {
        let table = self.get(key)?;
        let mut keys = Keys::new(&format!("{}{key}.", self.path), table, self.problems);
        let value = read(&mut keys);
        keys.finish();
        value
    }

    /// Notes all keys that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let fix = match nearest(key, &self.known) {
                Some(near) => format!("{}{near}", self.path),
                None => format!("one of {}", self.known.join(", ")),
            };
            let place = format!("{}{key}", self.path);
            self.problems
                .push(Problem::new(place, "is no key of this file", fix));
        }
    }

    fn note(&mut self, key: &str, what: &str, fix: &str) {
        let place = format!("{}{key}", self.path);
        self.problems.push(Problem::new(place, what, fix));
    }
}

/// What is wrong with a text that is no TOML, and in which line.
pub(super) fn at_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {}", before.matches('\n').count() + 1, error.message()),
        None => error.message().to_owned(),
    }
}

/// The known key that a mistyped one is most like: at most two letters away.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let distances = known
        .iter()
        .map(|candidate| (distance(key, candidate), *candidate));
    distances
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map(|(_, near)| near)
}

/// How many letters must be changed, added or removed (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
