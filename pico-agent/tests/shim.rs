//! One shim and one real app, without an agent: start, dump, restore, fork while lazy, dump again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pico_agent::criu::command::Criu;
use pico_agent::sandbox::{CgroupTree, Limits, Mask, RootSpec, SandboxSpec};
use pico_agent::shim::client::ShimClient;
use pico_agent::shim::protocol::{Event, Request, ShimConfig};
use tokio::sync::mpsc::UnboundedReceiver;

fn criu() -> Criu {
    let tools = std::env::var_os("PICO_CRIU").map(PathBuf::from);
    let path = tools.unwrap_or_else(|| PathBuf::from("/usr/sbin/criu"));
    let preload = Path::new(env!("CARGO_BIN_EXE_pico-shim")).with_file_name("libpico_preload.so");
    Criu::at(&path).unwrap().with_preload(&preload)
}

struct World {
    name: String,
    dir: PathBuf,
    tree: CgroupTree,
    run: u64,
}

impl World {
    fn new(name: &str) -> World {
        let name = format!("t{}{name}", std::process::id());
        let dir = PathBuf::from("/var/tmp").join(&name);
        for sub in ["pages", "kdat", "ckpt", "work"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        sh(&format!("mount -t tmpfs pico {}", dir.join("kdat").display()));
        let bound = dir.join("netns");
        std::fs::write(&bound, "").unwrap();
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        sh(&format!("mount --bind /run/netns/{name} {}", bound.display()));
        World {
            tree: CgroupTree::open(&name).unwrap(),
            name,
            dir,
            run: 0,
        }
    }

    fn root(&self) -> RootSpec {
        RootSpec {
            lower: vec!["/".into()],
            mask: Mask::Host { hidden: vec![] },
            upper: self.dir.join("upper"),
            work: self.dir.join("owork"),
            mountpoint: self.dir.join("root"),
        }
    }

    async fn shim(&mut self, restores: bool) -> (ShimClient, UnboundedReceiver<Event>, ShimConfig) {
        self.run += 1;
        self.tree.app(&self.name, &Limits::default()).unwrap();
        let cgroup = self.tree.run(&self.name, self.run).unwrap();
        cgroup.create().unwrap();
        let shim_cgroup = self.tree.shim(&self.name).unwrap();
        shim_cgroup.create().unwrap();
        let config = ShimConfig {
            app: self.name.clone(),
            socket: self.dir.join("shim.sock"),
            work: self.dir.join("work"),
            pages: self.dir.join("pages"),
            logs: self.dir.join("logs"),
            log_bytes: 1 << 20,
            log_files: 2,
            kernel_cache: self.dir.join("kdat"),
            criu: criu(),
            netns: self.dir.join("netns"),
            root: self.root(),
            cgroup,
            shim_cgroup,
            restores,
            fault_timeout_s: 10,
        };
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.dir.join("shim.log"))
            .unwrap();
        let shim = Path::new(env!("CARGO_BIN_EXE_pico-shim"));
        let (client, mut events) = ShimClient::spawn(shim, &config, log).await.unwrap();
        assert!(matches!(next(&mut events).await, Event::Hello { .. }));
        (client, events, config)
    }

    /// Runs `work` with a connection to `port` from inside the app's network namespace.
    fn connect<T: Send>(&self, port: u16, work: impl FnOnce(TcpStream) -> T + Send) -> T {
        let netns = std::fs::File::open(PathBuf::from("/run/netns").join(&self.name)).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    let stream = loop {
                        match TcpStream::connect(("127.0.0.1", port)) {
                            Ok(stream) => break stream,
                            Err(_) => std::thread::sleep(Duration::from_millis(20)),
                        }
                    };
                    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                    work(stream)
                })
                .join()
                .unwrap()
        })
    }

    fn redis(&self, command: &str) -> String {
        self.connect(6379, |mut stream| {
            stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
            let mut answer = vec![0; 1 << 16];
            let len = stream.read(&mut answer).unwrap();
            String::from_utf8_lossy(&answer[..len]).into_owned()
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.join("root")).status();
        let _ = self.tree.remove_all();
        sh(&format!(
            "umount {0}/kdat {0}/netns; ip netns del {1}",
            self.dir.display(),
            self.name
        ));
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn sh(command: &str) {
    assert!(
        Command::new("sh")
            .args(["-c", command])
            .status()
            .unwrap()
            .success(),
        "{command}"
    );
}

async fn next(events: &mut UnboundedReceiver<Event>) -> Event {
    tokio::time::timeout(Duration::from_secs(60), events.recv())
        .await
        .unwrap()
        .expect("the shim is gone")
}

async fn dump(client: &ShimClient, events: &mut UnboundedReceiver<Event>, dir: PathBuf, generation: u64) {
    client
        .send(&Request::Dump {
            checkpoint: dir,
            generation,
            synced: None,
        })
        .await
        .unwrap();
    match next(events).await {
        Event::DumpReady(summary) => println!("{summary:?}"),
        other => panic!("{other:?}"),
    }
    client.send(&Request::Commit { accept: true }).await.unwrap();
    assert!(matches!(next(events).await, Event::Dumped));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_redis_has_every_key_after_three_partial_swaps() {
    let mut world = World::new("redis");
    let root = world.root();
    pico_agent::sandbox::mount_root(&root).unwrap();
    let (client, mut events, config) = world.shim(false).await;
    let spec = SandboxSpec {
        hostname: "redis".into(),
        root: root.clone(),
        netns: config.netns.clone(),
        cgroup: config.cgroup.clone(),
        command: [
            "redis-server",
            "--enable-debug-command",
            "yes",
            "--save",
            "",
            "--port",
            "6379",
            "--dir",
            "/tmp",
        ]
        .map(str::to_owned)
        .to_vec(),
        env: vec![],
        user: None,
        workdir: "/tmp".into(),
        capabilities: vec![],
        no_new_privs: true,
        seccomp: true,
    };
    client.send(&Request::Start(Box::new(spec))).await.unwrap();
    match next(&mut events).await {
        Event::Running { took_us, .. } => println!("started in {took_us} us"),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.redis("DEBUG POPULATE 100000 key 400"), "+OK\r\n");
    assert_eq!(world.redis("SET n 0"), "+OK\r\n");
    dump(&client, &mut events, world.dir.join("ckpt/1"), 1).await;
    for generation in 2..=4u64 {
        drop(client.clone());
        let (client, mut events, _config) = world.shim(true).await;
        let checkpoint = world.dir.join(format!("ckpt/{}", generation - 1));
        client
            .send(&Request::Restore {
                checkpoint,
                ahead: None,
            })
            .await
            .unwrap();
        match next(&mut events).await {
            Event::Running { took_us, .. } => println!("restored in {took_us} us"),
            other => panic!("{other:?}"),
        }
        assert_eq!(world.redis("INCR n"), format!(":{}\r\n", generation - 1));
        client.send(&Request::Stats).await.unwrap();
        println!("{:?}", next(&mut events).await);
        // A child process for a moment, in memory that is served on demand.
        assert!(world.redis("BGSAVE").starts_with("+Background saving started"));
        while !world
            .redis("INFO persistence")
            .contains("rdb_bgsave_in_progress:0")
        {}
        assert!(
            world
                .redis("INFO persistence")
                .contains("rdb_last_bgsave_status:ok")
        );
        if generation == 4 {
            for key in 0..100_000 {
                if key % 1000 == 0 {
                    assert!(
                        world
                            .redis(&format!("GET key:{key}"))
                            .starts_with("$400\r\nvalue:"),
                        "{key}"
                    );
                }
            }
        }
        dump(
            &client,
            &mut events,
            world.dir.join(format!("ckpt/{generation}")),
            generation,
        )
        .await;
    }
}
