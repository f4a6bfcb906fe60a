//! From a running app to a checkpoint.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::app::App;
use super::state::{Event, State};
use crate::checkpoint::index::{ObjectId, PAGE_SIZE, PageIndex};
use crate::checkpoint::local::{Clocks, INDEX_FILE};
use crate::clocks;
use crate::control::protocol::{ErrorCode, Failure};
use crate::criu::sockets::is_unaccepted;
use crate::criu::stats::{DUMP_STATS, frozen};
use crate::failpoint;
use crate::shim::protocol::{self as shim, DumpSummary, Exit, Request};
use crate::units::Timestamp;

/// Why a swap-out was called off by a packet.
const CALLED: &str = "called off: packets came for it meanwhile";

/// How a swap-out ended.
enum Outcome {
    Slept(DumpSummary),
    /// The app runs on: it could not be dumped.
    Refused(String),
    /// The app runs on: packets came for it.
    CalledOff(String),
    /// The app ended by itself meanwhile.
    Exited(Exit, Option<String>),
    /// The shim is gone.
    Lost,
}

impl App {
    /// Swaps the app out. Packets are held from the first moment; any that come before the point of no return
    /// call it off.
    pub(super) async fn sleep(&mut self, why: &str) -> Result<(), Failure> {
        if let Some(reason) = self.undumpable().await {
            self.sleep_failed();
            self.fail("swap-out", &reason);
            self.save();
            let message = format!("'{}' cannot be put to sleep ({reason})", self.config.name);
            return Err(Failure::new(ErrorCode::SleepFailed, message));
        }
        if self.going_down {
            self.end_all_beside().await;
        } else if self.beside.count() > 0 {
            let message = format!(
                "'{}' cannot sleep while a command runs beside it",
                self.config.name
            );
            return Err(self
                .wrong_state(message)
                .hint("end the command (pico app exec), then again"));
        }
        self.settle_upload(false).await;
        self.learn().await;
        let synced = self.sync_ahead().await;
        if self.state() != State::Hot {
            // It ended meanwhile.
            return Err(self.wrong_state(format!("an app that is {} cannot sleep", self.state())));
        }
        let began = Instant::now();
        self.apply(Event::SwapOut, why);
        self.told = None;
        if let Err(error) = self.host.gate.hold(&self.config.name).await {
            return self
                .slept_not(format!("its packets cannot be held: {error}"))
                .await;
        }
        failpoint::reach("agent.held");
        let generation = self.next_generation();
        match self.swap_out(generation, synced).await {
            Outcome::Slept(summary) => {
                self.slept(generation, &summary, why).await;
                let written = summary.stored_pages * PAGE_SIZE + summary.image_bytes;
                let full = summary.carried_pages == 0;
                self.host.metrics.slept(began.elapsed(), written, full);
                Ok(())
            }
            Outcome::Refused(reason) => {
                self.discard_generation(generation);
                self.slept_not(reason).await
            }
            Outcome::CalledOff(reason) => {
                self.discard_generation(generation);
                self.runs_on(&reason).await;
                let message = format!("'{}' was not put to sleep ({reason})", self.config.name);
                Err(Failure::new(ErrorCode::Busy, message))
            }
            Outcome::Exited(exit, reason) => {
                self.discard_generation(generation);
                let failure = format!("'{}' ended while it was swapped out ({exit})", self.config.name);
                self.exited(exit, reason).await;
                Err(Failure::new(ErrorCode::SleepFailed, failure))
            }
            Outcome::Lost => {
                self.lost("its shim was lost while it was swapped out").await;
                Err(Failure::new(ErrorCode::SleepFailed, "its shim was lost"))
            }
        }
    }

    /// Writes to the disk what would otherwise be written while the app stands still: the checkpoint is made durable
    /// together with the app's files, by `syncfs`, which waits for what everybody else has written too.
    /// Tells when that began; `None` if it did not go well, which shows again when it counts.
    async fn sync_ahead(&self) -> Option<Clocks> {
        let dir = self.paths.dir.clone();
        let sync = move || -> std::io::Result<Clocks> {
            let began = clocks::read()?;
            nix::unistd::syncfs(fs::File::open(dir)?)?;
            Ok(began)
        };
        tokio::task::spawn_blocking(sync).await.ok()?.ok()
    }

    async fn swap_out(&mut self, generation: u64, synced: Option<Clocks>) -> Outcome {
        let Some(mut live) = self.live.take() else {
            return Outcome::Lost;
        };
        let outcome = self
            .dump(&live.client, &mut live.events, generation, synced)
            .await;
        self.live = Some(live);
        outcome
    }

    async fn dump(
        &mut self,
        client: &crate::shim::client::ShimClient,
        events: &mut tokio::sync::mpsc::UnboundedReceiver<shim::Event>,
        generation: u64,
        synced: Option<Clocks>,
    ) -> Outcome {
        let unfinished = self.paths.unfinished(generation);
        let _ = fs::remove_dir_all(&unfinished);
        if let Err(error) = fs::create_dir_all(&unfinished) {
            return Outcome::Refused(format!("{}: {error}", unfinished.display()));
        }
        let request = Request::Dump {
            checkpoint: unfinished.clone(),
            generation,
            synced,
        };
        if client.send(&request).await.is_err() {
            return Outcome::Lost;
        }
        let mut made = None;
        let mut called_off = None;
        let gate = self.host.gate.clone();
        let name = self.config.name.clone();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                // There is no use in dumping on; the packet waits. When the host goes down the app sleeps all the same.
                () = gate.call(&name), if made.is_none() && called_off.is_none() && !self.going_down => {
                    called_off = Some(CALLED.to_owned());
                    if client.send(&Request::CallOff).await.is_err() {
                        return Outcome::Lost;
                    }
                    continue;
                }
            };
            match event {
                Some(shim::Event::Need { object, block }) => self.serve_block_to(client, object, block),
                Some(shim::Event::DumpReady(summary)) => {
                    failpoint::reach("agent.dumped");
                    if called_off.is_none() {
                        called_off = self.point_of_no_return(generation).err();
                    }
                    made = Some(summary);
                    failpoint::reach("agent.named");
                    let commit = Request::Commit {
                        accept: called_off.is_none(),
                    };
                    if client.send(&commit).await.is_err() {
                        return Outcome::Lost;
                    }
                }
                Some(shim::Event::Dumped) => {
                    failpoint::reach("agent.slept");
                    return match made {
                        Some(summary) => Outcome::Slept(summary),
                        None => Outcome::Lost,
                    };
                }
                Some(shim::Event::Failed {
                    reason,
                    running: true,
                    ..
                }) => {
                    return match called_off {
                        Some(why) => Outcome::CalledOff(why),
                        None if is_unaccepted(&reason) => {
                            Outcome::CalledOff("called off: a connection is not yet accepted".into())
                        }
                        None => Outcome::Refused(reason),
                    };
                }
                Some(shim::Event::Failed { reason, .. }) => {
                    return Outcome::Exited(Exit::Signal(9), Some(reason));
                }
                Some(shim::Event::Exited { exit, reason }) => return Outcome::Exited(exit, reason),
                Some(_) => {}
                None => return Outcome::Lost,
            }
        }
    }

    /// Decides whether the app ends now. The checkpoint is complete and synced; it gets its name here, so that
    /// from here on there is always one whole state to wake from.
    fn point_of_no_return(&mut self, generation: u64) -> Result<(), String> {
        // When the host goes down it sleeps all the same; the client sends again, and the next agent hears it.
        if !self.going_down {
            self.pending()?;
            if self.host.gate.called(&self.config.name) {
                return Err(CALLED.to_owned());
            }
        }
        let (from, to) = (
            self.paths.unfinished(generation),
            self.paths.checkpoint(generation),
        );
        let named = fs::rename(&from, &to).and_then(|()| sync_dir(&self.paths.checkpoints()));
        named.map_err(|error| format!("{}: {error}", to.display()))
    }

    async fn slept(&mut self, generation: u64, summary: &DumpSummary, why: &str) {
        tracing::info!(
            app = self.config.name,
            generation,
            frozen_us = self.frozen().map(|time| time.as_micros()),
            ?summary,
            "swapped out"
        );
        if let Some(live) = self.live.take() {
            self.end_run(live.cgroup).await;
        }
        let checkpoint = &mut self.record.checkpoint;
        checkpoint.generation = generation;
        checkpoint.local = Some(generation);
        checkpoint.taken = Some(Timestamp::now());
        checkpoint.sleep = summary.sleep.clone();
        checkpoint.bytes = (summary.stored_pages + summary.carried_pages) * PAGE_SIZE + summary.image_bytes;
        self.standby_failed = false;
        self.record.connections = self.checkpoint_connections(generation);
        self.record.counters.sleeps += 1;
        self.sleep_succeeded();
        self.apply(Event::Slept, why);
        self.save();
        self.mind_gate().await;
        self.sources.close();
        if let Err(error) = self.remove_old(generation) {
            tracing::warn!(app = self.config.name, error, "cannot remove old checkpoints");
        }
    }

    /// How long the app stood still for the dump, by CRIU's reckoning.
    fn frozen(&self) -> Option<Duration> {
        let path = self.paths.run().join(DUMP_STATS);
        let read = fs::read(&path).map_err(|error| error.to_string());
        match read.and_then(|stats| frozen(&stats).map_err(|error| error.to_string())) {
            Ok(time) => Some(time),
            Err(error) => {
                tracing::warn!(app = self.config.name, path = %path.display(), error, "CRIU's statistics");
                None
            }
        }
    }

    /// A swap-out that failed; the next try by idleness waits longer each time.
    async fn slept_not(&mut self, reason: String) -> Result<(), Failure> {
        self.record.counters.failed_sleeps += 1;
        self.sleep_failed();
        self.fail("swap-out", &reason);
        self.runs_on(&reason).await;
        let message = format!(
            "'{}' could not be put to sleep and runs on ({reason})",
            self.config.name
        );
        Err(Failure::new(ErrorCode::SleepFailed, message))
    }

    /// The app goes on; its packets get through again.
    async fn runs_on(&mut self, why: &str) {
        let link = self.record.link.clone();
        if let Err(error) = self.host.gate.release(&self.config.name, &link).await {
            tracing::error!(app = self.config.name, %error, "cannot let packets through again");
        }
        if let Some(live) = &mut self.live {
            live.hot_since = super::app::now();
        }
        self.apply(Event::SwapOutFailed, why);
        self.save();
    }

    /// One more than any that was ever begun.
    fn next_generation(&self) -> u64 {
        let dirs = fs::read_dir(self.paths.checkpoints())
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let begun = dirs.filter_map(|dir| {
            dir.file_name()
                .to_str()
                .and_then(|name| name.trim_end_matches(".tmp").parse::<u64>().ok())
        });
        begun.max().unwrap_or(0).max(self.record.checkpoint.generation) + 1
    }

    /// Removes what a swap-out that did not happen has made.
    fn discard_generation(&self, generation: u64) {
        let _ = fs::remove_dir_all(self.paths.unfinished(generation));
        let _ = fs::remove_dir_all(self.paths.checkpoint(generation));
        let of_it = |id: ObjectId| id.generation == generation;
        let _ = remove_pages(&self.paths.pages(), of_it);
    }

    /// Removes older checkpoints, their objects, and local copies of page objects that the newest one does not need.
    fn remove_old(&self, generation: u64) -> Result<(), String> {
        let words = |error: std::io::Error| error.to_string();
        let _ = fs::remove_dir_all(self.paths.transfers());
        for dir in fs::read_dir(self.paths.checkpoints()).map_err(words)? {
            let dir = dir.map_err(words)?;
            if dir.file_name().to_str() != Some(&generation.to_string()) {
                fs::remove_dir_all(dir.path()).map_err(words)?;
            }
        }
        let bytes = fs::read(self.paths.checkpoint(generation).join(INDEX_FILE)).map_err(words)?;
        let index = PageIndex::decode(&bytes).map_err(|error| error.to_string())?;
        let needed: HashSet<ObjectId> = index.objects.iter().map(|object| object.id).collect();
        remove_pages(&self.paths.pages(), |id| !needed.contains(&id)).map_err(words)
    }
}

/// Removes the local copies of page objects for which `unwanted` holds.
fn remove_pages(pages: &Path, unwanted: impl Fn(ObjectId) -> bool) -> std::io::Result<()> {
    for entry in fs::read_dir(pages)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.split_once('.'))
            .and_then(|(id, _)| {
                let (generation, number) = id.split_once('-')?;
                Some(ObjectId {
                    generation: generation.parse().ok()?,
                    number: number.parse().ok()?,
                })
            });
        if id.is_some_and(&unwanted) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    fs::File::open(dir)?.sync_all()
}
