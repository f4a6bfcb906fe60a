//! Reads page objects from this host's disk.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::dump::object_path;
use crate::checkpoint::index::{ObjectId, PAGE_SIZE};
use crate::pager::memory::Page;
use crate::pager::{Lookup, PageSource};

/// The local copies in one app's `pages` directory.
#[derive(Debug)]
pub struct LocalPages {
    dir: PathBuf,
    open: HashMap<ObjectId, File>,
}

impl LocalPages {
    /// Reads from `dir`.
    pub fn new(dir: PathBuf) -> Self {
        LocalPages { dir, open: HashMap::new() }
    }
}

impl PageSource for LocalPages {
    fn read(&mut self, object: ObjectId, offset: u64, page: &mut Page) -> io::Result<Lookup> {
        let file = match self.open.entry(object) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(File::open(object_path(&self.dir, object))?)
            }
        };
        file.read_exact_at(&mut page.0, offset * PAGE_SIZE)?;
        Ok(Lookup::Here)
    }
}
