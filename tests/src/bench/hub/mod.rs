//! `hub`: what the hub takes of many apps (`registry`) and of many queries for their names (`names`).

mod agent;
mod names;
mod registry;

use anyhow::Result;

use super::{Effort, Outcome};

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
