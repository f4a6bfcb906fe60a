//! `cost`: dollars per app and month over requests per day, on this system, on an instance that is always on, on a
//! share of a host that is always on, and as functions. What a swap takes is measured; prices and assumptions
//! stand in `tests/prices.toml`; the reckoning is [`model`], pure.

pub mod model;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::model::{Measured, Prices, Way};
use super::report::plot::{Axis, Lines, Plot};
use super::{Effort, Outcome};
use crate::harness::apps::{self, RealApp};
use crate::harness::rig::Plan;
use crate::harness::{Rig, Samples, interrupt, within};

/// Built in, so that the figures and the prices they come from agree.
const FILE: &str = include_str!("../../../prices.toml");
const START: Duration = Duration::from_secs(20);

/// Runs the bench.
///
/// # Errors
/// When a request is lost, a state is wrong, or the prices cannot be read.
pub fn run(effort: Effort, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let prices = Prices::parse(FILE)?;
    let rounds = match effort {
        Effort::Quick => 2,
        Effort::Full => 10,
    };
    let mut outcome = Outcome::default();
    for mut app in apps::all() {
        let measured = measure(app.as_mut(), rounds, &mut outcome, progress)
            .with_context(|| format!("cost of {}", app.name()))?;
        reckon(&measured, &prices, &mut outcome)?;
    }
    outcome.notes.extend(prices.notes());
    Ok(outcome)
}

/// What swaps of `app` take. Each round goes through cold and back.
fn measure(
    app: &mut dyn RealApp,
    rounds: usize,
    outcome: &mut Outcome,
    progress: &mut dyn FnMut(&str),
) -> Result<Measured> {
    let name = app.name();
    let mut found = None;
    let plan = Plan::new("cost")?
        .shaped()
        .real_app(app, |config| config.idle = "never".into())?;
    plan.run(|rig| {
        let at = rig.v4(name)?;
        rig.agent.wait_state(name, "hot")?;
        within(START, || app.ready(at))?;
        app.fill(at)?;
        progress(&format!("{name}: {rounds} times to cold and back"));
        let [mut gets, mut puts, mut wake, mut sleep, mut memory, mut bytes] =
            std::array::from_fn(|_| Samples::default());
        let hot = app.request(at, app.protocols()[0])?;
        for _ in 0..rounds {
            interrupt::check()?;
            let show = rig.agent.show(name)?;
            memory.push(
                show.number("/memory_bytes")
                    .context("no memory_bytes of a hot app")? as f64,
            );
            requests(rig)?;
            let start = std::time::Instant::now();
            rig.agent.sleep(name, "cold")?;
            sleep.push(start.elapsed().as_secs_f64());
            puts.push(requests(rig)?.puts as f64);
            bytes.push(rig.agent.wait_state(name, "cold")?.checkpoint_bytes()? as f64);
            wake.push_ms(app.request(at, app.protocols()[0])?);
            gets.push(requests(rig)?.gets as f64);
        }
        app.check(at).context("state after cold wakes")?;
        outcome.row(name, "GETs of a cold wake", "requests", &gets)?;
        outcome.row(name, "PUTs of a swap-out", "requests", &puts)?;
        let middle = |samples: &Samples| samples.median().context("nothing measured");
        found = Some(Measured {
            name: name.to_owned(),
            checkpoint_bytes: middle(&bytes)?,
            memory_bytes: middle(&memory)?,
            gets: middle(&gets)?,
            puts: middle(&puts)?,
            swap_seconds: middle(&wake)? / 1e3 + middle(&sleep)?,
            request_seconds: hot.as_secs_f64(),
        });
        Ok(())
    })?;
    found.context("nothing measured")
}

/// What the proxy before the store has seen since it was last asked.
struct Requests {
    gets: usize,
    puts: usize,
}

fn requests(rig: &Rig) -> Result<Requests> {
    let log = rig
        .shaper
        .as_ref()
        .context("no proxy before the store")?
        .take_requests();
    let count = |methods: &[&str]| {
        log.iter()
            .filter(|request| methods.contains(&request.method.as_str()))
            .count()
    };
    Ok(Requests {
        gets: count(&["GET", "HEAD"]),
        puts: count(&["PUT", "POST"]),
    })
}

fn reckon(measured: &Measured, prices: &Prices, outcome: &mut Outcome) -> Result<()> {
    let rates = &prices.assumptions.requests_per_day;
    let axis = |label: &str| Axis {
        label: label.to_owned(),
        log: true,
    };
    let curve = |way: Way| -> Vec<(f64, f64)> {
        rates
            .iter()
            .map(|rate| (*rate, prices.month(measured, way, *rate)))
            .collect()
    };
    outcome.plots.push(Plot::Lines(Lines {
        title: format!("{}: dollars a month over requests a day", measured.name),
        x: axis("requests a day"),
        y: axis("dollars a month"),
        series: Way::ALL
            .iter()
            .map(|way| (way.name().to_owned(), curve(*way)))
            .collect(),
    }));
    for rate in rates {
        for way in Way::ALL {
            let dollars: Samples = [prices.month(measured, way, *rate)].into_iter().collect();
            outcome.row(
                &measured.name,
                &format!("{}, {rate} a day", way.name()),
                "$/month",
                &dollars,
            )?;
        }
    }
    for size in &prices.assumptions.checkpoint_mib {
        let scaled = measured.scaled(size * f64::from(1 << 20));
        let dollars: Samples = [prices.month(&scaled, Way::Picocenter, 1.0)]
            .into_iter()
            .collect();
        outcome.row(
            &measured.name,
            &format!("here with {size} MiB, once a day"),
            "$/month",
            &dollars,
        )?;
    }
    let once = prices.month(measured, Way::Picocenter, 1.0);
    let always = prices.month(measured, Way::Instance, 1.0);
    ensure!(
        always > 0.0,
        "an instance costs nothing: tests/prices.toml is wrong"
    );
    outcome
        .values
        .insert(format!("cost.{}.of_an_instance", measured.name), once / always);
    Ok(())
}
