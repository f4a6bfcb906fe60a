//! Debian's PostgreSQL with pgbench's tables, under pgbench's load on new connections (a process each), and one
//! connection that is kept. Every transaction adds the same amount to four tables, so their sums tell of any that is
//! lost, doubled or half done.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{LIMIT, Proto, RealApp};
use crate::harness::AppConfig;
use crate::harness::process::output;

const PORT: u16 = 5432;
/// Where Debian's packages put the programs of one major version.
const PROGRAMS: &str = "/usr/lib/postgresql";
/// Clients of pgbench at once, and transactions of each in one round.
const CLIENTS: u32 = 2;
const TRANSACTIONS: u32 = 5;
/// Rows of `pgbench_accounts` at scale 1.
const ACCOUNTS: u64 = 100_000;

/// The app, with what its client knows of it.
#[derive(Debug, Default)]
pub struct Postgres {
    kept: Option<Client>,
    transactions: u64,
    asked: u64,
}

impl Postgres {
    fn pgbench(at: IpAddr, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program("pgbench")?);
        command.args(["-h", &at.to_string(), "-U", "postgres"]);
        output(command.args(arguments).arg("postgres")).map(drop)
    }

    /// One round of pgbench, each transaction on a connection of its own.
    fn load(&mut self, at: IpAddr) -> Result<()> {
        let (clients, transactions) = (CLIENTS.to_string(), TRANSACTIONS.to_string());
        Self::pgbench(at, &["-n", "-C", "-c", &clients, "-t", &transactions])?;
        self.transactions += u64::from(CLIENTS * TRANSACTIONS);
        Ok(())
    }
}

impl RealApp for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn config(&self, _: &Path) -> Result<AppConfig> {
        let server = program("postgres")?;
        let programs = server.parent().context("a program in a directory")?.display();
        // A cluster of its own: Debian's is not ours, and lets nobody in from outside.
        let script = format!(
            "set -e; data=/var/lib/postgresql/app; \
             if [ ! -e $data/PG_VERSION ]; then \
             {programs}/initdb -A trust -D $data; echo 'host all all all trust' >>$data/pg_hba.conf; fi; \
             exec {programs}/postgres -D $data -c listen_addresses='*' -c unix_socket_directories=''"
        );
        Ok(AppConfig {
            name: self.name().into(),
            root: "host".into(),
            command: vec!["/bin/sh".into(), "-c".into(), script],
            ports: vec![format!("{PORT}/tcp")],
            user: Some("postgres".into()),
            workdir: Some("/var/lib/postgresql".into()),
            memory: Some("1024M".into()),
            ..AppConfig::default()
        })
    }

    fn ready(&mut self, at: IpAddr) -> Result<()> {
        Client::connect(at)?.number("SELECT 1").map(drop)
    }

    fn fill(&mut self, at: IpAddr) -> Result<()> {
        Self::pgbench(at, &["-i", "-q"])?;
        self.kept = Some(Client::connect(at)?);
        self.load(at)
    }

    fn forget(&mut self) {
        *self = Self::default();
    }

    fn request(&mut self, at: IpAddr, _: Proto) -> Result<Duration> {
        self.asked += 1;
        let account = self.asked.wrapping_mul(7919) % ACCOUNTS + 1;
        let start = Instant::now();
        let mut client = Client::connect(at)?;
        let found = client.number(&format!("SELECT aid FROM pgbench_accounts WHERE aid = {account}"))?;
        let time = start.elapsed();
        ensure!(
            u64::try_from(found) == Ok(account),
            "account {account} is {found}"
        );
        Ok(time)
    }

    fn check(&mut self, at: IpAddr) -> Result<()> {
        self.load(at)?;
        let kept = self.kept.as_mut().context("it was not filled")?;
        let mut sum = |what: &str| kept.number(&format!("SELECT {what}"));
        let done = sum("count(*) FROM pgbench_history")?;
        ensure!(
            u64::try_from(done) == Ok(self.transactions),
            "{done} transactions are there of {}",
            self.transactions
        );
        let moved = sum("sum(delta) FROM pgbench_history")?;
        for what in ["a", "b", "t"] {
            let table = match what {
                "a" => "accounts",
                "b" => "branches",
                _ => "tellers",
            };
            let held = sum(&format!("sum({what}balance) FROM pgbench_{table}"))?;
            ensure!(held == moved, "the {table} hold {held} where {moved} was moved");
        }
        let accounts = sum("count(*) FROM pgbench_accounts")?;
        ensure!(u64::try_from(accounts) == Ok(ACCOUNTS), "{accounts} accounts");
        Ok(())
    }
}

/// The path of one of PostgreSQL's programs.
fn program(name: &str) -> Result<PathBuf> {
    let versions = std::fs::read_dir(PROGRAMS).into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name));
    found
        .filter(|path| path.is_file())
        .max()
        .with_context(|| format!("{name} is not installed; try: apt-get install postgresql"))
}

/// A connection that speaks version 3 of the protocol, as far as trusted authentication and simple queries go
/// (PostgreSQL's manual, "Frontend/Backend Protocol").
#[derive(Debug)]
struct Client {
    out: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Client {
    fn connect(at: IpAddr) -> Result<Self> {
        let at = SocketAddr::new(at, PORT);
        let out = TcpStream::connect_timeout(&at, LIMIT).with_context(|| format!("connect to {at}"))?;
        out.set_nodelay(true)?;
        out.set_read_timeout(Some(LIMIT))?;
        let mut client = Client {
            answers: BufReader::new(out.try_clone()?),
            out,
        };
        let mut start = 0x0003_0000_u32.to_be_bytes().to_vec();
        start.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        client.send(None, &start)?;
        client.until_ready()?;
        Ok(client)
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> Result<()> {
        let mut message = Vec::from_iter(kind);
        message.extend(u32::try_from(body.len() + 4)?.to_be_bytes());
        message.extend_from_slice(body);
        Ok(self.out.write_all(&message)?)
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        /// More than any answer to what is asked here.
        const LONGEST: usize = 1 << 20;
        let mut head = [0; 5];
        self.answers
            .read_exact(&mut head)
            .context("no answer of postgres")?;
        let [kind, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        ensure!((4..LONGEST).contains(&length), "a message of {length} bytes");
        let mut body = vec![0; length - 4];
        self.answers.read_exact(&mut body)?;
        Ok((kind, body))
    }

    /// Reads until it waits for a query; what the rows before held in their first column.
    fn until_ready(&mut self) -> Result<Vec<String>> {
        let mut rows = Vec::new();
        loop {
            match self.receive()? {
                (b'Z', _) => return Ok(rows),
                (b'D', row) => {
                    // Two bytes count the columns, four give the length of the first, -1 for NULL.
                    let value = row.get(6..).context("a row without columns")?;
                    let length = i32::from_be_bytes([row[2], row[3], row[4], row[5]]);
                    let value = value.get(..usize::try_from(length).context("NULL")?);
                    rows.push(String::from_utf8(value.context("a short row")?.to_vec())?);
                }
                (b'E', error) => bail!(
                    "postgres says {:?}",
                    String::from_utf8_lossy(&error).replace('\0', " ")
                ),
                _ => {}
            }
        }
    }

    /// Asks for a single number.
    fn number(&mut self, query: &str) -> Result<i64> {
        self.send(Some(b'Q'), format!("{query}\0").as_bytes())?;
        match &self.until_ready()?[..] {
            [number] => number.parse().with_context(|| format!("{query} is {number:?}")),
            rows => bail!("{query} is {rows:?}"),
        }
    }
}
