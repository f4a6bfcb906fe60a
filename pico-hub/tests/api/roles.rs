//! Who may make which call, what owners reach, and what a token is worth.

use super::*;

#[tokio::test]
async fn every_call_is_made_by_its_roles_and_by_nobody_else() {
    let world = World::new().await;
    let agent = world.agent("host1").await;
    let mut callers: Vec<(Option<Role>, Option<String>)> =
        vec![(None, None), (None, Some("pico_1_2".into()))];
    for role in [Role::Admin, Role::Owner, Role::Join] {
        let owner = if role == Role::Owner { "ann" } else { "" };
        callers.push((Some(role), Some(world.token(role.to_proto(), owner).await)));
    }
    callers.push((Some(Role::Agent), Some(agent.credential.clone())));
    for (path, roles) in CALLS {
        for (role, token) in &callers {
            let mut client = tonic::client::Grpc::new(world.channel.clone());
            client.ready().await.unwrap();
            let mut request = Request::new(tokio_stream::iter([()]));
            if let Some(token) = token {
                let value = format!("Bearer {token}").parse().unwrap();
                request.metadata_mut().insert("authorization", value);
            }
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            let path_of_call = path.parse().unwrap();
            let outcome = client.streaming(request, path_of_call, codec).await;
            let code = match outcome {
                Ok(mut stream) => {
                    // A stream that follows says nothing; what matters was said before.
                    let first =
                        tokio::time::timeout(Duration::from_millis(300), stream.get_mut().message()).await;
                    first.map_or(Code::Ok, |first| {
                        first.map_or_else(|status| status.code(), |_| Code::Ok)
                    })
                }
                Err(status) => status.code(),
            };
            let allowed = role.is_some_and(|role| roles.contains(&role));
            let expected = match role {
                None => Some(Code::Unauthenticated),
                Some(_) if !allowed => Some(Code::PermissionDenied),
                Some(_) => None,
            };
            match expected {
                Some(expected) => assert_eq!(code, expected, "{path} by {role:?}"),
                None => assert!(
                    ![Code::Unauthenticated, Code::PermissionDenied, Code::Unimplemented].contains(&code),
                    "{path} by {role:?}: {code:?}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn an_owner_reaches_nothing_of_another_owner() {
    let world = World::new().await;
    let (ann, bob) = (
        world.token(v1::Role::Owner, "ann").await,
        world.token(v1::Role::Owner, "bob").await,
    );
    let operation = world
        .apps(&ann)
        .create_app(create("web", ""))
        .await
        .unwrap()
        .into_inner();
    let mut theirs = world.apps(&bob);
    let by_id = v1::AppHandle {
        id: operation.app_id.clone(),
        ..v1::AppHandle::default()
    };
    let by_owner = v1::AppHandle {
        owner: "ann".into(),
        name: "web".into(),
        ..v1::AppHandle::default()
    };
    for handle in [by_id, by_owner, named("web").unwrap()] {
        let app = Some(handle);
        let missing = |outcome: Result<(), Status>| assert_eq!(outcome.unwrap_err().code(), Code::NotFound);
        missing(
            theirs
                .get_app(v1::GetAppRequest { app: app.clone() })
                .await
                .map(drop),
        );
        missing(
            theirs
                .stop_app(v1::StopAppRequest { app: app.clone() })
                .await
                .map(drop),
        );
        missing(
            theirs
                .sleep_app(v1::SleepAppRequest {
                    app: app.clone(),
                    to: 0,
                })
                .await
                .map(drop),
        );
        missing(
            theirs
                .explain_app(v1::ExplainAppRequest { app: app.clone() })
                .await
                .map(drop),
        );
        let delete = v1::DeleteAppRequest {
            app: app.clone(),
            ..v1::DeleteAppRequest::default()
        };
        missing(theirs.delete_app(delete).await.map(drop));
        let update = v1::UpdateAppRequest {
            app: app.clone(),
            spec: Some(spec("web")),
            ..v1::UpdateAppRequest::default()
        };
        missing(theirs.update_app(update).await.map(drop));
        let logs = v1::ReadLogsRequest {
            app,
            ..v1::ReadLogsRequest::default()
        };
        missing(theirs.read_logs(logs).await.map(drop));
    }
    assert!(
        theirs
            .list_apps(v1::ListAppsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .apps
            .is_empty()
    );
    let get = v1::GetOperationRequest { id: operation.id };
    assert_eq!(
        world
            .operations(&bob)
            .get_operation(get)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    let mut events = EventServiceClient::with_interceptor(world.channel.clone(), bearer(&bob));
    let past = v1::WatchEventsRequest {
        since: Some(prost_types::Timestamp::default()),
        no_follow: true,
        ..v1::WatchEventsRequest::default()
    };
    let mut stream = events.watch_events(past).await.unwrap().into_inner();
    assert!(
        stream.message().await.unwrap().is_none(),
        "an event of somebody else"
    );
    assert_eq!(
        world
            .apps(&ann)
            .list_apps(v1::ListAppsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .apps
            .len(),
        1
    );
}

#[tokio::test]
async fn the_administrators_token_is_in_a_file_for_its_owner_alone_and_a_revoked_one_is_no_good() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new().await;
    let path = world.dir.path().join("admin.token");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut tokens = TokenServiceClient::with_interceptor(world.channel.clone(), bearer(&world.admin));
    let all = tokens
        .list_tokens(v1::ListTokensRequest::default())
        .await
        .unwrap()
        .into_inner()
        .tokens;
    let of_ann = all.iter().find(|token| token.owner == "ann").unwrap();
    tokens
        .revoke_token(v1::RevokeTokenRequest {
            id: of_ann.id.clone(),
        })
        .await
        .unwrap();
    let refused = world
        .apps(&ann)
        .list_apps(v1::ListAppsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unauthenticated, "TOKEN_REVOKED")
    );
    let mine = all.iter().find(|token| token.role() == v1::Role::Admin).unwrap();
    let own = tokens
        .revoke_token(v1::RevokeTokenRequest { id: mine.id.clone() })
        .await
        .unwrap_err();
    assert_eq!(reason(&own), "OWN_TOKEN");
    let world = world.restart().await;
    assert!(
        world
            .apps(&ann)
            .list_apps(v1::ListAppsRequest::default())
            .await
            .is_err()
    );
}
