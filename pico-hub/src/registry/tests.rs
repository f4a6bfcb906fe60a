use std::path::Path;

use pico_proto::v1;

use super::*;
use crate::id::{AgentId, AppId, OperationId, TokenId};

fn database(path: &Path) -> Database {
    Database::new(Arc::new(Sqlite::open(path).unwrap()))
}

fn app(owner: &str, name: &str) -> App {
    App {
        id: AppId::random().unwrap(),
        owner: owner.into(),
        spec: v1::AppSpec {
            name: name.into(),
            ports: vec!["80/tcp".into()],
            ..v1::AppSpec::default()
        },
        version: 1,
        desired: v1::Desired::Running,
        state: v1::AppState::Pending,
        reason: "registered".into(),
        since: 5,
        ipv4: Some([10, 77, 0, 2].into()),
        ipv6: None,
        agent: None,
        created: 5,
        figures: None,
    }
}

fn change<T: Send + 'static>(
    database: &Database,
    change: impl FnOnce(&mut dyn Rows) -> Result<T, RegistryError> + Send + 'static,
) -> impl Future<Output = Result<T, RegistryError>> {
    let database = database.clone();
    async move { database.change(change, |_| ()).await }
}

#[tokio::test]
async fn every_row_reads_back_as_it_was_written_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    let mut web = app("ann", "web");
    let agent = Agent {
        id: AgentId::random().unwrap(),
        name: "host1".into(),
        host: v1::HostFacts {
            cpus: 2,
            ..v1::HostFacts::default()
        },
        joined: 1,
        last_heard: 2,
        token: TokenId::random().unwrap(),
    };
    let token = Token {
        id: agent.token,
        hash: [7; 32],
        role: Role::Agent,
        owner: String::new(),
        agent: Some(agent.id),
        note: "n".into(),
        created: 3,
        expires: Some(9),
        revoked: None,
        last_used: None,
    };
    let operation = Operation {
        id: OperationId::random().unwrap(),
        app: web.id,
        owner: "ann".into(),
        verb: "create".into(),
        cold: false,
        created: 4,
        finished: None,
        error: None,
    };
    web.agent = Some(agent.id);
    let event = NewEvent {
        kind: "app.created",
        app: Some(web.id),
        owner: "ann".into(),
        name: "web".into(),
        state: Some(v1::AppState::Pending),
        ..NewEvent::default()
    };
    let rows = (
        web.clone(),
        agent.clone(),
        token.clone(),
        operation.clone(),
        event.clone(),
    );
    let written = database(&path);
    change(&written, move |to| {
        let (web, agent, token, operation, event) = rows;
        to.put_agent(&agent)?;
        to.put_app(&web)?;
        to.put_token(&token)?;
        to.put_operation(&operation)?;
        to.put_request(
            "ann",
            "r",
            Request {
                hash: [1; 32],
                operation: operation.id,
            },
            4,
        )?;
        to.add_event(4, &event)?;
        to.next_serial()
    })
    .await
    .unwrap();
    drop(written);
    let read = database(&path);
    read.read(move |from| {
        assert_eq!(from.app(web.id)?, Some(web.clone()));
        assert_eq!(from.app_named("ann", "web")?, Some(web.clone()));
        assert_eq!(from.busy_apps()?, std::slice::from_ref(&web));
        assert_eq!(from.apps_of(Some(agent.id))?, [web]);
        assert_eq!(from.app_counts()?[&agent.id], 1);
        assert_eq!(from.agent(agent.id)?, Some(agent.clone()));
        assert_eq!(from.agent_named("host1")?, Some(agent));
        assert_eq!(from.token(token.id)?, Some(token));
        assert_eq!(from.operation(operation.id)?, Some(operation.clone()));
        assert_eq!(
            from.open_operations(operation.app)?,
            std::slice::from_ref(&operation)
        );
        let request = from.request("ann", "r")?.unwrap();
        assert_eq!((request.hash, request.operation), ([1; 32], operation.id));
        let events = from.events(&EventFilter::default(), 0, 10)?;
        assert_eq!(
            (events[0].number, &*events[0].kind, events[0].at),
            (1, "app.created", 4)
        );
        assert_eq!(events[0].what.app, event.app);
        assert_eq!(from.serial()?, 2);
        Ok::<_, RegistryError>(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_refused_change_leaves_nothing_and_its_neighbours_everything() {
    let dir = tempfile::tempdir().unwrap();
    let database = database(&dir.path().join("hub.db"));
    let changes = (0..64).map(|number| {
        let row = app("ann", &format!("app{number}"));
        change(&database, move |rows| {
            rows.put_app(&row)?;
            if number % 2 == 0 {
                Ok(())
            } else {
                Err(RegistryError::Closed)
            }
        })
    });
    let outcomes = futures_util::future::join_all(changes).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 32);
    let kept = database
        .read(|rows| rows.apps(None, None, &[], 100))
        .await
        .unwrap();
    assert_eq!(kept.len(), 32);
    assert!(
        kept.iter()
            .all(|app| app.spec.name[3..].parse::<u32>().unwrap() % 2 == 0)
    );
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let database = database(&dir.path().join("hub.db"));
    change(&database, |rows| {
        for number in 0..25 {
            rows.put_app(&app(
                if number % 2 == 0 { "ann" } else { "bob" },
                &format!("app{number:02}"),
            ))?;
        }
        Ok(())
    })
    .await
    .unwrap();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let cursor = after.clone();
        let page = database
            .read(move |rows| rows.apps(cursor.as_ref(), None, &[], 4))
            .await
            .unwrap();
        let Some(last) = page.last() else { break };
        after = Some(Cursor {
            owner: last.owner.clone(),
            name: last.spec.name.clone(),
        });
        seen.extend(page.into_iter().map(|app| app.label()));
    }
    let mut sorted = seen.clone();
    sorted.sort_by_key(|label| label.rsplit('-').next().map(str::to_owned));
    sorted.dedup();
    assert_eq!(seen.len(), 25);
    assert_eq!(sorted, seen);
    let hot = database
        .read(|rows| rows.apps(None, Some("bob"), &[v1::AppState::Hot], 9))
        .await
        .unwrap();
    assert!(hot.is_empty());
    let pending = database
        .read(|rows| rows.apps(None, Some("bob"), &[v1::AppState::Pending], 99))
        .await
        .unwrap();
    assert_eq!(pending.len(), 12);
}

#[test]
fn a_database_of_a_later_release_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.db");
    drop(Sqlite::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 9).unwrap();
    drop(connection);
    assert!(matches!(
        Sqlite::open(&path),
        Err(RegistryError::Newer { found: 9, .. })
    ));
}

#[tokio::test]
async fn tokens_that_ended_long_ago_are_forgotten_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let database = database(&dir.path().join("hub.db"));
    let token = |expires, revoked| Token {
        id: TokenId::random().unwrap(),
        hash: [0; 32],
        role: Role::Owner,
        owner: "ann".into(),
        agent: None,
        note: String::new(),
        created: 1,
        expires,
        revoked,
        last_used: None,
    };
    let kept = [token(None, None), token(Some(100), None), token(None, Some(100))];
    let old = [token(Some(99), None), token(None, Some(99))];
    let all = [kept.as_slice(), &old].concat();
    change(&database, move |rows| {
        all.iter().try_for_each(|token| rows.put_token(token))?;
        rows.prune(100, 10)
    })
    .await
    .unwrap();
    let left = database.read(|rows| rows.tokens(None, 10)).await.unwrap();
    assert_eq!(left.len(), kept.len());
    assert!(kept.iter().all(|token| left.contains(token)));
}
