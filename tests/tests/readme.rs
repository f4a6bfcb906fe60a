//! Every command that README.md shows works as it is written there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::bin;

/// Whatever happens, nothing of it is left.
const TIDY: &str = "trap 'for job in $(jobs -p); do kill $job || true; done; wait; pico-agent cleanup || true; \
                    rm -rf /var/tmp/pico-try' EXIT";

/// The `sh` blocks of the README below `heading`, up to the next heading of the same depth.
fn commands(readme: &str, heading: &str) -> Result<String> {
    let (_, section) = readme
        .split_once(heading)
        .with_context(|| format!("no '{heading}' in README.md"))?;
    let section = section
        .split_once("\n## ")
        .map_or(section, |(section, _)| section);
    let blocks = section.split("```sh\n").skip(1);
    Ok(blocks
        .filter_map(|block| block.split_once("```"))
        .map(|(block, _)| block)
        .collect())
}

#[test]
fn an_app_of_your_own_runs_sleeps_and_wakes_by_the_readmes_words() -> Result<()> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let commands = commands(&std::fs::read_to_string(readme)?, "\n## Your own app\n")?;
    ensure!(
        commands.contains("pico-agent run"),
        "the README does not run an agent"
    );
    // The build is what this test is part of, and its binaries lie wherever they were built to.
    let built = |line: &&str| !line.starts_with("cargo xtask ");
    let commands: Vec<&str> = commands.lines().filter(built).collect();
    let agent = bin::find("pico-agent")?;
    let dir = agent
        .parent()
        .context("pico-agent lies nowhere")?
        .display()
        .to_string();
    let commands = commands.join("\n").replace("$PWD/target/debug", &dir);
    let script = format!("ip link set lo up\n{TIDY}\n{commands}");
    ensure!(
        !Path::new("/var/tmp/pico-try").exists(),
        "somebody is trying the README in /var/tmp/pico-try"
    );
    // Its own network: the README's addresses and names are the defaults, which may be in use on this host.
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-euc", &script])
        .output()?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(output.status.success(), "{out}\n{err}");
    ensure!(
        out.matches("200 in ").count() == 2,
        "not answered twice:\n{out}\n{err}"
    );
    Ok(())
}
