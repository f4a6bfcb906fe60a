//! Why an app is awake or asleep, in words for its owner. Pure: facts in, words out.

use std::time::Duration;

use crate::config::ConnectionPolicy;
use crate::control::protocol::{AppDetail, Explanation, Fact};
use crate::gate::HoldCounts;
use crate::lifecycle::record::{PortSet, Wake};
use crate::probes::PortActivity;
use crate::units::{Timestamp, format_bytes, format_duration};

/// What is known of an app at one moment.
#[derive(Debug, Clone)]
pub struct Known {
    /// By the clock of [`Timestamp`].
    pub at: Timestamp,
    /// By the clock of [`PortActivity`].
    pub now: Duration,
    /// As `app show` has it.
    pub detail: AppDetail,
    /// What eBPF saw on its ports.
    pub activity: Vec<PortActivity>,
    /// Its connections: open ones while it runs, else those that sleep with it. `None`: they cannot be seen.
    pub connections: Option<usize>,
    /// What its owner wants of them.
    pub policy: ConnectionPolicy,
    /// What is known of its timers, in words.
    pub timers: Vec<String>,
    /// What the gate counted.
    pub counts: HoldCounts,
    /// Packets at the gate now.
    pub held: usize,
}

/// Puts it into words, in the order in which they should be read.
pub fn explain(known: &Known) -> Explanation {
    let mut facts = Vec::new();
    let mut fact = |subject: &str, text: String| {
        facts.push(Fact {
            subject: subject.to_owned(),
            text,
        });
    };
    fact("last packet", last_packet(known));
    let mut ports: Vec<&PortActivity> = known.activity.iter().filter(|port| port.packets > 0).collect();
    ports.sort_by_key(|port| std::cmp::Reverse(port.last_ns));
    for port in ports {
        fact("packets", port_words(port, known.now));
    }
    fact("connections", connections(known));
    for timers in &known.timers {
        fact("timers", timers.clone());
    }
    let counts = &known.counts;
    fact(
        "gate",
        format!(
            "{} now; {} held so far, {} dropped because there were too many, {} given up",
            packets(known.held as u64),
            counts.held,
            counts.overflowed,
            counts.refused
        ),
    );
    for (rule, count) in &counts.filtered {
        fact("answered without a wake", format!("{}: {rule}", packets(*count)));
    }
    if let Some(wake) = &known.detail.last_wake {
        fact("last wake", last_wake(wake, known.at));
        for phase in &wake.phases {
            fact("last wake took", format!("{:.1} ms for {}", phase.ms, phase.name));
        }
    }
    for set in known.detail.active_sets.iter().filter(|set| set.wakes > 0) {
        fact("brought ahead", brought_ahead(set));
    }
    if let Some(failure) = &known.detail.last_failure {
        let ago = ago(known.at.since(failure.at));
        fact(
            "last failure",
            format!("{}, {ago}: {}", failure.during, failure.reason),
        );
    }
    Explanation {
        app: known.detail.summary.clone(),
        next: known.detail.next.clone(),
        facts,
    }
}

fn last_packet(known: &Known) -> String {
    let last = known
        .activity
        .iter()
        .filter(|port| port.packets > 0)
        .max_by_key(|port| port.last_ns);
    match last {
        Some(port) => format!("at {}, {}", name(port), ago(since(port, known.now))),
        None => "none since the agent began to look".to_owned(),
    }
}

fn name(port: &PortActivity) -> String {
    match port.port {
        0 => format!("a port that is not published ({})", port.proto),
        number => format!("{number}/{}", port.proto),
    }
}

fn since(port: &PortActivity, now: Duration) -> Duration {
    now.saturating_sub(Duration::from_nanos(port.last_ns))
}

fn port_words(port: &PortActivity, now: Duration) -> String {
    let version = if port.local_v6 { "IPv6" } else { "IPv4" };
    format!(
        "{} over {version}: {} and {} so far, the last {}",
        name(port),
        packets(port.packets),
        format_bytes(port.bytes),
        ago(since(port, now))
    )
}

fn connections(known: &Known) -> String {
    let count = match known.connections {
        None => return "they cannot be seen".to_owned(),
        Some(0) => return "none".to_owned(),
        Some(1) => "1 is".to_owned(),
        Some(count) => format!("{count} are"),
    };
    let awake = known.detail.summary.pid.is_some();
    match (known.policy, awake) {
        (ConnectionPolicy::StayAwake, true) => {
            format!("{count} open, and keep it awake (connections = \"stay-awake\")")
        }
        (ConnectionPolicy::Keep, true) => {
            format!("{count} open; silent ones let it sleep, and sleep with it")
        }
        (ConnectionPolicy::Close, true) => {
            format!("{count} open; they are reset when it sleeps (connections = \"close\")")
        }
        (_, false) => format!("{count} kept; what comes on them wakes it, keepalives are answered"),
    }
}

fn last_wake(wake: &Wake, at: Timestamp) -> String {
    let fetched = match wake.s3_gets {
        0 => "nothing fetched".to_owned(),
        gets => format!("{} fetched in {gets} GETs", format_bytes(wake.fetched_bytes)),
    };
    format!(
        "{}, from {}, by {}: {:.1} ms until its packets got through, {fetched}, {} pages installed since",
        ago(at.since(wake.at)),
        wake.tier,
        wake.trigger,
        wake.total_ms,
        wake.pages_installed
    )
}

/// How well the pages that its wakes need were predicted.
fn brought_ahead(set: &PortSet) -> String {
    let port = set
        .port
        .map_or_else(|| "no port".to_owned(), |port| port.to_string());
    let share =
        |part: Option<f64>| part.map_or_else(|| "-".to_owned(), |part| format!("{:.0} %", part * 100.0));
    let last = match &set.last {
        Some(last) => format!(
            "; the last: {} of {} pages used, {} missed",
            last.used + last.late,
            last.prefetched,
            last.faulted
        ),
        None => String::new(),
    };
    format!(
        "for {port}: {} of what {} needed, and {} of it was needed{last}",
        share(set.recall),
        match set.wakes {
            1 => "1 wake".to_owned(),
            wakes => format!("{wakes} wakes"),
        },
        share(set.precision)
    )
}

fn packets(count: u64) -> String {
    match count {
        0 => "no packet".to_owned(),
        1 => "1 packet".to_owned(),
        count => format!("{count} packets"),
    }
}

/// Whole seconds from a second on.
fn ago(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    format!(
        "{} ago",
        format_duration(if whole.is_zero() { time } else { whole })
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activeset::WakeReport;
    use crate::lifecycle::app::sample_detail;
    use crate::port::Proto;

    fn known() -> Known {
        Known {
            at: Timestamp::from_micros(100_000_000),
            now: Duration::from_secs(50),
            detail: sample_detail(),
            activity: vec![
                PortActivity {
                    port: 80,
                    proto: Proto::Tcp,
                    local_v6: false,
                    last_ns: 47_000_000_000,
                    packets: 12,
                    bytes: 3000,
                },
                PortActivity {
                    port: 0,
                    proto: Proto::Udp,
                    local_v6: true,
                    last_ns: 10_000_000_000,
                    packets: 1,
                    bytes: 60,
                },
            ],
            connections: Some(2),
            policy: ConnectionPolicy::Keep,
            timers: vec!["none".to_owned()],
            counts: HoldCounts {
                held: 3,
                filtered: [("deny 192.0.2.0/24".to_owned(), 7)].into(),
                ..HoldCounts::default()
            },
            held: 0,
        }
    }

    fn texts(known: &Known, subject: &str) -> Vec<String> {
        let explained = explain(known);
        let facts = explained.facts.into_iter().filter(|fact| fact.subject == subject);
        facts.map(|fact| fact.text).collect()
    }

    #[test]
    fn the_last_packet_is_named_with_its_port_and_the_others_are_counted() {
        assert_eq!(texts(&known(), "last packet"), ["at 80/tcp, 3s ago"]);
        let packets = texts(&known(), "packets");
        assert!(
            packets[0].starts_with("80/tcp over IPv4: 12 packets"),
            "{packets:?}"
        );
        assert!(
            packets[1].contains("not published (udp) over IPv6: 1 packet "),
            "{packets:?}"
        );
        let silent = Known {
            activity: Vec::new(),
            ..known()
        };
        assert!(texts(&silent, "last packet")[0].starts_with("none"));
    }

    #[test]
    fn what_was_brought_ahead_is_told_of_each_port_that_woke_it() {
        let mut known = known();
        let set = |port, wakes| PortSet {
            port,
            windows: 9,
            pages: 40,
            relearning: false,
            wakes,
            recall: Some(0.975),
            precision: None,
            last: Some(WakeReport {
                port,
                prefetched: 40,
                used: 37,
                late: 1,
                wasted: 2,
                faulted: 5,
                ..WakeReport::default()
            }),
        };
        known.detail.active_sets = vec![set("80/tcp".parse().ok(), 3), set(None, 0)];
        assert_eq!(
            texts(&known, "brought ahead"),
            [
                "for 80/tcp: 98 % of what 3 wakes needed, and - of it was needed; the last: 38 of 40 pages used, 5 missed"
            ]
        );
    }

    #[test]
    fn connections_are_told_with_what_they_do_to_its_sleep() {
        let of = |policy, awake: bool| {
            let mut known = Known { policy, ..known() };
            known.detail.summary.pid = awake.then_some(1);
            texts(&known, "connections").remove(0)
        };
        assert!(of(ConnectionPolicy::StayAwake, true).contains("keep it awake"));
        assert!(of(ConnectionPolicy::Keep, true).contains("sleep with it"));
        assert!(of(ConnectionPolicy::Close, true).contains("reset"));
        assert!(of(ConnectionPolicy::Keep, false).starts_with("2 are kept"));
    }

    #[test]
    fn what_woke_nobody_is_counted_by_rule_and_the_wake_is_told_phase_by_phase() {
        assert_eq!(
            texts(&known(), "answered without a wake"),
            ["7 packets: deny 192.0.2.0/24"]
        );
        let wake = texts(&known(), "last wake").remove(0);
        assert!(
            wake.contains("from cold, by 80/tcp: 31.2 ms") && wake.contains("in 4 GETs"),
            "{wake}"
        );
        assert_eq!(
            texts(&known(), "last wake took"),
            ["12.0 ms for fetch", "9.0 ms for restore"]
        );
        assert_eq!(
            texts(&known(), "last failure"),
            ["wake, 40s ago: the store was away"]
        );
    }
}
