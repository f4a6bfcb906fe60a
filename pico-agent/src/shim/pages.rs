//! Reads page objects from this host's disk.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use crate::checkpoint::BLOCK_SIZE;
use crate::checkpoint::index::{ObjectId, PAGE_SIZE};
use crate::pager::memory::Page;
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

impl PageSource for LocalPages {
    fn read(&mut self, object: ObjectId, offset: u64, page: &mut Page) -> io::Result<Lookup> {
        let offset = offset * PAGE_SIZE;
        let absent = Lookup::Absent {
            block: offset / BLOCK_SIZE as u64,
        };
        let reader = match self.open.entry(object) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                let reader = self
                    .cache
                    .reader(object.generation, object.number)
                    .map_err(io::Error::other)?;
                match reader {
                    Some(reader) => new.insert(reader),
                    None => return Ok(absent),
                }
            }
        };
        let here = reader.read(offset, &mut page.0).map_err(io::Error::other)?;
        Ok(if here { Lookup::Here } else { absent })
    }
}
