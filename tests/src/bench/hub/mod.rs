//! `hub`: what the hub takes of many apps (`registry`) and of many queries for their names (`names`).

mod agent;
mod names;
mod registry;
mod stamped;

use std::process::Command;

use anyhow::Result;
use nix::unistd::gettid;

use super::{Effort, Outcome};
use crate::harness::process::output;

/// Runs the bench.
///
/// # Errors
/// When an app is refused or lost, a query is not answered, or a prefetch is not told of.
pub fn run(effort: Effort, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    registry::measure(effort, progress, &mut outcome)?;
    names::measure(effort, progress, &mut outcome)?;
    Ok(outcome)
}

/// Makes the calling thread run only where nobody else wants to: for clients and agents, which elsewhere have processors
/// of their own and never keep a hub waiting for one.
fn give_way() -> Result<()> {
    let thread = gettid().to_string();
    output(Command::new("chrt").args(["--idle", "--pid", "0", &thread]))?;
    Ok(())
}
