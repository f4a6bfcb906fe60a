//! Debian's OpenSSH server, with keys made for one scenario, and a session of Debian's client that stays open.

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::seed;
use crate::harness::process::output;
use crate::harness::{AppConfig, bin};

const PORT: u16 = 2222;

/// The `[[app]]` section of a server that lets in who has the key in `dir`, where all it needs is written.
///
/// # Errors
/// When the package is not installed or `dir` cannot be written.
pub fn config(dir: &Path) -> Result<AppConfig> {
    let server = bin::system("sshd", "openssh-server")?.display().to_string();
    let tree = dir.join("sshd-seed");
    seed(&tree, "/run/sshd/.keep", b"")?;
    let lines = format!(
        "Port {PORT}\nHostKey /srv/ssh/host\nAuthorizedKeysFile /srv/ssh/client.pub\nStrictModes no\nUsePAM no\n\
         PermitRootLogin yes\nPasswordAuthentication no\nTCPKeepAlive yes\nPidFile none\nPrintLastLog no\n"
    );
    seed(&tree, "/srv/ssh/config", lines.as_bytes())?;
    // No app sees the host's; without one, accounts count as locked.
    seed(&tree, "/etc/shadow", b"root:*:20000:0:99999:7:::\n")?;
    for key in ["host", "client"] {
        let path = tree.join("srv/ssh").join(key);
        let mut keygen = Command::new(bin::system("ssh-keygen", "openssh-client")?);
        output(
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                .arg(&path),
        )?;
    }
    std::fs::rename(tree.join("srv/ssh/client"), key(dir))?;
    Ok(AppConfig {
        name: "sshd".into(),
        root: "host".into(),
        command: [&server, "-D", "-e", "-f", "/srv/ssh/config"]
            .map(String::from)
            .into(),
        ports: vec![format!("{PORT}/tcp")],
        seed: Some(tree),
        ..AppConfig::default()
    })
}

fn key(dir: &Path) -> PathBuf {
    dir.join("ssh-key")
}

/// A session in which `cat` sends back what is typed.
#[derive(Debug)]
pub struct Session {
    client: Child,
    typed: ChildStdin,
    shown: BufReader<ChildStdout>,
}

impl Session {
    /// Logs in, with the key in `dir`.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub fn open(dir: &Path, at: IpAddr) -> Result<Self> {
        let mut command = Command::new(bin::system("ssh", "openssh-client")?);
        command.args([
            "-T",
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
        ]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
        command.args([
            "-o",
            "TCPKeepAlive=yes",
            "-o",
            "ServerAliveInterval=0",
            "-o",
            "ConnectTimeout=20",
        ]);
        command.arg("-i").arg(key(dir)).args(["-p", &PORT.to_string()]);
        let mut client = command
            .args([&format!("root@{at}"), "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let typed = client.stdin.take().context("a pipe")?;
        let shown = BufReader::new(client.stdout.take().context("a pipe")?);
        Ok(Session { client, typed, shown })
    }

    /// Types a line and waits for it to come back.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn echo(&mut self, line: &str) -> Result<()> {
        writeln!(self.typed, "{line}")?;
        let mut shown = String::new();
        self.shown.read_line(&mut shown)?;
        ensure!(shown.trim_end() == line, "{line:?} came back as {shown:?}");
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
