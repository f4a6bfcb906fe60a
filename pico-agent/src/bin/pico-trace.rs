//! pico-trace: shows what apps touch and what is learned of it. All of it is in `pico_agent::trace::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pico_agent::trace::cli::main(std::env::args_os()).into()
}
