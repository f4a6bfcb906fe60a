//! `prog` and `map`: what the kernel says of the agent's eBPF programs, whoever loaded them.

use std::collections::BTreeSet;

use aya::maps::loaded_maps;
use aya::programs::{ProgramInfo, loaded_programs};
use serde_json::{Value, json};

use crate::cli::exit::Exit;
use crate::cli::output::{Output, table};
use crate::control::protocol::{ErrorCode, Failure};
use crate::units::format_bytes;

/// How the names of all our programs begin.
const PREFIX: &str = "pico_";

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Denied, format!("the kernel does not tell ({error})")).hint("run it as root")
}

fn ours() -> Result<Vec<ProgramInfo>, Failure> {
    let mut programs = Vec::new();
    for program in loaded_programs() {
        let program = program.map_err(refused)?;
        if program.name_as_str().is_some_and(|name| name.starts_with(PREFIX)) {
            programs.push(program);
        }
    }
    Ok(programs)
}

/// `prog list`
pub(super) fn programs(output: &Output) -> Result<Exit, Failure> {
    let mut rows: Vec<Value> = Vec::new();
    for program in ours()? {
        rows.push(json!({
            "id": program.id(),
            "name": program.name_as_str(),
            "tag": format!("{:016x}", program.tag()),
            "loaded": program.loaded_at().map(crate::units::Timestamp::from),
            "instructions": program.size_translated().map(|bytes| bytes / 8),
            "memory_bytes": program.memory_locked().ok(),
            "run_count": program.run_count(),
            "run_time_ns": program.run_time().as_nanos().min(u128::from(u64::MAX)),
        }));
    }
    output.document(&json!({ "programs": rows }), || {
        let header = ["ID", "NAME", "TAG", "INSNS", "MEMORY", "RUNS", "TIME"];
        table(
            &header,
            rows.iter().map(|row| {
                let memory = row["memory_bytes"].as_u64().map_or("-".to_owned(), format_bytes);
                let time = row["run_time_ns"].as_u64().unwrap_or_default();
                vec![
                    plain(&row["id"]),
                    plain(&row["name"]),
                    plain(&row["tag"]),
                    plain(&row["instructions"]),
                    memory,
                    plain(&row["run_count"]),
                    format!("{:.3}ms", super::event::seconds(time) * 1e3),
                ]
            }),
        )
    })
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `map list`
pub(super) fn maps(output: &Output) -> Result<Exit, Failure> {
    let mut wanted = BTreeSet::new();
    for program in ours()? {
        wanted.extend(program.map_ids().map_err(refused)?.unwrap_or_default());
    }
    let mut rows: Vec<Value> = Vec::new();
    for map in loaded_maps() {
        let map = map.map_err(refused)?;
        if wanted.contains(&map.id()) {
            rows.push(json!({
                "id": map.id(),
                "name": map.name_as_str(),
                "type": map.map_type().map_or("unknown".to_owned(), |kind| format!("{kind:?}")),
                "key_bytes": map.key_size(),
                "value_bytes": map.value_size(),
                "entries_max": map.max_entries(),
            }));
        }
    }
    output.document(&json!({ "maps": rows }), || {
        let names = ["id", "name", "type", "key_bytes", "value_bytes", "entries_max"];
        table(
            &["ID", "NAME", "TYPE", "KEY", "VALUE", "MAX"],
            rows.iter()
                .map(|row| names.map(|name| plain(&row[name])).to_vec()),
        )
    })
}
