//! Whether a CRIU works on this kernel, seen by trying it: a small TCP server is dumped and lazily
//! restored in namespaces of its own (nothing outside is touched, and all of it dies with them),
//! and must then go on counting on the connection that was open all the while.
//!
//! Runs in three processes of this program: `run` (any user) starts the hidden command `criu-probe`
//! as root inside new namespaces, and that one starts `probe-server`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cmd;

/// How long each step of CRIU may take.
const STEP_SECONDS: &str = "30";
/// How long an answer may take: every page of it is fetched through CRIU's page server.
const ANSWER: Duration = Duration::from_secs(20);
/// The server's memory. All of it is read for each answer.
const SERVER_BYTES: usize = 8 << 20;
/// The options that the agent gives to CRIU as well: connections are kept, nobody locks the network.
const COMMON: [&str; 4] = [
    "--tcp-established",
    "--network-lock",
    "skip",
    "--manage-cgroups=ignore",
];

/// Inside the new namespaces: CRIU's cache of what the kernel can do goes to this /run, not the
/// host's; the loopback device must be switched on; and what our caller left open must be closed,
/// since CRIU cannot save a file that was opened in another mount namespace.
const ENTER: &str = r#"
mount -t tmpfs tmpfs /run || exit
ip link set lo up || exit
for fd in /proc/$$/fd/*; do
    fd=${fd##*/}
    if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi
done
exec "$@"
"#;

/// What the process inside prints when CRIU works; anything else is why it does not.
const WORKS: &str = "works";

/// Tries a CRIU, given as a command line: the inner error says why it does not work, the outer one
/// that it could not be tried (no root, no namespaces), which says nothing of CRIU.
pub fn run(criu: &[String]) -> Result<Result<(), String>> {
    let me = std::env::current_exe().context("cannot find this program")?;
    let mut cmd = cmd::as_root("unshare", &[])?;
    cmd.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-c",
        ENTER,
        "bash",
    ]);
    cmd.arg(me).arg("criu-probe").args(criu);
    let verdict = cmd::output(&mut cmd).context("cannot try CRIU")?;
    Ok(if verdict.trim() == WORKS {
        Ok(())
    } else {
        Err(verdict.trim().to_owned())
    })
}

/// The hidden command `criu-probe`: process 1 of the new namespaces. Prints the verdict.
pub fn inside(criu: &[String]) -> Result<()> {
    let images = Scratch::new()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    let mut server = start_server(listener)?;
    let mut before = TcpStream::connect(address).context("cannot connect to the probe's server")?;
    let (count, sum) = ask(&mut before)?;
    ensure!(count == 1, "the server's first answer was number {count}");
    match dump_and_restore(criu, &images.0, &mut server, before, sum) {
        Ok(()) => println!("{WORKS}"),
        Err(reason) => println!("{reason:#}"),
    }
    Ok(())
}

/// Dumps the server, restores it, and asks it on the connection `before` and on a new one.
fn dump_and_restore(
    criu: &[String],
    images: &Path,
    server: &mut Child,
    mut before: TcpStream,
    sum: u64,
) -> Result<()> {
    let address = before.peer_addr()?;
    let pid = server.id().to_string();
    finish("dump", step(criu, "dump", images).args(["--tree", &pid]), images)?;
    server.wait()?;

    let mut pages = step(criu, "lazy-pages", images)
        .args(["--status-fd", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run CRIU")?;
    // It writes one byte when it is ready to serve.
    let mut status = pages.stdout.take().context("no pipe to `criu lazy-pages`")?;
    ensure!(
        status.read(&mut [0; 1])? == 1,
        "criu lazy-pages: {}",
        log_of(images, "lazy-pages")
    );

    let mut restore = step(criu, "restore", images);
    finish(
        "restore",
        restore.args(["--lazy-pages", "--restore-detached"]),
        images,
    )?;

    let mut after = TcpStream::connect(address).context("the restored server does not listen")?;
    for (wanted, connection) in [(2, &mut before), (3, &mut after)] {
        let answer = ask(connection).with_context(|| {
            format!(
                "the restored server does not answer; lazy-pages: {}",
                log_of(images, "lazy-pages")
            )
        })?;
        ensure!(
            answer == (wanted, sum),
            "the restored server's memory has changed: answer {answer:?}"
        );
    }
    Ok(())
}

/// One command of CRIU, bounded in time, its log beside the images.
fn step(criu: &[String], action: &str, images: &Path) -> Command {
    let mut cmd = Command::new("timeout");
    cmd.args(["--kill-after=1", STEP_SECONDS]).args(criu).arg(action);
    cmd.arg("--images-dir")
        .arg(images)
        .args(["-v2", "--log-file", &format!("{action}.log")]);
    if action != "lazy-pages" {
        cmd.args(COMMON);
    }
    let stderr =
        File::create(images.join(format!("{action}.stderr"))).map_or_else(|_| Stdio::null(), Stdio::from);
    cmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    cmd
}

fn finish(action: &str, cmd: &mut Command, images: &Path) -> Result<()> {
    let status = cmd.status().context("cannot run CRIU")?;
    if !status.success() {
        bail!("criu {action} fails here ({status}): {}", log_of(images, action));
    }
    Ok(())
}

/// The errors in CRIU's log, the last few: some of the earlier ones do no harm. Without a log (an
/// option it does not know), the first line that it wrote to standard error.
fn log_of(images: &Path, action: &str) -> String {
    let read = |suffix: &str| {
        let bytes = std::fs::read(images.join(format!("{action}.{suffix}"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    match (last_errors(&read("log")), read("stderr").lines().next()) {
        (Some(errors), _) => errors,
        (None, Some(line)) => line.to_owned(),
        (None, None) => "it gives no reason".to_owned(),
    }
}

fn last_errors(log: &str) -> Option<String> {
    let errors: Vec<&str> = log
        .lines()
        .filter_map(|l| l.find("Error").map(|at| l[at..].trim()))
        .collect();
    let last = &errors[errors.len().saturating_sub(3)..];
    (!last.is_empty()).then(|| last.join("; "))
}

/// Starts the server in a session of its own, as CRIU wants it, with the listening socket as its
/// standard input: it can be connected to at once, and nobody has to wait for it.
fn start_server(listener: TcpListener) -> Result<Child> {
    let mut cmd = Command::new("setsid");
    cmd.arg(std::env::current_exe()?).arg("probe-server");
    cmd.stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear();
    cmd.spawn().context("cannot start the probe's server")
}

/// The hidden command `probe-server`: its standard input is the listening socket.
pub fn server() -> Result<()> {
    serve(&TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?))
}

/// Answers each line with the number of answers so far and a sum over all of its memory.
fn serve(listener: &TcpListener) -> Result<()> {
    let memory: Arc<Vec<u8>> = Arc::new((0..=250).cycle().take(SERVER_BYTES).collect());
    let count = Arc::new(AtomicU64::new(0));
    for connection in listener.incoming() {
        let (connection, memory, count) = (connection?, Arc::clone(&memory), Arc::clone(&count));
        std::thread::spawn(move || {
            let Ok(reader) = connection.try_clone() else {
                return;
            };
            let mut writer = connection;
            for _line in BufReader::new(reader).lines().map_while(|line| line.ok()) {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let sum = memory.iter().fold(0u64, |sum, byte| {
                    sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
                });
                if writer.write_all(format!("{number} {sum}\n").as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

fn ask(connection: &mut TcpStream) -> Result<(u64, u64)> {
    connection.set_read_timeout(Some(ANSWER))?;
    connection.write_all(b"?\n")?;
    let mut line = String::new();
    BufReader::new(connection)
        .read_line(&mut line)
        .context("no answer")?;
    let (count, sum) = line
        .trim()
        .split_once(' ')
        .with_context(|| format!("answer {line:?}"))?;
    Ok((count.parse()?, sum.parse()?))
}

/// A directory of its own for the images, removed with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        // This process is number 1 of its namespace: take the name from elsewhere.
        let name = cmd::output(Command::new("mktemp").args(["-d", "-t", "pico-criu-probe.XXXXXX"]))?;
        Ok(Scratch(PathBuf::from(name.trim_end())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_of_a_log_are_kept() {
        let log = "(00.1) Error (a.c:1): one\n(00.2) fine\n(00.3) Error (b.c:2): two\nError (c.c:3): three\n(0) Error: 4\n";
        assert_eq!(
            last_errors(log).as_deref(),
            Some("Error (b.c:2): two; Error (c.c:3): three; Error: 4")
        );
        assert_eq!(last_errors("all went well\n"), None);
    }

    #[test]
    fn the_server_counts_and_sums_on_each_connection() -> Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || serve(&listener));
        let (mut one, mut two) = (TcpStream::connect(address)?, TcpStream::connect(address)?);
        let (first, sum) = ask(&mut one)?;
        assert_eq!(first, 1);
        assert_eq!(ask(&mut two)?, (2, sum));
        assert_eq!(ask(&mut one)?, (3, sum));
        Ok(())
    }
}
