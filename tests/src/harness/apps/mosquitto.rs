//! Debian's mosquitto, and as much of MQTT 3.1.1 as a subscriber and a publisher need.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{LIMIT, seed};
use crate::harness::{AppConfig, bin};

const PORT: u16 = 1883;

/// Packet types, with the flags that they must have.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// The `[[app]]` section of a broker that lets everybody in. Its configuration is written to `dir`.
///
/// # Errors
/// When the package is not installed or `dir` cannot be written.
pub fn config(dir: &Path) -> Result<AppConfig> {
    let dir = dir.join("mosquitto-seed");
    let lines = format!("listener {PORT}\nallow_anonymous true\nuser mosquitto\npersistence false\n");
    seed(&dir, "/srv/mosquitto.conf", lines.as_bytes())?;
    let server = bin::system("mosquitto", "mosquitto")?.display().to_string();
    Ok(AppConfig {
        name: "mosquitto".into(),
        root: "host".into(),
        command: vec![server, "-c".into(), "/srv/mosquitto.conf".into()],
        ports: vec![format!("{PORT}/tcp")],
        seed: Some(dir),
        ..AppConfig::default()
    })
}

/// A connection to the broker, without MQTT's own keepalive: TCP's, every second.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects as `id`.
    ///
    /// # Errors
    /// When the broker does not accept within [`LIMIT`].
    pub fn connect(at: IpAddr, id: &str) -> Result<Self> {
        let at = SocketAddr::new(at, PORT);
        let stream = TcpStream::connect_timeout(&at, LIMIT).with_context(|| format!("connect to {at}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &1)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &1)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &3)?;
        let mut client = Client { stream };
        let mut body = string("MQTT")?;
        // Version 4 (3.1.1), a clean session, no keepalive.
        body.extend([4, 2, 0, 0]);
        body.extend(string(id)?);
        client.send(CONNECT, &body)?;
        let (kind, answer) = client.receive()?;
        ensure!(kind == CONNACK && answer == [0, 0], "not accepted: {answer:?}");
        Ok(client)
    }

    /// Asks for all that is published on `topic`.
    ///
    /// # Errors
    /// When the broker does not grant it.
    pub fn subscribe(&mut self, topic: &str) -> Result<()> {
        let mut body = vec![0, 1];
        body.extend(string(topic)?);
        body.push(0);
        self.send(SUBSCRIBE, &body)?;
        let (kind, answer) = self.receive()?;
        ensure!(kind == SUBACK && answer == [0, 1, 0], "not granted: {answer:?}");
        Ok(())
    }

    /// Publishes `text` on `topic`, at most once.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn publish(&mut self, topic: &str, text: &str) -> Result<()> {
        let mut body = string(topic)?;
        body.extend_from_slice(text.as_bytes());
        self.send(PUBLISH, &body)
    }

    /// The next text that was published on the topic subscribed to.
    ///
    /// # Errors
    /// When none comes within [`LIMIT`].
    pub fn receive_text(&mut self) -> Result<String> {
        let (kind, body) = self.receive()?;
        ensure!(kind == PUBLISH, "a packet of type {kind:#x}");
        let topic = body.first_chunk::<2>().context("no topic")?;
        let text = body.get(2 + usize::from(u16::from_be_bytes(*topic))..);
        Ok(String::from_utf8(text.context("no text")?.to_vec())?)
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        // One byte holds lengths up to 127; more is not needed here.
        let length = u8::try_from(body.len())?;
        ensure!(length < 128, "{length} bytes");
        let mut packet = vec![kind, length];
        packet.extend_from_slice(body);
        Ok(self.stream.write_all(&packet)?)
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream
            .read_exact(&mut head)
            .context("no packet of mosquitto")?;
        ensure!(head[1] < 128, "a long packet");
        let mut body = vec![0; usize::from(head[1])];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }
}

fn string(text: &str) -> Result<Vec<u8>> {
    let mut bytes = u16::try_from(text.len())?.to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    Ok(bytes)
}
