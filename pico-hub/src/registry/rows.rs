//! The rows of the hub's database, and what a transaction can do with them. Times are microseconds since 1970.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use pico_proto::v1;

use super::RegistryError;
use crate::id::{AgentId, AppId, OperationId, TokenId};

/// A registered app.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    /// Given by the hub, never used again.
    pub id: AppId,
    /// Whose it is.
    pub owner: String,
    /// As its owner wrote it, checked.
    pub spec: v1::AppSpec,
    /// Grows with each change of `spec` or `desired`.
    pub version: u64,
    /// What its owner last asked for.
    pub desired: v1::Desired,
    /// As last heard.
    pub state: v1::AppState,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: i64,
    /// Service addresses; none until an agent has it.
    pub ipv4: Option<Ipv4Addr>,
    /// See `ipv4`.
    pub ipv6: Option<Ipv6Addr>,
    /// Which agent has it.
    pub agent: Option<AgentId>,
    /// When it was registered.
    pub created: i64,
    /// What its agent counted.
    pub figures: Option<v1::AppFigures>,
}

impl App {
    /// `NAME-OWNER`: its label in DNS, and its name on its agent.
    pub fn label(&self) -> String {
        label(&self.spec.name, &self.owner)
    }
}

/// `NAME-OWNER`
pub fn label(name: &str, owner: &str) -> String {
    format!("{name}-{owner}")
}

/// A host that serves apps.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Given by the hub.
    pub id: AgentId,
    /// Unique among agents.
    pub name: String,
    /// What it said of itself.
    pub host: v1::HostFacts,
    /// When it joined.
    pub joined: i64,
    /// When it last said something.
    pub last_heard: i64,
    /// Its credential.
    pub token: TokenId,
}

/// What a caller may do at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything.
    Admin,
    /// One owner's apps.
    Owner,
    /// To join once as an agent.
    Join,
    /// To attach as one agent.
    Agent,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Admin, Role::Owner, Role::Join, Role::Agent];

    /// As the API writes it.
    pub fn to_proto(self) -> v1::Role {
        match self {
            Role::Admin => v1::Role::Admin,
            Role::Owner => v1::Role::Owner,
            Role::Join => v1::Role::Join,
            Role::Agent => v1::Role::Agent,
        }
    }

    /// From the API's number; none for one that it does not know.
    pub fn from_proto(role: i32) -> Option<Role> {
        Role::ALL
            .into_iter()
            .find(|known| i32::from(known.to_proto()) == role)
    }
}

/// A token: what the hub keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id, which its text names.
    pub id: TokenId,
    /// Of its secret.
    pub hash: [u8; 32],
    /// What its holder may do.
    pub role: Role,
    /// Of [`Role::Owner`]: whose apps.
    pub owner: String,
    /// Of [`Role::Agent`]: which agent.
    pub agent: Option<AgentId>,
    /// For people.
    pub note: String,
    /// When it was made.
    pub created: i64,
    /// From then on it is no good.
    pub expires: Option<i64>,
    /// When it was taken back, or used up.
    pub revoked: Option<i64>,
    /// When it was last seen, to the minute.
    pub last_used: Option<i64>,
}

/// A change that somebody asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Given by the hub.
    pub id: OperationId,
    /// Of which app.
    pub app: AppId,
    /// Whose app.
    pub owner: String,
    /// `create`, `update`, `delete`, `start`, `stop`, `restart`, `sleep`, `wake`.
    pub verb: String,
    /// Of `sleep`: to cold.
    pub cold: bool,
    /// When it was asked for.
    pub created: i64,
    /// When it was done, well or not.
    pub finished: Option<i64>,
    /// Why not.
    pub error: Option<v1::OperationError>,
}

/// A request that must not be carried out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Of all that was asked.
    pub hash: [u8; 32],
    /// What it became.
    pub operation: OperationId,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewEvent {
    /// As `event.proto` lists them.
    pub kind: &'static str,
    /// Of which app.
    pub app: Option<AppId>,
    /// Whose app; empty for what only administrators see.
    pub owner: String,
    /// The app's name.
    pub name: String,
    /// Of, or on, which agent.
    pub agent: Option<AgentId>,
    /// How the app is now.
    pub state: Option<v1::AppState>,
    /// Why.
    pub reason: String,
    /// Of the call that caused it.
    pub request: String,
    /// Which operation it belongs to.
    pub operation: Option<OperationId>,
}

/// An event that has its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// One more than the one before.
    pub number: u64,
    /// When.
    pub at: i64,
    /// As `event.proto` lists them.
    pub kind: String,
    /// The rest, but for the kind.
    pub what: NewEvent,
}

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Of this owner alone.
    pub owner: Option<String>,
    /// Of this app alone.
    pub app: Option<AppId>,
    /// Not before.
    pub since: Option<i64>,
}

/// Where a page of apps begins: after this owner and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Owner of the last app of the page before.
    pub owner: String,
    /// Its name.
    pub name: String,
}

type Result<T> = std::result::Result<T, RegistryError>;

/// What a transaction sees and does.
pub trait Rows {
    /// The app with this id.
    ///
    /// # Errors
    /// As every method here: the database failed.
    fn app(&mut self, id: AppId) -> Result<Option<App>>;
    /// The app of this owner with this name.
    fn app_named(&mut self, owner: &str, name: &str) -> Result<Option<App>>;
    /// Apps in the order of owner and name: those after `after`, of `owner` or of all, in `states` or any.
    fn apps(
        &mut self,
        after: Option<&Cursor>,
        owner: Option<&str>,
        states: &[v1::AppState],
        limit: usize,
    ) -> Result<Vec<App>>;
    /// The apps of an agent, or those that no agent has.
    fn apps_of(&mut self, agent: Option<AgentId>) -> Result<Vec<App>>;
    /// Apps with operations that are under way.
    fn busy_apps(&mut self) -> Result<Vec<App>>;
    /// Writes an app, new or changed.
    fn put_app(&mut self, app: &App) -> Result<()>;
    /// Forgets an app.
    fn delete_app(&mut self, id: AppId) -> Result<()>;
    /// How many apps each agent has.
    fn app_counts(&mut self) -> Result<HashMap<AgentId, u64>>;

    /// The agent with this id.
    fn agent(&mut self, id: AgentId) -> Result<Option<Agent>>;
    /// The agent of this name.
    fn agent_named(&mut self, name: &str) -> Result<Option<Agent>>;
    /// Agents in the order of their names, after `after`.
    fn agents(&mut self, after: &str, limit: usize) -> Result<Vec<Agent>>;
    /// Writes an agent, new or changed.
    fn put_agent(&mut self, agent: &Agent) -> Result<()>;
    /// Forgets an agent.
    fn delete_agent(&mut self, id: AgentId) -> Result<()>;

    /// The token with this id.
    fn token(&mut self, id: TokenId) -> Result<Option<Token>>;
    /// Tokens in the order in which they were made, after the one with this id.
    fn tokens(&mut self, after: Option<TokenId>, limit: usize) -> Result<Vec<Token>>;
    /// Writes a token, new or changed.
    fn put_token(&mut self, token: &Token) -> Result<()>;

    /// The operation with this id.
    fn operation(&mut self, id: OperationId) -> Result<Option<Operation>>;
    /// The operations of an app that are under way, oldest first.
    fn open_operations(&mut self, app: AppId) -> Result<Vec<Operation>>;
    /// Writes an operation, new or changed.
    fn put_operation(&mut self, operation: &Operation) -> Result<()>;

    /// What a request of this owner became.
    fn request(&mut self, owner: &str, id: &str) -> Result<Option<Request>>;
    /// Remembers what a request became.
    fn put_request(&mut self, owner: &str, id: &str, request: Request, at: i64) -> Result<()>;

    /// Adds an event and gives its number.
    fn add_event(&mut self, at: i64, event: &NewEvent) -> Result<u64>;
    /// Events after a number, oldest first.
    fn events(&mut self, filter: &EventFilter, after: u64, limit: usize) -> Result<Vec<Event>>;
    /// Numbers of the oldest event that is kept and of the newest; 0 and 0 where there is none.
    fn event_range(&mut self) -> Result<(u64, u64)>;

    /// The next serial number of the zone.
    fn next_serial(&mut self) -> Result<u32>;
    /// The last one given.
    fn serial(&mut self) -> Result<u32>;

    /// Forgets finished operations, requests, and tokens that expired or were revoked before `before`, and all but the newest `events` events.
    fn prune(&mut self, before: i64, events: u64) -> Result<()>;
}
