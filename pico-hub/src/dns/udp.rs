//! Datagrams. Each is answered where it is read: an answer takes a few microseconds and waits for nothing.

use std::io;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::service::Service;

/// Longest question that is read: a name of 255 bytes, and EDNS options as long as they come.
const QUESTION_BYTES: usize = 4_096;
/// Read in a row before other tasks have their turn: an agent's message waits for three of them, and each may wait for this.
const BATCH: usize = 4;
/// Tasks per socket at most: more would wait for each other in the kernel.
const TASKS: usize = 4;

/// How many tasks serve one socket.
pub(super) fn tasks() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(TASKS))
}

/// Answers datagrams until it is told to stop. Several tasks may share a socket.
pub(super) async fn serve(socket: Arc<UdpSocket>, service: Arc<Service>, stop: CancellationToken) {
    let mut question = [0; QUESTION_BYTES];
    loop {
        let readable = tokio::select! {
            () = stop.cancelled() => return,
            readable = socket.readable() => readable,
        };
        if let Err(error) = readable.and_then(|()| answer_some(&socket, &service, &mut question)) {
            // An ICMP error of an earlier answer: the socket is as good as before.
            tracing::debug!(%error, "reading a DNS question failed");
        }
        // Where both workers have come to one processor, the one that has an agent's message half sent would wait for the
        // scheduler's tick: up to 4 ms. With nobody else there this costs 0.3 us.
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
}

fn answer_some(socket: &UdpSocket, service: &Service, question: &mut [u8]) -> io::Result<()> {
    for _ in 0..BATCH {
        let (length, client) = match socket.try_recv_from(question) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            received => received?,
        };
        let Some(reply) = service.datagram(&question[..length], client) else {
            continue;
        };
        if let Err(error) = socket.try_send_to(&reply.bytes, client) {
            tracing::debug!(%client, %error, "a DNS answer was not sent");
            service.count(|counts| &counts.unsent);
        }
        if service.answered(&reply) {
            // The agent's message has its turn before more questions.
            return Ok(());
        }
    }
    Ok(())
}
