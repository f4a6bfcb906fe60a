//! `cargo xtask`: everything that a developer or operator runs. Only parses and calls; each command
//! has its own module.
#![forbid(unsafe_code)]

mod build;
mod closing;
mod cmd;
mod fresh;
mod launch;
mod place;
mod setup;
mod test;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use place::Place;
use setup::Need;

/// Set up the host, build, test and show Picocenter.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  cargo xtask setup --check      what this host lacks, and the command that mends each
  cargo xtask demo               from nothing to a swapped app: installs, builds, runs
  cargo xtask test               everything that CI checks

What setup installs beside Debian's packages goes to $PICO_TOOLS (by default ~/.cache/pico-tools)."
)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Bring this host to where everything builds and runs
    #[command(after_help = "\
Examples:
  cargo xtask setup                        install what is missing (through sudo if you are not root)
  cargo xtask setup --check                only report; exits with 1 when something is missing
  cargo xtask setup --for build            only what the build needs")]
    Setup {
        /// Only report; exit with 1 when something is missing
        #[arg(long)]
        check: bool,
        /// Only what this command needs [default: build, test, demo and bench]
        #[arg(long = "for", value_name = "COMMAND")]
        needs: Vec<Need>,
    },
    /// Build the eBPF programs and all binaries
    #[command(after_help = "\
Examples:
  cargo xtask build                        into target/debug
  cargo xtask build --release              into target/release")]
    Build {
        /// Build with optimisations
        #[arg(long)]
        release: bool,
    },
    /// Check format, lints and docs, and run every test
    #[command(after_help = "\
Examples:
  cargo xtask test                         everything, as CI runs it
  cargo xtask test wake                    only tests with `wake` in their names; no lints, no docs
  cargo xtask test --soak                  with the long counts (hours)

Unit and property tests run as you; scenario tests run as root (through sudo, the binaries only).")]
    Test {
        /// Run the long counts
        #[arg(long)]
        soak: bool,
        /// Only tests with this in their names
        filter: Option<String>,
    },
    /// Swap nginx, redis and BIND out to an object store and back, and show what it took
    #[command(after_help = "\
Examples:
  cargo xtask demo                         under three minutes after the build; leaves nothing behind
  cargo xtask demo --keep                  leaves agent, store and apps running, and says what to try
  cargo xtask demo --json demo.json        writes the figures too")]
    Demo {
        /// Leave everything running at the end
        #[arg(long)]
        keep: bool,
        /// Write the figures to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Measure, against the goals in tests/targets.toml
    #[command(after_help = "\
Examples:
  cargo xtask bench wake                   warm and cold wakes, beside CRIU's own
  cargo xtask bench wake --quick           fewer rounds
  cargo xtask bench wake --json wake.json --report target/report")]
    Bench {
        /// Which benches
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Fewer rounds
        #[arg(long)]
        quick: bool,
        /// Write the figures to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Write a report for people into this directory
        #[arg(long, value_name = "DIR")]
        report: Option<PathBuf>,
    },
    /// Write man pages and shell completions of all programs
    #[command(after_help = "\
Examples:
  cargo xtask docs                         into target/docs/man and target/docs/completions
  cargo xtask docs --dir /usr/local/share/pico")]
    Docs {
        /// Where [default: target/docs]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Prove the README on a fresh Debian 12
    #[command(after_help = "\
Examples:
  cargo xtask fresh                        the README's first commands, word by word
  cargo xtask fresh test                   the whole of CI
  cargo xtask fresh --dir /big/disk/fresh  in another place than /var/tmp; needs about 6 GB

Debootstraps a Debian with only git and curl, brings the host's rustup toolchain along read-only, and
removes everything afterwards. The log is in target/fresh-demo.log or target/fresh-test.log.")]
    Fresh {
        /// What to run there
        #[arg(default_value = "demo")]
        proof: fresh::Proof,
        /// Where to make it; removed afterwards [default: /var/tmp/pico-fresh-PID]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Process 1 of the namespaces in which setup tries a CRIU
    #[command(hide = true)]
    CriuProbe {
        /// CRIU's command line
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        criu: Vec<String>,
    },
    /// The server that is dumped and restored there
    #[command(hide = true)]
    ProbeServer,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Cmd) -> Result<ExitCode> {
    match command {
        Cmd::Setup { check, needs } => {
            let needs = if needs.is_empty() {
                Need::ALL.to_vec()
            } else {
                needs
            };
            if check {
                if !setup::check(&Place::find()?, &needs)? {
                    return Ok(ExitCode::FAILURE);
                }
            } else {
                setup::setup(&Place::find()?, &needs)?;
            }
        }
        Cmd::Build { release } => {
            let place = Place::find()?;
            let tools = setup::tools(&place, &[Need::Build])?;
            build::build(&place, &tools, release)?;
        }
        Cmd::Test { soak, filter } => {
            let place = Place::find()?;
            let tools = setup::tools(&place, &[Need::Build, Need::Test])?;
            test::test(&place, &tools, &test::Options { soak, filter })?;
        }
        Cmd::Demo { keep, json } => {
            let mut args = Vec::new();
            args.extend(keep.then(|| "--keep".into()));
            option(&mut args, "--json", json);
            launch::launch(&Place::find()?, Need::Demo, "pico-demo", false, &args)?;
        }
        Cmd::Bench {
            names,
            quick,
            json,
            report,
        } => {
            let mut args: Vec<OsString> = names.into_iter().map(OsString::from).collect();
            args.extend(quick.then(|| "--quick".into()));
            option(&mut args, "--json", json);
            option(&mut args, "--report", report);
            launch::launch(&Place::find()?, Need::Bench, "pico-bench", true, &args)?;
        }
        Cmd::Docs { dir } => docs(&Place::find()?, dir)?,
        Cmd::Fresh { proof, dir } => fresh::fresh(&Place::find()?, proof, dir)?,
        Cmd::CriuProbe { criu } => setup::probe::inside(&criu)?,
        Cmd::ProbeServer => setup::probe::server()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds everything and lets `pico-docs` write.
fn docs(place: &Place, dir: Option<PathBuf>) -> Result<()> {
    let tools = setup::tools(place, &[Need::Build])?;
    build::build(place, &tools, false)?;
    let dir = dir.unwrap_or_else(|| place.target.join("docs"));
    println!("docs: in {}", place::shown(&dir));
    cmd::run(std::process::Command::new(place.binaries(false).join("pico-docs")).arg(dir))
}

/// Adds an option with a path, if it is given.
fn option(args: &mut Vec<OsString>, name: &str, path: Option<PathBuf>) {
    if let Some(path) = path {
        args.extend([name.into(), path.into_os_string()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_is_shown_has_examples() {
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let name = format!("cargo xtask {}", command.get_name());
            assert!(help.starts_with("Examples:") && help.contains(&name), "{name}");
        }
    }

    #[test]
    fn examples_in_the_help_are_understood() {
        let helps = Cli::command()
            .get_subcommands()
            .filter_map(|c| c.get_after_help().map(ToString::to_string))
            .collect::<String>();
        let examples = helps
            .lines()
            .filter_map(|l| l.trim().strip_prefix("cargo xtask "));
        for example in examples {
            let words = example.split("  ").next().unwrap_or_default().split(' ');
            let parsed = Cli::try_parse_from(std::iter::once("cargo xtask").chain(words));
            assert!(
                parsed.is_ok(),
                "{example}: {:?}",
                parsed.err().map(|e| e.to_string())
            );
        }
    }
}
