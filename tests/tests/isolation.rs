//! What an app may do is what its policy says, as `/proc` shows it, before a sleep and after.

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::{Nginx, RealApp, TestApp};
use pico_tests::harness::config::SandboxConfig;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{Rig, procs};

/// chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot.
const DEFAULT_CAPABILITIES: u64 = 0x405fb;
const NET_RAW: u64 = 1 << 13;

/// CapEff, NoNewPrivs and Seccomp of a process.
fn policy_of(pid: u32) -> Result<(u64, String, String)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |key| procs::field(&status, key).with_context(|| format!("no {key}"));
    let capabilities = u64::from_str_radix(field("CapEff")?, 16)?;
    Ok((
        capabilities,
        field("NoNewPrivs")?.to_owned(),
        field("Seccomp")?.to_owned(),
    ))
}

/// Before a sleep and after a wake, every process of the app is held to `capabilities`, or to none when it
/// is not root.
fn holds(rig: &Rig, app: &str, expected: (u64, &str, &str), wake: impl Fn() -> Result<()>) -> Result<()> {
    for moment in ["at first", "after a wake"] {
        let processes = rig.processes(app)?;
        ensure!(!processes.is_empty(), "{app} has no process {moment}");
        for process in processes {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
            let root = procs::field(&status, "Uid").is_some_and(|uids| uids.starts_with("0\t"));
            let (capabilities, no_new_privs, seccomp) = policy_of(process.pid)?;
            let allowed = if root { expected.0 } else { 0 };
            ensure!(
                capabilities == allowed,
                "{process} of {app} has {capabilities:#x}, not {allowed:#x}, {moment}"
            );
            ensure!(
                no_new_privs == expected.1,
                "{process}: NoNewPrivs {no_new_privs} {moment}"
            );
            ensure!(seccomp == expected.2, "{process}: Seccomp {seccomp} {moment}");
        }
        rig.agent.sleep(app, "warm")?;
        wake()?;
    }
    Ok(())
}

#[test]
fn an_app_without_a_sandbox_section_has_the_defaults() -> Result<()> {
    Plan::new("sandbox-default")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            holds(rig, "a", (DEFAULT_CAPABILITIES, "1", "2"), || {
                app.ask("ping").map(drop)
            })?;
            ensure!(app.ask("status Pid")? == "1", "not in a pid namespace of its own");
            ensure!(app.ask("hostname")? == "a");
            Ok(())
        })
}

#[test]
fn an_app_has_what_its_owner_asks_for() -> Result<()> {
    let plan = Plan::new("sandbox-asked")?.test_app("a", |app| {
        app.idle = "never".into();
        app.hostname = Some("other".into());
        app.env.insert("GREETING".into(), "hello world".into());
        app.workdir = Some("/srv".into());
        app.memory = Some("64M".into());
        app.sandbox = Some(SandboxConfig {
            capabilities: Some(vec!["NET_RAW".into()]),
            no_new_privs: Some(false),
            seccomp: Some(false),
        });
    })?;
    plan.run(|rig| {
        let app = rig.ready("a")?;
        holds(rig, "a", (DEFAULT_CAPABILITIES | NET_RAW, "0", "0"), || {
            app.ask("ping").map(drop)
        })?;
        ensure!(app.ask("hostname")? == "other");
        ensure!(app.ask("env GREETING")? == "hello world");
        ensure!(app.ask("where")? == "/srv");
        let limits = procs::cgroup_dirs(&rig.agent.app_cgroup("a"))?;
        let limit = |name: &str| {
            limits
                .iter()
                .find_map(|dir| std::fs::read_to_string(dir.join(name)).ok())
        };
        let limit = limit("memory.limit_in_bytes")
            .or_else(|| limit("memory.max"))
            .context("no memory limit")?;
        ensure!(limit.trim() == "67108864", "memory limit is {limit}");
        Ok(())
    })
}

#[test]
fn an_app_of_another_user_has_no_capabilities() -> Result<()> {
    let plan = Plan::new("sandbox-user")?.test_app("a", |app| {
        app.idle = "never".into();
        app.user = Some("guest".into());
    })?;
    plan.run(|rig| {
        let app = rig.ready("a")?;
        ensure!(app.ask("status Uid")? == "1234 1234 1234 1234");
        ensure!(app.ask("status Gid")? == "1234 1234 1234 1234");
        holds(rig, "a", (0, "1", "2"), || app.ask("ping").map(drop))
    })
}

#[test]
fn nginx_workers_of_their_own_user_sleep_and_wake() -> Result<()> {
    Plan::new("sandbox-nginx")?
        .real_app(&Nginx, |app| app.idle = "never".into())?
        .run(|rig| {
            let at = rig.v4("nginx")?;
            rig.agent.wait_state("nginx", "hot")?;
            pico_tests::harness::within(std::time::Duration::from_secs(20), || Nginx.ready(at))?;
            ensure!(rig.processes("nginx")?.len() == 3, "a master and two workers");
            holds(rig, "nginx", (DEFAULT_CAPABILITIES, "1", "2"), || Nginx.check(at))
        })
}

#[test]
fn an_app_on_the_hosts_root_sees_nothing_private() -> Result<()> {
    let plan = Plan::new("sandbox-host")?;
    let seed = plan.dir().join("seed");
    std::fs::create_dir_all(seed.join("srv"))?;
    std::fs::copy(
        pico_tests::harness::bin::find("pico-testapp")?,
        seed.join("srv/testapp"),
    )?;
    let plan = plan.test_app("a", |app| {
        app.idle = "never".into();
        app.root = "host".into();
        app.command = vec!["/srv/testapp".into()];
        app.seed = Some(seed);
    })?;
    plan.run(|rig| {
        let app: TestApp = rig.ready("a")?;
        for path in ["/etc/shadow", "/etc/gshadow"] {
            let answer = app.ask(&format!("read {path}"))?;
            ensure!(
                answer.is_empty() || answer.starts_with("error: "),
                "{path} can be read"
            );
        }
        let state = rig.agent.config.state_dir.display().to_string();
        for path in ["/root", "/home", "/run", "/etc/ssh", &state] {
            let answer = app.ask(&format!("list {path}"))?;
            // Programs expect /run/lock; it is an empty one.
            ensure!(
                answer.is_empty() || answer == "lock" || answer.starts_with("error: "),
                "{path} shows {answer}"
            );
        }
        // Its writes stay its own.
        ensure!(app.ask("write /srv/pico-isolation-test mine")? == "ok");
        ensure!(!std::path::Path::new("/srv/pico-isolation-test").exists());
        Ok(())
    })
}
