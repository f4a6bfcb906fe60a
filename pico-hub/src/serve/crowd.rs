//! Who is connected, and who has to go when it is too many: the connection that has had no call for the longest, and
//! of these first one that never had any. So slow and silent clients cannot keep others out. Knows no sockets.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// All connections of one server.
#[derive(Debug)]
pub(super) struct Crowd {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    members: HashMap<u64, Member>,
    /// Those without a call, in the order in which they have to go.
    idle: BTreeSet<Idle>,
}

/// Whether it ever had a call, since when it has none (a number that grows), who.
type Idle = (bool, u64, u64);

#[derive(Debug)]
struct Member {
    calls: usize,
    asked: bool,
    /// As in [`Idle`].
    order: u64,
    since: Instant,
    close: CancellationToken,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Calls are running.
    Calls,
    /// Nothing since then.
    Nothing {
        /// Since when.
        since: Instant,
        /// Whether it ever had a call.
        asked: bool,
    },
}

impl Crowd {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Crowd {
            limit,
            inner: Mutex::default(),
        })
    }

    /// A place for one more connection, and whether another had to go for it. `None`: all are busy.
    pub(super) fn enter(self: &Arc<Self>) -> Option<(Seat, bool)> {
        let mut inner = self.inner();
        let full = inner.members.len() >= self.limit;
        if full {
            let (_, _, victim) = inner.idle.pop_first()?;
            if let Some(member) = inner.members.remove(&victim) {
                member.close.cancel();
            }
        }
        let id = inner.tick();
        let close = CancellationToken::new();
        let member = Member {
            calls: 0,
            asked: false,
            order: id,
            since: Instant::now(),
            close: close.clone(),
        };
        inner.members.insert(id, member);
        inner.idle.insert((false, id, id));
        let crowd = Arc::clone(self);
        Some((Seat { crowd, id, close }, full))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.inner().members.len()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn begin(&mut self, id: u64) {
        if let Some(member) = self.members.get_mut(&id) {
            self.idle.remove(&(member.asked, member.order, id));
            member.asked = true;
            member.calls += 1;
        }
    }

    fn end(&mut self, id: u64) {
        let order = self.tick();
        if let Some(member) = self.members.get_mut(&id) {
            member.calls -= 1;
            if member.calls == 0 {
                (member.order, member.since) = (order, Instant::now());
                self.idle.insert((true, order, id));
            }
        }
    }
}

/// One connection's place. Given up when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    crowd: Arc<Crowd>,
    id: u64,
    close: CancellationToken,
}

impl Seat {
    /// A call begins; it ends when what is returned is dropped.
    pub(super) fn call(self: &Arc<Self>) -> Running {
        self.crowd.inner().begin(self.id);
        Running(Arc::clone(self))
    }

    /// What the connection is doing.
    pub(super) fn doing(&self) -> Doing {
        match self.crowd.inner().members.get(&self.id) {
            Some(member) if member.calls > 0 => Doing::Calls,
            Some(member) => Doing::Nothing {
                since: member.since,
                asked: member.asked,
            },
            // It had to go, and its token says so.
            None => Doing::Calls,
        }
    }

    /// Waits until the place is needed for another.
    pub(super) async fn taken(&self) {
        self.close.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.crowd.inner();
        if let Some(member) = inner.members.remove(&self.id) {
            inner.idle.remove(&(member.asked, member.order, self.id));
        }
    }
}

/// A call that runs on a connection.
#[derive(Debug)]
pub(super) struct Running(Arc<Seat>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.crowd.inner().end(self.0.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(crowd: &Arc<Crowd>) -> Arc<Seat> {
        Arc::new(crowd.enter().unwrap().0)
    }

    fn gone(seats: &[&Arc<Seat>]) -> Vec<bool> {
        seats.iter().map(|seat| seat.close.is_cancelled()).collect()
    }

    #[test]
    fn who_never_asked_goes_first_then_who_asked_longest_ago_and_never_who_has_a_call() {
        let crowd = Crowd::new(3);
        let (busy, asked, silent) = (enter(&crowd), enter(&crowd), enter(&crowd));
        let running = busy.call();
        drop(asked.call());
        let fourth = enter(&crowd);
        assert_eq!(gone(&[&busy, &asked, &silent]), [false, false, true]);
        let fourth_runs = fourth.call();
        let fifth = enter(&crowd);
        assert_eq!(gone(&[&busy, &asked, &fourth]), [false, true, false]);
        let _fifth_runs = fifth.call();
        assert!(crowd.enter().is_none());
        drop(running);
        assert!(crowd.enter().is_some_and(|(_, full)| full));
        assert_eq!(gone(&[&busy, &fourth, &fifth]), [true, false, false]);
        drop(fourth_runs);
    }

    #[test]
    fn a_place_given_up_is_free_and_one_taken_is_not_given_up_twice() {
        let crowd = Crowd::new(1);
        let first = enter(&crowd);
        let second = enter(&crowd);
        assert_eq!(gone(&[&first]), [true]);
        // What the first still does changes nothing for the second.
        drop(first.call());
        drop(first);
        assert_eq!(crowd.len(), 1);
        assert!(matches!(second.doing(), Doing::Nothing { asked: false, .. }));
        let running = second.call();
        assert_eq!(second.doing(), Doing::Calls);
        drop(running);
        assert!(matches!(second.doing(), Doing::Nothing { asked: true, .. }));
        drop(second);
        assert_eq!(crowd.len(), 0);
        assert!(crowd.inner().idle.is_empty());
    }
}
