//! What apps that sleep keep on this host's disk, within a byte budget: who must give way when it is too much. Knows no
//! files and no apps' states; each app says what it keeps, and is told when others need the place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::units::Timestamp;

/// What one app keeps.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Bytes on the disk.
    pub bytes: u64,
    /// When it was last used: what was not used for longest gives way first.
    pub used: Timestamp,
    /// Whether it can be had again from the store and nothing runs on it. What cannot never gives way.
    pub replaceable: bool,
    /// Told when it is to give way.
    pub give_way: Arc<Notify>,
}

/// The host's budget.
#[derive(Debug)]
pub struct Cache {
    budget: u64,
    apps: Mutex<BTreeMap<String, Kept>>,
}

impl Cache {
    /// Of so many bytes; 0: what lies in the store is not kept.
    pub fn new(budget: u64) -> Self {
        Cache {
            budget,
            apps: Mutex::default(),
        }
    }

    /// Whether anything is kept of what lies in the store.
    pub fn is_on(&self) -> bool {
        self.budget > 0
    }

    /// An app keeps this from now on. Whoever must give way for it is told, which may be the app itself.
    pub fn keep(&self, app: &str, kept: Kept) {
        let mut apps = self.lock();
        apps.insert(app.to_owned(), kept);
        for name in over(&apps, self.budget) {
            if let Some(kept) = apps.get(name) {
                kept.give_way.notify_one();
            }
        }
    }

    /// Nothing is kept of an app any more.
    pub fn forget(&self, app: &str) {
        self.lock().remove(app);
    }

    /// Whether what an app keeps is too much now.
    pub fn must_give_way(&self, app: &str) -> bool {
        over(&self.lock(), self.budget).contains(&app)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The apps that must give way so that all is within the budget, as far as it can be.
fn over(apps: &BTreeMap<String, Kept>, budget: u64) -> Vec<&str> {
    let mut bytes: u64 = apps.values().map(|kept| kept.bytes).sum();
    let mut oldest: Vec<_> = apps
        .iter()
        .filter(|(_, kept)| kept.replaceable && kept.bytes > 0)
        .collect();
    oldest.sort_by_key(|(_, kept)| kept.used);
    let mut going = Vec::new();
    for (name, kept) in oldest {
        if bytes <= budget {
            break;
        }
        bytes -= kept.bytes;
        going.push(name.as_str());
    }
    going
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_least_recently_used_give_way_and_only_as_many_as_must(
            apps in proptest::collection::vec((0..50u64, 0..1000u64, any::<bool>()), 0..20),
            budget in 0..500u64,
        ) {
            let apps: BTreeMap<String, Kept> = apps.iter().enumerate().map(|(nth, (bytes, used, replaceable))| {
                let used = Timestamp::from_micros(*used);
                let kept = Kept { bytes: *bytes, used, replaceable: *replaceable, give_way: Arc::default() };
                (nth.to_string(), kept)
            }).collect();
            let going = over(&apps, budget);
            let stays = |name: &&String| !going.contains(&name.as_str());
            let total: u64 = apps.values().map(|kept| kept.bytes).sum();
            let freed: u64 = going.iter().map(|name| apps[*name].bytes).sum();
            prop_assert!(going.iter().all(|name| apps[*name].replaceable), "what the store lacks must stay");
            let could_go = apps.keys().filter(stays).any(|name| apps[name].replaceable && apps[name].bytes > 0);
            prop_assert!(total - freed <= budget || !could_go, "too much is kept");
            if let Some(last) = going.last() {
                prop_assert!(total - freed + apps[*last].bytes > budget, "one more than must go went");
            }
            for (gone, kept) in going.iter().flat_map(|gone| apps.keys().filter(stays).map(move |kept| (gone, kept))) {
                let kept = &apps[kept];
                prop_assert!(apps[*gone].used <= kept.used || !kept.replaceable || kept.bytes == 0);
            }
        }
    }

    #[test]
    fn whoever_must_give_way_is_told() {
        let cache = Cache::new(100);
        let told = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        for (nth, (app, give_way)) in (0..).zip(["old", "new"].iter().zip(&told)) {
            let kept = Kept {
                bytes: 60,
                used: Timestamp::from_micros(nth),
                replaceable: true,
                give_way: give_way.clone(),
            };
            cache.keep(app, kept);
        }
        assert!(cache.must_give_way("old") && !cache.must_give_way("new"));
        let is_told = |nth: usize| {
            let mut told = std::pin::pin!(told[nth].notified());
            told.as_mut().enable()
        };
        assert!(is_told(0) && !is_told(1));
        cache.forget("old");
        assert!(!cache.must_give_way("new"));
    }
}
