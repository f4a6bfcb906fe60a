//! The shim's program: without arguments it serves the app that the agent describes on standard input;
//! `sandbox-init FD` is how it starts one (see `pico_agent::sandbox::process`).

use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {
            let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned();
            stdin.map_err(anyhow::Error::from).and_then(|agent| Ok(pico_agent::shim::server::run(agent)?))
        }
        ["sandbox-init", report] => sandbox_init(report),
        _ => Err(anyhow::anyhow!("pico-shim is started by pico-agent; see pico-agent --help")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pico-shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn sandbox_init(report: &str) -> anyhow::Result<()> {
    let number: i32 = report.parse()?;
    // SAFETY: the shim made this descriptor for us and tells its number; nothing else here knows it.
    let report = unsafe { OwnedFd::from_raw_fd(number) };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let spec = serde_json::from_str(&text)?;
    Err(pico_agent::sandbox::exec_in_sandbox(&spec, report).into())
}
