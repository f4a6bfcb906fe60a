use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::*;
use crate::nettest::{World, in_netns, inside, ip, joined};
use crate::sandbox::net::{self, NetSpec};

/// The host: an address of its own and, as on a cloud, a service that gives credentials away.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Long enough for a packet between two namespaces of one machine; waited for only where none must come.
const SILENCE: Duration = Duration::from_millis(500);

fn config() -> FenceConfig {
    FenceConfig {
        tun: "pico-test.0".to_owned(),
        v4: "10.77.0.0/16".parse().unwrap(),
        v6: "fd77:7069:636f::/64".parse().unwrap(),
        host_ports: vec!["5353/udp".parse().unwrap()],
    }
}

fn fenced(spec: &NetSpec, ports: &[&str]) -> Fenced {
    Fenced {
        link: spec.link.clone(),
        addresses: spec.addrs,
        ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
    }
}

async fn app(world: &World, last: u8) -> Result<NetSpec> {
    let spec = world.app(last);
    net::create(&spec).await?;
    for address in spec.addrs.both() {
        ip(&format!("route add {address} dev {}", spec.link))?;
    }
    Ok(spec)
}

async fn host() -> Result<()> {
    for address in [
        format!("{HOST}/32"),
        format!("{METADATA}/32"),
        "2001:db8::1/128".to_owned(),
    ] {
        ip(&format!("address add {address} dev lo nodad"))?;
    }
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{switch}"), "1")?;
    }
    Ok(())
}

/// Whether an app gets a TCP connection there.
async fn connects(from: &NetSpec, to: SocketAddr) -> Result<bool> {
    joined(inside(&from.netns, move || {
        match TcpStream::connect_timeout(&to, Duration::from_secs(5)) {
            Ok(_) => Ok(true),
            // No answer at all would be no fence but a hole that leads nowhere.
            Err(error) if error.kind() == ErrorKind::TimedOut => Err(error.into()),
            Err(_) => Ok(false),
        }
    }))
    .await
}

/// Whether an app's datagram comes to `socket`, and the answer back.
async fn is_answered(from: &NetSpec, socket: &UdpSocket) -> Result<bool> {
    let to = socket.local_addr()?;
    socket.set_read_timeout(Some(SILENCE))?;
    let server = socket.try_clone()?;
    let answering = std::thread::spawn(move || {
        let (_, peer) = server.recv_from(&mut [0; 16])?;
        server.send_to(b"pong", peer)
    });
    let heard = joined(inside(&from.netns, move || {
        let any: IpAddr = if to.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            [0_u16; 8].into()
        };
        let client = UdpSocket::bind((any, 0))?;
        client.set_read_timeout(Some(SILENCE))?;
        client.send_to(b"ping", to)?;
        Ok(client.recv_from(&mut [0; 16]).is_ok())
    }))
    .await?;
    let _ = answering.join();
    Ok(heard)
}

#[test]
fn an_app_reaches_neither_the_host_nor_what_another_app_does_not_publish() -> Result<()> {
    in_netns(|| async {
        host().await?;
        let world = World::new()?;
        let (a, b) = (app(&world, 5).await?, app(&world, 6).await?);
        let fence = Fence::new(config())?;
        fence.replace([fenced(&a, &[]), fenced(&b, &["80/tcp", "53/udp"])])?;

        let listeners = [HOST.into(), METADATA.into(), "2001:db8::1".parse::<IpAddr>()?]
            .map(|address| TcpListener::bind((address, 9000)));
        for listener in listeners {
            let at = listener?.local_addr()?;
            ensure!(!connects(&a, at).await?, "{at} can be reached");
        }
        for address in b.addrs.both() {
            let netns = b.netns.clone();
            let open = joined(inside(&netns, move || {
                Ok([80, 81].map(|port| TcpListener::bind((address, port))))
            }))
            .await?;
            ensure!(open.iter().all(Result::is_ok));
            ensure!(
                connects(&a, (address, 80).into()).await?,
                "{address}: a published port"
            );
            ensure!(
                !connects(&a, (address, 81).into()).await?,
                "{address}: one that is not"
            );
            let sockets = joined(inside(&netns, move || {
                Ok((UdpSocket::bind((address, 53))?, UdpSocket::bind((address, 54))?))
            }))
            .await?;
            ensure!(
                is_answered(&a, &sockets.0).await?,
                "{address}: a published UDP port"
            );
            ensure!(!is_answered(&a, &sockets.1).await?, "{address}: one that is not");
        }
        ensure!(!is_answered(&a, &UdpSocket::bind((HOST, 9001))?).await?);
        ensure!(
            is_answered(&a, &UdpSocket::bind((HOST, 5353))?).await?,
            "allowed by host_ports"
        );

        // Removed, the same attempt succeeds: it was the fence that stopped it.
        let listener = TcpListener::bind((HOST, 9002))?;
        ensure!(!connects(&a, listener.local_addr()?).await?);
        fence.remove(&a.link)?;
        ensure!(connects(&a, listener.local_addr()?).await?);
        Fence::take_down(&config())?;
        Fence::take_down(&config()).map_err(Into::into)
    })
}

#[test]
fn who_asks_an_app_gets_its_answer_whatever_the_app_may_reach() -> Result<()> {
    in_netns(|| async {
        host().await?;
        let world = World::new()?;
        let a = app(&world, 5).await?;
        let fence = Fence::new(config())?;
        fence.replace([fenced(&a, &["7/udp"])])?;
        for (from, to) in [
            (IpAddr::from(HOST), a.addrs.v4.into()),
            ("2001:db8::1".parse()?, a.addrs.v6.into()),
        ] {
            let to = SocketAddr::new(to, 7);
            let server = joined(inside(&a.netns, move || {
                Ok((UdpSocket::bind(to)?, TcpListener::bind(to)?))
            }))
            .await?;
            let client = UdpSocket::bind((from, 0))?;
            client.set_read_timeout(Some(Duration::from_secs(5)))?;
            client.send_to(b"ping", to)?;
            let (_, peer) = server.0.recv_from(&mut [0; 16])?;
            // Larger than the link: it comes back in fragments.
            server.0.send_to(&[7; 4000], peer)?;
            ensure!(client.recv_from(&mut [0; 5000])?.0 == 4000);
            TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
            // And yet the app may not begin to speak to another port of the one who asked.
            let other = UdpSocket::bind((from, 0))?;
            other.set_read_timeout(Some(SILENCE))?;
            server.0.send_to(b"psst", other.local_addr()?)?;
            ensure!(other.recv_from(&mut [0; 16]).is_err());
        }
        Fence::take_down(&config()).map_err(Into::into)
    })
}

#[test]
fn an_app_sends_under_its_own_address_only() -> Result<()> {
    in_netns(|| async {
        host().await?;
        let world = World::new()?;
        let (a, stranger) = (app(&world, 5).await?, world.stranger().await?);
        let fence = Fence::new(config())?;
        fence.replace([fenced(&a, &[])])?;
        let IpAddr::V4(outside) = stranger.addrs.v4.into() else {
            return Ok(());
        };
        let heard = joined(inside(&stranger.netns, move || {
            Ok(UdpSocket::bind((outside, 9))?)
        }))
        .await?;
        heard.set_read_timeout(Some(SILENCE))?;
        let send = |spoofed: bool| {
            inside(&a.netns, move || {
                let mut from = Ipv4Addr::new(10, 77, 0, 5);
                if spoofed {
                    from = Ipv4Addr::new(10, 77, 0, 99);
                    ip("address add 10.77.0.99/32 dev eth0")?;
                }
                UdpSocket::bind((from, 0))?.send_to(b"x", (outside, 9))?;
                Ok(())
            })
        };
        joined(send(false)).await?;
        ensure!(
            heard.recv_from(&mut [0; 4]).is_ok(),
            "the world beyond the host is open to it"
        );
        joined(send(true)).await?;
        ensure!(
            heard.recv_from(&mut [0; 4]).is_err(),
            "under an address that is not its own"
        );
        Fence::take_down(&config()).map_err(Into::into)
    })
}

#[test]
fn ports_that_change_are_open_and_closed_at_once() -> Result<()> {
    in_netns(|| async {
        host().await?;
        let world = World::new()?;
        let (a, b) = (app(&world, 5).await?, app(&world, 6).await?);
        let fence = Fence::new(config())?;
        fence.replace([fenced(&a, &[])])?;
        fence.put(fenced(&b, &["80/tcp"]))?;
        let address = IpAddr::from(b.addrs.v4);
        let _open = joined(inside(&b.netns, move || {
            Ok([80, 81].map(|port| TcpListener::bind((address, port))))
        }))
        .await?;
        fence.put(fenced(&b, &["81/tcp"]))?;
        ensure!(!connects(&a, (address, 80).into()).await? && connects(&a, (address, 81).into()).await?);
        fence.put(fenced(&b, &["81/tcp"]))?;
        Fence::take_down(&config()).map_err(Into::into)
    })
}
