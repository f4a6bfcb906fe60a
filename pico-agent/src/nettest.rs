//! A private network for one test: its own network and mount namespace, so that tests run beside each other and
//! beside agents on the same machine, and everything a test made ends with its thread, also when it panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::address::Addresses;
use crate::sandbox::net::{self, NetSpec};

/// Runs a test in namespaces of its own. Needs root.
pub fn in_netns<F: Future<Output = Result<()>>>(test: impl FnOnce() -> F + Send) -> Result<()> {
    let work = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        ip("link set lo up")?;
        // One thread: whatever it starts is in the same namespaces.
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(test())
    };
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Keeps the calling thread, and whatever it starts from now on, on the processor it is on.
pub fn on_one_processor() -> Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &here)?)
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) -> Result<String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output()?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs something on a thread inside a namespace.
pub fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> std::thread::JoinHandle<Result<T>> {
    let netns = netns.to_owned();
    std::thread::spawn(move || {
        let file = std::fs::File::open(&netns).with_context(|| format!("{}", netns.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// Waits for a thread without blocking the runtime that the gate under test reads on.
pub async fn joined<T: Send + 'static>(thread: std::thread::JoinHandle<Result<T>>) -> Result<T> {
    tokio::task::spawn_blocking(move || thread.join())
        .await?
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A UDP socket whose buffer loses nothing in a test.
pub fn udp_socket(address: IpAddr, port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((address, port))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
    Ok(socket)
}

/// Sandboxes of a test, and machines elsewhere in the world.
pub struct World {
    directory: TempDir,
}

impl World {
    pub fn new() -> Result<Self> {
        Ok(Self {
            directory: tempfile::tempdir()?,
        })
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// What identifies the sandbox of an app with the addresses 10.77.0.`last` and fd77:7069:636f::`last`.
    pub fn app(&self, last: u8) -> NetSpec {
        NetSpec {
            netns: self.path(&format!("netns/app{last}")),
            link: format!("app{last}"),
            addrs: Addresses {
                v4: Ipv4Addr::new(10, 77, 0, last),
                v6: Ipv6Addr::new(0xfd77, 0x7069, 0x636f, 0, 0, 0, 0, u16::from(last)),
            },
        }
    }

    /// Makes a machine that reaches this "host" by routing, and is no app.
    pub async fn stranger(&self) -> Result<NetSpec> {
        let spec = NetSpec {
            netns: self.path("netns/stranger"),
            link: "stranger".to_owned(),
            addrs: Addresses {
                v4: Ipv4Addr::new(203, 0, 113, 9),
                v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9),
            },
        };
        net::create(&spec).await?;
        for address in spec.addrs.both() {
            ip(&format!("route add {address} dev stranger"))?;
        }
        Ok(spec)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Mounted in this thread's mount namespace only; unmounted so that the directory can be removed.
        for entry in std::fs::read_dir(self.path("netns"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
