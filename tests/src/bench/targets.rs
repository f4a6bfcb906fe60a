//! What the numbers should be: `tests/targets.toml`, compared with what was measured.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Built in, so that the binary and the file it was built with agree.
const FILE: &str = include_str!("../../targets.toml");

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Goal {
    at_most: f64,
}

/// A target and how it was met.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    /// `BENCH.WHAT`.
    pub name: String,
    /// What was measured; nothing when it was not.
    pub value: Option<f64>,
    /// What it should be, as `<= 60`.
    pub goal: String,
    /// Whether it is. Never, when it was not measured.
    pub met: bool,
}

/// All targets of the benches named, in the order of the file's names.
///
/// # Errors
/// When the file is malformed.
pub fn compare(benches: &[String], values: &BTreeMap<String, f64>) -> Result<Vec<Target>> {
    let file: BTreeMap<String, BTreeMap<String, Goal>> =
        toml::from_str(FILE).context("tests/targets.toml is malformed")?;
    let goals = file
        .iter()
        .flat_map(|(bench, goals)| goals.iter().map(move |(what, goal)| (bench, what, goal)));
    let asked = goals.filter(|(bench, ..)| benches.contains(bench));
    let target = |(bench, what, goal): (&String, &String, &Goal)| {
        let name = format!("{bench}.{what}");
        let value = values.get(&name).copied();
        Target {
            value,
            goal: format!("<= {}", goal.at_most),
            met: value.is_some_and(|value| value <= goal.at_most),
            name,
        }
    };
    Ok(asked.map(target).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_a_bench_is_reported_and_an_unmeasured_one_is_not_met() -> Result<()> {
        let values = BTreeMap::from([("wake.nginx.warm_over_hot_ms".to_owned(), 59.0)]);
        let targets = compare(&["wake".to_owned()], &values)?;
        let find = |name: &str| targets.iter().find(|target| target.name == name);
        let met = find("wake.nginx.warm_over_hot_ms").context("missing")?;
        assert_eq!(
            (met.value, met.goal.as_str(), met.met),
            (Some(59.0), "<= 60", true)
        );
        let missing = find("wake.redis.cold_over_hot_ms").context("missing")?;
        assert_eq!((missing.value, missing.met), (None, false));
        assert_eq!(compare(&[], &values)?, []);
        Ok(())
    }

    #[test]
    fn a_value_above_the_goal_does_not_meet_it() -> Result<()> {
        let values = BTreeMap::from([("wake.bind.cold_over_hot_ms".to_owned(), 90.1)]);
        let targets = compare(&["wake".to_owned()], &values)?;
        assert!(
            targets
                .iter()
                .any(|target| target.value == Some(90.1) && !target.met)
        );
        Ok(())
    }

    #[test]
    fn every_target_belongs_to_a_bench_that_exists() -> Result<()> {
        let file: BTreeMap<String, BTreeMap<String, Goal>> = toml::from_str(FILE)?;
        assert!(
            file.keys()
                .all(|bench| crate::bench::names().contains(&bench.as_str()))
        );
        Ok(())
    }
}
