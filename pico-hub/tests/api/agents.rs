//! Agents that join, are cut off, taken over and slow, and what they find when they are back.

use super::*;

#[tokio::test]
async fn an_agent_that_was_cut_off_finds_everything_when_it_is_back() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut agent = world.agent("host1").await;
    agent.assignment().await;
    let mut apps = world.apps(&ann);
    let created = apps.create_app(create("web", "")).await.unwrap().into_inner();
    let assigned = agent.app().await;
    agent.report(report(&assigned, v1::AppState::Hot)).await;
    agent.done(&created.id, None).await;
    finished(&world, &ann, &created.id).await;

    // A command that it never answers fails when it is gone; what lasts is said again.
    let woken = apps
        .wake_app(v1::WakeAppRequest { app: named("web") })
        .await
        .unwrap()
        .into_inner();
    agent.command().await;
    agent.hear = None;
    agent.say = mpsc::channel(1).0;
    let lost = finished(&world, &ann, &woken.id).await.error.unwrap();
    assert_eq!((lost.reason.as_str(), lost.retryable), ("AGENT_LOST", true));
    let refused = apps
        .wake_app(v1::WakeAppRequest { app: named("web") })
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "AGENT_DISCONNECTED")
    );
    let stopped = apps
        .stop_app(v1::StopAppRequest { app: named("web") })
        .await
        .unwrap()
        .into_inner();
    let other = apps.create_app(create("second", "")).await.unwrap().into_inner();

    let world = world.restart().await;
    agent.channel = world.channel.clone();
    agent.attach(vec![report(&assigned, v1::AppState::Cold)]).await;
    let mut assigned = agent.assignment().await.apps;
    assigned.sort_by_key(|app| app.label.clone());
    assert_eq!(
        assigned.iter().map(|app| &*app.label).collect::<Vec<_>>(),
        ["second-ann", "web-ann"]
    );
    assert_eq!(assigned[0].operation_id, other.id);
    assert_eq!(assigned[1].desired(), v1::Desired::Stopped);
    let command = agent.command().await;
    assert_eq!(
        (command.verb(), &command.operation_id),
        (v1::command::Verb::Stop, &stopped.id)
    );
    agent.done(&stopped.id, None).await;
    assert_eq!(finished(&world, &ann, &stopped.id).await.error, None);

    // A newer stream of the same agent ends the older one.
    let mut older = agent.hear.take().unwrap();
    agent.attach(Vec::new()).await;
    let ended = tokio::time::timeout(SOON, async {
        while older.message().await?.is_some() {}
        Ok::<_, Status>(())
    })
    .await
    .unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Aborted);
    agent.assignment().await;
    let mut agents = AgentServiceClient::with_interceptor(world.channel.clone(), bearer(&world.admin));
    let listed = agents
        .list_agents(v1::ListAgentsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .agents;
    assert_eq!((listed.len(), listed[0].apps, listed[0].connected), (1, 2, true));
    agents
        .remove_agent(v1::RemoveAgentRequest { id: agent.id.clone() })
        .await
        .unwrap();
    let app = world
        .apps(&ann)
        .get_app(v1::GetAppRequest { app: named("second") })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((app.state(), app.agent_id.as_str()), (v1::AppState::Pending, ""));
}

#[tokio::test]
async fn a_join_token_joins_once() {
    let world = World::new().await;
    let join = world.token(v1::Role::Join, "").await;
    let mut agents = AgentServiceClient::with_interceptor(world.channel.clone(), bearer(&join));
    let both = {
        let (mut one, mut two) = (agents.clone(), agents.clone());
        let request = |name: &str| v1::JoinRequest {
            name: name.into(),
            host: None,
        };
        tokio::join!(one.join(request("a")), two.join(request("b")))
    };
    assert_eq!(
        [both.0.is_ok(), both.1.is_ok()]
            .iter()
            .filter(|joined| **joined)
            .count(),
        1
    );
    let third = agents
        .join(v1::JoinRequest {
            name: "c".into(),
            host: None,
        })
        .await
        .unwrap_err();
    assert_eq!(third.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_agent_that_takes_over_its_own_stream_leaves_no_operation_open() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut agent = world.agent("host1").await;
    agent.assignment().await;
    let mut apps = world.apps(&ann);
    let created = apps.create_app(create("web", "")).await.unwrap().into_inner();
    let assigned = agent.app().await;
    agent.report(report(&assigned, v1::AppState::Warm)).await;
    agent.done(&created.id, None).await;
    finished(&world, &ann, &created.id).await;
    let woken = apps
        .wake_app(v1::WakeAppRequest { app: named("web") })
        .await
        .unwrap()
        .into_inner();
    agent.command().await;
    agent.attach(Vec::new()).await;
    let lost = finished(&world, &ann, &woken.id).await.error.unwrap();
    assert_eq!(lost.reason, "AGENT_LOST");
    agent.assignment().await;
    let again = apps
        .wake_app(v1::WakeAppRequest { app: named("web") })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(agent.command().await.operation_id, again.id);
}

#[tokio::test]
async fn an_agent_that_takes_no_messages_is_cut_off_and_finds_them_all_when_it_is_back() {
    const APPS: usize = 5500;
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut agent = world.agent("host1").await;
    agent.assignment().await;
    // It reads nothing from here on.
    let creating = (0..64).map(|client| {
        let mut apps = world.apps(&ann);
        async move {
            for number in (client..APPS).step_by(64) {
                let mut large = create(&format!("app{number}"), "");
                let spec = large.spec.as_mut().unwrap();
                spec.env.insert("PADDING".into(), "x".repeat(4096));
                apps.create_app(large).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(creating).await;
    let woken = world
        .apps(&ann)
        .wake_app(v1::WakeAppRequest { app: named("app0") })
        .await;
    assert_eq!(reason(&woken.unwrap_err()), "AGENT_DISCONNECTED");
    let mut hear = agent.hear.take().unwrap();
    let ended = tokio::time::timeout(SOON, async { while let Ok(Some(_)) = hear.message().await {} });
    ended.await.expect("its stream goes on though it is cut off");
    agent.attach(Vec::new()).await;
    let mut told = 0;
    loop {
        let assignment = agent.assignment().await;
        told += assignment.apps.len();
        if !assignment.more {
            break;
        }
    }
    assert_eq!(told, APPS);
}
