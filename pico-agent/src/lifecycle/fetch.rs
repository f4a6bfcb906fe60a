//! A checkpoint's way from the store. Everything is checked before it is used, also what this host has kept of it.
//!
//! What a wake needs first is asked for in one wave: bundle, index, files, block sums and the newest pages, none of which
//! waits for another's answer, and how many these are does not depend on how many generations the app has been through.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{self, TryStreamExt};

use super::paths::AppPaths;
use super::record::write_atomically;
use super::transfer::{BUNDLE, FILES, INDEX, Remote, TransferError, at, blocking, content};
use crate::checkpoint::BLOCK_SIZE;
use crate::checkpoint::archive::{self, Budget};
use crate::checkpoint::bundle;
use crate::checkpoint::compressed::decompress;
use crate::checkpoint::hash::{Digest, HASH_SIZE, Hash, Hashing, block_len, sums_len, verify_block};
use crate::checkpoint::index::{ObjectId, PageIndex};
use crate::checkpoint::keys;
use crate::checkpoint::local::{ACTIVE_SETS_FILE, DUMP_FILE, IMAGES_DIR, INDEX_FILE};
use crate::checkpoint::manifest::{self, Manifest, PageObject};
use crate::failpoint;
use crate::store::{PageCache, PageFile};

/// Newest page objects up to this size in all come with the first wave: they are what the last wake touched.
pub(super) const FIRST_PAGES_BYTES: u64 = 8 << 20;
/// Ranges that one object is fetched in.
const RANGE_BYTES: usize = 512 << 10;
/// Ranges of one object that are asked for at once; what is larger keeps the connections busy with these.
const RANGES_AT_ONCE: usize = 16;

impl Remote {
    /// Fetches all that a cold app needs before it can run, in one wave. The page objects' other blocks come on demand.
    ///
    /// # Errors
    /// When the store does not answer, or answers with other bytes than were stored.
    pub async fn download(&self, generation: u64) -> Result<(), TransferError> {
        let manifest = self.manifest().await?;
        if manifest.generation != generation {
            let reason = format!("it is of generation {}, not {generation}", manifest.generation);
            let what = "the manifest";
            return Err(TransferError::Content { what, reason });
        }
        let fetched = self.paths.transfer(generation);
        let cache = blocking({
            let (fetched, pages) = (fetched.clone(), self.paths.pages());
            move || {
                fs::create_dir_all(&fetched).map_err(at(&fetched))?;
                let cache = PageCache::open(pages)?;
                // Copies that were kept: whether they are right shows when they are read.
                cache.distrust()?;
                Ok(cache)
            }
        })
        .await?;
        let files = async {
            match &manifest.files {
                Some(files) => self.fetch(files, fetched.join(FILES)).await,
                None => Ok(()),
            }
        };
        let newest = || {
            let pages = manifest.pages.iter();
            let newest = pages.filter(|page| page.generation == generation);
            newest.filter(|page| !cache.has_some_of(page.generation, page.number))
        };
        let few = newest().map(|page| page.bytes).sum::<u64>() <= FIRST_PAGES_BYTES
            && newest().count() < manifest.pages.len();
        let first = try_join_all(newest().filter(|_| few).map(|page| self.fetch_pages(page)));
        let (.., first) = tokio::try_join!(
            self.fetch(&manifest.bundle, fetched.join(BUNDLE)),
            self.fetch(&manifest.index, fetched.join(INDEX)),
            files,
            self.fetch(&manifest.sums, self.paths.sums(generation)),
            first
        )?;
        let paths = self.paths.clone();
        blocking(move || lay_out(&paths, &manifest, &fetched, first)).await
    }

    /// The manifest as this host knows it, else from the store.
    async fn manifest(&self) -> Result<Manifest, TransferError> {
        let path = self.paths.manifest();
        let limits = manifest::Limits::default();
        let document = match fs::read(&path) {
            Ok(document) => document.into(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = keys::manifest(&self.app);
                let (document, _) = self.store.get(&key, limits.document).await?;
                self.meter.count(document.len());
                write_atomically(&path, &document).map_err(at(&path))?;
                document
            }
            Err(error) => return Err(at(&path)(error)),
        };
        Ok(Manifest::decode(&document, &limits)?)
    }

    /// Fetches an object into the file `to`, if it is not there already, a large one in ranges side by side, and checks it.
    /// Memory does not grow with it.
    pub(super) async fn fetch(&self, object: &manifest::Object, to: PathBuf) -> Result<(), TransferError> {
        let (kept, digest) = (to.clone(), object.digest());
        if blocking(move || Ok(is_kept(&kept, digest))).await? {
            return Ok(());
        }
        let file = blocking({
            let to = to.clone();
            move || {
                let _ = fs::remove_file(&to);
                let mut options = File::options();
                options.read(true).write(true).create_new(true);
                options.open(&to).map(Arc::new).map_err(at(&to))
            }
        })
        .await?;
        let ranges = stream::iter((0..object.bytes).step_by(RANGE_BYTES).map(Ok));
        let arrived = ranges.try_for_each_concurrent(RANGES_AT_ONCE, |offset| {
            let (file, to) = (file.clone(), to.clone());
            async move {
                let bytes = self.fetch_range(&object.key, object.bytes, offset).await?;
                blocking(move || file.write_all_at(&bytes, offset).map_err(at(&to))).await
            }
        });
        arrived.await?;
        let digest = blocking(move || digest_of(&file).map_err(at(&to)));
        if digest.await? == object.digest() {
            return Ok(());
        }
        Err(TransferError::Damaged {
            key: object.key.clone(),
        })
    }

    /// The range that begins at `offset` in an object of `bytes` bytes.
    async fn fetch_range(&self, key: &str, bytes: u64, offset: u64) -> Result<Bytes, TransferError> {
        let length = usize::try_from(bytes - offset)
            .unwrap_or(RANGE_BYTES)
            .min(RANGE_BYTES);
        let data = self.store.get_range(key, offset, length, None).await?;
        self.meter.count(data.len());
        Ok(data)
    }

    /// A whole page object that is not large, in ranges.
    async fn fetch_pages(&self, page: &PageObject) -> Result<(ObjectId, Vec<Bytes>), TransferError> {
        let ranges = (0..page.bytes).step_by(RANGE_BYTES);
        let ranges = ranges.map(|offset| self.fetch_range(&page.key, page.bytes, offset));
        Ok((page.id(), try_join_all(ranges).await?))
    }

    /// Fetches one block of a page object into the local copy.
    ///
    /// # Errors
    /// When the store does not answer, or the block is not what was stored.
    pub async fn fetch_block(&self, object: ObjectId, block: u64) -> Result<(), TransferError> {
        let remote = self.clone();
        let source = blocking(move || {
            let source = remote.sources.get(&remote.paths, object)?;
            Ok((!source.take_kept(block)?).then_some(source))
        });
        let Some(source) = source.await? else {
            return Ok(());
        };
        let length = block_len(source.page.bytes, block).ok_or_else(|| TransferError::Content {
            what: "the page index",
            reason: format!("page object {object} has no block {block}"),
        })?;
        let offset = block * BLOCK_SIZE as u64;
        let data = self
            .store
            .get_range(&source.page.key, offset, length, None)
            .await?;
        self.meter.count(data.len());
        blocking(move || source.write_block(block, &data)).await
    }
}

/// Page objects of one app that are being fetched, with the one writer of each local copy.
#[derive(Debug, Clone, Default)]
pub struct Sources(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    known: Option<Arc<Known>>,
    sources: HashMap<ObjectId, Arc<Source>>,
}

impl Sources {
    /// Closes all of them: the app's local copies are about to change.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Open::default();
    }

    fn get(&self, paths: &AppPaths, object: ObjectId) -> Result<Arc<Source>, TransferError> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = open.sources.get(&object) {
            return Ok(source.clone());
        }
        let known = match &open.known {
            Some(known) => known.clone(),
            None => open.known.insert(Known::open(paths)?).clone(),
        };
        let page = known.page(object).ok_or_else(|| TransferError::Content {
            what: "the manifest",
            reason: format!("it lists no page object {object}"),
        })?;
        let page = page.clone();
        let file = PageCache::open(paths.pages())?.writer(object.generation, object.number, page.bytes)?;
        let source = Arc::new(Source { page, known, file });
        open.sources.insert(object, source.clone());
        Ok(source)
    }
}

#[derive(Debug)]
struct Source {
    page: PageObject,
    known: Arc<Known>,
    file: PageFile,
}

impl Source {
    /// Whether this host has the block, or has kept it; it is readers' from now on.
    fn take_kept(&self, block: u64) -> Result<bool, TransferError> {
        // It arrived since it was asked for.
        if self.file.present(block) {
            return Ok(true);
        }
        match self.file.kept(block) {
            Some(data) if self.known.verify(&self.page, block, &data).is_ok() => {
                self.file.write_block(block, &data)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn write_block(&self, block: u64, data: &[u8]) -> Result<(), TransferError> {
        self.known.verify(&self.page, block, data)?;
        Ok(self.file.write_block(block, data)?)
    }
}

/// The page objects that the manifest on this host names, with their block sums, which stay on the disk.
#[derive(Debug)]
pub(super) struct Known {
    /// With the place of the object's first sum.
    pages: HashMap<ObjectId, (PageObject, u64)>,
    path: PathBuf,
    sums: File,
}

impl Known {
    /// Reads the manifest and checks the sums.
    pub fn open(paths: &AppPaths) -> Result<Arc<Known>, TransferError> {
        let path = paths.manifest();
        let document = fs::read(&path).map_err(at(&path))?;
        let manifest = Manifest::decode(&document, &manifest::Limits::default())?;
        let path = paths.sums(manifest.generation);
        let sums = File::open(&path).map_err(at(&path))?;
        if digest_of(&sums).map_err(at(&path))? != manifest.sums.digest() {
            let reason = format!("{} is not what the manifest says", path.display());
            let what = "the block sums on this host";
            return Err(TransferError::Content { what, reason });
        }
        Ok(Arc::new(Known::new(manifest.pages, path, sums)))
    }

    /// Of sums that were checked.
    fn new(pages: Vec<PageObject>, path: PathBuf, sums: File) -> Known {
        let mut place = 0;
        let pages = pages.into_iter().map(|page| {
            let begin = place;
            place += sums_len(page.bytes);
            (page.id(), (page, begin))
        });
        let pages = pages.collect();
        Known { pages, path, sums }
    }

    /// A page object that is in the store.
    pub fn page(&self, id: ObjectId) -> Option<&PageObject> {
        self.pages.get(&id).map(|(page, _)| page)
    }

    /// Writes the sums of one of its page objects to `out`.
    pub fn copy_sums(&self, id: ObjectId, out: &mut impl Write) -> Result<(), TransferError> {
        let Some((page, begin)) = self.pages.get(&id) else {
            return Ok(());
        };
        let mut sums = vec![0; usize::try_from(sums_len(page.bytes)).unwrap_or(0)];
        let read = self.sums.read_exact_at(&mut sums, *begin);
        read.and_then(|()| out.write_all(&sums)).map_err(at(&self.path))
    }

    /// Fails unless `data` is block number `block` of `page`, one of its page objects.
    fn verify(&self, page: &PageObject, block: u64, data: &[u8]) -> Result<(), TransferError> {
        let damaged = || TransferError::Damaged {
            key: page.key.clone(),
        };
        let (_, begin) = self.pages.get(&page.id()).ok_or_else(damaged)?;
        let mut sum = [0; HASH_SIZE];
        let place = block
            .checked_mul(HASH_SIZE as u64)
            .and_then(|at| at.checked_add(*begin));
        let place = place.filter(|_| block_len(page.bytes, block).is_some());
        self.sums
            .read_exact_at(&mut sum, place.ok_or_else(damaged)?)
            .map_err(at(&self.path))?;
        verify_block(page.bytes, block, data, Hash(sum)).map_err(|_| damaged())
    }
}

/// Whether a file is there and is what it must be.
fn is_kept(path: &Path, digest: Digest) -> bool {
    let file = File::open(path).ok();
    let file = file.filter(|file| file.metadata().is_ok_and(|meta| meta.len() == digest.bytes));
    file.is_some_and(|file| digest_of(&file).is_ok_and(|found| found == digest))
}

fn digest_of(mut file: &File) -> io::Result<Digest> {
    let mut hash = Hashing::new(io::sink());
    io::copy(&mut file, &mut hash)?;
    Ok(hash.digest())
}

/// Removes the block sums that belong to no manifest any more but that of `generation`.
pub(super) fn remove_other_sums(paths: &AppPaths, generation: u64) {
    let current = paths.sums(generation);
    let files = fs::read_dir(paths.pages()).into_iter().flatten();
    for path in files.filter_map(|file| Some(file.ok()?.path())) {
        if path.extension() == current.extension() && path != current {
            // What stays is a few bytes, and goes next time.
            let _ = fs::remove_file(path);
        }
    }
}

/// Puts what was fetched where a warm app has it; the checkpoint gets its name last.
fn lay_out(
    paths: &AppPaths,
    manifest: &Manifest,
    fetched: &Path,
    first: Vec<(ObjectId, Vec<Bytes>)>,
) -> Result<(), TransferError> {
    let open = |name: &str, object: &manifest::Object| {
        let path = fetched.join(name);
        let content = File::open(&path).and_then(|file| decompress(file, object.unpacked));
        content.map_err(at(&path))
    };
    let unfinished = paths.unfinished(manifest.generation);
    let images = unfinished.join(IMAGES_DIR);
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&images).map_err(at(&images))?;
    bundle::unpack(open(BUNDLE, &manifest.bundle)?, &images).map_err(content("CRIU's images"))?;
    fs::rename(images.join(DUMP_FILE), unfinished.join(DUMP_FILE)).map_err(at(&unfinished))?;
    let learned = images.join(ACTIVE_SETS_FILE);
    if learned.exists() {
        match paths.active_sets().exists() {
            // What this host knows is as new.
            true => fs::remove_file(&learned).map_err(at(&learned))?,
            false => fs::rename(&learned, paths.active_sets()).map_err(at(&learned))?,
        }
    }
    let index = fetched.join(INDEX);
    PageIndex::decode(&fs::read(&index).map_err(at(&index))?)?;
    fs::rename(&index, unfinished.join(INDEX_FILE)).map_err(at(&unfinished))?;
    remove_other_sums(paths, manifest.generation);
    let known = Known::open(paths)?;
    let cache = PageCache::open(paths.pages())?;
    for (id, parts) in first {
        let Some(page) = known.page(id) else { continue };
        let mut writer = cache.writer(page.generation, page.number, page.bytes)?;
        let blocks = parts.iter().flat_map(|part| part.chunks(BLOCK_SIZE));
        for (block, data) in (0..).zip(blocks) {
            known.verify(page, block, data)?;
            writer.write_block(block, data)?;
        }
        writer.complete()?;
    }
    if let Some(files) = &manifest.files {
        let upper = paths.upper();
        let _ = fs::remove_dir_all(&upper);
        let _ = fs::remove_dir_all(paths.overlay_work());
        fs::create_dir_all(&upper).map_err(at(&upper))?;
        // Nothing in an archive is longer than the archive itself.
        let length = files.unpacked.unwrap_or(files.bytes);
        let budget = Budget {
            bytes: length,
            entries: length,
        };
        archive::unpack(open(FILES, files)?, &upper, &budget).map_err(content("the writable layer"))?;
    }
    let _ = fs::remove_dir_all(fetched);
    failpoint::reach("agent.laid-out");
    let checkpoint = paths.checkpoint(manifest.generation);
    let _ = fs::remove_dir_all(&checkpoint);
    fs::rename(&unfinished, &checkpoint).map_err(at(&checkpoint))
}
