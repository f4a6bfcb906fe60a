//! Serves the page faults of an app that was swapped in: the only code that knows userfaultfd.
//!
//! Each address space has its userfaultfd and an index of the pages that still lie in the checkpoint. A fault
//! on a listed page is filled from its page object, any other with zeros; a filled page is listed no more. So
//! what is listed at the next swap-out is what never was faulted in, and stays where it is. Pages that the app
//! discards, unmaps or moves leave or move in the index before the next page is filled, so old content cannot
//! come back. What no fault asked for is filled for three reasons, each counted: it is predicted to be used
//! ([`Pager::fill_ahead`]), a forked child misses it before a swap-out ([`Pager::fill_children`]: the next
//! checkpoint's name of its process is not known), or it is locked ([`Pager::fill_locked`]: it is not restored lazily).
//!
//! Knows nothing of CRIU, the network or the store: bytes that are not on this host are asked for through
//! [`Effect::Need`] and come back through [`Pager::arrived`].

mod ahead;
pub mod memory;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use userfaultfd::EventBuffer;

use self::ahead::Ahead;
use crate::checkpoint::index::{AddressSpace, Object, ObjectId, Run};
use memory::{Change, Fill, Memory, Page};

/// Events read at once.
const BATCH: usize = 64;

/// Local copies of page objects.
pub trait PageSource {
    /// Reads one page of an object.
    ///
    /// # Errors
    /// When the local copy is there but cannot be read.
    fn read(&mut self, object: ObjectId, offset: u64, page: &mut Page) -> std::io::Result<Lookup>;

    /// Reads adjacent pages of an object; [`Lookup::Absent`] names the first block that is missing, and nothing is said of
    /// the content then.
    ///
    /// # Errors
    /// As [`PageSource::read`].
    fn read_run(&mut self, object: ObjectId, offset: u64, pages: &mut [Page]) -> std::io::Result<Lookup> {
        for (page, offset) in pages.iter_mut().zip(offset..) {
            if let absent @ Lookup::Absent { .. } = self.read(object, offset, page)? {
                return Ok(absent);
            }
        }
        Ok(Lookup::Here)
    }
}

/// Whether a page is on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It was read.
    Here,
    /// This block of the object must be fetched first.
    Absent {
        /// Block number in the object.
        block: u64,
    },
}

/// What the owner of the pager must do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Watch and keep the userfaultfd of this new address space.
    Opened(Token),
    /// Forget this address space: its process is gone.
    Closed(Token),
    /// Fetch a block; called once until it arrives.
    Need(ObjectId, u64),
}

/// Names an address space while it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What the pager has done since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PagerStats {
    /// Faults answered or waiting.
    pub faults: u64,
    /// Pages filled from the checkpoint.
    pub filled: u64,
    /// Pages filled with zeros.
    pub zeroed: u64,
    /// Blocks asked of the agent.
    pub needed: u64,
    /// Pages filled from the checkpoint before anybody asked for them; these are not among `filled`.
    #[serde(default)]
    pub ahead: u64,
    /// Faults on pages that were to be filled ahead, and were not yet.
    #[serde(default)]
    pub late: u64,
    /// Time spent on filling ahead, in nanoseconds.
    #[serde(default)]
    pub ahead_ns: u64,
    /// Time spent on faults whose pages were on this host, in nanoseconds.
    #[serde(default)]
    pub filled_ns: u64,
}

/// Why the pager cannot go on. The app must be ended: a page would be missing for ever.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The kernel refused.
    #[error("userfaultfd: {0}")]
    Kernel(#[from] userfaultfd::Error),
    /// A local copy cannot be read.
    #[error("page object {object}: {source}")]
    Source {
        /// Which object.
        object: ObjectId,
        /// Why.
        source: std::io::Error,
    },
    /// The index names an object that is not listed.
    #[error("the page index names no object {0}")]
    Index(u32),
}

#[derive(Debug)]
struct Served {
    memory: Memory,
    /// Process id in CRIU's images; none for a forked child.
    id: Option<u32>,
    /// What was not faulted in yet.
    space: AddressSpace,
    /// What was faulted in since a dump began: whoever dumps may have looked before, and not have it.
    late: AddressSpace,
    /// Where all pages came from that are still where they were, or were moved; faulted in or not.
    origin: AddressSpace,
    /// What is to be filled before anybody asks for it.
    ahead: Ahead,
}

/// What is known of the pages of one process of the images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Its id there.
    pub id: u32,
    /// What was never faulted in, or only since the dump began: it is as the checkpoint has it, unless it was dumped.
    pub missing: AddressSpace,
    /// Where the content of each page came from. Whether it is still the same must be looked at.
    pub origin: AddressSpace,
}

/// The pager of one app.
pub struct Pager<S> {
    source: S,
    objects: Vec<Object>,
    served: HashMap<Token, Served>,
    waiting: HashMap<(ObjectId, u64), HashSet<(Token, u64)>>,
    next: u64,
    buffer: EventBuffer,
    stats: PagerStats,
    /// The app is being dumped.
    dumping: bool,
    /// What is to be filled ahead of processes that are not there yet.
    planned: HashMap<u32, Vec<u64>>,
    /// Filled from the source, and then copied from.
    batch: Vec<Page>,
}

impl<S: PageSource> Pager<S> {
    /// A pager that reads `objects` through `source`.
    pub fn new(source: S, objects: Vec<Object>) -> Self {
        Pager {
            source,
            objects,
            served: HashMap::new(),
            waiting: HashMap::new(),
            next: 0,
            buffer: EventBuffer::new(BATCH),
            stats: PagerStats::default(),
            dumping: false,
            planned: HashMap::new(),
            batch: Vec::new(),
        }
    }

    /// Fills these pages, by the ids that processes have in the images, as soon as that is possible; the first of each
    /// process first. What is not in the checkpoint (any more) is left out.
    pub fn plan(&mut self, pages: impl IntoIterator<Item = (u32, u64)>) {
        for (id, page) in pages {
            self.planned.entry(id).or_default().push(page);
        }
    }

    /// Serves process `id` of the images from now on.
    pub fn add(&mut self, id: u32, uffd: OwnedFd, space: AddressSpace) -> Token {
        let ahead = Ahead::new(self.planned.remove(&id).unwrap_or_default());
        self.insert(Served {
            ahead,
            memory: Memory::new(uffd),
            id: Some(id),
            origin: space.clone(),
            space,
            late: AddressSpace::default(),
        })
    }

    fn insert(&mut self, served: Served) -> Token {
        let token = Token(self.next);
        self.next += 1;
        self.served.insert(token, served);
        token
    }

    /// The userfaultfd behind `token`.
    pub fn descriptor(&self, token: Token) -> Option<BorrowedFd<'_>> {
        self.served.get(&token).map(|served| served.memory.as_fd())
    }

    /// Every address space that is served.
    pub fn tokens(&self) -> Vec<Token> {
        self.served.keys().copied().collect()
    }

    /// What was done so far.
    pub fn stats(&self) -> PagerStats {
        self.stats
    }

    /// The objects that the indexes name.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// Whether a thread waits for a block that is not on this host.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads and answers what is pending of one address space.
    ///
    /// # Errors
    /// When a page can never be filled.
    pub fn ready(&mut self, token: Token) -> Result<Vec<Effect>, PagerError> {
        let mut effects = Vec::new();
        let Some(served) = self.served.get_mut(&token) else {
            return Ok(effects);
        };
        for change in served.memory.read(&mut self.buffer)? {
            self.apply(token, change, &mut effects)?;
        }
        Ok(effects)
    }

    fn apply(&mut self, token: Token, change: Change, effects: &mut Vec<Effect>) -> Result<(), PagerError> {
        let Some(served) = self.served.get_mut(&token) else {
            return Ok(());
        };
        match change {
            Change::Fault(page) => {
                self.stats.faults += 1;
                // Who faults has its memory registered.
                served.ahead.open();
                self.stats.late += u64::from(served.ahead.take(page));
                let since = Instant::now();
                if self.fill(token, page, effects)? == Some(Fill::Done) {
                    self.stats.filled_ns += nanoseconds(since);
                }
            }
            Change::Remove(start, end) => {
                served.space.remove(start..end);
                served.late.remove(start..end);
                served.origin.remove(start..end);
            }
            Change::Remap(from, to, count) => {
                served.space.relocate(from..from + count, to);
                served.late.relocate(from..from + count, to);
                served.origin.relocate(from..from + count, to);
            }
            Change::Fork(uffd) => {
                let space = served.space.clone();
                let child = self.insert(Served {
                    memory: Memory::new(uffd),
                    id: None,
                    space,
                    late: AddressSpace::default(),
                    // Its name in the next checkpoint is not known; everything of it is dumped.
                    origin: AddressSpace::default(),
                    ahead: Ahead::default(),
                });
                effects.push(Effect::Opened(child));
                self.forget_gone(effects);
            }
        }
        Ok(())
    }

    /// Children of apps that fork for a moment (a background save) leave their descriptors behind.
    fn forget_gone(&mut self, effects: &mut Vec<Effect>) {
        let gone: Vec<Token> = self
            .served
            .iter()
            .filter(|(_, served)| !served.memory.is_alive())
            .map(|(token, _)| *token)
            .collect();
        for token in gone {
            self.close(token, effects);
        }
    }

    fn close(&mut self, token: Token, effects: &mut Vec<Effect>) {
        if self.served.remove(&token).is_some() {
            effects.push(Effect::Closed(token));
        }
    }

    /// Fills one page, or asks for the block that holds it (`None`: it waits for that).
    fn fill(
        &mut self,
        token: Token,
        page: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<Fill>, PagerError> {
        let Some(served) = self.served.get_mut(&token) else {
            return Ok(Some(Fill::Gone));
        };
        let filled = match served.space.lookup(page) {
            None => {
                let filled = served.memory.zero(page)?;
                self.stats.zeroed += u64::from(filled == Fill::Done);
                filled
            }
            Some((number, offset)) => {
                let object = self
                    .objects
                    .get(number as usize)
                    .ok_or(PagerError::Index(number))?
                    .id;
                let mut content = Page::default();
                let read = self.source.read(object, offset, &mut content);
                match read.map_err(|source| PagerError::Source { object, source })? {
                    Lookup::Here => {
                        let filled = served.memory.copy(page, &content)?;
                        if filled == Fill::Done {
                            served.space.remove(page..page + 1);
                            self.stats.filled += 1;
                            if self.dumping {
                                served.late.insert(Run {
                                    page,
                                    count: 1,
                                    object: number,
                                    offset,
                                });
                            }
                        }
                        filled
                    }
                    Lookup::Absent { block } => {
                        let waiting = self.waiting.entry((object, block)).or_default();
                        if waiting.is_empty() && !served.ahead.has_asked((object, block)) {
                            self.stats.needed += 1;
                            effects.push(Effect::Need(object, block));
                        }
                        waiting.insert((token, page));
                        return Ok(None);
                    }
                }
            }
        };
        match filled {
            Fill::Done => {}
            // The thread tries again: it either finds the page unmapped, or faults anew after the unread event.
            Fill::Busy | Fill::Unmapped => served.memory.wake(page),
            Fill::Gone => self.close(token, effects),
        }
        Ok(Some(filled))
    }

    /// A block that was needed is on this host now.
    ///
    /// # Errors
    /// When a page can never be filled.
    pub fn arrived(&mut self, object: ObjectId, block: u64) -> Result<Vec<Effect>, PagerError> {
        let mut effects = Vec::new();
        for (token, page) in self.waiting.remove(&(object, block)).unwrap_or_default() {
            self.fill(token, page, &mut effects)?;
        }
        self.ahead_goes_on((object, block), true, &mut effects);
        Ok(effects)
    }

    /// A block that was needed cannot be had: what follows, or `None` when a thread waits for it.
    pub fn lost(&mut self, object: ObjectId, block: u64) -> Option<Vec<Effect>> {
        if self.waiting.contains_key(&(object, block)) {
            return None;
        }
        let mut effects = Vec::new();
        self.ahead_goes_on((object, block), false, &mut effects);
        Some(effects)
    }

    /// Blocks that were asked for and have not arrived: a restarted agent is asked again.
    pub fn outstanding(&self) -> HashSet<(ObjectId, u64)> {
        let ahead = self.served.values().flat_map(|served| served.ahead.outstanding());
        self.waiting.keys().copied().chain(ahead).collect()
    }

    /// Fills what forked children still miss, so that the next checkpoint needs nothing of their index.
    /// Returns whether nothing is missing; otherwise to be called again when blocks have arrived.
    ///
    /// # Errors
    /// When a page can never be filled.
    pub fn fill_children(&mut self) -> Result<(bool, Vec<Effect>), PagerError> {
        let mut effects = Vec::new();
        self.forget_gone(&mut effects);
        let missing: Vec<(Token, u64)> = self
            .served
            .iter()
            .filter(|(_, served)| served.id.is_none())
            .flat_map(|(token, served)| {
                let runs = served.space.runs().iter();
                runs.flat_map(|run| (run.page..run.page + run.count).map(|page| (*token, page)))
            })
            .collect();
        self.fill_listed(missing, &mut effects)?;
        let complete = self
            .served
            .values()
            .all(|served| served.id.is_some() || served.space.is_empty());
        Ok((complete, effects))
    }

    /// The same for memory that its process, named by its id in the images, has locked since it was restored: the
    /// next restore fills that at once, from what is dumped.
    ///
    /// # Errors
    /// When a page can never be filled.
    pub fn fill_locked(
        &mut self,
        locked: &[(u32, Vec<Range<u64>>)],
    ) -> Result<(bool, Vec<Effect>), PagerError> {
        let mut effects = Vec::new();
        let missing = self.listed_in(locked);
        self.fill_listed(missing, &mut effects)?;
        Ok((self.listed_in(locked).is_empty(), effects))
    }

    fn listed_in(&self, ranges: &[(u32, Vec<Range<u64>>)]) -> Vec<(Token, u64)> {
        let mut listed = Vec::new();
        for (token, served) in &self.served {
            let of_it = ranges.iter().filter(|(id, _)| served.id == Some(*id));
            for range in of_it.flat_map(|(_, ranges)| ranges) {
                let runs = served.space.within(range);
                let pages = runs.flat_map(|run| run.page..run.page + run.count);
                listed.extend(pages.map(|page| (*token, page)));
            }
        }
        listed
    }

    fn fill_listed(
        &mut self,
        missing: Vec<(Token, u64)>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), PagerError> {
        for (token, page) in missing {
            // Listed but not mapped: nothing of it can be dumped or faulted on.
            if self.fill(token, page, effects)? == Some(Fill::Unmapped)
                && let Some(served) = self.served.get_mut(&token)
            {
                served.space.remove(page..page + 1);
            }
        }
        Ok(())
    }

    /// A dump begins, and the app is not stopped yet. A page that is faulted in from now on counts as missing, too:
    /// whoever dumps does not have it if they looked before; if they have it, what they have is newer.
    pub fn dump_begins(&mut self) {
        self.dumping = true;
        self.leave_ahead();
    }

    /// The app runs on.
    pub fn dump_ends(&mut self) {
        self.dumping = false;
        for served in self.served.values_mut() {
            served.late = AddressSpace::default();
        }
    }

    /// What is known of the address spaces that still exist. `None` while a forked child misses pages.
    pub fn known(&self) -> Option<Vec<Known>> {
        let mut spaces = Vec::new();
        for served in self.served.values().filter(|served| served.memory.is_alive()) {
            match served.id {
                Some(id) => {
                    let mut missing = served.space.clone();
                    served.late.runs().iter().for_each(|run| missing.insert(*run));
                    spaces.push(Known {
                        id,
                        missing,
                        origin: served.origin.clone(),
                    });
                }
                None if served.space.is_empty() => {}
                None => return None,
            }
        }
        Some(spaces)
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
