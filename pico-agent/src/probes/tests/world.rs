//! Cgroups and processes for the tests of the probes; everything goes when it is dropped.

use std::fs;
use std::io::{Read, Write};
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Probes, Target, TraceEvent};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// The addresses a test app is known by: whatever reaches it in these tests comes by loopback.
pub const LOOPBACK: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);

/// Longer than anything here takes, so that a broken test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A cgroup in the v2 hierarchy with a name of its own.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let v2 = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (path, kind) = (fields.nth(1)?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = v2
            .unwrap()
            .join(format!("pico-probes-test-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Cgroup(path)
    }

    /// A cgroup within this one, which must be dropped first.
    pub fn below(&self, name: &str) -> Self {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        Cgroup(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Children are gone by now: they are declared, and so dropped, after their cgroup was made.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Tracing of a cgroup under a number, of an app without ports, at addresses that no test uses.
pub fn target(cgroup: &Cgroup, app: u32) -> Target {
    Target {
        cgroup: cgroup.id(),
        app,
        v4: Ipv4Addr::new(127, 9, 9, 9),
        v6: Ipv6Addr::new(0xfd, 0, 0, 0, 0, 0, 0, 9),
        ports: Vec::new(),
    }
}

/// All that waits to be read.
pub fn drain(probes: &Probes) -> Vec<TraceEvent> {
    let mut all = Vec::new();
    loop {
        let events = probes.events().unwrap();
        if events.is_empty() {
            return all;
        }
        all.extend(events);
    }
}

/// How many cgroup_skb programs are attached to exactly this cgroup.
pub fn attached(cgroup: &Cgroup) -> u32 {
    /// `union bpf_attr`, the part of BPF_PROG_QUERY (linux/bpf.h).
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_count: u32,
        pad: u32,
    }
    const BPF_PROG_QUERY: libc::c_int = 16;
    let directory = fs::File::open(cgroup.path()).unwrap();
    // Attach types 0 and 1: BPF_CGROUP_INET_INGRESS and BPF_CGROUP_INET_EGRESS.
    (0..2)
        .map(|attach_type| {
            let target_fd = u32::try_from(directory.as_raw_fd()).unwrap();
            let mut query = Query {
                target_fd,
                attach_type,
                ..Default::default()
            };
            // SAFETY: the kernel reads and writes `size_of::<Query>()` bytes at `query` and, prog_ids being
            // null, nothing else.
            let result =
                unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            query.prog_count
        })
        .sum()
}

/// A process in a cgroup that does what it is told over a stream.
pub struct Child {
    pid: Pid,
    stream: UnixStream,
}

impl Child {
    pub fn spawn(cgroup: &Cgroup, run: impl FnOnce(&mut UnixStream)) -> Self {
        let (stream, mut theirs) = UnixStream::pair().unwrap();
        for end in [&stream, &theirs] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        // SAFETY: glibc makes its allocator usable in the child of a threaded process; the child uses that,
        // system calls, and no lock that another thread may have held.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Child { pid: child, stream },
            ForkResult::Child => {
                let done = catch_unwind(AssertUnwindSafe(|| {
                    drop(stream);
                    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
                    fs::write(cgroup.path().join("cgroup.procs"), "0").unwrap();
                    run(&mut theirs);
                }));
                // SAFETY: ends this process without running what belongs to the test runner.
                unsafe { libc::_exit(i32::from(done.is_err())) }
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    pub fn tell(&mut self, command: u8) {
        self.stream.write_all(&[command]).unwrap();
    }

    /// One number the child reports.
    pub fn hear(&mut self) -> u64 {
        let mut number = [0; 8];
        self.stream
            .read_exact(&mut number)
            .expect("the child ended or hangs");
        u64::from_ne_bytes(number)
    }

    pub fn port(&mut self) -> u16 {
        u16::try_from(self.hear()).unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// In a child: waits for the next command; None when the test is over.
pub fn command(stream: &mut UnixStream) -> Option<u8> {
    let mut command = [0];
    (stream.read(&mut command).unwrap() == 1).then_some(command[0])
}

/// In a child: reports a number.
pub fn say(stream: &mut UnixStream, number: impl TryInto<u64>) {
    let number = number.try_into().unwrap_or(u64::MAX);
    stream.write_all(&number.to_ne_bytes()).unwrap();
}

/// A child that answers each datagram with the same.
pub fn udp_echo(address: &'static str) -> impl FnOnce(&mut UnixStream) {
    move |stream| {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        say(stream, socket.local_addr().unwrap().port());
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], peer).unwrap();
        }
    }
}

/// A datagram there and back; `options`: (level, name, value) set on the sending socket.
pub fn udp_exchange(address: &str, port: u16, options: &[(i32, i32, &[u8])]) {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for &(level, name, value) in options {
        set_option(&socket, level, name, value);
    }
    socket.send_to(b"hello", (address, port)).unwrap();
    assert_eq!(socket.recv(&mut [0; 64]).unwrap(), 5);
}

/// A child that accepts one connection, and then, for each command: `r` reads 5 bytes, `w` writes 5 bytes,
/// `s` says how many segments the connection has received.
pub fn tcp_server(address: &'static str) -> impl FnOnce(&mut UnixStream) {
    move |stream| {
        let listener = TcpListener::bind((address, 0)).unwrap();
        say(stream, listener.local_addr().unwrap().port());
        let (mut connection, _) = listener.accept().unwrap();
        while let Some(command) = command(stream) {
            match command {
                b'r' => connection.read_exact(&mut [0; 5]).unwrap(),
                b'w' => connection.write_all(b"hello").unwrap(),
                _ => {}
            }
            say(stream, segments_in(&connection));
        }
    }
}

pub fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: &[u8]) {
    let length = libc::socklen_t::try_from(value.len()).unwrap();
    // SAFETY: the kernel reads `length` bytes at `value`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    assert_eq!(result, 0, "option {name}: {}", std::io::Error::last_os_error());
}

/// How many segments a connection has received, those without payload included.
fn segments_in(connection: &TcpStream) -> u32 {
    // `tcpi_segs_in` of `struct tcp_info` (linux/tcp.h), which has only grown at its end.
    const SEGS_IN: usize = 140;
    let mut info = [0u8; 256];
    let mut length = libc::socklen_t::try_from(info.len()).unwrap();
    // SAFETY: the kernel writes at most `length` bytes at `info`, and how many at `length`.
    let result = unsafe {
        let info = info.as_mut_ptr().cast();
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info,
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    u32::from_ne_bytes(info[SEGS_IN..SEGS_IN + 4].try_into().unwrap())
}
