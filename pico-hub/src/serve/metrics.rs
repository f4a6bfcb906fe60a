//! What the hub counts, and where Prometheus reads it. Labels are calls of the descriptors, codes of gRPC and words
//! of this file: no name, address or token of anybody is among them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::methods::Method;
use crate::dns::Counts;
use crate::hub::Hub;
use crate::problem::code_name;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: Arc<String>,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    method: Arc<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorCode {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: Closed,
}

/// Why the hub closed or refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the labels")]
pub(super) enum Closed {
    /// Its place went to another.
    evicted,
    /// All places were busy.
    refused,
    /// It asked nothing in time.
    silent,
    /// It had no call for long.
    idle,
    /// It did not get through TLS.
    handshake,
}

/// Everything that is counted of calls and connections.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    calls: Family<Call, Counter>,
    errors: Family<ErrorCode, Counter>,
    duration: Family<Of, Histogram>,
    running: Gauge,
    connections: Gauge,
    closed: Family<Why, Counter>,
}

/// From 1 ms to 30 s.
const SECONDS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// None counted yet, all of them known to `registry`.
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Metrics {
            calls: Family::default(),
            errors: Family::default(),
            duration: Family::new_with_constructor(histogram),
            running: Gauge::default(),
            connections: Gauge::default(),
            closed: Family::default(),
        };
        registry.register("pico_hub_calls", "Calls that have ended", metrics.calls.clone());
        registry.register(
            "pico_errors",
            "Calls that ended with an error",
            metrics.errors.clone(),
        );
        registry.register_with_unit(
            "pico_hub_call_duration",
            "From the head of a call to the end of its answer",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "pico_hub_calls_running",
            "Calls that run now",
            metrics.running.clone(),
        );
        registry.register(
            "pico_hub_connections",
            "Connections to the API now",
            metrics.connections.clone(),
        );
        registry.register(
            "pico_hub_connections_closed",
            "Connections that the hub closed or refused",
            metrics.closed.clone(),
        );
        metrics
    }

    pub(super) fn call_began(&self) {
        self.running.inc();
    }

    pub(super) fn call_ended(&self, method: &Method, code: Code, took: Duration) {
        self.running.dec();
        let (method, code) = (Arc::clone(&method.path), code_name(code));
        if code != code_name(Code::Ok) {
            self.errors.get_or_create(&ErrorCode { code }).inc();
        }
        let of = Of {
            method: Arc::clone(&method),
        };
        self.duration.get_or_create(&of).observe(took.as_secs_f64());
        self.calls.get_or_create(&Call { method, code }).inc();
    }

    pub(super) fn connections(&self, now: usize) {
        self.connections.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    pub(super) fn closed(&self, reason: Closed) {
        self.closed.get_or_create(&Why { reason }).inc();
    }
}

/// What is read when Prometheus asks: what there is at the hub, and what the name server has counted.
pub(super) struct AtScrape {
    /// The hub.
    pub(super) hub: Arc<Hub>,
    /// Of its name server, if it has one.
    pub(super) dns: Option<Arc<Counts>>,
}

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = |value: usize| ConstGauge::new(u64::try_from(value).unwrap_or(u64::MAX));
        let agents = gauge(self.hub.attached());
        agents.encode(encoder.encode_descriptor(
            "pico_hub_agents",
            "Agents that are attached",
            None,
            agents.metric_type(),
        )?)?;
        let kind = ConstGauge::new(0_u64).metric_type();
        let mut states =
            encoder.encode_descriptor("pico_app_state", "Apps in each state, as last heard", None, kind)?;
        for (state, count) in self.hub.states() {
            let state = state.as_str_name().trim_start_matches("APP_STATE_");
            let label = [("state", state.to_ascii_lowercase().replace('_', "-"))];
            ConstGauge::new(count).encode(states.encode_family(&label)?)?;
        }
        let Some(dns) = &self.dns else { return Ok(()) };
        let kind = ConstCounter::new(0_u64).metric_type();
        let read = |count: &AtomicU64| ConstCounter::new(count.load(Ordering::Relaxed));
        let mut answers =
            encoder.encode_descriptor("pico_dns_queries", "Queries by what became of them", None, kind)?;
        for (result, count) in [
            ("noerror", &dns.no_error),
            ("nxdomain", &dns.nx_domain),
            ("refused", &dns.refused),
            ("malformed", &dns.malformed),
            ("slipped", &dns.slipped),
            ("dropped", &dns.dropped),
            ("unsent", &dns.unsent),
            ("turned-away", &dns.turned_away),
        ] {
            read(count).encode(answers.encode_family(&[("result", result)])?)?;
        }
        let told = read(&dns.told);
        told.encode(encoder.encode_descriptor(
            "pico_dns_told",
            "How often an agent was told that a client is near",
            None,
            told.metric_type(),
        )?)
    }
}

/// Serves what is registered at `/metrics` until `stop`.
///
/// # Errors
/// The listener is broken.
pub(super) async fn serve(
    listener: TcpListener,
    registry: Registry,
    stop: CancellationToken,
) -> io::Result<()> {
    let registry = Arc::new(registry);
    let answer = move || {
        let registry = Arc::clone(&registry);
        async move {
            let mut text = String::new();
            // Writing into a string cannot fail.
            let _ = encode(&mut text, &registry);
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text)
        }
    };
    axum::serve(listener, Router::new().route("/metrics", get(answer)))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}
