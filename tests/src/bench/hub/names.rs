//! Answers a second of the hub's name server and of BIND with the same names, by turns, under the same clients; and how
//! long it takes, under such load, until an agent hears that a client of a sleeping app is expected.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::agent::Sleeper;
use super::{give_way, registry, stamped};
use crate::bench::{Effort, Outcome};
use crate::harness::apps::dns::{self, Type};
use crate::harness::hub::{Bearer, Hub, ZONE};
use crate::harness::process::Daemon;
use crate::harness::rig::scratch;
use crate::harness::{Samples, bin, interrupt, until};

/// Names that are asked for again and again. Agents are told of so many apps a second at most (`pico-hub`, `dns/soon`):
/// of all these at once, and of [`ONCE`] besides.
const NAMES: usize = 500;
/// Names that are asked for once: the agent is to hear of each.
const ONCE: usize = 400;
/// Clients, and questions of each that are on their way at a time.
const CLIENTS: usize = 2;
const WINDOW: usize = 16;
/// Between two names that are asked for once.
const PACE: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(20);

/// Adds what it found.
///
/// # Errors
/// When a question has no answer or a wrong one, or the agent is not told.
pub(super) fn measure(effort: Effort, progress: &mut dyn FnMut(&str), outcome: &mut Outcome) -> Result<()> {
    let (rounds, time) = match effort {
        Effort::Quick => (3, Duration::from_millis(500)),
        Effort::Full => (7, Duration::from_secs(2)),
    };
    let dir = scratch("bench-names")?;
    let hub = Hub::start_with(dir.path(), "answers_per_second = 0\n")?;
    let sleeper = Sleeper::attach(&hub)?;
    let admin = Bearer::new(&hub.admin_token()?)?;
    progress(&format!("{} apps that sleep", NAMES + ONCE));
    tokio::runtime::Runtime::new()?.block_on(registry::register(&hub, &admin, NAMES + ONCE))?;
    let label = |number: usize| format!("app{number}-{}", registry::owner(number));
    for number in 0..NAMES + ONCE {
        until("the agent's apps to have names", LIMIT, || {
            Ok(hub.resolve(&label(number)).ok())
        })?;
    }
    let names: Vec<String> = (0..NAMES)
        .map(|number| format!("{}.{ZONE}", label(number)))
        .collect();
    let (bind, bind_at) = bind(dir.path(), &names)?;

    progress("answers, by turns with BIND");
    let (mut ours, mut theirs) = (
        Server::new(hub.pid(), hub.dns()),
        Server::new(bind.pid(), bind_at),
    );
    for _ in 0..rounds {
        ours.round(&names, time)?;
        theirs.round(&names, time)?;
    }
    for (who, server) in [("hub", &ours), ("BIND", &theirs)] {
        outcome.row(who, "DNS answers a second", "1/s", &server.rates)?;
        outcome.row(who, "processor time of an answer", "us", &server.processor)?;
    }
    let median = |samples: &Samples| samples.median().context("nothing measured");
    let ratio = median(&theirs.rates)? / median(&ours.rates)?;
    outcome.values.insert("hub.bind_answers_to_ours".into(), ratio);

    progress("prefetch messages, and BIND's answers, under load");
    let answered = under_load(bind_at, &names, true, || {
        let mut asker = Asker::new(bind_at)?;
        let asked = (0..ONCE).map(|number| asker.ask(&names[number % names.len()], PACE));
        asked
            .map(|times| times.map(|(asked, answered)| (answered - asked).as_secs_f64() * 1e3))
            .collect::<Result<Samples>>()
    })?;
    let told = under_load(hub.dns(), &names, true, || ask_once(hub.dns(), &sleeper, label))?;
    outcome.row("BIND", "query until its answer has left", "ms", &answered.1)?;
    outcome.row(
        "hub",
        "query until the message to its agent has left",
        "ms",
        &told.1,
    )?;
    for (who, (rate, _)) in [("BIND", &answered), ("hub", &told)] {
        outcome.row(
            who,
            "DNS answers a second meanwhile",
            "1/s",
            &Samples::from_iter([*rate]),
        )?;
    }
    let p99 = told.1.percentile(0.99).context("nothing measured")?;
    outcome.values.insert("hub.prefetch_p99_ms".into(), p99);
    Ok(())
}

/// BIND over one zone with these names, and where it listens.
fn bind(dir: &Path, names: &[String]) -> Result<(Daemon, SocketAddr)> {
    let named = bin::system("named", "bind9")?;
    let at = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut zone = "$TTL 5\n@ SOA ns admin 1 3600 600 86400 5\n@ NS ns\nns A 192.0.2.53\n".to_owned();
    for (number, name) in names.iter().enumerate() {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 0, 2).to_bits() + u32::try_from(number)?);
        writeln!(zone, "{name}. A {address}")?;
    }
    std::fs::write(dir.join("zone.db"), zone)?;
    let config = format!(
        "options {{ directory \"{0}\"; listen-on port {1} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; \
         dnssec-validation no; minimal-responses yes; pid-file none; session-keyfile none; }};\n\
         controls {{ }};\nzone \"{ZONE}\" {{ type primary; file \"zone.db\"; }};\n",
        dir.display(),
        at.port()
    );
    let path = dir.join("named.conf");
    std::fs::write(&path, config)?;
    let ready = |line: &str| line.ends_with(" running").then_some(());
    let mut command = Command::new(named);
    command.arg("-g").arg("-c").arg(&path);
    let (daemon, ()) = Daemon::start(&mut command, &dir.join("named.log"), LIMIT, ready)?;
    Ok((daemon, at))
}

/// A name server and what was measured of it.
struct Server {
    pid: u32,
    at: SocketAddr,
    rates: Samples,
    processor: Samples,
}

impl Server {
    fn new(pid: u32, at: SocketAddr) -> Self {
        Server {
            pid,
            at,
            rates: Samples::default(),
            processor: Samples::default(),
        }
    }

    fn round(&mut self, names: &[String], time: Duration) -> Result<()> {
        interrupt::check()?;
        let before = processor_time(self.pid)?;
        let start = Instant::now();
        let (rate, ()) = under_load(self.at, names, false, || {
            std::thread::sleep(time);
            Ok(())
        })?;
        let answers = rate * start.elapsed().as_secs_f64();
        let used = processor_time(self.pid)?.saturating_sub(before);
        self.rates.push(rate);
        self.processor.push(used.as_secs_f64() * 1e6 / answers);
        Ok(())
    }
}

/// Runs something while clients ask for names; how many answers a second they had. If all `give way`, the hub never waits for a
/// processor because of what elsewhere runs on other machines.
fn under_load<T: Send>(
    at: SocketAddr,
    names: &[String],
    all_give_way: bool,
    body: impl FnOnce() -> Result<T> + Send,
) -> Result<(f64, T)> {
    let start = Instant::now();
    let begin = move || if all_give_way { give_way() } else { Ok(()) };
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    begin()?;
                    ask(at, names, client, stop)
                })
            })
            .collect();
        let done = scope.spawn(move || begin().and_then(|()| body())).join();
        stop.store(true, Ordering::Relaxed);
        let answers = clients.into_iter().try_fold(0, |sum, client| {
            let answers = client.join().map_err(|_| anyhow::anyhow!("a client failed"))??;
            Ok::<_, anyhow::Error>(sum + answers)
        });
        let done = done.map_err(|_| anyhow::anyhow!("what ran under load failed"))?;
        Ok((answers? as f64 / start.elapsed().as_secs_f64(), done?))
    })
}

/// Asks for names until it is told to stop, with a window of questions on their way; how many were answered.
fn ask(at: SocketAddr, names: &[String], client: usize, stop: &AtomicBool) -> Result<u64> {
    let questions: Vec<Vec<u8>> = names.iter().map(|name| dns::question(0, name, Type::A)).collect();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(LIMIT))?;
    // Clients begin at different names, and none asks for all in order: the next one is a large prime further.
    let mut next = client * names.len() / CLIENTS;
    let mut send = || {
        next = (next + 7_919) % questions.len();
        socket.send(&questions[next]).context("a question cannot be sent")
    };
    for _ in 0..WINDOW {
        send()?;
    }
    let (mut answers, mut waiting) = (0, WINDOW);
    let mut answer = [0; 512];
    while waiting > 0 {
        let length = socket.recv(&mut answer).context("a question was not answered")?;
        let found = dns::answers(&answer[..length], 0, Type::A)?;
        ensure!(found.len() == 1, "{} answers to one question", found.len());
        answers += 1;
        if stop.load(Ordering::Relaxed) {
            waiting -= 1;
        } else {
            send()?;
        }
    }
    Ok(answers)
}

/// Asks one question after the other. Its times are those of the kernel, as packets pass the loopback interface.
struct Asker {
    socket: UdpSocket,
    id: u16,
}

impl Asker {
    fn new(at: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(at)?;
        socket.set_read_timeout(Some(LIMIT))?;
        stamped::stamp(&socket)?;
        Ok(Asker { socket, id: 0 })
    }

    /// After a pause: when the question left and when its answer did.
    fn ask(&mut self, name: &str, pause: Duration) -> Result<(Duration, Duration)> {
        interrupt::check()?;
        std::thread::sleep(pause);
        self.id = self.id.wrapping_add(1);
        self.socket.send(&dns::question(self.id, name, Type::A))?;
        let asked = stamped::left(&self.socket)?;
        let mut answer = [0; 512];
        let (length, answered) =
            stamped::receive(&self.socket, &mut answer).context("a question was not answered")?;
        let found = dns::answers(&answer[..length], self.id, Type::A)?;
        ensure!(
            found.len() == 1,
            "{name}: {} answers to one question",
            found.len()
        );
        Ok((asked, answered))
    }
}

/// Each of the names that are asked for once: from its query until the message to its agent.
fn ask_once(dns: SocketAddr, sleeper: &Sleeper, label: impl Fn(usize) -> String) -> Result<Samples> {
    let mut asker = Asker::new(dns)?;
    // Names are told of once in 5 s, and so many at once: those asked for at the start are behind us then.
    std::thread::sleep(Duration::from_secs(6));
    let mut delays = Samples::default();
    for number in NAMES..NAMES + ONCE {
        let label = label(number);
        let (asked, _) = asker.ask(&format!("{label}.{ZONE}"), PACE)?;
        let told = until("the agent to hear of a client", LIMIT, || {
            Ok(sleeper.announced(&label).ok().filter(|told| *told > asked))
        })?;
        delays.push_ms(told - asked);
    }
    Ok(delays)
}

/// Processor time that a process has used.
fn processor_time(pid: u32) -> Result<Duration> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).context("the server is gone")?;
    let mut nanoseconds = 0;
    for thread in threads {
        let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let ran = stat.split(' ').next().and_then(|ran| ran.parse::<u64>().ok());
        nanoseconds += ran.context("schedstat(proc): no running time")?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}
