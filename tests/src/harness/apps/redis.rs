//! Debian's redis with 60 MB of keys and a counter, saving nothing itself: what survives a sleep is
//! memory alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{LIMIT, Proto, RealApp, noise};
use crate::harness::{AppConfig, bin};

/// Length of every value.
const VALUE: usize = 200;
/// Commands sent before their answers are read.
const BATCH: u64 = 1000;

/// The app, with what its client knows of it.
#[derive(Debug)]
pub struct Redis {
    keys: u64,
    counter: u64,
    asked: u64,
}

impl Default for Redis {
    /// 200,000 keys: 60 MB of redis memory.
    fn default() -> Self {
        Self::with_keys(200_000)
    }
}

impl Redis {
    /// A redis of another size.
    pub fn with_keys(keys: u64) -> Self {
        Redis {
            keys,
            counter: 0,
            asked: 0,
        }
    }

    /// Increments the counter and compares it with all it ever answered.
    fn count(&mut self, client: &mut Client) -> Result<()> {
        client.send(&[b"INCR", b"counter"])?;
        let Reply::Number(value) = client.reply()? else {
            bail!("INCR did not answer a number")
        };
        ensure!(
            value == self.counter + 1,
            "the counter went from {} to {value}",
            self.counter
        );
        self.counter = value;
        Ok(())
    }
}

impl RealApp for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn config(&self, _: &Path) -> Result<AppConfig> {
        let server = bin::system("redis-server", "redis-server")?.display().to_string();
        let options = [
            "--save",
            "",
            "--appendonly",
            "no",
            "--protected-mode",
            "no",
            "--bind",
            "0.0.0.0",
            "::",
        ];
        Ok(AppConfig {
            name: self.name().into(),
            root: "host".into(),
            command: [server.as_str()]
                .iter()
                .chain(&options)
                .map(ToString::to_string)
                .collect(),
            ports: vec!["6379/tcp".into()],
            user: Some("redis".into()),
            workdir: Some("/var/lib/redis".into()),
            memory: Some("512M".into()),
            ..AppConfig::default()
        })
    }

    fn ready(&mut self, at: IpAddr) -> Result<()> {
        let mut client = Client::connect(at)?;
        client.send(&[b"DBSIZE"])?;
        client.reply().map(drop)
    }

    fn fill(&mut self, at: IpAddr) -> Result<()> {
        let mut client = Client::connect(at)?;
        for batch in batches(self.keys) {
            for key in batch.clone() {
                client.send(&[b"SET", &name(key), &noise(key, VALUE)])?;
            }
            for key in batch {
                ensure!(client.reply()? == Reply::Ok, "key {key} was not taken");
            }
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.counter = 0;
    }

    fn request(&mut self, at: IpAddr, _: Proto) -> Result<Duration> {
        // Another key each time, far from the last, so that no request is answered from pages that the one
        // before brought in.
        self.asked += 1;
        let key = self.asked.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.keys;
        let start = Instant::now();
        let mut client = Client::connect(at)?;
        client.send(&[b"GET", &name(key)])?;
        let reply = client.reply()?;
        let time = start.elapsed();
        ensure!(reply == Reply::Bulk(noise(key, VALUE)), "key {key} is {reply:?}");
        self.count(&mut client)?;
        Ok(time)
    }

    fn check(&mut self, at: IpAddr) -> Result<()> {
        let mut client = Client::connect(at)?;
        client.send(&[b"DBSIZE"])?;
        let size = client.reply()?;
        let counters = u64::from(self.counter > 0);
        ensure!(size == Reply::Number(self.keys + counters), "DBSIZE is {size:?}");
        for batch in batches(self.keys) {
            for key in batch.clone() {
                client.send(&[b"GET", &name(key)])?;
            }
            for key in batch {
                let reply = client.reply()?;
                ensure!(reply == Reply::Bulk(noise(key, VALUE)), "key {key} is {reply:?}");
            }
        }
        self.count(&mut client)
    }
}

fn batches(keys: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    (0..keys.div_ceil(BATCH)).map(move |batch| batch * BATCH..keys.min((batch + 1) * BATCH))
}

fn name(key: u64) -> Vec<u8> {
    format!("key:{key:08}").into_bytes()
}

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Ok,
    Number(u64),
    Bulk(Vec<u8>),
    Nil,
}

/// A connection that speaks RESP 2.
struct Client {
    out: TcpStream,
    answers: BufReader<TcpStream>,
    pending: Vec<u8>,
}

impl Client {
    fn connect(at: IpAddr) -> Result<Self> {
        let at = SocketAddr::new(at, 6379);
        let out = TcpStream::connect_timeout(&at, LIMIT).with_context(|| format!("connect to {at}"))?;
        out.set_nodelay(true)?;
        out.set_read_timeout(Some(LIMIT))?;
        let answers = BufReader::with_capacity(256 * 1024, out.try_clone()?);
        Ok(Client {
            out,
            answers,
            pending: Vec::new(),
        })
    }

    /// Queues a command; what is queued is sent before the next answer is read.
    fn send(&mut self, words: &[&[u8]]) -> Result<()> {
        write!(self.pending, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.pending, "${}\r\n", word.len())?;
            self.pending.extend_from_slice(word);
            self.pending.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn reply(&mut self) -> Result<Reply> {
        if !self.pending.is_empty() {
            self.out.write_all(&std::mem::take(&mut self.pending))?;
        }
        let mut line = String::new();
        self.answers.read_line(&mut line).context("no answer of redis")?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("+", "OK")) => Ok(Reply::Ok),
            Some((":", number)) => Ok(Reply::Number(number.parse()?)),
            Some(("$", "-1")) => Ok(Reply::Nil),
            Some(("$", length)) => {
                let mut value = vec![0; length.parse::<usize>()? + 2];
                self.answers.read_exact(&mut value)?;
                value.truncate(value.len() - 2);
                Ok(Reply::Bulk(value))
            }
            _ => bail!("redis answered {line:?}"),
        }
    }
}
