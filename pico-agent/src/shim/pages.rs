//! Reads page objects from this host's disk.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::Path;

use super::sift::Stored;
use crate::checkpoint::BLOCK_SIZE;
use crate::checkpoint::index::{ObjectId, PAGE_SIZE};
use crate::pager::memory::{self, Page};
use crate::pager::{Lookup, PageSource};
use crate::store::cache::CacheError;
use crate::store::{PageCache, PageReader};

/// The local copies in one app's `pages` directory.
#[derive(Debug)]
pub struct LocalPages {
    cache: PageCache,
    open: HashMap<ObjectId, PageReader>,
}

impl LocalPages {
    /// Reads from `dir`.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(dir: &Path) -> Result<Self, CacheError> {
        Ok(LocalPages {
            cache: PageCache::open(dir)?,
            open: HashMap::new(),
        })
    }
}

impl Stored for LocalPages {
    fn read_pages(&mut self, object: ObjectId, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let reader = match self.open.entry(object) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(new) => {
                let reader = self
                    .cache
                    .reader(object.generation, object.number)
                    .map_err(io::Error::other)?;
                match reader {
                    Some(reader) => new.insert(reader),
                    None => return Ok(false),
                }
            }
        };
        reader.read(offset * PAGE_SIZE, buffer).map_err(io::Error::other)
    }
}

impl PageSource for LocalPages {
    fn read(&mut self, object: ObjectId, offset: u64, page: &mut Page) -> io::Result<Lookup> {
        Ok(if self.read_pages(object, offset, &mut page.0)? {
            Lookup::Here
        } else {
            Lookup::Absent {
                block: offset * PAGE_SIZE / BLOCK_SIZE as u64,
            }
        })
    }

    fn read_run(&mut self, object: ObjectId, offset: u64, pages: &mut [Page]) -> io::Result<Lookup> {
        if self.read_pages(object, offset, memory::bytes_mut(pages))? {
            return Ok(Lookup::Here);
        }
        // Which block is missing shows when they are read one by one.
        for (page, offset) in pages.iter_mut().zip(offset..) {
            if let absent @ Lookup::Absent { .. } = self.read(object, offset, page)? {
                return Ok(absent);
            }
        }
        Ok(Lookup::Here)
    }
}
