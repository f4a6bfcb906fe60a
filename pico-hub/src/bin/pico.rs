//! The owner's command line; see [`pico_hub::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    pico_hub::cli::main(std::env::args_os()).into()
}
