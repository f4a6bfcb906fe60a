//! The gate on the real kernel. Each test has a network namespace of its own.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::*;
use crate::nettest::{World, in_netns, inside, ip, joined, on_one_processor, udp_socket};
use crate::port::Proto;
use crate::sandbox::net::{self, NetSpec};

const HTTP: Port = Port {
    number: 80,
    proto: Proto::Tcp,
};
const DNS: Port = Port {
    number: 53,
    proto: Proto::Udp,
};
const LIMIT: Duration = Duration::from_secs(30);

fn config(world: &World) -> GateConfig {
    GateConfig {
        tun: "pico0".to_owned(),
        v4: (Ipv4Addr::new(10, 77, 0, 0), 16),
        v6: (Ipv6Addr::new(0xfd77, 0x7069, 0x636f, 0, 0, 0, 0, 0), 64),
        table: 7769,
        rule_priority: 7769,
        max_held_per_app: 100_000,
        max_held_bytes: 64 << 20,
        state_file: world.path("gate.json"),
    }
}

type Events = mpsc::UnboundedReceiver<GateEvent>;

/// Opens a gate that was closed before. A process that another test is just starting has a copy of the old
/// descriptor until it runs its program.
async fn reopen(config: &GateConfig) -> Result<(Gate, Events)> {
    let opening = async {
        loop {
            match Gate::open(config.clone()).await {
                Err(GateError::Tun { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                other => return Ok(other?),
            }
        }
    };
    tokio::time::timeout(LIMIT, opening).await?
}

async fn next(events: &mut Events) -> Result<GateEvent> {
    tokio::time::timeout(LIMIT, events.recv())
        .await?
        .context("the gate is closed")
}

/// Waits for something that the gate's reader does.
async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .with_context(|| format!("waited for: {what}"))
}

/// Everything that `remove` must leave as it was.
fn traces() -> Result<String> {
    let mut all = String::new();
    for question in [
        "-d addr",
        "rule",
        "-6 rule",
        "route show table all",
        "-6 route show table all",
    ] {
        all += &ip(question)?;
    }
    // Times and counters in the listings of addresses and neighbours do not occur in a fresh namespace.
    for family in ["ipv4", "ipv6"] {
        let mut conf: Vec<_> = std::fs::read_dir(format!("/proc/sys/net/{family}/conf"))?
            .flatten()
            .collect();
        conf.sort_by_key(std::fs::DirEntry::path);
        for device in conf {
            for key in [
                "forwarding",
                "accept_ra",
                "rp_filter",
                "accept_local",
                "accept_redirects",
            ] {
                let path = device.path().join(key);
                if let Ok(value) = std::fs::read_to_string(&path) {
                    all += &format!("{} {value}", path.display());
                }
            }
        }
    }
    // What is known of a device's carrier comes and goes with the descriptor.
    Ok(all.replace("state UNKNOWN", "state UP"))
}

/// TCP segments sent again in the calling thread's namespace.
fn resent() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut tcp = text
        .lines()
        .filter(|line| line.starts_with("Tcp:"))
        .map(str::split_whitespace);
    let (names, values) = tcp.next().zip(tcp.next()).context("no Tcp lines")?;
    let (_, value) = names
        .zip(values)
        .find(|(name, _)| *name == "RetransSegs")
        .context("no RetransSegs")?;
    Ok(value.parse()?)
}

/// One TCP client, the app made after the client's first packet.
async fn a_connection_waits(from_elsewhere: bool, ipv6: bool) -> Result<()> {
    let world = World::new()?;
    let config = config(&world);
    let (gate, mut events) = Gate::open(config.clone()).await?;
    let app = world.app(5);
    gate.register("web", app.addrs, &[HTTP], WakePolicy::default());
    let target = SocketAddr::new(app.addrs.both()[usize::from(ipv6)], 80);
    let client = move || -> Result<(SocketAddr, String, u64)> {
        let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"hello\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok((stream.local_addr()?, answer, resent()?))
    };
    let client = if from_elsewhere {
        inside(&world.stranger().await?.netns, client)
    } else {
        std::thread::spawn(client)
    };

    let event = next(&mut events).await?;
    assert_eq!((event.app.as_ref(), event.caller.port), ("web", HTTP));
    assert!(gate.held("web") >= 1);
    net::create(&app).await?;
    let server = inside(&app.netns, move || {
        let listener = TcpListener::bind(target)?;
        Ok((listener, ()))
    });
    let (listener, ()) = joined(server).await?;
    let released = gate.release("web", &app.link).await?;
    assert!(released.held >= 1 && released.refused == 0, "{released:?}");
    let seen = joined(std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut said = [0; 6];
        stream.read_exact(&mut said)?;
        stream.write_all(format!("you are {peer} and said {}", String::from_utf8_lossy(&said)).as_bytes())?;
        Ok(peer)
    }));
    let seen = seen.await?;
    let (own, answer, resent) = joined(client).await?;
    // What was held is what was answered, not the client's second try.
    assert_eq!(resent, 0);
    assert_eq!(seen, own);
    assert_eq!(answer, format!("you are {own} and said hello\n"));
    let expected: IpAddr = match (from_elsewhere, ipv6) {
        (true, false) => IpAddr::from([203, 0, 113, 9]),
        (true, true) => "2001:db8::9".parse()?,
        (false, false) => config.own_v4().context("no own address")?.into(),
        (false, true) => config.own_v6().context("no own address")?.into(),
    };
    assert_eq!(own.ip(), expected);
    Ok(())
}

#[test]
fn a_connection_of_this_host_waits_for_the_app_and_completes() -> Result<()> {
    in_netns(|| a_connection_waits(false, false))?;
    in_netns(|| a_connection_waits(false, true))
}

#[test]
fn a_connection_from_elsewhere_waits_and_keeps_its_address() -> Result<()> {
    in_netns(|| a_connection_waits(true, false))?;
    in_netns(|| a_connection_waits(true, true))
}

#[test]
fn a_strict_reverse_path_on_the_whole_host_is_no_obstacle() -> Result<()> {
    for ipv6 in [false, true] {
        in_netns(|| async move {
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")?;
            a_connection_waits(true, ipv6).await
        })?;
    }
    in_netns(|| async {
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")?;
        a_connection_waits(false, false).await
    })
}

/// Sends numbers in bursts until told to stop, then how many they were, which it also returns.
fn count_at(target: SocketAddr, stop: Arc<AtomicBool>) -> impl FnOnce() -> Result<u64> + Send + 'static {
    move || {
        let socket = UdpSocket::bind(if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
        socket.connect(target)?;
        let mut sent = 0u64;
        while sent < 8_000 || !stop.load(Ordering::Relaxed) {
            for _ in 0..16 {
                socket.send(&sent.to_be_bytes())?;
                sent += 1;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        socket.send(&(END | sent).to_be_bytes())?;
        Ok(sent)
    }
}

/// Marks the number that tells how many there were.
const END: u64 = 1 << 63;

/// What came of the numbers sent.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    /// Numbers sent that never came.
    lost: usize,
    /// Numbers that came again.
    twice: usize,
    /// Numbers that came behind a greater one.
    late: usize,
}

/// Reads numbers until all have come, or nothing comes any more.
fn read_numbers(socket: &UdpSocket) -> Result<Came> {
    let (mut seen, mut total, mut greatest) = (HashSet::new(), None, 0);
    let mut came = Came {
        lost: 0,
        twice: 0,
        late: 0,
    };
    while total != Some(seen.len() as u64) {
        let mut number = [0; 8];
        match socket.recv(&mut number) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            other => other?,
        };
        let number = u64::from_be_bytes(number);
        if number & END != 0 {
            total = Some(number & !END);
            continue;
        }
        came.twice += usize::from(!seen.insert(number));
        came.late += usize::from(number < greatest);
        greatest = greatest.max(number);
    }
    let total = usize::try_from(total.context("the end never came")?)?;
    came.lost = total - seen.len();
    Ok(came)
}

/// Datagrams sent without a pause while the app is released, and held and released again.
async fn numbers_across_releases(from_elsewhere: bool, ipv6: bool, rounds: usize) -> Result<Came> {
    let world = World::new()?;
    let (gate, mut events) = Gate::open(config(&world)).await?;
    let app = world.app(5);
    gate.register("dns", app.addrs, &[DNS], WakePolicy::default());
    net::create(&app).await?;
    let target = SocketAddr::new(app.addrs.both()[usize::from(ipv6)], 53);
    let socket = joined(inside(&app.netns, move || udp_socket(target.ip(), 53))).await?;
    let reader = std::thread::spawn(move || read_numbers(&socket));
    let stop = Arc::new(AtomicBool::new(false));
    let sender = count_at(target, stop.clone());
    let sender = if from_elsewhere {
        inside(&world.stranger().await?.netns, sender)
    } else {
        std::thread::spawn(sender)
    };

    for round in 0..rounds {
        assert_eq!(next(&mut events).await?.caller.port, DNS);
        until("packets to be held", || gate.held("dns") >= 500).await?;
        let released = gate.release("dns", &app.link).await?;
        assert!(released.held >= 500 && released.refused == 0, "{released:?}");
        assert_eq!(gate.held("dns"), 0);
        if round + 1 < rounds {
            tokio::time::sleep(Duration::from_millis(3)).await;
            gate.hold("dns").await?;
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(joined(sender).await? >= 8_000);
    joined(reader).await
}

const ALL_IN_ORDER: Came = Came {
    lost: 0,
    twice: 0,
    late: 0,
};

/// On one processor, where the kernel itself keeps the order: what two processors have queued for one device is
/// in no order, whoever queued it.
async fn numbers_in_order(from_elsewhere: bool, ipv6: bool, rounds: usize) -> Result<()> {
    on_one_processor()?;
    assert_eq!(
        numbers_across_releases(from_elsewhere, ipv6, rounds).await?,
        ALL_IN_ORDER
    );
    Ok(())
}

#[test]
fn datagrams_across_a_release_arrive_in_order_and_none_is_lost() -> Result<()> {
    in_netns(|| numbers_in_order(false, false, 1))?;
    in_netns(|| numbers_in_order(true, false, 1))
}

#[test]
fn datagrams_over_ipv6_arrive_in_order_and_none_is_lost() -> Result<()> {
    in_netns(|| numbers_in_order(false, true, 1))?;
    in_netns(|| numbers_in_order(true, true, 1))
}

#[test]
fn holding_and_releasing_again_and_again_under_traffic_keeps_the_order() -> Result<()> {
    in_netns(|| numbers_in_order(false, false, 10))?;
    in_netns(|| numbers_in_order(true, true, 10))
}

#[test]
fn nothing_is_lost_or_doubled_when_sender_and_gate_run_at_the_same_time() -> Result<()> {
    for (from_elsewhere, ipv6) in [(false, false), (true, true)] {
        in_netns(|| async move {
            let came = numbers_across_releases(from_elsewhere, ipv6, 10).await?;
            // Late ones there may be: kernel-notes/gate.md, "What is left".
            assert_eq!((came.lost, came.twice), (0, 0), "{came:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Sends one datagram to each port of an app.
fn poke(app: &NetSpec, ports: &[u16]) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for port in ports {
        socket.send_to(b"?", (app.addrs.v4, *port))?;
    }
    Ok(())
}

#[test]
fn what_is_not_published_is_counted_and_wakes_nothing() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        let (gate, mut events) = Gate::open(config(&world)).await?;
        let app = world.app(5);
        gate.register("dns", app.addrs, &[DNS], WakePolicy::default());
        gate.asleep("dns", Connections::default()).await;
        poke(&app, &[54, 80, 5353])?;
        poke(&world.app(6), &[53])?;
        poke(&app, &[53, 53])?;
        let event = next(&mut events).await?;
        assert_eq!((event.app.as_ref(), event.caller.port), ("dns", DNS));
        until("both packets", || gate.held("dns") == 2).await?;
        let filtered: Vec<u64> = gate
            .counts("dns")
            .into_iter()
            .flat_map(|counts| counts.filtered.into_values())
            .collect();
        assert_eq!(filtered, [3]);
        assert_eq!((gate.strays().unknown, gate.strays().malformed), (1, 0));
        assert!(events.try_recv().is_err());
        gate.refuse("dns", Connections::default()).await;
        assert_eq!(gate.held("dns"), 0);
        gate.asleep("dns", Connections::default()).await;
        poke(&app, &[53])?;
        assert_eq!(next(&mut events).await?.caller.port, DNS);
        Ok(())
    })
}

/// Runs something that waits for an answer while the gate under test reads on.
async fn asked<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    Ok(tokio::task::spawn_blocking(question).await?)
}

#[test]
fn pings_and_connections_to_unpublished_ports_are_answered_at_once() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        let (gate, mut events) = Gate::open(config(&world)).await?;
        let app = world.app(5);
        gate.register("web", app.addrs, &[HTTP], WakePolicy::default());
        gate.asleep("web", Connections::default()).await;
        for address in app.addrs.both() {
            for port in [22, 81] {
                let at = SocketAddr::new(address, port);
                let error = asked(move || TcpStream::connect_timeout(&at, LIMIT)).await?.err();
                let kind = error.map(|error| error.kind());
                assert_eq!(kind, Some(io::ErrorKind::ConnectionRefused), "{at}");
            }
            let refused = asked(move || -> Result<io::ErrorKind> {
                let socket = UdpSocket::bind((if address.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
                socket.connect((address, 81))?;
                socket.set_read_timeout(Some(LIMIT))?;
                socket.send(b"?")?;
                Ok(socket.recv(&mut [0; 8]).err().context("an answer")?.kind())
            });
            assert_eq!(refused.await??, io::ErrorKind::ConnectionRefused);
            assert!(asked(move || ping(address)).await??, "{address}");
        }
        assert!(events.try_recv().is_err());
        assert_eq!(gate.held("web"), 0);
        Ok(())
    })
}

/// One echo request by a datagram socket (icmp(7)); whether it is answered.
fn ping(address: IpAddr) -> Result<bool> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
    let (family, protocol, request) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let socket = UdpSocket::from(socket(
        family,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?);
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect((address, 0))?;
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, b'h', b'i'])?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    Ok(answer[..length].ends_with(b"hi") && answer[0] != request)
}

#[test]
fn held_packets_are_bounded_and_the_rest_is_counted() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        let config = GateConfig {
            max_held_per_app: 10,
            ..config(&world)
        };
        let (gate, mut events) = Gate::open(config).await?;
        let app = world.app(5);
        gate.register("dns", app.addrs, &[DNS], WakePolicy::default());
        poke(&app, &[53; 50])?;
        next(&mut events).await?;
        until("50 packets", || {
            gate.counts("dns")
                .is_some_and(|counts| counts.held + counts.overflowed == 50)
        })
        .await?;
        assert_eq!(
            (
                gate.held("dns"),
                gate.counts("dns").map(|counts| counts.overflowed)
            ),
            (10, Some(40))
        );
        Ok(())
    })
}

/// One question, one answer: the app behind `app` is reached without the gate's help.
async fn answers(app: &NetSpec) -> Result<()> {
    let address = app.addrs.v4.into();
    let server = joined(inside(&app.netns, move || udp_socket(address, 53))).await?;
    let client = udp_socket(Ipv4Addr::UNSPECIFIED.into(), 0)?;
    let asked = std::thread::spawn(move || -> Result<()> {
        client.send_to(b"?", (address, 53))?;
        let (_, asker) = server.recv_from(&mut [0; 8])?;
        server.send_to(b"!", asker)?;
        let (_, from) = client.recv_from(&mut [0; 8])?;
        ensure!(from == SocketAddr::new(address, 53), "answered by {from}");
        Ok(())
    });
    joined(asked).await
}

#[test]
fn device_and_routes_outlive_the_agent_and_are_taken_up_again() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        let config = config(&world);
        let (hot, asleep) = (world.app(5), world.app(6));
        net::create(&hot).await?;

        let (gate, _events) = Gate::open(config.clone()).await?;
        gate.register("hot", hot.addrs, &[DNS], WakePolicy::default());
        gate.release("hot", &hot.link).await?;
        let refused = Gate::open(config.clone())
            .await
            .err()
            .map(|error| error.to_string());
        assert!(refused.is_some_and(|text| text.contains("another agent")));
        let before = traces()?;
        // As a kill leaves it: the descriptor closed, nothing taken away.
        gate.close().await;
        assert!(matches!(gate.hold("hot").await, Err(GateError::Closed)));
        drop(gate);
        let carrierless = traces()?;
        for route in [
            "10.77.0.0/16 dev pico0",
            "fd77:7069:636f::/64 dev pico0",
            "10.77.0.5 dev app5",
        ] {
            assert!(carrierless.contains(route), "{route} in {carrierless}");
        }
        answers(&hot).await?;
        // Nobody reads: lost, but no error for the client.
        poke(&asleep, &[53])?;

        let (gate, mut events) = reopen(&config).await?;
        assert_eq!(traces()?, before);
        gate.register("hot", hot.addrs, &[DNS], WakePolicy::default());
        gate.register("asleep", asleep.addrs, &[DNS], WakePolicy::default());
        gate.adopt("hot", &hot.link).await?;
        answers(&hot).await?;
        poke(&asleep, &[53])?;
        let event = next(&mut events).await?;
        assert_eq!((event.app.as_ref(), event.caller.port), ("asleep", DNS));
        assert_eq!((gate.held("hot"), gate.held("asleep")), (0, 1));
        Ok(())
    })
}

#[test]
fn a_device_deleted_by_others_ends_the_events() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        let (gate, mut events) = Gate::open(config(&world)).await?;
        ip("link del pico0")?;
        assert_eq!(tokio::time::timeout(LIMIT, events.recv()).await?, None);
        gate.register("web", world.app(5).addrs, &[HTTP], WakePolicy::default());
        assert!(matches!(gate.hold("web").await, Err(GateError::Closed)));
        Ok(())
    })
}

#[test]
fn removing_leaves_no_trace() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        let config = config(&world);
        ip("link add uplink type veth peer name downlink")?;
        std::fs::write("/proc/sys/net/ipv4/conf/uplink/forwarding", "1")?;
        let before = traces()?;
        Gate::remove(&config).await?;
        assert_eq!(traces()?, before);

        let app = world.app(5);
        net::create(&app).await?;
        let (gate, _events) = Gate::open(config.clone()).await?;
        gate.register("web", app.addrs, &[HTTP], WakePolicy::default());
        gate.release("web", &app.link).await?;
        gate.hold("web").await?;
        gate.release("web", &app.link).await?;
        let open = traces()?;
        assert!(
            open.contains("ipv4/conf/uplink/forwarding 1") && open.contains("ipv6/conf/uplink/accept_ra 2")
        );
        assert!(open.contains("10.77.0.5 dev app5"));
        gate.close().await;
        // The app is hot still: its routes must go although its device stays.
        Gate::remove(&config).await?;
        assert!(!traces()?.contains("10.77.0.5 dev app5"));
        assert!(!config.state_file.exists());
        net::remove(&app).await?;
        assert_eq!(traces()?, before);
        Gate::remove(&config).await?;
        assert_eq!(traces()?, before);
        Ok(())
    })
}

#[test]
fn forwarding_stays_on_until_the_last_gate_of_the_host_is_removed() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        let before = traces()?;
        let first = config(&world);
        let second = GateConfig {
            tun: "pico1".to_owned(),
            v4: (Ipv4Addr::new(10, 78, 0, 0), 16),
            v6: (Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 0), 64),
            ..first.clone()
        };
        let (gate, _events) = Gate::open(first.clone()).await?;
        let (other, mut events) = Gate::open(second.clone()).await?;
        gate.close().await;
        Gate::remove(&first).await?;
        let left = traces()?;
        assert!(left.contains("conf/all/forwarding 1") && left.contains("10.78.0.0/16 dev pico1"));
        other.register(
            "dns",
            Addresses {
                v4: Ipv4Addr::new(10, 78, 0, 5),
                ..world.app(5).addrs
            },
            &[DNS],
            WakePolicy::default(),
        );
        UdpSocket::bind("0.0.0.0:0")?.send_to(b"?", "10.78.0.5:53")?;
        next(&mut events).await?;
        other.close().await;
        Gate::remove(&second).await?;
        assert_eq!(traces()?, before);
        Ok(())
    })
}

#[test]
fn a_changed_configuration_replaces_the_old_one_on_the_same_device() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        let before = config(&world);
        let after = GateConfig {
            v4: (Ipv4Addr::new(10, 99, 0, 0), 16),
            table: 100,
            rule_priority: 100,
            ..before.clone()
        };
        let (gate, _events) = Gate::open(before).await?;
        gate.close().await;
        let (gate, _events) = reopen(&after).await?;
        let traces_now = traces()?;
        let stale: Vec<_> = traces_now
            .lines()
            .filter(|line| line.contains("7769") || line.contains("10.77.") && !line.contains("blackhole"))
            .collect();
        assert!(
            stale.iter().all(|line| line.starts_with("blackhole")),
            "{stale:?}"
        );
        assert!(traces_now.contains("10.99.0.0/16 dev pico0"));
        gate.close().await;
        Ok(())
    })
}

#[test]
fn a_subnet_of_somebody_else_is_refused() -> Result<()> {
    in_netns(|| async {
        let world = World::new()?;
        ip("link add office type veth peer name office-peer")?;
        ip("link set office up")?;
        ip("route add 10.77.0.0/16 dev office")?;
        match Gate::open(config(&world)).await {
            Err(GateError::SubnetTaken { subnet }) => assert_eq!(subnet, "10.77.0.0/16"),
            Err(other) => bail!("{other}"),
            Ok(_) => bail!("opened"),
        }
        let no_room = GateConfig {
            v4: (Ipv4Addr::new(10, 77, 0, 0), 32),
            ..config(&world)
        };
        assert!(matches!(Gate::open(no_room).await, Err(GateError::NoSubnet(_))));
        Ok(())
    })
}
