//! A real hub (`pico-hub serve`) as a background program, and clients of its API.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use pico_proto::v1;
use pico_proto::v1::app_service_client::AppServiceClient;
use pico_proto::v1::token_service_client::TokenServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::{bin, process::Daemon};

/// A running hub; dropping it ends it.
#[derive(Debug)]
pub struct Hub {
    daemon: Daemon,
    dir: PathBuf,
    address: String,
}

impl Hub {
    /// Starts a hub over `DIR/hub` on a port of its choice.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_on(dir, "127.0.0.1:0")
    }

    fn start_on(dir: &Path, listen: &str) -> Result<Self> {
        let config = dir.join("hub.toml");
        std::fs::write(&config, format!("state_dir = \"hub\"\nlisten = \"{listen}\"\n"))?;
        let mut command = Command::new(bin::find("pico-hub")?);
        command.arg("serve").arg("--config").arg(&config);
        let log = dir.join("hub.log");
        let (daemon, address) = Daemon::start(&mut command, &log, Duration::from_secs(20), address_in)?;
        Ok(Hub {
            daemon,
            dir: dir.to_owned(),
            address,
        })
    }

    /// Kills it, as a host that goes down does, and starts it again on the same port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        *self = Self::start_on(&self.dir.clone(), &self.address.clone())?;
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
        format!("http://{}", self.address)
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
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(created.secret.as_bytes())?;
        Ok(path)
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

fn address_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("api=\"http://")?;
    line.contains(" ready ")
        .then(|| rest.split('"').next().unwrap_or_default().to_owned())
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
