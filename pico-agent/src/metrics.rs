//! What the agent counts, and where Prometheus reads it. Labels are words of this file, states and rules: no app, address
//! or client is among them, so that there are as many series with one app as with a hundred thousand.
//!
//! Knows numbers only; what can be read at the moment of a scrape is handed in as [`Seen`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::activeset::WakeReport;

/// From 1 ms to 30 s.
const SECONDS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];
/// What wakes an app besides packets.
const TRIGGERS: [&str; 4] = ["owner", "dns", "exec", "timer"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Woken {
    trigger: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct During {
    code: String,
}

/// Pages of one port's wakes; an app publishes few.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pages {
    port: String,
    outcome: &'static str,
}

/// What is counted as it happens. Clones are the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    wakes: Family<Woken, Counter>,
    wake: Family<Of, Histogram>,
    checkpoint: Histogram,
    checkpoint_bytes: Family<Kind, Counter>,
    asleep: Counter<f64, AtomicU64>,
    prefetch: Family<Pages, Counter>,
    errors: Family<During, Counter>,
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            wakes: Family::default(),
            wake: Family::new_with_constructor(histogram),
            checkpoint: histogram(),
            checkpoint_bytes: Family::default(),
            asleep: Counter::default(),
            prefetch: Family::default(),
            errors: Family::default(),
        }
    }
}

/// What woke an app, as a label: ports are many, and all mean a packet.
fn trigger(words: &str) -> &'static str {
    TRIGGERS
        .into_iter()
        .find(|known| *known == words)
        .unwrap_or("packet")
}

impl Metrics {
    /// An app was woken; `phases` as in its record, in milliseconds.
    pub fn woken<'a>(&self, by: &str, phases: impl Iterator<Item = (&'a str, f64)>) {
        self.wake_ended(by, "ok");
        for (phase, ms) in phases {
            let of = Of {
                phase: phase.to_owned(),
            };
            self.wake.get_or_create(&of).observe(ms / 1000.0);
        }
    }

    /// An app could not be woken.
    pub fn not_woken(&self, by: &str) {
        self.wake_ended(by, "failed");
    }

    fn wake_ended(&self, by: &str, result: &'static str) {
        let woken = Woken {
            trigger: trigger(by),
            result,
        };
        self.wakes.get_or_create(&woken).inc();
    }

    /// An app was swapped out: how long that took, what was written, and whether that is all of it.
    pub fn slept(&self, took: Duration, bytes: u64, full: bool) {
        self.checkpoint.observe(took.as_secs_f64());
        let kind = if full { "full" } else { "delta" };
        self.checkpoint_bytes.get_or_create(&Kind { kind }).inc_by(bytes);
    }

    /// An app has slept for so long, and sleeps no more.
    pub fn was_asleep(&self, time: Duration) {
        self.asleep.inc_by(time.as_secs_f64());
    }

    /// What became of the pages that were brought ahead for a wake, and what they lacked (`missed`).
    pub fn prefetched(&self, report: &WakeReport) {
        let port = report
            .port
            .map_or_else(|| "none".to_owned(), |port| port.to_string());
        for (outcome, pages) in [
            ("used", report.used),
            ("late", report.late),
            ("unused", report.wasted),
            ("unknown", report.unknown),
            ("missed", report.faulted),
        ] {
            let port = port.clone();
            self.prefetch
                .get_or_create(&Pages { port, outcome })
                .inc_by(pages);
        }
    }

    /// Something went wrong while that was done: `wake`, `swap-out`.
    pub fn failed(&self, during: &str) {
        let code = format!("{}_FAILED", during.to_ascii_uppercase().replace('-', "_"));
        self.errors.get_or_create(&During { code }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("pico_wakes", "Wakes that have ended", self.wakes.clone());
        registry.register_with_unit(
            "pico_wake_duration",
            "Steps of wakes, and the whole of each (phase total)",
            Unit::Seconds,
            self.wake.clone(),
        );
        registry.register_with_unit(
            "pico_checkpoint_duration",
            "From the first held packet of a swap-out to its end",
            Unit::Seconds,
            self.checkpoint.clone(),
        );
        registry.register_with_unit(
            "pico_checkpoint",
            "Written by swap-outs",
            Unit::Bytes,
            self.checkpoint_bytes.clone(),
        );
        registry.register(
            "pico_prefetch_pages",
            "Pages brought ahead of wakes by what became of them, and those that were missed",
            self.prefetch.clone(),
        );
        registry.register("pico_errors", "What failed", self.errors.clone());
    }
}

/// What there is at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Apps in each state.
    pub states: BTreeMap<String, u64>,
    /// Packets at the gate.
    pub held: u64,
    /// Packets that found its queues full.
    pub dropped: u64,
    /// Packets that woke nothing, by rule.
    pub filtered: BTreeMap<String, u64>,
    /// Page faults that eBPF saw.
    pub page_faults: u64,
    /// Events of eBPF that were lost.
    pub events_lost: u64,
    /// How long the apps that sleep now have slept, together.
    pub asleep: Duration,
    /// Checkpoints in the store.
    pub stored_bytes: u64,
}

/// Tells what there is.
pub type See = Arc<dyn Fn() -> Seen + Send + Sync>;

struct AtScrape {
    see: See,
    metrics: Metrics,
}

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let seen = (self.see)();
        let label = |name: &'static str, value: &str| [(name, value.to_owned())];
        let states = ConstGauge::new(0_u64);
        let mut of_state =
            encoder.encode_descriptor("pico_app_state", "Apps in each state", None, states.metric_type())?;
        for (state, count) in &seen.states {
            ConstGauge::new(*count).encode(of_state.encode_family(&label("state", state))?)?;
        }
        let counter = ConstCounter::new(0_u64);
        let mut filtered = encoder.encode_descriptor(
            "pico_wake_filtered",
            "Packets that were answered or dropped without a wake",
            None,
            counter.metric_type(),
        )?;
        for (rule, count) in &seen.filtered {
            ConstCounter::new(*count).encode(filtered.encode_family(&label("rule", rule))?)?;
        }
        for (name, help, value) in [
            ("pico_held_packets", "Packets that wait at the gate", seen.held),
            (
                "pico_store_bytes",
                "Checkpoints in the object store",
                seen.stored_bytes,
            ),
        ] {
            let value = ConstGauge::new(value);
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)?;
        }
        for (name, help, value) in [
            (
                "pico_held_dropped",
                "Packets that found the gate full",
                seen.dropped,
            ),
            (
                "pico_page_faults",
                "Page faults of apps that eBPF saw",
                seen.page_faults,
            ),
            (
                "pico_bpf_events_lost",
                "Events of eBPF that were lost",
                seen.events_lost,
            ),
        ] {
            let value = ConstCounter::new(value);
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)?;
        }
        let asleep = ConstCounter::new(self.metrics.asleep.get() + seen.asleep.as_secs_f64());
        let unit = Some(&Unit::Seconds);
        asleep.encode(encoder.encode_descriptor(
            "pico_asleep",
            "Time that apps have slept, together",
            unit,
            asleep.metric_type(),
        )?)
    }
}

/// Listens where metrics are to be read.
///
/// # Errors
/// When that address cannot be had.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves all of it at `/metrics` until `stop`.
///
/// # Errors
/// The listener is broken.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    see: See,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    registry.register_collector(Box::new(AtScrape { see, metrics }));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told_under_names_that_stay_few() {
        let metrics = Metrics::default();
        for by in ["80/tcp", "53/udp", "packets that wait"] {
            metrics.woken(by, [("restore", 20.0), ("total", 40.0)].into_iter());
        }
        metrics.not_woken("owner");
        metrics.slept(Duration::from_millis(30), 4096, false);
        metrics.was_asleep(Duration::from_secs(5));
        metrics.failed("swap-out");
        for port in ["80/tcp".parse().ok(), None] {
            metrics.prefetched(&WakeReport {
                port,
                used: 9,
                wasted: 1,
                faulted: 3,
                ..WakeReport::default()
            });
        }
        let seen = || Seen {
            states: [("hot".to_owned(), 2)].into(),
            filtered: [("a port that is not published".to_owned(), 7)].into(),
            asleep: Duration::from_secs(2),
            ..Seen::default()
        };
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        registry.register_collector(Box::new(AtScrape {
            see: Arc::new(seen),
            metrics,
        }));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "pico_wakes_total{trigger=\"packet\",result=\"ok\"} 3",
            "pico_wakes_total{trigger=\"owner\",result=\"failed\"} 1",
            "pico_wake_duration_seconds_count{phase=\"restore\"} 3",
            "pico_checkpoint_bytes_total{kind=\"delta\"} 4096",
            "pico_errors_total{code=\"SWAP_OUT_FAILED\"} 1",
            "pico_prefetch_pages_total{port=\"80/tcp\",outcome=\"used\"} 9",
            "pico_prefetch_pages_total{port=\"none\",outcome=\"missed\"} 3",
            "pico_app_state{state=\"hot\"} 2",
            "pico_wake_filtered_total{rule=\"a port that is not published\"} 7",
            "pico_asleep_seconds_total 7.0",
            "pico_held_dropped_total 0",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
    }
}
