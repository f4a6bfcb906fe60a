//! Debian's nginx with a static site: a root master and two workers as `www-data`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LIMIT, Proto, RealApp, noise, seed};
use crate::harness::{AppConfig, bin};

/// Pages of the site, of different sizes.
const PAGES: u64 = 20;

const CONFIG: &str = "\
user www-data;
worker_processes 2;
daemon off;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 256; }
http {
    access_log off;
    server {
        listen 80;
        listen [::]:80;
        root /srv/web/html;
    }
}
";

/// The app; it has no state but its site.
#[derive(Debug, Default)]
pub struct Nginx;

impl RealApp for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn config(&self, dir: &Path) -> Result<AppConfig> {
        let nginx = bin::system("nginx", "nginx")?;
        let dir = dir.join("nginx");
        seed(&dir, "/srv/web/nginx.conf", CONFIG.as_bytes())?;
        for page in 0..PAGES {
            seed(&dir, &format!("/srv/web/html/{page}.html"), &content(page))?;
        }
        Ok(AppConfig {
            name: self.name().into(),
            root: "host".into(),
            command: vec![
                nginx.display().to_string(),
                "-c".into(),
                "/srv/web/nginx.conf".into(),
            ],
            ports: vec!["80/tcp".into()],
            seed: Some(dir),
            ..AppConfig::default()
        })
    }

    fn request(&mut self, at: IpAddr, _: Proto) -> Result<Duration> {
        page(at, 1)
    }

    fn check(&mut self, at: IpAddr) -> Result<()> {
        (0..PAGES).try_for_each(|number| page(at, number).map(drop))
    }
}

/// Page `number`: from a hundred bytes to some tens of kilobytes.
fn content(number: u64) -> Vec<u8> {
    let length = 100 + usize::try_from(number * number * 97).unwrap_or(0);
    noise(number + 1, length)
}

fn page(at: IpAddr, number: u64) -> Result<Duration> {
    let start = Instant::now();
    let body = get(SocketAddr::new(at, 80), &format!("/{number}.html"))?;
    let time = start.elapsed();
    ensure!(
        body == content(number),
        "page {number} has wrong content ({} bytes)",
        body.len()
    );
    Ok(time)
}

/// One HTTP/1.1 GET on a new connection; the body of a 200 answer.
///
/// # Errors
/// When there is no connection or answer within [`LIMIT`], or another status.
pub fn get(at: SocketAddr, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&at, LIMIT).with_context(|| format!("connect to {at}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    answer
        .read_line(&mut line)
        .with_context(|| format!("answer of {at}"))?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "{at}{path}: {}", line.trim());
    let mut length = None;
    loop {
        line.clear();
        answer.read_line(&mut line)?;
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>()?);
        }
    }
    let mut body = vec![0; length.context("no Content-Length")?];
    answer
        .read_exact(&mut body)
        .with_context(|| format!("body of {at}{path}"))?;
    Ok(body)
}
