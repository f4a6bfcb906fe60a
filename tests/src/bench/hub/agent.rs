//! An agent all of whose apps sleep: it speaks the protocol, runs nothing, and notes when it was told that a client is
//! expected.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use pico_proto::v1;
use pico_proto::v1::agent_message::Kind as Said;
use pico_proto::v1::agent_service_client::AgentServiceClient;
use pico_proto::v1::hub_message::Kind as Heard;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tower::service_fn;

use super::give_way;
use super::stamped::{Came, Stamped};
use crate::harness::hub::{Bearer, Hub, runtime};

/// Messages to the hub that may wait.
const QUEUE: usize = 64;

/// More often than any hub asks for.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What it has heard.
#[derive(Debug, Default)]
struct Known {
    /// Labels by app id.
    labels: HashMap<String, String>,
    /// When the last announcement of an app's client came, by label; since the epoch.
    announced: HashMap<String, Duration>,
}

/// An attached agent; it stays so until the hub ends.
#[derive(Debug, Clone, Default)]
pub(super) struct Sleeper {
    known: Arc<Mutex<Known>>,
    came: Came,
}

impl Sleeper {
    /// Joins the hub and attaches.
    ///
    /// # Errors
    /// When the hub does not take it.
    pub(super) fn attach(hub: &Hub) -> Result<Self> {
        let sleeper = Sleeper::default();
        let join = std::fs::read_to_string(hub.join_token()?)?;
        let join = Bearer::new(join.trim())?;
        let (to, came) = (hub.api(), sleeper.came.clone());
        let connect = service_fn(move |_| {
            let came = came.clone();
            async move { Stamped::connect(to, came).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_shared(hub.url())?;
        let runtime = runtime()?;
        let (say, mut hear) = runtime.block_on(async {
            let channel = endpoint.connect_with_connector(connect).await?;
            let request = v1::JoinRequest {
                name: "sleeper".into(),
                host: None,
            };
            let joined = AgentServiceClient::with_interceptor(channel.clone(), join)
                .join(request)
                .await?
                .into_inner();
            let (say, said) = mpsc::channel(QUEUE);
            say.send(message(Said::Hello(v1::Hello::default()))).await?;
            let attached = AgentServiceClient::with_interceptor(channel, Bearer::new(&joined.credential)?)
                .attach(ReceiverStream::new(said))
                .await?;
            Ok::<_, anyhow::Error>((say, attached.into_inner()))
        })?;
        let own = sleeper.clone();
        std::thread::spawn(move || {
            give_way()?;
            runtime.block_on(async {
                let mut beat = tokio::time::interval(HEARTBEAT);
                loop {
                    let answers = tokio::select! {
                        heard = hear.message() => match heard {
                            Ok(Some(v1::HubMessage { kind: Some(kind) })) => own.hear(kind),
                            _ => return Ok::<(), anyhow::Error>(()),
                        },
                        _ = beat.tick() => vec![Said::Heartbeat(v1::Heartbeat::default())],
                    };
                    for answer in answers {
                        say.send(message(answer)).await?;
                    }
                }
            })
        });
        Ok(sleeper)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, kind: Heard) -> Vec<Said> {
        match kind {
            Heard::Assignment(v1::Assignment { apps, .. }) => {
                apps.into_iter().flat_map(|app| self.asleep(app)).collect()
            }
            Heard::App(app) => self.asleep(app),
            Heard::Prefetch(v1::Prefetch { app_id, .. }) => {
                // What was read together is as late as the last of it.
                let came = self.came.last();
                let mut known = self.known();
                if let Some(label) = known.labels.get(&app_id).cloned() {
                    known.announced.insert(label, came);
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// An app that it is given sleeps at once.
    fn asleep(&self, app: v1::AssignedApp) -> Vec<Said> {
        let mut known = self.known();
        let number = u32::try_from(known.labels.len()).unwrap_or(0);
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 0, 2).to_bits() + number);
        known.labels.insert(app.id.clone(), app.label);
        let report = v1::AppReport {
            app_id: app.id,
            resource_version: app.resource_version,
            state: v1::AppState::Cold.into(),
            reason: "idle".into(),
            ipv4: address.to_string(),
            ..v1::AppReport::default()
        };
        let outcome = v1::Outcome {
            operation_id: app.operation_id,
            ..v1::Outcome::default()
        };
        vec![Said::Report(report), Said::Outcome(outcome)]
    }

    /// When the message came that announced a client of the app with this label, since the epoch.
    ///
    /// # Errors
    /// When none was.
    pub(super) fn announced(&self, label: &str) -> Result<Duration> {
        let known = self.known();
        let at = known.announced.get(label).copied();
        at.with_context(|| format!("nobody told the agent of a client of {label}"))
    }
}

fn message(kind: Said) -> v1::AgentMessage {
    v1::AgentMessage { kind: Some(kind) }
}
