//! A hub that is killed in the middle of calls of every kind: what it acknowledged is there, what it did not is there whole
//! or not at all.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod program;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pico_proto::v1;
use pico_proto::v1::agent_service_client::AgentServiceClient;
use pico_proto::v1::app_service_client::AppServiceClient;
use pico_proto::v1::token_service_client::TokenServiceClient;
use program::{Hub, SOON};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Who call at the same time, each about things of its own.
const CALLERS: usize = 4;
/// Apps of each.
const APPS: usize = 3;

/// Random enough, the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What an owner said of an app last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    memory: u64,
    stopped: bool,
}

/// What an app may be: known, or, after a call without an answer, what it was or what it was to be.
type Maybe = Vec<Option<Said>>;

#[derive(Debug)]
struct Caller {
    number: usize,
    dice: Dice,
    apps: Vec<Maybe>,
    /// Secret and id; whether it is good; `None`: not known.
    tokens: Vec<(String, String, Option<bool>)>,
    /// Agents that have joined, or are gone.
    agents: Vec<(String, Option<bool>)>,
}

impl std::fmt::Debug for Dice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Whether the hub had no chance to answer.
fn broken_off(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal
    )
}

impl Caller {
    fn new(number: usize) -> Self {
        Caller {
            number,
            dice: Dice(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1)),
            apps: vec![vec![None]; APPS],
            tokens: Vec::new(),
            agents: Vec::new(),
        }
    }

    fn handle(&self, app: usize) -> Option<v1::AppHandle> {
        Some(v1::AppHandle {
            owner: format!("owner{}", self.number),
            name: format!("app{app}"),
            ..Default::default()
        })
    }

    fn spec(app: usize, memory: u64) -> Option<v1::AppSpec> {
        Some(v1::AppSpec {
            name: format!("app{app}"),
            root: "host".to_owned(),
            command: vec!["/bin/sleep".to_owned(), "1000".to_owned()],
            ports: vec!["80/tcp".to_owned()],
            memory_bytes: Some(memory),
            ..Default::default()
        })
    }

    /// Calls until the hub is gone.
    async fn call(&mut self, hub: &Hub, channel: Channel, calls: &AtomicUsize) {
        loop {
            let done = match self.dice.roll(10) {
                0 => self.token(hub, channel.clone()).await,
                1 => self.agent(hub, channel.clone()).await,
                _ => self.app(hub, channel.clone()).await,
            };
            match done {
                Ok(()) => calls.fetch_add(1, Ordering::Relaxed),
                Err(status) if broken_off(&status) => return,
                Err(status) => panic!("{status:?}"),
            };
        }
    }

    async fn app(&mut self, hub: &Hub, channel: Channel) -> Result<(), Status> {
        let mut client = AppServiceClient::new(channel);
        let app = usize::try_from(self.dice.roll(APPS as u64)).unwrap();
        let now = self.apps[app][0].clone();
        let memory = (1 << 20) + self.dice.roll(1 << 20);
        let (next, called) = match (&now, self.dice.roll(4)) {
            (None, _) => {
                let request = v1::CreateAppRequest {
                    owner: format!("owner{}", self.number),
                    spec: Self::spec(app, memory),
                    ..Default::default()
                };
                let next = Some(Said {
                    memory,
                    stopped: false,
                });
                self.apps[app].push(next.clone());
                (next, client.create_app(hub.request(request)).await)
            }
            (Some(said), 0) => {
                let request = v1::UpdateAppRequest {
                    app: self.handle(app),
                    spec: Self::spec(app, memory),
                    update_mask: Some(prost_types::FieldMask {
                        paths: vec!["memory_bytes".to_owned()],
                    }),
                    ..Default::default()
                };
                let next = Some(Said {
                    memory,
                    ..said.clone()
                });
                self.apps[app].push(next.clone());
                (next, client.update_app(hub.request(request)).await)
            }
            (Some(said), 1) if said.stopped => {
                let request = v1::StartAppRequest {
                    app: self.handle(app),
                };
                let next = Some(Said {
                    stopped: false,
                    ..said.clone()
                });
                self.apps[app].push(next.clone());
                (next, client.start_app(hub.request(request)).await)
            }
            (Some(said), 1) => {
                let request = v1::StopAppRequest {
                    app: self.handle(app),
                };
                let next = Some(Said {
                    stopped: true,
                    ..said.clone()
                });
                self.apps[app].push(next.clone());
                (next, client.stop_app(hub.request(request)).await)
            }
            (Some(_), _) => {
                let request = v1::DeleteAppRequest {
                    app: self.handle(app),
                    ..Default::default()
                };
                self.apps[app].push(None);
                (None, client.delete_app(hub.request(request)).await)
            }
        };
        called?;
        self.apps[app] = vec![next];
        Ok(())
    }

    async fn token(&mut self, hub: &Hub, channel: Channel) -> Result<(), Status> {
        let mut client = TokenServiceClient::new(channel);
        let good = self.tokens.iter().position(|token| token.2 == Some(true));
        match good.filter(|_| self.dice.roll(2) == 0) {
            Some(token) => {
                self.tokens[token].2 = None;
                let request = v1::RevokeTokenRequest {
                    id: self.tokens[token].1.clone(),
                };
                client.revoke_token(hub.request(request)).await?;
                self.tokens[token].2 = Some(false);
            }
            None => {
                let request = v1::CreateTokenRequest {
                    role: v1::Role::Owner.into(),
                    owner: format!("owner{}", self.number),
                    ..Default::default()
                };
                let made = client.create_token(hub.request(request)).await?.into_inner();
                self.tokens
                    .push((made.secret, made.token.unwrap().id, Some(true)));
            }
        }
        Ok(())
    }

    async fn agent(&mut self, hub: &Hub, channel: Channel) -> Result<(), Status> {
        let mut agents = AgentServiceClient::new(channel.clone());
        let here = self.agents.iter().position(|agent| agent.1 == Some(true));
        if let Some(agent) = here.filter(|_| self.dice.roll(2) == 0) {
            self.agents[agent].1 = None;
            let request = v1::RemoveAgentRequest {
                id: self.agents[agent].0.clone(),
            };
            agents.remove_agent(hub.request(request)).await?;
            self.agents[agent].1 = Some(false);
            return Ok(());
        }
        let request = v1::CreateTokenRequest {
            role: v1::Role::Join.into(),
            ..Default::default()
        };
        let token = TokenServiceClient::new(channel)
            .create_token(hub.request(request))
            .await?;
        let mut join = Request::new(v1::JoinRequest {
            name: format!("host{}-{}", self.number, self.agents.len()),
            host: Some(v1::HostFacts::default()),
        });
        let bearer = format!("Bearer {}", token.into_inner().secret).parse().unwrap();
        join.metadata_mut().insert("authorization", bearer);
        // A name that may be taken is not used again.
        self.agents.push((String::new(), None));
        let joined = agents.join(join).await?.into_inner();
        *self.agents.last_mut().unwrap() = (joined.agent_id, Some(true));
        Ok(())
    }

    /// Compares what the hub has with what it may have, and knows afterwards.
    async fn check(&mut self, hub: &Hub, channel: Channel, agents: &[String]) {
        let mut client = AppServiceClient::new(channel.clone());
        for app in 0..APPS {
            let request = v1::GetAppRequest {
                app: self.handle(app),
            };
            let is = match client.get_app(hub.request(request)).await {
                Ok(answer) => {
                    let is = answer.into_inner();
                    let spec = is.spec.clone().unwrap();
                    let memory = spec.memory_bytes.unwrap();
                    assert_eq!(Some(spec), Self::spec(app, memory), "a half-made app");
                    assert!(!is.id.is_empty() && is.resource_version > 0, "{is:?}");
                    let stopped = is.desired() == v1::Desired::Stopped;
                    Some(Said { memory, stopped })
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::NotFound, "{status:?}");
                    None
                }
            };
            let may = &self.apps[app];
            assert!(
                may.contains(&is),
                "app{app} of {} is {is:?} and not {may:?}",
                self.number
            );
            self.apps[app] = vec![is];
        }
        let mut client = TokenServiceClient::new(channel);
        for (secret, id, good) in &mut self.tokens {
            let mut who = Request::new(v1::WhoAmIRequest {});
            who.metadata_mut()
                .insert("authorization", format!("Bearer {secret}").parse().unwrap());
            let is = match client.who_am_i(who).await {
                Ok(_) => true,
                Err(status) => {
                    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
                    false
                }
            };
            assert!(
                good.is_none_or(|good| good == is),
                "token {id} is {is} and not {good:?}"
            );
            *good = Some(is);
        }
        self.tokens.truncate(20);
        for (id, here) in &mut self.agents {
            let is = agents.contains(id);
            assert!(
                here.is_none_or(|here| here == is),
                "agent {id} is {is} and not {here:?}"
            );
            *here = Some(is);
        }
    }
}

async fn agents(hub: &Hub, channel: Channel) -> Vec<String> {
    let mut client = AgentServiceClient::new(channel);
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListAgentsRequest {
            page_token,
            ..Default::default()
        };
        let page = client
            .list_agents(hub.request(request))
            .await
            .unwrap()
            .into_inner();
        ids.extend(page.agents.into_iter().map(|agent| agent.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_any_call_loses_nothing_acknowledged_and_leaves_nothing_half() {
    let rounds = if std::env::var_os("PICO_SOAK").is_some() {
        200
    } else {
        20
    };
    let dir = tempfile::tempdir().unwrap();
    let mut callers: Vec<Caller> = (0..CALLERS).map(Caller::new).collect();
    let mut dice = Dice(0x1234_5678_9abc_def1);
    for round in 0..=rounds {
        let mut hub = Hub::start(dir.path(), "").await;
        let channel = hub.channel().await;
        let known = agents(&hub, channel.clone()).await;
        for caller in &mut callers {
            caller.check(&hub, channel.clone(), &known).await;
        }
        if round == rounds {
            break;
        }
        let calls = AtomicUsize::new(0);
        // At another place of a call each round.
        let killer = async {
            while calls.load(Ordering::Relaxed) < 20 {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_micros(dice.roll(5000))).await;
            hub.signal("-KILL");
        };
        let [one, two, three, four] = callers.as_mut_slice() else {
            unreachable!("there are {CALLERS} callers");
        };
        let calling = async {
            tokio::join!(
                one.call(&hub, channel.clone(), &calls),
                two.call(&hub, channel.clone(), &calls),
                three.call(&hub, channel.clone(), &calls),
                four.call(&hub, channel.clone(), &calls),
                killer,
            )
        };
        tokio::time::timeout(SOON, calling).await.unwrap();
        hub.child.wait().unwrap();
    }
}
