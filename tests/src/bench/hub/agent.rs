//! An agent all of whose apps sleep: it speaks the protocol, runs nothing, and notes when it was told that a client is
//! expected.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pico_proto::v1;
use pico_proto::v1::agent_message::Kind as Said;
use pico_proto::v1::agent_service_client::AgentServiceClient;
use pico_proto::v1::hub_message::Kind as Heard;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

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
    /// When a client of an app was announced last, by label.
    announced: HashMap<String, Instant>,
}

/// An attached agent; it stays so until the hub ends.
#[derive(Debug, Clone, Default)]
pub(super) struct Sleeper(Arc<Mutex<Known>>);

impl Sleeper {
    /// Joins the hub and attaches.
    ///
    /// # Errors
    /// When the hub does not take it.
    pub(super) fn attach(hub: &Hub) -> Result<Self> {
        let sleeper = Sleeper::default();
        let join = std::fs::read_to_string(hub.join_token()?)?;
        let join = Bearer::new(join.trim())?;
        let endpoint = Endpoint::from_shared(hub.url())?;
        let runtime = runtime()?;
        let (say, mut hear) = runtime.block_on(async {
            let channel = endpoint.connect().await?;
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
            runtime.block_on(async {
                let mut beat = tokio::time::interval(HEARTBEAT);
                loop {
                    let answers = tokio::select! {
                        heard = hear.message() => match heard {
                            Ok(Some(v1::HubMessage { kind: Some(kind) })) => own.hear(kind),
                            _ => return,
                        },
                        _ = beat.tick() => vec![Said::Heartbeat(v1::Heartbeat::default())],
                    };
                    for answer in answers {
                        if say.send(message(answer)).await.is_err() {
                            return;
                        }
                    }
                }
            });
        });
        Ok(sleeper)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, kind: Heard) -> Vec<Said> {
        match kind {
            Heard::Assignment(v1::Assignment { apps, .. }) => {
                apps.into_iter().flat_map(|app| self.asleep(app)).collect()
            }
            Heard::App(app) => self.asleep(app),
            Heard::Prefetch(v1::Prefetch { app_id, .. }) => {
                let now = Instant::now();
                let mut known = self.known();
                if let Some(label) = known.labels.get(&app_id).cloned() {
                    known.announced.insert(label, now);
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

    /// When a client of the app with this label was announced.
    ///
    /// # Errors
    /// When none was.
    pub(super) fn announced(&self, label: &str) -> Result<Instant> {
        let known = self.known();
        let at = known.announced.get(label).copied();
        at.with_context(|| format!("nobody told the agent of a client of {label}"))
    }
}

fn message(kind: Said) -> v1::AgentMessage {
    v1::AgentMessage { kind: Some(kind) }
}
