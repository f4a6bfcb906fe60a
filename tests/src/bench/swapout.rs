//! `swapout`: what a swap-out stores and how long it takes, on the second and later ones: it should cost what was
//! changed since the last, however large the app is.

use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Effort, Outcome};
use crate::harness::apps::{RealApp, Redis};
use crate::harness::rig::Plan;
use crate::harness::{Rig, Samples, interrupt, until, within};

const START: Duration = Duration::from_secs(30);
const PAGE_BYTES: f64 = 4096.0;
const MIB: f64 = 1024.0 * 1024.0;
/// Pages that the test app changes between two swap-outs, spread over all it has.
const CHANGED: usize = 2048;
/// What a writer beside has written at least before each swap-out, and the size of its file.
const WRITTEN_BETWEEN: u64 = 256 << 20;
const WRITTEN_AT_MOST: u64 = 1 << 30;

/// Runs the bench.
///
/// # Errors
/// When a request is lost, a state is wrong, or an app does not sleep.
pub fn run(effort: Effort, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let rounds = match effort {
        Effort::Quick => 3,
        Effort::Full => 15,
    };
    let mut outcome = Outcome::default();
    changed(rounds, &mut outcome, progress)?;
    untouched(rounds, &mut outcome, progress)?;
    let sizes: &[(&str, u64)] = &[("redis, 60 MB", 200_000), ("redis, 512 MB", 1_706_000)];
    let mut frozen = Vec::new();
    for (of, keys) in sizes {
        let plain = redis(of, *keys, rounds, None, &mut outcome, progress);
        frozen.push(plain.with_context(|| (*of).to_owned())?);
    }
    let writer = Writer::start()?;
    let (of, keys) = ("redis, 60 MB, beside a writer", 200_000);
    let beside = redis(of, keys, rounds, Some(&writer), &mut outcome, progress).context(of)?;
    drop(writer);
    if let [small, large] = frozen[..] {
        let values = &mut outcome.values;
        values.insert("swapout.redis_frozen_ms".into(), small);
        values.insert(
            "swapout.redis_frozen_beside_a_writer_to_alone".into(),
            beside / small,
        );
        values.insert("swapout.redis_frozen_512_mb_to_60_mb".into(), large / small);
    }
    Ok(outcome)
}

/// Bytes put into the store for one swap-out.
struct Put {
    pages: f64,
    /// Everything but pages.
    metadata: f64,
}

/// Puts the app to sleep, and sees what is stored of it.
fn sleep(rig: &Rig, name: &str) -> Result<Put> {
    rig.shaper()?.take_requests();
    rig.agent.sleep(name, "cold")?;
    let mut put = Put {
        pages: 0.0,
        metadata: 0.0,
    };
    let requests = rig.shaper()?.take_requests();
    for request in requests.iter().filter(|request| request.method == "PUT") {
        let sent = request.sent as f64;
        if request.path.contains("/pages-") {
            put.pages += sent;
        } else {
            put.metadata += sent;
        }
    }
    ensure!(put.metadata > 0.0, "nothing was stored");
    Ok(put)
}

/// Known pages are changed between swap-outs.
fn changed(rounds: usize, outcome: &mut Outcome, progress: &mut dyn FnMut(&str)) -> Result<()> {
    let of = "test app, 64 MB";
    plan(64)?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask_within("fill 64", START)?;
        sleep(rig, "a")?;
        let (mut ratio, mut share) = (Samples::default(), Samples::default());
        for round in 0..rounds {
            interrupt::check()?;
            progress(&format!("{of}: swap-out {round} with {CHANGED} pages changed"));
            // Reading all of it faults all in: what was only read must not be stored again.
            let verified = app.ask_within("verify", START)?;
            ensure!(verified.starts_with("ok"), "{verified}");
            app.ask_within(&format!("change {CHANGED}"), START)?;
            let put = sleep(rig, "a")?;
            ratio.push(put.pages / (CHANGED as f64 * PAGE_BYTES));
            share.push(put.metadata / rig.agent.show("a")?.checkpoint_bytes()? as f64);
        }
        let ratio = outcome.row(of, "page bytes stored of those changed", "share", &ratio)?;
        let share = outcome.row(of, "metadata stored of the checkpoint", "share", &share)?;
        let values = &mut outcome.values;
        values.insert("swapout.pages_stored_to_changed".into(), ratio);
        values.insert("swapout.metadata_to_checkpoint".into(), share);
        Ok(())
    })
}

/// A large app is woken by one request that changes next to nothing.
fn untouched(rounds: usize, outcome: &mut Outcome, progress: &mut dyn FnMut(&str)) -> Result<()> {
    let of = "test app, 512 MB";
    plan(512)?.run(|rig| {
        let app = rig.ready("a")?;
        progress(&format!("{of}: fill"));
        app.ask_within("fill 512", START)?;
        sleep(rig, "a")?;
        let mut stored = Samples::default();
        for round in 0..rounds {
            interrupt::check()?;
            progress(&format!("{of}: swap-out {round}, untouched"));
            ensure!(app.ask("ping")? == "pong", "no pong");
            let put = sleep(rig, "a")?;
            stored.push((put.pages + put.metadata) / MIB);
        }
        let stored = outcome.row(of, "stored of it untouched", "MiB", &stored)?;
        outcome
            .values
            .insert("swapout.untouched_512_mb_mib".into(), stored);
        Ok(())
    })
}

fn plan(megabytes: u64) -> Result<Plan> {
    Plan::new("swapout")?.shaped().test_app("a", |app| {
        app.idle = "never".into();
        app.memory = Some(format!("{}M", megabytes * 2 + 256));
    })
}

/// Milliseconds that redis stands still for a later swap-out, one key having been read and one changed.
fn redis(
    of: &str,
    keys: u64,
    rounds: usize,
    writer: Option<&Writer>,
    outcome: &mut Outcome,
    progress: &mut dyn FnMut(&str),
) -> Result<f64> {
    let mut app = Redis::with_keys(keys);
    let plan = Plan::new("swapout")?.shaped().real_app(&app, |config| {
        config.idle = "never".into();
        config.memory = Some("1536M".into());
    })?;
    let mut median = 0.0;
    plan.run(|rig| {
        let at = rig.v4("redis")?;
        rig.agent.wait_state("redis", "hot")?;
        within(START, || app.ready(at))?;
        progress(&format!("{of}: fill"));
        app.fill(at)?;
        sleep(rig, "redis")?;
        let mut frozen = Samples::default();
        let (mut ready, mut stored) = (Samples::default(), Samples::default());
        for round in 0..rounds {
            interrupt::check()?;
            progress(&format!("{of}: swap-out {round}"));
            app.request(at, app.protocols()[0])?;
            if let Some(writer) = writer {
                writer.wait_for(WRITTEN_BETWEEN)?;
            }
            let put = sleep(rig, "redis")?;
            stored.push(put.pages / MIB);
            let log = std::fs::read_to_string(rig.agent.log())?;
            ready.push(last_ms(&log, "took_us: ")?);
            frozen.push(last_ms(&log, "frozen_us=")?);
        }
        app.check(at).context("state after the swap-outs")?;
        outcome.row(of, "page bytes stored", "MiB", &stored)?;
        outcome.row(of, "checkpoint ready after", "ms", &ready)?;
        median = outcome.row(of, "stood still", "ms", &frozen)?;
        Ok(())
    })?;
    Ok(median)
}

/// Somebody else who writes to the disk that checkpoints lie on, all the time and as fast as it goes.
struct Writer {
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn start() -> Result<Self> {
        // Where `Plan` puts its state.
        let mut file = tempfile::tempfile_in("/var/tmp")?;
        let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&written), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let chunk = vec![0x5a; 1 << 20];
            while !stopped.load(Ordering::Relaxed) {
                file.seek(SeekFrom::Start(count.load(Ordering::Relaxed) % WRITTEN_AT_MOST))?;
                file.write_all(&chunk)?;
                count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Writer {
            written,
            thread: Some(thread),
            stop,
        })
    }

    /// Waits until so much more is written.
    fn wait_for(&self, bytes: u64) -> Result<()> {
        let goal = self.written.load(Ordering::Relaxed) + bytes;
        until("the writer", START, || {
            Ok((self.written.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that failed has already made a wait fail.
            let _ = thread.join();
        }
    }
}

/// A time that the agent's log gives of the last swap-out, in microseconds after `name`.
fn last_ms(log: &str, name: &str) -> Result<f64> {
    let (_, said) = log
        .rsplit_once(name)
        .with_context(|| format!("no {name} in the agent's log"))?;
    let digits = said.split(|c: char| !c.is_ascii_digit()).next();
    let micros: f64 = digits.context("no number")?.parse()?;
    Ok(micros / 1e3)
}
