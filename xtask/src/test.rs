//! `cargo xtask test`: format, lints, docs, then every test: unit and property tests as the user
//! who runs it, scenario tests as root. The build is never raised to root, only test binaries are.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::closing::{Sum, TestBinary, parse_closing, parse_test_binary};
use crate::cmd;
use crate::place::{Place, clean_env};
use crate::setup::Tools;

/// A test binary that runs longer than this hangs.
const LIMIT_SECONDS: u32 = 40 * 60;
/// The same for the long counts of `--soak`.
const SOAK_LIMIT_SECONDS: u32 = 6 * 60 * 60;

/// What to test.
pub struct Options {
    /// Run the long counts.
    pub soak: bool,
    /// Only tests whose name contains this; then neither lints nor docs.
    pub filter: Option<String>,
}

/// Runs it all. An error if anything failed, after everything has run.
pub fn test(place: &Place, tools: &Tools, options: &Options) -> Result<()> {
    let start = Instant::now();
    build::ebpf(place, tools)?;
    let mut failed = Vec::new();
    if options.filter.is_none() {
        for (name, check) in checks(place) {
            if let Err(err) = step(name, check) {
                println!("{err:#}");
                failed.push(name);
            }
        }
    } else {
        println!("format, lints and docs are left out: a filter is given");
    }
    let binaries = build_tests(place)?;
    let mut sum = Sum::default();
    let mut lines = Vec::new();
    for binary in &binaries {
        println!(
            "\n== {}{}",
            binary.label(),
            if raised(binary) && !cmd::is_root() {
                " (as root)"
            } else {
                ""
            }
        );
        let mut run = command(place, tools, options, binary)?;
        stream(&mut run, &binary.label(), &mut sum, &mut lines)?;
    }
    if options.filter.is_none() {
        println!("\n== documentation examples");
        let mut doc = place.cargo();
        build::with_object(place, &mut doc);
        doc.args(["test", "--workspace", "--doc"]);
        stream(&mut doc, "documentation examples", &mut sum, &mut lines)?;
    }

    println!("\n== summary");
    for line in &lines {
        println!("{line}");
    }
    println!("tests took {}", cmd::elapsed(start.elapsed()));
    for name in &failed {
        println!("FAILED: {name}");
    }
    println!("{sum}");
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    match sum {
        Sum { failed: 1.., .. } => bail!("tests failed"),
        Sum { passed: 0, .. } => bail!("no test ran: does a test have this in its name?"),
        Sum { .. } => Ok(()),
    }
}

/// The checks that are no tests.
fn checks(place: &Place) -> Vec<(&'static str, Command)> {
    let cargo = |args: &[&str]| {
        let mut cmd = place.cargo();
        build::with_object(place, &mut cmd);
        cmd.args(args);
        cmd
    };
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    let mut checks = vec![
        ("format", cargo(&["fmt", "--all", "--check"])),
        (
            "lints",
            cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ),
        ("docs", docs),
    ];
    if cmd::which("cargo-deny").is_some() {
        // Advisories are fetched, and change from day to day: they are no matter of this tree.
        checks.push((
            "licences and sources",
            cargo(&["deny", "check", "bans", "licenses", "sources"]),
        ));
    } else {
        println!(
            "licences and sources are not checked: cargo-deny is not installed (`cargo install cargo-deny`)"
        );
    }
    checks
}

fn step(name: &str, mut command: Command) -> Result<()> {
    println!("\n== {name}");
    let start = Instant::now();
    cmd::run(&mut command)?;
    println!("{name}: ok ({})", cmd::elapsed(start.elapsed()));
    Ok(())
}

/// Builds all binaries and tests; gives the test binaries, those that need root last.
fn build_tests(place: &Place) -> Result<Vec<TestBinary>> {
    println!("\n== build");
    let start = Instant::now();
    let mut cargo = place.cargo();
    build::with_object(place, &mut cargo);
    cargo.args([
        "build",
        "--workspace",
        "--all-targets",
        "--message-format=json-render-diagnostics",
    ]);
    println!("$ {}", cmd::display(&cargo));
    let out = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !out.status.success() {
        bail!("the build failed");
    }
    let messages = String::from_utf8_lossy(&out.stdout);
    let mut binaries: Vec<TestBinary> = messages.lines().filter_map(parse_test_binary).collect();
    binaries.sort_by_key(|b| (raised(b), b.label()));
    println!(
        "build: {} test binaries ({})",
        binaries.len(),
        cmd::elapsed(start.elapsed())
    );
    Ok(binaries)
}

/// Whether a test binary needs root: the scenarios, and the agent's own unit tests, some of which
/// make namespaces, cgroups and devices.
fn raised(binary: &TestBinary) -> bool {
    binary.package == "pico-tests" || (binary.package == "pico-agent" && binary.kind == "lib")
}

/// The test binary as cargo would run it, except that it may be raised to root.
fn command(place: &Place, tools: &Tools, options: &Options, binary: &TestBinary) -> Result<Command> {
    let manifest = binary.manifest.parent().unwrap_or(Path::new("/"));
    let mut env = environment(place, tools, false);
    env.push(("CARGO_MANIFEST_DIR", manifest.into()));
    for name in [
        "RUST_BACKTRACE",
        "RUST_LOG",
        "PROPTEST_CASES",
        "PICO_KEEP_LOGS",
        "PICO_TEST_DIR",
        "PICO_SEED",
    ] {
        env.extend(std::env::var_os(name).map(|value| (name, value)));
    }
    if options.soak {
        env.push(("PICO_SOAK", "1".into()));
    }
    let limit = if options.soak {
        SOAK_LIMIT_SECONDS
    } else {
        LIMIT_SECONDS
    }
    .to_string();
    let mut cmd = if raised(binary) {
        cmd::as_root("timeout", &env)?
    } else {
        let mut cmd = Command::new("timeout");
        cmd.envs(env);
        cmd
    };
    // In the foreground: Ctrl-C must reach the tests.
    cmd.args(["--foreground", "--kill-after=30", &limit])
        .arg(&binary.executable)
        .args(&options.filter);
    clean_env(&mut cmd).current_dir(manifest);
    Ok(cmd)
}

/// What the built programs are told of this host: where they are, and which CRIU works.
pub fn environment(place: &Place, tools: &Tools, release: bool) -> Vec<(&'static str, OsString)> {
    let mut env = vec![
        ("PICO_BIN_DIR", place.binaries(release).into_os_string()),
        ("PICO_TOOLS", PathBuf::from(&place.tools).into_os_string()),
    ];
    env.extend(
        tools
            .criu
            .as_ref()
            .map(|criu| ("PICO_CRIU", criu.path.clone().into_os_string())),
    );
    env
}

/// Runs a test runner with its output shown as it comes; adds up what its closing lines say.
fn stream(cmd: &mut Command, label: &str, sum: &mut Sum, lines: &mut Vec<String>) -> Result<()> {
    let mut child = cmd
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", cmd::display(cmd)))?;
    let output = child.stdout.take().context("no pipe to the tests")?;
    let before = *sum;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{line}")?;
        if let Some(closing) = parse_closing(&line) {
            sum.add(&closing);
            if closing != Sum::default() {
                lines.push(format!("{label}: {line}"));
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && sum.failed == before.failed {
        let why = if status.code() == Some(124) {
            " (it ran too long)"
        } else {
            ""
        };
        lines.push(format!(
            "{label}: ended by {status}{why}, without a word about a failed test"
        ));
        sum.failed += 1;
    }
    Ok(())
}
