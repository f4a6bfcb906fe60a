//! What is filled before anybody asks for it: which pages of an address space are still to come, and the filling in
//! batches. It knows no reason why a page is predicted.
//!
//! Nobody who faults waits for it: between two batches whoever runs the pager looks for faults. A batch begins with what
//! the address space has to say, as every filling does, so a page that was discarded is not listed any more when it is
//! looked up, and the kernel refuses the batch while something new is unread.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use super::memory::{Fill, Page};
use super::{Effect, Lookup, PageSource, Pager, PagerError, Token, nanoseconds};
use crate::checkpoint::index::ObjectId;

/// Most pages of one batch: what a fault waits for at worst, a tenth of a millisecond.
const BATCH: usize = 64;
/// Blocks of an address space that are asked for ahead at once, so that a fault's block is not queued behind many.
const BLOCKS_AT_ONCE: usize = 32;

/// Pages of one address space that are to be filled ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// In the order in which they are wanted.
    queue: VecDeque<u64>,
    /// Those whose block is not on this host.
    absent: HashMap<Block, Vec<u64>>,
    /// Of these blocks, those that were asked for.
    asked: HashSet<Block>,
    /// And those that were not, yet.
    unasked: VecDeque<Block>,
    /// All of them.
    wanted: HashSet<u64>,
    /// The memory is registered, so that it can be filled.
    open: bool,
}

/// A block of a page object.
type Block = (ObjectId, u64);

/// A page of a batch.
struct Place {
    page: u64,
    object: ObjectId,
    offset: u64,
}

impl Ahead {
    pub(super) fn new(pages: Vec<u64>) -> Self {
        let mut wanted = HashSet::with_capacity(pages.len());
        let queue = pages.into_iter().filter(|page| wanted.insert(*page)).collect();
        Ahead {
            queue,
            wanted,
            ..Ahead::default()
        }
    }

    pub(super) fn open(&mut self) {
        self.open = true;
    }

    /// Whether a page is to be filled; not any more: somebody asks for it.
    pub(super) fn take(&mut self, page: u64) -> bool {
        self.wanted.remove(&page)
    }

    /// A block has come; its pages are next. Gives a block to be asked for in its place.
    pub(super) fn arrived(&mut self, block: Block) -> Option<Block> {
        let pages = self.absent.remove(&block)?;
        self.put_back(pages.into_iter());
        if !self.asked.remove(&block) {
            // A fault had asked for it.
            self.unasked.retain(|other| *other != block);
        }
        self.next_block()
    }

    /// A block cannot be had; its pages come when they are asked for, if ever. Gives one to be asked for in its place.
    pub(super) fn lost(&mut self, block: Block) -> Option<Block> {
        for page in self.absent.remove(&block)? {
            self.wanted.remove(&page);
        }
        self.asked.remove(&block);
        self.next_block()
    }

    /// Whether this asked for a block that has not come.
    pub(super) fn has_asked(&self, block: Block) -> bool {
        self.asked.contains(&block)
    }

    /// Blocks that were asked for and have not come.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = Block> {
        self.asked.iter().copied()
    }

    fn next_block(&mut self) -> Option<Block> {
        if self.asked.len() >= BLOCKS_AT_ONCE {
            return None;
        }
        let block = self.unasked.pop_front()?;
        self.asked.insert(block);
        Some(block)
    }

    /// `page` waits for a block.
    fn await_block(&mut self, block: Block, page: u64) {
        let pages = self.absent.entry(block).or_default();
        if pages.is_empty() {
            self.unasked.push_back(block);
        }
        pages.push(page);
    }

    fn is_ready(&self) -> bool {
        self.open && !self.queue.is_empty()
    }

    /// The next pages, by address.
    fn next(&mut self) -> Vec<u64> {
        let mut pages = Vec::with_capacity(BATCH);
        while pages.len() < BATCH
            && let Some(page) = self.queue.pop_front()
        {
            if self.wanted.contains(&page) {
                pages.push(page);
            }
        }
        pages.sort_unstable();
        pages
    }

    fn put_back(&mut self, pages: impl DoubleEndedIterator<Item = u64>) {
        pages.rev().for_each(|page| self.queue.push_front(page));
    }
}

impl<S: PageSource> Pager<S> {
    /// The app is restored: all of its memory is registered.
    pub fn restored(&mut self) {
        self.served.values_mut().for_each(|served| served.ahead.open());
    }

    /// Whether there is anything that [`Pager::fill_ahead`] could do now.
    pub fn has_ahead(&self) -> bool {
        self.served.values().any(|served| served.ahead.is_ready())
    }

    /// Gives up what was to be filled ahead.
    pub(super) fn leave_ahead(&mut self) {
        self.planned.clear();
        for served in self.served.values_mut() {
            served.ahead = Ahead::default();
        }
    }

    /// Fills one batch of what is predicted.
    ///
    /// # Errors
    /// When a page can never be filled.
    pub fn fill_ahead(&mut self) -> Result<Vec<Effect>, PagerError> {
        let since = Instant::now();
        let ready = |(token, served): (&Token, &super::Served)| served.ahead.is_ready().then_some(*token);
        let Some(token) = self.served.iter().find_map(ready) else {
            return Ok(Vec::new());
        };
        // What the process changed must be known before anything of it is filled.
        let mut effects = self.ready(token)?;
        let mut batch = std::mem::take(&mut self.batch);
        batch.resize(BATCH, Page::default());
        let filled = self.fill_batch(token, &mut batch);
        self.batch = batch;
        self.ask_ahead(token, &mut effects);
        if filled? {
            self.close(token, &mut effects);
        }
        self.stats.ahead_ns += nanoseconds(since);
        if !self.has_ahead() {
            self.batch = Vec::new();
        }
        Ok(effects)
    }

    /// Asks for blocks that predicted pages wait for, as many as may be on their way at once.
    fn ask_ahead(&mut self, token: Token, effects: &mut Vec<Effect>) {
        let Some(served) = self.served.get_mut(&token) else {
            return;
        };
        while let Some(block) = served.ahead.next_block() {
            // A fault may have asked for it.
            if !self.waiting.contains_key(&block) {
                self.stats.needed += 1;
                effects.push(Effect::Need(block.0, block.1));
            }
        }
    }

    /// What was to be filled ahead and waited for a block goes on: it is here (`came`), or cannot be had.
    pub(super) fn ahead_goes_on(&mut self, block: Block, came: bool, effects: &mut Vec<Effect>) {
        let tokens: Vec<Token> = self.served.keys().copied().collect();
        for token in tokens {
            let Some(served) = self.served.get_mut(&token) else {
                continue;
            };
            let next = if came {
                served.ahead.arrived(block)
            } else {
                served.ahead.lost(block)
            };
            if let Some((object, number)) = next {
                self.stats.needed += 1;
                effects.push(Effect::Need(object, number));
            }
        }
    }

    /// Whether the address space is gone.
    fn fill_batch(&mut self, token: Token, batch: &mut [Page]) -> Result<bool, PagerError> {
        let Some(served) = self.served.get_mut(&token) else {
            return Ok(false);
        };
        let mut places = Vec::with_capacity(BATCH);
        for page in served.ahead.next() {
            match served.space.lookup(page) {
                Some((number, offset)) => {
                    let object = self.objects.get(number as usize);
                    let object = object.ok_or(PagerError::Index(number))?.id;
                    places.push(Place { page, object, offset });
                }
                // It was discarded, or is no page of the checkpoint.
                None => drop(served.ahead.take(page)),
            }
        }
        let mut here = Vec::with_capacity(places.len());
        for run in places.chunk_by(|a, b| a.object == b.object && a.offset + 1 == b.offset) {
            let first = here.len();
            let pages = &mut batch[first..first + run.len()];
            let (object, offset) = (run[0].object, run[0].offset);
            let read = self.source.read_run(object, offset, pages);
            match read.map_err(|source| PagerError::Source { object, source })? {
                Lookup::Here => here.extend(run.iter().map(|place| place.page)),
                Lookup::Absent { .. } if run.len() > 1 => {
                    // Some of it may be here.
                    for place in run {
                        let page = &mut batch[here.len()..=here.len()];
                        let read = self.source.read_run(object, place.offset, page);
                        match read.map_err(|source| PagerError::Source { object, source })? {
                            Lookup::Here => here.push(place.page),
                            Lookup::Absent { block } => served.ahead.await_block((object, block), place.page),
                        }
                    }
                }
                Lookup::Absent { block } => served.ahead.await_block((object, block), run[0].page),
            }
        }
        let mut content = &batch[..];
        for (at, run) in runs(&here) {
            let (pages, rest) = content.split_at(run.len());
            content = rest;
            let (there, ended) = served.memory.copy_run(run[0], pages)?;
            self.stats.ahead += there as u64;
            for page in &run[..there] {
                served.ahead.take(*page);
            }
            served.space.remove(run[0]..run[0] + there as u64);
            match ended {
                Fill::Done => {}
                // Whoever waits for it tries again, and finds out.
                Fill::Unmapped => {
                    served.ahead.take(run[there]);
                    served.ahead.put_back(run[there + 1..].iter().copied());
                }
                Fill::Busy => {
                    served.ahead.put_back(here[at + there..].iter().copied());
                    return Ok(false);
                }
                Fill::Gone => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// Adjacent pages, with the place of each run among all.
fn runs(pages: &[u64]) -> impl Iterator<Item = (usize, &[u64])> {
    let mut at = 0;
    pages.chunk_by(|a, b| a + 1 == *b).map(move |run| {
        let begin = at;
        at += run.len();
        (begin, run)
    })
}
