//! To which port's requests page faults are counted.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};

use super::world::{self, Cgroup, Child, PATIENCE, say};
use super::*;
use crate::port::Proto;

const PAGE: usize = 4096;
/// Pages that one request touches, fresh ones each time.
const TOUCHED: u64 = 40;

/// Where a process has touched [`TOUCHED`] pages: its id, and the first address. (Children of one process find
/// the same addresses free.)
type Place = [u64; 2];

/// Writes to `TOUCHED` fresh pages.
fn touch() -> Place {
    let length = usize::try_from(TOUCHED).unwrap() * PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new private mapping that nothing else uses, wherever the kernel likes.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, rights, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    for page in 0..usize::try_from(TOUCHED).unwrap() {
        // SAFETY: within the mapping.
        unsafe { start.cast::<u8>().add(page * PAGE).write_volatile(1) };
    }
    [u64::from(std::process::id()), start.addr() as u64]
}

/// How a request is served.
#[derive(Clone, Copy)]
enum By {
    /// The thread that received it.
    Itself,
    /// A worker that sleeps until there is work, the same for all ports.
    Worker,
    /// A process forked for it.
    Fork,
}

/// A server with three ports, a thread for each, that reports its ports, then answers each byte with where it
/// touched memory for it. One more thread touches memory for nobody, when it is told to over the stream.
fn three_ports(by: By) -> impl FnOnce(&mut UnixStream) {
    move |stream| {
        let worker = Arc::new(Mutex::new(Worker::spawn()));
        for _ in 0..3 {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            say(stream, listener.local_addr().unwrap().port());
            let worker = worker.clone();
            std::thread::spawn(move || {
                let (mut connection, _) = listener.accept().unwrap();
                let mut byte = [0];
                while connection.read(&mut byte).unwrap() == 1 {
                    // Held until the answer is sent: only then is the worker done with the request.
                    let mut worker = matches!(by, By::Worker).then(|| worker.lock().unwrap());
                    let place = match (by, &mut worker) {
                        (By::Fork, _) => fork_and_touch(),
                        (_, Some(worker)) => worker.work(),
                        (_, None) => touch(),
                    };
                    connection.write_all(&bytes_of(place)).unwrap();
                }
            });
        }
        while world::command(stream).is_some() {
            touch().into_iter().for_each(|number| say(stream, number));
        }
    }
}

/// A thread that touches memory for others.
struct Worker {
    stream: UnixStream,
    stat: String,
}

impl Worker {
    fn spawn() -> Self {
        let (stream, mut theirs) = UnixStream::pair().unwrap();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            tell.send(nix::unistd::gettid()).unwrap();
            while theirs.read(&mut [0]).unwrap() == 1 {
                theirs.write_all(&bytes_of(touch())).unwrap();
            }
        });
        let stat = format!("/proc/self/task/{}/stat", told.recv().unwrap());
        Worker { stream, stat }
    }

    fn work(&mut self) -> Place {
        // A worker that is awake takes the next job without being woken, and of that nothing is seen.
        while !std::fs::read_to_string(&self.stat).unwrap().contains(") S ") {
            std::thread::yield_now();
        }
        self.stream.write_all(b"!").unwrap();
        read_place(&mut self.stream)
    }
}

/// As [`touch`], in a child process.
fn fork_and_touch() -> Place {
    let (mut reader, mut writer) = UnixStream::pair().unwrap();
    // SAFETY: the child makes a mapping, writes to it and to a socket, and ends.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            writer.write_all(&bytes_of(touch())).unwrap();
            // SAFETY: ends this process without running what belongs to the test runner.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let place = read_place(&mut reader);
            nix::sys::wait::waitpid(child, None).unwrap();
            place
        }
    }
}

fn bytes_of(place: Place) -> Vec<u8> {
    place.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn read_place(from: &mut impl Read) -> Place {
    let mut bytes = [0; 16];
    from.read_exact(&mut bytes).unwrap();
    let (pid, start) = bytes.split_at(8);
    [pid, start].map(|number| u64::from_ne_bytes(number.try_into().unwrap()))
}

fn request(connection: &mut TcpStream) -> Place {
    connection.write_all(b"?").unwrap();
    answer(connection)
}

fn answer(connection: &mut TcpStream) -> Place {
    read_place(connection)
}

/// How many faults each port has in the pages of a place.
fn ports_of(events: &[TraceEvent], [pid, start]: Place) -> BTreeMap<u16, u64> {
    let range = start..start + TOUCHED * PAGE as u64;
    let mut ports = BTreeMap::new();
    for event in events {
        if let TraceEvent::Fault(fault) = event
            && u64::from(fault.pid) == pid
            && range.contains(&fault.address)
        {
            *ports.entry(fault.port).or_default() += 1;
        }
    }
    ports
}

fn told_apart(source: PortSource, by: By) {
    if skipped() {
        return;
    }
    let cgroup = Cgroup::new();
    let probes = Probes::load_with(cgroup.path(), Some(source)).unwrap();
    assert!(probes.capabilities().ports.is_ok(), "{:?}", probes.capabilities());
    let mut child = Child::spawn(&cgroup, three_ports(by));
    let ports = [child.port(), child.port(), child.port()];
    let mut target = world::target(&cgroup, 7);
    target.ports = ports
        .map(|number| Port {
            number,
            proto: Proto::Tcp,
        })
        .to_vec();
    let _tracing = probes.trace(target).unwrap();
    let mut connections = ports.map(|port| {
        let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    });
    let only = |port| BTreeMap::from([(port, TOUCHED)]);
    for round in 0..5 {
        // One after the other, with work for nobody in between.
        for (connection, port) in connections.iter_mut().zip(ports) {
            let place = request(connection);
            assert_eq!(
                ports_of(&world::drain(&probes), place),
                only(port),
                "round {round}"
            );
            child.tell(b't');
            let place = [child.hear(), child.hear()];
            assert_eq!(ports_of(&world::drain(&probes), place), only(0), "round {round}");
        }
        // All at once.
        for connection in &mut connections {
            connection.write_all(b"?").unwrap();
        }
        let places: Vec<Place> = connections.iter_mut().map(answer).collect();
        let events = world::drain(&probes);
        for (place, port) in places.into_iter().zip(ports) {
            assert_eq!(ports_of(&events, place), only(port), "round {round}");
        }
    }
    assert_eq!(probes.lost().unwrap(), 0);
}

#[test]
fn a_fault_is_counted_to_the_port_whose_request_the_thread_serves() {
    told_apart(PortSource::Sockets, By::Itself);
}

#[test]
fn a_worker_that_is_woken_for_a_request_goes_on_with_it() {
    told_apart(PortSource::Sockets, By::Worker);
}

#[test]
fn a_process_that_is_forked_for_a_request_goes_on_with_it() {
    told_apart(PortSource::Sockets, By::Fork);
}

#[test]
fn where_the_socket_tracepoints_are_missing_system_calls_tell_the_port() {
    told_apart(PortSource::SystemCalls, By::Itself);
}

#[test]
fn what_is_received_and_sent_and_how_connections_change_is_told() {
    let (probes, cgroup) = probes_or_skip!();
    let mut child = Child::spawn(&cgroup, three_ports(By::Itself));
    let [number, other, _] = [child.port(), child.port(), child.port()];
    let mut target = world::target(&cgroup, 3);
    (target.v4, target.v6) = world::LOOPBACK;
    target.ports = vec![Port {
        number,
        proto: Proto::Tcp,
    }];
    let tracing = probes.trace(target).unwrap();
    let mut published = TcpStream::connect(("127.0.0.1", number)).unwrap();
    let mut unpublished = TcpStream::connect(("127.0.0.1", other)).unwrap();
    let places = [request(&mut published), request(&mut unpublished)];
    let events = world::drain(&probes);
    let data: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            TraceEvent::Socket(event) if event.kind != EventKind::Connection as u8 => Some(event),
            _ => None,
        })
        .collect();
    let seen: Vec<_> = data
        .iter()
        .map(|event| (event.kind, event.bytes, event.port))
        .collect();
    let (received, sent) = (EventKind::Received as u8, EventKind::Sent as u8);
    assert_eq!(seen, [(received, 1, number), (sent, 16, number)]);
    for event in data {
        assert_eq!((event.app, event.pid, event.proto), (3, child.pid(), 6));
    }
    // TCP_SYN_RECV 3 to TCP_ESTABLISHED 1, of the accepted end.
    let opened = events.iter().any(|event| {
        matches!(event, TraceEvent::Socket(event)
            if event.kind == EventKind::Connection as u8 && event.states == 3 << 16 | 1 && event.port == number)
    });
    assert!(opened, "{events:?}");
    assert_eq!(ports_of(&events, places[1]), BTreeMap::from([(0, TOUCHED)]));

    drop(tracing);
    // Connections of tests that run beside this one have the same address.
    world::drain(&probes);
    request(&mut published);
    let mine = |event: &TraceEvent| match event {
        TraceEvent::Fault(fault) => fault.pid == child.pid(),
        TraceEvent::Socket(event) => event.pid == child.pid() || event.port == number,
    };
    assert!(!world::drain(&probes).iter().any(mine));
}
