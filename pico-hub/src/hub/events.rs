//! Following what happens, from any number on that is still kept.

use std::sync::Arc;

use pico_proto::v1;
use prost_types::Timestamp;
use tokio::sync::watch;
use tonic::Code;

use super::{Handle, Hub, convert};
use crate::auth::Caller;
use crate::problem::Problem;
use crate::registry::{EventFilter, RegistryError};

/// Events read at once.
const BATCH: usize = 256;

/// A place in the row of events.
pub struct Watch {
    hub: Arc<Hub>,
    changed: watch::Receiver<u64>,
    filter: EventFilter,
    after: u64,
}

impl Hub {
    /// Events that the caller may see, of one app or of all: after a number, since a time, or only new ones.
    ///
    /// # Errors
    /// There is no such app for this caller, or what follows that number is not kept any more.
    pub async fn watch_events(
        self: &Arc<Self>,
        caller: Caller,
        app: Option<Handle>,
        after: u64,
        since: Option<&Timestamp>,
    ) -> Result<Watch, Problem> {
        // Before the first look, so that nothing falls between the two.
        let changed = self.changed.subscribe();
        let since = since.map(convert::micros).filter(|_| after == 0);
        let owner = caller.owner_filter().map(str::to_owned);
        let (filter, after) = self
            .read(move |rows| {
                let (first, last) = rows.event_range()?;
                let after = match (after, since) {
                    (0, Some(_)) => 0,
                    (0, None) => last,
                    (after, _) if after + 1 < first => {
                        let message =
                            format!("events after {after} are not kept any more; the oldest is {first}");
                        return Err(Problem::new(Code::OutOfRange, "EVENTS_EXPIRED", message)
                            .hint("follow from now on, and read how the apps are: pico app list"));
                    }
                    (after, _) => after,
                };
                let app = match app {
                    Some(handle) => Some(handle.find(rows)?.id),
                    None => None,
                };
                Ok((EventFilter { owner, app, since }, after))
            })
            .await?;
        Ok(Watch {
            hub: self.clone(),
            changed,
            filter,
            after,
        })
    }
}

impl Watch {
    /// The next events; none when there are none and `follow` is not set.
    ///
    /// # Errors
    /// The database failed, or the hub ends.
    pub async fn next(&mut self, follow: bool) -> Result<Vec<v1::Event>, Problem> {
        loop {
            self.changed.borrow_and_update();
            let (filter, after) = (self.filter.clone(), self.after);
            let events = self
                .hub
                .read(move |rows| Ok(rows.events(&filter, after, BATCH)?))
                .await?;
            if let Some(last) = events.last() {
                self.after = last.number;
            }
            if !events.is_empty() || !follow {
                return Ok(events.iter().map(convert::event).collect());
            }
            if self.changed.changed().await.is_err() {
                return Err(RegistryError::Closed.into());
            }
        }
    }
}
