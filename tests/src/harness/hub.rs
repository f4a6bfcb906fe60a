//! A real hub (`pico-hub serve`) as a background program, and clients of its API.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use pico_proto::v1;
use pico_proto::v1::app_service_client::AppServiceClient;
use pico_proto::v1::token_service_client::TokenServiceClient;
use serde::Deserialize;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::apps::{Proto, dns};
use super::owner::Owner;
use super::{bin, process::Daemon};

/// The zone that the hub answers for: an app is `NAME-OWNER.ZONE`.
pub const ZONE: &str = "apps.test";

/// A running hub; dropping it ends it.
#[derive(Debug)]
pub struct Hub {
    daemon: Daemon,
    dir: PathBuf,
    api: SocketAddr,
    dns: SocketAddr,
    dns_settings: String,
}

/// What the hub writes when it serves.
#[derive(Debug, Deserialize)]
struct Ready {
    api: Vec<String>,
    dns: Vec<SocketAddr>,
}

impl Hub {
    /// Starts a hub over `DIR/hub` on a port of its choice.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, "")
    }

    /// The same with more lines in the section `[dns]` of its configuration.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn start_with(dir: &Path, dns_settings: &str) -> Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_on(dir, any, any, dns_settings)
    }

    fn start_on(dir: &Path, api: SocketAddr, dns: SocketAddr, dns_settings: &str) -> Result<Self> {
        let config = dir.join("hub.toml");
        let text = format!(
            "state_dir = \"hub\"\nlisten = \"{api}\"\n\n[dns]\nzone = \"{ZONE}\"\nlisten = [\"{dns}\"]\n{dns_settings}"
        );
        std::fs::write(&config, text)?;
        let ready = dir.join("hub.ready");
        let mut command = Command::new(bin::find("pico-hub")?);
        command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .arg("--ready-file")
            .arg(&ready);
        let log = dir.join("hub.log");
        let is_ready = |line: &str| line.contains(" ready ").then_some(());
        let (daemon, ()) = Daemon::start(&mut command, &log, Duration::from_secs(20), is_ready)?;
        let ready: Ready = serde_json::from_slice(&std::fs::read(ready)?)?;
        let api = ready.api.first().and_then(|api| api.strip_prefix("http://"));
        Ok(Hub {
            daemon,
            dir: dir.to_owned(),
            api: api.context("the hub serves no API")?.parse()?,
            dns: *ready.dns.first().context("the hub answers no DNS")?,
            dns_settings: dns_settings.to_owned(),
        })
    }

    /// Kills it, as a host that goes down does, and starts it again on the same port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        *self = Self::start_on(&self.dir.clone(), self.api, self.dns, &self.dns_settings.clone())?;
        Ok(())
    }

    /// Ends it in order; [`Hub::crash_and_restart`] starts it again.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.stop(Duration::from_secs(20)).map(drop)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Where its API is, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Where its API is, as an address.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where its name server is.
    pub fn dns(&self) -> SocketAddr {
        self.dns
    }

    /// The address of an app by the hub's name server, and how long that took.
    ///
    /// # Errors
    /// When there is no such name.
    pub fn resolve(&self, label: &str) -> Result<(IpAddr, Duration)> {
        let name = format!("{label}.{ZONE}");
        let (found, time) = dns::ask(self.dns, Proto::Udp, &name, dns::Type::A)?;
        let octets = found
            .first()
            .and_then(|data| <[u8; 4]>::try_from(data.as_slice()).ok());
        let address = octets.with_context(|| format!("{name} has no address"))?;
        Ok((address.into(), time))
    }

    /// The text of its first administrator's token.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn admin_token(&self) -> Result<String> {
        let path = self.dir.join("hub/admin.token");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// A file with a token by which one agent can join.
    ///
    /// # Errors
    /// When the hub does not make it.
    pub fn join_token(&self) -> Result<PathBuf> {
        let admin = Bearer::new(&self.admin_token()?)?;
        let request = v1::CreateTokenRequest {
            role: v1::Role::Join.into(),
            ..v1::CreateTokenRequest::default()
        };
        let created = runtime()?.block_on(async {
            let mut tokens = tokens(&self.connect().await?, &admin);
            Ok::<_, anyhow::Error>(tokens.create_token(request).await?.into_inner())
        })?;
        let path = self.dir.join("join.token");
        secret_file(&path)?.write_all(created.secret.as_bytes())?;
        Ok(path)
    }

    /// Somebody who may do with the apps of `owner` what they like.
    ///
    /// # Errors
    /// When the hub does not take them.
    pub fn owner(&self, owner: &str) -> Result<Owner> {
        let admin = self.dir.join("hub/admin.token");
        let admin = Owner::new(&self.dir.join("admin.toml"), &self.url(), &admin, "")?;
        let secret = admin.pico(&["token", "create", "--owner", owner, "-q"])?;
        let token = self.dir.join(format!("{owner}.token"));
        secret_file(&token)?.write_all(secret.trim().as_bytes())?;
        Owner::new(&self.dir.join("pico.toml"), &self.url(), &token, owner)
    }

    /// A connection to its API.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(&self) -> Result<Channel> {
        Ok(Endpoint::from_shared(self.url())?.connect().await?)
    }
}

/// Runs calls on the calling thread, which may be in a network namespace of its own.
///
/// # Errors
/// When the system has no descriptors left.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn secret_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Puts a token into every call.
#[derive(Debug, Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    /// For the token with this text.
    ///
    /// # Errors
    /// When it can be no token.
    pub fn new(token: &str) -> Result<Self> {
        Ok(Bearer(format!("Bearer {token}").parse()?))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Calls that carry a token.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// AppService for the holder of a token.
pub fn apps(channel: &Channel, token: &Bearer) -> AppServiceClient<Authorized> {
    AppServiceClient::with_interceptor(channel.clone(), token.clone())
}

/// TokenService for the holder of a token.
pub fn tokens(channel: &Channel, token: &Bearer) -> TokenServiceClient<Authorized> {
    TokenServiceClient::with_interceptor(channel.clone(), token.clone())
}
