//! `wake`: the first whole answer of nginx, redis and BIND from warm and cold, less a hot one, beside a full
//! `criu restore` and `criu lazy-pages` of the same app in the same run.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};

use super::criu::Criu;
use super::sandbox::{Restore, Sandbox};
use super::{Effort, Outcome};
use crate::harness::apps::{self, RealApp};
use crate::harness::process::output;
use crate::harness::rig::Plan;
use crate::harness::{Rig, Samples, interrupt, within};

/// How long an app may take to start.
const START: Duration = Duration::from_secs(20);

struct Rounds {
    hot: usize,
    wakes: usize,
    baselines: usize,
}

/// Runs the bench.
///
/// # Errors
/// When a request is lost, a state is wrong, or nothing wakes as it should.
pub fn run(effort: Effort, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let rounds = match effort {
        Effort::Quick => Rounds {
            hot: 50,
            wakes: 5,
            baselines: 5,
        },
        Effort::Full => Rounds {
            hot: 200,
            wakes: 30,
            baselines: 15,
        },
    };
    let mut outcome = Outcome::default();
    for (mut app, number) in apps::all().into_iter().zip(1..) {
        let app = app.as_mut();
        measure(app, number, &rounds, &mut outcome, progress)
            .with_context(|| format!("bench of {}", app.name()))?;
    }
    Ok(outcome)
}

fn measure(
    app: &mut dyn RealApp,
    number: u8,
    rounds: &Rounds,
    outcome: &mut Outcome,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let name = app.name();
    // Rounds are put to sleep by command: idleness would add a second to each and change nothing measured.
    let plan = Plan::new("bench")?.real_app(app, |config| config.idle = "never".into())?;
    plan.run(|rig| {
        let at = rig.v4(name)?;
        progress(&format!("{name}: start and hot"));
        rig.agent.wait_state(name, "hot")?;
        within(START, || app.ready(at))?;
        app.fill(at)?;
        let hot = (0..rounds.hot)
            .map(|_| request(app, at))
            .collect::<Result<Samples>>()?;
        let hot = outcome.row(name, "hot", "ms", &hot)?;

        progress(&format!("{name}: {} wakes from warm", rounds.wakes));
        let mut over = Samples::default();
        for _ in 0..rounds.wakes {
            over.push(wake(rig, app, "warm")?.time - hot);
        }
        app.check(at).context("state after warm wakes")?;
        let warm = outcome.row(name, "warm over hot", "ms", &over)?;
        outcome
            .values
            .insert(format!("wake.{name}.warm_over_hot_ms"), warm);

        progress(&format!("{name}: {} wakes from cold", rounds.wakes));
        let (mut over, mut fetched, mut gets) = (Samples::default(), Samples::default(), Samples::default());
        for _ in 0..rounds.wakes {
            let wake = wake(rig, app, "cold")?;
            over.push(wake.time - hot);
            fetched.push(wake.fetched);
            gets.push(wake.gets);
        }
        app.check(at).context("state after cold wakes")?;
        let cold = outcome.row(name, "cold over hot", "ms", &over)?;
        let fraction = outcome.row(name, "cold, fetched of checkpoint", "share", &fetched)?;
        outcome.row(name, "cold, GETs", "count", &gets)?;
        outcome
            .values
            .insert(format!("wake.{name}.cold_over_hot_ms"), cold);
        outcome
            .values
            .insert(format!("wake.{name}.cold_fetched_fraction"), fraction);

        progress(&format!(
            "{name}: {} restores by criu alone, full and lazy",
            rounds.baselines
        ));
        let full = baseline(rig, app, number, rounds.baselines, hot, outcome)?;
        outcome
            .values
            .insert(format!("wake.{name}.warm_to_full_restore"), warm / full);
        Ok(())
    })
}

fn request(app: &mut dyn RealApp, at: IpAddr) -> Result<f64> {
    interrupt::check()?;
    Ok(app.request(at, app.protocols()[0])?.as_secs_f64() * 1e3)
}

/// One wake by a request.
struct Wake {
    /// Milliseconds of the whole request.
    time: f64,
    /// Share of the checkpoint that came from the store.
    fetched: f64,
    gets: f64,
}

fn wake(rig: &Rig, app: &mut dyn RealApp, tier: &str) -> Result<Wake> {
    let name = app.name();
    rig.agent.sleep(name, tier)?;
    let asleep = rig.agent.wait_state(name, tier)?;
    if tier == "warm" {
        rig.drop_checkpoint_pages(name)?;
    }
    let time = request(app, rig.v4(name)?)?;
    let woken = rig.agent.show(name)?.last_wake()?;
    ensure!(woken.tier == tier, "{name} woke from {}, not {tier}", woken.tier);
    let fetched = woken.fetched_bytes as f64 / asleep.checkpoint_bytes()? as f64;
    Ok(Wake {
        time,
        fetched,
        gets: woken.s3_gets as f64,
    })
}

/// The same app brought back by CRIU's own means; the median of the full restore.
fn baseline(
    rig: &Rig,
    app: &mut dyn RealApp,
    number: u8,
    rounds: usize,
    hot: f64,
    outcome: &mut Outcome,
) -> Result<f64> {
    let criu = Criu::find()?;
    let config = app.config(rig.dir())?;
    // A thread of its own, so that its mounts are nobody else's.
    let (full, lazy) = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            private_mounts()?;
            let mut sandbox = Sandbox::start(&config, rig.dir(), number)?;
            let at = sandbox.address();
            within(START, || app.ready(at)).with_context(|| sandbox.log())?;
            refill(app, at)?;
            let mut measure = |how| -> Result<Samples> {
                (0..rounds)
                    .map(|_| restore(&mut sandbox, &criu, how, app))
                    .collect()
            };
            Ok::<_, anyhow::Error>((measure(Restore::Full)?, measure(Restore::Lazy)?))
        });
        work.join()
            .map_err(|_| anyhow::anyhow!("the baseline panicked"))?
    })?;
    let over = |samples: Samples| samples.map(|time| time - hot);
    outcome.row(app.name(), "criu lazy-pages over hot", "ms", &over(lazy))?;
    outcome.row(app.name(), "criu restore over hot", "ms", &over(full))
}

/// The baseline is a new process of the app: what its client knows starts anew, too.
fn refill(app: &mut dyn RealApp, at: IpAddr) -> Result<()> {
    app.forget();
    app.fill(at)?;
    app.check(at)
}

fn restore(sandbox: &mut Sandbox, criu: &Criu, how: Restore, app: &mut dyn RealApp) -> Result<f64> {
    sandbox.dump(criu)?;
    sandbox.drop_images()?;
    let start = Instant::now();
    sandbox.restore(criu, how)?;
    request(app, sandbox.address())?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// A mount namespace for the calling thread, with a `/run` in memory: CRIU keeps what it found out about the
/// kernel there, and the baselines should not pay for finding it out each time.
fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    output(Command::new("mount").args(["--make-rprivate", "/"]))?;
    output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
    Ok(())
}
