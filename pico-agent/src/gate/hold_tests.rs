//! What becomes of packets, by the table alone.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super::connections::{Connection, Conversation};
use super::super::packet::samples::{segment, tcp, udp, v4, v6};
use super::super::packet::{ACK, FIN, SYN};
use super::super::policy::{Probe, ProbeReply};
use super::*;

const HTTP: Port = Port {
    number: 80,
    proto: Proto::Tcp,
};
const DNS: Port = Port {
    number: 53,
    proto: Proto::Udp,
};

fn app(last: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 77, 0, last),
        v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(last)),
    }
}

/// One app, asleep.
fn table() -> HoldTable {
    table_with(Connections::default(), WakePolicy::default())
}

fn table_with(connections: Connections, policy: WakePolicy) -> HoldTable {
    let mut table = HoldTable::new(4, 1 << 20);
    table.register("web", app(5), &[HTTP, DNS], policy);
    assert_eq!(sleep(&mut table, connections), []);
    table
}

fn sleep(table: &mut HoldTable, connections: Connections) -> Vec<Verdict> {
    table.asleep("web", connections, false, Instant::now())
}

/// What the samples' sender wakes by a packet for this port.
fn wake(port: Port) -> Verdict {
    let source = IpAddr::from([192, 0, 2, 7]);
    Verdict::Wake("web".into(), Caller { port, source })
}

/// Flags of the one answer to a segment.
fn answered(verdict: &Verdict) -> Option<Segment> {
    let Verdict::Answer(packets) = verdict else {
        return None;
    };
    let [answer] = &packets[..] else { return None };
    match packet::parse(answer)?.content {
        Content::Tcp(segment) => Some(segment),
        _ => None,
    }
}

fn refused(verdict: &Verdict) -> bool {
    answered(verdict).is_some_and(|segment| segment.has(RST))
}

fn filtered(table: &HoldTable) -> Vec<(String, u64)> {
    table
        .counts("web")
        .map(|counts| counts.filtered)
        .into_iter()
        .flatten()
        .collect()
}

fn syn(port: u16) -> Vec<u8> {
    v4(app(5).v4, 6, 0, &tcp(port, 2))
}

fn offer(table: &mut HoldTable, bytes: &[u8]) -> Verdict {
    table.offer(bytes, Instant::now())
}

#[test]
fn the_first_packet_wakes_once_and_all_come_out_in_order() {
    let mut table = table();
    let packets: Vec<_> = (0..3).map(|n| v6(app(5).v6, 17, &udp(53, &[n]))).collect();
    assert_eq!(
        offer(&mut table, &packets[0]),
        Verdict::Wake(
            "web".into(),
            Caller {
                port: DNS,
                source: Ipv6Addr::LOCALHOST.into()
            }
        )
    );
    assert_eq!(offer(&mut table, &packets[1]), Verdict::Kept);
    assert_eq!(offer(&mut table, &packets[2]), Verdict::Kept);
    assert_eq!(table.held("web"), 3);
    let taken: Vec<Vec<u8>> = table
        .release("web", Instant::now())
        .packets
        .into_iter()
        .map(Into::into)
        .collect();
    assert_eq!(taken, packets);
    assert_eq!(offer(&mut table, &packets[0]), Verdict::Forward);
    assert_eq!((table.held("web"), table.held_bytes), (0, 0));
}

#[test]
fn holding_again_or_sleeping_again_lets_the_next_packet_call_again() {
    let mut table = table();
    assert_eq!(offer(&mut table, &syn(80)), wake(HTTP));
    assert!(table.called("web"));
    table.hold("web");
    assert!(!table.called("web"));
    assert_eq!(offer(&mut table, &syn(80)), wake(HTTP));
    assert_eq!(offer(&mut table, &syn(80)), Verdict::Kept);
    // What is held calls at once.
    assert_eq!(sleep(&mut table, Connections::default()), [wake(HTTP)]);
    assert_eq!(
        (table.held("web"), table.counts("web").map(|counts| counts.held)),
        (3, Some(3))
    );
}

#[test]
fn what_is_held_for_an_app_that_cannot_be_woken_is_refused_and_so_is_what_comes() {
    let mut table = table();
    offer(&mut table, &syn(80));
    offer(&mut table, &v4(app(5).v4, 17, 0, &udp(53, b"?")));
    let verdicts = table.asleep("web", Connections::default(), true, Instant::now());
    assert_eq!(verdicts.len(), 2);
    assert!(refused(&verdicts[0]) && matches!(verdicts[1], Verdict::Answer(_)));
    assert!(refused(&offer(&mut table, &syn(80))));
    assert_eq!((table.held("web"), table.held_bytes), (0, 0));
    assert_eq!(table.counts("web").map(|counts| counts.refused), Some(2));
    sleep(&mut table, Connections::default());
    assert_eq!(offer(&mut table, &syn(80)), wake(HTTP));
}

#[test]
fn what_wakes_nothing_is_answered_or_dropped_and_counted() {
    let mut table = table();
    assert!(refused(&offer(&mut table, &syn(81))));
    // On no connection, though the port is published.
    assert!(refused(&offer(
        &mut table,
        &v4(app(5).v4, 6, 0, &segment(80, ACK, 1, 1, b"x"))
    )));
    for bytes in [
        v4(app(5).v4, 17, 0, &udp(80, b"")),
        v4(app(5).v4, 1, 0, &[8, 0, 0, 0, 0, 1, 0, 1]),
        v6(app(5).v6, 58, &[128, 0, 0, 0, 0, 1, 0, 1]),
    ] {
        assert!(matches!(offer(&mut table, &bytes), Verdict::Answer(_)));
    }
    for bytes in [
        v4(app(5).v4, 132, 0, &[0; 12]),
        v4(app(5).v4, 17, 1, &[0; 12]),
        v4(app(5).v4, 6, 0, &tcp(80, RST)),
        v4(app(6).v4, 6, 0, &tcp(80, 2)),
        v4(Ipv4Addr::new(224, 0, 0, 22), 2, 0, &[0; 8]),
        vec![0; 30],
    ] {
        assert_eq!(offer(&mut table, &bytes), Verdict::Kept);
    }
    let counts: Vec<u64> = filtered(&table).into_iter().map(|(_, count)| count).collect();
    assert_eq!(counts.iter().sum::<u64>(), 8, "{:?}", filtered(&table));
    assert_eq!(
        table.strays(),
        StrayCounts {
            unknown: 1,
            multicast: 1,
            malformed: 1
        }
    );
    assert_eq!(table.held("web"), 0);
}

#[test]
fn refusals_are_limited() {
    let mut table = table();
    let now = Instant::now();
    let answers = (0..1_000)
        .filter(|_| refused(&table.offer(&syn(81), now)))
        .count();
    assert_eq!(answers, 200);
    assert!(refused(&table.offer(&syn(81), now + Duration::from_secs(1))));
}

fn connection() -> Connection {
    Connection {
        local: SocketAddr::new(app(5).v4.into(), 80),
        peer: "192.0.2.7:40000".parse().unwrap(),
        snd_nxt: 500,
        rcv_nxt: 10,
        receive_window: 65_536,
        window_scale: 7,
        timestamp: None,
        owes: false,
    }
}

#[test]
fn a_keepalive_is_answered_and_data_wakes() {
    let connections = Connections::new(vec![connection()], Vec::new());
    let mut table = table_with(connections, WakePolicy::default());
    let say = |flags, seq, payload: &[u8]| v4(app(5).v4, 6, 0, &segment(80, flags, seq, 500, payload));
    let answer = answered(&offer(&mut table, &say(ACK, 9, b""))).expect("an answer");
    assert_eq!((answer.flags, answer.seq, answer.ack), (ACK, 500, 10));
    assert_eq!(offer(&mut table, &say(ACK, 10, b"")), Verdict::Kept);
    assert_eq!(table.held("web"), 0);
    // The app must learn of it, but need not wake for it.
    assert_eq!(offer(&mut table, &say(RST, 10, b"")), Verdict::Kept);
    assert_eq!(table.held("web"), 1);
    assert_eq!(offer(&mut table, &say(ACK, 10, b"x")), wake(HTTP));
    // Being woken, it will answer for itself.
    assert_eq!(offer(&mut table, &say(ACK, 9, b"")), Verdict::Kept);
    assert_eq!(table.held("web"), 3);
}

#[test]
fn what_an_app_has_asked_for_itself_wakes_it_although_it_publishes_no_such_port() {
    let outgoing = Connection {
        local: SocketAddr::new(app(5).v4.into(), 41_000),
        ..connection()
    };
    let asked = Conversation {
        local: SocketAddr::new(app(5).v4.into(), 42_000),
        peer: outgoing.peer,
    };
    let connections = Connections::new(vec![outgoing], vec![asked]);
    let port = |number, proto| Port { number, proto };
    let mut table = table_with(connections.clone(), WakePolicy::default());
    let data = v4(app(5).v4, 6, 0, &segment(41_000, ACK, 10, 500, b"row"));
    assert_eq!(offer(&mut table, &data), wake(port(41_000, Proto::Tcp)));
    let mut table = table_with(connections, WakePolicy::default());
    let answer = v4(app(5).v4, 17, 0, &udp(42_000, b"answer"));
    assert_eq!(offer(&mut table, &answer), wake(port(42_000, Proto::Udp)));
}

#[test]
fn between_hot_and_asleep_everything_is_kept_and_only_news_calls() {
    let mut table = HoldTable::new(100, 1 << 20);
    table.register("web", app(5), &[HTTP], WakePolicy::default());
    for bytes in [
        v4(app(5).v4, 6, 0, &segment(80, ACK, 9, 500, b"")),
        v4(app(5).v4, 6, 0, &segment(41_000, ACK, 9, 500, b"")),
        v4(app(5).v4, 6, 0, &tcp(80, RST)),
        v4(app(5).v4, 1, 0, &[3, 3, 0, 0, 0, 0, 0, 0]),
        v4(app(5).v4, 17, 1, b"rest"),
    ] {
        assert_eq!(offer(&mut table, &bytes), Verdict::Kept);
    }
    assert!(refused(&offer(&mut table, &syn(81))));
    assert!(!table.called("web"));
    for news in [
        v4(app(5).v4, 6, 0, &segment(80, ACK, 9, 500, b"data")),
        v4(app(5).v4, 6, 0, &segment(80, ACK | FIN, 9, 500, b"")),
        v4(app(5).v4, 6, 0, &segment(41_000, SYN | ACK, 9, 500, b"")),
        v4(app(5).v4, 17, 0, &udp(42_000, b"an answer")),
        syn(80),
    ] {
        table.hold("web");
        assert!(matches!(offer(&mut table, &news), Verdict::Wake(..)));
        assert!(table.called("web"));
    }
    assert_eq!(table.held("web"), 10);
}

#[test]
fn denied_sources_and_those_that_wake_too_often_are_refused_and_counted_by_rule() {
    let policy = WakePolicy {
        deny: vec!["192.0.2.0/25".parse().unwrap()],
        ..WakePolicy::default()
    };
    let mut table = table_with(Connections::default(), policy);
    assert!(refused(&offer(&mut table, &syn(80))));
    assert!(matches!(
        offer(&mut table, &v4(app(5).v4, 17, 0, &udp(53, b"?"))),
        Verdict::Answer(_)
    ));
    assert_eq!(filtered(&table), [("wake.deny 192.0.2.0/25".to_owned(), 2)]);

    let policy = WakePolicy {
        rate: Some(Rate {
            times: 2,
            per: Duration::from_secs(60),
        }),
        ..WakePolicy::default()
    };
    let mut table = table_with(Connections::default(), policy);
    for _ in 0..2 {
        assert_eq!(offer(&mut table, &syn(80)), wake(HTTP));
        table.release("web", Instant::now());
        table.hold("web");
        sleep(&mut table, Connections::default());
    }
    assert!(refused(&offer(&mut table, &syn(80))));
    assert_eq!(filtered(&table), [("wake.rate".to_owned(), 1)]);
}

#[test]
fn a_denied_source_does_not_keep_a_tired_app_awake() {
    let policy = WakePolicy {
        deny: vec!["192.0.2.0/25".parse().unwrap()],
        ..WakePolicy::default()
    };
    let mut table = HoldTable::new(100, 1 << 20);
    table.register("web", app(5), &[HTTP], policy);
    assert_eq!(offer(&mut table, &syn(80)), Verdict::Kept);
    assert!(!table.called("web"));
    // Asleep, it is refused.
    assert!(refused(&sleep(&mut table, Connections::default())[0]));
}

#[test]
fn a_probe_is_told_a_fixed_word_by_a_whole_connection_and_wakes_nothing() {
    let policy = WakePolicy {
        probes: vec![Probe {
            from: "192.0.2.0/24".parse().unwrap(),
            reply: ProbeReply::Http {
                status: 200,
                body: "asleep\n".into(),
            },
        }],
        ..WakePolicy::default()
    };
    let mut table = table_with(Connections::default(), policy);
    let mut say = |flags, seq, ack, payload: &[u8]| {
        let segment = segment(80, flags, seq, ack, payload);
        match table.offer(&checked(v4(app(5).v4, 6, 0, &segment)), Instant::now()) {
            Verdict::Answer(packets) => packets,
            Verdict::Kept => Vec::new(),
            other => panic!("{other:?}"),
        }
    };
    let first = |packets: &[Vec<u8>]| match packet::parse(&packets[0]).expect("a packet").content {
        Content::Tcp(segment) => segment,
        other => panic!("{other:?}"),
    };
    let opened = first(&say(SYN, 100, 0, b""));
    assert!(opened.has(SYN) && opened.ack == 101);
    let theirs = opened.seq + 1;
    say(ACK, 101, theirs, b"");
    let answer = say(ACK, 101, theirs, b"GET / HTTP/1.0\r\n\r\n");
    let text: Vec<u8> = answer.iter().flat_map(|bytes| bytes[40..].to_vec()).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("asleep\n"),
        "{text}"
    );
    assert_eq!(table.held("web"), 0);
    assert!(table.probed());
    let again = table.overdue(Instant::now() + Duration::from_secs(2));
    assert!(!again.is_empty(), "what is not acknowledged is said again");
    assert!(filtered(&table)[0].0.starts_with("probe from 192.0.2.0/24"));
    // Nobody is left to say it to.
    table.overdue(Instant::now() + Duration::from_secs(120));
    table.overdue(Instant::now() + Duration::from_secs(240));
    assert!(!table.probed());
}

/// The sample with lengths, a window and checksums as a real one has.
fn checked(mut bytes: Vec<u8>) -> Vec<u8> {
    use smoltcp::wire::{Ipv4Packet, TcpPacket};
    let length = u16::try_from(bytes.len()).unwrap();
    let mut ip = Ipv4Packet::new_unchecked(&mut bytes);
    ip.set_total_len(length);
    ip.fill_checksum();
    let (from, to) = (ip.src_addr(), ip.dst_addr());
    let mut tcp = TcpPacket::new_unchecked(&mut bytes[20..]);
    tcp.set_window_len(64_000);
    tcp.fill_checksum(&from.into(), &to.into());
    bytes
}

#[test]
fn later_fragments_follow_the_first_one() {
    let mut table = table();
    offer(&mut table, &v4(app(5).v4, 17, 0x2000, &udp(53, b"a")));
    offer(&mut table, &v4(app(5).v4, 17, 1, b"b"));
    assert_eq!(table.held("web"), 2);
}

#[test]
fn a_full_queue_drops_counts_and_still_wakes() {
    let mut table = HoldTable::new(0, 1 << 20);
    table.register("web", app(5), &[HTTP], WakePolicy::default());
    assert_eq!(offer(&mut table, &syn(80)), wake(HTTP));
    assert_eq!(offer(&mut table, &syn(80)), Verdict::Kept);
    assert_eq!(
        table.counts("web").map(|counts| (counts.held, counts.overflowed)),
        Some((0, 2))
    );
}

#[test]
fn registering_again_keeps_what_is_held() {
    let mut table = table();
    offer(&mut table, &syn(80));
    table.register("web", app(9), &[DNS], WakePolicy::default());
    assert_eq!(table.held("web"), 1);
    assert_eq!(offer(&mut table, &syn(80)), Verdict::Kept);
    assert_eq!(table.strays().unknown, 1);
    assert!(table.unregister("web"));
    assert!(!table.unregister("web"));
    assert_eq!((table.held_bytes, table.names.len()), (0, 0));
}

proptest! {
    #[test]
    fn bounds_hold_and_no_byte_is_lost_count_of(
        steps in proptest::collection::vec((0..3u8, 0..6u8, 0..300usize), 0..200),
    ) {
        let mut table = HoldTable::new(5, 1500);
        let names = ["a", "b", "c"];
        for (n, name) in (1..).zip(names) {
            table.register(name, app(n), &[DNS], WakePolicy::default());
        }
        for (which, action, size) in steps {
            let name = names[usize::from(which)];
            match action {
                0 => table.hold(name),
                1 => { table.release(name, Instant::now()); }
                2 => { table.asleep(name, Connections::default(), size > 150, Instant::now()); }
                _ => { offer(&mut table, &v4(app(which + 1).v4, 17, 0, &udp(53, &vec![0; size]))); }
            }
            let held: usize = table.apps.values().flat_map(|app| &app.queue).map(|packet| packet.len()).sum();
            prop_assert_eq!(table.held_bytes, held);
            prop_assert!(held <= 1500);
            prop_assert!(names.iter().all(|name| table.held(name) <= 5));
        }
    }
}
