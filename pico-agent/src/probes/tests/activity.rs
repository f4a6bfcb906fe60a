//! Which packets are activity, and on which port, address and protocol they are counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::world::{LOOPBACK, PATIENCE, command, say, set_option, tcp_server, udp_echo, udp_exchange};
use super::*;
use crate::port::Proto::{Tcp, Udp};

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec at `time`.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(result, 0);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap()
}

fn watch(probes: &Probes, number: u16, proto: crate::port::Proto) {
    probes
        .watch(LOOPBACK.0, LOOPBACK.1, &[Port { number, proto }])
        .unwrap();
}

fn seen(probes: &Probes) -> Vec<PortActivity> {
    probes.activity(LOOPBACK.0, LOOPBACK.1).unwrap()
}

/// The only row there is.
fn only(probes: &Probes) -> PortActivity {
    let rows = seen(probes);
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0]
}

#[test]
fn a_tcp_request_shows_at_the_apps_port_and_the_time_it_came() {
    let (probes, cgroup) = probes_or_skip!();
    let mut server = Child::spawn(&cgroup, tcp_server("127.0.0.1"));
    let port = server.port();
    watch(&probes, port, Tcp);
    assert_eq!(seen(&probes), []);

    let before = now();
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let after_connect = now();
    let row = only(&probes);
    assert_eq!((row.port, row.proto, row.local_v6), (port, Tcp, false));
    assert!((before..=after_connect).contains(&row.last_ns), "{row:?}");

    client.write_all(b"hello").unwrap();
    server.tell(b'r');
    server.hear();
    let asked = only(&probes);
    assert!(
        asked.last_ns >= after_connect && asked.last_ns <= now(),
        "{asked:?}"
    );
    // One segment: an IP header, a TCP header with timestamps, five bytes.
    assert_eq!(
        (asked.packets - row.packets, asked.bytes - row.bytes),
        (1, 20 + 32 + 5)
    );

    server.tell(b'w');
    client.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(only(&probes).packets, asked.packets + 1);
}

#[test]
fn acknowledgements_and_keepalives_are_no_activity() {
    let (probes, cgroup) = probes_or_skip!();
    let mut server = Child::spawn(&cgroup, tcp_server("127.0.0.1"));
    let port = server.port();
    watch(&probes, port, Tcp);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"hello").unwrap();
    server.tell(b'r');
    let segments = server.hear();
    let before = only(&probes);

    let on = 1i32.to_ne_bytes();
    set_option(&client, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &on);
    set_option(&client, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &on);
    set_option(&client, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &on);
    // The kernel's own keepalive, without payload, a second from now.
    wait_for_segments(&mut server, segments + 1);
    assert_eq!(only(&probes), before);

    // What others' kernels send: the last byte once more.
    let segments = wait_for_segments(&mut server, 0);
    send_old_byte(&client);
    wait_for_segments(&mut server, segments + 1);
    assert_eq!(only(&probes), before);

    // And the proof that the counter is not merely stuck.
    client.write_all(b"hello").unwrap();
    server.tell(b'r');
    server.hear();
    assert_eq!(only(&probes).packets, before.packets + 1);
}

/// Waits until the server's connection has received that many segments; nothing but its counter tells.
fn wait_for_segments(server: &mut Child, wanted: u64) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        server.tell(b's');
        let segments = server.hear();
        if segments >= wanted {
            return segments;
        }
        assert!(
            Instant::now() < deadline,
            "{segments} of {wanted} segments arrived"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends the last byte that the connection has sent already once more, as a keepalive does.
fn send_old_byte(client: &TcpStream) {
    const SEND_QUEUE: i32 = 2;
    const RECEIVE_QUEUE: i32 = 1;
    /// Ends repair mode without the window probe that it otherwise sends.
    const OFF_WITHOUT_PROBE: i32 = -1;
    let option = |name, value: i32| set_option(client, libc::IPPROTO_TCP, name, &value.to_ne_bytes());
    let sequence = |queue| {
        option(libc::TCP_REPAIR_QUEUE, queue);
        let (mut sequence, mut length) = (0u32, 4);
        // SAFETY: the kernel writes four bytes at `sequence` and their number at `length`.
        let result = unsafe {
            let value = (&raw mut sequence).cast();
            libc::getsockopt(
                client.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_QUEUE_SEQ,
                value,
                &raw mut length,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        sequence
    };
    option(libc::TCP_REPAIR, 1);
    let (next, acknowledged) = (sequence(SEND_QUEUE), sequence(RECEIVE_QUEUE));
    option(libc::TCP_REPAIR, OFF_WITHOUT_PROBE);

    let (from, to) = (
        client.local_addr().unwrap().port(),
        client.peer_addr().unwrap().port(),
    );
    let mut segment = Vec::new();
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend(next.wrapping_sub(1).to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    // Header of 5 words, flag ACK, some window, checksum (filled in below), no urgent data; one byte.
    segment.extend([5 << 4, 0x10, 0x10, 0, 0, 0, 0, 0, b'o']);
    let checksum = tcp_checksum(&segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());

    // SAFETY: makes a descriptor and touches no memory.
    let raw = unsafe {
        libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_TCP,
        )
    };
    assert!(raw >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made, and nobody else's; a datagram socket is what sends one message.
    let raw: std::net::UdpSocket = unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) };
    raw.send_to(&segment, (Ipv4Addr::LOCALHOST, 0)).unwrap();
}

/// The TCP checksum over loopback (RFC 9293, 3.1).
fn tcp_checksum(segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let pseudo = [127, 0, 0, 1, 127, 0, 0, 1, 0, 6, length[0], length[1]];
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let mut sum: u32 = words
        .map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |&low| u32::from(low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

#[test]
fn a_datagram_shows_at_the_apps_ipv6_address() {
    let (probes, cgroup) = probes_or_skip!();
    let mut server = Child::spawn(&cgroup, udp_echo("::1"));
    let port = server.port();
    watch(&probes, port, Udp);
    udp_exchange("::1", port, &[]);
    let row = only(&probes);
    assert_eq!(
        (row.port, row.proto, row.local_v6, row.packets),
        (port, Udp, true, 2)
    );
    assert_eq!(row.bytes, 2 * (40 + 8 + 5));
}

#[test]
fn headers_with_options_hide_nothing() {
    let (probes, cgroup) = probes_or_skip!();
    let mut v4 = Child::spawn(&cgroup, udp_echo("127.0.0.1"));
    let port = v4.port();
    watch(&probes, port, Udp);
    udp_exchange(
        "127.0.0.1",
        port,
        &[(libc::IPPROTO_IP, libc::IP_OPTIONS, &[1, 1, 1, 1])],
    );
    let row = only(&probes);
    assert_eq!((row.packets, row.bytes), (2, 20 + 4 + 20 + 2 * (8 + 5)));

    let mut v6 = Child::spawn(&cgroup, udp_echo("::1"));
    let port = v6.port();
    watch(&probes, port, Udp);
    // Both a hop-by-hop and a destination options header: next header, length, and a PadN of six bytes.
    let padding = &[0, 0, 1, 4, 0, 0, 0, 0];
    let options: [(i32, i32, &[u8]); 2] = [
        (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, padding),
        (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, padding),
    ];
    udp_exchange("::1", port, &options);
    let row = only(&probes);
    assert_eq!(
        (row.port, row.packets, row.bytes),
        (port, 2, 40 + 16 + 40 + 2 * (8 + 5))
    );
}

#[test]
fn connections_the_app_opens_and_unpublished_ports_are_counted_together() {
    let (probes, cgroup) = probes_or_skip!();
    let outside = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let server = outside.local_addr().unwrap();
    let mut app = Child::spawn(&cgroup, move |stream| {
        while command(stream).is_some() {
            let connection = TcpStream::connect(server).unwrap();
            say(stream, connection.local_addr().unwrap().port());
        }
    });
    watch(&probes, 1, Tcp);
    let mut last = 0;
    for _ in 0..3 {
        app.tell(b'c');
        app.hear();
        let row = only(&probes);
        assert_eq!((row.port, row.proto, row.local_v6), (0, Tcp, false));
        assert!(row.packets > last, "{row:?}");
        last = row.packets;
    }
}

#[test]
fn only_the_apps_own_sockets_and_addresses_count() {
    let (probes, cgroup) = probes_or_skip!();
    let other = Cgroup::new();
    let mut strange = Child::spawn(&other, udp_echo("127.0.0.1"));
    let strange_port = strange.port();
    watch(&probes, strange_port, Udp);
    udp_exchange("127.0.0.1", strange_port, &[]);
    assert_eq!(seen(&probes), [], "a socket outside the apps' cgroup was counted");

    let mut app = Child::spawn(&cgroup, udp_echo("127.0.0.2"));
    let port = app.port();
    watch(&probes, port, Udp);
    udp_exchange("127.0.0.2", port, &[]);
    assert_eq!(seen(&probes), [], "an address that is not the app's was counted");
}

#[test]
fn a_socket_in_a_cgroup_below_counts() {
    let (probes, cgroup) = probes_or_skip!();
    let run = cgroup.below("run-1");
    let mut app = Child::spawn(&run, udp_echo("127.0.0.1"));
    let port = app.port();
    watch(&probes, port, Udp);
    udp_exchange("127.0.0.1", port, &[]);
    assert_eq!(only(&probes).packets, 2);
}

#[test]
fn what_is_forgotten_counts_no_more_and_starts_at_nothing() {
    let (probes, cgroup) = probes_or_skip!();
    let mut app = Child::spawn(&cgroup, udp_echo("127.0.0.1"));
    let port = app.port();
    watch(&probes, port, Udp);
    udp_exchange("127.0.0.1", port, &[]);
    // Ports may change while the app runs: what stays keeps its count.
    let more = [
        Port {
            number: port,
            proto: Udp,
        },
        Port {
            number: 80,
            proto: Tcp,
        },
    ];
    probes.watch(LOOPBACK.0, LOOPBACK.1, &more).unwrap();
    assert_eq!(only(&probes).packets, 2);
    // Two ports and two times "any other", on two addresses.
    assert_eq!(probes.stats().unwrap().watched, 8);

    probes.forget(LOOPBACK.0, LOOPBACK.1).unwrap();
    probes.forget(LOOPBACK.0, LOOPBACK.1).unwrap();
    udp_exchange("127.0.0.1", port, &[]);
    assert_eq!(seen(&probes), []);
    assert_eq!(probes.stats().unwrap().watched, 0);
    watch(&probes, port, Udp);
    assert_eq!(seen(&probes), []);
}
