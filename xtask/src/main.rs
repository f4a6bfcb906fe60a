//! `cargo xtask`: everything that a developer or operator runs. Only parses and calls; each command
//! has its own module.
#![forbid(unsafe_code)]

mod build;
mod cmd;
mod place;
mod setup;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use place::Place;
use setup::Need;

/// Set up the host, build, test and show Picocenter.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100, after_help = "\
Examples:
  cargo xtask setup --check      what this host lacks, and the command that mends each
  cargo xtask demo               from nothing to a swapped app: installs, builds, runs
  cargo xtask test               everything that CI checks

What setup installs beside Debian's packages goes to $PICO_TOOLS (by default ~/.cache/pico-tools).")]
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
            let needs = if needs.is_empty() { Need::ALL.to_vec() } else { needs };
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
            let tools = setup::setup(&place, &[Need::Build])?;
            build::build(&place, &tools, release)?;
        }
        Cmd::CriuProbe { criu } => setup::probe::inside(&criu)?,
        Cmd::ProbeServer => setup::probe::server()?,
    }
    Ok(ExitCode::SUCCESS)
}
