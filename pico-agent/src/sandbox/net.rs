//! The network of one sandbox: a network namespace kept by a bind mount, so that it outlives its processes, and a
//! veth pair into it with the app's service addresses. Knows nothing of the gate: which packets come here is
//! decided by routes that are made elsewhere.
//!
//! The app's side has no subnet and no neighbours but one, the host, by fixed link addresses: nothing is ever
//! resolved, advertised or detected on the link, so the first packet goes through at once and the namespace is
//! silent while its app sleeps. No helper processes; creating one takes a few milliseconds.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use tokio::task::JoinError;

use crate::address::Addresses;
use crate::netlink::{self, Netlink, NetlinkError, Request, Watch};
use crate::sysctl::{self, SysctlError};

/// The host as the app's gateway, link-local and the same for every app.
const GATEWAY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];

/// Link addresses of the two ends, locally administered ("pico" in ASCII). Each pair is a link of its own, so all
/// pairs have the same; and a restored app finds its gateway where it was.
const HOST_LINK: [u8; 6] = [0x02, b'p', b'i', b'c', b'o', 1];
const APP_LINK: [u8; 6] = [0x02, b'p', b'i', b'c', b'o', 2];

/// Name of the device inside.
const INNER: &str = "eth0";

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// What identifies a sandbox's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSpec {
    /// The file that the namespace is mounted on; made if missing, its directory too.
    pub netns: PathBuf,
    /// Name of the host's end of the veth pair, at most 15 bytes.
    pub link: String,
    /// The app's addresses inside.
    pub addrs: Addresses,
}

/// Why a sandbox's network could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The namespace or its mount.
    #[error("network namespace {path}: cannot {what}: {source}")]
    Namespace {
        /// The file it is mounted on.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A device, address or route.
    #[error(transparent)]
    Link(#[from] NetlinkError),
    /// A setting of the host's end.
    #[error("kernel setting: {0}")]
    Sysctl(#[from] SysctlError),
    /// The blocking task failed.
    #[error("network task: {0}")]
    Task(#[from] JoinError),
}

/// Makes namespace and veth pair, or what is missing of them. When it fails nothing new is left.
pub async fn create(spec: &NetSpec) -> Result<(), NetError> {
    let spec = spec.clone();
    tokio::task::spawn_blocking(move || {
        let fresh = !exists(&spec);
        if fresh {
            // Half of one is no use: a pair without its namespace, or a namespace that lost its pair.
            remove_now(&spec)?;
        }
        create_now(&spec, fresh).inspect_err(|_| {
            if fresh && let Err(error) = remove_now(&spec) {
                tracing::warn!(%error, "a half-made network could not be taken away");
            }
        })
    })
    .await?
}

/// Takes both away; the namespace itself goes when the last process in it does. What is gone already is no error.
pub async fn remove(spec: &NetSpec) -> Result<(), NetError> {
    let spec = spec.clone();
    tokio::task::spawn_blocking(move || remove_now(&spec)).await?
}

/// Whether the namespace is mounted and the host's end of the pair is there.
pub fn exists(spec: &NetSpec) -> bool {
    is_namespace(&spec.netns) && if_nametoindex(spec.link.as_str()).is_ok()
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

fn create_now(spec: &NetSpec, fresh: bool) -> Result<(), NetError> {
    let mut host = Netlink::open()?;
    let Inside {
        mut netlink,
        mut watch,
        namespace,
    } = enter(&spec.netns, fresh)?;
    if fresh {
        host.run(vec![Request::add(
            veth(&spec.link, &namespace),
            format!("make veth pair {}", spec.link),
        )])?;
    }
    let device = settle_inside(&mut netlink, spec.addrs)?;
    settle_host(&mut host, spec)?;
    // The host's end came up last, with its carrier; the other one has been waiting for that.
    watch.until_running(device)?;
    for address in usable(spec.addrs.both()) {
        watch.until_local(address)?;
    }
    Ok(())
}

/// What it takes to work in a namespace from without.
struct Inside {
    netlink: Netlink,
    watch: Watch,
    namespace: File,
}

/// Opens routing sockets inside the namespace, which is made and mounted if it is to be fresh. On a thread of its own:
/// entering a namespace is for good.
fn enter(path: &Path, fresh: bool) -> Result<Inside, NetError> {
    let work = || {
        if fresh {
            unshare(CloneFlags::CLONE_NEWNET).map_err(failed(path, "make a new one"))?;
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory).map_err(failed(path, "make its directory"))?;
            }
            File::create(path).map_err(failed(path, "make the file to mount on"))?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(failed(path, "mount it"))?;
        }
        let namespace = File::open(path).map_err(failed(path, "open it"))?;
        if !fresh {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(failed(path, "enter it"))?;
        }
        Ok(Inside {
            netlink: Netlink::open()?,
            watch: Watch::open()?,
            namespace,
        })
    };
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(failed(path, "enter it")(Errno::ECANCELED)))
}

fn failed<E: Into<io::Error>>(path: &Path, what: &'static str) -> impl FnOnce(E) -> NetError {
    move |error| NetError::Namespace {
        path: path.to_owned(),
        what,
        source: error.into(),
    }
}

/// A veth pair, one end here and one in `namespace`.
fn veth(name: &str, namespace: &File) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(INNER.to_owned()),
        LinkAttribute::Address(APP_LINK.to_vec()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(HOST_LINK.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

/// The app's side: loopback, both addresses, and the host as the way to everywhere. Returns the device's index.
fn settle_inside(inside: &mut Netlink, addresses: Addresses) -> Result<u32, NetError> {
    let device = inside.require(INNER)?;
    let mut requests = vec![
        Request::change(
            netlink::link_up(LOOPBACK, Vec::new()),
            "bring lo up in the sandbox",
        ),
        no_link_local(device),
    ];
    for address in usable(addresses.both()) {
        let message = netlink::address(device, address, AddressScope::Universe);
        requests.push(Request::put(message, format!("give {address} to the sandbox")));
    }
    requests.push(Request::change(
        netlink::link_up(device, Vec::new()),
        "bring the sandbox's device up",
    ));
    for gateway in usable(GATEWAY) {
        let neighbour = netlink::neighbour(device, gateway, HOST_LINK);
        requests.push(Request::put(neighbour, "make the host the sandbox's neighbour"));
        let route = RouteNetlinkMessage::NewRoute(netlink::default_route(gateway, device));
        requests.push(Request::put(route, "make the host the sandbox's gateway"));
    }
    inside.run(requests)?;
    Ok(device)
}

/// The host's side: up, no neighbour but the app, and no opinion about which senders come from where: while the
/// app's packets are held its address is routed to another device, and its answers still come by this one.
fn settle_host(host: &mut Netlink, spec: &NetSpec) -> Result<(), NetError> {
    let device = host.require(&spec.link)?;
    sysctl::loosen_reverse_path(&spec.link)?;
    sysctl::enable_ipv6(&spec.link)?;
    let mut requests = vec![
        no_link_local(device),
        // Of link scope, so that it is never picked as a source address for another device.
        Request::put(
            netlink::address(device, GATEWAY[0], AddressScope::Link),
            format!("give {} to {}", GATEWAY[0], spec.link),
        ),
        Request::change(
            netlink::link_up(device, Vec::new()),
            format!("bring {} up", spec.link),
        ),
    ];
    for address in usable(spec.addrs.both()) {
        let neighbour = netlink::neighbour(device, address, APP_LINK);
        requests.push(Request::put(
            neighbour,
            format!("make {address} a neighbour on {}", spec.link),
        ));
    }
    Ok(host.run(requests)?)
}

fn no_link_local(device: u32) -> Request {
    Request::change(
        netlink::no_link_local(device),
        "keep a device from a link-local address",
    )
    .forgive(&[libc::EAFNOSUPPORT])
}

fn usable(addresses: [IpAddr; 2]) -> impl Iterator<Item = IpAddr> {
    let ipv6 = sysctl::has_ipv6();
    addresses
        .into_iter()
        .filter(move |address| address.is_ipv4() || ipv6)
}

fn remove_now(spec: &NetSpec) -> Result<(), NetError> {
    let path = &spec.netns;
    // First the pair: routes to it go with it, and nothing reaches the namespace any more.
    Netlink::open()?.run(vec![netlink::link_delete(&spec.link)])?;
    while is_namespace(path) {
        umount2(path, MntFlags::MNT_DETACH).map_err(failed(path, "unmount it"))?;
    }
    // Also ends the copies of the mount that other mount namespaces have (since Linux 3.18).
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "remove its file")(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use anyhow::{Context, Result};

    use super::*;
    use crate::nettest::{World, in_netns, inside, ip, joined};

    /// Routes the app's addresses to it, as the gate does when the app is hot.
    fn route(spec: &NetSpec) -> Result<()> {
        for address in spec.addrs.both() {
            ip(&format!("route add {address} dev {}", spec.link))?;
        }
        Ok(())
    }

    async fn connected(spec: &NetSpec, address: IpAddr) -> Result<(TcpStream, TcpStream)> {
        let target = SocketAddr::new(address, 7);
        let listener = joined(inside(&spec.netns, move || Ok(TcpListener::bind(target)?))).await?;
        let limit = Duration::from_secs(10);
        let client = TcpStream::connect_timeout(&target, limit)?;
        let (server, _) = listener.accept()?;
        client.set_read_timeout(Some(limit))?;
        server.set_read_timeout(Some(limit))?;
        Ok((client, server))
    }

    fn talk((client, server): &mut (TcpStream, TcpStream)) -> Result<()> {
        let mut heard = [0; 4];
        client.write_all(b"ping")?;
        server.read_exact(&mut heard)?;
        server.write_all(b"pong")?;
        client.read_exact(&mut heard)?;
        assert_eq!(&heard, b"pong");
        Ok(())
    }

    #[test]
    fn a_namespace_is_made_answers_on_both_families_and_is_taken_away() -> Result<()> {
        in_netns(|| async {
            let world = World::new()?;
            ip("address add 192.0.2.1/32 dev lo")?;
            ip("address add 2001:db8::1/128 dev lo nodad")?;
            let spec = world.app(5);
            assert!(!exists(&spec));
            create(&spec).await?;
            assert!(exists(&spec));
            route(&spec)?;
            for address in spec.addrs.both() {
                talk(&mut connected(&spec, address).await?)?;
            }
            let addresses = joined(inside(&spec.netns, || ip("-o addr"))).await?;
            assert!(addresses.contains("10.77.0.5/32") && addresses.contains("fd77:7069:636f::5/128"));
            assert!(
                !addresses.contains("fe80") && !addresses.contains("tentative"),
                "{addresses}"
            );
            let neighbours = ip("neigh show dev app5")?;
            assert_eq!(neighbours.matches("PERMANENT").count(), 2, "{neighbours}");

            remove(&spec).await?;
            assert!(!exists(&spec) && !spec.netns.exists());
            remove(&spec).await?;
            let left = ip("addr")? + &ip("route show table all")? + &ip("-6 route show table all")?;
            for trace in ["app5", "10.77.", "fd77:", "169.254."] {
                assert!(!left.contains(trace), "{trace} in {left}");
            }
            Ok(())
        })
    }

    #[test]
    fn making_it_again_keeps_the_namespace_and_its_connections() -> Result<()> {
        in_netns(|| async {
            let world = World::new()?;
            let spec = world.app(5);
            ip("address add 192.0.2.1/32 dev lo")?;
            create(&spec).await?;
            route(&spec)?;
            let inode = fs::metadata(&spec.netns)?.ino();
            let mut connection = connected(&spec, spec.addrs.v4.into()).await?;
            create(&spec).await?;
            assert_eq!(fs::metadata(&spec.netns)?.ino(), inode);
            talk(&mut connection)
        })
    }

    #[test]
    fn what_is_half_there_is_made_anew() -> Result<()> {
        in_netns(|| async {
            let world = World::new()?;
            let spec = world.app(5);
            create(&spec).await?;
            ip("link del app5")?;
            assert!(!exists(&spec));
            create(&spec).await?;
            umount2(&spec.netns, MntFlags::MNT_DETACH)?;
            assert!(!exists(&spec));
            create(&spec).await?;
            route(&spec)?;
            ip("address add 192.0.2.1/32 dev lo")?;
            talk(&mut connected(&spec, spec.addrs.v4.into()).await?)
        })
    }

    #[test]
    fn a_failed_making_leaves_nothing() -> Result<()> {
        in_netns(|| async {
            let world = World::new()?;
            let spec = NetSpec {
                link: "a-name-too-long-for-a-device".to_owned(),
                ..world.app(5)
            };
            assert!(matches!(create(&spec).await, Err(NetError::Link(_))));
            assert!(!spec.netns.exists());
            Ok(())
        })
    }

    #[test]
    fn a_copy_of_the_mount_elsewhere_does_not_keep_the_namespace() -> Result<()> {
        in_netns(|| async {
            let world = World::new()?;
            let spec = world.app(5);
            create(&spec).await?;
            let (made, copied) = std::sync::mpsc::channel();
            let (ended, end) = std::sync::mpsc::channel::<()>();
            let elsewhere = std::thread::spawn(move || -> Result<String> {
                unshare(CloneFlags::CLONE_NEWNS)?;
                made.send(())?;
                let _ = end.recv();
                Ok(fs::read_to_string("/proc/thread-self/mountinfo")?)
            });
            copied.recv()?;
            remove(&spec).await?;
            ended.send(()).context("the other thread is gone")?;
            let mounts = joined(elsewhere).await?;
            assert!(!mounts.contains("netns/app5"), "{mounts}");
            Ok(())
        })
    }
}
