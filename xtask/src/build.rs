//! `cargo xtask build`: the eBPF object first, since the agent embeds it, then everything else.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cmd;
use crate::place::{Place, shown};
use crate::setup::Tools;

/// Builds everything of one profile. Prints the time it took.
pub fn build(place: &Place, tools: &Tools, release: bool) -> Result<()> {
    let start = Instant::now();
    ebpf(place, tools)?;
    let mut cargo = place.cargo();
    with_object(place, &mut cargo);
    // The whole workspace, as the tests build it: a part of it would choose other features of the
    // libraries, and build them once more.
    cargo.args(["build", "--workspace"]);
    if release {
        cargo.arg("--release");
    }
    cmd::run(&mut cargo)?;
    println!(
        "build: {} is ready ({})",
        shown(&place.binaries(release)),
        cmd::elapsed(start.elapsed())
    );
    Ok(())
}

/// Builds the eBPF programs and puts the object where the agent's build script looks for it. The
/// file is only touched when the programs have changed.
pub fn ebpf(place: &Place, tools: &Tools) -> Result<()> {
    let dir = place.target.join("bpf-build");
    println!("eBPF: {}", tools.compiler.about);
    let mut cargo = tools.compiler.cargo(place);
    cargo.args([
        "-p",
        "pico-ebpf",
        "--bin",
        "pico-ebpf",
        "--features",
        "bpf",
        "--release",
    ]);
    cargo
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&dir);
    compile_for_bpf(&mut cargo, &tools.linker);
    cmd::run(&mut cargo)?;
    let built = dir.join(TARGET).join("release/pico-ebpf");
    let object = std::fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    cmd::write_if_changed(&place.ebpf_object(), &object)?;
    Ok(())
}

const TARGET: &str = "bpfel-unknown-none";

/// What the workspace's release profile must not do to eBPF programs, and what they need besides.
fn compile_for_bpf(cargo: &mut std::process::Command, linker: &Path) {
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    // bpf-linker does the link-time optimisation; the kernel wants BTF, made of debug information.
    cargo
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    cargo
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none");
    let arch = std::env::consts::ARCH;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
}

/// Tells the agent's build script where the object is, when it is not in the usual place (the
/// variable alone would make cargo build the agent again).
pub fn with_object(place: &Place, cargo: &mut std::process::Command) {
    if place.target != place.root.join("target") {
        cargo.env("PICO_EBPF_OBJECT", place.ebpf_object());
    }
}
