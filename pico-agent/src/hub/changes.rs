//! Which apps look different to the hub than when they were last reported. A set, not a queue: it is as large as
//! there are apps, however long the hub is away.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// The set. Marked by actors, taken by the one who reports.
#[derive(Debug, Default)]
pub struct Changes {
    names: Mutex<BTreeSet<String>>,
    marked: Notify,
}

impl Changes {
    /// The app has changed.
    pub fn mark(&self, name: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
        drop(names);
        self.marked.notify_one();
    }

    /// Waits until some have, and takes them.
    pub async fn take(&self) -> BTreeSet<String> {
        loop {
            let marked = self.marked.notified();
            let names = std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner));
            if !names.is_empty() {
                return names;
            }
            marked.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn changes_of_one_app_are_taken_once_and_none_is_lost_between_two_takes() {
        let changes = Arc::new(Changes::default());
        for name in ["web", "db", "web"] {
            changes.mark(name);
        }
        assert_eq!(changes.take().await.len(), 2);
        let waiting = tokio::spawn({
            let changes = changes.clone();
            async move { changes.take().await }
        });
        tokio::task::yield_now().await;
        changes.mark("web");
        assert_eq!(waiting.await.unwrap(), BTreeSet::from(["web".to_owned()]));
    }
}
