//! A command runs beside an app, in its sandbox and with no more rights than the app has; the app wakes for it, stays awake
//! meanwhile, and sleeps again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::{Nginx, RealApp as _};
use pico_tests::harness::owner::Owner;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{AppConfig, Rig, until};

const APP: &str = "nginx-ann";

fn exec(owner: &Owner, command: &[&str]) -> Result<Child> {
    let mut pico = owner.command(&[&["app", "exec", "nginx", "--"], command].concat())?;
    let pipes = pico
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(pipes.spawn()?)
}

/// What a command prints, and its exit status.
fn run(owner: &Owner, command: &[&str]) -> Result<(String, String, Option<i32>)> {
    let output = exec(owner, command)?.wait_with_output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok((text(&output.stdout), text(&output.stderr), output.status.code()))
}

fn asleep(rig: &Rig) -> Result<()> {
    rig.agent.wait_state(APP, "warm").map(drop)
}

#[test]
fn a_command_beside_an_app_wakes_it_and_keeps_it_awake() -> Result<()> {
    let plan = Plan::new("exec")?.hub();
    let config = AppConfig {
        idle: "1s".into(),
        cold_after: "never".into(),
        ..Nginx.config(plan.dir())?
    };
    plan.run(|rig| {
        let owner = rig.hub.as_ref().context("no hub")?.owner("ann")?;
        owner.create(&config)?;
        asleep(rig)?;

        let script = "echo begun; cat; echo aside >&2; exit 7";
        let mut child = exec(&owner, &["sh", "-c", script])?;
        let mut stdin = child.stdin.take().context("no pipe")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        ensure!(line == "begun\n", "{line}");
        let sleep = owner.try_pico(&["app", "sleep", "nginx"])?;
        let told = String::from_utf8_lossy(&sleep.stderr).into_owned();
        ensure!(
            !sleep.status.success() && told.contains("while a command runs"),
            "{told}"
        );
        // More than all buffers on the way hold.
        let sent = vec![b'x'; 8 << 20];
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            stdout.read_to_end(&mut text).map(|_| text)
        });
        stdin.write_all(&sent)?;
        ensure!(rig.agent.show(APP)?.state() == "hot");
        drop(stdin);
        let output = child.wait_with_output()?;
        let echoed = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader failed"))??;
        ensure!(echoed == sent, "{} bytes came back", echoed.len());
        ensure!(
            output.status.code() == Some(7) && output.stderr == b"aside\n",
            "{output:?}"
        );
        asleep(rig)
    })
}

#[test]
fn a_command_has_the_rights_of_its_app_and_ends_with_its_caller() -> Result<()> {
    let plan = Plan::new("exec")?.hub();
    let config = AppConfig {
        idle: "1s".into(),
        cold_after: "never".into(),
        ..Nginx.config(plan.dir())?
    };
    plan.run(|rig| {
        let owner = rig.hub.as_ref().context("no hub")?.owner("ann")?;
        owner.create(&config)?;
        let rights = |of: &str| format!("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/{of}/status");
        let both = format!("{}; echo; {}", rights("1"), rights("self"));
        let (told, _, status) = run(&owner, &["sh", "-c", &both])?;
        let (app, command) = told.split_once("\n\n").context("no rights")?;
        ensure!(
            status == Some(0) && app == command && app.contains("Seccomp:\t2"),
            "{told}"
        );
        let inside =
            "hostname; ls /proc/1/root >/dev/null && cat /proc/1/comm; ls /root; ls /proc/self/fd | wc -l";
        let (told, _, _) = run(&owner, &["sh", "-c", inside])?;
        ensure!(told == "nginx\nnginx\n4", "{told}");
        let (_, told, status) = run(&owner, &["no-such-program"])?;
        ensure!(
            status == Some(127) && told.contains("no-such-program not found"),
            "{told}"
        );
        let (_, _, status) = run(&owner, &["sh", "-c", "kill -9 $$"])?;
        ensure!(status == Some(137), "{status:?}");

        // What it leaves running ends with it.
        let (_, _, status) = run(&owner, &["sh", "-c", "sleep 1000 & exit 0"])?;
        ensure!(status == Some(0));
        let mut child = exec(&owner, &["sh", "-c", "echo begun; sleep 1000"])?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(line == "begun\n", "{line}");
        child.kill()?;
        child.wait()?;
        asleep(rig)?;

        // An agent that is killed leaves no command to its successor.
        let mut child = exec(&owner, &["sh", "-c", "echo begun; exec sleep 1000"])?;
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
        rig.agent.kill()?;
        rig.restart_agent()?;
        child.wait()?;
        until("the command to be gone", Duration::from_secs(10), || {
            let left = rig.processes(APP)?;
            Ok(left.iter().all(|process| process.comm != "sleep").then_some(()))
        })?;
        asleep(rig)
    })
}
