//! A dump: forked children filled, CRIU started, its images made into a checkpoint, the decision carried out.
use std::fs;
use std::os::fd::AsRawFd;

use super::{Asked, DUMP_LOG, DumpStep, Shim, Work, micros, open_dir, source};
use crate::checkpoint::local::IMAGES_DIR;
use crate::clocks;
use crate::criu::rpc::{self, Common};
use crate::failpoint;
use crate::shim::dump::Assembly;
use crate::shim::locked::locked_memory;
use crate::shim::protocol::{DumpSummary, Event, Phase, Sleep};
use crate::shim::swrk::{Place, Swrk};

impl Shim {
    /// Begins with what must be in memory before a dump.
    pub(super) fn prepare_dump(&mut self, asked: Asked) {
        let locked = match &self.pager {
            // Everything is in memory.
            None => Ok(Vec::new()),
            Some(_) => locked_memory(&self.config.cgroup),
        };
        match locked {
            Ok(locked) => {
                self.work = Work::Filling { asked, locked };
                self.continue_filling();
            }
            Err(error) => self.dump_failed(format!("its locked memory: {error}"), DumpStep::Dumping),
        }
    }

    /// Fills what forked children and locked memory miss, then starts the dump.
    pub(super) fn continue_filling(&mut self) {
        let Work::Filling { asked, locked } = &self.work else {
            return;
        };
        let asked = asked.clone();
        if let Some(pager) = &mut self.pager {
            let filled = pager.fill_children().and_then(|(children, mut effects)| {
                let (locked, more) = pager.fill_locked(locked)?;
                effects.extend(more);
                Ok((children && locked, effects))
            });
            match filled {
                Ok((complete, effects)) => {
                    self.effects(effects);
                    if !complete {
                        return;
                    }
                }
                Err(error) => {
                    self.end_app(error.to_string());
                    return;
                }
            }
        }
        if let Err(reason) = self.begin_dump(asked) {
            self.dump_failed(reason, DumpStep::Dumping);
        }
    }

    pub(super) fn begin_dump(&mut self, asked: Asked) -> Result<(), String> {
        let words = |action: &str, error: &dyn std::fmt::Display| format!("{action}: {error}");
        let Some(pid) = self.pid else {
            return Err("the app does not run".into());
        };
        failpoint::reach("shim.filled");
        let images = asked.checkpoint.join(IMAGES_DIR);
        fs::create_dir_all(&images).map_err(|error| words("the checkpoint's directory", &error))?;
        fs::create_dir_all(&self.config.pages)
            .map_err(|error| words("the page objects' directory", &error))?;
        if let Some(pager) = &mut self.pager {
            pager.dump_begins();
        }
        let place = Place {
            netns: &self.config.netns,
            cgroup: None,
            inherit: &[],
        };
        let swrk =
            Swrk::spawn(&self.config.criu, place).map_err(|error| words("CRIU cannot be started", &error))?;
        self.watch(swrk.socket(), source::CRIU)
            .map_err(|error| error.to_string())?;
        let (images, work) = (open_dir(&images)?, open_dir(&self.config.work)?);
        let common = Common {
            images: images.as_raw_fd(),
            work: work.as_raw_fd(),
            log: DUMP_LOG,
        };
        let root = self.config.root.mountpoint.to_string_lossy();
        swrk.send(&rpc::dump(&common, pid, &root))
            .map_err(|error| words("CRIU", &error))?;
        failpoint::reach("shim.dumping");
        self.criu_dirs = Some([images, work]);
        self.work = Work::Dump {
            swrk,
            asked,
            at: DumpStep::Dumping,
        };
        Ok(())
    }

    pub(super) fn assemble(&mut self, asked: &Asked) -> Result<DumpSummary, String> {
        let (known, objects) = match &self.pager {
            None => (Vec::new(), Vec::new()),
            Some(pager) => {
                let known = pager.known();
                let known = known.ok_or("the app forked while it was being dumped; try again")?;
                (known, pager.objects().to_vec())
            }
        };
        let clocks = clocks::read().map_err(|error| format!("the clocks: {error}"))?;
        let assembly = Assembly {
            checkpoint: &asked.checkpoint,
            pages: &self.config.pages,
            generation: asked.generation,
            known,
            objects: &objects,
            root: &self.config.root,
            stdio: self.stdio_inodes,
            clocks,
            synced: asked.synced.as_ref(),
        };
        let stopped = assembly.clocks.clone();
        let made = assembly.assemble().map_err(|error| error.to_string())?;
        Ok(DumpSummary {
            stored_pages: made.stored_pages,
            carried_pages: made.carried_pages,
            unchanged_pages: made.unchanged_pages,
            zero_pages: made.zero_pages,
            image_bytes: made.image_bytes,
            sleep: Sleep {
                clocks: stopped,
                timers: made.timers,
            },
            took_us: micros(asked.since.elapsed()),
        })
    }

    /// Makes a dump fail that is under way. One that is ready waits for the agent's decision anyway.
    pub(super) fn call_off(&mut self) {
        match &self.work {
            Work::Filling { .. } => self.dump_failed("called off".into(), DumpStep::Dumping),
            Work::Dump {
                swrk,
                at: DumpStep::Dumping,
                ..
            } => {
                if let Err(error) = swrk.hinder() {
                    eprintln!("the dump goes on although it was called off: {error}");
                }
            }
            Work::None | Work::Dump { .. } | Work::Restore { .. } => {}
        }
    }

    pub(super) fn decide(&mut self, accept: bool) {
        let Work::Dump { at, .. } = &mut self.work else {
            return;
        };
        if *at != DumpStep::Deciding {
            return;
        }
        if accept {
            failpoint::reach("shim.committed");
        }
        *at = if accept {
            DumpStep::Committed
        } else {
            DumpStep::Refused
        };
        if !accept && self.refusal.is_none() {
            self.refusal = Some("called off".into());
        }
        self.answer_criu(accept);
    }

    pub(super) fn dump_failed(&mut self, reason: String, at: DumpStep) {
        self.work = Work::None;
        self.criu_dirs = None;
        if let Some(pager) = &mut self.pager {
            pager.dump_ends();
        }
        if at == DumpStep::Committed && self.pid.is_none() {
            return;
        }
        self.phase = Phase::Running;
        self.say(&Event::Failed {
            reason,
            running: true,
            permanent: false,
        });
    }

    /// Both must have happened: CRIU is done, and the app's first process has been reaped.
    pub(super) fn finish_dump(&mut self) {
        if self.dumped && self.pid.is_none() {
            failpoint::reach("shim.dumped");
            self.drain_logs();
            self.phase = Phase::Ended;
            self.say(&Event::Dumped);
            self.done = true;
        }
    }
}
