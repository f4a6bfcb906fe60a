//! A wake from cold asks the store for all that it needs first at once, however many generations the app has been through.

use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::shaper::Request;

/// No answer comes sooner, so whatever is asked for within this time waits for no answer.
const DELAY: Duration = Duration::from_millis(250);

/// A 64 KiB block of a page object: a fault waits for it.
fn is_fault(request: &Request) -> bool {
    let bytes = request.range.as_deref().and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(last.parse::<u64>().ok()? - first.parse::<u64>().ok()? + 1)
    });
    request.path.contains("/pages-") && bytes.is_some_and(|bytes| bytes <= 64 << 10)
}

#[test]
fn what_a_wake_needs_first_comes_in_one_wave_after_many_generations() -> Result<()> {
    let plan = Plan::new("one-wave")?
        .shaped()
        .test_app("a", |app| app.idle = "never".into())?;
    plan.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 16")?;
        let mut metadata = Vec::new();
        for generation in 1..=8 {
            // Fewer each time, so that every generation still holds some.
            app.ask(&format!("change {}", 2400 - 250 * generation))?;
            rig.agent.sleep("a", "cold")?;
            let shaper = rig.shaper()?;
            shaper.take_requests();
            shaper.set_delay(DELAY);
            rig.agent.cli(&["app", "wake", "a"])?;
            shaper.set_delay(Duration::ZERO);
            let requests = shaper.take_requests();
            let first = requests.iter().map(|request| request.at).min();
            let first = first.unwrap_or_default();
            let wave: Vec<_> = requests.iter().filter(|request| !is_fault(request)).collect();
            for request in &wave {
                let after = request.at.saturating_sub(first);
                ensure!(
                    after < DELAY,
                    "generation {generation}: {after:?} after the first: {request:?}"
                );
            }
            let pages = wave.iter().filter(|request| request.path.contains("/pages-"));
            metadata.push(wave.len() - pages.count());
            let faults = requests.len() - wave.len();
            eprintln!(
                "generation {generation}: {} requests at once, then {faults} for faults",
                wave.len()
            );
            ensure!(app.ask("verify")?.starts_with("ok"));
        }
        let objects = rig.store.objects()?;
        let generations = objects.keys().filter(|key| key.contains("/pages-")).count();
        ensure!(
            generations >= 8,
            "only {generations} page objects are in use: {objects:?}"
        );
        ensure!(
            metadata.iter().all(|count| *count == metadata[0]),
            "requests that are not for pages, by generation: {metadata:?}"
        );
        Ok(())
    })
}
