//! What is remembered of so many keys at most: a table of fixed size, in which a new key takes the place of the one
//! that was used longest ago among the few that share its row. Strangers choose the keys, so they are hashed with
//! a secret, and memory does not grow.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::time::Instant;

/// Slots that share a row.
const WAYS: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Slot<T> {
    key: u64,
    used: Instant,
    value: T,
}

/// The table.
#[derive(Debug)]
pub(super) struct Recent<T> {
    secret: RandomState,
    rows: Box<[[Option<Slot<T>>; WAYS]]>,
}

impl<T: Copy> Recent<T> {
    /// Room for `rows` times four keys.
    pub(super) fn new(rows: usize) -> Self {
        Recent {
            secret: RandomState::new(),
            rows: vec![[None; WAYS]; rows.max(1)].into_boxed_slice(),
        }
    }

    /// What is remembered of `key`: `new` when nothing is any more.
    pub(super) fn entry(&mut self, key: impl Hash, now: Instant, new: T) -> &mut T {
        let key = self.secret.hash_one(key);
        let rows = self.rows.len() as u64;
        // The remainder is below the number of rows, which is a usize.
        let index = usize::try_from(key % rows).unwrap_or(0);
        let row = &mut self.rows[index];
        let place = row
            .iter()
            .position(|slot| slot.is_some_and(|slot| slot.key == key))
            .unwrap_or_else(|| {
                let oldest = (0..WAYS)
                    .min_by_key(|&way| row[way].map(|slot| slot.used))
                    .unwrap_or(0);
                row[oldest] = None;
                oldest
            });
        let slot = row[place].get_or_insert(Slot {
            key,
            used: now,
            value: new,
        });
        slot.used = now;
        &mut slot.value
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_key_is_remembered_until_enough_others_of_its_row_were_used_after_it() {
        let now = Instant::now();
        let mut recent = Recent::new(1);
        *recent.entry("a", now, 0) += 7;
        for (i, key) in ["b", "c", "d"].iter().enumerate() {
            recent.entry(key, now + Duration::from_secs(i as u64 + 1), 0);
        }
        assert_eq!(*recent.entry("a", now + Duration::from_secs(5), 0), 7);
        recent.entry("e", now + Duration::from_secs(6), 0);
        assert_eq!(
            *recent.entry("b", now + Duration::from_secs(7), 42),
            42,
            "b was the oldest"
        );
        assert_eq!(*recent.entry("a", now + Duration::from_secs(8), 0), 7);
    }

    #[test]
    fn any_number_of_keys_takes_the_same_room() {
        let now = Instant::now();
        let mut recent = Recent::new(16);
        for key in 0..100_000 {
            recent.entry(key, now, ());
        }
        let kept = recent.rows.iter().flatten().filter(|slot| slot.is_some()).count();
        assert_eq!(kept, 16 * WAYS);
    }
}
