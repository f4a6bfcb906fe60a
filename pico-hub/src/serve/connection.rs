//! One connection: TLS where there is TLS, then HTTP/2, for as long as it asks something now and then. Knows no
//! services.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::call::Calls;
use super::crowd::{Doing, Seat};
use super::metrics::Closed;

/// How long a new connection may take to have made its first call, TLS included.
const FIRST_CALL: Duration = Duration::from_secs(10);
/// How long a connection may be without a call.
const IDLE: Duration = Duration::from_secs(300);
/// The other side is asked whether it is there this often, and has this long to answer.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Calls at one time on one connection.
const CALLS: u32 = 128;
/// Bytes of all headers of a call.
const HEADERS: u32 = 16 << 10;
/// Bytes that may be on their way to one call, and to all of a connection.
const WINDOWS: (u32, u32) = (64 << 10, 1 << 20);
/// Bytes of answers that wait for a slow reader, for each call.
const SEND_BUFFER: usize = 64 << 10;

/// Both directions of a connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// Serves one connection to its end. With `tls`, what comes is encrypted.
pub(super) async fn serve(
    stream: Box<dyn Stream>,
    tls: Option<TlsAcceptor>,
    seat: Arc<Seat>,
    calls: Calls,
    stop: CancellationToken,
) {
    let metrics = calls.metrics.clone();
    match tls {
        None => http2(stream, seat, calls, stop).await,
        Some(acceptor) => tokio::select! {
            accepted = timeout(FIRST_CALL, acceptor.accept(stream)) => match accepted {
                Ok(Ok(stream)) => http2(Box::new(stream), seat, calls, stop).await,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a connection did not get through TLS");
                    metrics.closed(Closed::handshake);
                }
                Err(_) => metrics.closed(Closed::silent),
            },
            () = seat.taken() => {}
            () = stop.cancelled() => {}
        },
    }
}

async fn http2(stream: Box<dyn Stream>, seat: Arc<Seat>, calls: Calls, stop: CancellationToken) {
    let metrics = calls.metrics.clone();
    let place = Arc::clone(&seat);
    let service = service_fn(move |request| calls.clone().answer(Arc::clone(&place), request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_concurrent_streams(CALLS)
        .max_header_list_size(HEADERS)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    let result = loop {
        let wait = match patience(seat.doing(), Instant::now()) {
            Ok(wait) => wait,
            Err(reason) => {
                metrics.closed(reason);
                return;
            }
        };
        tokio::select! {
            result = connection.as_mut() => break result,
            () = seat.taken() => return,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(wait) => {}
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// How long to wait before looking again; or why the connection is to be closed.
fn patience(doing: Doing, now: Instant) -> Result<Duration, Closed> {
    match doing {
        Doing::Calls => Ok(FIRST_CALL),
        Doing::Nothing { since, asked } => {
            let (limit, reason) = if asked {
                (IDLE, Closed::idle)
            } else {
                (FIRST_CALL, Closed::silent)
            };
            let left = limit.checked_sub(now.saturating_duration_since(since));
            left.filter(|left| !left.is_zero()).ok_or(reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_borne_longer_from_who_has_asked_before() {
        let since = Instant::now();
        let after = |seconds, asked| {
            patience(
                Doing::Nothing { since, asked },
                since + Duration::from_secs(seconds),
            )
        };
        assert_eq!(after(4, false), Ok(Duration::from_secs(6)));
        assert_eq!(after(10, false), Err(Closed::silent));
        assert_eq!(after(10, true), Ok(Duration::from_secs(290)));
        assert_eq!(after(300, true), Err(Closed::idle));
        assert!(patience(Doing::Calls, since + Duration::from_secs(9000)).is_ok());
    }
}
