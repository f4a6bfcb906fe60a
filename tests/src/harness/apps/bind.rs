//! Debian's BIND 9 as the authoritative server of one small zone, over UDP and TCP.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::dns::{self, Type};
use super::{Proto, RealApp, seed};
use crate::harness::{AppConfig, bin};

/// Names `h0` to `h199` have addresses.
const HOSTS: u8 = 200;

const CONFIG: &str = r#"
options {
    directory "/var/cache/bind";
    listen-on { any; };
    listen-on-v6 { any; };
    recursion no;
    dnssec-validation no;
    pid-file none;
};
controls { };
zone "pico.test" { type primary; file "/srv/dns/zone.db"; };
"#;

/// The app; it has no state but its zone.
#[derive(Debug, Default)]
pub struct Bind;

impl RealApp for Bind {
    fn name(&self) -> &'static str {
        "bind"
    }

    fn protocols(&self) -> &'static [Proto] {
        &[Proto::Udp, Proto::Tcp]
    }

    fn config(&self, dir: &Path) -> Result<AppConfig> {
        let named = bin::system("named", "bind9")?.display().to_string();
        let dir = dir.join("bind");
        seed(&dir, "/srv/dns/named.conf", CONFIG.as_bytes())?;
        let mut zone = "$TTL 60\n@ SOA ns admin 1 3600 600 86400 60\n@ NS ns\nns A 192.0.2.53\n".to_owned();
        for host in 0..HOSTS {
            writeln!(zone, "h{host} A 192.0.2.{host}\nh{host} TXT \"host {host}\"")?;
        }
        seed(&dir, "/srv/dns/zone.db", zone.as_bytes())?;
        let options = ["-g", "-u", "bind", "-c", "/srv/dns/named.conf"];
        Ok(AppConfig {
            name: self.name().into(),
            root: "host".into(),
            command: [named.as_str()]
                .iter()
                .chain(&options)
                .map(ToString::to_string)
                .collect(),
            ports: vec!["53/udp".into(), "53/tcp".into()],
            seed: Some(dir),
            ..AppConfig::default()
        })
    }

    /// Asks over TCP: a datagram that comes before the server would be lost, and waited for.
    fn ready(&mut self, at: IpAddr) -> Result<()> {
        self.request(at, Proto::Tcp).map(drop)
    }

    fn request(&mut self, at: IpAddr, proto: Proto) -> Result<Duration> {
        address_of(at, proto, 1)
    }

    fn check(&mut self, at: IpAddr) -> Result<()> {
        for host in 0..HOSTS {
            address_of(at, Proto::Udp, host)?;
        }
        let (text, _) = dns::ask(SocketAddr::new(at, 53), Proto::Tcp, "h7.pico.test", Type::Txt)?;
        ensure!(text == [b"\x06host 7".to_vec()], "TXT of h7 is {text:?}");
        Ok(())
    }
}

fn address_of(at: IpAddr, proto: Proto, host: u8) -> Result<Duration> {
    let (found, time) = dns::ask(
        SocketAddr::new(at, 53),
        proto,
        &format!("h{host}.pico.test"),
        Type::A,
    )?;
    ensure!(
        found == [vec![192, 0, 2, host]],
        "address of h{host} is {found:?}"
    );
    Ok(time)
}
