//! Pure: reads the host's apt sources, in both of their styles, and writes a sources file that
//! asks the same mirror for another suite. Does no I/O.

/// One place that apt fetches binary packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Mirrors, in the order given.
    pub uris: Vec<String>,
    /// Suites, such as `bookworm` and `bookworm-updates`.
    pub suites: Vec<String>,
    /// Components, such as `main`.
    pub components: Vec<String>,
    /// The keyring file, or the key itself as deb822 text; `None` = apt's trusted keys.
    pub signed_by: Option<String>,
}

impl Source {
    /// Whether this is the distribution's own archive: it has the release's suite and `main`.
    fn is_archive_of(&self, codename: &str) -> bool {
        self.suites.iter().any(|s| s == codename) && self.components.iter().any(|c| c == "main")
    }

    /// This source as a deb822 stanza.
    pub fn stanza(&self) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\n",
            self.uris.join(" "),
            self.suites.join(" "),
            self.components.join(" ")
        );
        if let Some(key) = &self.signed_by {
            text.push_str(&format!("Signed-By: {key}\n"));
        }
        text
    }
}

/// Reads a `.sources` file. Stanzas that are disabled, or hold no binary packages, are left out.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    for stanza in lines.split(|l| l.trim().is_empty()) {
        let field = |name: &str| -> Option<String> {
            let start = stanza.iter().position(|l| {
                l.split_once(':')
                    .is_some_and(|(key, _)| key.eq_ignore_ascii_case(name))
                    && !l.starts_with([' ', '\t'])
            })?;
            let mut value = stanza[start].split_once(':')?.1.trim().to_owned();
            for line in stanza[start + 1..]
                .iter()
                .take_while(|l| l.starts_with([' ', '\t']))
            {
                value.push('\n');
                value.push_str(line);
            }
            Some(value)
        };
        let words = |name: &str| -> Vec<String> {
            field(name)
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        let enabled = !field("Enabled").is_some_and(|v| ["no", "false", "0", "off"].contains(&v.as_str()));
        if enabled && words("Types").iter().any(|t| t == "deb") {
            sources.push(Source {
                uris: words("URIs"),
                suites: words("Suites"),
                components: words("Components"),
                signed_by: field("Signed-By").filter(|v| !v.is_empty()),
            });
        }
    }
    sources
}

/// Reads a one-line style file (`deb [options] uri suite component...`).
pub fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t']) {
        return None; // deb-src, or no source at all
    }
    let mut signed_by = None;
    rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('[') {
        let (options, after) = inner.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|o| o.strip_prefix("signed-by="))
            .map(|v| v.replace(',', " "));
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let uri = words.next()?;
    let suite = words.next()?;
    Some(Source {
        uris: vec![uri],
        suites: vec![suite],
        components: words.collect(),
        signed_by,
    })
}

/// The distribution's archive among the host's sources, asked for another suite of `main`.
pub fn with_suite(sources: &[Source], codename: &str, suite: &str) -> Option<Source> {
    let archive = sources.iter().find(|s| s.is_archive_of(codename))?;
    Some(Source {
        suites: vec![suite.to_owned()],
        components: vec!["main".to_owned()],
        ..archive.clone()
    })
}

/// The sources of one release: its suite, its updates and its security updates, `main` only.
pub fn of_release(sources: &[Source], codename: &str) -> Vec<Source> {
    let ours = |s: &String| s == codename || s.strip_prefix(codename).is_some_and(|r| r.starts_with('-'));
    let mut kept = Vec::new();
    for source in sources {
        let suites: Vec<String> = source.suites.iter().filter(|s| ours(s)).cloned().collect();
        if !suites.is_empty() && source.components.iter().any(|c| c == "main") {
            kept.push(Source {
                suites,
                components: vec!["main".to_owned()],
                ..source.clone()
            });
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb
# a comment inside the stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb deb-src
URIs: https://other.example/tool
Suites: stable
Components: main
Enabled: no

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
";

    #[test]
    fn deb822_gives_the_archive_in_another_suite() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 2, "disabled and source-only stanzas are left out");
        let other = with_suite(&sources, "bookworm", "unstable").unwrap();
        assert_eq!(
            other.stanza(),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: unstable\nComponents: main\n\
             Signed-By: /usr/share/keyrings/archive.gpg\n"
        );
    }

    #[test]
    fn a_key_inside_the_stanza_is_carried_over() {
        let text = "Types: deb\nURIs: http://m.example/d\nSuites: trixie\nComponents: main\nSigned-By:\n \
                    -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n";
        let source = with_suite(&parse_deb822(text), "trixie", "unstable").unwrap();
        assert!(
            source
                .stanza()
                .ends_with("Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n")
        );
    }

    #[test]
    fn one_line_style_gives_the_archive_in_another_suite() {
        let text = "# deb http://old.example/debian bookworm main\n\
                    deb-src http://m.example/debian bookworm main\n\
                    deb http://m.example/debian-security bookworm-security main\n\
                    deb [arch=amd64 signed-by=/k/a.gpg] http://m.example/debian bookworm main contrib # why\n";
        let sources = parse_one_line(text);
        assert_eq!(sources.len(), 2);
        let other = with_suite(&sources, "bookworm", "sid").unwrap();
        assert_eq!(other.uris, ["http://m.example/debian"]);
        assert_eq!(other.suites, ["sid"]);
        assert_eq!(other.components, ["main"]);
        assert_eq!(other.signed_by.as_deref(), Some("/k/a.gpg"));
    }

    #[test]
    fn a_host_of_another_release_has_no_archive() {
        assert_eq!(with_suite(&parse_deb822(DEB822), "trixie", "unstable"), None);
    }

    #[test]
    fn a_release_has_its_updates_and_security() {
        let kept = of_release(&parse_deb822(DEB822), "bookworm");
        let suites: Vec<String> = kept.iter().flat_map(|s| s.suites.clone()).collect();
        assert_eq!(suites, ["bookworm", "bookworm-updates", "bookworm-security"]);
        assert!(kept.iter().all(|s| s.components == ["main"]));
    }

    #[test]
    fn nonsense_is_no_source() {
        assert!(parse_one_line("debris http://x y main\ndeb\ndeb [a http://x y\n\n").is_empty());
        assert!(parse_deb822("hello\n\n: :\n").is_empty());
    }
}
