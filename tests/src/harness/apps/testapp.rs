//! The client of `pico-testapp`, the app of the scenario tests (`src/bin/pico-testapp`), and the small
//! root directory it runs in.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::LIMIT;
use crate::harness::process::output;
use crate::harness::{AppConfig, bin};

/// The port it listens on, TCP and UDP.
pub const PORT: u16 = 7000;

/// Where it is asked.
#[derive(Debug, Clone, Copy)]
pub struct TestApp {
    at: SocketAddr,
}

/// A TCP connection to it, or from it, that stays open.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl TestApp {
    /// Its `[[app]]` section, with a root directory made in `dir`: the program and its libraries, no more.
    ///
    /// # Errors
    /// When the root cannot be made.
    pub fn config(name: &str, dir: &Path) -> Result<AppConfig> {
        let root = root(&dir.join("testapp-root"))?;
        Ok(AppConfig {
            name: name.into(),
            root: root.display().to_string(),
            command: vec!["/bin/pico-testapp".into()],
            ports: vec![format!("{PORT}/tcp"), format!("{PORT}/udp")],
            ..AppConfig::default()
        })
    }

    /// The app at a service address.
    pub fn at(address: IpAddr) -> Self {
        TestApp {
            at: SocketAddr::new(address, PORT),
        }
    }

    /// The same app at another of its ports.
    #[must_use]
    pub fn on(self, port: u16) -> Self {
        TestApp {
            at: SocketAddr::new(self.at.ip(), port),
        }
    }

    /// One command on a new connection.
    ///
    /// # Errors
    /// When there is no answer within [`LIMIT`].
    pub fn ask(&self, command: &str) -> Result<String> {
        self.connect()?.ask(command)
    }

    /// The same, with the limit of the answer changed.
    ///
    /// # Errors
    /// When there is no answer within `limit`.
    pub fn ask_within(&self, command: &str, limit: Duration) -> Result<String> {
        let mut connection = self.connect_within(limit)?;
        connection.ask(command)
    }

    /// One command in one datagram, sent once.
    ///
    /// # Errors
    /// When there is no answer within [`LIMIT`].
    pub fn ask_udp(&self, command: &str) -> Result<String> {
        let any = if self.at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(self.at)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send(command.as_bytes())?;
        let mut answer = [0; 2048];
        let length = socket
            .recv(&mut answer)
            .with_context(|| format!("{command:?} over UDP to {}", self.at))?;
        Ok(String::from_utf8_lossy(&answer[..length]).trim_end().to_owned())
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// When there is none within [`LIMIT`].
    pub fn connect(&self) -> Result<Connection> {
        self.connect_within(LIMIT)
    }

    fn connect_within(&self, limit: Duration) -> Result<Connection> {
        let at = self.at;
        let stream = TcpStream::connect_timeout(&at, limit).with_context(|| format!("connect to {at}"))?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: BufReader::new(stream),
        })
    }
}

impl Connection {
    /// One that the app has opened itself.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub fn accepted(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: BufReader::new(stream),
        })
    }

    /// Lets the kernel ask every second whether the other end is there, and give up after three in vain.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep_alive(&self) -> Result<()> {
        let stream = self.stream.get_ref();
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &1)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &1)?;
        Ok(setsockopt(stream, sockopt::TcpKeepCount, &3)?)
    }

    /// One command and its answer.
    ///
    /// # Errors
    /// When the connection ends or there is no answer in time.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.send(command)?;
        self.answer().with_context(|| format!("answer to {command:?}"))
    }

    /// A command whose answer is read later, or never.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn send(&mut self, command: &str) -> Result<()> {
        self.stream
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())?;
        Ok(())
    }

    /// The next answer.
    ///
    /// # Errors
    /// When the connection ends or there is no answer in time.
    pub fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line)?;
        ensure!(length > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }
}

/// Makes the root directory, once per scenario.
fn root(dir: &Path) -> Result<PathBuf> {
    if dir.exists() {
        return Ok(dir.to_owned());
    }
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "run", "srv"] {
        std::fs::create_dir_all(dir.join(name))?;
    }
    let program = bin::find("pico-testapp")?;
    std::fs::copy(&program, dir.join("bin/pico-testapp"))?;
    std::fs::write(dir.join("etc/passwd"), "root:x:0:0::/:\nguest:x:1234:1234::/:\n")?;
    std::fs::write(dir.join("etc/group"), "root:x:0:\nguest:x:1234:\n")?;
    for library in output(Command::new("ldd").arg(&program))?
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let target = dir.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().context("a library without a directory")?)?;
        std::fs::copy(library, target)?;
    }
    Ok(dir.to_owned())
}
