//! From what CRIU dumped to a local checkpoint: the app stands still while this runs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::checkpoint::index::{AddressSpace, Object, ObjectId, PAGE_SIZE, PageIndex, Run};
use crate::checkpoint::local::{Clocks, DUMP_FILE, Dump, IMAGES_DIR, INDEX_FILE, RootFile, SCHEMA, Stored};
use crate::criu::images::{self, ImageError};
use crate::criu::timers::Timers;
use crate::pager::Known;
use crate::sandbox::rootfs::RootSpec;
use crate::store::cache::CacheError;

use super::durable::sync_changed;
use super::files::{FileError, at, image_at};
use super::pages::LocalPages;
use super::sift::{Sifted, sift};

/// Why a dump is no checkpoint. The app goes on running.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// A file cannot be read or written, or is not what CRIU should have written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The local copies of page objects.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The pages file and its pagemap differ in length.
    #[error("{path} holds {found} bytes where its pagemap lists {listed}")]
    Length {
        /// The pages file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What the pagemap says.
        listed: u64,
    },
    /// Memory was locked after everything locked had been filled: CRIU would restore what is missing as zeros.
    #[error("the app locked memory while it was being dumped; try again")]
    Locked,
    /// The index cannot be built.
    #[error(transparent)]
    Index(#[from] crate::checkpoint::index::IndexError),
    /// `dump.json` cannot be written.
    #[error("cannot describe the dump: {0}")]
    Json(#[from] serde_json::Error),
}

/// What a dump is made from, beside CRIU's images.
#[derive(Debug)]
pub struct Assembly<'a> {
    /// The new checkpoint's directory; CRIU's images are in its `img`.
    pub checkpoint: &'a Path,
    /// Directory of the app's page objects.
    pub pages: &'a Path,
    /// The new generation.
    pub generation: u64,
    /// What the pager knows of the pages of each process.
    pub known: Vec<Known>,
    /// The objects that `known` names.
    pub objects: &'a [Object],
    /// The app's root, to tell its own files from those below.
    pub root: &'a RootSpec,
    /// Inodes of the app's stdout and stderr.
    pub stdio: [u64; 2],
    /// When it stopped.
    pub clocks: Clocks,
    /// When all of the file system was last made durable.
    pub synced: Option<&'a Clocks>,
}

/// What [`Assembly::assemble`] made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assembled {
    /// Pages stored in new objects.
    pub stored_pages: u64,
    /// Pages of older objects.
    pub carried_pages: u64,
    /// Those of them that were dumped, and are as they were.
    pub unchanged_pages: u64,
    /// Pages of zeros, which are stored nowhere.
    pub zero_pages: u64,
    /// Bytes of CRIU's images with the eager pages.
    pub image_bytes: u64,
    /// Its armed timers.
    pub timers: Timers,
}

impl Assembly<'_> {
    fn image(&self, name: &str) -> PathBuf {
        self.checkpoint.join(IMAGES_DIR).join(name)
    }

    fn read<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&[u8]) -> Result<T, ImageError>,
    ) -> Result<T, DumpError> {
        let path = self.image(name);
        let bytes = fs::read(&path).map_err(at(&path))?;
        Ok(parse(&bytes).map_err(image_at(&path))?)
    }

    /// Splits the pages into objects and eager images, lays the index over them, and syncs all to disk.
    ///
    /// # Errors
    /// When anything of it is not as it must be; what was made so far is the caller's to remove.
    pub fn assemble(mut self) -> Result<Assembled, DumpError> {
        let mut index = PageIndex {
            objects: self.objects.to_vec(),
            spaces: Vec::new(),
        };
        let mut stored = Vec::new();
        let mut made = Assembled::default();
        let mut known: HashMap<u32, Known> = self.known.drain(..).map(|known| (known.id, known)).collect();
        let mut local = LocalPages::new(self.pages)?;
        for pid in self.read("pstree.img", images::process_ids)? {
            if !self.image(&format!("pagemap-{pid}.img")).exists() {
                continue; // a zombie has no memory
            }
            self.read(&format!("core-{pid}.img"), |core| made.timers.add_task(core))?;
            let Known { missing, origin, .. } = known.remove(&pid).unwrap_or_default();
            let mut space = missing;
            let mappings = self.read(&format!("mm-{pid}.img"), images::anonymous)?;
            let mut never_read = space.clone();
            never_read.retain(&mappings.locked);
            if !never_read.is_empty() {
                return Err(DumpError::Locked);
            }
            space.retain(&mappings.lazy);
            let map = self.read(&format!("pagemap-{pid}.img"), |bytes| {
                images::split_pagemap(bytes, &mappings.on_demand())
            })?;
            let (sifted, object) = self.split_pages(pid, &map, &origin, &mut local)?;
            made.stored_pages += sifted.new_pages();
            // What was dumped is newer than what is missing, should anything be both.
            let old = sifted.old.iter().map(|run| run.page..run.page + run.count);
            for pages in sifted.zero.iter().cloned().chain(old.clone()) {
                space.remove(pages);
            }
            made.unchanged_pages += old.map(|pages| pages.end - pages.start).sum::<u64>();
            made.zero_pages += sifted
                .zero
                .iter()
                .map(|pages| pages.end - pages.start)
                .sum::<u64>();
            for run in sifted.old {
                space.insert(run);
            }
            made.carried_pages += space.pages();
            if let Some(pages) = object {
                let id = ObjectId {
                    generation: self.generation,
                    number: map.pages_id,
                };
                let object = index.intern(Object { id, pages })?;
                for (pages, offset) in sifted.new {
                    space.insert(Run {
                        page: pages.start,
                        count: pages.end - pages.start,
                        object,
                        offset,
                    });
                }
                stored.push(Stored {
                    id,
                    bytes: pages * PAGE_SIZE,
                });
            }
            index.spaces.push((pid, space));
        }
        self.read("files.img", |files| made.timers.add_timerfds(files))?;
        index.compact();
        let dump = Dump {
            schema: SCHEMA.to_owned(),
            generation: self.generation,
            clocks: self.clocks.clone(),
            stdio: self.stdio,
            stored,
            carried_pages: made.carried_pages,
            root_files: self.root_files()?,
        };
        self.write(INDEX_FILE, &index.encode())?;
        self.write(DUMP_FILE, &serde_json::to_vec(&dump)?)?;
        made.image_bytes = self.image_bytes()?;
        let root = self.root;
        let trees = [self.checkpoint, self.pages, &root.upper, &root.work];
        sync_changed(&trees, self.synced, &self.clocks).map_err(at(self.checkpoint))?;
        Ok(made)
    }

    /// Makes a page object of what must be stored of CRIU's pages file, and leaves one with the eager pages in its
    /// place. Offsets of new pages are then those in the object, whose length in pages comes with them, if there is one.
    fn split_pages(
        &self,
        pid: u32,
        map: &images::Pagemap,
        origin: &AddressSpace,
        local: &mut LocalPages,
    ) -> Result<(Sifted, Option<u64>), DumpError> {
        let image = self.image(&format!("pages-{}.img", map.pages_id));
        let mut from = File::open(&image).map_err(at(&image))?;
        let found = from.metadata().map_err(at(&image))?.len();
        let listed = map.total * PAGE_SIZE;
        if found != listed {
            return Err(DumpError::Length {
                path: image,
                found,
                listed,
            });
        }
        let mut sifted = sift(&map.lazy, &from, origin, self.objects, local).map_err(at(&image))?;
        let id = ObjectId {
            generation: self.generation,
            number: map.pages_id,
        };
        let object = object_path(self.pages, id);
        let kept = sifted.new_pages();
        let pages = if kept == 0 {
            fs::remove_file(&image).map_err(at(&image))?;
            None
        } else if saves_little(kept, map.total) {
            fs::rename(&image, &object).map_err(at(&image))?;
            Some(map.total)
        } else {
            let mut to = File::create_new(&object).map_err(at(&object))?;
            let mut end = 0;
            for (pages, offset) in &mut sifted.new {
                let count = pages.end - pages.start;
                copy_pages(&mut from, &mut to, *offset..*offset + count).map_err(at(&object))?;
                *offset = end;
                end += count;
            }
            fs::remove_file(&image).map_err(at(&image))?;
            Some(kept)
        };
        let mut to = File::create_new(&image).map_err(at(&image))?;
        for pages in &map.eager {
            copy_pages(&mut from, &mut to, pages.clone()).map_err(at(&image))?;
        }
        let pagemap = self.image(&format!("pagemap-{pid}.img"));
        fs::write(&pagemap, &map.eager_image).map_err(at(&pagemap))?;
        Ok((sifted, pages))
    }

    fn root_files(&self) -> Result<Vec<RootFile>, DumpError> {
        let paths = self.read("files.img", images::regular_files)?;
        Ok(paths
            .iter()
            .filter_map(|path| root_file(self.root, Path::new(path)))
            .collect())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DumpError> {
        let path = self.checkpoint.join(name);
        let written = File::create_new(&path).and_then(|mut file| file.write_all(bytes));
        Ok(written.map_err(at(&path))?)
    }

    fn image_bytes(&self) -> Result<u64, DumpError> {
        let dir = self.checkpoint.join(IMAGES_DIR);
        let sizes = fs::read_dir(&dir).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.metadata()?.len()))
                .sum::<io::Result<u64>>()
        });
        Ok(sizes.map_err(at(&dir))?)
    }
}

/// Path of the local copy of a page object.
pub fn object_path(pages: &Path, id: ObjectId) -> PathBuf {
    pages.join(format!("{id}.pages"))
}

/// What `path` is now, if it is a regular file of a layer below the writable one.
pub fn root_file(root: &RootSpec, path: &Path) -> Option<RootFile> {
    let inside = path.strip_prefix("/").ok()?;
    if fs::symlink_metadata(root.upper.join(inside)).is_ok() {
        return None;
    }
    let found = root
        .lower
        .iter()
        .find_map(|layer| fs::symlink_metadata(layer.join(inside)).ok())?;
    found
        .is_file()
        .then(|| RootFile::new(path.to_owned(), &found, None))
}

/// Whether CRIU's file of `total` pages may stay as it is for the `kept` ones: the app stands still while they are
/// copied, and what is stored without need is at most a tenth.
fn saves_little(kept: u64, total: u64) -> bool {
    total - kept <= kept / 10
}

fn copy_pages(from: &mut File, to: &mut File, pages: Range<u64>) -> io::Result<()> {
    let bytes = (pages.end - pages.start) * PAGE_SIZE;
    from.seek(SeekFrom::Start(pages.start * PAGE_SIZE))?;
    let copied = io::copy(&mut from.take(bytes), to)?;
    if copied < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
