//! Owners say who wakes an app and who is only told that it is there; whoever does not get it is told so, in time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use pico_tests::harness::apps::testapp::{Connection, PORT};
use pico_tests::harness::config::{ProbeConfig, WakeConfig};
use pico_tests::harness::process::output;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::shaper::{Fault, Rule};
use pico_tests::harness::{AppConfig, Rig, TIERS, until};

/// Two hosts that clients connect from.
const HOSTS: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

/// An app that sleeps when it is told to, and clients at [`HOSTS`].
fn plan(name: &str, change: impl FnOnce(&mut AppConfig)) -> Result<Plan> {
    Plan::new(name)?.test_app("a", |app| {
        app.idle = "never".into();
        change(app);
    })
}

/// Runs something while there are [`HOSTS`].
fn with_hosts(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let change = |how: &str| -> Result<()> {
        for host in HOSTS {
            output(Command::new("ip").args(["address", how, &format!("{host}/32"), "dev", "lo"]))?;
        }
        Ok(())
    };
    change("replace")?;
    body().and(change("del"))
}

/// A connection to the app from one of [`HOSTS`]; `None` when it is refused.
fn connection_from(rig: &Rig, host: &str) -> Result<Option<TcpStream>> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Also the limit of a connect (socket(7)).
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(20, 0))?;
    let own: SocketAddrV4 = format!("{host}:0").parse()?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::V4(own)))?;
    let at = SocketAddr::new(rig.v4("a")?, PORT);
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(at)) {
        Ok(()) => Ok(Some(fd.into())),
        Err(Errno::ECONNREFUSED) => Ok(None),
        Err(error) => Err(error).context(format!("from {host}")),
    }
}

/// Whether a client at `host` is refused, and the app sleeps on.
fn refused(rig: &Rig, host: &str, tier: &str) -> Result<bool> {
    let refused = connection_from(rig, host)?.is_none();
    let show = rig.agent.show("a")?;
    ensure!(show.state() == tier, "it is {}: {}", show.state(), show.reason());
    Ok(refused)
}

/// Whether a client at `host` is answered by the app.
fn answered(rig: &Rig, host: &str) -> Result<bool> {
    let stream = connection_from(rig, host)?.context("refused")?;
    Ok(Connection::accepted(stream)?.ask("ping")? == "pong")
}

#[test]
fn denied_sources_are_refused_and_others_wake() -> Result<()> {
    let deny = |app: &mut AppConfig| {
        app.wake = Some(WakeConfig {
            deny: vec![format!("{}/32", HOSTS[0])],
            ..WakeConfig::default()
        });
    };
    plan("deny", deny)?.run(|rig| {
        with_hosts(|| {
            rig.ready("a")?;
            // Awake it serves everybody: who may use an app is not for the gate to say.
            ensure!(answered(rig, HOSTS[0])?);
            for tier in TIERS {
                rig.agent.sleep("a", tier)?;
                ensure!(refused(rig, HOSTS[0], tier)?, "{} was not refused", HOSTS[0]);
                ensure!(answered(rig, HOSTS[1])?);
            }
            Ok(())
        })
    })
}

#[test]
fn only_allowed_sources_wake() -> Result<()> {
    let allow = |app: &mut AppConfig| {
        app.wake = Some(WakeConfig {
            // The rig's own clients come from the gate's address.
            allow: vec!["10.77.0.0/16".into(), HOSTS[1].into()],
            ..WakeConfig::default()
        });
    };
    plan("allow", allow)?.run(|rig| {
        with_hosts(|| {
            rig.ready("a")?;
            for tier in TIERS {
                rig.agent.sleep("a", tier)?;
                ensure!(refused(rig, HOSTS[0], tier)?, "{} was not refused", HOSTS[0]);
                ensure!(answered(rig, HOSTS[1])?);
            }
            Ok(())
        })
    })
}

#[test]
fn a_source_that_wakes_too_often_is_refused_and_others_wake() -> Result<()> {
    let rate = |app: &mut AppConfig| {
        app.wake = Some(WakeConfig {
            rate: Some("1/1h".into()),
            ..WakeConfig::default()
        });
    };
    for tier in TIERS {
        plan("rate", rate)?.run(|rig| {
            with_hosts(|| {
                rig.ready("a")?;
                rig.agent.sleep("a", tier)?;
                ensure!(answered(rig, HOSTS[0])?);
                rig.agent.sleep("a", tier)?;
                ensure!(refused(rig, HOSTS[0], tier)?, "{} was not refused", HOSTS[0]);
                ensure!(answered(rig, HOSTS[1])?);
                Ok(())
            })
        })?;
    }
    Ok(())
}

#[test]
fn probes_are_told_what_the_owner_wants_and_wake_nothing() -> Result<()> {
    let probes = |app: &mut AppConfig| {
        app.probes = vec![ProbeConfig {
            from: HOSTS[0].into(),
            http: Some(200),
            body: "asleep".into(),
        }];
    };
    plan("probes", probes)?.run(|rig| {
        with_hosts(|| {
            rig.ready("a")?;
            for tier in TIERS {
                rig.agent.sleep("a", tier)?;
                for _ in 0..3 {
                    let mut stream = connection_from(rig, HOSTS[0])?.context("a probe was refused")?;
                    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer)?;
                    ensure!(
                        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nasleep"),
                        "{answer}"
                    );
                }
                let show = rig.agent.show("a")?;
                ensure!(show.state() == tier, "it is {}: {}", show.state(), show.reason());
                ensure!(answered(rig, HOSTS[1])?);
                // Awake it answers its probes itself.
                ensure!(answered(rig, HOSTS[0])?);
            }
            Ok(())
        })
    })
}

#[test]
fn clients_of_an_app_that_cannot_be_woken_are_refused_in_time_and_the_next_wake_it_when_it_can() -> Result<()>
{
    let patience = Duration::from_secs(4);
    let short = |app: &mut AppConfig| app.hold_timeout = Some("4s".into());
    plan("cannot-wake", short)?.shaped().run(|rig| {
        let app = rig.ready("a")?;
        ensure!(app.ask("count")? == "1");
        rig.agent.sleep("a", "cold")?;
        rig.shaper()?.inject(Rule::new("GET", "/", Fault::Status(500)));
        let begun = Instant::now();
        let error = app.connect().err().context("connected without a store")?;
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{error:#}");
        // A resent SYN is what is refused at last, and those come a second apart, then two.
        let waited = begun.elapsed();
        ensure!(waited < patience + Duration::from_secs(3), "{waited:?}");
        let show = rig.agent.show("a")?;
        ensure!(show.last_failure().starts_with("wake: "), "{}", show.0);
        ensure!(
            show.number("/counters/failed_wakes") > Some(1),
            "it was tried but once"
        );

        rig.shaper()?.clear();
        // Refused until the next try is due; then it is there with all it knew.
        until("the app to be had again", Duration::from_secs(20), || {
            Ok(app.ask("count").ok())
        })
        .and_then(|count| {
            ensure!(count == "2", "{count}");
            Ok(())
        })
    })
}
