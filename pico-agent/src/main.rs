//! Parses, builds, runs.

use std::process::ExitCode;

use pico_agent::cli::{self, Hooks};
use pico_agent::config::{Config, StoreSection};
use pico_agent::control::protocol::{ErrorCode, Failure};

fn main() -> ExitCode {
    cli::main(
        std::env::args_os(),
        Hooks {
            run,
            cleanup,
            try_store,
        },
    )
    .into()
}

fn run(_config: Config) -> Result<(), Failure> {
    Err(Failure::new(ErrorCode::Unsupported, "this build cannot run apps"))
}

fn cleanup(_config: Config) -> Result<Vec<String>, Failure> {
    Err(Failure::new(ErrorCode::Unsupported, "this build cannot run apps"))
}

fn try_store(_store: &StoreSection) -> Result<String, String> {
    Err("this build has no object store".to_owned())
}
