//! What is, in the hub's words. Pure.

use pico_proto::v1;

use super::Registered;
use crate::control::protocol::{AppDetail, ErrorCode, Explanation, Fact, Failure};
use crate::lifecycle::registration::Desired;
use crate::lifecycle::state::Tier;
use crate::units::Timestamp;

/// How an app of the hub's is now.
pub(super) fn report(app: &Registered) -> v1::AppReport {
    let summary = &app.detail.summary;
    let deleting = app.registration.desired == Desired::Deleted;
    v1::AppReport {
        app_id: app.registration.id.clone(),
        resource_version: app.registration.applied,
        state: match deleting {
            true => v1::AppState::Deleting,
            false => state(&summary.state),
        }
        .into(),
        reason: summary.reason.clone(),
        since: Some(time(summary.since)),
        ipv4: summary.addresses.v4.to_string(),
        ipv6: summary.addresses.v6.to_string(),
        figures: Some(figures(&app.detail)),
        deleted: false,
    }
}

/// All of an app is gone.
pub(super) fn deleted(app_id: &str) -> v1::AppReport {
    v1::AppReport {
        app_id: app_id.to_owned(),
        state: v1::AppState::Deleting.into(),
        deleted: true,
        ..v1::AppReport::default()
    }
}

/// A command's answer.
pub(super) fn outcome(operation_id: &str, outcome: Result<(), Failure>) -> v1::Outcome {
    v1::Outcome {
        operation_id: operation_id.to_owned(),
        error: outcome.err().map(error),
        explained: None,
    }
}

/// Why an app is as it is, as the answer to a command.
pub(super) fn explained(operation_id: &str, explanation: Result<Explanation, Failure>) -> v1::Outcome {
    let (explanation, error) = match explanation {
        Ok(explanation) => (Some(explanation), None),
        Err(failure) => (None, Some(error(failure))),
    };
    let fact = |fact: Fact| v1::Fact {
        subject: fact.subject,
        text: fact.text,
    };
    v1::Outcome {
        operation_id: operation_id.to_owned(),
        error,
        explained: explanation.map(|explanation| v1::ExplainAppResponse {
            app: None,
            next: explanation.next,
            facts: explanation.facts.into_iter().map(fact).collect(),
        }),
    }
}

/// Why something was not done.
pub(super) fn error(failure: Failure) -> v1::OperationError {
    v1::OperationError {
        reason: reason(failure.code),
        message: failure.message,
        hint: failure.hint,
        retryable: failure.retryable,
    }
}

/// `RESTORE_FAILED`: what `pico-agent -j` prints as code.
fn reason(code: ErrorCode) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "FAILED".to_owned(),
    }
}

/// The hub's word for a state of [`crate::lifecycle::state::State::name`].
pub(super) fn state(name: &str) -> v1::AppState {
    match name {
        "starting" => v1::AppState::Starting,
        "hot" => v1::AppState::Hot,
        "swapping-out" => v1::AppState::SwappingOut,
        "warm" => v1::AppState::Warm,
        "cold" => v1::AppState::Cold,
        "swapping-in" => v1::AppState::SwappingIn,
        "stopping" => v1::AppState::Stopping,
        "stopped" => v1::AppState::Stopped,
        "failed" => v1::AppState::Failed,
        _ => v1::AppState::Unspecified,
    }
}

fn figures(detail: &AppDetail) -> v1::AppFigures {
    let counters = detail.counters;
    v1::AppFigures {
        starts: counters.starts,
        wakes_warm: counters.wakes_warm,
        wakes_cold: counters.wakes_cold,
        failed_wakes: counters.failed_wakes,
        sleeps: counters.sleeps,
        failed_sleeps: counters.failed_sleeps,
        checkpoint_bytes: detail
            .summary
            .checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.bytes),
        memory_bytes: detail.summary.memory_bytes.unwrap_or(0),
        last_wake: detail.last_wake.as_ref().map(|wake| v1::Wake {
            at: Some(time(wake.at)),
            from: match wake.tier {
                Tier::Warm => v1::AppState::Warm,
                Tier::Cold => v1::AppState::Cold,
            }
            .into(),
            trigger: wake.trigger.clone(),
            total_ms: wake.total_ms,
            phases: wake
                .phases
                .iter()
                .map(|phase| v1::Phase {
                    name: phase.name.clone(),
                    ms: phase.ms,
                })
                .collect(),
            fetched_bytes: wake.fetched_bytes,
            s3_gets: wake.s3_gets,
        }),
        last_failure: detail.last_failure.as_ref().map(|failure| v1::Failure {
            at: Some(time(failure.at)),
            during: failure.during.clone(),
            reason: failure.reason.clone(),
        }),
        last_exit: detail
            .last_exit
            .map(|exit| exit.status.to_string())
            .unwrap_or_default(),
    }
}

/// A time.
pub(super) fn time(at: Timestamp) -> prost_types::Timestamp {
    let micros = at.micros();
    prost_types::Timestamp {
        seconds: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(micros % 1_000_000 * 1000).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::state::State;

    #[test]
    fn every_state_has_a_word_of_the_hubs() {
        let from = Tier::Warm;
        for known in [
            State::Starting,
            State::Hot,
            State::SwappingOut,
            State::Warm,
            State::Cold,
            State::SwappingIn { from },
            State::Stopping,
            State::Stopped,
            State::Failed { checkpoint: None },
        ] {
            let word = state(known.name());
            let name = known.name().replace('-', "_").to_uppercase();
            assert_eq!(word.as_str_name(), format!("APP_STATE_{name}"));
        }
    }

    #[test]
    fn a_failure_keeps_its_code_hint_and_whether_to_try_again() {
        let failure = Failure::new(ErrorCode::RestoreFailed, "no").hint("wait");
        let said = error(failure);
        assert_eq!(
            (said.reason.as_str(), said.hint.as_str(), said.retryable),
            ("RESTORE_FAILED", "wait", false)
        );
        assert!(error(Failure::new(ErrorCode::Busy, "later")).retryable);
    }

    #[test]
    fn times_keep_their_microseconds() {
        let at = time(Timestamp::from_micros(1_700_000_000_123_456));
        assert_eq!((at.seconds, at.nanos), (1_700_000_000, 123_456_000));
    }
}
