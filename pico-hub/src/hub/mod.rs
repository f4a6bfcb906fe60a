//! What the hub does: the rules behind the calls. A change reads and writes rows in one transaction, and says what must
//! follow (`effect`) once it is on the disk: names for DNS, messages to agents, waiters that look again.
//!
//! `apps`, `agents`, `tokens`, `operations`: the rules; `sessions`: agents that are attached; `convert`: rows as the
//! API shows them.

mod agents;
mod apps;
mod convert;
mod effect;
mod events;
mod operations;
mod page;
mod sessions;
mod streams;
mod tokens;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pico_proto::v1::AppState;
use tokio::sync::watch;

pub use self::apps::Handle;
use self::effect::Effects;
pub use self::events::Watch;
use self::sessions::Sessions;
pub use self::streams::{Feed, Through, cut_off, refused};
use crate::auth::{Caller, Tokens};
use crate::directory::{Directory, Entry, Names};
use crate::problem::Problem;
use crate::registry::{Database, RegistryError, Rows, Sqlite};
use pico_proto::port::Port;

/// Finished operations and requests are kept this long.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// So many events are kept.
const EVENTS: u64 = 100_000;
/// How often what is older is forgotten.
const PRUNE: Duration = Duration::from_secs(3600);

/// Why the hub does not open.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Its database.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file of the state directory.
    #[error("cannot write {} ({source})", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system has no random numbers to give.
    #[error("the system gives no random numbers ({0})")]
    Random(#[from] std::io::Error),
}

/// The hub's state and rules. One per state directory.
pub struct Hub {
    database: Database,
    tokens: Tokens,
    names: Names,
    sessions: Sessions,
    /// Counts changes: who waits for one looks again.
    changed: watch::Sender<u64>,
    zone: Option<String>,
}

/// Now, in microseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

impl Hub {
    /// Opens the hub in `state_dir`, which must be there and be this hub's alone. The first time, an administrator's
    /// token is written to `STATE_DIR/admin.token`, readable by its owner only. `zone` is what names are shown below.
    ///
    /// # Errors
    /// See [`HubError`].
    pub async fn open(state_dir: &Path, zone: Option<String>) -> Result<Arc<Hub>, HubError> {
        let database = Database::new(Arc::new(Sqlite::open(&state_dir.join("hub.db"))?));
        let serial = database.read(|rows: &mut dyn Rows| rows.serial()).await?;
        let hub = Arc::new(Hub {
            database,
            tokens: Tokens::default(),
            names: Names::new(serial),
            sessions: Sessions::default(),
            changed: watch::Sender::new(0),
            zone,
        });
        hub.load_tokens().await?;
        hub.first_token(state_dir).await?;
        hub.load_names().await?;
        hub.fail_interrupted(None).await?;
        tokio::spawn(prune(Arc::downgrade(&hub)));
        Ok(hub)
    }

    /// Who holds the token with this text.
    ///
    /// # Errors
    /// Nobody does, or it is no good any more.
    pub fn authenticate(self: &Arc<Self>, text: &str) -> Result<Caller, Problem> {
        let now = now();
        let (caller, stale) = self.tokens.caller(text, now)?;
        if stale {
            self.note_use(caller.token, now);
        }
        Ok(caller)
    }

    /// Runs a change and what follows from it.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut dyn Rows, &mut Effects) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let hub = self.clone();
        let (value, _) = self
            .database
            .change(
                move |rows| {
                    let mut effects = Effects::default();
                    let value = change(rows, &mut effects)?;
                    Ok::<_, Problem>((value, std::sync::Mutex::new(effects)))
                },
                move |(_, effects)| hub.follow(effects),
            )
            .await?;
        Ok(value)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Rows) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        self.database.read(read).await
    }

    /// Asks `look` again after each change until it has an answer; whoever waits bounds it by dropping this.
    async fn until<T: Send + 'static>(
        &self,
        look: impl Fn(&mut dyn Rows) -> Result<Option<T>, Problem> + Clone + Send + 'static,
    ) -> Result<T, Problem> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(found) = self.read(look.clone()).await? {
                return Ok(found);
            }
            if changed.changed().await.is_err() {
                return Err(RegistryError::Closed.into());
            }
        }
    }

    /// How many agents are attached.
    pub fn attached(&self) -> usize {
        self.sessions.count()
    }

    /// How many apps are in each state, as last heard.
    pub fn states(&self) -> HashMap<AppState, u64> {
        self.names.states()
    }
}

async fn prune(hub: std::sync::Weak<Hub>) {
    let mut tick = tokio::time::interval(PRUNE);
    loop {
        tick.tick().await;
        let Some(hub) = hub.upgrade() else { return };
        let before = now() - i64::try_from(KEPT.as_micros()).unwrap_or(i64::MAX);
        let pruned = hub
            .database
            .change(move |rows| rows.prune(before, EVENTS), |()| ())
            .await;
        if let Err(error) = pruned {
            tracing::warn!(%error, "old operations and events are not forgotten");
        }
    }
}

impl Directory for Hub {
    fn lookup(&self, label: &str) -> Option<Entry> {
        self.names.lookup(label)
    }

    fn ports(&self, label: &str) -> Vec<Port> {
        self.names.ports(label)
    }

    fn serial(&self) -> watch::Receiver<u32> {
        self.names.serial()
    }

    fn prefetch(&self, entry: &Entry, wake: bool) -> bool {
        entry
            .agent
            .is_some_and(|agent| self.sessions.prefetch(agent, entry.app, wake))
    }
}
