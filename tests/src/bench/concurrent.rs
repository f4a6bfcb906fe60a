//! `concurrent`: many apps woken at the same moment, each by its own client: none lost, how long until the last is
//! answered against as many wakes one after the other, and how far the slowest is from the middle.

use std::net::IpAddr;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Effort, Outcome};
use crate::harness::apps::{Nginx, Proto, RealApp};
use crate::harness::rig::Plan;
use crate::harness::{Rig, Samples, interrupt, within};

const START: Duration = Duration::from_secs(60);

/// Runs the bench.
///
/// # Errors
/// When a request is lost, or nothing wakes as it should.
pub fn run(effort: Effort, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let (counts, rounds): (&[usize], usize) = match effort {
        Effort::Quick => (&[1, 4, 16], 2),
        Effort::Full => (&[1, 4, 16, 64], 7),
    };
    let most = counts.iter().copied().max().unwrap_or(1);
    let mut plan = Plan::new("concurrent")?;
    for number in 0..most {
        let mut app = Nginx.config(plan.dir())?;
        app.name = name(number);
        app.idle = "never".into();
        plan = plan.app(app);
    }
    let mut outcome = Outcome::default();
    outcome.notes.push(
        "Each app is nginx with two workers, woken from this host's disk with its checkpoint in the page cache. \
         `until the last` is the time from the first packet to the last answer."
            .into(),
    );
    plan.run(|rig| {
        let addresses = (0..most)
            .map(|number| rig.v4(&name(number)))
            .collect::<Result<Vec<IpAddr>>>()?;
        for (number, at) in addresses.iter().enumerate() {
            rig.agent.wait_state(&name(number), "hot")?;
            within(START, || Nginx.ready(*at))?;
        }
        let mut single = None;
        for count in counts {
            progress(&format!("{count} at once, {rounds} times"));
            // Few at once give few measurements.
            let waves = (0..rounds * (most / count).clamp(1, 4))
                .map(|_| wave(rig, &addresses[..*count]))
                .collect::<Result<Vec<Wave>>>()?;
            let alone = record(*count, &waves, single, &mut outcome)?;
            single = single.or(Some(alone));
        }
        Ok(())
    })?;
    Ok(outcome)
}

fn name(number: usize) -> String {
    format!("web-{number}")
}

/// Apps that were woken at once.
struct Wave {
    /// Milliseconds of each request.
    each: Samples,
    /// Milliseconds until the last was answered.
    last: f64,
}

fn wave(rig: &Rig, addresses: &[IpAddr]) -> Result<Wave> {
    interrupt::check()?;
    for number in 0..addresses.len() {
        rig.agent.sleep(&name(number), "warm")?;
    }
    for number in 0..addresses.len() {
        rig.stored(&name(number))?;
    }
    let barrier = Barrier::new(addresses.len() + 1);
    let (start, times) = std::thread::scope(|scope| {
        let clients: Vec<_> = addresses
            .iter()
            .map(|at| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let time = Nginx.request(*at, Proto::Tcp)?;
                    Ok::<_, anyhow::Error>((time, Instant::now()))
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        let times: Vec<_> = clients
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        (start, times)
    });
    let mut wave = Wave {
        each: Samples::default(),
        last: 0.0,
    };
    for time in times {
        let (time, end) = time.map_err(|_| anyhow::anyhow!("a client panicked"))??;
        wave.each.push_ms(time);
        wave.last = wave.last.max(end.duration_since(start).as_secs_f64() * 1e3);
    }
    Ok(wave)
}

/// The rows of a count; the median of one request. `single` is that of one app alone.
fn record(count: usize, waves: &[Wave], single: Option<f64>, outcome: &mut Outcome) -> Result<f64> {
    let of = format!("{count} at once");
    let each: Samples = waves.iter().flat_map(|wave| wave.each.values()).collect();
    let last: Samples = waves.iter().map(|wave| wave.last).collect();
    let fairness = waves
        .iter()
        .map(|wave| Some(wave.each.percentile(1.0)? / wave.each.median()?))
        .collect::<Option<Samples>>()
        .context("nothing measured")?;
    let median = outcome.row(&of, "each request", "ms", &each)?;
    let last = outcome.row(&of, "until the last", "ms", &last)?;
    let unfair = outcome.row(&of, "slowest over the middle", "ratio", &fairness)?;
    if let Some(single) = single {
        // Two processors' worth of work.
        let processors = std::thread::available_parallelism()?.get();
        let ideal = single * (count as f64 / processors as f64).max(1.0);
        outcome
            .values
            .insert(format!("concurrent.{count}_to_as_many_single"), last / ideal);
        outcome
            .values
            .insert(format!("concurrent.{count}_slowest_over_middle"), unfair);
    }
    Ok(median)
}
