//! Bad input is refused with what is wrong and what to do, and nothing changes.

use std::process::Command;

use anyhow::{Result, ensure};
use pico_tests::harness::leftovers::Leftovers;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{AgentConfig, bin, net};

/// Starts an agent with a file that `break_it` made wrong: it must say all of `expected` and do nothing.
fn refused(break_it: impl FnOnce(&mut AgentConfig), expected: &[&str]) -> Result<()> {
    refused_text(
        |config| {
            break_it(config);
            config.to_toml()
        },
        expected,
    )
}

fn refused_text(text: impl FnOnce(&mut AgentConfig) -> Result<String>, expected: &[&str]) -> Result<()> {
    net::enter_own_namespace()?;
    let plan = Plan::new("bad")?.test_app("a", |_| ())?.test_app("b", |_| ())?;
    let (mut config, dir) = plan.config();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, text(&mut config)?)?;
    let before = Leftovers::before(&format!("pico-{}", config.instance), config.state_dir.clone())?;
    for words in [["config", "check"].as_slice(), ["run", "--config"].as_slice()] {
        let output = Command::new("timeout")
            .arg("20")
            .arg(bin::find("pico-agent")?)
            .args(words)
            .arg(&file)
            .output()?;
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let code = output.status.code();
        // `config check` does not ask the store.
        if words[0] == "config" && expected.contains(&"127.0.0.1:9") {
            continue;
        }
        ensure!(
            code != Some(0) && code != Some(124),
            "{words:?} was accepted ({code:?}): {said}"
        );
        for part in expected {
            ensure!(said.contains(part), "{words:?} does not say '{part}': {said}");
        }
        ensure!(
            said.contains("try: "),
            "{words:?} does not say what to do: {said}"
        );
    }
    let left = before.after()?;
    ensure!(left.is_empty(), "left: {left:?}");
    ensure!(!config.state_dir.join("apps").exists(), "apps were made");
    Ok(())
}

#[test]
fn a_name_that_is_no_dns_label() -> Result<()> {
    for name in ["Web", "-a", "a_b", "a.b", "", &"a".repeat(64)] {
        refused(|config| config.apps[0].name = name.into(), &["name"])?;
    }
    Ok(())
}

#[test]
fn a_name_used_twice() -> Result<()> {
    refused(|config| config.apps[1].name = "a".into(), &["'a'"])
}

#[test]
fn a_port_used_twice() -> Result<()> {
    refused(
        |config| config.apps[0].ports.push("7000/tcp".into()),
        &["7000/tcp"],
    )
}

#[test]
fn an_address_used_twice() -> Result<()> {
    refused(
        |config| {
            let address = Some(std::net::Ipv4Addr::new(10, 77, 0, 9));
            config.apps.iter_mut().for_each(|app| app.address = address);
        },
        &["10.77.0.9"],
    )
}

#[test]
fn a_root_that_is_not_there() -> Result<()> {
    refused(
        |config| config.apps[0].root = "/no/such/root".into(),
        &["/no/such/root"],
    )
}

#[test]
fn a_command_that_is_not_there() -> Result<()> {
    refused(
        |config| config.apps[0].command = vec!["/bin/no-such-command".into()],
        &["/bin/no-such-command"],
    )?;
    refused(|config| config.apps[0].command.clear(), &["command"])
}

#[test]
fn a_key_that_is_not_known() -> Result<()> {
    refused_text(
        |config| Ok(format!("stat_dir = \"/x\"\n{}", config.to_toml()?)),
        &["stat_dir", "state_dir"],
    )?;
    refused_text(
        |config| Ok(config.to_toml()?.replacen("idle =", "idel =", 1)),
        &["idel", "idle"],
    )
}

#[test]
fn a_bucket_that_does_not_answer() -> Result<()> {
    refused(
        |config| config.store.endpoint = "http://127.0.0.1:9".into(),
        &["pico", "127.0.0.1:9"],
    )
}
