//! What each decision says, and why.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn idle_app() -> Idleness {
    Idleness {
        now: 100 * SECOND,
        hot_since: 10 * SECOND,
        last_activity: Some((80 * SECOND, "80/tcp".to_owned())),
        cpu: CpuWindow {
            used: Duration::from_millis(40),
            over: 20 * SECOND,
        },
        idle: Wait::secs(10),
        held_packets: 0,
        open_connections: 0,
        commands: 0,
        command_ended: None,
        fetch_outstanding: false,
        failed: Failures::default(),
    }
}

fn waits_for(input: &Idleness, until: Option<Monotonic>, word: &str) {
    let decision = sleep_decision(input);
    assert!(decision.why().contains(word), "{decision:?}");
    assert!(
        matches!(decision, Decision::Wait { until: at, .. } if at == until),
        "{decision:?}"
    );
}

#[test]
fn those_who_wait_for_failing_wakes_wait_no_longer_than_they_may() {
    let second = Duration::from_secs(1);
    let (since, patience) = (100 * second, Wait::secs(30));
    let after = |now: u32, failures| after_failed_wake(now * second, since, failures, patience);
    // Tries at 100, 101, 103, 107, 115; the next one would be at 131.
    for (now, failures, next) in [(100, 1, 101), (101, 2, 103), (103, 3, 107), (107, 4, 115)] {
        let expected = AfterWake {
            retry_at: next * second,
            refuse: false,
        };
        assert_eq!(after(now, failures), expected);
    }
    assert!(after(115, 5).refuse);
    assert!(!after_failed_wake(since, since, 40, Wait::Never).refuse);
    assert_eq!(after(100, 40).retry_at, 160 * second);
}

#[test]
fn an_idle_app_sleeps_and_the_reason_names_its_last_packet() {
    let decision = sleep_decision(&idle_app());
    assert_eq!(
        decision.why(),
        "idle: last packet at 80/tcp 20s ago, 0.2 % of a core"
    );
    assert!(matches!(decision, Decision::Now { .. }));
}

#[test]
fn an_app_that_is_not_idle_stays_awake() {
    let recent = Idleness {
        last_activity: Some((95 * SECOND, "53/udp".into())),
        ..idle_app()
    };
    waits_for(&recent, Some(105 * SECOND), "last packet at 53/udp 5s ago");
    let woken = Idleness {
        hot_since: 99 * SECOND,
        ..idle_app()
    };
    waits_for(&woken, Some(109 * SECOND), "last became hot 1s ago");
    let busy = Idleness {
        cpu: CpuWindow {
            used: SECOND,
            over: 20 * SECOND,
        },
        ..idle_app()
    };
    waits_for(&busy, Some(101 * SECOND), "5.0 % of a core");
    let held = Idleness {
        held_packets: 2,
        ..idle_app()
    };
    waits_for(&held, None, "the gate holds 2 packets");
    let commanded = Idleness {
        commands: 1,
        ..idle_app()
    };
    waits_for(&commanded, None, "1 command runs beside it");
    let just_commanded = Idleness {
        command_ended: Some(97 * SECOND),
        ..idle_app()
    };
    waits_for(
        &just_commanded,
        Some(107 * SECOND),
        "last command beside it ended 3s ago",
    );
    let fetching = Idleness {
        fetch_outstanding: true,
        ..idle_app()
    };
    waits_for(&fetching, None, "being fetched");
    let never = Idleness {
        idle: Wait::Never,
        ..idle_app()
    };
    waits_for(&never, None, "never to sleep");
    let unmeasured = Idleness {
        cpu: CpuWindow::default(),
        ..idle_app()
    };
    waits_for(&unmeasured, Some(101 * SECOND), "measuring");
}

#[test]
fn exactly_one_percent_is_not_idle() {
    let one = CpuWindow {
        used: Duration::from_millis(10),
        over: SECOND,
    };
    let less = CpuWindow {
        used: Duration::from_millis(9),
        over: SECOND,
    };
    assert!(!one.is_idle() && less.is_idle());
}

#[test]
fn a_failed_swap_out_is_not_tried_again_at_once_and_ever_more_rarely() {
    let failed = |count| Failures {
        count,
        last: Some(99 * SECOND),
    };
    waits_for(
        &Idleness {
            failed: failed(1),
            ..idle_app()
        },
        Some(109 * SECOND),
        "swap-out failed",
    );
    waits_for(
        &Idleness {
            failed: failed(3),
            ..idle_app()
        },
        Some(139 * SECOND),
        "3 in a row",
    );
    let much_later = Idleness {
        now: 2000 * SECOND,
        failed: failed(40),
        ..idle_app()
    };
    assert!(matches!(sleep_decision(&much_later), Decision::Now { .. }));
}

#[test]
fn a_warm_app_goes_cold_only_when_the_store_has_it() {
    let due = Coldness {
        now: 100 * SECOND,
        warm_since: 10 * SECOND,
        cold_after: Wait::secs(60),
        waking: false,
        uploaded: true,
        expected: false,
        failed: Failures::default(),
    };
    assert!(matches!(cold_decision(&due), Decision::Now { .. }));
    let expected = Coldness {
        now: 11 * SECOND,
        cold_after: Wait::secs(0),
        expected: true,
        ..due
    };
    assert!(
        matches!(cold_decision(&expected), Decision::Wait { until: Some(at), .. } if at == 10 * SECOND + EXPECTED_FOR)
    );
    let early = Coldness {
        now: 30 * SECOND,
        ..due
    };
    assert!(matches!(cold_decision(&early), Decision::Wait { until: Some(at), .. } if at == 70 * SECOND));
    for kept in [
        Coldness {
            uploaded: false,
            ..due
        },
        Coldness { waking: true, ..due },
        Coldness {
            cold_after: Wait::Never,
            ..due
        },
    ] {
        assert!(matches!(cold_decision(&kept), Decision::Wait { until: None, .. }));
    }
    let failed = Failures {
        count: 1,
        last: Some(98 * SECOND),
    };
    let retried = cold_decision(&Coldness {
        uploaded: false,
        failed,
        ..due
    });
    assert!(
        matches!(retried, Decision::Wait { until: Some(at), .. } if at == 103 * SECOND),
        "{retried:?}"
    );
}

#[test]
fn restart_policies_do_what_their_names_say() {
    let (good, bad, killed) = (ExitStatus::Code(0), ExitStatus::Code(1), ExitStatus::Signal(9));
    for (policy, exit, restarts) in [
        (Restart::Always, good, true),
        (Restart::Always, bad, true),
        (Restart::OnFailure, good, false),
        (Restart::OnFailure, bad, true),
        (Restart::OnFailure, killed, true),
        (Restart::Never, bad, false),
    ] {
        let decision = restart_decision(policy, exit, SECOND, 0);
        assert_eq!(
            matches!(decision, AfterExit::Restart { .. }),
            restarts,
            "{policy:?} {exit:?}"
        );
    }
}

#[test]
fn restarts_back_off_to_a_minute_and_begin_anew_after_a_minute_up() {
    let mut attempts = 0;
    let mut waits = Vec::new();
    for _ in 0..8 {
        let AfterExit::Restart { after, attempt, .. } =
            restart_decision(Restart::Always, ExitStatus::Code(1), SECOND, attempts)
        else {
            panic!("always");
        };
        waits.push(after.as_secs());
        attempts = attempt;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    let recovered = restart_decision(Restart::Always, ExitStatus::Code(1), RESTART_RESET, attempts);
    assert!(
        matches!(
            recovered,
            AfterExit::Restart {
                after: SECOND,
                attempt: 1,
                ..
            }
        ),
        "{recovered:?}"
    );
}

#[test]
fn after_a_crash_an_app_goes_on_as_its_policy_says() {
    let crashed = Found {
        recorded: Some(State::Hot),
        shim_alive: false,
        local_checkpoint: true,
        stored_checkpoint: true,
        after_crash: AfterCrash::Checkpoint,
    };
    assert_eq!(recover(&crashed).0, Recovery::Sleep(Tier::Warm));
    assert_eq!(
        recover(&Found {
            local_checkpoint: false,
            ..crashed
        })
        .0,
        Recovery::Sleep(Tier::Cold)
    );
    assert_eq!(
        recover(&Found {
            after_crash: AfterCrash::Fresh,
            ..crashed
        })
        .0,
        Recovery::Start
    );
    let none = Found {
        local_checkpoint: false,
        stored_checkpoint: false,
        ..crashed
    };
    assert_eq!(recover(&none).0, Recovery::Start);
    assert_eq!(
        recover(&Found {
            recorded: None,
            ..none
        })
        .0,
        Recovery::Start
    );
    assert_eq!(
        recover(&Found {
            shim_alive: true,
            ..crashed
        })
        .0,
        Recovery::Adopt
    );
    let asleep = Found {
        recorded: Some(State::Cold),
        after_crash: AfterCrash::Fresh,
        ..crashed
    };
    assert_eq!(
        recover(&asleep).0,
        Recovery::Sleep(Tier::Warm),
        "it was asleep: nothing was lost"
    );
    let stopped = Found {
        recorded: Some(State::Stopped),
        ..crashed
    };
    assert_eq!(recover(&stopped).0, Recovery::Leave(State::Stopped));
}

#[test]
fn a_sleeping_app_whose_checkpoint_is_gone_is_never_started_anew_in_silence() {
    for recorded in [State::Warm, State::Cold, State::SwappingIn { from: Tier::Cold }] {
        let gone = Found {
            recorded: Some(recorded),
            shim_alive: false,
            local_checkpoint: false,
            stored_checkpoint: false,
            after_crash: AfterCrash::Fresh,
        };
        assert_eq!(
            recover(&gone).0,
            Recovery::Leave(State::Failed { checkpoint: None })
        );
    }
}

proptest! {
    /// Whoever waits until the time told, with nothing happening meanwhile, gets on.
    #[test]
    fn a_wait_ends_in_the_future_and_waiting_for_it_helps(
        now in 0u32..1000, hot in 0u32..1000, activity in proptest::option::of(0u32..1000),
        idle in 1u64..100, failed in 0u32..50,
    ) {
        let mut input = Idleness {
            now: now * SECOND,
            hot_since: hot.min(now) * SECOND,
            last_activity: activity.map(|at| (at.min(now) * SECOND, "80/tcp".to_owned())),
            idle: Wait::secs(idle),
            failed: Failures { count: failed, last: Some(now * SECOND) },
            ..idle_app()
        };
        for _ in 0..3 {
            match sleep_decision(&input) {
                Decision::Now { .. } => return Ok(()),
                Decision::Wait { until, .. } => {
                    prop_assert!(until.is_some_and(|until| until > input.now), "{:?}", input);
                    input.now = until.unwrap_or_default();
                }
            }
        }
        prop_assert!(false, "still waiting: {:?}", input);
    }
}
