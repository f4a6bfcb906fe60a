//! The words after a command: `app web port 80/tcp vma`. Keywords may be abbreviated as long as they are unique.

use crate::control::protocol::{ErrorCode, Failure};
use crate::port::Port;
use crate::units::nearest;

/// A keyword of a command, and whether a value follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keyword(pub(super) &'static str, pub(super) bool);

pub(super) const APP: Keyword = Keyword("app", true);
pub(super) const FILE: Keyword = Keyword("file", true);
pub(super) const PORT: Keyword = Keyword("port", true);

/// Which requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those of a port.
    Of(Port),
    /// The work of no port.
    NoPort,
    /// All.
    Any,
}

impl Which {
    pub(super) fn matches(self, port: Option<Port>) -> bool {
        match self {
            Which::Of(of) => port == Some(of),
            Which::NoPort => port.is_none(),
            Which::Any => true,
        }
    }
}

/// Keywords with their values, in the order they came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words(Vec<(&'static str, String)>);

pub(super) fn usage(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::Usage, message)
}

impl Words {
    /// Reads the words of a command that knows these keywords. Each may be there once.
    pub(super) fn parse(words: &[String], known: &[Keyword]) -> Result<Self, Failure> {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Keyword(name, has_value) = find(word, known)?;
            if found.iter().any(|(other, _)| *other == name) {
                return Err(usage(format!("'{name}' is there twice")));
            }
            let value = match has_value {
                true => words
                    .next()
                    .ok_or_else(|| usage(format!("'{name}' needs a value after it")))?
                    .clone(),
                false => String::new(),
            };
            found.push((name, value));
        }
        Ok(Words(found))
    }

    /// The value of a keyword that is there.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// As [`Words::value`], of one that must be there.
    pub(super) fn needed(&self, name: &str) -> Result<&str, Failure> {
        self.value(name).ok_or_else(|| {
            usage(format!("'{name}' and what it is are missing")).hint("the same command with help")
        })
    }

    /// Whether a keyword is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Which port is meant; `absent` when none is named.
    pub(super) fn port(&self, absent: Which) -> Result<Which, Failure> {
        match self.value("port") {
            None => Ok(absent),
            Some("none") => Ok(Which::NoPort),
            Some("any") => Ok(Which::Any),
            Some(port) => match port.parse() {
                Ok(port) => Ok(Which::Of(port)),
                Err(error) => Err(usage(format!("{error}")).hint("or none, or any")),
            },
        }
    }
}

fn find(word: &str, known: &[Keyword]) -> Result<Keyword, Failure> {
    if let Some(exact) = known.iter().find(|keyword| keyword.0 == word) {
        return Ok(*exact);
    }
    let begins: Vec<&Keyword> = known
        .iter()
        .filter(|keyword| keyword.0.starts_with(word))
        .collect();
    match &begins[..] {
        [one] => Ok(**one),
        [] => {
            let failure = usage(format!("what is '{}'?", word.escape_debug()));
            Err(match nearest(word, known.iter().map(|keyword| keyword.0)) {
                Some(near) => failure.hint(format!("did you mean '{near}'?")),
                None => {
                    let all: Vec<&str> = known.iter().map(|keyword| keyword.0).collect();
                    failure.hint(format!("one of: {}", all.join(", ")))
                }
            })
        }
        several => {
            let all: Vec<String> = several.iter().map(|keyword| format!("'{}'", keyword.0)).collect();
            Err(usage(format!(
                "ambiguous: '{word}' could be {}",
                all.join(" or ")
            )))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const KNOWN: [Keyword; 5] = [APP, FILE, PORT, Keyword("vma", false), Keyword("ports", true)];

    fn parse(line: &str) -> Result<Words, Failure> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Words::parse(&words, &KNOWN)
    }

    #[test]
    fn words_come_in_pairs_and_may_be_abbreviated() {
        let words = parse("a web v port 80/tcp").unwrap();
        assert_eq!(words.value("app"), Some("web"));
        assert!(words.has("vma") && !words.has("file"));
        assert_eq!(
            words.port(Which::Any).unwrap(),
            Which::Of("80/tcp".parse().unwrap())
        );
        assert_eq!(
            parse("port none").unwrap().port(Which::Any).unwrap(),
            Which::NoPort
        );
        assert_eq!(parse("").unwrap().port(Which::Any).unwrap(), Which::Any);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_hint() {
        for (line, message, hint) in [
            ("ap", "'app' needs a value after it", ""),
            ("por x", "ambiguous: 'por' could be 'port' or 'ports'", ""),
            ("fiel x", "what is 'fiel'?", "did you mean 'file'?"),
            (
                "zzzzzz",
                "what is 'zzzzzz'?",
                "one of: app, file, port, vma, ports",
            ),
            ("app a app b", "'app' is there twice", ""),
        ] {
            let failure = parse(line).unwrap_err();
            assert_eq!(
                (failure.message.as_str(), failure.hint.as_str()),
                (message, hint),
                "{line}"
            );
        }
        assert!(parse("port 80").unwrap().port(Which::Any).is_err());
        assert!(parse("").unwrap().needed("app").is_err());
    }
}
