//! What is remembered of an app and what others see of it: the wake record, failures, the view.

use std::fs;

use super::{App, View, now};
use crate::config::AppConfig;
use crate::control::protocol::{AppDetail, AppSummary, CheckpointView, ErrorCode, Failure, Policy};
use crate::lifecycle::policy::{self, AfterWake, Failures, Monotonic};
use crate::lifecycle::record::{Failure as RecordedFailure, Record};
use crate::lifecycle::state::{Event, State, Tier};
use crate::units::{Timestamp, Wait};

impl App {
    pub(in crate::lifecycle) fn state(&self) -> State {
        self.record.situation.state
    }

    /// Takes an event. One that cannot happen is a bug of the actor; it is logged and changes nothing.
    pub(in crate::lifecycle) fn apply(&mut self, event: Event, why: &str) {
        let (before, since, at) = (self.state(), self.record.situation.since, Timestamp::now());
        match self.record.situation.apply(event, why, at) {
            Ok(state) => {
                if before.asleep() {
                    self.host.metrics.was_asleep(at.since(since));
                }
                if state == State::SwappingOut {
                    self.timers.falls_asleep(at);
                }
                if state == State::Warm {
                    self.warm_since = now();
                }
                tracing::info!(app = self.config.name, %state, why, "state");
            }
            Err(error) => tracing::error!(app = self.config.name, %error, "impossible"),
        }
        self.publish();
    }

    /// Keeps the record. A disk that refuses is logged: what the app is does not change by it.
    pub(in crate::lifecycle) fn save(&mut self) {
        if let Err(error) = self.record.write(&self.paths.dir) {
            tracing::error!(app = self.config.name, %error, "cannot write the wake record");
        }
        self.publish();
    }

    /// Keeps on the disk that the app runs, before anybody else can know it.
    pub(in crate::lifecycle) fn will_be_hot(&self) {
        let mut record = self.record.clone();
        record.situation.state = State::Hot;
        if let Err(error) = record.write(&self.paths.dir) {
            tracing::error!(app = self.config.name, %error, "cannot write the wake record");
        }
    }

    pub(in crate::lifecycle) fn fail(&mut self, during: &str, reason: &str) {
        tracing::warn!(app = self.config.name, during, reason, "failed");
        self.host.metrics.failed(during);
        let at = Timestamp::now();
        self.record.last_failure = Some(RecordedFailure {
            at,
            during: during.to_owned(),
            reason: reason.to_owned(),
        });
    }

    pub(in crate::lifecycle) fn sleep_failed(&mut self) {
        let count = self.sleep_failures.count.saturating_add(1);
        self.sleep_failures = Failures {
            count,
            last: Some(now()),
        };
    }

    pub(in crate::lifecycle) fn sleep_succeeded(&mut self) {
        self.sleep_failures = Failures::default();
    }

    /// A wake failed that may succeed later.
    pub(in crate::lifecycle) fn back_off_wake(&mut self) {
        self.wake_failures = self.wake_failures.saturating_add(1);
        let since = self.waiting_since.unwrap_or_else(now);
        let after = policy::after_failed_wake(now(), since, self.wake_failures, self.config.hold_timeout);
        if after.refuse {
            self.waiting_since = None;
        }
        self.after_wake = Some(after);
    }

    /// What a wake that failed a moment ago led to.
    pub(in crate::lifecycle) fn after_wake(&self) -> Option<AfterWake> {
        self.after_wake
    }

    /// Whether it sleeps and a packet calls for it.
    pub(in crate::lifecycle) fn called(&self) -> bool {
        self.state().asleep() && self.host.gate.called(&self.config.name)
    }

    /// When those who wait for it are told that nobody is there, where a wake begins now.
    pub(in crate::lifecycle) fn begin_waiting(&mut self) -> Option<Monotonic> {
        let since = *self.waiting_since.get_or_insert_with(now);
        match self.config.hold_timeout {
            Wait::Never => None,
            Wait::After(patience) => Some(since.saturating_add(patience)),
        }
    }

    /// Whether it will be started again by itself.
    pub(in crate::lifecycle) fn restarts(&self) -> bool {
        self.restart_at.is_some()
    }

    pub(in crate::lifecycle) fn ran_again(&mut self) {
        self.wake_failures = 0;
        self.waiting_since = None;
        self.after_wake = None;
        self.restart_at = None;
        self.cold_now = false;
    }

    /// No automatic restart any more.
    pub(in crate::lifecycle) fn stay_down(&mut self) {
        self.restart_at = None;
        self.restarts = 0;
    }

    pub(in crate::lifecycle) fn wrong_state(&self, what: String) -> Failure {
        Failure::new(ErrorCode::WrongState, what)
    }

    /// Where the newest whole checkpoint lies.
    pub(in crate::lifecycle) fn checkpoint_tier(&self) -> Option<Tier> {
        let checkpoint = &self.record.checkpoint;
        match (checkpoint.local, checkpoint.stored) {
            (Some(_), _) => Some(Tier::Warm),
            (None, Some(_)) => Some(Tier::Cold),
            (None, None) => None,
        }
    }

    /// The app has begun anew: no checkpoint is its state any more. Its number and its place in the store stay.
    pub(in crate::lifecycle) fn forget_checkpoint(&mut self) {
        self.sources.close();
        let checkpoint = &mut self.record.checkpoint;
        checkpoint.local = None;
        checkpoint.stored = None;
        for dir in [
            self.paths.checkpoints(),
            self.paths.pages(),
            self.paths.transfers(),
        ] {
            let _ = fs::remove_dir_all(dir);
        }
    }

    pub(super) fn publish(&mut self) {
        let checkpoint = &self.record.checkpoint;
        let (pid, cgroup) = self
            .live
            .as_ref()
            .map_or((None, None), |live| (live.pid, Some(live.cgroup.clone())));
        let stats = self.live.as_ref().map(|live| live.stats);
        if let (Some(wake), Some(stats)) = (&mut self.record.last_wake, stats) {
            wake.faults = stats.faults;
            wake.pages_installed = stats.filled;
            wake.pages_ahead = stats.ahead;
        }
        let mut detail = first_detail(&self.config, &self.record);
        detail.next = self.next.clone();
        detail.summary.pid = pid.and_then(|pid| u32::try_from(pid).ok());
        detail.summary.checkpoint = self.checkpoint_tier().map(|_| CheckpointView {
            generation: checkpoint.generation,
            bytes: checkpoint.bytes,
            local: checkpoint.local == Some(checkpoint.generation),
            stored: checkpoint.stored == Some(checkpoint.generation),
            taken: checkpoint.taken,
        });
        let before = self.view.send_replace(View {
            detail,
            cgroup,
            connections: self.config.connections,
            sleeping_connections: self.sleeping_connections().count(),
            timers: self.timer_words(),
        });
        let looks = |detail: &AppDetail| {
            let summary = &detail.summary;
            let wake = detail.last_wake.as_ref().map(|wake| wake.at);
            let failure = detail.last_failure.as_ref().map(|failure| failure.at);
            (
                summary.since,
                summary.state.clone(),
                detail.counters,
                summary.checkpoint.clone(),
                wake,
                failure,
            )
        };
        if looks(&before.detail) != looks(&self.view.borrow().detail) {
            self.host.changes.mark(&self.config.name);
        }
    }
}

/// What is seen of an app that has no process.
pub(super) fn first_detail(config: &AppConfig, record: &Record) -> AppDetail {
    AppDetail {
        summary: AppSummary {
            name: config.name.clone(),
            state: record.situation.state.name().to_owned(),
            since: record.situation.since,
            reason: record.situation.reason.clone(),
            addresses: record.addresses,
            ports: config.ports.clone(),
            pid: None,
            memory_bytes: None,
            checkpoint: None,
        },
        next: String::new(),
        policy: Policy {
            idle: config.idle,
            cold_after: config.cold_after,
            restart: config.restart,
            after_crash: config.after_crash,
        },
        command: config.command.clone(),
        counters: record.counters,
        page_faults: 0,
        active_sets: record.active_sets.clone(),
        last_wake: record.last_wake.clone(),
        last_failure: record.last_failure.clone(),
        last_exit: record.last_exit,
        created: record.created,
    }
}

/// An app that sleeps, with a wake and a failure behind it.
#[cfg(test)]
pub(in crate::lifecycle) fn sample_detail() -> AppDetail {
    use crate::lifecycle::record::{Counters, Phase, Wake};
    let phase = |name: &str, ms| Phase {
        name: name.to_owned(),
        ms,
    };
    AppDetail {
        summary: AppSummary {
            name: "web".to_owned(),
            state: "warm".to_owned(),
            since: Timestamp::from_micros(0),
            reason: "idle".to_owned(),
            addresses: crate::addresses::Addresses {
                v4: [10, 77, 0, 10].into(),
                v6: [0xfd77, 0, 0, 0, 0, 0, 0, 10].into(),
            },
            ports: Vec::new(),
            pid: None,
            memory_bytes: None,
            checkpoint: None,
        },
        next: "cold in 5m".to_owned(),
        policy: Policy {
            idle: Wait::secs(10),
            cold_after: Wait::Never,
            restart: crate::config::Restart::OnFailure,
            after_crash: crate::config::AfterCrash::Checkpoint,
        },
        command: Vec::new(),
        counters: Counters::default(),
        page_faults: 0,
        active_sets: Vec::new(),
        last_wake: Some(Wake {
            at: Timestamp::from_micros(0),
            tier: Tier::Cold,
            trigger: "80/tcp".to_owned(),
            total_ms: 31.25,
            phases: vec![phase("fetch", 12.0), phase("restore", 9.04)],
            fetched_bytes: 1 << 20,
            s3_gets: 4,
            faults: 7,
            pages_installed: 6,
            pages_ahead: 0,
            prefetch: None,
        }),
        last_failure: Some(RecordedFailure {
            at: Timestamp::from_micros(60_000_000),
            during: "wake".to_owned(),
            reason: "the store was away".to_owned(),
        }),
        last_exit: None,
        created: Timestamp::from_micros(0),
    }
}
