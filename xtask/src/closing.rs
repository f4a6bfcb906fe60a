//! Pure: reads what cargo and the test runners print. Runs nothing.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

/// How many tests passed, failed and were left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Ignored, or not asked for.
    pub skipped: u64,
}

impl Sum {
    /// Adds another.
    pub fn add(&mut self, other: &Sum) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Reads a closing line of libtest:
/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`.
pub fn parse_closing(line: &str) -> Option<Sum> {
    let (verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    if verdict != "ok" && verdict != "FAILED" {
        return None;
    }
    let count = |what: &str| -> Option<u64> {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some(Sum {
        passed: count("passed")?,
        failed: count("failed")?,
        skipped: count("ignored")?,
    })
}

/// A test binary that cargo has built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestBinary {
    /// The package's name.
    pub package: String,
    /// The target's name.
    pub target: String,
    /// `lib`, `bin`, `test` or the like.
    pub kind: String,
    /// The package's Cargo.toml.
    pub manifest: PathBuf,
    /// The binary.
    pub executable: PathBuf,
}

impl TestBinary {
    /// What to call it: `pico-agent (lib)`, `pico-tests (test wakes)`.
    pub fn label(&self) -> String {
        match self.kind.as_str() {
            "lib" => format!("{} (lib)", self.package),
            kind => format!("{} ({kind} {})", self.package, self.target),
        }
    }
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Reads one line of `cargo build --message-format=json`: a test binary, or something else.
pub fn parse_test_binary(line: &str) -> Option<TestBinary> {
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" || !message.profile?.test {
        return None;
    }
    let (manifest, target) = (message.manifest_path?, message.target?);
    // The directory is named as the package where cargo's id does not say it in words.
    let package = package_name(&manifest, line)?;
    let kind = target.kind.into_iter().next()?;
    let kind = if kind.contains("lib") {
        "lib".to_owned()
    } else {
        kind
    };
    Some(TestBinary {
        package,
        target: target.name,
        kind,
        manifest,
        executable: message.executable?,
    })
}

/// The package's name: in `path+file:///dir#name@0.1.0` after the `#`; cargo leaves it out, as in
/// `path+file:///dir/name#0.1.0`, when the directory is named so.
fn package_name(manifest: &std::path::Path, line: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Id {
        package_id: String,
    }
    let id: Id = serde_json::from_str(line).ok()?;
    let fragment = id.package_id.rsplit_once('#')?.1;
    match fragment.split_once('@') {
        Some((name, _)) => Some(name.to_owned()),
        None => Some(manifest.parent()?.file_name()?.to_str()?.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_all_runners_add_up() {
        let output = "running 4 tests\ntest a ... ok\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s\n\
            test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s\n\
            my test result: ok. 9 passed; 0 failed; 0 ignored\n";
        let mut sum = Sum::default();
        for closing in output.lines().filter_map(parse_closing) {
            sum.add(&closing);
        }
        assert_eq!(
            sum,
            Sum {
                passed: 5,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(sum.to_string(), "5 passed, 1 failed, 1 skipped");
        assert_eq!(
            Sum {
                passed: 7,
                ..Sum::default()
            }
            .to_string(),
            "7 passed, 0 failed"
        );
    }

    #[test]
    fn a_line_that_only_looks_like_a_closing_one_counts_nothing() {
        for line in [
            "test result: ok",
            "test result: odd. 1 passed; 0 failed; 0 ignored",
            "test result: ok. x passed",
        ] {
            assert_eq!(parse_closing(line), None, "{line}");
        }
    }

    fn artifact(id: &str, kind: &str, test: bool, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"{id}","manifest_path":"/w/tests/Cargo.toml",
            "target":{{"kind":["{kind}"],"crate_types":["bin"],"name":"wakes"}},"profile":{{"test":{test}}},
            "filenames":[],"executable":{executable},"fresh":true}}"#
        )
        .replace('\n', "")
    }

    #[test]
    fn test_binaries_are_found_in_what_cargo_says() {
        let line = artifact(
            "path+file:///w/tests#pico-tests@0.1.0",
            "test",
            true,
            r#""/t/wakes-1""#,
        );
        let binary = parse_test_binary(&line).unwrap();
        assert_eq!(binary.label(), "pico-tests (test wakes)");
        assert_eq!(binary.executable, PathBuf::from("/t/wakes-1"));
        let line = artifact("path+file:///w/tests#0.1.0", "rlib", true, r#""/t/x""#);
        assert_eq!(parse_test_binary(&line).unwrap().label(), "tests (lib)");
    }

    #[test]
    fn other_artifacts_are_no_test_binaries() {
        assert_eq!(
            parse_test_binary(&artifact("p#a@1", "bin", false, r#""/t/x""#)),
            None
        );
        assert_eq!(parse_test_binary(&artifact("p#a@1", "lib", true, "null")), None);
        assert_eq!(
            parse_test_binary(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(parse_test_binary("not json"), None);
    }
}
