//! Traces read back, whatever is in them; anything else is refused or marked.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::activeset::{Kind, PageId};
use crate::port::{Port, Proto};
use crate::units::Timestamp;

fn header() -> Header {
    Header {
        app: "web".to_owned(),
        lineage: 7,
        started: Timestamp::from_micros(1_000_000),
        base_ns: 5_000,
        kernel: "6.1.0".to_owned(),
    }
}

fn written(mappings: &[Mapping], events: &[Event]) -> Vec<u8> {
    let mut recorder = Recorder::new(Vec::new(), &header()).unwrap();
    recorder.mappings(mappings).unwrap();
    for (nth, event) in events.iter().enumerate() {
        recorder.event(5_000 + event.time_ns, event.what).unwrap();
        if nth % 7 == 6 {
            recorder.flush().unwrap();
        }
    }
    recorder.finish().unwrap()
}

fn any_port() -> impl Strategy<Value = Port> {
    (1..=u16::MAX, any::<bool>()).prop_map(|(number, udp)| Port {
        number,
        proto: if udp { Proto::Udp } else { Proto::Tcp },
    })
}

fn any_what() -> impl Strategy<Value = What> {
    let page = (any::<u32>(), any::<u64>()).prop_map(|(space, page)| PageId { space, page });
    let port = || prop::option::of(any_port());
    prop_oneof![
        (any::<(u32, u64, u32, u64, bool, bool)>(), port()).prop_map(
            |((space, address, tid, ip, write, user), port)| What::Fault(Fault {
                space,
                address,
                tid,
                ip,
                write,
                user,
                port,
            })
        ),
        (page.clone(), any::<bool>()).prop_map(|(at, write)| What::Accessed { at, write }),
        (any_port(), any::<u32>(), any::<u64>()).prop_map(|(port, tid, bytes)| What::Recv {
            port,
            tid,
            bytes
        }),
        (any_port(), any::<u32>(), any::<u64>()).prop_map(|(port, tid, bytes)| What::Send {
            port,
            tid,
            bytes
        }),
        any_port().prop_map(|port| What::Accept { port }),
        page.prop_map(|at| What::Prefetched { at }),
        (port(), any::<u64>()).prop_map(|(trigger, pages)| What::WakeStart { trigger, pages }),
        Just(What::HotStart),
        any::<bool>().prop_map(|accessed| What::End { accessed }),
        any::<u64>().prop_map(|count| What::Lost { count }),
    ]
}

fn any_events() -> impl Strategy<Value = Vec<Event>> {
    let event = (0..u64::MAX / 2, any_what()).prop_map(|(time_ns, what)| Event { time_ns, what });
    prop::collection::vec(event, 0..40)
}

fn any_mappings() -> impl Strategy<Value = Vec<Mapping>> {
    let mapping = (
        any::<u32>(),
        0..1u64 << 40,
        0..1u64 << 40,
        any::<u64>(),
        "[ -~é]{0,40}",
    );
    let mapping = mapping.prop_map(|(space, start, pages, offset, name)| Mapping {
        space,
        start,
        end: start + pages,
        offset,
        name,
    });
    prop::collection::vec(mapping, 0..6)
}

proptest! {
    #[test]
    fn what_is_recorded_reads_back(mappings in any_mappings(), events in any_events()) {
        let trace = decode(&written(&mappings, &events)).unwrap();
        prop_assert_eq!(trace.header, header());
        prop_assert_eq!(trace.mappings, mappings);
        prop_assert_eq!(trace.events, events);
        prop_assert!(trace.ended);
    }

    #[test]
    fn a_flipped_bit_is_found_and_a_cut_leaves_what_came_before(
        events in any_events(), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let bytes = written(&[], &events);
        let at = at.index(bytes.len());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        match decode(&flipped) {
            Err(_) => {}
            // A length that grew beyond the file looks like a file that was cut off.
            Ok(trace) => {
                prop_assert!(!trace.is_complete());
                prop_assert!(events.starts_with(&trace.events));
            }
        }
        match decode(&bytes[..at]) {
            Err(_) => prop_assert!(at < 12 + 2 + 32 + 40, "only the header is indispensable"),
            Ok(trace) => {
                prop_assert!(!trace.ended && !trace.is_complete());
                prop_assert!(events.starts_with(&trace.events));
            }
        }
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(decode(&longer).is_err());
    }

    #[test]
    fn any_bytes_in_chunks_with_right_sums_are_read_in_peace(
        chunks in prop::collection::vec((0..6u8, prop::collection::vec(0..20u8, 0..80)), 0..6)
    ) {
        let mut bytes = [&file::MAGIC[..], &file::VERSION.to_le_bytes()].concat();
        let mut content = Vec::new();
        file::put_header(&mut content, &header());
        bytes.extend(file::chunk(file::Chunk::Header, &content));
        for (kind, content) in chunks {
            let mut framed = Vec::new();
            crate::varint::put(&mut framed, content.len() as u64);
            framed.push(kind);
            let mut hasher = blake3::Hasher::new();
            hasher.update(&framed).update(&content);
            framed.extend_from_slice(hasher.finalize().as_bytes());
            framed.extend(content);
            bytes.extend(framed);
        }
        if let Ok(trace) = decode(&bytes) {
            windows(&trace.events);
        }
    }
}

fn at(time_ns: u64, what: What) -> Event {
    Event { time_ns, what }
}

fn fault(page: u64, port: Option<Port>) -> What {
    What::Fault(Fault {
        space: 1,
        address: page * 4096 + 5,
        tid: 9,
        ip: 0,
        write: true,
        user: true,
        port,
    })
}

#[test]
fn another_version_is_refused_by_name_and_lost_events_mark_a_trace() {
    let mut bytes = written(&[], &[at(1, What::Lost { count: 3 })]);
    let trace = decode(&bytes).unwrap();
    assert_eq!((trace.lost(), trace.is_complete(), trace.ended), (3, false, true));
    bytes[8] = 2;
    assert_eq!(decode(&bytes), Err(TraceError::Version(2)));
    assert!(matches!(decode(b"hello"), Err(TraceError::Damaged(_))));
}

#[test]
fn control_characters_of_a_path_do_not_reach_a_terminal() {
    let mapping = Mapping {
        space: 1,
        start: 2,
        end: 4,
        offset: 0,
        name: "/tmp/a\x1b[2Jb\n".to_owned(),
    };
    let trace = decode(&written(&[mapping], &[])).unwrap();
    assert_eq!(trace.mappings[0].name, "/tmp/a?[2Jb?");
    assert!(trace.mapping(PageId { space: 1, page: 3 }).is_some());
    assert!(trace.mapping(PageId { space: 2, page: 3 }).is_none());
    assert!(trace.mapping(PageId { space: 1, page: 4 }).is_none());
}

#[test]
fn windows_are_cut_from_events() {
    let web: Port = "80/tcp".parse().unwrap();
    let wake = What::WakeStart {
        trigger: Some(web),
        pages: 90,
    };
    let recv = What::Recv {
        port: web,
        tid: 9,
        bytes: 10,
    };
    let events: Vec<Event> = [
        fault(99, None),
        wake,
        fault(1, None),
        recv,
        fault(2, Some(web)),
        What::End { accessed: false },
        fault(98, None),
        What::HotStart,
        What::Accessed {
            at: PageId { space: 1, page: 3 },
            write: false,
        },
        What::End { accessed: true },
        wake,
        fault(4, None),
    ]
    .into_iter()
    .zip(0..)
    .map(|(what, time)| at(time, what))
    .collect();
    let windows = windows(&events);
    let pages =
        |nth: usize| -> Vec<u64> { windows[nth].touched().iter().map(|touch| touch.at.page).collect() };
    assert_eq!(windows.len(), 3);
    assert_eq!((pages(0), pages(1), pages(2)), (vec![1, 2], vec![3], vec![4]));
    assert_eq!((windows[0].kind, windows[1].kind), (Kind::Wake, Kind::Hot));
    assert_eq!((windows[0].trigger, windows[0].checkpoint_pages), (Some(web), 90));
    assert_eq!(windows[0].requests.len(), 1);
    assert!(windows[0].is_complete() && windows[1].has_accessed_bits());
    assert!(!windows[2].is_complete(), "it was cut off");
}
