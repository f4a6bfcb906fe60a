//! `memory`: the first answer of redis at sizes from 16 MB to 2 GB, each request reading one key: a wake should cost
//! what is touched and not what is there. Besides, what agent and shim take for it.

use std::time::Duration;

use anyhow::{Context, Result};

use super::report::plot::{Axis, Lines, Plot};
use super::{Effort, Outcome};
use crate::harness::apps::{RealApp, Redis};
use crate::harness::rig::Plan;
use crate::harness::{Samples, interrupt, procs, within};

const START: Duration = Duration::from_secs(20);
/// As many keys make a megabyte of redis (200,000 are 60 MB).
const KEYS_PER_MB: u64 = 3_333;

/// Runs the bench.
///
/// # Errors
/// When a request is lost, a state is wrong, or nothing wakes as it should.
pub fn run(effort: Effort, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let (sizes, wakes): (&[u64], usize) = match effort {
        Effort::Quick => (&[16, 64], 3),
        Effort::Full => (&[16, 64, 256, 1024, 2048], 10),
    };
    let mut outcome = Outcome::default();
    let mut curves = [("warm", Vec::new()), ("cold", Vec::new())];
    for size in sizes {
        let found =
            measure(*size, wakes, &mut outcome, progress).with_context(|| format!("redis with {size} MB"))?;
        for ((_, points), value) in curves.iter_mut().zip(found) {
            points.push((*size as f64, value));
        }
    }
    for (tier, points) in &curves {
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            outcome
                .values
                .insert(format!("memory.{tier}_largest_to_smallest"), last.1 / first.1);
        }
    }
    outcome.plots.push(Plot::Lines(Lines {
        title: "first answer over a hot one, by size of the app".into(),
        x: Axis {
            label: "megabytes of redis".into(),
            log: true,
        },
        y: Axis {
            label: "ms".into(),
            log: false,
        },
        series: curves.map(|(tier, points)| (tier.to_owned(), points)).into(),
    }));
    Ok(outcome)
}

/// Medians of warm and cold over hot.
fn measure(
    size: u64,
    wakes: usize,
    outcome: &mut Outcome,
    progress: &mut dyn FnMut(&str),
) -> Result<[f64; 2]> {
    let mut app = Redis::with_keys(size * KEYS_PER_MB);
    let of = format!("{size} MB");
    let plan = Plan::new("memory")?.real_app(&app, |config| {
        config.idle = "never".into();
        config.memory = Some(format!("{}M", size * 2 + 256));
    })?;
    let mut found = [0.0; 2];
    plan.run(|rig| {
        progress(&format!("{of}: fill"));
        let at = rig.v4("redis")?;
        rig.agent.wait_state("redis", "hot")?;
        within(START, || app.ready(at))?;
        app.fill(at)?;
        let request = |app: &mut Redis| -> Result<f64> {
            interrupt::check()?;
            Ok(app.request(at, app.protocols()[0])?.as_secs_f64() * 1e3)
        };
        let hot = (0..50).map(|_| request(&mut app)).collect::<Result<Samples>>()?;
        let hot = outcome.row(&of, "hot", "ms", &hot)?;
        for (tier, median) in ["warm", "cold"].into_iter().zip(&mut found) {
            progress(&format!("{of}: {wakes} wakes from {tier}"));
            let mut over = Samples::default();
            for _ in 0..wakes {
                rig.agent.sleep("redis", tier)?;
                if tier == "warm" {
                    rig.drop_checkpoint_pages("redis")?;
                }
                over.push(request(&mut app)? - hot);
            }
            *median = outcome.row(&of, &format!("{tier} over hot"), "ms", &over)?;
        }
        app.check(at).context("state after the wakes")?;
        for (what, pid) in [("agent", rig.agent.pid()?), ("shim", rig.shim_of("redis")?)] {
            let peak: Samples = [peak_mib(pid)?].into_iter().collect();
            outcome.row(&of, &format!("{what}, most resident"), "MiB", &peak)?;
        }
        Ok(())
    })?;
    Ok(found)
}

/// The most memory a process ever had resident (proc_pid_status(5), VmHWM).
fn peak_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = procs::field(&status, "VmHWM").context("no VmHWM")?;
    let kib: f64 = field.split_whitespace().next().context("no VmHWM")?.parse()?;
    Ok(kib / 1024.0)
}
