//! A sandbox of the same kind as the agent's, made with the host's tools, for the baselines: own pid, mount,
//! uts and ipc namespace, a kept network namespace, an overlay over the host's root.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::criu::Criu;
use crate::harness::process::{await_exit, output, pid, tail};
use crate::harness::{AppConfig, bin, pagecache, until};

/// One app in such a sandbox. Dropping it takes everything away.
#[derive(Debug)]
pub struct Sandbox {
    dir: PathBuf,
    address: Ipv4Addr,
    link: String,
    init: Option<u32>,
}

/// How the app comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// `criu restore`: all pages before the first instruction.
    Full,
    /// `criu restore --lazy-pages`, pages served by `criu lazy-pages`.
    Lazy,
}

/// What pid 1 of the sandbox does before it becomes the app.
const INIT: &str = r#"
set -e
cd "$1"; shift
mount --bind . .
cd "$PWD"
mount -t proc proc proc
mkdir -p .old
pivot_root . .old
umount -l /.old
exec setsid "$@" </dev/null >/app.log 2>&1
"#;

impl Sandbox {
    /// Makes the sandbox numbered `number` in `dir` and starts the app in it. The caller is in a network
    /// namespace of its own.
    ///
    /// # Errors
    /// When one of the host's tools fails.
    pub fn start(app: &AppConfig, dir: &Path, number: u8) -> Result<Self> {
        let dir = dir.join(format!("baseline-{}", app.name));
        let sandbox = Sandbox {
            dir,
            address: Ipv4Addr::new(10, 78, number, 2),
            link: format!("base{number}"),
            init: None,
        };
        sandbox.make_root(app)?;
        sandbox.make_network()?;
        sandbox.run(app)
    }

    /// Where the app is asked.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn make_root(&self, app: &AppConfig) -> Result<()> {
        for name in ["upper/dev", "upper/run", "work", "root", "images"] {
            std::fs::create_dir_all(self.path(name))?;
        }
        for (name, minor) in [("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)] {
            let device = self.path("upper/dev").join(name);
            output(Command::new("mknod").arg("-m").arg("666").arg(device).args([
                "c",
                "1",
                &minor.to_string(),
            ]))?;
        }
        if let Some(seed) = &app.seed {
            output(
                Command::new("cp")
                    .arg("-a")
                    .arg(seed.join("."))
                    .arg(self.path("upper")),
            )?;
        }
        let (upper, work) = (self.path("upper"), self.path("work"));
        let options = format!(
            "lowerdir=/,upperdir={},workdir={},index=on,nfs_export=on",
            upper.display(),
            work.display()
        );
        output(
            Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &options])
                .arg(self.path("root")),
        )?;
        Ok(())
    }

    fn make_network(&self) -> Result<()> {
        let netns = self.path("net");
        std::fs::write(&netns, "")?;
        output(
            Command::new("unshare")
                .arg(format!("--net={}", netns.display()))
                .arg("true"),
        )?;
        // The peer goes to the caller's namespace, which the calling thread's id names.
        let caller = nix::unistd::gettid().to_string();
        let outer = Ipv4Addr::from(u32::from(self.address) - 1);
        self.inside("ip", &["link", "set", "lo", "up"])?;
        self.inside(
            "ip",
            &[
                "link", "add", "eth0", "type", "veth", "peer", "name", &self.link, "netns", &caller,
            ],
        )?;
        self.inside(
            "ip",
            &["address", "add", &format!("{}/30", self.address), "dev", "eth0"],
        )?;
        self.inside("ip", &["link", "set", "eth0", "up"])?;
        output(Command::new("ip").args(["address", "add", &format!("{outer}/30"), "dev", &self.link]))?;
        output(Command::new("ip").args(["link", "set", &self.link, "up"]))?;
        Ok(())
    }

    /// Runs a tool in the sandbox's network namespace.
    fn inside(&self, program: &str, args: &[&str]) -> Result<String> {
        output(
            Command::new("nsenter")
                .arg(format!("--net={}", self.path("net").display()))
                .arg(program)
                .args(args),
        )
    }

    fn run(mut self, app: &AppConfig) -> Result<Self> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path("net").display()));
        command.args(["unshare", "--pid", "--mount", "--uts", "--ipc", "--fork"]);
        command.args(["sh", "-c", INIT, "sh"]).arg(self.path("root"));
        if let Some(user) = &app.user {
            let group = format!("--regid={user}");
            command.args(["setpriv", &format!("--reuid={user}"), &group, "--clear-groups"]);
        }
        command.args(&app.command);
        // CRIU cannot dump what the caller's own shell may have left open.
        // SAFETY: between fork and exec only this one system call is made.
        unsafe {
            command.pre_exec(|| {
                match libc::close_range(3, u32::MAX, i32::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(0)) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the sandbox")?;
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let found = until("the app's process", Duration::from_secs(10), || {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            Ok(text.split_whitespace().next().and_then(|pid| pid.parse().ok()))
        });
        self.init = found.ok();
        // Reaps `unshare`, which waits for the app.
        std::thread::spawn(move || child.wait());
        ensure!(self.init.is_some(), "the app did not start: {}", self.log());
        Ok(self)
    }

    /// The end of the app's output.
    pub fn log(&self) -> String {
        tail(&self.path("upper/app.log"), 20)
    }

    /// `criu dump`: the app is gone afterwards.
    ///
    /// # Errors
    /// When CRIU fails: with its log.
    pub fn dump(&mut self, criu: &Criu) -> Result<()> {
        let images = self.path("images");
        std::fs::remove_dir_all(&images)?;
        std::fs::create_dir(&images)?;
        let init = self.init.context("the app does not run")?;
        let mut command = criu.command("dump", &images);
        command
            .args(["-t", &init.to_string()])
            .args(self.shared_options()?);
        command.args([
            "--external",
            &format!("net[{}]:k", self.path("net").metadata()?.ino()),
        ]);
        output(&mut command).with_context(|| tail(&images.join("dump.log"), 20))?;
        ensure!(
            await_exit(init, Duration::from_secs(10))?,
            "process {init} is still there after its dump"
        );
        self.init = None;
        Ok(())
    }

    fn shared_options(&self) -> Result<Vec<String>> {
        let root = self
            .path("root")
            .to_str()
            .context("path is not UTF-8")?
            .to_owned();
        let fixed = [
            "--ext-mount-map",
            "auto",
            "--enable-external-sharing",
            "--enable-external-masters",
            "--manage-cgroups=ignore",
            "--tcp-established",
            "--network-lock",
            "skip",
            "--file-locks",
        ];
        Ok(["--root", &root]
            .into_iter()
            .chain(fixed)
            .map(str::to_owned)
            .collect())
    }

    /// Drops the images from memory, as those of a warm app are.
    ///
    /// # Errors
    /// When something stays in memory.
    pub fn drop_images(&self) -> Result<()> {
        let resident = pagecache::drop_files(&pagecache::files(&self.path("images"))?)?;
        ensure!(resident == 0, "{resident} bytes of the images stay in memory");
        Ok(())
    }

    /// Brings the app back; it runs when this returns.
    ///
    /// # Errors
    /// When CRIU fails: with its log.
    pub fn restore(&mut self, criu: &Criu, how: Restore) -> Result<()> {
        let images = self.path("images");
        let pages = (how == Restore::Lazy)
            .then(|| criu.command("lazy-pages", &images).spawn())
            .transpose()?;
        let mut command = criu.command("restore", &images);
        command
            .args(["-d", "--pidfile", "pid"])
            .args(self.shared_options()?);
        command.args(["--inherit-fd", "fd[9]:k"]);
        if how == Restore::Lazy {
            // The server of the pages makes its socket first.
            let socket = images.join("lazy-pages.socket");
            while !socket.exists() {
                std::thread::yield_now();
            }
            command.arg("--lazy-pages");
        }
        let restored = output(&mut with_descriptor(&command, &self.path("net")));
        restored.with_context(|| tail(&images.join("restore.log"), 20))?;
        let init = std::fs::read_to_string(images.join("pid"))?;
        self.init = Some(init.trim().parse()?);
        if let Some(mut pages) = pages {
            // It ends when it has served all.
            std::thread::spawn(move || pages.wait());
        }
        Ok(())
    }

    /// Ends the app.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&mut self) -> Result<()> {
        let Some(init) = self.init.take() else {
            return Ok(());
        };
        // It may have ended by itself.
        let _ = kill(pid(init), Signal::SIGKILL);
        ensure!(
            await_exit(init, Duration::from_secs(10))?,
            "process {init} cannot be killed"
        );
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Nothing can be reported from here; the bench looks for leftovers.
        let _ = self.end();
        for mount in ["net", "root"] {
            let _ = output(Command::new("umount").arg("-l").arg(self.path(mount)));
        }
        let _ = output(Command::new("ip").args(["link", "del", &self.link]));
    }
}

/// The same command with `path` open as descriptor 9.
fn with_descriptor(command: &Command, path: &Path) -> Command {
    let mut shell = Command::new(bin::system("sh", "dash").unwrap_or_else(|_| "/bin/sh".into()));
    shell
        .args(["-c", "exec 9<\"$0\"; exec \"$@\""])
        .arg(path)
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(key, value);
        }
    }
    shell
}
