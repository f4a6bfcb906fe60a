//! The name server on real sockets: asked by `dig`, by BIND as a resolver, by a client that sends nonsense.
#![allow(clippy::unwrap_used, reason = "a test dies of what it could report")]

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pico_hub::dns::{Counts, DnsConfig, Named, Names, Server, Soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

/// `web-ann` sleeps; `eager-ann` sleeps and is to be woken; `big-ann` has 64 ports, as many as an app may have.
#[derive(Default)]
struct Apps {
    told: Mutex<Vec<(String, bool)>>,
}

impl Names for Apps {
    fn find(&self, label: &str) -> Option<Named> {
        let ports = match label {
            "web-ann" | "eager-ann" => vec!["80/tcp".parse().unwrap()],
            "big-ann" => (1..=64).map(|n| format!("{n}/tcp").parse().unwrap()).collect(),
            _ => return None,
        };
        Some(Named {
            app: label.into(),
            v4: Some(Ipv4Addr::new(10, 77, 0, 2)),
            v6: Some("fd77::2".parse().unwrap()),
            ports: ports.into(),
            soon: match label {
                "web-ann" => Some(Soon::Prefetch),
                "eager-ann" => Some(Soon::Wake),
                _ => None,
            },
        })
    }

    fn serial(&self) -> u32 {
        1
    }

    fn soon(&self, app: &str, wake: bool) {
        self.told.lock().unwrap().push((app.to_owned(), wake));
    }
}

struct Running {
    address: SocketAddr,
    apps: Arc<Apps>,
    counts: Arc<Counts>,
    _stop: DropGuard,
}

async fn start(answers_per_second: u32) -> Running {
    let config = DnsConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        answers_per_second,
        ..DnsConfig::of_zone("pico.test")
    };
    let apps = Arc::new(Apps::default());
    let server = Server::bind(&config, Arc::clone(&apps) as Arc<dyn Names>)
        .await
        .unwrap();
    let (address, counts, stop) = (server.addresses()[0], server.counts(), CancellationToken::new());
    tokio::spawn(server.run(stop.clone()));
    Running {
        address,
        apps,
        counts,
        _stop: stop.drop_guard(),
    }
}

/// What `dig` prints.
async fn dig(address: SocketAddr, args: &str) -> String {
    let output = tokio::process::Command::new("dig")
        .arg(format!("@{}", address.ip()))
        .args([
            "-p",
            &address.port().to_string(),
            "+tries=1",
            "+time=5",
            "+nocookie",
        ])
        .args(args.split_whitespace())
        .output()
        .await
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_finds_apps_and_agents_are_told_once() {
    let server = start(0).await;
    let short = |args: &'static str| dig(server.address, args);
    assert_eq!(short("+short web-ann.pico.test A").await, "10.77.0.2\n");
    assert_eq!(short("+short WEB-ann.pico.test AAAA").await, "fd77::2\n");
    assert_eq!(short("+short eager-ann.pico.test A +tcp").await, "10.77.0.2\n");
    assert_eq!(
        short("+short _80._tcp.web-ann.pico.test SRV").await,
        "0 0 80 web-ann.pico.test.\n"
    );
    assert_eq!(short("+short pico.test NS").await, "ns.pico.test.\n");
    let any = short("web-ann.pico.test ANY +notcp").await;
    assert!(any.contains("status: REFUSED"), "{any}");
    let version = short("+edns=1 +noednsneg web-ann.pico.test A").await;
    assert!(version.contains("status: BADVERS"), "{version}");
    let none = short("none-ann.pico.test A").await;
    assert!(
        none.contains("status: NXDOMAIN") && none.contains("SOA\tns.pico.test."),
        "{none}"
    );
    let nodata = short("web-ann.pico.test MX").await;
    assert!(
        nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0"),
        "{nodata}"
    );
    let told: HashSet<_> = server.apps.told.lock().unwrap().iter().cloned().collect();
    assert_eq!(
        told,
        HashSet::from([("web-ann".to_owned(), false), ("eager-ann".to_owned(), true)])
    );
    assert_eq!(server.apps.told.lock().unwrap().len(), 2, "each once in a while");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_is_truncated_and_dig_comes_back_by_tcp() {
    let server = start(0).await;
    let cut = dig(server.address, "_tcp.big-ann.pico.test SRV +ignore").await;
    assert!(
        cut.contains("flags: qr aa tc") || cut.contains("flags: qr tc"),
        "{cut}"
    );
    let whole = dig(server.address, "_tcp.big-ann.pico.test SRV").await;
    assert!(whole.contains("ANSWER: 64") && whole.contains("TCP"), "{whole}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_beyond_its_rate_is_sent_to_tcp_and_is_answered_there() {
    let server = start(5).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address).await.unwrap();
    let question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07web-ann\x04pico\x04test\0\0\x01\0\x01";
    for _ in 0..50 {
        socket.send(question).await.unwrap();
    }
    // The server reads in order, so the answers to all of it are here before that to a question by TCP.
    let by_tcp = dig(server.address, "+short +tcp web-ann.pico.test A").await;
    assert_eq!(by_tcp, "10.77.0.2\n");
    let counts = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    let began = Instant::now();
    while counts(&server.counts.no_error) + counts(&server.counts.slipped) + counts(&server.counts.dropped)
        < 51
    {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", server.counts);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(counts(&server.counts.dropped) > 0 && counts(&server.counts.slipped) > 0);
    let (mut answers, mut cut) = (0, 0);
    let mut bytes = [0; 512];
    while let Ok(length) = socket.try_recv(&mut bytes) {
        match bytes[2] & 2 {
            0 => answers += 1,
            _ => {
                cut += 1;
                assert!(length <= question.len());
            }
        }
    }
    assert!(answers >= 5 && cut > 0 && answers + cut < 50, "{answers} {cut}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_on_the_sockets_leaves_the_server_answering() {
    let server = start(0).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..2_000 {
        let length = usize::try_from(noise() % 300).unwrap();
        let mut bytes: Vec<u8> = (0..length).map(|_| noise().to_le_bytes()[0]).collect();
        // Every second one has the header of a query, so that its body is read.
        if round % 2 == 0 && length >= 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        socket.send_to(&bytes, server.address).await.unwrap();
    }
    // By connection: a length without its bytes, a length that is too long, a question in pieces.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    silent.write_all(&[0, 40, 1, 2, 3]).await.unwrap();
    let mut long = TcpStream::connect(server.address).await.unwrap();
    long.write_all(&[0xff, 0xff]).await.unwrap();
    assert_eq!(long.read(&mut [0; 8]).await.unwrap_or(0), 0, "it is closed");
    let mut pieces = TcpStream::connect(server.address).await.unwrap();
    pieces.set_nodelay(true).unwrap();
    let question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07web-ann\x04pico\x04test\0\0\x01\0\x01";
    let mut framed = vec![0, u8::try_from(question.len()).unwrap()];
    framed.extend_from_slice(question);
    for byte in &framed {
        pieces.write_all(std::slice::from_ref(byte)).await.unwrap();
    }
    let mut answer = vec![0; usize::from(pieces.read_u16().await.unwrap())];
    pieces.read_exact(&mut answer).await.unwrap();
    assert_eq!((answer[3] & 0xf, answer[7]), (0, 1));
    assert_eq!(
        dig(server.address, "+short web-ann.pico.test A").await,
        "10.77.0.2\n"
    );
    assert!(server.counts.malformed.load(Ordering::Relaxed) > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_network_are_bounded_and_the_others_still_answered() {
    let server = start(0).await;
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut closed = 0;
    for stream in &mut open[32..] {
        closed += usize::from(stream.read(&mut [0; 1]).await.unwrap_or(0) == 0);
    }
    assert_eq!(closed, 8);
    assert_eq!(server.counts.turned_away.load(Ordering::Relaxed), 8);
    assert_eq!(
        dig(server.address, "+short web-ann.pico.test A").await,
        "10.77.0.2\n"
    );
    drop(open);
}

/// BIND, ended when dropped.
struct Bind {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A resolver that asks our server: as a forwarder, or itself, knowing where the zone is served.
async fn bind(server: SocketAddr, recursive: bool) -> Bind {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    // A port that was free a moment ago; another one is tried where somebody was faster.
    for _ in 0..5 {
        let port = std::net::UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let zone = match recursive {
            false => format!(
                "zone \"pico.test\" {{ type forward; forward only; forwarders {{ {} port {}; }}; }};",
                server.ip(),
                server.port()
            ),
            // A static-stub zone cannot name a port, but a stub's server can be told one by `server`.
            true => format!(
                "zone \"pico.test\" {{ type static-stub; server-addresses {{ {}; }}; }};",
                server.ip()
            ),
        };
        let port_of_servers = match recursive {
            true => format!("port {};", server.port()),
            false => format!("port {port};"),
        };
        let config = format!(
            "options {{ directory \"{path}\"; pid-file none; session-keyfile none; {port_of_servers} \
             listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion yes; \
             allow-query {{ any; }}; dnssec-validation no; empty-zones-enable no; \
             managed-keys-directory \"{path}\"; }};\ncontrols {{ }};\n{zone}\n"
        );
        let file = dir.path().join("named.conf");
        fs::write(&file, config).unwrap();
        let mut child = Command::new("named")
            .args(["-g", "-4", "-n", "1", "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        while child.try_wait().unwrap().is_none() {
            let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            if log.contains(" running\n") {
                return Bind {
                    child,
                    address,
                    _dir: dir,
                };
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    panic!("named did not start:\n{log}");
}

async fn resolves(recursive: bool) {
    let server = start(0).await;
    let resolver = bind(server.address, recursive).await;
    let a = dig(resolver.address, "web-ann.pico.test A").await;
    assert!(a.contains("status: NOERROR") && a.contains("10.77.0.2"), "{a}");
    let srv = dig(resolver.address, "+short _80._tcp.web-ann.pico.test SRV").await;
    assert_eq!(srv, "0 0 80 web-ann.pico.test.\n");
    let long = dig(resolver.address, "_tcp.big-ann.pico.test SRV").await;
    assert!(long.contains("ANSWER: 64"), "BIND too comes back by TCP: {long}");
    let none = dig(resolver.address, "none-ann.pico.test A").await;
    assert!(none.contains("status: NXDOMAIN"), "{none}");
    let nodata = dig(resolver.address, "web-ann.pico.test MX").await;
    assert!(
        nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0"),
        "{nodata}"
    );
    assert_eq!(*server.apps.told.lock().unwrap(), [("web-ann".to_owned(), false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bind_resolves_through_it_as_a_forwarder() {
    resolves(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bind_resolves_through_it_as_a_recursive_resolver() {
    resolves(true).await;
}
