//! `cargo xtask setup`: what building and running needs of the host, row by row, and how what is
//! missing gets there. A row is looked at, never remembered: a second run finds nothing to do.

pub mod apt;
pub mod criu;
pub mod ebpf;
pub mod packages;
pub mod probe;
pub mod sources;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cmd;
use crate::place::Place;
use criu::{Criu, Known};
use ebpf::{Compiler, Provider};
use packages::PACKAGES;

/// What the host is made ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Need {
    /// `cargo xtask build`, which all the others need too.
    Build,
    /// `cargo xtask test`.
    Test,
    /// `cargo xtask demo`.
    Demo,
    /// `cargo xtask bench`.
    Bench,
    /// `cargo xtask fresh`.
    Fresh,
}

impl Need {
    /// What `setup` makes ready when it is not told: all but `fresh`.
    pub const ALL: [Need; 4] = [Need::Build, Need::Test, Need::Demo, Need::Bench];
}

/// One thing that must be there.
#[derive(Debug)]
pub struct Row {
    /// What it is called.
    pub name: String,
    /// What it is for.
    pub why: String,
    /// Whether it is there: which one, or what is wrong.
    pub state: Result<String, String>,
    /// The exact command that mends it.
    pub mend: String,
    fix: Fix,
}

/// What setup itself does for a row.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fix {
    Packages(Vec<String>),
    Linker(u32),
    Criu,
    /// A component of the rustup toolchain.
    Component(&'static str),
    /// A person has to do it.
    Nothing,
}

/// What the host offers to the other commands.
#[derive(Debug)]
pub struct Tools {
    /// The compiler for eBPF programs.
    pub compiler: Compiler,
    /// The bpf-linker that goes with it.
    pub linker: std::path::PathBuf,
    /// A CRIU that works, if it was asked for.
    pub criu: Option<Criu>,
}

/// `setup --check`: prints every row; says whether nothing is missing.
pub fn check(place: &Place, needs: &[Need]) -> Result<bool> {
    let rows = survey(place, needs)?;
    print!("{}", render(&rows));
    let missing = missing(&rows).count();
    match missing {
        0 => println!("{} of {} are there", rows.len(), rows.len()),
        _ => println!(
            "{missing} of {} missing: `cargo xtask setup` installs what can be installed",
            rows.len()
        ),
    }
    Ok(missing == 0)
}

/// Installs what is missing, saying what and why; does nothing when nothing is.
pub fn setup(place: &Place, needs: &[Need]) -> Result<()> {
    let start = Instant::now();
    let mut rows = survey(place, needs)?;
    if missing(&rows).next().is_none() {
        println!(
            "setup: nothing is missing ({} things looked at, {})",
            rows.len(),
            cmd::elapsed(start.elapsed())
        );
        return Ok(());
    }
    if cmd::which("apt-get").is_none() {
        bail!(
            "setup installs with apt-get, which is not here. What is missing:\n{}",
            render_missing(&rows)
        );
    }
    if missing(&rows).any(|row| matches!(row.fix, Fix::Packages(_) | Fix::Linker(_) | Fix::Nothing)) {
        // What apt offers decides some rows (the compiler for eBPF): its lists must be fresh.
        apt::update()?;
        rows = survey(place, needs)?;
    }
    for row in missing(&rows) {
        println!("setup: {} is missing ({}): {}", row.name, said(row), row.why);
    }
    let names: BTreeSet<String> = missing(&rows)
        .filter_map(|row| {
            if let Fix::Packages(names) = &row.fix {
                Some(names.clone())
            } else {
                None
            }
        })
        .flatten()
        .collect();
    if !names.is_empty() {
        let names: Vec<String> = names.into_iter().collect();
        apt::install(&names)?;
        let units = PACKAGES
            .iter()
            .filter(|p| names.iter().any(|n| n == p.name))
            .filter_map(|p| p.unit);
        apt::disable_services(&units.collect::<Vec<_>>())?;
        // A bpf-linker from before may have missed nothing but its LLVM.
        rows = survey(place, needs)?;
    }
    for row in missing(&rows) {
        match row.fix {
            Fix::Linker(llvm) => install_linker(place, llvm)?,
            Fix::Criu => {
                let criu = criu::install(place)?;
                println!("    CRIU {} at {}", criu.version, criu.path.display());
            }
            Fix::Component(name) => cmd::run(Command::new("rustup").args(["component", "add", name]))?,
            Fix::Packages(_) | Fix::Nothing => {}
        }
    }
    let rows = survey(place, needs)?;
    if missing(&rows).next().is_some() {
        bail!("still missing after setup:\n{}", render_missing(&rows));
    }
    println!(
        "setup: nothing is missing any more ({} things, {})",
        rows.len(),
        cmd::elapsed(start.elapsed())
    );
    Ok(())
}

fn install_linker(place: &Place, llvm: u32) -> Result<()> {
    println!(
        "    building bpf-linker {} with LLVM {llvm} (about a minute)",
        ebpf::LINKER_VERSION
    );
    std::fs::create_dir_all(&place.tools)
        .with_context(|| format!("cannot make {}", place.tools.display()))?;
    cmd::run(&mut ebpf::install_linker(place, llvm))
}

/// Sets up, then gives what the build and the programs need.
pub fn tools(place: &Place, needs: &[Need]) -> Result<Tools> {
    setup(place, needs)?;
    let compiler = ebpf::compiler(place)?;
    let linker = ebpf::linker(place, compiler.llvm).context("bpf-linker is missing")?;
    let criu = match criu::known(place)? {
        Known::Works(criu) => Some(criu),
        Known::Nothing(_) => None,
    };
    if needs_criu(needs) && criu.is_none() {
        bail!("no working CRIU: run `cargo xtask setup`");
    }
    Ok(Tools {
        compiler,
        linker,
        criu,
    })
}

/// Everything begins with a build, except the proof on a fresh machine: that one builds there.
fn needs_build(needs: &[Need]) -> bool {
    needs.iter().any(|n| *n != Need::Fresh)
}

fn needs_criu(needs: &[Need]) -> bool {
    needs
        .iter()
        .any(|n| matches!(n, Need::Test | Need::Demo | Need::Bench))
}

/// Looks at everything that is needed. Changes nothing.
fn survey(place: &Place, needs: &[Need]) -> Result<Vec<Row>> {
    let wanted: Vec<_> = PACKAGES.iter().filter(|p| p.needed_for(needs)).collect();
    let installed = apt::installed(&wanted.iter().map(|p| p.name.to_owned()).collect());
    let mut rows: Vec<Row> = wanted
        .iter()
        .map(|package| Row {
            name: package.name.to_owned(),
            why: package.why.to_owned(),
            state: installed
                .get(package.name)
                .cloned()
                .ok_or_else(|| "not installed".to_owned()),
            mend: apt::install_command(&[package.name.to_owned()]),
            fix: Fix::Packages(vec![package.name.to_owned()]),
        })
        .collect();
    if needs_build(needs) {
        rows.extend(ebpf_rows(place));
    }
    if needs.contains(&Need::Test) {
        rows.extend(COMPONENTS.map(component_row));
    }
    if needs_criu(needs) {
        let (state, mend) = match criu::known(place)? {
            Known::Works(criu) => (
                Ok(format!(
                    "{} at {}, tried on this kernel",
                    criu.version,
                    criu.path.display()
                )),
                "",
            ),
            Known::Nothing(reason) => (Err(reason), "cargo xtask setup"),
        };
        let why = "saves and restores processes; one that works on this kernel".to_owned();
        rows.push(Row {
            name: "CRIU".into(),
            why,
            state,
            mend: mend.into(),
            fix: Fix::Criu,
        });
    }
    Ok(rows)
}

/// What the tests call of the toolchain that a minimal rustup profile leaves out: the component,
/// its program, and what for.
const COMPONENTS: [(&str, &str, &str); 2] = [
    ("rustfmt", "cargo-fmt", "the tests check the format"),
    ("clippy", "cargo-clippy", "the tests lint"),
];

fn component_row((name, program, why): (&'static str, &str, &str)) -> Row {
    // Beside cargo itself: rustup has its own program of this name for every toolchain.
    let beside = std::env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name(program));
    let found = beside.filter(|file| file.is_file()).or_else(|| {
        let file = cmd::which(program)?;
        (cmd::which("rustup").is_none() || std::env::var_os("CARGO").is_none()).then_some(file)
    });
    Row {
        name: name.into(),
        why: why.into(),
        state: found
            .map(|file| file.display().to_string())
            .ok_or_else(|| "not installed".to_owned()),
        mend: format!("rustup component add {name}"),
        fix: Fix::Component(name),
    }
}

fn ebpf_rows(place: &Place) -> Vec<Row> {
    let row = |name: &str, why: &str, state, mend: String, fix| Row {
        name: name.into(),
        why: why.into(),
        state,
        mend,
        fix,
    };
    let (compiler_name, compiler_why) = (
        "eBPF compiler",
        "rustc with its source: core is built for bpfel-unknown-none",
    );
    let compiler = match ebpf::compiler(place) {
        Ok(compiler) => compiler,
        Err(reason) => {
            let mend = format!("{}apt-get update && cargo xtask setup", cmd::sudo_prefix());
            return vec![row(
                compiler_name,
                compiler_why,
                Err(format!("{reason:#}")),
                mend,
                Fix::Nothing,
            )];
        }
    };
    let missing = match &compiler.provider {
        Provider::Debian { missing } => missing.clone(),
        Provider::Nightly => Vec::new(),
    };
    let state = if missing.is_empty() {
        Ok(compiler.about.clone())
    } else {
        Err(format!("to be installed: {}", compiler.about))
    };
    let mend = apt::install_command(&missing);
    let mut rows = vec![row(
        compiler_name,
        compiler_why,
        state,
        mend,
        Fix::Packages(missing),
    )];

    let llvm = compiler.llvm;
    let linker = ebpf::linker(place, llvm);
    if linker.is_none() {
        let name = ebpf::dev_package(llvm);
        let names = vec![name.clone()];
        let state = apt::installed(&[name.clone()].into())
            .remove(&name)
            .ok_or_else(|| "not installed".to_owned());
        let mend = apt::install_command(&names);
        rows.push(row(
            &name,
            "bpf-linker is built with the compiler's LLVM",
            state,
            mend,
            Fix::Packages(names),
        ));
    }
    let state = match linker {
        Some(file) => Ok(format!("{} with LLVM {llvm}", file.display())),
        None => Err(format!("none with LLVM {llvm}")),
    };
    let mend = ebpf::install_linker_command(place, llvm);
    rows.push(row(
        "bpf-linker",
        "links the eBPF programs into the object that the agent loads",
        state,
        mend,
        Fix::Linker(llvm),
    ));
    rows
}

fn missing(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| row.state.is_err())
}

fn said(row: &Row) -> &str {
    match &row.state {
        Ok(text) | Err(text) => text,
    }
}

/// The rows as a table; below each missing one the command that mends it.
fn render(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let mark = if row.state.is_ok() { "ok     " } else { "MISSING" };
        text.push_str(&format!("{mark}  {:width$}  {}\n", row.name, said(row)));
        text.push_str(&format!("{:9}{:width$}  {}\n", "", "", row.why));
        if row.state.is_err() {
            text.push_str(&format!("{:9}{:width$}  mend: {}\n", "", "", row.mend));
        }
    }
    text
}

fn render_missing(rows: &[Row]) -> String {
    missing(rows)
        .map(|row| {
            format!(
                "  {} ({}): {}\n    mend: {}\n",
                row.name,
                said(row),
                row.why,
                row.mend
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |name: &str, state| Row {
            name: name.into(),
            why: "a test app".into(),
            state,
            mend: "apt-get install x".into(),
            fix: Fix::Nothing,
        };
        vec![
            row("nginx", Ok("1.22".to_owned())),
            row("redis-server", Err("not installed".to_owned())),
        ]
    }

    #[test]
    fn only_what_is_missing_comes_with_its_command() {
        let text = render(&rows());
        assert!(text.contains("ok       nginx         1.22\n"), "{text}");
        assert!(text.contains("MISSING  redis-server  not installed\n"), "{text}");
        assert_eq!(text.matches("mend: apt-get install x").count(), 1);
        let text = render_missing(&rows());
        assert!(
            text.starts_with("  redis-server (not installed): a test app\n"),
            "{text}"
        );
    }

    #[test]
    fn the_build_alone_asks_for_no_app_and_no_criu() {
        let for_build: Vec<_> = PACKAGES
            .iter()
            .filter(|p| p.needed_for(&[Need::Build]))
            .map(|p| p.name)
            .collect();
        assert!(
            for_build.contains(&"libclang-dev") && !for_build.contains(&"nginx"),
            "{for_build:?}"
        );
        assert!(!needs_criu(&[Need::Build]) && needs_criu(&Need::ALL));
    }
}
