//! `pico app exec`: standard input to the command, its output back, its exit status on.

use std::io::{self, Read as _};

use pico_proto::v1;
use pico_proto::v1::app_service_client::AppServiceClient;
use pico_proto::v1::exec_request::{Kind, Start};
use pico_proto::v1::exec_response;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::connect::Hub;
use super::exit::Exit;
use super::failure::{Failure, Result};
use super::output::write_out;

/// Of standard input, read at a time.
const CHUNK: usize = 32 << 10;
/// Chunks that may wait for the hub.
const QUEUE: usize = 4;

pub(super) async fn run(client: &mut AppServiceClient<Hub>, start: Start) -> Result<Exit> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let first = v1::ExecRequest {
        kind: Some(Kind::Start(start)),
    };
    // There is room: nothing was sent before.
    let _ = sender.try_send(first);
    // A thread, because reading standard input cannot be called off; it ends with the process.
    std::thread::spawn(move || feed(&sender));
    let mut output = client.exec(ReceiverStream::new(receiver)).await?.into_inner();
    while let Some(message) = output.message().await? {
        match message.kind {
            Some(exec_response::Kind::Stdout(bytes)) => write_out(&mut io::stdout().lock(), &bytes)?,
            Some(exec_response::Kind::Stderr(bytes)) => write_out(&mut io::stderr().lock(), &bytes)?,
            // As a shell has it; what does not fit is a failure.
            Some(exec_response::Kind::ExitStatus(status)) => {
                return Ok(u8::try_from(status).map_or(Exit::FAILURE, Exit));
            }
            None => {}
        }
    }
    let told = "the connection ended before the command did";
    Err(Failure::new("CUT_OFF", Exit::UNREACHABLE, told))
}

fn feed(sender: &mpsc::Sender<v1::ExecRequest>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let kind = match io::stdin().lock().read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => Kind::StdinClosed(true),
            Ok(length) => Kind::Stdin(chunk[..length].to_vec()),
        };
        let last = matches!(kind, Kind::StdinClosed(_));
        let sent = sender.blocking_send(v1::ExecRequest { kind: Some(kind) });
        if last || sent.is_err() {
            return;
        }
    }
}
