//! What needs no app is answered without waking it: pings, ports that it does not publish, keepalives of its
//! connections. Data wake it, on connections of either direction, and clients notice nothing.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use pico_tests::harness::apps::testapp::{Connection, PORT, TestApp};
use pico_tests::harness::process::output;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{Rig, TIERS};

fn awake(app: &mut pico_tests::harness::AppConfig) {
    app.idle = "never".into();
}

/// Puts the app to sleep, runs something, and checks that it was never woken by it.
fn without_a_wake<T>(rig: &Rig, tier: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    rig.agent.sleep("a", tier)?;
    let before = rig.agent.show("a")?.wakes();
    let result = body()?;
    let show = rig.agent.show("a")?;
    ensure!(
        show.state() == tier && show.wakes() == before,
        "it is {} after {} wakes: {}",
        show.state(),
        show.wakes() - before,
        show.reason()
    );
    Ok(result)
}

/// Nobody says anything for so long.
fn quiet(time: Duration) -> Result<()> {
    std::thread::sleep(time);
    Ok(())
}

#[test]
fn keepalives_are_answered_for_a_sleeping_app_and_data_wake_it() -> Result<()> {
    Plan::new("keepalive")?.test_app("a", awake)?.run(|rig| {
        rig.ready("a")?;
        let mut clients = vec![
            TestApp::at(rig.v4("a")?).connect()?,
            TestApp::at(rig.v6("a")?).connect()?,
        ];
        for client in &mut clients {
            client.keep_alive()?;
            client.ask("ping")?;
        }
        let mut expected = 0;
        for tier in TIERS {
            // Without an answer a connection would be gone after four seconds.
            without_a_wake(rig, tier, || quiet(Duration::from_secs(6)))?;
            for client in &mut clients {
                expected += 1;
                let answer = client.ask("count").with_context(|| format!("after {tier}"))?;
                ensure!(answer == expected.to_string(), "{answer} after {tier}");
            }
        }
        let show = rig.agent.show("a")?;
        ensure!(show.wakes() == TIERS.len() as u64, "{} wakes", show.wakes());
        Ok(())
    })
}

#[test]
fn a_connection_that_the_app_opened_sleeps_with_it_and_its_data_wake_it() -> Result<()> {
    let plan = Plan::new("outgoing")?.host_port("5432/tcp");
    plan.test_app("a", awake)?.run(|rig| {
        let app = rig.ready("a")?;
        // The gate's own address is this host's.
        let server = TcpListener::bind("10.77.0.1:5432")?;
        let closed = TcpListener::bind("10.77.0.1:5433")?;
        let refused = app.ask(&format!("connect {}", closed.local_addr()?))?;
        ensure!(
            refused != "ok",
            "an app reached a port of this host that it may not"
        );
        ensure!(app.ask(&format!("connect {}", server.local_addr()?))? == "ok");
        let mut database = Connection::accepted(server.accept()?.0)?;
        database.keep_alive()?;
        for (tier, count) in TIERS.iter().zip(1..) {
            without_a_wake(rig, tier, || quiet(Duration::from_secs(6)))?;
            let answer = database.ask("count").with_context(|| format!("after {tier}"))?;
            ensure!(answer == format!("{count}"), "{answer} after {tier}");
        }
        Ok(())
    })
}

#[test]
fn a_scan_and_pings_of_a_sleeping_app_are_answered_and_wake_nothing() -> Result<()> {
    Plan::new("scan")?.test_app("a", awake)?.run(|rig| {
        rig.ready("a")?;
        for tier in TIERS {
            without_a_wake(rig, tier, || {
                for address in [rig.v4("a")?, rig.v6("a")?] {
                    let ports = (1..=150).chain([PORT - 1, PORT + 1, 65_535]);
                    for port in ports {
                        let at = SocketAddr::new(address, port);
                        let limit = Duration::from_secs(5);
                        let error = TcpStream::connect_timeout(&at, limit)
                            .err()
                            .map(|error| error.kind());
                        ensure!(
                            error == Some(std::io::ErrorKind::ConnectionRefused),
                            "{at}: {error:?}"
                        );
                    }
                    datagram(address, PORT + 1)?;
                    ping(address)?;
                }
                Ok(())
            })?;
            ensure!(rig.ready("a")?.ask("ping")? == "pong");
        }
        Ok(())
    })
}

/// Sends an echo request and waits for its answer.
fn ping(address: IpAddr) -> Result<()> {
    let (family, protocol, request, reply) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    connect(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(address, 0)),
    )?;
    // Identifier 0x7069, number 1; the kernel makes the checksum of an ICMPv6 message.
    let mut message = [request, 0, 0, 0, 0x70, 0x69, 0, 1];
    if address.is_ipv4() {
        let sum: u16 = 0x0800 + 0x7069 + 1;
        message[2..4].copy_from_slice(&(!sum).to_be_bytes());
    }
    send(fd.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 128];
    loop {
        let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).context("no answer to a ping")?;
        // An IPv4 packet comes with its header, which has no options.
        let begin = if address.is_ipv4() { 20 } else { 0 };
        let answer = &answer[begin..length];
        if answer[0] == reply && answer[4..8] == message[4..8] {
            return Ok(());
        }
    }
}

/// Sends a datagram and waits for the word that nobody listens.
fn datagram(address: IpAddr, port: u16) -> Result<()> {
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect((address, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(b"?")?;
    let error = socket.recv(&mut [0; 8]).err().context("an answer")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

#[test]
fn a_connection_that_the_client_ends_or_resets_while_the_app_sleeps_is_over_for_the_app() -> Result<()> {
    Plan::new("ended")?.test_app("a", awake)?.run(|rig| {
        let app = rig.ready("a")?;
        for tier in TIERS {
            let mut stays = app.connect()?;
            stays.ask("ping")?;
            let gone = TcpStream::connect((rig.v4("a")?, PORT))?;
            let at_once = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&gone, sockopt::Linger, &at_once)?;
            (&gone).write_all(b"ping\n")?;
            (&gone).read_exact(&mut [0; 5])?;
            without_a_wake(rig, tier, || {
                // A reset, by closing with linger 0.
                drop(gone);
                quiet(Duration::from_millis(200))
            })?;
            ensure!(stays.ask("ping")? == "pong");
        }
        Ok(())
    })
}

#[test]
fn a_listener_opened_after_the_start_is_found() -> Result<()> {
    let published = |app: &mut pico_tests::harness::AppConfig| {
        awake(app);
        app.ports.push("7001/tcp".into());
    };
    Plan::new("late-listener")?.test_app("a", published)?.run(|rig| {
        let app = rig.ready("a")?;
        ensure!(app.ask("listen 7001")? == "ok");
        for tier in TIERS {
            rig.agent.sleep("a", tier)?;
            let mut connection = Connection::accepted(TcpStream::connect((rig.v4("a")?, 7001))?)?;
            ensure!(connection.ask("ping")? == "pong");
        }
        Ok(())
    })
}

#[test]
fn clients_with_equal_source_ports_are_told_apart() -> Result<()> {
    Plan::new("equal-ports")?.test_app("a", awake)?.run(|rig| {
        rig.ready("a")?;
        for host in ["10.99.0.1", "10.99.0.2"] {
            output(Command::new("ip").args(["address", "add", &format!("{host}/32"), "dev", "lo"]))?;
        }
        let at = SocketAddr::new(rig.v4("a")?, PORT);
        let connect = |host: &str| -> Result<Connection> {
            let fd = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            let own: std::net::SocketAddrV4 = format!("{host}:45000").parse()?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::V4(own)))?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
            Connection::accepted(fd.into())
        };
        let (mut one, mut two) = (connect("10.99.0.1")?, connect("10.99.0.2")?);
        one.keep_alive()?;
        two.keep_alive()?;
        for tier in TIERS {
            ensure!(one.ask("echo one")? == "one" && two.ask("echo two")? == "two");
            without_a_wake(rig, tier, || quiet(Duration::from_secs(5)))?;
        }
        ensure!(two.ask("echo two")? == "two" && one.ask("echo one")? == "one");
        for host in ["10.99.0.1", "10.99.0.2"] {
            output(Command::new("ip").args(["address", "del", &format!("{host}/32"), "dev", "lo"]))?;
        }
        Ok(())
    })
}
