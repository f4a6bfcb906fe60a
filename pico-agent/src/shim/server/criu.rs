//! What CRIU says while it works for us, and the answers.
use super::{DUMP_LOG, DumpStep, RESTORE_LOG, Shim, Work};
use crate::criu::rpc::{self, Response};
use crate::failpoint;
use crate::shim::protocol::Event;
use crate::shim::swrk;

impl Shim {
    pub(super) fn criu_ready(&mut self) {
        let said = match &self.work {
            Work::Dump { swrk, .. } | Work::Restore { swrk, .. } => swrk.receive(),
            Work::None | Work::Filling { .. } => return,
        };
        let said = said.unwrap_or_else(|error| {
            Some(Response::Failed {
                message: error.to_string(),
            })
        });
        match (said, std::mem::replace(&mut self.work, Work::None)) {
            (Some(Response::Notify { script }), work) => {
                self.work = work;
                self.notified(&script);
            }
            (Some(Response::Done { pid }), Work::Restore { since, .. }) => {
                self.criu_dirs = None;
                self.set_deadline(None);
                self.pid = pid;
                failpoint::reach("shim.restored");
                if let Some(pager) = &mut self.pager {
                    pager.restored();
                }
                // It runs; that is said when what is predicted is there.
                self.restored = Some(since);
            }
            (Some(Response::Done { .. }), Work::Dump { .. }) => {
                self.dumped = true;
                self.finish_dump();
            }
            (Some(Response::Failed { message }), Work::Restore { .. }) => {
                let reason = swrk::failure(&self.config.work.join(RESTORE_LOG), &message);
                self.failed_to_run(format!("the app cannot be restored: {reason}"));
            }
            (None, Work::Restore { .. }) => {
                self.failed_to_run("CRIU died in the middle of a restore".to_owned());
            }
            (ended, Work::Dump { at, .. }) => {
                let message = match ended {
                    Some(Response::Failed { message }) => message,
                    _ => "CRIU died in the middle of a dump".to_owned(),
                };
                let reason = match self.refusal.take() {
                    Some(refusal) => refusal,
                    None => swrk::failure(&self.config.work.join(DUMP_LOG), &message),
                };
                self.dump_failed(reason, at);
            }
            (_, Work::None | Work::Filling { .. }) => {}
        }
    }

    pub(super) fn notified(&mut self, script: &str) {
        let Work::Dump { asked, at, .. } = &mut self.work else {
            self.answer_criu(true);
            return;
        };
        if script != "post-dump" {
            self.answer_criu(true);
            return;
        }
        let asked = asked.clone();
        *at = DumpStep::Deciding;
        failpoint::reach("shim.frozen");
        let assembled = self.assemble(&asked);
        failpoint::reach("shim.assembled");
        match assembled {
            Ok(summary) if self.agent.is_some() => self.say(&Event::DumpReady(summary)),
            Ok(_) => {
                self.refusal = Some("the agent was gone when the dump was ready".into());
                self.decide(false);
            }
            Err(reason) => {
                self.refusal = Some(reason);
                self.decide(false);
            }
        }
    }

    pub(super) fn answer_criu(&mut self, go_on: bool) {
        if let Work::Dump { swrk, .. } | Work::Restore { swrk, .. } = &self.work
            && let Err(error) = swrk.send(&rpc::notified(go_on))
        {
            eprintln!("CRIU does not listen: {error}");
        }
    }
}
