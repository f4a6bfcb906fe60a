//! One stream to the hub, from Hello to its end. What the hub sends is begun in the order in which it comes, and its
//! end is awaited aside: nothing that takes long holds up what follows, and a stream that breaks ends nothing that
//! was begun.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use pico_proto::v1;
use pico_proto::v1::agent_message::Kind as Said;
use pico_proto::v1::agent_service_client::AgentServiceClient;
use pico_proto::v1::hub_message::Kind as Heard;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::link::{LinkConfig, LinkError, hello_facts};
use super::report;
use super::spec::{self, Host};
use super::streams::Streams;
use super::{Applying, Apps, Wanted};
use crate::control::protocol::{ErrorCode, Failure};
use crate::lifecycle::registration::Desired;
use crate::lifecycle::state::Tier;

/// Messages that wait to be written.
const QUEUE: usize = 256;
/// The longest message of the hub: an assignment of all apps of a host.
const MAX_MESSAGE: usize = 64 << 20;
/// How often to be heard, where the hub asks for less or nothing sensible.
const HEARTBEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Apps in one Hello.
const HELLO_APPS: usize = 1000;
/// Apps that the hub may assign to one agent.
const MAX_APPS: usize = 1_000_000;
/// Longest name that the hub may give to an app, an owner or an operation.
const MAX_ID: usize = 128;

/// Answers to commands, which outlive a stream.
pub(super) struct Outbox {
    pub sender: mpsc::Sender<v1::AgentMessage>,
    pub receiver: mpsc::Receiver<v1::AgentMessage>,
}

/// Serves one stream until it ends. `served` is set when the hub has taken this agent for its own.
pub(super) async fn run<A: Apps>(
    channel: Channel,
    secret: MetadataValue<Ascii>,
    config: &LinkConfig,
    apps: &Arc<A>,
    outbox: &mut Outbox,
    served: &mut bool,
) -> Result<(), LinkError> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("authorization", secret);
    let names = apps.registered();
    let reports: Vec<v1::AppReport> = names
        .iter()
        .filter_map(|name| apps.look_up(name))
        .map(|app| report::report(&app))
        .collect();
    let hello = {
        let sender = sender.clone();
        let host = hello_facts(config);
        async move {
            for hello in hellos(host, reports) {
                if sender.send(message(Said::Hello(hello))).await.is_err() {
                    return;
                }
            }
        }
    };
    // Beside the call: it is answered when all has been said, which may be more than the queue holds.
    let (attached, ()) = tokio::join!(client.attach(request), hello);
    let mut inbound = attached?.into_inner();
    let assignment = whole_assignment(&mut inbound).await?;
    *served = true;
    let heartbeat = Duration::from_secs(assignment.heartbeat_seconds.into()).clamp(HEARTBEAT.0, HEARTBEAT.1);
    let mut reader = Reader {
        config,
        apps,
        answers: outbox.sender.clone(),
        streams: Streams::new(apps.clone(), sender.clone()),
    };
    let reading = async {
        reader.assignment(assignment).await;
        while let Some(message) = inbound.message().await? {
            reader.heard(message).await;
        }
        Ok(())
    };
    tokio::select! {
        read = reading => read,
        () = write(apps.as_ref(), &sender, &mut outbox.receiver, heartbeat) => Ok(()),
    }
}

/// What the agent is and has, in messages of a size that the hub takes.
fn hellos(host: v1::HostFacts, reports: Vec<v1::AppReport>) -> Vec<v1::Hello> {
    let mut hellos: Vec<v1::Hello> = reports
        .chunks(HELLO_APPS)
        .map(|apps| v1::Hello {
            host: None,
            apps: apps.to_vec(),
            more: true,
        })
        .collect();
    let last = v1::Hello {
        host: Some(host),
        ..hellos.pop().unwrap_or_default()
    };
    hellos.push(v1::Hello { more: false, ..last });
    hellos
}

/// What the hub begins with, from as many messages as it takes.
async fn whole_assignment(
    inbound: &mut tonic::Streaming<v1::HubMessage>,
) -> Result<v1::Assignment, LinkError> {
    let mut whole = v1::Assignment::default();
    loop {
        let said = inbound.message().await?.and_then(|said| said.kind);
        let Some(Heard::Assignment(part)) = said else {
            return Err(LinkError::Protocol("it did not begin with an assignment"));
        };
        whole.apps.extend(part.apps);
        whole.heartbeat_seconds = part.heartbeat_seconds;
        if whole.apps.len() > MAX_APPS {
            return Err(LinkError::Protocol("it assigns more apps than a host can have"));
        }
        if !part.more {
            return Ok(whole);
        }
    }
}

/// Sends what has changed, answers, and heartbeats, until the stream is gone.
async fn write<A: Apps>(
    apps: &A,
    sender: &mpsc::Sender<v1::AgentMessage>,
    answers: &mut mpsc::Receiver<v1::AgentMessage>,
    heartbeat: Duration,
) {
    let changes = apps.changes();
    let mut beat = tokio::time::interval(heartbeat);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Room first: what is taken is sent.
        let Ok(room) = sender.reserve().await else { return };
        tokio::select! {
            // What an app has become is told before the answer to what made it so.
            biased;
            changed = changes.take() => {
                drop(room);
                for app in changed.iter().filter_map(|name| apps.look_up(name)) {
                    if sender.send(message(Said::Report(report::report(&app)))).await.is_err() {
                        return;
                    }
                }
            }
            answer = answers.recv() => match answer {
                Some(answer) => room.send(answer),
                None => return,
            },
            _ = beat.tick() => room.send(message(Said::Heartbeat(v1::Heartbeat {
                memory_available: meminfo("MemAvailable").unwrap_or(0),
            }))),
        }
    }
}

/// Bytes of a line of `/proc/meminfo` (proc_meminfo(5): in kB).
pub(super) fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

pub(super) fn message(kind: Said) -> v1::AgentMessage {
    v1::AgentMessage { kind: Some(kind) }
}

/// Takes what the hub says.
struct Reader<'a, A> {
    config: &'a LinkConfig,
    apps: &'a Arc<A>,
    answers: mpsc::Sender<v1::AgentMessage>,
    streams: Streams<A>,
}

impl<A: Apps> Reader<'_, A> {
    async fn heard(&mut self, message: v1::HubMessage) {
        match message.kind {
            Some(Heard::Assignment(assignment)) => self.assignment(assignment).await,
            Some(Heard::App(app)) => self.app(app).await,
            Some(Heard::Command(command)) => self.command(command),
            Some(Heard::Prefetch(prefetch)) => {
                if let Some(name) = self.apps.name_of(&prefetch.app_id) {
                    self.apps.prefetch(&name, prefetch.wake);
                }
            }
            Some(Heard::Open(open)) => self.streams.open(open),
            Some(Heard::Stream(data)) => self.streams.heard(data),
            // A newer hub's.
            None => {}
        }
    }

    /// All apps that should be here. One that is here and not among them stays as it is: only a tombstone deletes.
    async fn assignment(&mut self, assignment: v1::Assignment) {
        let ids: std::collections::HashSet<&str> =
            assignment.apps.iter().map(|app| app.id.as_str()).collect();
        for name in self.apps.registered() {
            let id = self.apps.look_up(&name).map(|app| app.registration.id);
            if id.is_some_and(|id| !ids.contains(id.as_str())) {
                tracing::error!(
                    app = name,
                    "the hub does not assign this app to this agent any more, and has not deleted it: it stays as it is"
                );
            }
        }
        for app in assignment.apps {
            self.app(app).await;
        }
    }

    /// One app as it should be.
    async fn app(&mut self, app: v1::AssignedApp) {
        let (id, operation) = (app.id.clone(), app.operation_id.clone());
        let deleted = app.desired() == v1::Desired::Deleted;
        match self.begin(app).await {
            Ok(applying) => self.answer(operation, Some(id).filter(|_| deleted), applying),
            Err(failure) => {
                tracing::error!(app = id, error = %failure, "the hub's app cannot be taken over");
                self.say(report::outcome(&operation, Err(failure)));
            }
        }
    }

    async fn begin(&self, app: v1::AssignedApp) -> Result<Applying, Failure> {
        let desired = match app.desired() {
            v1::Desired::Running | v1::Desired::Unspecified => Desired::Running,
            v1::Desired::Stopped => Desired::Stopped,
            v1::Desired::Deleted => Desired::Deleted,
        };
        for id in [&app.id, &app.owner, &app.label] {
            if id.is_empty() || id.len() > MAX_ID {
                return Err(Failure::new(
                    ErrorCode::Usage,
                    "the hub sent an app without a proper id, owner or label",
                ));
            }
        }
        let current = self
            .apps
            .name_of(&app.id)
            .and_then(|name| self.apps.look_up(&name));
        let config = match current {
            // What is known already, or goes, is not checked again: its files may be gone.
            Some(app_here)
                if desired == Desired::Deleted
                    || app_here.registration.resource_version >= app.resource_version =>
            {
                app_here.registration.config
            }
            None if desired == Desired::Deleted => return Ok(Box::pin(async { Ok(()) })),
            _ => {
                let (hub, state_dir) = (self.config.hub.clone(), self.config.state_dir.clone());
                let has_store = self.config.has_store;
                let label = app.label.clone();
                let converted = tokio::task::spawn_blocking(move || {
                    let host = Host {
                        hub: &hub,
                        state_dir: &state_dir,
                        has_store,
                    };
                    spec::convert(&app.spec.unwrap_or_default(), &label, host)
                });
                let failed =
                    |error: tokio::task::JoinError| Failure::new(ErrorCode::Failed, error.to_string());
                converted.await.map_err(failed)??
            }
        };
        let wanted = Wanted {
            id: app.id,
            owner: app.owner,
            resource_version: app.resource_version,
            desired,
            config,
        };
        self.apps.register(wanted).await
    }

    /// Sends an answer when `applying` is done, and that the app is gone, where it was to be.
    fn answer(&self, operation: String, deleted: Option<String>, applying: Applying) {
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let outcome = applying.await;
            if let Some(id) = deleted.filter(|_| outcome.is_ok()) {
                let _ = answers.send(message(Said::Report(report::deleted(&id)))).await;
            }
            if !operation.is_empty() {
                let _ = answers
                    .send(message(Said::Outcome(report::outcome(&operation, outcome))))
                    .await;
            }
        });
    }

    fn command(&self, command: v1::Command) {
        let operation = command.operation_id.clone();
        let Some(name) = self.apps.name_of(&command.app_id) else {
            let failure = Failure::new(ErrorCode::NotFound, "the app is not on this agent");
            return self.say(report::outcome(&operation, Err(failure)));
        };
        let verb = command.verb();
        let apps = self.apps.clone();
        if verb == v1::command::Verb::Explain {
            let answers = self.answers.clone();
            tokio::spawn(async move {
                let outcome = report::explained(&operation, apps.explain(&name).await);
                let _ = answers.send(message(Said::Outcome(outcome))).await;
            });
            return;
        }
        let mut carried_out = Box::pin(async move {
            match verb {
                v1::command::Verb::Start => apps.start(&name).await,
                v1::command::Verb::Stop => apps.stop(&name).await,
                v1::command::Verb::Restart => apps.restart(&name).await,
                v1::command::Verb::SleepWarm => apps.sleep(&name, Tier::Warm, true).await,
                v1::command::Verb::SleepCold => apps.sleep(&name, Tier::Cold, true).await,
                v1::command::Verb::Wake => apps.wake(&name).await,
                v1::command::Verb::Explain | v1::command::Verb::Unspecified => Err(Failure::new(
                    ErrorCode::Unsupported,
                    "this agent does not know the command",
                )),
            }
            .map(drop)
        });
        // Its first step hands it to the app's actor: commands reach an app in the order in which they came.
        match carried_out.as_mut().now_or_never() {
            Some(outcome) => self.say(report::outcome(&operation, outcome)),
            None => self.answer(operation, None, carried_out),
        }
    }

    /// An answer that is there at once. A hub that asks faster than it listens gets none, and asks again.
    fn say(&self, outcome: v1::Outcome) {
        if !outcome.operation_id.is_empty() && self.answers.try_send(message(Said::Outcome(outcome))).is_err()
        {
            tracing::warn!("the hub does not take its answers; one is dropped");
        }
    }
}
