//! An exec session: what the hub sends goes to the command's standard input, what the command prints goes to the hub.

use pico_proto::v1;
use pico_proto::v1::exec_request::{Kind as Input, Start};
use pico_proto::v1::exec_response::Kind as Output;
use pico_proto::v1::stream_data::Kind as Data;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;

use super::Apps;
use super::streams::Outlet;
use crate::control::protocol::{ErrorCode, Failure};
use crate::lifecycle::exec::Exec;

/// Of the command's output, in one piece.
const CHUNK: usize = 32 << 10;
/// What a command and its environment may take, as in execve(2) of one page table's worth.
const MAX_WORDS: usize = 128 << 10;

/// Runs a command beside an app until it ends.
pub(super) async fn serve<A: Apps>(
    apps: &A,
    name: &str,
    start: Start,
    input: mpsc::Receiver<Input>,
    outlet: &Outlet,
) -> Result<(), Failure> {
    let mut running = apps.exec(name, checked(start)?).await?;
    let (stdin, stdout, stderr) = (running.stdin.take(), running.stdout.take(), running.stderr.take());
    let ends = async {
        let (status, (), ()) = tokio::join!(
            running.wait(),
            carry(stdout, outlet, Output::Stdout),
            carry(stderr, outlet, Output::Stderr),
        );
        status
    };
    let status = tokio::select! {
        status = ends => status,
        () = feed(stdin, input, outlet) => return Ok(()),
    };
    let cannot = |error| {
        Failure::new(
            ErrorCode::Failed,
            format!("the command was lost sight of ({error})"),
        )
    };
    outlet
        .say(output(Output::ExitStatus(status.map_err(cannot)?)))
        .await;
    Ok(())
}

fn checked(start: Start) -> Result<Exec, Failure> {
    let usage = |what: &str| Failure::new(ErrorCode::Usage, what.to_owned());
    if start.command.first().is_none_or(String::is_empty) {
        return Err(usage("there is no command to run").hint("give a program and its arguments"));
    }
    let env = start.env.iter().flat_map(|(name, value)| [name, value]);
    let words = start
        .command
        .iter()
        .chain(env)
        .chain([&start.user, &start.workdir]);
    if words.map(String::len).sum::<usize>() > MAX_WORDS {
        return Err(usage("the command is too long").hint("put it into a file, or into its standard input"));
    }
    let text = |text: String| (!text.is_empty()).then_some(text);
    Ok(Exec {
        command: start.command,
        env: start.env.into_iter().collect(),
        user: text(start.user),
        workdir: text(start.workdir).map(Into::into),
    })
}

fn output(kind: Output) -> Data {
    Data::ExecOutput(v1::ExecResponse { kind: Some(kind) })
}

/// Carries one of the command's outputs to its end.
async fn carry(pipe: Option<impl AsyncRead + Unpin>, outlet: &Outlet, kind: impl Fn(Vec<u8>) -> Output) {
    let Some(mut pipe) = pipe else { return };
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match pipe.read_buf(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(_) => outlet.say(output(kind(chunk))).await,
        }
    }
}

/// Carries what the hub sends to the command. Ends when the hub sends no more because it has gone; a command whose input
/// has ended goes on.
async fn feed(stdin: Option<ChildStdin>, mut input: mpsc::Receiver<Input>, outlet: &Outlet) {
    let mut stdin = stdin;
    while let Some(piece) = input.recv().await {
        let goes_on = match (piece, &mut stdin) {
            // One that has closed its input takes the rest as `/dev/null` does.
            (Input::Stdin(bytes), Some(pipe)) => pipe.write_all(&bytes).await.is_ok(),
            (Input::StdinClosed(_), _) => false,
            _ => true,
        };
        if !goes_on {
            stdin = None;
        }
        outlet.taken().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_none_or_too_long_is_refused() {
        let refused = |command: &[&str]| {
            checked(Start {
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                ..Start::default()
            })
            .map_err(|failure| failure.code)
        };
        assert_eq!(refused(&[]), Err(ErrorCode::Usage));
        assert_eq!(refused(&["", "x"]), Err(ErrorCode::Usage));
        assert_eq!(refused(&["echo", &"x".repeat(MAX_WORDS)]), Err(ErrorCode::Usage));
        assert!(refused(&["echo", "x"]).is_ok());
    }
}
