//! What the hub keeps: apps, agents, tokens, operations, events. [`Registry`] is the interface of a database, [`Rows`]
//! what a transaction can do with it; what rows mean is decided by those who call ([`crate::hub`]).
//!
//! A change is a closure over [`Rows`]: it sees the database alone, and all of it happens or nothing. It is
//! acknowledged when it is on the disk. One backend is here ([`sqlite`]); another fits behind the same two traits.

pub mod rows;
pub mod sqlite;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

pub use rows::{Agent, App, Cursor, Event, EventFilter, NewEvent, Operation, Request, Role, Rows, Token};
pub use sqlite::Sqlite;

/// Why the database did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The database refused.
    #[error("the hub's database failed ({0}); see that its disk is not full and its file is whole")]
    Database(String),
    /// A row that this release cannot read.
    #[error("the hub's database holds a {what} that this release cannot read ({reason})")]
    Damaged {
        /// Of which table.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The database was written by a later release.
    #[error(
        "the hub's database has version {found}, this release knows {known}; run the release that wrote it"
    )]
    Newer {
        /// Its version.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// The hub is about to end.
    #[error("the hub is stopping")]
    Closed,
}

/// Rows are changed by such a closure; an error undoes all that it changed.
pub type Change = Box<dyn FnOnce(&mut dyn Rows) -> Result<(), RegistryError> + Send>;

/// A database.
pub trait Registry: Send + Sync + 'static {
    /// Runs a change, after those that were asked for before it. `done` is called once it is on the disk, or has
    /// failed; then nothing of it has happened.
    fn change(&self, change: Change, done: Box<dyn FnOnce(Result<(), RegistryError>) + Send>);

    /// Runs a closure that changes nothing, on the calling thread.
    ///
    /// # Errors
    /// The database cannot be read; the closure was not run then.
    fn read(&self, read: &mut dyn FnMut(&mut dyn Rows)) -> Result<(), RegistryError>;
}

/// A registry with the calls that async code wants.
#[derive(Clone)]
pub struct Database {
    registry: Arc<dyn Registry>,
}

impl Database {
    /// Over a registry.
    pub fn new(registry: Arc<dyn Registry>) -> Self {
        Database { registry }
    }

    /// Runs a change and gives what it gave, once it is on the disk. A refusal (`E`) changes nothing. `then` sees what
    /// the change gave, in the order of the changes, before anybody is told.
    ///
    /// # Errors
    /// The refusal, or a failure of the database.
    pub async fn change<T, E>(
        &self,
        change: impl FnOnce(&mut dyn Rows) -> Result<T, E> + Send + 'static,
        then: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<RegistryError> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let outcome = Arc::new(Mutex::new(None));
        let slot = outcome.clone();
        let run: Change = Box::new(move |rows| {
            let given = change(rows);
            let refused = given.is_err();
            *lock(&slot) = Some(given);
            // Any error undoes the rows; what the caller is told is the refusal.
            if refused {
                Err(RegistryError::Closed)
            } else {
                Ok(())
            }
        });
        let done = Box::new(move |done: Result<(), RegistryError>| {
            let told = match (lock(&outcome).take(), done) {
                (Some(Err(refused)), _) => Err(refused),
                (Some(Ok(value)), Ok(())) => {
                    then(&value);
                    Ok(value)
                }
                (_, Err(failed)) => Err(failed.into()),
                (None, Ok(())) => Err(RegistryError::Closed.into()),
            };
            // The caller may have gone.
            let _ = sender.send(told);
        });
        self.registry.change(run, done);
        receiver
            .await
            .unwrap_or_else(|_gone| Err(RegistryError::Closed.into()))
    }

    /// Reads rows.
    ///
    /// # Errors
    /// The closure's refusal, or a failure of the database.
    pub async fn read<T, E>(
        &self,
        read: impl FnOnce(&mut dyn Rows) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<RegistryError> + Send + 'static,
    {
        let registry = self.registry.clone();
        let task = tokio::task::spawn_blocking(move || {
            let (mut read, mut outcome) = (Some(read), None);
            registry.read(&mut |rows| outcome = read.take().map(|read| read(rows)))?;
            outcome.unwrap_or_else(|| Err(RegistryError::Closed.into()))
        });
        task.await
            .unwrap_or_else(|error| Err(RegistryError::Database(error.to_string()).into()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
