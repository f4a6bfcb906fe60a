//! The app of the scenario tests: one line in, one line out, over TCP and UDP on one port.
//!
//! It does on command what apps do and swapping must survive (memory, threads, forks, timers, files,
//! output, exits), and says whether everything is as it must be. It knows nothing of Picocenter.

mod clocks;
mod memory;
mod truth;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

static COUNTER: AtomicU64 = AtomicU64::new(0);
/// While it is, what comes waits in the sockets. A call that waits already takes one more.
static DEAF: AtomicBool = AtomicBool::new(false);
/// Kept open: an io_uring, which CRIU refuses to dump.
static RING: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Bytes of its stack that `main` lends: 32 pages wherever it begins.
const MAIN_STACK: usize = 33 * 4096;

fn main() -> Result<()> {
    let mut stack = std::mem::MaybeUninit::<[u8; MAIN_STACK]>::uninit();
    truth::lend(stack.as_mut_ptr().cast());
    let mut words = std::env::args().skip(1);
    let mut port = 7000;
    let mut others: Vec<u16> = Vec::new();
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--port" => port = value.parse()?,
            // The same service on one more TCP port.
            "--also" => others.push(value.parse()?),
            // For restart policies: an app that ends by itself, at once or after a while.
            "--exit-after-ms" => {
                let time = Duration::from_millis(value.parse()?);
                let code = words.next().context("--exit-after-ms MS CODE")?.parse()?;
                println!("will exit with {code}");
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    std::process::exit(code);
                });
            }
            _ => bail!("unknown option {word}"),
        }
    }
    let listener = TcpListener::bind(("::", port)).context("cannot listen")?;
    let datagrams = UdpSocket::bind(("::", port)).context("cannot bind")?;
    for other in others {
        let listener = TcpListener::bind(("::", other)).context("cannot listen")?;
        std::thread::spawn(move || accept(&listener));
    }
    println!("listening on {port}");
    std::thread::spawn(move || serve_datagrams(&datagrams));
    accept(&listener)
}

fn accept(listener: &TcpListener) -> Result<()> {
    loop {
        while deaf() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (stream, _) = listener.accept()?;
        std::thread::spawn(move || serve(stream));
    }
}

/// Whether neither connections nor datagrams are to be taken now.
fn deaf() -> bool {
    DEAF.load(Ordering::SeqCst)
}

fn serve(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut answers = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        answers.write_all(format!("{}\n", answer(&line?)).as_bytes())?;
    }
    Ok(())
}

fn serve_datagrams(socket: &UdpSocket) -> Result<()> {
    let mut packet = [0; 2048];
    loop {
        while deaf() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (length, peer) = socket.recv_from(&mut packet)?;
        let line = String::from_utf8_lossy(&packet[..length]).trim_end().to_owned();
        socket.send_to(answer(&line).as_bytes(), peer)?;
    }
}

fn answer(line: &str) -> String {
    // One line, whatever went wrong.
    run(line).unwrap_or_else(|error| format!("error: {error:#}").replace('\n', " "))
}

fn run(line: &str) -> Result<String> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let ok = |()| "ok".to_owned();
    match command {
        "ping" => Ok("pong".into()),
        "echo" => Ok(rest.into()),
        "count" => Ok((COUNTER.fetch_add(1, Ordering::SeqCst) + 1).to_string()),
        "counted" => Ok(COUNTER.load(Ordering::SeqCst).to_string()),
        "say" => {
            println!("{rest}");
            Ok("ok".into())
        }
        "complain" => {
            eprintln!("{rest}");
            Ok("ok".into())
        }
        "env" => Ok(std::env::var(rest).unwrap_or_default()),
        "where" => Ok(std::env::current_dir()?.display().to_string()),
        "hostname" => Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?
            .trim()
            .into()),
        "status" => {
            let status = std::fs::read_to_string("/proc/self/status")?;
            let line = status.lines().find(|line| line.starts_with(&format!("{rest}:")));
            Ok(line
                .unwrap_or_default()
                .split_whitespace()
                .skip(1)
                .collect::<Vec<_>>()
                .join(" "))
        }
        "read" => Ok(std::fs::read_to_string(rest)?.trim().into()),
        "list" => {
            let names =
                std::fs::read_dir(rest)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names = names.collect::<Result<Vec<_>>>()?;
            names.sort();
            Ok(names.join(" "))
        }
        "write" => {
            let (path, text) = rest.split_once(' ').context("write PATH TEXT")?;
            std::fs::write(path, text).map(ok).map_err(Into::into)
        }
        "ring" => keep_ring().map(ok),
        "unring" => {
            *RING.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = None;
            Ok("ok".into())
        }
        "spin" => {
            let end = Instant::now() + Duration::from_millis(rest.parse()?);
            while Instant::now() < end {}
            Ok("ok".into())
        }
        "wait-at-page-start" => {
            std::thread::spawn(memory::wait_at_page_start);
            Ok("ok".into())
        }
        "deaf" | "hear" => {
            DEAF.store(command == "deaf", Ordering::SeqCst);
            Ok("ok".into())
        }
        // The same service by a connection that the app opens itself, and by one more port.
        "connect" => {
            let stream = TcpStream::connect(rest)?;
            std::thread::spawn(move || serve(stream));
            Ok("ok".into())
        }
        "listen" => {
            let listener = TcpListener::bind(("::", rest.parse()?))?;
            std::thread::spawn(move || accept(&listener));
            Ok("ok".into())
        }
        "exit" => std::process::exit(rest.parse()?),
        "abort" => std::process::abort(),
        "clock" => clocks::now(),
        "timers" => {
            let (time, period) = rest.split_once(' ').unwrap_or((rest, "0"));
            let ms = |text: &str| Ok::<_, anyhow::Error>(Duration::from_millis(text.parse()?));
            clocks::arm(ms(time)?, ms(period)?).map(ok)
        }
        "fired" => Ok(clocks::fired()),
        "fill" => memory::fill(rest.parse()?),
        "verify" => memory::verify(),
        "touch" => memory::touch(rest),
        "change" => memory::change(rest.parse()?),
        "discard" => memory::discard(rest.parse()?),
        "patrol" => memory::patrol(rest.parse()?).map(ok),
        "patrolled" => Ok(memory::patrolled()),
        "fork" => memory::verify_in_child(),
        "truth" => truth::fill(),
        "truth-change" => truth::change(rest),
        "truth-check" => truth::check(rest),
        _ => bail!("unknown command {command}"),
    }
}

/// Opens an io_uring and keeps it.
fn keep_ring() -> Result<()> {
    let mut parameters = [0_u8; 120];
    // SAFETY: the kernel reads and writes one `io_uring_params`, which has 120 bytes.
    let raw = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, parameters.as_mut_ptr()) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error()).context("io_uring_setup");
    }
    // SAFETY: the call just returned this descriptor, and nobody else has it.
    let ring = unsafe { OwnedFd::from_raw_fd(i32::try_from(raw)?) };
    *RING.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = Some(ring);
    Ok(())
}
