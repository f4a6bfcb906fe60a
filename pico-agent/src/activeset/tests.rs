//! What the model must hold, on apps whose page sets are known (`synth`), and on arbitrary windows and bytes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::synth::{App, port};
use super::*;

/// A store with 25 ms to the first byte; a page ahead costs its share of 100 MB/s.
const COLD: Costs = Costs {
    miss_ns: 25_000_000,
    move_ns: 40_000,
    install_ns: 1_000,
    pages_max: 1 << 18,
};
/// The checkpoint on the host's disk.
const WARM: Costs = Costs {
    miss_ns: 40_000,
    move_ns: 500,
    install_ns: 1_000,
    pages_max: 1 << 18,
};

fn predicted(sets: &ActiveSets, by: u16, costs: &Costs) -> BTreeSet<PageId> {
    let prediction = sets.predict(Some(port(by)), costs);
    prediction.pages.iter().map(|page| page.at).collect()
}

/// Recall and precision of a prediction against what a request of the port always needs.
fn quality(app: &App, sets: &ActiveSets, by: u16, costs: &Costs) -> (f64, f64) {
    let needed = app.known(by);
    let predicted = predicted(sets, by, costs);
    let right = needed.intersection(&predicted).count() as f64;
    (
        right / needed.len() as f64,
        right / (predicted.len() as f64).max(1.0),
    )
}

fn assert_known(app: &App, sets: &ActiveSets, by: u16) {
    for costs in [COLD, WARM] {
        let (recall, precision) = quality(app, sets, by, &costs);
        assert!(
            recall >= 0.99 && precision >= 0.95,
            "port {by}: recall {recall:.3}, precision {precision:.3}"
        );
    }
}

#[test]
fn two_requests_a_port_are_enough_by_faults() {
    let mut app = App::new(7, 3);
    let mut sets = ActiveSets::new(1);
    for _ in 0..2 {
        for by in 1..=3 {
            sets.learn(&app.wake(&[by], None));
        }
    }
    (1..=3).for_each(|by| assert_known(&app, &sets, by));
}

#[test]
fn two_requests_a_port_are_enough_by_accessed_bits_of_a_hot_app() {
    let mut app = App::new(8, 3);
    let mut sets = ActiveSets::new(1);
    for _ in 0..2 {
        for by in 1..=3 {
            sets.learn(&app.hot(by));
        }
    }
    (1..=3).for_each(|by| assert_known(&app, &sets, by));
}

#[test]
fn requests_that_came_later_in_a_wake_are_learned_for_their_own_ports() {
    let mut app = App::new(9, 3);
    let mut sets = ActiveSets::new(1);
    // Each port is first once and later twice.
    for order in [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3], [2, 3, 1], [3, 1, 2]] {
        sets.learn(&app.wake(&order, None));
    }
    (1..=3).for_each(|by| assert_known(&app, &sets, by));
}

#[test]
fn concurrent_requests_are_told_apart() {
    let mut app = App::new(10, 2);
    let mut sets = ActiveSets::new(1);
    for _ in 0..2 {
        sets.learn(&app.concurrent(1, 2));
        sets.learn(&app.wake(&[1], None));
        sets.learn(&app.wake(&[2], None));
    }
    assert_known(&app, &sets, 1);
    assert_known(&app, &sets, 2);
}

#[test]
fn a_change_of_behaviour_is_relearned_within_three_wakes() {
    let mut app = App::new(11, 2);
    let mut sets = ActiveSets::new(1);
    for _ in 0..12 {
        sets.learn(&app.wake(&[1], None));
        sets.learn(&app.wake(&[2], None));
    }
    app.change(1);
    let learned = sets.learn(&app.wake(&[1], None));
    assert!(
        learned
            .iter()
            .any(|row| row.port == Some(port(1)) && row.relearning)
    );
    // Even the next wake has what the new behaviour needs, beside the old.
    assert!(quality(&app, &sets, 1, &COLD).0 >= 0.99);
    sets.learn(&app.wake(&[1], None));
    sets.learn(&app.wake(&[1], None));
    let (recall, _) = quality(&app, &sets, 1, &COLD);
    assert!(recall >= 0.99, "{recall}");
    assert_known(&app, &sets, 2);
    // The old set goes once its history says so.
    (0..8).for_each(|_| drop(sets.learn(&app.wake(&[1], None))));
    assert_known(&app, &sets, 1);
}

#[test]
fn one_huge_request_does_not_poison_the_set() {
    for before in [1, 2, 5, 12] {
        let mut app = App::new(12, 2);
        let mut sets = ActiveSets::new(1);
        for _ in 0..before {
            sets.learn(&app.wake(&[1], None));
            sets.learn(&app.wake(&[2], None));
        }
        sets.learn(&app.huge(1));
        if before > 1 {
            assert_known(&app, &sets, 1);
        }
        sets.learn(&app.wake(&[1], None));
        assert_known(&app, &sets, 1);
        (0..2).for_each(|_| drop(sets.learn(&app.wake(&[2], None))));
        assert_known(&app, &sets, 2);
    }
}

#[test]
fn prefetched_pages_stay_known_with_accessed_bits_and_are_not_forgotten_without() {
    for bits in [true, false] {
        let mut app = App::new(13, 1);
        let mut sets = ActiveSets::new(1);
        (0..2).for_each(|_| drop(sets.learn(&app.wake(&[1], None))));
        for _ in 0..10 {
            let ahead = predicted(&sets, 1, &COLD);
            sets.learn(&app.wake(&[1], Some((&ahead, bits))));
        }
        assert_known(&app, &sets, 1);
    }
}

#[test]
fn pages_that_are_prefetched_and_never_used_are_dropped_once_accessed_bits_show_it() {
    let mut app = App::new(14, 1);
    let mut sets = ActiveSets::new(1);
    sets.learn(&app.huge(1));
    let all = predicted(&sets, 1, &COLD);
    assert!(all.len() > 5 * app.known(1).len());
    sets.learn(&app.wake(&[1], Some((&all, true))));
    assert_known(&app, &sets, 1);
}

#[test]
fn a_port_without_history_gets_what_the_others_share() {
    let mut app = App::new(15, 4);
    let mut sets = ActiveSets::new(1);
    for _ in 0..2 {
        (1..=3).for_each(|by| drop(sets.learn(&app.wake(&[by], None))));
    }
    let prediction = sets.predict(Some(port(4)), &WARM);
    assert_eq!(prediction.basis, Basis::OtherPorts);
    let shared = app.shared();
    let predicted = predicted(&sets, 4, &WARM);
    assert!(predicted.is_superset(&shared), "all that is shared");
    let own: BTreeSet<PageId> = app.known(1).difference(&app.known(2)).copied().collect();
    assert!(
        own.intersection(&predicted).count() * 20 <= own.len(),
        "not what is one port's own"
    );
}

#[test]
fn without_any_history_the_last_window_is_brought() {
    let mut sets = ActiveSets::new(1);
    assert!(sets.predict(Some(port(1)), &COLD).pages.is_empty());
    let mut window = Window::new(Kind::Hot, None);
    window.accessed_bits_read();
    let page = |page| PageId { space: 1, page };
    window.observe(page(5), false, None, Source::Accessed);
    window.observe(page(3), false, None, Source::Accessed);
    sets.learn(&window);
    let prediction = sets.predict(Some(port(1)), &COLD);
    assert_eq!(prediction.basis, Basis::LastWindow);
    let pages: Vec<PageId> = prediction.pages.iter().map(|page| page.at).collect();
    assert_eq!(pages, [page(5), page(3)]);
}

#[test]
fn pages_come_in_the_order_of_first_touch_base_first() {
    let mut app = App::new(16, 2);
    let mut sets = ActiveSets::new(1);
    for _ in 0..3 {
        (1..=2).for_each(|by| drop(sets.learn(&app.wake(&[by], None))));
    }
    let pages = sets.predict(Some(port(1)), &COLD).pages;
    let base = pages.iter().take_while(|page| page.base).count();
    assert!(base > 0 && pages[base..].iter().all(|page| !page.base));
    let own: Vec<PageId> = pages[base..].iter().map(|page| page.at).collect();
    let order: Vec<PageId> = app
        .order(1)
        .into_iter()
        .filter(|page| own.contains(page))
        .collect();
    assert_eq!(own, order);
}

#[test]
fn a_wake_reads_base_and_its_port_and_nothing_of_others() {
    let mut app = App::new(17, 3);
    let mut sets = ActiveSets::new(1);
    for _ in 0..2 {
        (1..=3).for_each(|by| drop(sets.learn(&app.wake(&[by], None))));
    }
    let packs = sets.packs(&COLD);
    for by in 1..=3 {
        let mut read: Vec<PageId> = packs.base.clone();
        read.extend(&packs.ports[&port(by)]);
        let once: BTreeSet<PageId> = read.iter().copied().collect();
        assert_eq!(once.len(), read.len(), "no page twice");
        assert_eq!(once, predicted(&sets, by, &COLD));
    }
}

#[test]
fn what_is_brought_depends_on_what_it_costs() {
    let mut app = App::new(18, 1);
    let mut sets = ActiveSets::new(1);
    (0..3).for_each(|_| drop(sets.learn(&app.wake(&[1], None))));
    let free = Costs {
        move_ns: 0,
        install_ns: 0,
        ..WARM
    };
    let dear = Costs {
        install_ns: WARM.miss_ns * 2,
        ..WARM
    };
    let bounded = Costs {
        pages_max: 10,
        ..WARM
    };
    assert!(predicted(&sets, 1, &free).len() > predicted(&sets, 1, &WARM).len());
    assert!(predicted(&sets, 1, &dear).is_empty());
    let prediction = sets.predict(Some(port(1)), &bounded);
    assert_eq!(prediction.pages.len(), 10);
    assert_eq!(prediction.left_out + 10, predicted(&sets, 1, &WARM).len());
}

#[test]
fn pages_that_are_gone_are_forgotten_and_a_port_can_be_reset() {
    let mut app = App::new(19, 2);
    let mut sets = ActiveSets::new(1);
    for _ in 0..2 {
        (1..=2).for_each(|by| drop(sets.learn(&app.wake(&[by], None))));
    }
    let gone = *app.known(1).first().unwrap();
    sets.retain(|page| page != gone);
    assert!(!predicted(&sets, 1, &COLD).contains(&gone));
    assert!(sets.reset(Some(port(1))));
    assert!(!sets.reset(Some(port(1))));
    assert_eq!(sets.predict(Some(port(1)), &COLD).basis, Basis::OtherPorts);
}

#[test]
fn sets_of_another_life_of_the_app_are_refused_by_name() {
    let bytes = ActiveSets::new(1).encode();
    assert_eq!(
        ActiveSets::decode_for(&bytes, 2),
        Err(SetsError::Foreign {
            found: 1,
            expected: 2
        })
    );
    assert!(ActiveSets::decode_for(&bytes, 1).is_ok());
    let mut other = bytes.clone();
    other[8] = 9;
    assert_eq!(ActiveSets::decode(&other), Err(SetsError::Version(9)));
}

#[test]
fn sets_of_one_life_are_merged_and_others_refused() {
    let mut app = App::new(21, 2);
    let (mut one, mut other) = (ActiveSets::new(1), ActiveSets::new(1));
    for _ in 0..2 {
        one.learn(&app.wake(&[1], None));
        other.learn(&app.wake(&[2], None));
        other.learn(&app.wake(&[2], None));
    }
    assert_eq!(
        one.merge(&ActiveSets::new(2)),
        Err(SetsError::Foreign {
            found: 2,
            expected: 1
        })
    );
    one.merge(&other).unwrap();
    assert_known(&app, &one, 1);
    assert_known(&app, &one, 2);
    let youngest = |by| {
        one.view(Some(port(by)))
            .unwrap()
            .pages
            .iter()
            .map(|page| page.age)
            .min()
    };
    assert_eq!((youngest(1), youngest(2)), (Some(0), Some(0)));
    assert_eq!(ActiveSets::decode(&one.encode()).unwrap(), one);
}

#[test]
fn memory_and_file_stay_bounded() {
    let mut sets = ActiveSets::new(1);
    for wake in 0..2u64 {
        let mut window = Window::new(Kind::Wake, Some(port(1)));
        window.begin(port(1));
        for page in 0..model::PAGES_MAX as u64 + 500 {
            let at = PageId {
                space: 1,
                page: page + wake * 500,
            };
            window.observe(at, false, Some(port(1)), Source::Fault);
        }
        sets.learn(&window);
    }
    let view = sets.view(Some(port(1))).unwrap();
    assert_eq!(view.pages.len(), model::PAGES_MAX);
    // Those that were used twice are the ones that stay.
    assert_eq!(
        view.pages.iter().filter(|page| page.hits == 2).count(),
        model::PAGES_MAX
    );
    assert!(sets.encode().len() < FILE_MAX);
}

/// Wakes on ports in random order, now and then two ports in one wake or a huge request.
fn mixed_wakes(seed: u64, count: usize) -> Vec<Window> {
    let mut app = App::new(seed, 3);
    let mut random = synth::Random::new(seed);
    (0..count)
        .map(|nth| {
            let by = [0; 2].map(|_| u16::try_from(1 + random.below(3)).unwrap());
            match random.below(10) {
                _ if nth == 5 => app.huge(by[0]),
                0 | 1 if by[0] != by[1] => app.wake(&by, None),
                _ => app.wake(&by[..1], None),
            }
        })
        .collect()
}

#[test]
fn a_replay_tells_the_predictors_apart() {
    let windows = mixed_wakes(20, 30);
    let scores = evaluate(&mut predictors(), &windows, &COLD, 9, None);
    let score = |name: &str| {
        scores
            .iter()
            .find(|score| score.predictor == name)
            .unwrap()
            .clone()
    };
    assert_eq!((score("none").used, score("none").precision), (0, None));
    assert_eq!(score("full").recall, Some(1.0));
    assert_eq!(score("full").brought, 21 * synth::PAGES);
    assert_eq!(score("none").needed, score("full").needed);
    let per_port = score("per-port");
    // Of what a wake needs, a tenth is new each time: nobody knows that before.
    assert!(per_port.recall.unwrap() > 0.85 && per_port.precision.unwrap() > 0.95);
    assert!(score("global").precision.unwrap() < 0.75);
    assert!(score("last-window").recall.unwrap() < per_port.recall.unwrap());
    let only = evaluate(&mut predictors(), &windows, &COLD, 9, Some(port(2)));
    assert!(only[0].wakes > 0 && only[0].wakes < score("none").wakes);
}

prop_compose! {
    fn windows()(
        wakes in prop::collection::vec(
            (any::<bool>(), any::<bool>(), any::<bool>(),
             prop::collection::vec((0..3u32, 0..40u64, any::<bool>(), 0..4u16, any::<bool>(), 0..8u8), 0..60)),
            0..6,
        )
    ) -> Vec<Window> {
        wakes.into_iter().map(|(wake, bits, lost, touches)| {
            let mut window = Window::new(if wake { Kind::Wake } else { Kind::Hot }, Some(port(1)));
            for (space, page, write, by, fault, what) in touches {
                let at = PageId { space, page };
                let by = (by > 0).then(|| port(by));
                match (what, by) {
                    (0, Some(by)) => window.begin(by),
                    (1, Some(by)) => window.end(by),
                    (2, _) => window.prefetched(at),
                    _ => window.observe(at, write, by, if fault { Source::Fault } else { Source::Accessed }),
                }
            }
            if bits { window.accessed_bits_read(); }
            if lost { window.lost(); }
            window
        }).collect()
    }
}

proptest! {
    #[test]
    fn any_windows_lead_to_sets_that_read_back_and_chances_that_are_chances(windows in windows()) {
        let mut sets = ActiveSets::new(7);
        for window in &windows {
            for row in sets.learn(window) {
                prop_assert!(row.expected_used <= row.expected && row.expected_used <= row.used);
            }
        }
        prop_assert_eq!(&ActiveSets::decode_for(&sets.encode(), 7).unwrap(), &sets);
        for by in [None, Some(port(1)), Some(port(2)), Some(port(9))] {
            let pages = sets.predict(by, &WARM).pages;
            let once: BTreeSet<PageId> = pages.iter().map(|page| page.at).collect();
            prop_assert_eq!(once.len(), pages.len());
            for page in pages {
                prop_assert!((0.0..=1.0).contains(&page.chance), "{}", page.chance);
            }
        }
    }

    #[test]
    fn a_flipped_bit_a_cut_or_a_tail_is_found(
        windows in windows(), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let mut sets = ActiveSets::new(7);
        windows.iter().for_each(|window| drop(sets.learn(window)));
        let bytes = sets.encode();
        let at = at.index(bytes.len());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        let mut longer = bytes.clone();
        longer.push(0);
        for wrong in [&flipped[..], &bytes[..at], &longer[..]] {
            prop_assert!(ActiveSets::decode(wrong).is_err());
        }
    }

    #[test]
    fn any_bytes_with_a_right_checksum_are_refused_or_read_in_peace(body in prop::collection::vec(0..20u8, 0..200)) {
        let mut bytes = b"PICOSETS\x01\0\0\0".to_vec();
        bytes.extend_from_slice(&7u64.to_le_bytes());
        bytes.extend_from_slice(&body);
        let hash = crate::checkpoint::hash::Hash::of(&bytes);
        bytes.extend_from_slice(&hash.0);
        if let Ok(sets) = ActiveSets::decode(&bytes) {
            prop_assert_eq!(sets.encode(), bytes);
            sets.predict(Some(port(1)), &WARM);
        }
    }
}
