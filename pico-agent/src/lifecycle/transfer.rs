//! Checkpoints between this host and the object store. Everything fetched is checked before it is used.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::paths::AppPaths;
use crate::checkpoint::BLOCK_SIZE;
use crate::checkpoint::archive::{self, Budget};
use crate::checkpoint::bundle;
use crate::checkpoint::hash::{BlockSums, Digest, block_len};
use crate::checkpoint::index::{IndexError, Object as IndexObject, ObjectId, PageIndex};
use crate::checkpoint::keys;
use crate::checkpoint::local::{DUMP_FILE, Dump, IMAGES_DIR, INDEX_FILE};
use crate::checkpoint::manifest::{self, Manifest, ManifestError, PageObject};
use crate::failpoint;
use crate::store::cache::CacheError;
use crate::store::{ETag, PageCache, PageFile, Store, StoreError};

/// Newest page objects up to this size in all come with the first wave: they are what the last wake touched.
pub(super) const FIRST_PAGES_BYTES: u64 = 8 << 20;
/// Ranges that one page object is fetched in.
const RANGE_BYTES: usize = 512 << 10;

/// Why a checkpoint could not be stored or fetched.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The local copies.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The page index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A local file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Bundle or archive.
    #[error("{what}: {reason}")]
    Content {
        /// Which part of the checkpoint.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An object is not what the manifest says.
    #[error(
        "{key} is not what was stored: its checksum differs; the object store or the way to it is damaged"
    )]
    Damaged {
        /// Which object.
        key: String,
    },
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> TransferError + '_ {
    move |source| TransferError::File {
        path: path.to_owned(),
        source,
    }
}

fn content<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> TransferError {
    move |error| TransferError::Content {
        what,
        reason: error.to_string(),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, TransferError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(content("a background task"))?
}

/// What one app has read from the store since its last wake began.
#[derive(Debug, Default)]
pub struct Meter {
    bytes: AtomicU64,
    gets: AtomicU64,
}

impl Meter {
    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.gets.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes and requests so far.
    pub fn read(&self) -> (u64, u64) {
        (
            self.bytes.load(Ordering::Relaxed),
            self.gets.load(Ordering::Relaxed),
        )
    }

    /// Starts from nothing.
    pub fn reset(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.gets.store(0, Ordering::Relaxed);
    }
}

/// A checkpoint that is in the store.
#[derive(Debug, Clone)]
pub struct Stored {
    /// ETag of the manifest that names it.
    pub etag: ETag,
    /// Bytes of all its objects.
    pub bytes: u64,
}

/// One app's objects in the store.
#[derive(Clone)]
pub struct Remote {
    /// The store.
    pub store: Store,
    /// The app.
    pub app: String,
    /// Where it lies on this host.
    pub paths: AppPaths,
    /// What is read is counted here.
    pub meter: Arc<Meter>,
    /// Page objects that are being fetched.
    pub sources: Sources,
}

impl Remote {
    /// Packs the writable layer of a sleeping app. Until this is done the app must not wake.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub async fn pack_files(&self, generation: u64) -> Result<Digest, TransferError> {
        let (upper, dir) = (self.paths.upper(), self.paths.transfer(generation));
        blocking(move || {
            fs::create_dir_all(&dir).map_err(at(&dir))?;
            let path = dir.join("files");
            let output = BufWriter::new(File::create(&path).map_err(at(&path))?);
            let summary = archive::pack(&upper, output).map_err(content("the writable layer"))?;
            Ok(summary.digest)
        })
        .await
    }

    /// Stores checkpoint `generation`, whose files were packed, and makes it the current one if the current one
    /// is still `previous`.
    ///
    /// # Errors
    /// When the store refuses, or another agent has stored a checkpoint meanwhile. The current checkpoint in the
    /// store is then still the one before.
    pub async fn upload(
        &self,
        generation: u64,
        files: Digest,
        previous: Option<ETag>,
    ) -> Result<Stored, TransferError> {
        let checkpoint = self.paths.checkpoint(generation);
        let local = self.clone();
        let prepared = blocking(move || local.prepare(&checkpoint, generation)).await?;
        let stored = self.read_manifest().unwrap_or_default();
        let mut pages = Vec::new();
        for object in &prepared.index.objects {
            match stored.iter().find(|page| id_of(page) == object.id) {
                Some(known) => pages.push(known.clone()),
                None => pages.push(self.upload_pages(object).await?),
            }
        }
        pages.sort_by_key(|page| (page.generation, page.number));
        let transfer = self.paths.transfer(generation);
        let bundle_key = keys::bundle(&self.app, generation);
        let index_key = keys::index(&self.app, generation);
        let files_key = keys::files(&self.app, generation);
        self.put_file(&bundle_key, &transfer.join("bundle"), prepared.bundle.bytes)
            .await?;
        self.store.put(&index_key, prepared.index_bytes.clone()).await?;
        self.put_file(&files_key, &transfer.join("files"), files.bytes)
            .await?;
        let manifest = Manifest {
            schema: manifest::SCHEMA.to_owned(),
            blake3: Digest::of(b"").blake3,
            requires: Vec::new(),
            app: self.app.clone(),
            generation,
            clocks: prepared.dump.clocks.clone(),
            host: this_host()?,
            bundle: manifest::Object::new(bundle_key, prepared.bundle),
            index: manifest::Object::new(index_key, Digest::of(&prepared.index_bytes)),
            files: Some(manifest::Object::new(files_key, files)),
            pages,
            root_files: prepared.dump.root_files,
        };
        let bytes = Bytes::from(manifest.encode()?);
        failpoint::reach("agent.uploaded");
        let etag = self.publish(generation, &bytes, previous).await?;
        failpoint::reach("agent.published");
        let _ = fs::remove_dir_all(&transfer);
        self.collect_garbage(&manifest).await;
        Ok(Stored {
            etag,
            bytes: total_bytes(&manifest),
        })
    }

    fn prepare(&self, checkpoint: &Path, generation: u64) -> Result<Prepared, TransferError> {
        let path = checkpoint.join(INDEX_FILE);
        let index_bytes = fs::read(&path).map_err(at(&path))?;
        let index = PageIndex::decode(&index_bytes)?;
        let path = checkpoint.join(DUMP_FILE);
        let dump_bytes = fs::read(&path).map_err(at(&path))?;
        let dump: Dump = serde_json::from_slice(&dump_bytes).map_err(content("dump.json"))?;
        let transfer = self.paths.transfer(generation);
        fs::create_dir_all(&transfer).map_err(at(&transfer))?;
        let staged = transfer.join("images");
        let _ = fs::remove_dir_all(&staged);
        fs::create_dir_all(&staged).map_err(at(&staged))?;
        let images = checkpoint.join(IMAGES_DIR);
        for entry in fs::read_dir(&images).map_err(at(&images))? {
            let entry = entry.map_err(at(&images))?;
            fs::hard_link(entry.path(), staged.join(entry.file_name())).map_err(at(&staged))?;
        }
        fs::write(staged.join(DUMP_FILE), &dump_bytes).map_err(at(&staged))?;
        let path = transfer.join("bundle");
        let output = BufWriter::new(File::create(&path).map_err(at(&path))?);
        let digest = bundle::pack(&staged, output).map_err(content("CRIU's images"))?;
        Ok(Prepared {
            index,
            index_bytes: index_bytes.into(),
            dump,
            bundle: digest,
        })
    }

    async fn upload_pages(&self, object: &IndexObject) -> Result<PageObject, TransferError> {
        let ObjectId { generation, number } = object.id;
        let path = PageCache::open(self.paths.pages())?.complete_path(generation, number);
        let sums = blocking({
            let path = path.clone();
            move || {
                let file = File::open(&path).map_err(at(&path))?;
                BlockSums::of(BufReader::new(file)).map_err(at(&path))
            }
        })
        .await?;
        let encoded = Bytes::from(sums.encode());
        let (key, sums_key) = (
            keys::pages(&self.app, generation, number),
            keys::sums(&self.app, generation, number),
        );
        self.put_file(&key, &path, sums.page_bytes()).await?;
        let digest = Digest::of(&encoded);
        self.store.put(&sums_key, encoded).await?;
        Ok(PageObject {
            generation,
            number,
            key,
            bytes: sums.page_bytes(),
            sums: manifest::Object::new(sums_key, digest),
        })
    }

    /// Stores a file and asks what is there now: a store that kept less must not become the only copy.
    async fn put_file(&self, key: &str, path: &Path, bytes: u64) -> Result<(), TransferError> {
        self.store.put_file(key, path).await?;
        let (stored, _) = self.store.head(key).await?;
        if stored == bytes {
            Ok(())
        } else {
            Err(TransferError::Damaged { key: key.to_owned() })
        }
    }

    /// The page objects that the last manifest this host stored or read lists.
    fn read_manifest(&self) -> Option<Vec<PageObject>> {
        let bytes = fs::read(self.paths.manifest()).ok()?;
        Manifest::decode(&bytes, &manifest::Limits::default())
            .ok()
            .map(|manifest| manifest.pages)
    }

    /// Deletes what no checkpoint needs any more. What cannot be deleted now is deleted next time.
    async fn collect_garbage(&self, manifest: &Manifest) {
        let mut kept: HashSet<&str> =
            HashSet::from([manifest.bundle.key.as_str(), manifest.index.key.as_str()]);
        kept.extend(manifest.files.iter().map(|files| files.key.as_str()));
        kept.extend(
            manifest
                .pages
                .iter()
                .flat_map(|page| [page.key.as_str(), page.sums.key.as_str()]),
        );
        let manifest_key = keys::manifest(&self.app);
        kept.insert(&manifest_key);
        let listed = match self.store.list(&keys::app_prefix(&self.app)).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(app = self.app, %error, "cannot list old checkpoints");
                return;
            }
        };
        let old: Vec<String> = listed
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| !kept.contains(key.as_str()))
            .collect();
        if let Err(error) = self.store.delete(&old).await {
            tracing::warn!(app = self.app, %error, "cannot delete old checkpoints");
        }
    }

    /// Removes all of the app's objects, the manifest first: what is left when this is cut off is named by nothing, and
    /// goes with the next try.
    ///
    /// # Errors
    /// When the store does not do it.
    pub async fn remove(&self) -> Result<(), TransferError> {
        self.store.delete(&[keys::manifest(&self.app)]).await?;
        let listed = self.store.list(&keys::app_prefix(&self.app)).await?;
        let keys: Vec<String> = listed.into_iter().map(|(key, _)| key).collect();
        Ok(self.store.delete(&keys).await?)
    }

    async fn fetch(&self, object: &manifest::Object) -> Result<Bytes, TransferError> {
        let (bytes, _) = self.store.get(&object.key, object.bytes).await?;
        self.meter.count(bytes.len());
        if Digest::of(&bytes) != object.digest() {
            return Err(TransferError::Damaged {
                key: object.key.clone(),
            });
        }
        Ok(bytes)
    }

    /// Fetches all that a cold app needs before it can run: images, index, files, block sums, and the newest page
    /// objects if they are small, in one wave. The page objects' other blocks come on demand.
    ///
    /// # Errors
    /// When the store does not answer, or answers with other bytes than were stored.
    pub async fn download(&self, generation: u64) -> Result<(), TransferError> {
        let path = self.paths.manifest();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let limit = manifest::Limits::default().document;
                let (bytes, _) = self.store.get(&keys::manifest(&self.app), limit).await?;
                self.meter.count(bytes.len());
                super::record::write_atomically(&path, &bytes).map_err(at(&path))?;
                bytes.to_vec()
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let manifest = Manifest::decode(&bytes, &manifest::Limits::default())?;
        let files = manifest.files.clone();
        let fetch_files = async {
            match &files {
                Some(files) => self.fetch(files).await.map(Some),
                None => Ok(None),
            }
        };
        let sums =
            futures_util::future::try_join_all(manifest.pages.iter().map(|page| self.fetch(&page.sums)));
        let newest: Vec<&PageObject> = manifest
            .pages
            .iter()
            .filter(|page| page.generation == generation)
            .collect();
        let small = newest.iter().map(|page| page.bytes).sum::<u64>() <= FIRST_PAGES_BYTES
            && manifest.pages.len() > newest.len();
        let first = newest.into_iter().filter(|_| small);
        let first = futures_util::future::try_join_all(first.map(|page| self.fetch_whole(page)));
        let (bundle, index, files, sums, first) = tokio::try_join!(
            self.fetch(&manifest.bundle),
            self.fetch(&manifest.index),
            fetch_files,
            sums,
            first
        )?;
        let paths = self.paths.clone();
        blocking(move || lay_out(&paths, &manifest, &bundle, &index, files, &sums, first)).await
    }

    /// A whole page object by parallel ranges.
    async fn fetch_whole(&self, page: &PageObject) -> Result<(ObjectId, Vec<Bytes>), TransferError> {
        let ranges = (0..page.bytes).step_by(RANGE_BYTES);
        let parts = futures_util::future::try_join_all(ranges.map(|offset| async move {
            let length = usize::try_from(page.bytes - offset)
                .unwrap_or(RANGE_BYTES)
                .min(RANGE_BYTES);
            let bytes = self.store.get_range(&page.key, offset, length, None).await?;
            self.meter.count(bytes.len());
            Ok::<_, TransferError>(bytes)
        }));
        Ok((id_of(page), parts.await?))
    }

    /// Fetches one block of a page object into the local copy.
    ///
    /// # Errors
    /// When the store does not answer, or the block is not what was stored.
    pub async fn fetch_block(&self, object: ObjectId, block: u64) -> Result<(), TransferError> {
        let remote = self.clone();
        let source = blocking(move || remote.source(object)).await?;
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
        source
            .sums
            .verify(block, &data)
            .map_err(|_| TransferError::Damaged {
                key: source.page.key.clone(),
            })?;
        blocking(move || Ok(source.file.write_block(block, &data)?)).await
    }

    /// What is known of a page object that is fetched block by block.
    fn source(&self, object: ObjectId) -> Result<Arc<Source>, TransferError> {
        let mut sources = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(&object) {
            return Ok(source.clone());
        }
        let manifest = self.read_manifest().unwrap_or_default();
        let page = manifest.into_iter().find(|page| id_of(page) == object);
        let page = page.ok_or_else(|| TransferError::Content {
            what: "the manifest",
            reason: format!("it lists no page object {object}"),
        })?;
        let path = sums_path(&self.paths, object);
        let encoded = fs::read(&path).map_err(at(&path))?;
        let sums = BlockSums::decode(&encoded, page.bytes).map_err(content("block sums"))?;
        let file =
            PageCache::open(self.paths.pages())?.writer(object.generation, object.number, page.bytes)?;
        let source = Arc::new(Source { page, sums, file });
        sources.insert(object, source.clone());
        Ok(source)
    }
}

/// Page objects of one app that are being fetched, with the one writer of each local copy.
#[derive(Debug, Clone, Default)]
pub struct Sources(Arc<Mutex<HashMap<ObjectId, Arc<Source>>>>);

impl Sources {
    /// Closes all of them: the app's local copies are about to change.
    pub fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[derive(Debug)]
struct Source {
    page: PageObject,
    sums: BlockSums,
    file: PageFile,
}

struct Prepared {
    index: PageIndex,
    index_bytes: Bytes,
    dump: Dump,
    bundle: Digest,
}

fn this_host() -> Result<manifest::Host, TransferError> {
    let host = nix::sys::utsname::uname().map_err(content("the host"))?;
    let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
    Ok(manifest::Host {
        kernel: text(host.release()),
        arch: text(host.machine()),
    })
}

fn id_of(page: &PageObject) -> ObjectId {
    ObjectId {
        generation: page.generation,
        number: page.number,
    }
}

fn sums_path(paths: &AppPaths, object: ObjectId) -> PathBuf {
    paths.pages().join(format!("{object}.sums"))
}

fn total_bytes(manifest: &Manifest) -> u64 {
    let objects = [&manifest.bundle, &manifest.index]
        .into_iter()
        .chain(&manifest.files);
    let pages = manifest.pages.iter().map(|page| page.bytes + page.sums.bytes);
    objects.map(|object| object.bytes).chain(pages).sum()
}

/// Puts what was fetched where a warm app has it; the checkpoint gets its name last.
fn lay_out(
    paths: &AppPaths,
    manifest: &Manifest,
    bundle: &Bytes,
    index: &Bytes,
    files: Option<Bytes>,
    sums: &[Bytes],
    first: Vec<(ObjectId, Vec<Bytes>)>,
) -> Result<(), TransferError> {
    let unfinished = paths.unfinished(manifest.generation);
    let images = unfinished.join(IMAGES_DIR);
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&images).map_err(at(&images))?;
    bundle::unpack(bundle.as_ref(), &images).map_err(content("CRIU's images"))?;
    fs::rename(images.join(DUMP_FILE), unfinished.join(DUMP_FILE)).map_err(at(&unfinished))?;
    PageIndex::decode(index)?;
    fs::write(unfinished.join(INDEX_FILE), index).map_err(at(&unfinished))?;
    let cache = PageCache::open(paths.pages())?;
    for (page, encoded) in manifest.pages.iter().zip(sums) {
        BlockSums::decode(encoded, page.bytes).map_err(content("block sums"))?;
        let path = sums_path(paths, id_of(page));
        fs::write(&path, encoded).map_err(at(&path))?;
        let mut writer = cache.writer(page.generation, page.number, page.bytes)?;
        let Some((_, parts)) = first.iter().find(|(known, _)| *known == id_of(page)) else {
            continue;
        };
        let sums = BlockSums::decode(encoded, page.bytes).map_err(content("block sums"))?;
        let blocks = parts.iter().flat_map(|part| part.chunks(BLOCK_SIZE));
        for (block, data) in (0..).zip(blocks) {
            sums.verify(block, data).map_err(|_| TransferError::Damaged {
                key: page.key.clone(),
            })?;
            writer.write_block(block, data)?;
        }
        writer.complete()?;
    }
    if let Some(files) = files {
        let upper = paths.upper();
        let _ = fs::remove_dir_all(&upper);
        let _ = fs::remove_dir_all(paths.overlay_work());
        fs::create_dir_all(&upper).map_err(at(&upper))?;
        // Nothing in an archive is longer than the archive itself.
        let budget = Budget {
            bytes: files.len() as u64,
            entries: files.len() as u64,
        };
        archive::unpack(files.as_ref(), &upper, &budget).map_err(content("the writable layer"))?;
    }
    failpoint::reach("agent.laid-out");
    let checkpoint = paths.checkpoint(manifest.generation);
    let _ = fs::remove_dir_all(&checkpoint);
    fs::rename(&unfinished, &checkpoint).map_err(at(&checkpoint))
}
