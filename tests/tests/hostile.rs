//! An app whose owner is hostile, root in its sandbox, tries what it must not reach: each try is made from inside, and where
//! it can be, shown to succeed from where it may.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::{Nginx, RealApp as _};
use pico_tests::harness::owner::Owner;
use pico_tests::harness::process::output;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{AppConfig, Rig};

/// Where clouds hand out a machine's credentials.
const METADATA: &str = "169.254.169.254";
const SOON: Duration = Duration::from_secs(5);

/// What the hostile app prints: of the words that it is given, those that it reached.
fn tried(owner: &Owner, script: &str, words: &[String]) -> Result<Vec<String>> {
    let mut exec = vec!["app", "exec", "mallory", "--", "perl", "-e", script];
    exec.extend(words.iter().map(String::as_str));
    let reached = owner.pico(&exec)?;
    Ok(reached.lines().map(str::to_owned).collect())
}

/// Connects to each ADDRESS:PORT.
const CONNECT: &str = "use IO::Socket::INET; for (@ARGV) { \
    my $s = IO::Socket::INET->new(PeerAddr => $_, Timeout => 2); print \"$_\\n\" if $s; }";
/// Sends a datagram to each.
const SEND: &str = "use IO::Socket::INET; for (@ARGV) { \
    my $s = IO::Socket::INET->new(PeerAddr => $_, Proto => 'udp'); $s->send('from mallory') if $s; }";
/// Looks at each path: a directory with something in it, a socket, a file that can be opened.
const READ: &str = "for (@ARGV) { my ($d, $f); \
    if (opendir($d, $_)) { print \"$_\\n\" if grep { !/^\\.\\.?$/ } readdir($d); } \
    elsif (-S $_ or open($f, '<', $_)) { print \"$_\\n\"; } }";
/// Makes each system call `NAME=NUMBER` with arguments of zero.
const CALL: &str = "for (@ARGV) { my ($n, $c) = split /=/; \
    my $r = syscall($c + 0, 0, 0, 0, 0, 0); print \"$n\\n\" if $r >= 0; }";

/// All IPv4 addresses of this network namespace that are not loopback.
fn own_addresses() -> Result<Vec<IpAddr>> {
    let told = output(Command::new("ip").args(["-4", "-o", "addr", "show"]))?;
    let words = told.lines().filter_map(|line| line.split_whitespace().nth(3));
    let addresses = words.filter_map(|net| net.split('/').next()?.parse::<IpAddr>().ok());
    Ok(addresses.filter(|address| !address.is_loopback()).collect())
}

fn connects(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, SOON).is_ok()
}

fn network(rig: &Rig, owner: &Owner) -> Result<()> {
    let metadata =
        |verb: &str| output(Command::new("ip").args(["addr", verb, &format!("{METADATA}/32"), "dev", "lo"]));
    metadata("add")?;
    // Something that listens everywhere, as a hub or a store might by mistake.
    let tcp = TcpListener::bind("0.0.0.0:0")?;
    let udp = UdpSocket::bind("0.0.0.0:0")?;
    let mut hosts = own_addresses()?;
    ensure!(hosts.contains(&METADATA.parse()?) && hosts.len() > 1, "{hosts:?}");
    let port = tcp.local_addr()?.port();
    ensure!(hosts.iter().all(|host| connects(SocketAddr::new(*host, port))));
    let hub = rig.hub.as_ref().context("no hub")?;
    hosts.push("127.0.0.1".parse()?);
    let api: SocketAddr = hub.url().trim_start_matches("http://").parse()?;
    let store: SocketAddr = rig.store.address().parse()?;
    ensure!(connects(api) && connects(store));
    let words: Vec<String> = hosts
        .iter()
        .flat_map(|host| {
            [port, api.port(), store.port()].map(|port| SocketAddr::new(*host, port).to_string())
        })
        .collect();
    let reached = tried(owner, CONNECT, &words)?;
    ensure!(reached.is_empty(), "the host was reached at {reached:?}");

    let port = udp.local_addr()?.port();
    let words: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
    tried(owner, SEND, &words)?;
    UdpSocket::bind("127.0.0.1:0")?.send_to(b"from here", ("127.0.0.1", port))?;
    let mut datagram = [0; 64];
    let (length, from) = udp.recv_from(&mut datagram)?;
    ensure!(&datagram[..length] == b"from here", "a datagram came from {from}");
    metadata("del").map(drop)
}

/// The other app listens at a port that it does not publish.
fn other_app(rig: &Rig, owner: &Owner) -> Result<()> {
    let hub = rig.hub.as_ref().context("no hub")?;
    let (other, _) = hub.resolve("victim-ann")?;
    let listen = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 5) or die; \
        $| = 1; print \"listens\\n\"; sleep 1000";
    let mut listener = owner
        .command(&["app", "exec", "victim", "--", "perl", "-e", listen])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(listener.stdout.take().context("no pipe")?).read_line(&mut line)?;
    ensure!(line == "listens\n", "{line}");
    let at = |port| SocketAddr::new(other, port);
    ensure!(
        connects(at(80)) && connects(at(8080)),
        "from the host both are there"
    );
    let words = [80, 8080].map(|port| at(port).to_string());
    let reached = tried(owner, CONNECT, &words)?;
    ensure!(reached == words[..1], "of the other app it reached {reached:?}");
    listener.kill()?;
    listener.wait()?;
    Ok(())
}

fn files(rig: &Rig, owner: &Owner) -> Result<()> {
    let dir = rig.dir();
    let secrets = [
        "state",
        "state/agent.sock",
        "hub",
        "hub/admin.token",
        "hub/hub.db",
        "join.token",
        "store",
    ];
    let secrets = secrets.map(|name| dir.join(name).display().to_string());
    for secret in &secrets {
        ensure!(
            std::path::Path::new(secret).exists(),
            "{secret} is not there to be found"
        );
    }
    let of_host = [
        "/etc/shadow",
        "/etc/gshadow",
        "/root",
        "/home",
        "/sys/kernel",
        "/proc/kcore",
        "/dev/mem",
    ];
    let words: Vec<String> = secrets.into_iter().chain(of_host.map(str::to_owned)).collect();
    let reached = tried(owner, READ, &words)?;
    ensure!(reached.is_empty(), "it read {reached:?}");
    let sockets = owner.pico(&["app", "exec", "mallory", "--", "cat", "/proc/net/unix"])?;
    ensure!(
        !sockets.contains("pico") && !sockets.contains("agent.sock"),
        "{sockets}"
    );
    Ok(())
}

fn kernel(owner: &Owner) -> Result<()> {
    let calls = [
        ("mount", libc::SYS_mount),
        ("umount", libc::SYS_umount2),
        ("bpf", libc::SYS_bpf),
        ("ptrace", libc::SYS_ptrace),
        ("unshare a mount namespace", libc::SYS_setns),
        ("module", libc::SYS_init_module),
        ("kexec", libc::SYS_kexec_load),
        ("open by handle", libc::SYS_open_by_handle_at),
        ("perf", libc::SYS_perf_event_open),
        ("keys", libc::SYS_keyctl),
        ("raw ports", libc::SYS_iopl),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("io_uring", libc::SYS_io_uring_setup),
    ];
    let words: Vec<String> = calls
        .iter()
        .map(|(name, call)| format!("{name}={call}"))
        .collect();
    let reached = tried(owner, CALL, &words)?;
    ensure!(reached.is_empty(), "the kernel did {reached:?}");
    // The control: a call that everybody may make.
    let reached = tried(owner, CALL, &[format!("getpid={}", libc::SYS_getpid)])?;
    ensure!(reached == ["getpid"]);
    let script = "mknod /tmp/disk b 8 0 || mount -t tmpfs x /tmp || unshare -m true || nsenter -t 1 -n true \
        || chroot /proc/1/root/../.. cat /etc/shadow || echo x > /proc/sys/kernel/core_pattern \
        || echo 1 > /proc/sysrq-trigger; echo $?";
    let told = owner.pico(&["app", "exec", "mallory", "--", "sh", "-c", script])?;
    ensure!(told.trim().lines().last() != Some("0"), "{told}");
    Ok(())
}

#[test]
fn a_hostile_app_reaches_nothing_of_host_hub_store_and_other_apps() -> Result<()> {
    let plan = Plan::new("hostile")?.hub();
    let app = |name: &str| -> Result<AppConfig> {
        Ok(AppConfig {
            name: name.into(),
            idle: "never".into(),
            ..Nginx.config(plan.dir())?
        })
    };
    let apps = [app("victim")?, app("mallory")?];
    plan.run(|rig| {
        let owner = rig.hub.as_ref().context("no hub")?.owner("ann")?;
        for app in &apps {
            owner.create(app)?;
        }
        network(rig, &owner).context("network")?;
        other_app(rig, &owner).context("other app")?;
        files(rig, &owner).context("files")?;
        kernel(&owner).context("kernel")
    })
}
