//! Keeps this agent at its hub: joins once, connects, and connects again whenever the stream ends, ever more rarely and
//! never together with all other agents.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pico_proto::v1;
use pico_proto::v1::agent_service_client::AgentServiceClient;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Apps;
use super::channel::{bearer, connect};
use super::config::HubConfig;
use super::credential::{Credential, CredentialError, read_text};
use super::session::{self, Outbox};

/// First and longest wait before connecting again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Answers to the hub that wait for a connection; more operations at a time are refused.
pub(super) const OUTBOX: usize = 1024;

/// Why the hub is not had.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It cannot be connected to.
    #[error("the hub cannot be reached ({})", causes(.0))]
    Transport(#[from] tonic::transport::Error),
    /// It refused, or the stream broke.
    #[error("the hub ended it ({}: {})", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    /// The credential on disk.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// This agent has not joined, and has nothing to join by.
    #[error(
        "this agent has not joined a hub; try: `pico agent join-token` at the hub, then \
         `pico-agent join --token-file FILE`, or join_token_file in [hub] of agent.toml"
    )]
    NoToken,
    /// It said what no hub says.
    #[error("what answers as the hub is none ({0})")]
    Protocol(&'static str),
}

impl From<tonic::Status> for LinkError {
    fn from(status: tonic::Status) -> Self {
        LinkError::Status(Box::new(status))
    }
}

fn causes(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// What the link needs besides the apps.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// `[hub]`
    pub hub: HubConfig,
    /// Where the credential lies.
    pub state_dir: PathBuf,
    /// Whether apps can go cold.
    pub has_store: bool,
    /// What the hub is told of this host.
    pub facts: HostFacts,
}

/// What the hub is told of this host.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// CRIU's version.
    pub criu: String,
    /// Service subnets.
    pub subnets: (String, String),
}

impl HostFacts {
    fn message(&self) -> v1::HostFacts {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        v1::HostFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel.trim().to_owned(),
            criu: self.criu.clone(),
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_bytes: session::meminfo("MemTotal").unwrap_or(0),
            v4: self.subnets.0.clone(),
            v6: self.subnets.1.clone(),
        }
    }
}

/// Stays at the hub until `stop`.
pub async fn keep<A: Apps>(config: LinkConfig, apps: Arc<A>, stop: CancellationToken) {
    let (sender, receiver) = mpsc::channel(OUTBOX);
    let mut outbox = Outbox { sender, receiver };
    let mut pause = BACKOFF.0;
    while !stop.is_cancelled() {
        let mut served = false;
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = once(&config, &apps, &mut outbox, &mut served) => outcome,
        };
        if served {
            pause = BACKOFF.0;
        }
        let wait = jitter(pause);
        match outcome {
            Ok(()) => tracing::info!("the hub ended the stream"),
            Err(error) => tracing::warn!(%error, again_in_ms = wait.as_millis(), "not connected to the hub"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
}

async fn once<A: Apps>(
    config: &LinkConfig,
    apps: &Arc<A>,
    outbox: &mut Outbox,
    served: &mut bool,
) -> Result<(), LinkError> {
    let credential = match Credential::read(&config.state_dir)? {
        Some(credential) => credential,
        None => {
            let file = config.hub.join_token_file.as_ref().ok_or(LinkError::NoToken)?;
            join(config, &read_text(file)?).await?
        }
    };
    let channel = connect(&config.hub).await?;
    let secret = bearer(&credential.secret)?;
    tracing::info!(
        agent = credential.agent_id,
        hub = config.hub.address,
        "connected to the hub"
    );
    session::run(channel, secret, config, apps, outbox, served).await
}

/// Makes this agent known to the hub, by a token that is good for that once, and keeps the credential.
///
/// # Errors
/// [`LinkError`]; nothing is kept then.
pub async fn join(config: &LinkConfig, token: &str) -> Result<Credential, LinkError> {
    let mut client = AgentServiceClient::new(connect(&config.hub).await?);
    let mut request = tonic::Request::new(v1::JoinRequest {
        name: config.hub.agent_name(),
        host: Some(config.facts.message()),
    });
    request.metadata_mut().insert("authorization", bearer(token)?);
    let answer = client.join(request).await?.into_inner();
    if answer.agent_id.is_empty() || answer.credential.is_empty() {
        return Err(LinkError::Protocol("it gave no credential"));
    }
    let credential = Credential {
        agent_id: answer.agent_id,
        secret: answer.credential,
    };
    credential.write(&config.state_dir)?;
    Ok(credential)
}

pub(super) fn hello_facts(config: &LinkConfig) -> v1::HostFacts {
    config.facts.message()
}

/// From half of it to all of it, at random.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1000;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_spread_between_half_and_all_of_the_pause() {
        let pause = Duration::from_secs(8);
        let waits: Vec<Duration> = (0..200).map(|_| jitter(pause)).collect();
        assert!(waits.iter().all(|wait| (pause / 2..=pause).contains(wait)));
        assert!(waits.iter().max() > waits.iter().min());
    }
}
