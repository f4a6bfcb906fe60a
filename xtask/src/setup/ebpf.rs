//! The compiler for eBPF programs: picks one, and the bpf-linker that matches it.
//!
//! `bpfel-unknown-none` has no prebuilt `core`, so the compiler must come with its source; and
//! bpf-linker must be built with the major version of LLVM that the compiler was built with, since
//! it reads its bitcode. rustup's nightly with rust-src is taken where both hold, otherwise
//! Debian's rustc with its source.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::cmd;
use crate::place::{Place, clean_env};

/// The version of bpf-linker that is built here.
pub const LINKER_VERSION: &str = "0.13.0";

/// Debian's compilers and their sources, best first. The `-web` ones are what Debian builds its
/// browsers with, so they are newer than the release.
const DEBIAN_PAIRS: [(&str, &str); 2] = [("rustc-web", "rust-web-src"), ("rustc", "rust-src")];

/// Where Debian's compiler is.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Who provides the compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// rustup's nightly toolchain.
    Nightly,
    /// Debian's rustc, and the packages still to be installed for it.
    Debian {
        /// Packages that are not there yet.
        missing: Vec<String>,
    },
}

/// A compiler for eBPF programs.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// Who provides it.
    pub provider: Provider,
    /// Its LLVM's major version.
    pub llvm: u32,
    /// Its version, and why it was picked.
    pub about: String,
}

/// What `rustc -vV` says.
struct Version {
    release: String,
    llvm: u32,
}

fn parse_version(text: &str) -> Option<Version> {
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some(Version {
        release: field("release:")?.to_owned(),
        llvm,
    })
}

/// The version of a compiler and whether its source lies beside it.
fn inspect(mut rustc: impl FnMut() -> Command) -> Option<(Version, bool)> {
    let version = parse_version(&cmd::output(clean_env(rustc().arg("-vV"))).ok()?)?;
    let sysroot = cmd::output(clean_env(rustc().args(["--print", "sysroot"]))).ok()?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    Some((version, core.is_file()))
}

/// Picks the compiler.
pub fn compiler(place: &Place) -> Result<Compiler> {
    let not_nightly = match nightly(place) {
        Ok(found) => return Ok(found),
        Err(reason) => reason,
    };
    debian(place, &not_nightly)
}

/// rustup's nightly, or why it will not do.
fn nightly(place: &Place) -> Result<Compiler, String> {
    if cmd::which("rustup").is_none() {
        return Err("no rustup here".into());
    }
    let rustc = || {
        let mut cmd = Command::new("rustup");
        cmd.args(["run", "nightly", "rustc"])
            .env("RUSTUP_AUTO_INSTALL", "0");
        cmd
    };
    let (version, source) = inspect(rustc).ok_or("rustup has no nightly")?;
    let Version { release, llvm } = version;
    if !source {
        return Err(format!("rustup's nightly {release} has no rust-src"));
    }
    let package = dev_package(llvm);
    if linker(place, llvm).is_none() && !apt::candidates(&[&package]).contains_key(&package) {
        return Err(format!(
            "rustup's nightly {release} is built with LLVM {llvm}, which Debian does not have here"
        ));
    }
    Ok(Compiler {
        provider: Provider::Nightly,
        llvm,
        about: format!("rustup's nightly {release} with rust-src, LLVM {llvm}"),
    })
}

/// Debian's compiler, installed or to be installed.
fn debian(place: &Place, why: &str) -> Result<Compiler> {
    let wanted = rust_version(&place.root)?;
    let here = inspect(|| Command::new(DEBIAN_RUSTC)).filter(|(v, _)| apt::at_least(&v.release, &wanted));
    if let Some((Version { release, llvm }, true)) = here {
        let about = format!("Debian's rustc {release} with source, LLVM {llvm} ({why})");
        return Ok(Compiler {
            provider: Provider::Debian { missing: Vec::new() },
            llvm,
            about,
        });
    }
    let found = apt::candidates(&DEBIAN_PAIRS.map(|(rustc, _)| rustc));
    for (rustc, source) in DEBIAN_PAIRS {
        let Some(version) = found.get(rustc).filter(|v| apt::at_least(v, &wanted)) else {
            continue;
        };
        let llvm = apt::llvm_of(rustc).with_context(|| format!("Debian's {rustc} names no LLVM library"))?;
        let missing = vec![rustc.to_owned(), source.to_owned()];
        let about = format!("Debian's {rustc} {version} with source, LLVM {llvm} ({why})");
        return Ok(Compiler {
            provider: Provider::Debian { missing },
            llvm,
            about,
        });
    }
    bail!(
        "no compiler for eBPF: {why}, and apt offers no rustc of {wanted} or later. Either run \
         `rustup toolchain install nightly --component rust-src` and install a bpf-linker built with its \
         LLVM, or run `{}apt-get update` with Debian's security updates among the sources",
        cmd::sudo_prefix()
    )
}

/// The workspace's `rust-version`: cargo refuses an older compiler.
fn rust_version(root: &Path) -> Result<String> {
    let file = root.join("Cargo.toml");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let manifest: toml::Table = text
        .parse()
        .with_context(|| format!("cannot parse {}", file.display()))?;
    let version = manifest
        .get("workspace")
        .and_then(|w| w.get("package")?.get("rust-version")?.as_str());
    Ok(version
        .context("Cargo.toml has no workspace.package.rust-version")?
        .to_owned())
}

/// Debian's package that bpf-linker is built with.
pub fn dev_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

/// A bpf-linker that works and has this LLVM: ours, or one on `PATH`.
pub fn linker(place: &Place, llvm: u32) -> Option<PathBuf> {
    let ours = Some(place.tools.join("bpf-linker/bin/bpf-linker"));
    [ours, cmd::which("bpf-linker")]
        .into_iter()
        .flatten()
        .find(|file| {
            let libraries = cmd::output(clean_env(Command::new("ldd").arg(file))).unwrap_or_default();
            linked_llvm(&libraries) == Some(llvm)
                && cmd::output(clean_env(Command::new(file).arg("--version"))).is_ok()
        })
}

/// The LLVM among the libraries that `ldd` lists: `libLLVM.so.22.1` or `libLLVM-14.so.1`. A library
/// that is listed as not found does not count.
fn linked_llvm(ldd: &str) -> Option<u32> {
    let line = ldd
        .lines()
        .find(|l| l.contains("libLLVM") && !l.contains("not found"))?;
    let name = line.split_whitespace().next()?;
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The command that builds bpf-linker into the tools directory.
pub fn install_linker(place: &Place, llvm: u32) -> Command {
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let mut path = std::ffi::OsString::from(format!("{prefix}/bin:"));
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut cmd = place.cargo();
    // One that is there already does not work, or not with this LLVM.
    cmd.args([
        "install",
        "bpf-linker",
        "--force",
        "--locked",
        "--version",
        LINKER_VERSION,
    ]);
    cmd.args([
        "--no-default-features",
        "--features",
        &format!("llvm-{llvm}"),
        "--root",
    ]);
    cmd.arg(place.tools.join("bpf-linker"));
    // Not into the repository's own target directory, whatever the environment says.
    cmd.env("LLVM_PREFIX", prefix)
        .env("PATH", path)
        .env_remove("CARGO_TARGET_DIR");
    // It is built in a directory of its own: the workspace's cargo settings are not for it.
    cmd.current_dir("/");
    cmd
}

/// The same, as one would type it.
pub fn install_linker_command(place: &Place, llvm: u32) -> String {
    format!(
        "PATH=/usr/lib/llvm-{llvm}/bin:$PATH LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo install bpf-linker --force --locked \
         --version {LINKER_VERSION} --no-default-features --features llvm-{llvm} --root {}",
        place.tools.join("bpf-linker").display()
    )
}

impl Compiler {
    /// `cargo build` for this compiler, in the repository.
    pub fn cargo(&self, place: &Place) -> Command {
        let mut cmd;
        match self.provider {
            Provider::Nightly => {
                cmd = Command::new("rustup");
                cmd.args(["run", "nightly", "cargo"])
                    .env_remove("RUSTUP_TOOLCHAIN");
                clean_env(cmd.current_dir(&place.root));
            }
            Provider::Debian { .. } => {
                cmd = place.cargo();
                // A released compiler: this lets it build core.
                cmd.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            }
        }
        for key in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
            cmd.env_remove(key);
        }
        cmd.arg("build");
        cmd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_llvm_is_read_from_its_version() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                    host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        let version = parse_version(text).unwrap();
        assert_eq!((version.release.as_str(), version.llvm), ("1.96.0", 22));
        assert!(parse_version("rustc 1.96.0\n").is_none());
    }

    #[test]
    fn the_linkers_llvm_is_read_from_its_libraries() {
        let new =
            "\tlinux-vdso.so.1 (0x1)\n\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x2)\n";
        assert_eq!(linked_llvm(new), Some(22));
        assert_eq!(
            linked_llvm("\tlibLLVM-14.so.1 => /lib/libLLVM-14.so.1 (0x2)\n"),
            Some(14)
        );
        assert_eq!(linked_llvm("\tlibLLVM.so.22.1 => not found\n"), None);
        assert_eq!(linked_llvm("\tstatically linked\n"), None);
    }
}
