//! The rules of the state machine, for every event in every state.

use proptest::prelude::*;

use super::*;

const TIERS: [Tier; 2] = [Tier::Warm, Tier::Cold];

fn states() -> Vec<State> {
    let mut states = vec![
        State::Starting,
        State::Hot,
        State::SwappingOut,
        State::Warm,
        State::Cold,
        State::Stopping,
        State::Stopped,
        State::Failed { checkpoint: None },
    ];
    for tier in TIERS {
        states.extend([
            State::SwappingIn { from: tier },
            State::Failed {
                checkpoint: Some(tier),
            },
        ]);
    }
    states
}

fn events() -> Vec<Event> {
    let mut events = vec![
        Event::Start,
        Event::Started,
        Event::StartFailed,
        Event::SwapOut,
        Event::Slept,
        Event::SwapOutFailed,
        Event::WentCold,
        Event::Fetched,
        Event::Wake,
        Event::Woken,
        Event::WakeFailed,
        Event::WakeRefused,
        Event::Exited { clean: true },
        Event::Exited { clean: false },
        Event::Lost { resume: None },
        Event::Stop,
        Event::Ended,
    ];
    events.extend(TIERS.map(|tier| Event::Lost { resume: Some(tier) }));
    events
}

/// Every transition there is.
fn transitions() -> impl Iterator<Item = (State, Event, State)> {
    states().into_iter().flat_map(|state| {
        events()
            .into_iter()
            .filter_map(move |event| Some((state, event, transition(state, event).ok()?)))
    })
}

#[test]
fn memory_is_given_up_only_for_a_checkpoint_or_because_the_process_is_gone() {
    for (from, event, to) in transitions() {
        if from.holds_memory() && !to.holds_memory() && to.checkpoint().is_none() {
            let gone = matches!(
                event,
                Event::Exited { .. } | Event::Lost { .. } | Event::Ended | Event::StartFailed
            );
            assert!(gone, "{from:?} {event:?} {to:?}");
        }
    }
}

#[test]
fn a_checkpoint_is_given_up_only_by_its_owner_or_for_the_memory_it_became() {
    for (from, event, to) in transitions() {
        if from.checkpoint().is_some() && to.checkpoint().is_none() {
            assert!(
                matches!(event, Event::Stop | Event::Start | Event::Woken),
                "{from:?} {event:?} {to:?}"
            );
        }
    }
}

#[test]
fn a_checkpoint_moves_only_when_it_went_to_the_store_or_was_fetched() {
    for (from, event, to) in transitions() {
        if let (Some(before), Some(after)) = (from.checkpoint(), to.checkpoint())
            && before != after
        {
            let moves = [(Event::WentCold, Tier::Cold), (Event::Fetched, Tier::Warm)];
            assert!(moves.contains(&(event, after)), "{from:?} {event:?} {to:?}");
        }
    }
}

#[test]
fn a_failed_swap_out_leaves_a_running_app() {
    assert_eq!(
        transition(State::SwappingOut, Event::SwapOutFailed),
        Ok(State::Hot)
    );
}

#[test]
fn a_failed_wake_leaves_the_checkpoint_where_it_was() {
    for from in TIERS {
        let waking = State::SwappingIn { from };
        for event in [
            Event::WakeFailed,
            Event::Exited { clean: false },
            Event::Exited { clean: true },
            Event::Lost { resume: None },
        ] {
            assert_eq!(transition(waking, event), Ok(from.into()));
        }
        let refused = transition(waking, Event::WakeRefused).unwrap();
        assert_eq!(
            transition(refused, Event::Wake),
            Ok(waking),
            "its owner may try again"
        );
    }
}

#[test]
fn only_an_app_that_sleeps_or_failed_asleep_wakes() {
    for state in states() {
        let may = state.asleep() || matches!(state, State::Failed { checkpoint: Some(_) });
        assert_eq!(transition(state, Event::Wake).is_ok(), may, "{state:?}");
    }
}

#[test]
fn every_state_but_stopping_and_stopped_can_be_stopped() {
    for state in states() {
        let done = matches!(state, State::Stopping | State::Stopped);
        assert_eq!(transition(state, Event::Stop).is_err(), done, "{state:?}");
    }
}

#[test]
fn no_state_is_a_dead_end() {
    for state in states() {
        assert!(
            events()
                .into_iter()
                .any(|event| transition(state, event).is_ok_and(|next| next != state))
        );
    }
}

#[test]
fn names_are_the_same_in_the_api_and_in_records() {
    for state in states() {
        let json = serde_json::to_value(state).unwrap();
        assert_eq!(json["name"], state.name());
        assert_eq!(serde_json::from_value::<State>(json).unwrap(), state);
    }
}

#[test]
fn a_refused_event_changes_nothing() {
    let mut situation = Situation::new(Timestamp::from_micros(1));
    let before = situation.clone();
    assert!(
        situation
            .apply(Event::Woken, "no", Timestamp::from_micros(2))
            .is_err()
    );
    assert_eq!(situation, before);
}

proptest! {
    /// An app never runs twice, and never runs from a checkpoint that it has not got.
    #[test]
    fn whatever_happens_the_rules_hold(
        picks in proptest::collection::vec(0usize..events().len(), 0..200),
    ) {
        let mut situation = Situation::new(Timestamp::from_micros(0));
        let (mut memory, mut checkpoint) = (false, None);
        for pick in picks {
            let event = events()[pick];
            // A resume names a checkpoint that is there.
            if matches!(event, Event::Lost { resume: Some(_) }) { continue; }
            let before = situation.state;
            let Ok(after) = situation.apply(event, "", Timestamp::from_micros(0)) else { continue };
            match event {
                Event::Start => { prop_assert!(!memory); memory = true; checkpoint = None; }
                Event::Woken => { prop_assert!(!memory && checkpoint.is_some()); memory = true; checkpoint = None; }
                Event::Slept => { prop_assert!(memory); memory = false; checkpoint = Some(Tier::Warm); }
                Event::WentCold => { prop_assert_eq!(checkpoint, Some(Tier::Warm)); checkpoint = Some(Tier::Cold); }
                Event::Fetched => { prop_assert_eq!(checkpoint, Some(Tier::Cold)); checkpoint = Some(Tier::Warm); }
                Event::Exited { .. } | Event::Lost { .. } | Event::Ended | Event::StartFailed => memory = false,
                Event::Stop if !after.in_transit() => checkpoint = None,
                _ => {}
            }
            if after == State::Stopping || before == State::Stopping { checkpoint = None; memory = after == State::Stopping; }
            prop_assert_eq!(after.holds_memory(), memory, "{:?} {:?} {:?}", before, event, after);
            prop_assert_eq!(after.checkpoint(), checkpoint, "{:?} {:?} {:?}", before, event, after);
        }
    }
}
