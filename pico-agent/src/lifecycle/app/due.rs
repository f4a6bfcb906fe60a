//! What is due by the clock: sleep, going cold, starting again. Asks [`policy`] with what can be seen, and does it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{App, now};
use crate::clocks;
use crate::lifecycle::policy::{
    self, AfterExit, Coldness, CpuWindow, Decision, Failures, Idleness, Monotonic,
};
use crate::lifecycle::record::ExitStatus;
use crate::lifecycle::state::State;
use crate::lifecycle::timers;
use crate::sandbox::undumpable;
use crate::units::{Timestamp, Wait};

impl App {
    /// Does what is due, and says when to look again.
    pub(super) async fn decide(&mut self) -> Option<Monotonic> {
        loop {
            let now = now();
            if self.after_wake.is_some_and(|after| after.retry_at <= now) {
                self.after_wake = None;
                if self.called() {
                    // What went wrong stands in the record.
                    let _ = self.wake("packets that wait").await;
                    continue;
                }
            }
            let timer = self.timer();
            if timer.as_ref().is_some_and(|timer| timer.due) && self.after_wake.is_none() {
                // What went wrong stands in the record, and is tried again.
                let _ = self.wake("timer").await;
                continue;
            }
            let learns = self.learn_when_due(now).await;
            let stays_hot = self.look(now).await;
            let decision = match self.state() {
                State::Hot => self.sleep_decision(now),
                State::Warm => self.cold_decision(now),
                State::Stopped | State::Failed { .. } => match self.restart_at {
                    Some(at) if at <= now => Decision::Now {
                        why: "started again".to_owned(),
                    },
                    Some(at) => Decision::Wait {
                        until: Some(at),
                        why: self.record.situation.reason.clone(),
                    },
                    None => Decision::Wait {
                        until: None,
                        why: String::new(),
                    },
                },
                _ => Decision::Wait {
                    until: None,
                    why: String::new(),
                },
            };
            match decision {
                Decision::Wait { until, why } => {
                    let look = self.stays_hot.as_ref().map(|(at, _)| *at + policy::LOOK_EVERY);
                    self.next = stays_hot.unwrap_or(why);
                    let mut timer_look = None;
                    if let Some(timer) = timer.filter(|timer| !timer.due) {
                        self.next = said_with(&self.next, &timer);
                        timer_look = Some(now + timer.look_in);
                    }
                    self.stand_by().await;
                    let retry = self.after_wake.map(|after| after.retry_at);
                    return [until, look, retry, learns, timer_look]
                        .into_iter()
                        .flatten()
                        .min();
                }
                Decision::Now { why } => match self.state() {
                    State::Hot => drop(self.sleep(&why).await),
                    State::Warm => drop(self.go_cold(&why).await),
                    _ => {
                        self.restart_at = None;
                        if self.start(&why).await.is_err() {
                            self.retry_start();
                        }
                    }
                },
            }
        }
    }

    /// What is known of its timers, for its owner.
    pub(super) fn timer_words(&self) -> Vec<String> {
        let sleep = self.state().asleep().then_some(&self.record.checkpoint.sleep);
        timers::explain(self.config.timers, &self.config.wake.at, sleep)
    }

    /// What it is due by while it sleeps.
    fn timer(&mut self) -> Option<timers::Next> {
        if !self.state().asleep() || self.going_down {
            return None;
        }
        let due = timers::Due {
            policy: self.config.timers,
            lines: &self.config.wake.at,
            sleep: &self.record.checkpoint.sleep,
            since: self.record.situation.since,
        };
        match clocks::read() {
            Ok(clocks) => self.timers.next(&due, Timestamp::now(), &clocks),
            Err(error) => {
                tracing::warn!(app = self.config.name, %error, "cannot read the clocks: no timer wakes it");
                None
            }
        }
    }

    /// Looks at a hot app now and then for what no checkpoint can hold, so that its owner hears of it before it is to sleep.
    async fn look(&mut self, now: Monotonic) -> Option<String> {
        if self.state() != State::Hot {
            self.stays_hot = None;
            return None;
        }
        match &self.stays_hot {
            Some((at, found)) if now < *at + policy::LOOK_EVERY => found.clone(),
            _ => self.undumpable().await,
        }
    }

    /// Why the app as it is now cannot be put to sleep, and what helps.
    pub(in crate::lifecycle) async fn undumpable(&mut self) -> Option<String> {
        let processes = self.live.as_ref()?.cgroup.procs().ok()?;
        let looked = tokio::task::spawn_blocking(move || undumpable::find(&processes));
        let found = looked.await.ok().flatten().map(|(process, found)| {
            format!(
                "it stays hot: process {process} has {found}, which no checkpoint can hold; try: {}",
                found.remedy()
            )
        });
        self.stays_hot = Some((now(), found.clone()));
        found
    }

    pub(in crate::lifecycle) fn retry_start(&mut self) {
        let exit = ExitStatus::Code(1);
        if let AfterExit::Restart { after, attempt, .. } =
            policy::restart_decision(self.config.restart, exit, Duration::ZERO, self.restarts)
        {
            self.restart_at = Some(now() + after);
            self.restarts = attempt;
        }
    }

    fn sleep_decision(&mut self, now: Monotonic) -> Decision {
        let addresses = self.record.addresses;
        let activity = self
            .host
            .probes
            .activity(addresses.v4, addresses.v6)
            .unwrap_or_default();
        let last = activity.iter().max_by_key(|port| port.last_ns);
        let last_activity = last.map(|port| {
            let at = if port.port == 0 {
                "an unpublished port".to_owned()
            } else {
                format!("{}/{}", port.port, port.proto)
            };
            (Duration::from_nanos(port.last_ns), at)
        });
        let held_packets = self.host.gate.held(&self.config.name);
        let open_connections = self.open_connections();
        let Some(live) = &mut self.live else {
            return Decision::Wait {
                until: None,
                why: "it has no process".to_owned(),
            };
        };
        let used = live.cgroup.cpu_usage().unwrap_or_default();
        let cpu = CpuWindow {
            used: used.saturating_sub(live.cpu_sample.1),
            over: now.saturating_sub(live.cpu_sample.0),
        };
        let decision = policy::sleep_decision(&Idleness {
            now,
            hot_since: live.hot_since,
            last_activity,
            cpu,
            idle: self.config.idle,
            held_packets,
            open_connections,
            commands: self.beside.count(),
            command_ended: self.beside.ended,
            fetch_outstanding: self.fetching.load(Ordering::Relaxed) > 0,
            failed: self.sleep_failures,
        });
        if cpu.over >= policy::CPU_WINDOW {
            live.cpu_sample = (now, used);
        }
        decision
    }

    fn cold_decision(&mut self, now: Monotonic) -> Decision {
        let due = policy::upload_retry(self.upload_failures).is_none_or(|at| at <= now);
        if self.host.store.is_some() && !self.stored() && due {
            self.begin_upload();
        }
        policy::cold_decision(&Coldness {
            now,
            warm_since: self.warm_since,
            cold_after: if self.cold_now {
                Wait::After(Duration::ZERO)
            } else {
                self.config.cold_after
            },
            waking: false,
            uploaded: self.stored(),
            expected: self.expected,
            failed: if self.upload.is_some() {
                Failures::default()
            } else {
                self.upload_failures
            },
        })
    }
}

/// What an app waits for, and what it is due by besides.
fn said_with(next: &str, timer: &timers::Next) -> String {
    let wakes = format!("wakes at {} ({})", timer.at, timer.what);
    if next.is_empty() {
        wakes
    } else {
        format!("{next}; {wakes}")
    }
}
