//! One client connection of the proxy: requests one after another, each on a store connection of its own.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::http::{Body, Head, each_piece};
use super::{Fault, Request, Shared, lock};

/// Whether the connection goes on after a request.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Close,
}

/// Serves a client until it, or a fault, ends the connection.
///
/// # Errors
/// When client or store go away in the middle of a request.
pub fn serve(client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut from = BufReader::with_capacity(64 * 1024, client.try_clone()?);
    while let Some(head) = Head::read(&mut from)? {
        let start = Instant::now();
        let (method, target) = head.request_line();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request {
            at: start.duration_since(shared.started),
            took: start.elapsed(),
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            range: head.header("range").map(str::to_owned),
            status: 0,
            sent: 0,
            received: 0,
            fault: shared.fault(method, path),
        };
        shared.in_flight.fetch_add(1, Ordering::SeqCst);
        let next = Exchange {
            client: &client,
            shared,
            start,
        }
        .run(&head, &mut from, &mut request);
        request.took = start.elapsed();
        lock(&shared.log).push(request);
        shared.in_flight.fetch_sub(1, Ordering::SeqCst);
        if next? == Next::Close {
            break;
        }
    }
    Ok(())
}

/// One request on its way.
struct Exchange<'a> {
    client: &'a TcpStream,
    shared: &'a Shared,
    start: Instant,
}

impl Exchange<'_> {
    fn run(&self, head: &Head, from: &mut BufReader<TcpStream>, request: &mut Request) -> io::Result<Next> {
        match request.fault {
            Some(Fault::Reset) => {
                reset(self.client);
                return Ok(Next::Close);
            }
            Some(Fault::Hang) => {
                self.shared.hang();
                return Ok(Next::Close);
            }
            Some(Fault::Status(status)) => {
                // A client that waits for "100 Continue" has not sent its body.
                let waits = head.header("expect").is_some();
                if !waits {
                    each_piece(head.request_body()?, from, |piece| {
                        request.sent += piece.len() as u64;
                        Ok(())
                    })?;
                }
                self.wait();
                request.status = status;
                self.answer(status, head.request_line().0)?;
                return Ok(if waits { Next::Close } else { Next::Go });
            }
            Some(Fault::Truncate(_) | Fault::FlipBit(_) | Fault::Unanswered) | None => {}
        }
        let mut store = TcpStream::connect(&self.shared.store)?;
        store.set_nodelay(true)?;
        let mut replies = BufReader::with_capacity(64 * 1024, store.try_clone()?);
        store.write_all(&head.raw)?;
        let mut reply = None;
        if head.header("expect").is_some() {
            let first = self.reply_head(&mut replies)?;
            if first.status() == 100 {
                (&mut &*self.client).write_all(&first.raw)?;
            } else {
                reply = Some(first);
            }
        }
        // Without "continue" the client keeps its body, and the connection cannot be used again.
        let kept = reply.is_some();
        if !kept {
            // The store may answer before it has read all and go away: its answer counts.
            let _ = each_piece(head.request_body()?, from, |piece| {
                self.shared.to_store.take(piece.len());
                request.sent += piece.len() as u64;
                store.write_all(piece)
            });
        }
        let reply = match reply {
            Some(reply) => reply,
            None => self.reply_head(&mut replies)?,
        };
        self.wait();
        if request.fault == Some(Fault::Unanswered) {
            self.shared.hang();
            return Ok(Next::Close);
        }
        request.status = reply.status();
        let body = reply.response_body(head.request_line().0)?;
        let ended = self.pass_body(&reply, body, &mut replies, request)?;
        let close =
            kept || ended == Next::Close || reply.closes() || head.closes() || body == Body::UntilClose;
        Ok(if close { Next::Close } else { Next::Go })
    }

    fn reply_head(&self, replies: &mut BufReader<TcpStream>) -> io::Result<Head> {
        Head::read(replies)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The reply to the client, with what the fault does to it.
    fn pass_body(
        &self,
        reply: &Head,
        body: Body,
        replies: &mut BufReader<TcpStream>,
        request: &mut Request,
    ) -> io::Result<Next> {
        let mut client = self.client;
        client.write_all(&reply.raw)?;
        let fault = request.fault;
        let passed = &mut request.received;
        let result = each_piece(body, replies, |piece| {
            let mut end = piece.len();
            match fault {
                Some(Fault::FlipBit(at)) => {
                    let index = at
                        .checked_sub(*passed)
                        .and_then(|index| usize::try_from(index).ok());
                    if let Some(byte) = index.and_then(|index| piece.get_mut(index)) {
                        *byte ^= 1;
                    }
                }
                Some(Fault::Truncate(at)) => {
                    end = end.min(usize::try_from(at.saturating_sub(*passed)).unwrap_or(end));
                }
                _ => {}
            }
            self.shared.to_client.take(end);
            client.write_all(&piece[..end])?;
            *passed += end as u64;
            if end < piece.len() {
                Err(io::ErrorKind::Interrupted.into())
            } else {
                Ok(())
            }
        });
        match result {
            // Our own mark, from above: the truncation.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                client.shutdown(std::net::Shutdown::Both)?;
                Ok(Next::Close)
            }
            other => other.map(|()| Next::Go),
        }
    }

    fn wait(&self) {
        std::thread::sleep(self.shared.delay().saturating_sub(self.start.elapsed()));
    }

    /// An error as S3 servers write it.
    fn answer(&self, status: u16, method: &str) -> io::Result<()> {
        let code = if status == 503 {
            "SlowDown"
        } else {
            "InternalError"
        };
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
             <Error><Code>{code}</Code><Message>injected by the shaping proxy</Message></Error>"
        );
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n"
        );
        let body = if method == "HEAD" { "" } else { &body };
        (&mut &*self.client).write_all(format!("{head}{body}").as_bytes())
    }
}

/// Makes the close that follows a reset.
fn reset(stream: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the kernel reads one `linger` of the size it is told, which lives across the call.
    unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            libc::socklen_t::try_from(size_of::<libc::linger>()).unwrap_or(0),
        );
    }
}
