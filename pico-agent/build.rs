//! Embeds the eBPF object that `cargo xtask build` makes: `$PICO_EBPF_OBJECT`, or `target/bpf/pico-ebpf.o`
//! of the workspace. Where there is none (no eBPF toolchain on this machine, documentation builds) an empty
//! file is embedded, and the agent says at run time what it lacks.

use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PICO_EBPF_OBJECT");
    let bytes = match env::var_os("PICO_EBPF_OBJECT") {
        Some(path) => read(Path::new(&path))?,
        None => {
            let object = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../target/bpf/pico-ebpf.o");
            if object.exists() {
                read(&object)?
            } else {
                absent(&object)
            }
        }
    };
    let embedded = Path::new(&env::var("OUT_DIR")?).join("pico-ebpf.o");
    fs::write(&embedded, bytes).map_err(|error| format!("cannot write {}: {error}", embedded.display()))?;
    Ok(())
}

fn read(object: &Path) -> Result<Vec<u8>, String> {
    println!("cargo::rerun-if-changed={}", object.display());
    fs::read(object).map_err(|error| format!("cannot read the eBPF object {}: {error}", object.display()))
}

/// What is embedded while there is no object.
fn absent(object: &Path) -> Vec<u8> {
    // Cargo takes a watched file that is missing for changed, and would build the agent anew each time; so
    // watch its directory. Where that cannot be made (a read-only checkout) only a clean build sees it.
    if let Some(directory) = object.parent()
        && fs::create_dir_all(directory).is_ok()
    {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
    Vec::new()
}
