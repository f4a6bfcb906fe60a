//! A command beside an app, as a process of the agent's: started in the place that the app's actor made for it, ended when
//! whoever asked for it goes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command as Program};
use tokio::sync::mpsc;

use super::app::Command;
use crate::control::protocol::{ErrorCode, Failure};
use crate::sandbox::process::beside::BesideSpec;

/// What to run beside an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Besides, or instead of, the app's own.
    pub env: BTreeMap<String, String>,
    /// As whom; `None`: as the app.
    pub user: Option<String>,
    /// Where; `None`: where the app began.
    pub workdir: Option<PathBuf>,
}

/// Where a command runs. The app stays awake until this, and what was started in it, is dropped.
#[derive(Debug)]
pub struct Place {
    pub(super) spec: BesideSpec,
    pub(super) shim: PathBuf,
    pub(super) ended: Ended,
}

/// Tells the app's actor that a command is over.
#[derive(Debug)]
pub(super) struct Ended {
    actor: mpsc::UnboundedSender<Command>,
    number: u64,
}

impl Ended {
    pub(super) fn new(actor: mpsc::UnboundedSender<Command>, number: u64) -> Self {
        Ended { actor, number }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails only when the actor has ended, and all commands with it.
        let _ = self.actor.send(Command::ExecEnded(self.number));
    }
}

/// A command that runs. Dropped, it is ended with everything that it started.
#[derive(Debug)]
pub struct Running {
    /// Its standard input; taken and dropped, it has ended.
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: Option<ChildStdout>,
    /// Its standard error.
    pub stderr: Option<ChildStderr>,
    child: Child,
    ended: Option<Ended>,
}

impl Place {
    /// Starts the command.
    ///
    /// # Errors
    /// When the host can start no process. That the command cannot be run is told by its exit status.
    pub async fn start(self) -> Result<Running, Failure> {
        let cannot = |error: io::Error| {
            Failure::new(ErrorCode::Failed, format!("no command can be started ({error})"))
        };
        let mut line = serde_json::to_vec(&self.spec).map_err(|error| cannot(error.into()))?;
        line.push(b'\n');
        let mut program = Program::new(&self.shim);
        let mut running = Running::spawn(program.arg("sandbox-exec")).map_err(cannot)?;
        running.ended = Some(self.ended);
        if let Some(stdin) = &mut running.stdin {
            stdin.write_all(&line).await.map_err(cannot)?;
        }
        Ok(running)
    }
}

impl Running {
    /// Any program, with pipes for what it reads and prints.
    pub(crate) fn spawn(program: &mut Program) -> io::Result<Running> {
        let mut child = program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Running {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
            ended: None,
        })
    }

    /// Waits for the command's own end, and gives its exit status as a shell has it. What it left running is ended then,
    /// so that its output ends, too.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn wait(&mut self) -> io::Result<i32> {
        let status = self.child.wait().await?;
        self.ended = None;
        Ok(as_shell(status))
    }
}

fn as_shell(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
