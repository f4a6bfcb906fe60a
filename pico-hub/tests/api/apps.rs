//! Apps from their creation to their end, and the events that tell of them.

use super::*;

#[tokio::test]
async fn the_same_request_makes_one_app_and_another_under_its_id_is_refused() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut apps = world.apps(&ann);
    let first = apps.create_app(create("web", "r1")).await.unwrap().into_inner();
    let again = apps.create_app(create("web", "r1")).await.unwrap().into_inner();
    assert_eq!((&first.id, &first.app_id), (&again.id, &again.app_id));
    let other = apps.create_app(create("web2", "r1")).await.unwrap_err();
    assert_eq!(reason(&other), "REQUEST_ID_REUSED");
    let taken = apps.create_app(create("web", "r2")).await.unwrap_err();
    assert_eq!(
        (taken.code(), reason(&taken).as_str()),
        (Code::AlreadyExists, "NAME_TAKEN")
    );
    let mut wrong = create("Web", "");
    wrong.spec.as_mut().unwrap().ports = vec!["eighty".into()];
    let refused = apps.create_app(wrong).await.unwrap_err();
    let fields = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(
        fields
            .iter()
            .map(|field| field.field.as_str())
            .collect::<Vec<_>>(),
        ["spec.name", "spec.ports"]
    );
    let mut only_checked = create("web3", "r3");
    only_checked.validate_only = true;
    assert!(apps.create_app(only_checked).await.unwrap().into_inner().done);
    let all = apps
        .list_apps(v1::ListAppsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .apps;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].dns_name, "web-ann.pico.test");
}

#[tokio::test]
async fn an_app_goes_to_an_agent_is_reported_named_commanded_and_deleted() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut apps = world.apps(&ann);
    // Before there is an agent it waits for one.
    let created = apps.create_app(create("web", "")).await.unwrap().into_inner();
    let mut agent = world.agent("host1").await;
    let assigned = agent.assignment().await.apps.remove(0);
    assert_eq!(
        (assigned.label.as_str(), &assigned.operation_id),
        ("web-ann", &created.id)
    );
    agent.report(report(&assigned, v1::AppState::Hot)).await;
    agent.done(&created.id, None).await;
    assert_eq!(finished(&world, &ann, &created.id).await.error, None);
    let wait = v1::WaitAppRequest {
        app: named("web"),
        condition: v1::wait_app_request::Condition::Hot.into(),
    };
    let app = tokio::time::timeout(SOON, apps.wait_app(wait))
        .await
        .unwrap()
        .unwrap()
        .into_inner();
    assert_eq!((app.ipv4.as_str(), app.agent_connected), ("10.77.0.2", true));
    let entry = world.hub.lookup("web-ann").unwrap();
    assert_eq!(entry.ipv4, Some([10, 77, 0, 2].into()));
    assert!(world.hub.prefetch(&entry, false));
    assert!(matches!(agent.next().await.unwrap(), Heard::Prefetch(_)));

    let slept = apps
        .sleep_app(v1::SleepAppRequest {
            app: named("web"),
            to: 0,
        })
        .await
        .unwrap()
        .into_inner();
    let command = agent.command().await;
    assert_eq!(
        (command.verb(), &command.operation_id),
        (v1::command::Verb::SleepWarm, &slept.id)
    );
    let busy = v1::OperationError {
        reason: "BUSY".into(),
        message: "it is asked".into(),
        ..v1::OperationError::default()
    };
    agent.done(&slept.id, Some(busy.clone())).await;
    assert_eq!(finished(&world, &ann, &slept.id).await.error, Some(busy));

    let update = v1::UpdateAppRequest {
        app: named("web"),
        spec: Some(v1::AppSpec {
            ports: vec!["8080/tcp".into()],
            ..v1::AppSpec::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["ports".into()],
        }),
        resource_version: app.resource_version,
        ..v1::UpdateAppRequest::default()
    };
    apps.update_app(update.clone()).await.unwrap();
    let changed = agent.app().await;
    assert_eq!(changed.spec.unwrap().ports, ["8080/tcp"]);
    assert_eq!(
        reason(&apps.update_app(update).await.unwrap_err()),
        "CHANGED_MEANWHILE"
    );

    let delete = v1::DeleteAppRequest {
        app: named("web"),
        request_id: "once".into(),
        ..v1::DeleteAppRequest::default()
    };
    let deleted = apps.delete_app(delete.clone()).await.unwrap().into_inner();
    assert_eq!(agent.app().await.desired(), v1::Desired::Deleted);
    agent.done(&deleted.id, None).await;
    // What it says of others' apps, and of none, changes nothing.
    agent
        .report(v1::AppReport {
            app_id: "app-0000000000000001".into(),
            deleted: true,
            ..v1::AppReport::default()
        })
        .await;
    agent
        .report(v1::AppReport {
            deleted: true,
            ..report(&assigned, v1::AppState::Deleting)
        })
        .await;
    assert_eq!(finished(&world, &ann, &deleted.id).await.error, None);
    assert!(world.hub.lookup("web-ann").is_none());
    assert!(
        apps.list_apps(v1::ListAppsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .apps
            .is_empty()
    );
    // Whoever did not hear the answer asks again, and does not delete what has the name now.
    apps.create_app(create("web", "")).await.unwrap();
    let again = apps.delete_app(delete.clone()).await.unwrap().into_inner();
    assert_eq!((&again.id, again.done), (&deleted.id, true));
    assert!(world.hub.lookup("web-ann").is_some());
    let other = v1::DeleteAppRequest {
        app: named("another"),
        ..delete
    };
    assert_eq!(
        reason(&apps.delete_app(other).await.unwrap_err()),
        "REQUEST_ID_REUSED"
    );
}

#[tokio::test]
async fn events_go_on_where_their_reader_left_off_over_a_restart_too() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    world.apps(&ann).create_app(create("one", "r")).await.unwrap();
    let follow = |world: &World, after| {
        let mut events = EventServiceClient::with_interceptor(world.channel.clone(), bearer(&ann));
        let request = v1::WatchEventsRequest {
            after,
            since: Some(prost_types::Timestamp::default()),
            ..v1::WatchEventsRequest::default()
        };
        async move { events.watch_events(request).await.unwrap().into_inner() }
    };
    let mut stream = follow(&world, 0).await;
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(
        (
            first.kind.as_str(),
            first.app_name.as_str(),
            first.request_id.as_str()
        ),
        ("app.created", "one", "r")
    );
    drop(stream);
    let world = world.restart().await;
    let mut stream = follow(&world, first.number).await;
    world.apps(&ann).create_app(create("two", "")).await.unwrap();
    let next = tokio::time::timeout(SOON, stream.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        (next.kind.as_str(), next.app_name.as_str()),
        ("app.created", "two")
    );
    assert!(next.number > first.number);
}
