//! Which of the pages that CRIU dumped must be stored: not those of zeros, nor those that are as they were.
//!
//! A page that was read and not changed is dumped all the same. It is found by comparing it with where it came from,
//! which is on this host, as it was filled from there: no hashes need to be kept. Knows no files' names and no images.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::checkpoint::BLOCK_SIZE;
use crate::checkpoint::index::{AddressSpace, Object, ObjectId, PAGE_BYTES, PAGE_SIZE, Run};

/// Pages compared at once; a block of an object, so that what is compared is there as a whole or not at all.
const CHUNK: u64 = BLOCK_SIZE as u64 / PAGE_SIZE;

/// What becomes of the dumped pages of one process; each of them is in one of the three.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sifted {
    /// To be stored: pages, and the page offset of the first one in CRIU's file.
    pub new: Vec<(Range<u64>, u64)>,
    /// Where pages lie that were not changed.
    pub old: Vec<Run>,
    /// Pages of zeros, which need not lie anywhere.
    pub zero: Vec<Range<u64>>,
}

impl Sifted {
    /// How many pages are to be stored.
    pub fn new_pages(&self) -> u64 {
        self.new.iter().map(|(pages, _)| pages.end - pages.start).sum()
    }

    fn add_new(&mut self, page: u64, offset: u64) {
        match self.new.last_mut() {
            Some((last, first)) if last.end == page && *first + (page - last.start) == offset => {
                last.end += 1
            }
            _ => self.new.push((page..page + 1, offset)),
        }
    }

    fn add_zero(&mut self, page: u64) {
        match self.zero.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => self.zero.push(page..page + 1),
        }
    }

    fn add_old(&mut self, page: u64, object: u32, offset: u64) {
        match self.old.last_mut() {
            Some(last)
                if last.page + last.count == page
                    && last.object == object
                    && last.offset + last.count == offset =>
            {
                last.count += 1;
            }
            _ => self.old.push(Run {
                page,
                count: 1,
                object,
                offset,
            }),
        }
    }
}

/// Reads pages of an object, from a page offset on; false if not all of them are on this host.
pub(super) trait Stored {
    /// # Errors
    /// When the local copy is there but cannot be read.
    fn read_pages(&mut self, object: ObjectId, offset: u64, buffer: &mut [u8]) -> io::Result<bool>;
}

/// Sorts the pages `dumped` (with their page offsets in `file`) by what they hold. `origin` says where they came from,
/// in `objects`; what is not on this host counts as changed.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn sift(
    dumped: &[(Range<u64>, u64)],
    file: &File,
    origin: &AddressSpace,
    objects: &[Object],
    stored: &mut impl Stored,
) -> io::Result<Sifted> {
    let mut sifted = Sifted::default();
    let (mut now, mut before) = (vec![0; BLOCK_SIZE], vec![0; BLOCK_SIZE]);
    for (pages, offset) in dumped {
        let mut at = pages.start;
        while at < pages.end {
            let chunk = at..pages.end.min(at + CHUNK);
            let offset = offset + (at - pages.start);
            let now = &mut now[..bytes(chunk.end - chunk.start)];
            file.read_exact_at(now, offset * PAGE_SIZE)?;
            let came_from = origins(&chunk, origin, objects, stored, &mut before)?;
            let contents = now.chunks_exact(PAGE_BYTES).zip(before.chunks_exact(PAGE_BYTES));
            for (nth, ((now, before), came_from)) in (0..).zip(contents.zip(came_from)) {
                let page = chunk.start + nth;
                match came_from {
                    _ if is_zero(now) => sifted.add_zero(page),
                    Some((object, offset)) if now == before => sifted.add_old(page, object, offset),
                    _ => sifted.add_new(page, offset + nth),
                }
            }
            at = chunk.end;
        }
    }
    Ok(sifted)
}

/// Where each page of `chunk` came from, as far as that is on this host; its content is put at its place in `before`.
fn origins(
    chunk: &Range<u64>,
    origin: &AddressSpace,
    objects: &[Object],
    stored: &mut impl Stored,
    before: &mut [u8],
) -> io::Result<Vec<Option<(u32, u64)>>> {
    let mut found = vec![None; usize::try_from(chunk.end - chunk.start).unwrap_or_default()];
    for run in origin.within(chunk) {
        let Some(object) = objects.get(run.object as usize) else {
            continue;
        };
        let mut done = 0;
        while done < run.count {
            let offset = run.offset + done;
            let count = (run.count - done).min(CHUNK - offset % CHUNK);
            let first = run.page + done - chunk.start;
            let place = bytes(first)..bytes(first + count);
            if stored.read_pages(object.id, offset, &mut before[place])? {
                let pages = found.iter_mut().skip(bytes(first) / PAGE_BYTES);
                for (slot, offset) in pages.zip(offset..offset + count) {
                    *slot = Some((run.object, offset));
                }
            }
            done += count;
        }
    }
    Ok(found)
}

/// Bytes of so many pages, which are never more than a chunk.
fn bytes(pages: u64) -> usize {
    usize::try_from(pages * PAGE_SIZE).unwrap_or_default()
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Write;

    use proptest::prelude::*;

    /// One object, of which the blocks in `here` are on this host.
    struct Local {
        content: Vec<u8>,
        here: Vec<bool>,
    }

    impl Stored for Local {
        fn read_pages(&mut self, _: ObjectId, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
            let at = bytes(offset);
            buffer.copy_from_slice(&self.content[at..at + buffer.len()]);
            let blocks = at / BLOCK_SIZE..(at + buffer.len()).div_ceil(BLOCK_SIZE);
            Ok(blocks.into_iter().all(|block| self.here[block]))
        }
    }

    fn page(value: u8) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page[PAGE_BYTES - 1] = value;
        page
    }

    const PAGES: u64 = 64;

    proptest! {
        #[test]
        fn every_page_is_stored_unless_it_is_zero_or_as_it_was(
            // Of few values, so that many are equal; 0 is a page of zeros.
            dumped in proptest::collection::btree_map(100..200u64, 0..4u8, 1..100),
            origin in proptest::collection::btree_map(100..200u64, 0..PAGES, 0..100),
            values in proptest::collection::vec(0..4u8, usize::try_from(PAGES).expect("few")),
            here in proptest::collection::vec(any::<bool>(), 4),
        ) {
            let mut file = tempfile::tempfile().expect("a file");
            let mut runs: Vec<(Range<u64>, u64)> = Vec::new();
            for ((at, value), offset) in dumped.iter().zip(0..) {
                file.write_all(&page(*value)).expect("written");
                match runs.last_mut() {
                    Some((last, _)) if last.end == *at => last.end += 1,
                    _ => runs.push((*at..*at + 1, offset)),
                }
            }
            let mut space = AddressSpace::default();
            for (page, offset) in &origin {
                space.insert(Run { page: *page, count: 1, object: 0, offset: *offset });
            }
            let id = ObjectId { generation: 1, number: 1 };
            let objects = [Object { id, pages: PAGES }];
            let content = values.iter().flat_map(|value| page(*value)).collect();
            let mut local = Local { content, here: here.clone() };
            let sifted = sift(&runs, &file, &space, &objects, &mut local).expect("sifted");

            let mut found = BTreeMap::new();
            for (pages, offset) in &sifted.new {
                found.extend(pages.clone().zip(*offset..).map(|(page, at)| (page, (2, at))));
            }
            for run in &sifted.old {
                found.extend((run.page..).zip(run.offset..run.offset + run.count).map(|(page, at)| (page, (1, at))));
            }
            for pages in &sifted.zero {
                found.extend(pages.clone().map(|page| (page, (0, 0))));
            }
            let expected: BTreeMap<_, _> = dumped.iter().zip(0..).map(|((page, value), at)| {
                let same = origin.get(page).filter(|offset| {
                    let nth = usize::try_from(**offset).expect("few");
                    here[nth / 16] && values[nth] == *value
                });
                (*page, match (value, same) {
                    (0, _) => (0, 0),
                    (_, Some(offset)) => (1, *offset),
                    (_, None) => (2, at),
                })
            }).collect();
            prop_assert_eq!(found, expected);
            let listed: u64 = sifted.new_pages()
                + sifted.old.iter().map(|run| run.count).sum::<u64>()
                + sifted.zero.iter().map(|pages| pages.end - pages.start).sum::<u64>();
            prop_assert_eq!(listed, dumped.len() as u64);
        }
    }
}
