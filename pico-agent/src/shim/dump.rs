//! From what CRIU dumped to a local checkpoint: the app stands still while this runs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::checkpoint::index::{AddressSpace, Object, ObjectId, PAGE_BYTES, PAGE_SIZE, PageIndex, Run};
use crate::checkpoint::local::{Clocks, DUMP_FILE, Dump, IMAGES_DIR, INDEX_FILE, RootFile, SCHEMA, Stored};
use crate::criu::images::{self, ImageError};
use crate::sandbox::rootfs::RootSpec;

use super::files::{FileError, at, image_at};

/// Why a dump is no checkpoint. The app goes on running.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// A file cannot be read or written, or is not what CRIU should have written.
    #[error(transparent)]
    File(#[from] FileError),
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
    /// What was never faulted in, by process id, with the objects it lies in.
    pub remaining: Vec<(u32, AddressSpace)>,
    /// See `remaining`.
    pub objects: &'a [Object],
    /// The app's root, to tell its own files from those below.
    pub root: &'a RootSpec,
    /// Inodes of the app's stdout and stderr.
    pub stdio: [u64; 2],
    /// When it stopped.
    pub clocks: Clocks,
}

/// What [`Assembly::assemble`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// Lazy pages of the new objects.
    pub stored_pages: u64,
    /// Pages of older objects.
    pub carried_pages: u64,
    /// Bytes of CRIU's images with the eager pages.
    pub image_bytes: u64,
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
        let (mut stored_pages, mut carried_pages) = (0, 0);
        let mut remaining: HashMap<u32, AddressSpace> = self.remaining.drain(..).collect();
        for pid in self.read("pstree.img", images::process_ids)? {
            if !self.image(&format!("pagemap-{pid}.img")).exists() {
                continue; // a zombie has no memory
            }
            let mut space = remaining.remove(&pid).unwrap_or_default();
            let mappings = self.read(&format!("mm-{pid}.img"), images::anonymous)?;
            let mut never_read = space.clone();
            never_read.retain(&mappings.locked);
            if !never_read.is_empty() {
                return Err(DumpError::Locked);
            }
            space.retain(&mappings.lazy);
            let map = self.read(&format!("pagemap-{pid}.img"), |bytes| {
                images::split_pagemap(bytes, &mappings.wiped_on_fork)
            })?;
            let id = ObjectId {
                generation: self.generation,
                number: map.pages_id,
            };
            self.split_pages(pid, id, &map)?;
            let object = index.intern(Object { id, pages: map.total })?;
            for (pages, offset) in &map.lazy {
                let count = pages.end - pages.start;
                space.insert(Run {
                    page: pages.start,
                    count,
                    object,
                    offset: *offset,
                });
            }
            let dumped: u64 = map.lazy.iter().map(|(pages, _)| pages.end - pages.start).sum();
            stored_pages += dumped;
            carried_pages += space.pages() - dumped;
            stored.push(Stored {
                id,
                bytes: map.total * PAGE_SIZE,
            });
            index.spaces.push((pid, space));
        }
        index.compact();
        let kept = |object: &Stored| index.objects.iter().any(|known| known.id == object.id);
        for unused in stored.extract_if(.., |object| !kept(object)) {
            let path = object_path(self.pages, unused.id);
            fs::remove_file(&path).map_err(at(&path))?;
        }
        let dump = Dump {
            schema: SCHEMA.to_owned(),
            generation: self.generation,
            clocks: self.clocks.clone(),
            stdio: self.stdio,
            stored,
            carried_pages,
            root_files: self.root_files()?,
        };
        self.write(INDEX_FILE, &index.encode())?;
        self.write(DUMP_FILE, &serde_json::to_vec(&dump)?)?;
        let image_bytes = self.image_bytes()?;
        sync(self.checkpoint)?;
        Ok(Assembled {
            stored_pages,
            carried_pages,
            image_bytes,
        })
    }

    /// Moves CRIU's pages file to the page objects, and leaves one with the eager pages in its place.
    fn split_pages(&self, pid: u32, id: ObjectId, map: &images::Pagemap) -> Result<(), DumpError> {
        let image = self.image(&format!("pages-{}.img", map.pages_id));
        let object = object_path(self.pages, id);
        fs::rename(&image, &object).map_err(at(&image))?;
        let mut from = File::open(&object).map_err(at(&object))?;
        let found = from.metadata().map_err(at(&object))?.len();
        let listed = map.total * PAGE_SIZE;
        if found != listed {
            return Err(DumpError::Length {
                path: object,
                found,
                listed,
            });
        }
        let mut to = File::create_new(&image).map_err(at(&image))?;
        for pages in &map.eager {
            copy_pages(&mut from, &mut to, pages).map_err(at(&image))?;
        }
        let pagemap = self.image(&format!("pagemap-{pid}.img"));
        Ok(fs::write(&pagemap, &map.eager_image).map_err(at(&pagemap))?)
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

fn copy_pages(from: &mut File, to: &mut File, pages: &Range<u64>) -> io::Result<()> {
    let mut page = [0; PAGE_BYTES];
    from.seek(SeekFrom::Start(pages.start * PAGE_SIZE))?;
    for _ in pages.clone() {
        from.read_exact(&mut page)?;
        to.write_all(&page)?;
    }
    Ok(())
}

/// Makes everything on the checkpoint's file system durable: the images are some fifty files.
fn sync(dir: &Path) -> Result<(), DumpError> {
    let file = File::open(dir).map_err(at(dir))?;
    Ok(nix::unistd::syncfs(file).map_err(|error| at(dir)(error.into()))?)
}
