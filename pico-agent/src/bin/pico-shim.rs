//! The shim's program: without arguments it serves the app that the agent describes on standard input;
//! `sandbox-init FD` is how it starts one, `sandbox-exec` how the agent runs a command beside one (see
//! `pico_agent::sandbox::process`).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd as _, FromRawFd, OwnedFd};
use std::process::ExitCode;

use pico_agent::sandbox::own_exe;
use pico_agent::sandbox::process::beside::exec_beside;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result: anyhow::Result<ExitCode> = match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => take_stdin().and_then(|agent| {
            pico_agent::shim::server::run(agent)?;
            Ok(ExitCode::SUCCESS)
        }),
        ["sandbox-init", report] => sandbox_init(report),
        ["sandbox-exec"] => sandbox_exec(),
        _ => Err(anyhow::anyhow!(
            "pico-shim is started by pico-agent; see pico-agent --help"
        )),
    };
    result.unwrap_or_else(|error| {
        eprintln!("pico-shim: {error:#}");
        ExitCode::FAILURE
    })
}

/// The agent's socket, which is standard input; nothing else holds it afterwards.
fn take_stdin() -> anyhow::Result<OwnedFd> {
    let agent = std::io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(agent)
}

fn sandbox_init(report: &str) -> anyhow::Result<ExitCode> {
    own_exe::protect()?;
    let number: i32 = report.parse()?;
    // SAFETY: the shim made this descriptor for us and tells its number; nothing else here knows it.
    let report = unsafe { OwnedFd::from_raw_fd(number) };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let spec = serde_json::from_str(&text)?;
    Err(pico_agent::sandbox::exec_in_sandbox(&spec, report).into())
}

/// The specification is the first line of standard input; what follows is the command's.
fn sandbox_exec() -> anyhow::Result<ExitCode> {
    own_exe::protect()?;
    let mut stdin = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut line = Vec::new();
    let mut byte = [0];
    while stdin.read(&mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    drop(stdin);
    let spec = serde_json::from_slice(&line)?;
    Ok(exec_beside(&spec))
}
