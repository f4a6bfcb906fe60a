//! `cargo xtask fresh`: proves the README on a fresh Debian 12. Debootstraps one into a directory,
//! with only git, curl and this host's rustup toolchain, clones the repository into it and runs
//! the README's first commands there by their words. `fresh.sh` does it, this prepares.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cmd;
use crate::place::Place;
use crate::setup::sources::{Source, of_release, with_suite};
use crate::setup::{self, Need, apt};

const SCRIPT: &str = include_str!("fresh.sh");

/// The release that is proved.
const RELEASE: &str = "bookworm";

/// What to run in the fresh machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Proof {
    /// The README's first commands.
    Demo,
    /// What they prepare, then `.ci/run`.
    Test,
}

/// Does it. Returns only on failure: this process becomes the script.
pub fn fresh(place: &Place, proof: Proof, dir: Option<PathBuf>) -> Result<()> {
    setup::setup(place, &[Need::Fresh])?;
    let readme = place.root.join("README.md");
    let readme =
        std::fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let words = first_commands(&readme).context("README.md has no block of shell commands (```sh)")?;

    let work = place.target.join("fresh");
    let source = work.join("source.git");
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    if source.exists() {
        std::fs::remove_dir_all(&source).with_context(|| format!("cannot remove {}", source.display()))?;
    }
    let changed = cmd::output(
        Command::new("git")
            .current_dir(&place.root)
            .args(["status", "--porcelain"]),
    )?;
    if !changed.trim().is_empty() {
        println!("note: what is not committed is not part of the proof");
    }
    cmd::run(
        Command::new("git")
            .args(["clone", "--quiet", "--bare"])
            .arg(&place.root)
            .arg(&source),
    )?;
    std::fs::write(work.join("words.sh"), script(&words, proof))?;

    let host = apt::host_sources();
    let release = of_release(&host, RELEASE);
    let archive =
        with_suite(&host, &apt::codename()?, RELEASE).context("the apt sources name no Debian archive")?;
    let release = if release.is_empty() {
        vec![archive.clone()]
    } else {
        release
    };
    let stanzas: Vec<String> = release.iter().map(Source::stanza).collect();
    std::fs::write(work.join("debian.sources"), stanzas.join("\n"))?;

    let home = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?);
    let or_home =
        |name: &str, sub: &str| std::env::var_os(name).map_or_else(|| home.join(sub), PathBuf::from);
    let (rustup, cargo) = (or_home("RUSTUP_HOME", ".rustup"), or_home("CARGO_HOME", ".cargo"));
    for needed in [rustup.join("toolchains"), cargo.join("bin/cargo")] {
        ensure!(
            needed.exists(),
            "{} is not there: the proof needs a toolchain of rustup",
            needed.display()
        );
    }
    let dir = dir.unwrap_or_else(|| PathBuf::from(format!("/var/tmp/pico-fresh-{}", std::process::id())));
    let dir = std::path::absolute(dir)?;
    if dir.exists() {
        bail!(
            "{} exists: name a directory that does not, it is removed afterwards",
            dir.display()
        );
    }
    let log = place.target.join(format!(
        "fresh-{}.log",
        if proof == Proof::Demo { "demo" } else { "test" }
    ));
    let env = [
        ("DIR", dir.into_os_string()),
        ("WORK", work.into_os_string()),
        ("LOG", log.into_os_string()),
        ("RELEASE", RELEASE.into()),
        ("MIRROR", archive.uris.first().cloned().unwrap_or_default().into()),
        ("RUSTUP", rustup.into_os_string()),
        ("CARGO", cargo.into_os_string()),
    ];
    let mut cmd = cmd::as_root("bash", &env)?;
    cmd.args(["-c", SCRIPT, "fresh"]).current_dir("/");
    Err(cmd.exec()).context("cannot run bash")
}

/// The first block of shell commands in a Markdown text.
fn first_commands(markdown: &str) -> Option<String> {
    let mut lines = markdown.lines();
    lines.find(|l| matches!(l.trim(), "```sh" | "```bash" | "```shell" | "```console"))?;
    let block: Vec<&str> = lines
        .take_while(|l| l.trim() != "```")
        .map(|l| l.strip_prefix("$ ").unwrap_or(l))
        .collect();
    (!block.is_empty()).then(|| block.join("\n"))
}

/// The script that runs in the fresh machine: the words as they are, around them only what a
/// person brings along: being root needs no sudo, and the clone comes from this repository.
fn script(words: &str, proof: Proof) -> String {
    let url = words.lines().find_map(|l| {
        let (_, rest) = l.split_once("git clone ")?;
        rest.split_whitespace()
            .find(|w| !w.starts_with('-'))
            .map(str::to_owned)
    });
    let mut text = String::from("set -euo pipefail\nsudo() { \"$@\"; }\ncd\n");
    match url {
        Some(url) => text.push_str(&format!(
            "git config --global url.\"file://{SOURCE}\".insteadOf \"{url}\"\n"
        )),
        None => text.push_str(&format!("git clone --quiet {SOURCE} picocenter\ncd picocenter\n")),
    }
    text.push_str("set -v\n");
    for line in words.lines() {
        if proof == Proof::Demo || !line.contains("cargo xtask") {
            text.push_str(line);
            text.push('\n');
        }
    }
    if proof == Proof::Test {
        text.push_str("bash .ci/run\n");
    }
    text
}

/// Where the repository lies in the fresh machine.
const SOURCE: &str = "/srv/picocenter.git";

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "# Pico\n\n```text\npicture\n```\n\n```sh\nsudo apt-get install -y gcc\n\
        git clone https://forge.example/pico.git && cd pico\ncargo xtask demo\n```\n\n```sh\nlater\n```\n";

    #[test]
    fn the_first_shell_block_is_what_is_proved() {
        let words = first_commands(README).unwrap();
        assert!(
            words.starts_with("sudo apt-get") && words.ends_with("cargo xtask demo"),
            "{words}"
        );
        assert_eq!(
            first_commands("```console\n$ cargo xtask demo\n```").as_deref(),
            Some("cargo xtask demo")
        );
        assert_eq!(first_commands("# nothing\n"), None);
    }

    #[test]
    fn the_words_are_kept_and_the_clone_comes_from_here() {
        let text = script(&first_commands(README).unwrap(), Proof::Demo);
        assert!(
            text.contains("git clone https://forge.example/pico.git && cd pico\ncargo xtask demo\n"),
            "{text}"
        );
        assert!(
            text.contains(r#"insteadOf "https://forge.example/pico.git""#),
            "{text}"
        );
    }

    #[test]
    fn without_a_clone_among_the_words_the_repository_is_there_already() {
        let text = script("cargo xtask demo", Proof::Test);
        assert!(
            text.contains("cd picocenter\n") && text.ends_with("bash .ci/run\n"),
            "{text}"
        );
        assert!(!text.contains("cargo xtask demo"), "{text}");
    }
}
