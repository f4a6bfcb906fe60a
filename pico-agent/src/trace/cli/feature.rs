//! `feature probe`: what tracing needs of a kernel, tried.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use serde_json::json;

use crate::cli::exit::Exit;
use crate::cli::output::{Output, table};
use crate::control::protocol::Failure;

/// The running kernel's type information (Linux 5.4, CONFIG_DEBUG_INFO_BTF).
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Tracepoints, by the names that the kernel's type information has for them, and what they are for.
const TRACEPOINTS: [(&str, &str); 6] = [
    (
        "btf_trace_page_fault_user",
        "faults of the app's own instructions",
    ),
    ("btf_trace_page_fault_kernel", "faults inside system calls"),
    ("btf_trace_inet_sock_set_state", "connections"),
    ("btf_trace_sock_recv_length", "data received"),
    ("btf_trace_sock_send_length", "data sent"),
    ("btf_trace_sched_waking", "requests handed to another thread"),
];

struct Row {
    feature: String,
    there: Option<bool>,
    purpose: &'static str,
}

/// `feature probe`
pub(super) fn probe(output: &Output) -> Result<Exit, Failure> {
    let mut rows = Vec::new();
    for (name, kind, purpose) in [
        ("raw_tracepoint", ProgramType::RawTracePoint, "faults and sockets"),
        ("tracing", ProgramType::Tracing, "the walk through page tables"),
        ("cgroup_skb", ProgramType::CgroupSkb, "activity"),
    ] {
        rows.push(Row {
            feature: format!("program {name}"),
            there: is_program_supported(kind).ok(),
            purpose,
        });
    }
    for (name, kind, purpose) in [
        ("ringbuf", MapType::RingBuf, "events in their order"),
        ("percpu_hash", MapType::PerCpuHash, "activity"),
        ("lru_hash", MapType::LruHash, "which thread serves which port"),
    ] {
        rows.push(Row {
            feature: format!("map {name}"),
            there: is_map_supported(kind).ok(),
            purpose,
        });
    }
    let btf = std::fs::read(BTF).ok();
    rows.push(Row {
        feature: "btf".to_owned(),
        there: Some(btf.is_some()),
        purpose: "where fields are in the kernel's structures",
    });
    for (name, purpose) in TRACEPOINTS {
        // Names are strings that end with a zero byte.
        let text = format!("\0{name}\0");
        let found = |btf: &Vec<u8>| btf.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        rows.push(Row {
            feature: format!("tracepoint {}", name.trim_start_matches("btf_trace_")),
            there: btf.as_ref().map(found),
            purpose,
        });
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim();
    let features: Vec<_> = rows
        .iter()
        .map(|row| json!({ "feature": row.feature, "available": row.there, "purpose": row.purpose }))
        .collect();
    output.document(&json!({ "kernel": kernel, "features": features }), || {
        table(
            &["FEATURE", "AVAILABLE", "FOR"],
            rows.iter().map(|row| {
                let there = match row.there {
                    Some(true) => "yes",
                    Some(false) => "no",
                    None => "not told",
                };
                vec![row.feature.clone(), there.to_owned(), row.purpose.to_owned()]
            }),
        )
    })
}
