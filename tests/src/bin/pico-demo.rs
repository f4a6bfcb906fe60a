//! `pico-demo`: real apps fall asleep by idleness and are woken by their clients, with numbers.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use pico_tests::harness::apps::{self, Proto, RealApp};
use pico_tests::harness::hub::ZONE;
use pico_tests::harness::owner::{Owner, create_words, shell_line};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::slot::Slot;
use pico_tests::harness::store::BUCKET;
use pico_tests::harness::{AppConfig, Rig, Samples, bin, interrupt, procs, table, within};
use serde::Serialize;

/// An app sleeps after this long without a packet, and lies in the store only after this long more: long
/// enough to ask all apps from warm one after another.
const IDLE: &str = "1s";
const COLD_AFTER: &str = "4s";
const ROUNDS: usize = 5;
/// Whose apps they are.
const OWNER: &str = "demo";
/// Until an app has started, fallen asleep, or lies in the store only.
const PATIENCE: Duration = Duration::from_secs(40);

/// Swap nginx, redis and BIND out to object storage and let their clients wake them.
///
/// Runs a hub, an agent and an embedded object store on this host, registers the apps with `pico`, finds each by the
/// hub's DNS and asks it, waits until all sleep, asks again, and takes everything away again.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  pico-demo\n  pico-demo --keep\n  pico-demo --json demo.json\n\n\
Exit codes:\n  0 all answered, all state intact, nothing left behind  1 failure  2 usage  130 interrupted"
)]
struct Options {
    /// Leave everything running, and print what to try
    #[arg(long)]
    keep: bool,
    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    apps: &'a [Line],
    leftovers: Vec<String>,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
struct Line {
    name: &'static str,
    proto: String,
    checkpoint_bytes: u64,
    hot_ms: f64,
    warm_ms: f64,
    cold_ms: f64,
    fetched_bytes: u64,
    s3_gets: u64,
    state_ok: bool,
}

/// What is measured of one app over one protocol.
#[derive(Debug)]
struct Measured {
    app: usize,
    proto: Proto,
    hot: Samples,
    warm: Samples,
    cold: Samples,
    fetched: Samples,
    gets: Samples,
}

impl Measured {
    fn new(app: usize, proto: Proto) -> Self {
        let empty = Samples::default;
        Measured {
            app,
            proto,
            hot: empty(),
            warm: empty(),
            cold: empty(),
            fetched: empty(),
            gets: empty(),
        }
    }
}

struct Demo {
    rig: Rig,
    owner: Owner,
    apps: Vec<Box<dyn RealApp>>,
    measured: Vec<Measured>,
    /// How long the hub's DNS took to find the apps.
    found: Samples,
    start: Instant,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            eprintln!("interrupted; everything was taken away");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    interrupt::watch()?;
    let mut demo = Demo::start()?;
    match demo.rounds() {
        Ok(lines) => demo.end(&lines, options),
        Err(error) => {
            // The signal must not end the waits of the clean-up.
            interrupt::take();
            let logs = demo.rig.explain();
            let left = demo
                .rig
                .take_away()
                .unwrap_or_else(|error| vec![format!("{error:#}")]);
            for line in &left {
                eprintln!("left behind: {line}");
            }
            if error.is::<interrupt::Interrupted>() && left.is_empty() {
                Err(error)
            } else {
                Err(error.context(logs))
            }
        }
    }
}

impl Demo {
    fn start() -> Result<Self> {
        let start = Instant::now();
        let plan = Plan::new("demo")?.on_host_network(Slot::take()?).hub();
        let apps = apps::all();
        let configs = apps
            .iter()
            .map(|app| {
                let config = app.config(plan.dir())?;
                Ok(AppConfig {
                    idle: IDLE.into(),
                    cold_after: COLD_AFTER.into(),
                    ..config
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let entries = |(index, app): (usize, &dyn RealApp)| {
            app.protocols()
                .iter()
                .map(move |proto| Measured::new(index, *proto))
                .collect::<Vec<_>>()
        };
        let measured = apps
            .iter()
            .map(AsRef::as_ref)
            .enumerate()
            .flat_map(entries)
            .collect();
        println!("Starting an object store, a hub and an agent, which joins the hub.");
        let rig = plan.start()?;
        let owner = rig.hub.as_ref().context("no hub")?.owner(OWNER)?;
        let demo = Demo {
            rig,
            owner,
            apps,
            measured,
            found: Samples::default(),
            start,
        };
        demo.register(&configs)?;
        Ok(demo)
    }

    /// What an app is called on its agent.
    fn label(&self, app: usize) -> String {
        format!("{}-{OWNER}", self.apps[app].name())
    }

    fn register(&self, configs: &[AppConfig]) -> Result<()> {
        self.say(&format!(
            "'{OWNER}' registers {} apps from Debian packages:",
            configs.len()
        ));
        for config in configs {
            let shown = AppConfig {
                seed: None,
                ..config.clone()
            };
            println!("          pico {}", shell_line(&create_words(&shown)));
            self.owner.create(config)?;
        }
        Ok(())
    }

    /// Where an app is, by the hub's DNS.
    fn find(&mut self, app: usize) -> Result<IpAddr> {
        let hub = self.rig.hub.as_ref().context("no hub")?;
        let (address, time) = hub.resolve(&self.label(app))?;
        self.found.push_ms(time);
        Ok(address)
    }

    fn say(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// A line that the next one replaces, on a terminal.
    fn progress(&self, text: &str) {
        if std::io::stdout().is_terminal() {
            eprint!("\r\x1b[K[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
        }
    }

    fn rounds(&mut self) -> Result<Vec<Line>> {
        self.begin()?;
        self.sleep_everywhere("warm")?;
        self.show_asleep()?;
        for round in 1..=ROUNDS {
            self.progress(&format!("round {round} of {ROUNDS}: warm\n"));
            self.wake_all("warm")?;
            self.progress(&format!("round {round} of {ROUNDS}: cold\n"));
            self.wake_all("cold")?;
            self.say(&format!(
                "round {round} of {ROUNDS}: woken from warm and from cold"
            ));
            if round == ROUNDS {
                break;
            }
            self.sleep_everywhere("warm")?;
        }
        self.lines()
    }

    /// Fills the apps and asks each of them while hot.
    fn begin(&mut self) -> Result<()> {
        for index in 0..self.apps.len() {
            let name = self.apps[index].name();
            let at = self.find(index)?;
            let app = &mut self.apps[index];
            within(PATIENCE, || app.ready(at)).with_context(|| format!("{name} does not answer"))?;
            app.fill(at)?;
        }
        self.say("all apps run; redis holds 60 MB of keys. Each is found by the hub's DNS, and asked while it is hot:");
        for entry in 0..self.measured.len() {
            // The first tells whether it answers; the others, what a hot answer takes.
            for _ in 0..20 {
                let time = self.ask(entry)?;
                self.measured[entry].hot.push_ms(time);
            }
            let Measured { app, proto, hot, .. } = &self.measured[entry];
            let median = hot.median().context("nothing measured")?;
            println!(
                "          {} over {proto}: {}",
                self.apps[*app].name(),
                table::ms(median)
            );
        }
        self.say(&format!(
            "now nobody asks; they sleep after {IDLE} without a packet"
        ));
        Ok(())
    }

    fn ask(&mut self, entry: usize) -> Result<Duration> {
        interrupt::check()?;
        let Measured { app, proto, .. } = self.measured[entry];
        let at = self.find(app)?;
        let app = &mut self.apps[app];
        app.request(at, proto)
            .with_context(|| format!("a request to {} was lost", app.name()))
    }

    /// Waits until idleness has brought every app to `tier`; the first ones may be further by then.
    fn sleep_everywhere(&self, tier: &str) -> Result<()> {
        for app in 0..self.apps.len() {
            self.rig.agent.wait(&self.label(app), &[tier, "cold"], PATIENCE)?;
        }
        Ok(())
    }

    /// Shows that sleeping apps have no process, and what stands by for their wakes.
    fn show_asleep(&self) -> Result<()> {
        self.say("all sleep. What is left of them on this host:");
        for app in 0..self.apps.len() {
            let label = self.label(app);
            let cgroup = self.rig.agent.app_cgroup(&label);
            let shim = self.rig.agent.shim_cgroup(&label);
            let mut processes = procs::in_cgroup(&cgroup)?;
            processes.extend(procs::in_cgroup(&shim)?);
            let resident: u64 = processes.iter().map(|process| process.resident).sum();
            let charged = procs::charged(&cgroup)?.unwrap_or(0);
            let (resident, charged) = (table::bytes(resident), table::bytes(charged));
            println!(
                "          {}: none of its processes; {} stand by for its wake, {resident} resident, {charged} charged",
                self.apps[app].name(),
                processes.len()
            );
            let own = self.rig.processes(&label)?;
            ensure!(own.is_empty(), "{label} sleeps, but {} runs", own[0]);
        }
        for app in 0..self.apps.len() {
            self.rig.stored(&self.label(app))?;
        }
        self.say(&format!("and what lies in the bucket '{BUCKET}':"));
        for (key, size) in self.rig.store.objects()? {
            println!("          {:>10}  {key}", table::bytes(size));
        }
        Ok(())
    }

    /// Every protocol of every app once, each from `tier`, to which idleness brings the app.
    fn wake_all(&mut self, tier: &str) -> Result<()> {
        let most = self
            .apps
            .iter()
            .map(|app| app.protocols().len())
            .max()
            .unwrap_or(0);
        for turn in 0..most {
            let entries: Vec<_> = (0..self.measured.len())
                .filter(|entry| self.turn(*entry) == turn)
                .collect();
            for entry in &entries {
                let label = self.label(self.measured[*entry].app);
                self.rig.agent.wait(&label, &[tier, "cold"], PATIENCE)?;
            }
            for entry in entries {
                self.wake(entry, tier)?;
            }
        }
        Ok(())
    }

    /// Which of its app's protocols an entry is.
    fn turn(&self, entry: usize) -> usize {
        let Measured { app, proto, .. } = &self.measured[entry];
        self.apps[*app]
            .protocols()
            .iter()
            .position(|other| other == proto)
            .unwrap_or(0)
    }

    fn wake(&mut self, entry: usize, tier: &str) -> Result<()> {
        let label = self.label(self.measured[entry].app);
        // While the apps before it were asked, an app that is to be woken from warm may have gone cold: it is
        // woken, not counted, and sleeps again.
        for _ in 0..3 {
            let asleep = self.rig.agent.wait(&label, &[tier, "cold"], PATIENCE)?;
            if asleep.state() == "warm" {
                self.rig.drop_checkpoint_pages(&label)?;
            }
            let time = self.ask(entry)?;
            let woken = self.rig.agent.show(&label)?.last_wake()?;
            let measured = &mut self.measured[entry];
            match (tier, woken.tier.as_str()) {
                ("warm", "warm") => measured.warm.push_ms(time),
                ("cold", "cold") => {
                    measured.cold.push_ms(time);
                    measured.fetched.push(woken.fetched_bytes as f64);
                    measured.gets.push(woken.s3_gets as f64);
                }
                _ => continue,
            }
            return Ok(());
        }
        bail!("{label} went cold three times before it could be woken from {tier}")
    }

    /// Compares all state and sums up.
    fn lines(&mut self) -> Result<Vec<Line>> {
        self.say("comparing all state: every redis key, the counter, every page and record");
        let mut intact = Vec::new();
        let mut sizes = Vec::new();
        for index in 0..self.apps.len() {
            let at = self.find(index)?;
            sizes.push(self.rig.agent.show(&self.label(index))?.checkpoint_bytes()?);
            let app = &mut self.apps[index];
            let checked = app.check(at);
            if let Err(error) = &checked {
                println!("          {}: {error:#}", app.name());
            }
            intact.push(checked.is_ok());
        }
        let median = |samples: &Samples| samples.median().context("nothing measured");
        let line = |measured: &Measured| {
            Ok(Line {
                name: self.apps[measured.app].name(),
                proto: measured.proto.to_string(),
                checkpoint_bytes: sizes[measured.app],
                hot_ms: median(&measured.hot)?,
                warm_ms: median(&measured.warm)?,
                cold_ms: median(&measured.cold)?,
                fetched_bytes: whole(median(&measured.fetched)?),
                s3_gets: whole(median(&measured.gets)?),
                state_ok: intact[measured.app],
            })
        };
        self.measured.iter().map(line).collect()
    }

    fn end(mut self, lines: &[Line], options: &Options) -> Result<()> {
        println!("\nMedians of {ROUNDS}: one whole request, connection included.\n");
        println!("{}\n", as_table(lines));
        let found = self.found.median().context("no name was asked for")?;
        println!(
            "Names were found in {} each, before the time that counts above.\n",
            table::ms(found)
        );
        let leftovers = if options.keep {
            Vec::new()
        } else {
            self.rig.take_away()?
        };
        if let Some(path) = &options.json {
            let report = Report {
                schema: "pico.demo/1",
                apps: lines,
                leftovers: leftovers.clone(),
            };
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        for line in &leftovers {
            eprintln!("left behind: {line}");
        }
        if let Some(broken) = lines.iter().find(|line| !line.state_ok) {
            bail!("the state of {} is not what it was", broken.name);
        }
        for line in lines.iter().filter(|line| line.name == "redis") {
            let share = line.fetched_bytes as f64 / line.checkpoint_bytes as f64;
            ensure!(
                share < 0.25,
                "redis fetched {:.0} % of its checkpoint before it answered",
                share * 100.0
            );
        }
        ensure!(leftovers.is_empty(), "something was left behind");
        if options.keep {
            self.keep()
        } else {
            self.say("everything was taken away again: processes, namespaces, devices, routes, mounts, cgroups, BPF");
            Ok(())
        }
    }

    /// Leaves everything running and says how to use it.
    fn keep(self) -> Result<()> {
        let hub = self.rig.hub.as_ref().context("no hub")?;
        let programs = bin::find("pico")?;
        let programs = programs
            .parent()
            .context("a program lies in a directory")?
            .display();
        println!("It all runs on. Try, in a root shell:");
        println!(
            "  export PATH={programs}:$PATH PICO_CONFIG={}",
            self.owner.config.display()
        );
        println!("  pico app list");
        println!("  pico app show redis");
        println!("  pico app exec nginx -- ls /srv/web/html");
        println!("  pico event follow");
        let dns = hub.dns();
        println!("  dig @{} -p {} nginx-{OWNER}.{ZONE}", dns.ip(), dns.port());
        println!("  curl http://{}/1.html", hub.resolve(&self.label(0))?.0);
        println!(
            "  redis-cli -h {} get key:00000007",
            hub.resolve(&self.label(1))?.0
        );
        println!("To end it:");
        let agent = self.rig.agent.pid()?;
        println!(
            "  kill {agent}; tail --pid={agent} -f /dev/null; kill {} {}",
            hub.pid(),
            self.rig.store.pid()
        );
        println!(
            "  pico-agent cleanup --config {} && rm -r {}",
            self.rig.agent.config_file().display(),
            self.rig.dir().display()
        );
        self.rig.leave();
        Ok(())
    }
}

fn as_table(lines: &[Line]) -> String {
    let row = |line: &Line| {
        vec![
            line.name.to_owned(),
            line.proto.clone(),
            table::bytes(line.checkpoint_bytes),
            table::ms(line.hot_ms),
            table::ms(line.warm_ms),
            table::ms(line.cold_ms),
            fetched(line),
            line.s3_gets.to_string(),
            if line.state_ok { "yes" } else { "NO" }.to_owned(),
        ]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    let headers = [
        "app",
        "proto",
        "checkpoint",
        "hot",
        "warm",
        "cold",
        "fetched first",
        "GETs",
        "state intact",
    ];
    table::render(&headers, &rows)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a median of whole numbers"
)]
fn whole(median: f64) -> u64 {
    median.round() as u64
}

fn fetched(line: &Line) -> String {
    let share = 100.0 * line.fetched_bytes as f64 / line.checkpoint_bytes.max(1) as f64;
    format!("{} ({share:.0} %)", table::bytes(line.fetched_bytes))
}
