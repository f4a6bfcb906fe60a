//! An app that is registered at the hub comes to run on an agent, serves while the hub is down, is what it was when the hub
//! is back, and is gone without a trace when it is deleted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_proto::v1;
use pico_proto::v1::app_service_client::AppServiceClient;
use pico_proto::v1::operation_service_client::OperationServiceClient;
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::hub::{self, Authorized, Bearer, Hub};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::until;

/// The administrator's calls about ann's app `web`.
struct Ann {
    apps: AppServiceClient<Authorized>,
    operations: OperationServiceClient<Authorized>,
}

impl Ann {
    async fn at(hub: &Hub) -> Result<Self> {
        let admin = Bearer::new(&hub.admin_token()?)?;
        let channel = hub.connect().await?;
        Ok(Ann {
            apps: hub::apps(&channel, &admin),
            operations: OperationServiceClient::with_interceptor(channel, admin),
        })
    }

    fn web() -> Option<v1::AppHandle> {
        Some(v1::AppHandle {
            owner: "ann".into(),
            name: "web".into(),
            ..v1::AppHandle::default()
        })
    }

    async fn done(&mut self, operation: v1::Operation) -> Result<()> {
        let request = v1::WaitOperationRequest { id: operation.id };
        let done = self.operations.wait_operation(request).await?.into_inner();
        ensure!(done.error.is_none(), "{}: {:?}", done.verb, done.error);
        Ok(())
    }

    async fn wait(&mut self, condition: v1::wait_app_request::Condition) -> Result<v1::App> {
        let request = v1::WaitAppRequest {
            app: Self::web(),
            condition: condition.into(),
        };
        Ok(self.apps.wait_app(request).await?.into_inner())
    }
}

#[test]
fn an_app_lives_through_its_hub_and_without_it() -> Result<()> {
    use v1::wait_app_request::Condition;
    let plan = Plan::new("hub")?.hub();
    let config = TestApp::config("web", plan.dir())?;
    plan.run(|rig| {
        let runtime = hub::runtime()?;
        let spec = v1::AppSpec {
            name: "web".into(),
            root: config.root.clone(),
            command: config.command.clone(),
            ports: config.ports.clone(),
            ..v1::AppSpec::default()
        };
        let server = rig.hub.as_mut().context("no hub")?;
        let address = runtime.block_on(async {
            let mut ann = Ann::at(server).await?;
            let create = v1::CreateAppRequest {
                owner: "ann".into(),
                spec: Some(spec),
                ..v1::CreateAppRequest::default()
            };
            let created = ann.apps.create_app(create).await?.into_inner();
            ann.done(created).await?;
            let app = ann.wait(Condition::Hot).await?;
            Ok::<_, anyhow::Error>(app.ipv4)
        })?;
        let app = TestApp::at(address.parse().context(address)?);
        until("the app to listen", Duration::from_secs(20), || {
            Ok(app.ask("ping").ok())
        })?;
        ensure!(app.ask("count")? == "1");
        runtime.block_on(async {
            let mut ann = Ann::at(server).await?;
            let sleep = v1::SleepAppRequest {
                app: Ann::web(),
                to: v1::AppState::Cold.into(),
            };
            let slept = ann.apps.sleep_app(sleep).await?.into_inner();
            ann.done(slept).await?;
            ann.wait(Condition::Cold).await.map(drop)
        })?;

        // Woken, asleep and woken again by what the agent has alone.
        server.stop()?;
        ensure!(app.ask("count")? == "2");
        rig.agent.sleep("web-ann", "warm")?;
        ensure!(app.ask("count")? == "3");

        let server = rig.hub.as_mut().context("no hub")?;
        server.crash_and_restart()?;
        let app = until("the agent to be back", Duration::from_secs(60), || {
            let app = runtime.block_on(async { Ann::at(server).await?.wait(Condition::Hot).await })?;
            Ok(app.agent_connected.then_some(app))
        })?;
        runtime.block_on(async {
            let mut ann = Ann::at(server).await?;
            ensure!(
                app.figures.unwrap_or_default().wakes_cold == 1,
                "its wakes while the hub was down"
            );
            let delete = v1::DeleteAppRequest {
                app: Ann::web(),
                ..v1::DeleteAppRequest::default()
            };
            let deleted = ann.apps.delete_app(delete).await?.into_inner();
            ann.done(deleted).await
        })?;
        let left = rig.store.objects()?;
        ensure!(left.is_empty(), "left in the store: {left:?}");
        ensure!(!rig.agent.cli(&["app", "list"])?.contains("web-ann"));
        Ok(())
    })
}
