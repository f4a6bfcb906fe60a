//! The page index: for every address space of an app, where the bytes of its lazy pages are.
//!
//! Pages are 4 KiB and named by their number (address / 4096). A run of them points into a *page object*: the
//! pages one swap-out stored for one process. Pages that a later swap-out did not touch stay where an earlier
//! one put them, so an index may point into objects of many generations, but a page is always found with one
//! look, never along a chain. Pure: no I/O, no knowledge of CRIU or userfaultfd.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes of a page, as a length in memory. Other page sizes are not supported (`doctor` says so).
pub const PAGE_BYTES: usize = 4096;
/// [`PAGE_BYTES`] as a length in files and address spaces.
pub const PAGE_SIZE: u64 = PAGE_BYTES as u64;

/// More pages than any address space of 47 bits holds: numbers above are damage.
const MAX_PAGE: u64 = 1 << 40;
/// Bounds believed of an encoded index.
const MAX_OBJECTS: u64 = 1 << 20;
const MAX_SPACES: u64 = 1 << 20;
const MAX_RUNS: u64 = 1 << 28;
const MAGIC: &[u8; 8] = b"picoidx1";

/// Name of a page object: which swap-out stored it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectId {
    /// The generation of the checkpoint that stored the object.
    pub generation: u64,
    /// Number within the generation (CRIU's pages id).
    pub number: u32,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.generation, self.number)
    }
}

/// A page object as an index lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its name.
    pub id: ObjectId,
    /// Its length in pages.
    pub pages: u64,
}

/// Adjacent pages of an address space that lie adjacent in one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First page number.
    pub page: u64,
    /// How many pages, at least 1.
    pub count: u64,
    /// Which object: a position in [`PageIndex::objects`].
    pub object: u32,
    /// Page offset of the first page in the object.
    pub offset: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.page + self.count
    }

    /// The part of this run inside `range`, if any.
    fn clip(&self, range: &Range<u64>) -> Option<Run> {
        let start = self.page.max(range.start);
        let end = self.end().min(range.end);
        (start < end).then(|| Run {
            page: start,
            count: end - start,
            object: self.object,
            offset: self.offset + (start - self.page),
        })
    }
}

/// Where the pages of one address space are. Runs are sorted and do not overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressSpace {
    runs: Vec<Run>,
}

impl AddressSpace {
    /// The runs, in address order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How many pages are listed.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Whether no page is listed.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Where `page` lies: object and page offset in it.
    pub fn lookup(&self, page: u64) -> Option<(u32, u64)> {
        let at = self.runs.partition_point(|run| run.end() <= page);
        let run = self.runs.get(at).filter(|run| run.page <= page)?;
        Some((run.object, run.offset + (page - run.page)))
    }

    /// The parts of runs that lie in `range`, in address order.
    pub fn within(&self, range: &Range<u64>) -> impl Iterator<Item = Run> {
        let first = self.runs.partition_point(|run| run.end() <= range.start);
        self.runs[first..].iter().map_while(move |run| run.clip(range))
    }

    /// Forgets the pages in `range`.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.runs.partition_point(|run| run.end() <= range.start);
        let last = self.runs.partition_point(|run| run.page < range.end);
        if first >= last {
            return;
        }
        let head = self.runs[first].clip(&(0..range.start));
        let tail = self.runs[last - 1].clip(&(range.end..u64::MAX));
        self.runs.splice(first..last, head.into_iter().chain(tail));
    }

    /// Lists `run`; pages listed before at the same place give way.
    pub fn insert(&mut self, run: Run) {
        if run.count == 0 {
            return;
        }
        self.remove(run.page..run.end());
        let at = self.runs.partition_point(|other| other.page < run.page);
        if let Some(before) = at.checked_sub(1).and_then(|i| self.runs.get_mut(i))
            && before.end() == run.page
            && before.object == run.object
            && before.offset + before.count == run.offset
        {
            before.count += run.count;
            return;
        }
        self.runs.insert(at, run);
    }

    /// Moves the pages in `from` to start at `to`, as mremap(2) does; what was listed there is forgotten.
    pub fn relocate(&mut self, from: Range<u64>, to: u64) {
        let moved: Vec<Run> = self.runs.iter().filter_map(|run| run.clip(&from)).collect();
        self.remove(from.clone());
        self.remove(to..to + (from.end - from.start));
        for run in moved {
            self.insert(Run {
                page: run.page - from.start + to,
                ..run
            });
        }
    }

    /// Keeps only pages inside one of the sorted, disjoint `ranges`.
    pub fn retain(&mut self, ranges: &[Range<u64>]) {
        let mut kept = Vec::with_capacity(self.runs.len());
        let mut at = 0;
        for run in &self.runs {
            while ranges.get(at).is_some_and(|range| range.end <= run.page) {
                at += 1;
            }
            kept.extend(
                ranges[at..]
                    .iter()
                    .take_while(|r| r.start < run.end())
                    .filter_map(|r| run.clip(r)),
            );
        }
        self.runs = kept;
    }
}

/// The index of one checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageIndex {
    /// The objects that runs point into.
    pub objects: Vec<Object>,
    /// Address spaces with the id CRIU's images give them, each id once.
    pub spaces: Vec<(u32, AddressSpace)>,
}

/// Why bytes are not a page index.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IndexError {
    /// The first bytes are not an index of a version this agent reads.
    #[error("not a page index of version 1; it was written by another release or is damaged")]
    Magic,
    /// The bytes end too early, or go on after the end.
    #[error("the page index has the wrong length")]
    Length,
    /// A number is out of bounds.
    #[error("the page index is damaged: {0}")]
    Invalid(&'static str),
}

impl PageIndex {
    /// The position of `object` in the list, added if it is new.
    pub fn intern(&mut self, object: Object) -> Result<u32, IndexError> {
        let at = match self.objects.iter().position(|known| known.id == object.id) {
            Some(at) => at,
            None => {
                self.objects.push(object);
                self.objects.len() - 1
            }
        };
        u32::try_from(at).map_err(|_| IndexError::Invalid("too many page objects"))
    }

    /// The pages of the address space `id`.
    pub fn space(&self, id: u32) -> Option<&AddressSpace> {
        self.spaces
            .iter()
            .find(|(known, _)| *known == id)
            .map(|(_, space)| space)
    }

    /// Drops objects no run points into, so that their storage can be freed.
    pub fn compact(&mut self) {
        let mut used = vec![None; self.objects.len()];
        let mut objects = Vec::new();
        for (_, space) in &mut self.spaces {
            for run in &mut space.runs {
                let old = run.object as usize;
                let new = *used[old].get_or_insert_with(|| {
                    objects.push(self.objects[old]);
                    objects.len() - 1
                });
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a subset of objects numbered by u32"
                )]
                {
                    run.object = new as u32;
                }
            }
        }
        self.objects = objects;
    }

    /// The index as bytes: magic, counts, objects, spaces with their runs; all numbers little endian u64.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let mut put = |n: u64| out.extend_from_slice(&n.to_le_bytes());
        put(self.objects.len() as u64);
        put(self.spaces.len() as u64);
        for object in &self.objects {
            put(object.id.generation);
            put(u64::from(object.id.number));
            put(object.pages);
        }
        for (id, space) in &self.spaces {
            put(u64::from(*id));
            put(space.runs.len() as u64);
            for run in &space.runs {
                put(run.page);
                put(run.count);
                put(u64::from(run.object));
                put(run.offset);
            }
        }
        out
    }

    /// Reads what [`PageIndex::encode`] wrote; every number is checked before it is believed.
    ///
    /// # Errors
    /// When the bytes are no index, or name pages or objects that cannot exist.
    pub fn decode(bytes: &[u8]) -> Result<PageIndex, IndexError> {
        let mut reader = Reader {
            rest: bytes.strip_prefix(MAGIC).ok_or(IndexError::Magic)?,
        };
        let objects = reader.count(MAX_OBJECTS, 24)?;
        let spaces = reader.count(MAX_SPACES, 16)?;
        let mut index = PageIndex::default();
        let mut known = HashSet::new();
        for _ in 0..objects {
            let id = ObjectId {
                generation: reader.number()?,
                number: reader.small("object number")?,
            };
            let pages = reader.number()?;
            if pages > MAX_PAGE {
                return Err(IndexError::Invalid("object length"));
            }
            index.objects.push(Object { id, pages });
        }
        for _ in 0..spaces {
            let id = reader.small("address space")?;
            if !known.insert(id) {
                return Err(IndexError::Invalid("an address space twice"));
            }
            let runs = reader.count(MAX_RUNS, 32)?;
            let mut space = AddressSpace::default();
            let mut end = 0;
            for _ in 0..runs {
                let (page, count) = (reader.number()?, reader.number()?);
                let (object, offset) = (reader.small("object")?, reader.number()?);
                let pages = index
                    .objects
                    .get(object as usize)
                    .ok_or(IndexError::Invalid("unknown object"))?
                    .pages;
                if count == 0 || page < end || page > MAX_PAGE || count > MAX_PAGE {
                    return Err(IndexError::Invalid("run"));
                }
                if offset.checked_add(count).is_none_or(|last| last > pages) {
                    return Err(IndexError::Invalid("run beyond its object"));
                }
                end = page + count;
                space.runs.push(Run {
                    page,
                    count,
                    object,
                    offset,
                });
            }
            index.spaces.push((id, space));
        }
        if !reader.rest.is_empty() {
            return Err(IndexError::Length);
        }
        Ok(index)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn number(&mut self) -> Result<u64, IndexError> {
        let (bytes, rest) = self.rest.split_first_chunk::<8>().ok_or(IndexError::Length)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    fn small(&mut self, what: &'static str) -> Result<u32, IndexError> {
        u32::try_from(self.number()?).map_err(|_| IndexError::Invalid(what))
    }

    /// A count of items of at least `size` bytes each, which must fit into what is left.
    fn count(&mut self, max: u64, size: u64) -> Result<u64, IndexError> {
        let count = self.number()?;
        if count > max || count.saturating_mul(size) > self.rest.len() as u64 {
            return Err(IndexError::Length);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u64, u64),
        Remove(u64, u64),
        Relocate(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..200u64, 1..20u64, 0..1000u64).prop_map(|(p, c, o)| Step::Insert(p, c, o)),
            (0..200u64, 0..30u64).prop_map(|(p, c)| Step::Remove(p, c)),
            (0..100u64, 1..30u64, 300..400u64).prop_map(|(p, c, to)| Step::Relocate(p, c, to)),
        ]
    }

    proptest! {
        #[test]
        fn an_address_space_is_a_map_from_page_to_place(steps in proptest::collection::vec(step(), 0..40)) {
            let mut space = AddressSpace::default();
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(page, count, offset) => {
                        space.insert(Run { page, count, object: 0, offset });
                        model.extend((0..count).map(|i| (page + i, offset + i)));
                    }
                    Step::Remove(page, count) => {
                        space.remove(page..page + count);
                        model.retain(|p, _| !(page..page + count).contains(p));
                    }
                    Step::Relocate(page, count, to) => {
                        space.relocate(page..page + count, to);
                        let moved: Vec<_> =
                            model.range(page..page + count).map(|(p, o)| (p - page + to, *o)).collect();
                        model.retain(|p, _| {
                            !(page..page + count).contains(p) && !(to..to + count).contains(p)
                        });
                        model.extend(moved);
                    }
                }
                for page in 0..500 {
                    prop_assert_eq!(space.lookup(page).map(|(_, o)| o), model.get(&page).copied());
                }
                prop_assert_eq!(space.pages(), model.len() as u64);
            }
            let ranges = [10..20, 25..60, 300..310];
            space.retain(&ranges);
            model.retain(|p, _| ranges.iter().any(|r| r.contains(p)));
            for page in 0..500 {
                prop_assert_eq!(space.lookup(page).map(|(_, o)| o), model.get(&page).copied());
            }
        }

        #[test]
        fn any_bytes_are_an_index_or_an_error(mut bytes: Vec<u8>, magic: bool) {
            if magic {
                bytes.splice(0..0, *MAGIC);
            }
            let _ = PageIndex::decode(&bytes);
        }
    }

    #[test]
    fn an_index_reads_as_it_was_written_and_forgets_unused_objects() {
        let id = |generation| ObjectId {
            generation,
            number: 1,
        };
        let mut index = PageIndex::default();
        let first = index
            .intern(Object { id: id(1), pages: 10 })
            .expect("few objects");
        let second = index
            .intern(Object { id: id(2), pages: 10 })
            .expect("few objects");
        assert_eq!(index.intern(Object { id: id(1), pages: 10 }), Ok(first));
        let mut space = AddressSpace::default();
        space.insert(Run {
            page: 7,
            count: 3,
            object: second,
            offset: 7,
        });
        index.spaces.push((1, space));
        assert_eq!(PageIndex::decode(&index.encode()).as_ref(), Ok(&index));
        index.compact();
        assert_eq!(index.objects.len(), 1);
        assert_eq!(index.spaces[0].1.lookup(8), Some((0, 8)));
        assert_eq!(PageIndex::decode(&index.encode()).as_ref(), Ok(&index));
        let mut bytes = index.encode();
        bytes.push(0);
        assert_eq!(PageIndex::decode(&bytes), Err(IndexError::Length));
    }

    #[test]
    fn a_run_beyond_its_object_is_refused() {
        let mut index = PageIndex::default();
        index.objects.push(Object {
            id: ObjectId {
                generation: 1,
                number: 1,
            },
            pages: 2,
        });
        let mut space = AddressSpace::default();
        space.insert(Run {
            page: 1,
            count: 3,
            object: 0,
            offset: 0,
        });
        index.spaces.push((1, space));
        assert_eq!(
            PageIndex::decode(&index.encode()),
            Err(IndexError::Invalid("run beyond its object"))
        );
    }
}
