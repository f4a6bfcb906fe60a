//! Rows from and to SQLite's tables. Statements are prepared once per connection.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

use pico_proto::v1;
use prost::Message;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Params, Row, params};

use super::failed;
use crate::id::{AgentId, AppId, Id, OperationId, TokenId};
use crate::registry::{
    Agent, App, Cursor, Event, EventFilter, NewEvent, Operation, RegistryError, Request, Role, Rows, Token,
};

/// The tables of one transaction.
pub(super) struct Tables<'a>(pub &'a Connection);

type Result<T> = std::result::Result<T, RegistryError>;
type Read<T> = rusqlite::Result<T>;

impl Tables<'_> {
    fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Read<T>,
    ) -> Result<Option<T>> {
        let mut statement = self.0.prepare_cached(sql).map_err(failed)?;
        statement.query_row(params, read).optional().map_err(failed)
    }

    fn many<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> Read<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.0.prepare_cached(sql).map_err(failed)?;
        let rows = statement.query_map(params, read).map_err(failed)?;
        rows.collect::<Read<_>>().map_err(failed)
    }

    fn run(&self, sql: &str, params: impl Params) -> Result<()> {
        let mut statement = self.0.prepare_cached(sql).map_err(failed)?;
        statement.execute(params).map(drop).map_err(failed)
    }
}

/// A value that is not what this release writes.
fn damaged(column: usize, reason: impl Display) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, reason.to_string().into())
}

fn message<M: Message + Default>(row: &Row<'_>, column: usize) -> Read<M> {
    let bytes = row
        .get_ref(column)?
        .as_blob()
        .map_err(|error| damaged(column, error))?;
    M::decode(bytes).map_err(|error| damaged(column, error))
}

fn maybe_message<M: Message + Default>(row: &Row<'_>, column: usize) -> Read<Option<M>> {
    match row.get_ref(column)?.as_blob_or_null() {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => M::decode(bytes).map(Some).map_err(|error| damaged(column, error)),
        Err(error) => Err(damaged(column, error)),
    }
}

fn id<K>(row: &Row<'_>, column: usize) -> Read<Id<K>> {
    row.get(column).map(Id::from_number)
}

fn maybe_id<K>(row: &Row<'_>, column: usize) -> Read<Option<Id<K>>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Id::from_number))
}

fn number<K>(id: Option<Id<K>>) -> Option<i64> {
    id.map(Id::number)
}

fn variant<E: TryFrom<i32>>(row: &Row<'_>, column: usize) -> Read<E> {
    E::try_from(row.get(column)?).map_err(|_| damaged(column, "an unknown variant"))
}

fn maybe_parsed<T: FromStr>(row: &Row<'_>, column: usize) -> Read<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|_| damaged(column, "text of another form")))
        .transpose()
}

fn unsigned(row: &Row<'_>, column: usize) -> Read<u64> {
    u64::try_from(row.get::<_, i64>(column)?).map_err(|error| damaged(column, error))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

const APP: &str =
    "id, owner, spec, version, desired, state, reason, since, ipv4, ipv6, agent, created, figures";

fn app(row: &Row<'_>) -> Read<App> {
    Ok(App {
        id: id(row, 0)?,
        owner: row.get(1)?,
        spec: message(row, 2)?,
        version: unsigned(row, 3)?,
        desired: variant(row, 4)?,
        state: variant(row, 5)?,
        reason: row.get(6)?,
        since: row.get(7)?,
        ipv4: maybe_parsed(row, 8)?,
        ipv6: maybe_parsed(row, 9)?,
        agent: maybe_id(row, 10)?,
        created: row.get(11)?,
        figures: maybe_message(row, 12)?,
    })
}

const AGENT: &str = "id, name, host, joined, last_heard, token";

fn agent(row: &Row<'_>) -> Read<Agent> {
    Ok(Agent {
        id: id(row, 0)?,
        name: row.get(1)?,
        host: message(row, 2)?,
        joined: row.get(3)?,
        last_heard: row.get(4)?,
        token: id(row, 5)?,
    })
}

const TOKEN: &str = "id, hash, role, owner, agent, note, created, expires, revoked, last_used";

fn token(row: &Row<'_>) -> Read<Token> {
    Ok(Token {
        id: id(row, 0)?,
        hash: row.get(1)?,
        role: Role::from_proto(row.get(2)?).ok_or_else(|| damaged(2, "an unknown role"))?,
        owner: row.get(3)?,
        agent: maybe_id(row, 4)?,
        note: row.get(5)?,
        created: row.get(6)?,
        expires: row.get(7)?,
        revoked: row.get(8)?,
        last_used: row.get(9)?,
    })
}

const OPERATION: &str = "id, app, owner, verb, cold, created, finished, error";

fn operation(row: &Row<'_>) -> Read<Operation> {
    Ok(Operation {
        id: id(row, 0)?,
        app: id(row, 1)?,
        owner: row.get(2)?,
        verb: row.get(3)?,
        cold: row.get(4)?,
        created: row.get(5)?,
        finished: row.get(6)?,
        error: maybe_message(row, 7)?,
    })
}

fn event(row: &Row<'_>) -> Read<Event> {
    Ok(Event {
        number: unsigned(row, 0)?,
        at: row.get(1)?,
        kind: row.get(2)?,
        what: NewEvent {
            kind: "",
            app: maybe_id(row, 3)?,
            owner: row.get(4)?,
            name: row.get(5)?,
            agent: maybe_id(row, 6)?,
            state: row
                .get::<_, Option<i32>>(7)?
                .map(|state| v1::AppState::try_from(state).map_err(|error| damaged(7, error)))
                .transpose()?,
            reason: row.get(8)?,
            request: row.get(9)?,
            operation: maybe_id(row, 10)?,
        },
    })
}

impl Rows for Tables<'_> {
    fn app(&mut self, id: AppId) -> Result<Option<App>> {
        self.one(
            &format!("SELECT {APP} FROM apps WHERE id = ?1"),
            [id.number()],
            app,
        )
    }

    fn app_named(&mut self, owner: &str, name: &str) -> Result<Option<App>> {
        let sql = format!("SELECT {APP} FROM apps WHERE owner = ?1 AND name = ?2");
        self.one(&sql, [owner, name], app)
    }

    fn apps(
        &mut self,
        after: Option<&Cursor>,
        owner: Option<&str>,
        states: &[v1::AppState],
        limit: usize,
    ) -> Result<Vec<App>> {
        // One bit for each state, so that the statement is always the same.
        let wanted = states
            .iter()
            .fold(0i64, |bits, state| bits | 1 << i32::from(*state));
        let sql = format!(
            "SELECT {APP} FROM apps WHERE (owner, name) > (?1, ?2) AND (?3 IS NULL OR owner = ?3) \
             AND (?4 = 0 OR ?4 & (1 << state)) ORDER BY owner, name LIMIT ?5"
        );
        let (last_owner, last_name) = after.map_or(("", ""), |cursor| (&*cursor.owner, &*cursor.name));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.many(&sql, params![last_owner, last_name, owner, wanted, limit], app)
    }

    fn apps_of(&mut self, agent: Option<AgentId>) -> Result<Vec<App>> {
        let sql = format!("SELECT {APP} FROM apps WHERE agent IS ?1 ORDER BY created, id");
        self.many(&sql, [number(agent)], app)
    }

    fn busy_apps(&mut self) -> Result<Vec<App>> {
        let sql = format!(
            "SELECT {APP} FROM apps WHERE id IN (SELECT app FROM operations WHERE finished IS NULL) \
             ORDER BY created, id"
        );
        self.many(&sql, [], app)
    }

    fn put_app(&mut self, app: &App) -> Result<()> {
        self.run(
            "INSERT INTO apps (id, owner, name, spec, version, desired, state, reason, since, ipv4, ipv6, agent, \
             created, figures) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14) \
             ON CONFLICT (id) DO UPDATE SET spec = ?4, version = ?5, desired = ?6, state = ?7, reason = ?8, \
             since = ?9, ipv4 = ?10, ipv6 = ?11, agent = ?12, figures = ?14",
            params![
                app.id.number(),
                app.owner,
                app.spec.name,
                app.spec.encode_to_vec(),
                signed(app.version),
                i32::from(app.desired),
                i32::from(app.state),
                app.reason,
                app.since,
                app.ipv4.map(|address| address.to_string()),
                app.ipv6.map(|address| address.to_string()),
                number(app.agent),
                app.created,
                app.figures.as_ref().map(Message::encode_to_vec),
            ],
        )
    }

    fn delete_app(&mut self, id: AppId) -> Result<()> {
        self.run("DELETE FROM apps WHERE id = ?1", [id.number()])
    }

    fn app_counts(&mut self) -> Result<HashMap<AgentId, u64>> {
        let sql = "SELECT agent, count(*) FROM apps WHERE agent IS NOT NULL GROUP BY agent";
        let counts = self.many(sql, [], |row| Ok((id(row, 0)?, unsigned(row, 1)?)))?;
        Ok(counts.into_iter().collect())
    }

    fn agent(&mut self, id: AgentId) -> Result<Option<Agent>> {
        self.one(
            &format!("SELECT {AGENT} FROM agents WHERE id = ?1"),
            [id.number()],
            agent,
        )
    }

    fn agent_named(&mut self, name: &str) -> Result<Option<Agent>> {
        self.one(
            &format!("SELECT {AGENT} FROM agents WHERE name = ?1"),
            [name],
            agent,
        )
    }

    fn agents(&mut self, after: &str, limit: usize) -> Result<Vec<Agent>> {
        let sql = format!("SELECT {AGENT} FROM agents WHERE name > ?1 ORDER BY name LIMIT ?2");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.many(&sql, params![after, limit], agent)
    }

    fn put_agent(&mut self, agent: &Agent) -> Result<()> {
        self.run(
            "INSERT INTO agents (id, name, host, joined, last_heard, token) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT (id) DO UPDATE SET host = ?3, last_heard = ?5, token = ?6",
            params![
                agent.id.number(),
                agent.name,
                agent.host.encode_to_vec(),
                agent.joined,
                agent.last_heard,
                agent.token.number(),
            ],
        )
    }

    fn delete_agent(&mut self, id: AgentId) -> Result<()> {
        self.run("DELETE FROM agents WHERE id = ?1", [id.number()])
    }

    fn token(&mut self, id: TokenId) -> Result<Option<Token>> {
        self.one(
            &format!("SELECT {TOKEN} FROM tokens WHERE id = ?1"),
            [id.number()],
            token,
        )
    }

    fn tokens(&mut self, after: Option<TokenId>, limit: usize) -> Result<Vec<Token>> {
        let created: Option<i64> = match after {
            Some(after) => self.one(
                "SELECT created FROM tokens WHERE id = ?1",
                [after.number()],
                |row| row.get(0),
            )?,
            None => None,
        };
        let sql = format!(
            "SELECT {TOKEN} FROM tokens WHERE ?1 IS NULL OR (created, id) > (?1, ?2) ORDER BY created, id LIMIT ?3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.many(&sql, params![created, number(after), limit], token)
    }

    fn put_token(&mut self, token: &Token) -> Result<()> {
        self.run(
            "INSERT INTO tokens (id, hash, role, owner, agent, note, created, expires, revoked, last_used) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
             ON CONFLICT (id) DO UPDATE SET expires = ?8, revoked = ?9, last_used = ?10",
            params![
                token.id.number(),
                token.hash,
                i32::from(token.role.to_proto()),
                token.owner,
                number(token.agent),
                token.note,
                token.created,
                token.expires,
                token.revoked,
                token.last_used,
            ],
        )
    }

    fn operation(&mut self, id: OperationId) -> Result<Option<Operation>> {
        let sql = format!("SELECT {OPERATION} FROM operations WHERE id = ?1");
        self.one(&sql, [id.number()], operation)
    }

    fn open_operations(&mut self, app: AppId) -> Result<Vec<Operation>> {
        let sql = format!(
            "SELECT {OPERATION} FROM operations WHERE app = ?1 AND finished IS NULL ORDER BY created, rowid"
        );
        self.many(&sql, [app.number()], operation)
    }

    fn put_operation(&mut self, operation: &Operation) -> Result<()> {
        self.run(
            "INSERT INTO operations (id, app, owner, verb, cold, created, finished, error) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
             ON CONFLICT (id) DO UPDATE SET finished = ?7, error = ?8",
            params![
                operation.id.number(),
                operation.app.number(),
                operation.owner,
                operation.verb,
                operation.cold,
                operation.created,
                operation.finished,
                operation.error.as_ref().map(Message::encode_to_vec),
            ],
        )
    }

    fn request(&mut self, owner: &str, id: &str) -> Result<Option<Request>> {
        let sql = "SELECT hash, operation FROM requests WHERE owner = ?1 AND id = ?2";
        self.one(sql, [owner, id], |row| {
            Ok(Request {
                hash: row.get(0)?,
                operation: self::id(row, 1)?,
            })
        })
    }

    fn put_request(&mut self, owner: &str, id: &str, request: Request, at: i64) -> Result<()> {
        self.run(
            "INSERT INTO requests (owner, id, hash, operation, at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![owner, id, request.hash, request.operation.number(), at],
        )
    }

    fn add_event(&mut self, at: i64, event: &NewEvent) -> Result<u64> {
        self.run(
            "INSERT INTO events (at, kind, app, owner, name, agent, state, reason, request, operation) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                at,
                event.kind,
                number(event.app),
                event.owner,
                event.name,
                number(event.agent),
                event.state.map(i32::from),
                event.reason,
                event.request,
                number(event.operation),
            ],
        )?;
        Ok(u64::try_from(self.0.last_insert_rowid()).unwrap_or(0))
    }

    fn events(&mut self, filter: &EventFilter, after: u64, limit: usize) -> Result<Vec<Event>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.many(
            "SELECT number, at, kind, app, owner, name, agent, state, reason, request, operation FROM events \
             WHERE number > ?1 AND (?2 IS NULL OR owner = ?2) AND (?3 IS NULL OR app = ?3) \
             AND (?4 IS NULL OR at >= ?4) ORDER BY number LIMIT ?5",
            params![
                signed(after),
                filter.owner,
                number(filter.app),
                filter.since,
                limit
            ],
            event,
        )
    }

    fn event_range(&mut self) -> Result<(u64, u64)> {
        let sql = "SELECT coalesce(min(number), 0), coalesce(max(number), 0) FROM events";
        let range = self.one(sql, [], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?;
        Ok(range.unwrap_or_default())
    }

    fn next_serial(&mut self) -> Result<u32> {
        // Serial numbers wrap around (RFC 1982).
        self.run("UPDATE zone SET serial = (serial + 1) & 0xffffffff", [])?;
        self.serial()
    }

    fn serial(&mut self) -> Result<u32> {
        let serial = self.one("SELECT serial FROM zone", [], |row| row.get(0))?;
        serial.ok_or_else(|| RegistryError::Damaged {
            what: "zone",
            reason: "it has no serial number".into(),
        })
    }

    fn prune(&mut self, before: i64, events: u64) -> Result<()> {
        self.run("DELETE FROM operations WHERE finished < ?1", [before])?;
        self.run("DELETE FROM requests WHERE at < ?1", [before])?;
        self.run("DELETE FROM tokens WHERE expires < ?1 OR revoked < ?1", [before])?;
        let sql = "DELETE FROM events WHERE number <= (SELECT max(number) FROM events) - ?1";
        self.run(sql, [signed(events)])
    }
}
