//! What every call gets, whatever service it is for: a request id, a deadline, a log span, a count. Knows HTTP and
//! the descriptors; not who may call, nor what calls do.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::ServiceExt as _;
use tracing::Instrument as _;

use super::crowd::{Running, Seat};
use super::methods::{Method, Methods};
use super::metrics::Metrics;
use crate::problem::code_name;

/// How long a call may take whose caller names no deadline.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest deadline that a caller may name; a stream of the API may have none.
const LONGEST_DEADLINE: Duration = Duration::from_secs(3600);
/// How long the one message of a call may take to arrive.
const MESSAGE_TIME: Duration = Duration::from_secs(10);
/// Longest request id that is taken from a caller.
const ID_BYTES: usize = 64;
/// The header of request ids, both ways.
const ID_HEADER: &str = "x-request-id";

/// What names this call in logs and answers. In the extensions of the request.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// Takes calls from connections to the services.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) routes: Routes,
    pub(super) methods: Arc<Methods>,
    pub(super) metrics: Metrics,
}

impl Calls {
    /// Answers one call.
    pub(super) async fn answer(
        self,
        seat: Arc<Seat>,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        let method = self.methods.find(request.uri().path()).clone();
        let id = request_id(request.headers());
        let span = tracing::info_span!("call", id = &*id, method = method.path.as_str());
        let now = Instant::now();
        let deadline = deadline(request.headers(), &method).map(|deadline| deadline.map(|time| now + time));
        let message_by = method.asks_once.then(|| now + MESSAGE_TIME);
        let meter = Meter::start(self.metrics, method, now, seat.call());
        let request_id = HeaderValue::from_str(&id);
        let called = async {
            let deadline = deadline?;
            let mut request = request.map(|body| Question {
                body,
                by: message_by.map(|by| Box::pin(sleep_until(by))),
            });
            request.extensions_mut().insert(RequestId(id));
            let answer = self.routes.oneshot(request);
            let answer = match deadline {
                Some(deadline) => timeout_at(deadline, answer).await.map_err(|_| late())?,
                None => answer.await,
            };
            Ok((
                answer.map_err(|error| Status::internal(error.to_string()))?,
                deadline,
            ))
        };
        let (response, deadline) = match called.instrument(span.clone()).await {
            Ok(answered) => answered,
            Err(status) => (Status::into_http(status), None),
        };
        let mut response = response.map(|body| Answer {
            body: Some(body),
            by: deadline.map(|by| Box::pin(sleep_until(by))),
            meter,
            span,
        });
        let status = response.headers().get(Status::GRPC_STATUS).cloned();
        response.body_mut().meter.saw(status.as_ref());
        if let Ok(id) = request_id {
            response.headers_mut().insert(ID_HEADER, id);
        }
        Ok(response)
    }
}

fn late() -> Status {
    Status::deadline_exceeded("the call took longer than its deadline; what it changed, it may have changed")
}

/// The caller's own where it is short and plain, so that it can be found in both logs; else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let plain = |id: &&str| {
        (1..=ID_BYTES).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    match headers
        .get(ID_HEADER)
        .and_then(|id| id.to_str().ok())
        .filter(plain)
    {
        Some(id) => id.into(),
        None => new_id().into(),
    }
}

/// Different for every call of every run of the hub; no secret.
fn new_id() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static RUN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:08x}-{}", *RUN >> 32, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// How long a call may take; `None`: as long as both sides want.
fn deadline(headers: &HeaderMap, method: &Method) -> Result<Option<Duration>, Status> {
    match headers.get("grpc-timeout") {
        None => Ok((!method.endless).then_some(DEADLINE)),
        Some(text) => match text.to_str().ok().and_then(timeout) {
            Some(timeout) => Ok(Some(timeout.min(LONGEST_DEADLINE))),
            None => Err(Status::invalid_argument(
                "grpc-timeout is not up to eight digits and one of H, M, S, m, u, n",
            )),
        },
    }
}

/// Reads `100m` as the protocol of gRPC over HTTP/2 has it: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Counts a call once, however it ends.
#[derive(Debug)]
struct Meter {
    metrics: Metrics,
    method: Method,
    began: Instant,
    /// What its end was said to be.
    code: Option<Code>,
    /// The connection is not idle while this lives.
    _running: Running,
}

impl Meter {
    fn start(metrics: Metrics, method: Method, began: Instant, running: Running) -> Self {
        metrics.call_began();
        Meter {
            metrics,
            method,
            began,
            code: None,
            _running: running,
        }
    }

    fn saw(&mut self, status: Option<&HeaderValue>) {
        if let Some(status) = status {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Without an end the caller went away, or was cut off.
        let (code, took) = (self.code.unwrap_or(Code::Cancelled), self.began.elapsed());
        self.metrics.call_ended(&self.method, code, took);
        tracing::debug!(
            method = self.method.path.as_str(),
            code = code_name(code),
            ms = took.as_secs_f64() * 1e3,
            "call ended"
        );
    }
}

/// A request whose one message has to arrive in time.
struct Question {
    body: Incoming,
    by: Option<Pin<Box<Sleep>>>,
}

impl Body for Question {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| Status::from_error(Box::new(error)))),
            );
        }
        let Some(by) = &mut self.by else {
            return Poll::Pending;
        };
        ready!(by.as_mut().poll(cx));
        let text = format!("the message did not arrive within {} s", MESSAGE_TIME.as_secs());
        Poll::Ready(Some(Err(Status::deadline_exceeded(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer that ends at its deadline, and is counted at its end.
pub(super) struct Answer {
    body: Option<tonic::body::Body>,
    by: Option<Pin<Box<Sleep>>>,
    meter: Meter,
    span: tracing::Span,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let _entered = this.span.enter();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            let trailers = match &frame {
                Some(Ok(frame)) => frame.trailers_ref(),
                _ => None,
            };
            this.meter
                .saw(trailers.and_then(|trailers| trailers.get(Status::GRPC_STATUS)));
            return Poll::Ready(frame);
        }
        let Some(by) = &mut this.by else {
            return Poll::Pending;
        };
        ready!(by.as_mut().poll(cx));
        this.body = None;
        this.meter.code = Some(Code::DeadlineExceeded);
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(
            late()
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        assert_eq!(timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("0n"), Some(Duration::ZERO));
        for wrong in ["", "m", "1", "+1S", "-1S", "1 S", "123456789S", "1s", "1é", "é"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_request_id_is_the_callers_where_it_is_plain() {
        let id = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ID_HEADER, HeaderValue::from_static(text));
            request_id(&headers)
        };
        assert_eq!(&*id("build-7_a.b"), "build-7_a.b");
        for wrong in [
            "",
            "a b",
            "a\"b",
            "0123456789012345678901234567890123456789012345678901234567890123456789",
        ] {
            assert_ne!(&*id(wrong), wrong);
        }
        assert_ne!(new_id(), new_id());
    }
}
