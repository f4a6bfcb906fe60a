//! The shim's program: without arguments it serves the app that the agent describes on standard input;
//! `sandbox-init FD` is how it starts one (see `pico_agent::sandbox::process`).

use std::io::Read;
use std::os::fd::{AsFd as _, FromRawFd, OwnedFd};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => take_stdin().and_then(|agent| Ok(pico_agent::shim::server::run(agent)?)),
        ["sandbox-init", report] => sandbox_init(report),
        _ => Err(anyhow::anyhow!(
            "pico-shim is started by pico-agent; see pico-agent --help"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pico-shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The agent's socket, which is standard input; nothing else holds it afterwards.
fn take_stdin() -> anyhow::Result<OwnedFd> {
    let agent = std::io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(agent)
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
