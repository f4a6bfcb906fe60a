//! What every page of the test app's memory must hold: a model that both sides keep.
//!
//! The app (`pico-testapp`) and the scenario run the same [`World`] from the same seeds. The app also carries the
//! [`Op`]s out on real memory of every [`Kind`], and compares each page with its own model; the scenario compares
//! what the app has read with *its* model, so that an app that was taken back to an older state as a whole, model
//! included, is found too. Pure: no memory but its own, no system calls.

use std::fmt;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Words of a page.
pub const WORDS: usize = PAGE / 8;
/// Forked children that are kept at a time.
pub const CHILDREN: usize = 2;

/// A kind of memory, and what may be done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory.
    Private,
    /// The same, advised to be of huge pages.
    Huge,
    /// What brk(2) gives.
    Heap,
    /// The stack of the main thread.
    MainStack,
    /// The stack of another thread.
    Stack,
    /// Shared anonymous memory.
    Shared,
    /// A mapped memfd.
    Memfd,
    /// System V shared memory.
    SysV,
    /// A private mapping of a file.
    File,
    /// Private anonymous memory with pages that must not be touched (mprotect(2)).
    Guarded,
    /// Private anonymous memory, parts of it locked.
    Locked,
    /// Private anonymous memory that is moved, swapped and resized (mremap(2)).
    Moved,
    /// Private anonymous memory with parts unmapped and mapped anew.
    Holes,
    /// Private anonymous memory that a forked child finds empty (MADV_WIPEONFORK).
    Wiped,
}

impl Kind {
    /// All of them with their sizes in pages.
    pub const ALL: [(Kind, usize); 15] = [
        (Kind::Private, 1024),
        (Kind::Huge, 1024),
        (Kind::Heap, 256),
        (Kind::MainStack, 32),
        (Kind::Stack, 64),
        (Kind::Stack, 64),
        (Kind::Shared, 128),
        (Kind::Memfd, 128),
        (Kind::SysV, 128),
        (Kind::File, 64),
        (Kind::Guarded, 128),
        (Kind::Locked, 128),
        (Kind::Moved, 256),
        (Kind::Holes, 256),
        (Kind::Wiped, 32),
    ];

    /// Whether parent and forked children write to the same pages.
    pub fn is_shared(self) -> bool {
        matches!(self, Kind::Shared | Kind::Memfd | Kind::SysV)
    }
}

/// What a page must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Zeros.
    Zero,
    /// What [`word`] gives for this number, which no other writing has.
    Written(u64),
    /// What [`word`] gives, or zeros: the kernel may have taken it (MADV_FREE).
    Freed(u64),
}

/// Word `index` of what was written under the number `id`. The first word is the number itself.
pub fn word(id: u64, index: usize) -> u64 {
    match index {
        0 => id,
        _ => mix(id ^ (index as u64) << 48),
    }
}

/// The number under which page `page` of the file behind [`Kind::File`] was written.
pub fn file_page(page: usize) -> u64 {
    1 << 40 | page as u64
}

fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Random(mix(seed))
    }

    /// The next number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mix(self.0) % limit as u64).unwrap_or_default()
    }

    /// A run of at most `most` pages in a region of `pages`: first and count.
    fn run(&mut self, pages: usize, most: usize) -> (usize, usize) {
        let first = self.below(pages);
        (first, 1 + self.below(most.min(pages - first)))
    }
}

/// A region of the app's memory.
#[derive(Debug, Clone)]
pub struct Region {
    /// Its kind.
    pub kind: Kind,
    /// What its pages must hold.
    pub pages: Vec<Page>,
    /// Which of them must not be touched.
    pub guarded: Vec<bool>,
}

/// How pages are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// mlock(2): all are there at once.
    Now,
    /// mlock2(2) with MLOCK_ONFAULT: they come when they are touched.
    OnFault,
    /// munlock(2).
    Not,
}

/// Something done to a run of pages of one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Each page is written, the first under this number, the next under the next.
    Write(u64),
    /// MADV_DONTNEED.
    Discard,
    /// MADV_FREE.
    Free,
    /// MADV_REMOVE: shared pages become zeros.
    Punch,
    /// munmap(2), and new memory at the same place.
    Replace,
    /// The run changes places with the one as long that begins here, by three moves.
    Swap(usize),
    /// The whole region moves to another place.
    Move,
    /// The region gets this length in pages.
    Resize(usize),
    /// Guards are put up or taken away.
    Guard(bool),
    /// Locks.
    Lock(Lock),
}

/// One step of the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An operation on pages `first..first + count` of a region of the app itself (`None`) or of a child.
    Do {
        /// Whose memory.
        child: Option<usize>,
        /// Position in [`World::regions`].
        region: usize,
        /// First page.
        first: usize,
        /// How many.
        count: usize,
        /// What.
        op: Op,
    },
    /// A child is forked and kept in this place; the one that was there ends.
    Fork(usize),
}

/// The memory of the app and of its children.
#[derive(Debug, Clone)]
pub struct World {
    /// The app's own, as [`Kind::ALL`] lists them.
    pub regions: Vec<Region>,
    /// The children's; their shared regions are the app's.
    pub children: Vec<Option<Vec<Region>>>,
    written: u64,
}

/// What was read of some pages; equal for equal contents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// Adds a page that holds what was written under `id`, or zeros (`None`).
    pub fn add(&mut self, id: Option<u64>) {
        self.0 = mix(self.0 ^ id.unwrap_or_default()).wrapping_add(1);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Default for World {
    fn default() -> Self {
        World {
            regions: Kind::ALL.map(|(kind, pages)| fresh(kind, pages)).to_vec(),
            children: vec![None; CHILDREN],
            written: 0,
        }
    }
}

fn fresh(kind: Kind, pages: usize) -> Region {
    Region {
        kind,
        pages: (0..pages).map(|page| blank(kind, page)).collect(),
        guarded: vec![false; pages],
    }
}

/// What page `page` holds before anything was written to it, or after it was thrown away.
fn blank(kind: Kind, page: usize) -> Page {
    match kind {
        Kind::File => Page::Written(file_page(page)),
        _ => Page::Zero,
    }
}

impl World {
    /// Fills everything once.
    pub fn fill(&mut self) -> Vec<Step> {
        (0..self.regions.len())
            .map(|region| {
                let count = self.regions[region].pages.len();
                let op = self.write(count);
                self.done(None, region, 0, count, op)
            })
            .collect()
    }

    /// Changes `steps` runs of pages at random.
    pub fn change(&mut self, seed: u64, steps: usize) {
        let mut random = Random::new(seed);
        for _ in 0..steps {
            self.step(&mut random);
        }
    }

    /// Changes one run of pages at random, and says what that was: nothing, where the dice fell on what cannot be.
    pub fn step(&mut self, random: &mut Random) -> Option<Step> {
        let who = random.below(10);
        if who == 0 {
            let place = random.below(CHILDREN);
            self.children[place] = Some(self.regions.iter().map(forked).collect());
            return Some(Step::Fork(place));
        }
        let child = (who <= 3).then_some(who % CHILDREN);
        let regions = match child {
            Some(child) => self.children[child].as_ref()?,
            None => &self.regions,
        };
        let region = random.below(regions.len());
        let (kind, pages) = (regions[region].kind, regions[region].pages.len());
        if child.is_some() && kind.is_shared() {
            return None;
        }
        let (first, count) = random.run(pages, 40);
        let op = match (kind, random.below(6)) {
            (Kind::Private | Kind::Huge | Kind::Heap | Kind::Wiped, 0)
            | (Kind::File | Kind::Holes | Kind::Moved, 0) => Op::Discard,
            (Kind::Private | Kind::Huge | Kind::Moved, 1) => Op::Free,
            (Kind::Shared | Kind::Memfd, 0) => Op::Punch,
            (Kind::Holes, 1 | 2) => Op::Replace,
            (Kind::Moved, 2) => {
                let other = random.below(pages);
                let apart = first + count <= other || other + count <= first;
                if !apart || other + count > pages {
                    return None;
                }
                Op::Swap(other)
            }
            (Kind::Moved, 3) => Op::Move,
            (Kind::Moved, 4) => Op::Resize(128 + random.below(256)),
            (Kind::Heap, 1) if child.is_none() => Op::Resize(256 + random.below(128)),
            (Kind::Guarded, 0 | 1) => Op::Guard(random.below(2) == 0),
            (Kind::Locked, 0) => Op::Lock(Lock::Now),
            (Kind::Locked, 1) => Op::Lock(Lock::OnFault),
            (Kind::Locked, 2) => Op::Lock(Lock::Not),
            _ => self.write(count),
        };
        Some(self.done(child, region, first, count, op))
    }

    fn write(&mut self, count: usize) -> Op {
        let first = self.written + 1;
        self.written += count as u64;
        Op::Write(first)
    }

    fn done(&mut self, child: Option<usize>, region: usize, first: usize, count: usize, op: Op) -> Step {
        let regions = match child.and_then(|child| self.children[child].as_mut()) {
            Some(regions) => regions,
            None => &mut self.regions,
        };
        regions[region].apply(first, count, op);
        Step::Do {
            child,
            region,
            first,
            count,
            op,
        }
    }
}

/// A region as a forked child has it.
fn forked(region: &Region) -> Region {
    match region.kind {
        Kind::Wiped => fresh(Kind::Wiped, region.pages.len()),
        // A child's memory is not locked, but it is there.
        _ => region.clone(),
    }
}

impl Region {
    /// Applies an operation to the model.
    pub fn apply(&mut self, first: usize, count: usize, op: Op) {
        let kind = self.kind;
        let guarded = &self.guarded;
        let run = (first..).zip(&mut self.pages[first..first + count]);
        match op {
            Op::Write(id) => run
                .filter(|(page, _)| !guarded[*page])
                .for_each(|(page, now)| *now = Page::Written(id + (page - first) as u64)),
            Op::Discard | Op::Punch | Op::Replace => {
                run.for_each(|(page, now)| *now = blank(kind, page));
            }
            Op::Free => run.for_each(|(_, now)| {
                *now = match *now {
                    Page::Written(id) | Page::Freed(id) => Page::Freed(id),
                    Page::Zero => Page::Zero,
                }
            }),
            Op::Swap(other) => (0..count).for_each(|page| self.pages.swap(first + page, other + page)),
            Op::Resize(pages) => {
                self.pages.resize(pages, Page::Zero);
                self.guarded.resize(pages, false);
            }
            Op::Guard(up) => self.guarded[first..first + count].fill(up),
            Op::Move | Op::Lock(_) => {}
        }
    }
}

/// The pages that a check with this seed reads: about `percent` of each region, in an order that no read-ahead
/// follows.
pub fn chosen(regions: &[Region], seed: u64, percent: usize) -> Vec<(usize, usize)> {
    let mut random = Random::new(seed);
    let mut pages: Vec<_> = (0..regions.len())
        .flat_map(|region| (0..regions[region].pages.len()).map(move |page| (region, page)))
        .filter(|_| random.below(100) < percent)
        .collect();
    for at in (1..pages.len()).rev() {
        pages.swap(at, random.below(at + 1));
    }
    pages
}

/// What a check of these regions must read.
pub fn digest(regions: &[Region], seed: u64, percent: usize) -> Digest {
    let mut digest = Digest::default();
    for (region, page) in chosen(regions, seed, percent) {
        match regions[region].pages[page] {
            Page::Zero => digest.add(None),
            Page::Written(id) => digest.add(Some(id)),
            // Either is right, so neither is compared.
            Page::Freed(_) => {}
        }
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seeds_give_the_same_world_and_others_another() {
        let world = |seed| {
            let mut world = World::default();
            world.fill();
            world.change(seed, 200);
            digest(&world.regions, 1, 100)
        };
        assert_eq!(world(1), world(1));
        assert_ne!(world(1), world(2));
    }

    #[test]
    fn every_operation_comes_up() {
        let mut world = World::default();
        let mut random = Random::new(7);
        let steps: Vec<_> = (0..3000).filter_map(|_| world.step(&mut random)).collect();
        let any = |wanted: fn(&Op) -> bool| {
            steps
                .iter()
                .any(|step| matches!(step, Step::Do { op, .. } if wanted(op)))
        };
        assert!(any(|op| matches!(op, Op::Swap(_))) && any(|op| matches!(op, Op::Move)));
        assert!(any(|op| matches!(op, Op::Free)) && any(|op| matches!(op, Op::Punch)));
        assert!(any(|op| matches!(op, Op::Lock(Lock::OnFault))) && any(|op| matches!(op, Op::Guard(true))));
        assert!(
            steps
                .iter()
                .any(|step| matches!(step, Step::Do { child: Some(_), .. }))
        );
        assert!(steps.iter().any(|step| matches!(step, Step::Fork(_))));
    }

    #[test]
    fn one_page_of_another_content_is_another_digest() {
        let mut world = World::default();
        world.fill();
        let before = digest(&world.regions, 3, 100);
        world.regions[2].pages[9] = Page::Zero;
        assert_ne!(digest(&world.regions, 3, 100), before);
    }
}
