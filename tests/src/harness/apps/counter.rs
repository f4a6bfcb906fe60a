//! The same small server in Python, JavaScript and Java: it keeps 100,000 numbers, changes one with each count, and
//! says their sum. What is right the client reckons for itself.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LIMIT, Proto, RealApp, seed};
use crate::harness::process::output;
use crate::harness::{AppConfig, bin};

const PORT: u16 = 7100;
const NUMBERS: u32 = 100_000;

/// What the server runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// CPython with numpy, which holds the numbers.
    Python,
    /// Node.js.
    Node,
    /// A Java virtual machine.
    Java,
}

/// The app, with what it must hold.
#[derive(Debug)]
pub struct Counter {
    language: Language,
    numbers: Vec<u32>,
    count: u32,
}

impl Counter {
    /// One in this language.
    pub fn new(language: Language) -> Self {
        Counter {
            language,
            numbers: fresh(),
            count: 0,
        }
    }

    fn ask(at: IpAddr, line: &str) -> Result<u32> {
        let at = SocketAddr::new(at, PORT);
        let mut out = TcpStream::connect_timeout(&at, LIMIT).with_context(|| format!("connect to {at}"))?;
        out.set_read_timeout(Some(LIMIT))?;
        writeln!(out, "{line}")?;
        let mut answer = String::new();
        BufReader::new(out).read_line(&mut answer)?;
        answer
            .trim()
            .parse()
            .with_context(|| format!("{line} was answered {answer:?}"))
    }
}

fn fresh() -> Vec<u32> {
    (0..NUMBERS).map(|i| i.wrapping_mul(2_654_435_761)).collect()
}

impl RealApp for Counter {
    fn name(&self) -> &'static str {
        match self.language {
            Language::Python => "python",
            Language::Node => "node",
            Language::Java => "java",
        }
    }

    fn config(&self, dir: &Path) -> Result<AppConfig> {
        let dir = dir.join(self.name());
        let path = |program: std::path::PathBuf| program.display().to_string();
        let command = match self.language {
            Language::Python => {
                seed(
                    &dir,
                    "/srv/counter/counter.py",
                    include_bytes!("counter/counter.py"),
                )?;
                // Not one that somebody has put before it in PATH.
                vec!["/usr/bin/python3".into(), "/srv/counter/counter.py".into()]
            }
            Language::Node => {
                seed(
                    &dir,
                    "/srv/counter/counter.js",
                    include_bytes!("counter/counter.js"),
                )?;
                vec![
                    path(bin::system("node", "nodejs")?),
                    "/srv/counter/counter.js".into(),
                ]
            }
            Language::Java => {
                seed(
                    &dir,
                    "/srv/counter/Counter.java",
                    include_bytes!("counter/Counter.java"),
                )?;
                let source = dir.join("srv/counter/Counter.java");
                output(Command::new(bin::system("javac", "openjdk-17-jdk-headless")?).arg(&source))?;
                let java = path(bin::system("java", "openjdk-17-jdk-headless")?);
                let words = ["-Xmx64m", "-XX:+UseSerialGC", "-cp", "/srv/counter", "Counter"];
                [java].into_iter().chain(words.map(String::from)).collect()
            }
        };
        Ok(AppConfig {
            name: self.name().into(),
            root: "host".into(),
            command,
            ports: vec![format!("{PORT}/tcp")],
            seed: Some(dir),
            memory: Some("512M".into()),
            ..AppConfig::default()
        })
    }

    fn ready(&mut self, at: IpAddr) -> Result<()> {
        Self::ask(at, "sum").map(drop)
    }

    fn forget(&mut self) {
        *self = Self::new(self.language);
    }

    fn request(&mut self, at: IpAddr, _: Proto) -> Result<Duration> {
        let start = Instant::now();
        let count = Self::ask(at, "count")?;
        let time = start.elapsed();
        self.count += 1;
        ensure!(count == self.count, "it counts {count}, not {}", self.count);
        let place = u64::from(count) * 7919 % u64::from(NUMBERS);
        let number = &mut self.numbers[usize::try_from(place)?];
        *number = number.wrapping_add(count);
        Ok(time)
    }

    fn check(&mut self, at: IpAddr) -> Result<()> {
        let add = |sum: u32, number: &u32| sum.wrapping_mul(31).wrapping_add(*number);
        let right = self.numbers.iter().fold(0, add);
        let sum = Self::ask(at, "sum")?;
        ensure!(sum == right, "the sum is {sum}, not {right}");
        Ok(())
    }
}
