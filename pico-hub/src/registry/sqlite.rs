//! The registry in one SQLite file. One thread writes: changes that wait at the same time share one commit, so that
//! a disk's slow `fsync` is paid once for many. Readers have a connection of their own and never wait for it (WAL).

mod table;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use self::table::Tables;
use super::{Change, Registry, RegistryError, Rows};

const SCHEMA: &str = include_str!("schema.sql");
/// What `PRAGMA user_version` says of a database of this release.
const VERSION: i64 = 1;
/// Changes that share one commit at most: each of them waits for all.
const BATCH: usize = 256;
/// For locks of other processes, such as a backup's.
const BUSY: Duration = Duration::from_secs(10);

/// A change and whom to tell.
type Job = (Change, Box<dyn FnOnce(Result<(), RegistryError>) + Send>);

/// The SQLite backend.
pub struct Sqlite {
    /// `None` once it is being dropped.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    readers: Mutex<Vec<Connection>>,
    path: PathBuf,
}

pub(super) fn failed(error: rusqlite::Error) -> RegistryError {
    RegistryError::Database(error.to_string())
}

impl Sqlite {
    /// Opens the database at `path`, made if it is not there, brought to this release's version if it is older.
    ///
    /// # Errors
    /// It cannot be opened, or a later release wrote it.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let mut connection = Connection::open(path).map_err(failed)?;
        prepare(&connection)?;
        // Acknowledged means on the disk, whatever happens to the host.
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(failed)?;
        migrate(&mut connection)?;
        let (jobs, waiting) = mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("registry".into())
            .spawn(move || write(&mut connection, &waiting))
            .map_err(|error| RegistryError::Database(error.to_string()))?;
        Ok(Sqlite {
            jobs: Some(jobs),
            writer: Some(writer),
            readers: Mutex::default(),
            path: path.to_owned(),
        })
    }

    fn reader(&self) -> Result<Connection, RegistryError> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(idle) = idle {
            return Ok(idle);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY).map_err(failed)?;
        Ok(connection)
    }
}

fn prepare(connection: &Connection) -> Result<(), RegistryError> {
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(failed)?;
    connection
        .pragma_update(None, "foreign_keys", true)
        .map_err(failed)
}

fn migrate(connection: &mut Connection) -> Result<(), RegistryError> {
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed)?;
    match found {
        0 => {
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(failed)?;
            transaction.execute_batch(SCHEMA).map_err(failed)?;
            transaction
                .pragma_update(None, "user_version", VERSION)
                .map_err(failed)?;
            transaction.commit().map_err(failed)
        }
        VERSION => Ok(()),
        found => Err(RegistryError::Newer {
            found,
            known: VERSION,
        }),
    }
}

fn write(connection: &mut Connection, waiting: &mpsc::Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let jobs = std::iter::once(first).chain(waiting.try_iter()).take(BATCH);
        let mut acknowledged = Vec::new();
        let committed = batch(connection, jobs, &mut acknowledged);
        for (done, outcome) in acknowledged {
            done(outcome.and(committed.clone()));
        }
    }
}

type Acknowledged = Vec<(
    Box<dyn FnOnce(Result<(), RegistryError>) + Send>,
    Result<(), RegistryError>,
)>;

/// Runs changes in one transaction, each undone alone if it fails.
fn batch(
    connection: &mut Connection,
    jobs: impl Iterator<Item = Job>,
    acknowledged: &mut Acknowledged,
) -> Result<(), RegistryError> {
    let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let mut transaction = match begun {
        Ok(transaction) => transaction,
        Err(error) => {
            acknowledged.extend(jobs.map(|(_, done)| (done, Ok(()))));
            return Err(failed(error));
        }
    };
    for (change, done) in jobs {
        let outcome = (|| {
            let savepoint = transaction.savepoint().map_err(failed)?;
            change(&mut Tables(&savepoint))?;
            savepoint.commit().map_err(failed)
        })();
        acknowledged.push((done, outcome));
    }
    transaction.commit().map_err(failed)
}

impl Registry for Sqlite {
    fn change(&self, change: Change, done: Box<dyn FnOnce(Result<(), RegistryError>) + Send>) {
        let Some(jobs) = &self.jobs else {
            return done(Err(RegistryError::Closed));
        };
        if let Err(mpsc::SendError((_, done))) = jobs.send((change, done)) {
            done(Err(RegistryError::Closed));
        }
    }

    fn read(&self, read: &mut dyn FnMut(&mut dyn Rows)) -> Result<(), RegistryError> {
        let mut connection = self.reader()?;
        {
            // One transaction: what is read fits together.
            let transaction = connection.transaction().map_err(failed)?;
            read(&mut Tables(&transaction));
        }
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.push(connection);
        Ok(())
    }
}

impl Drop for Sqlite {
    /// What was asked for is still written.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
