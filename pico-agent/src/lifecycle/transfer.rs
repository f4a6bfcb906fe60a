//! An app's objects in the store, and a checkpoint's way there. The way back is in `fetch`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::fetch::{Known, Sources, remove_other_sums};
use super::paths::AppPaths;
use crate::checkpoint::archive;
use crate::checkpoint::bundle;
use crate::checkpoint::compressed::{Compress, Compressed};
use crate::checkpoint::hash::{Digest, Hashing, write_sums};
use crate::checkpoint::index::{IndexError, ObjectId, PageIndex};
use crate::checkpoint::keys;
use crate::checkpoint::local::{ACTIVE_SETS_FILE, DUMP_FILE, Dump, IMAGES_DIR, INDEX_FILE};
use crate::checkpoint::manifest::{self, Manifest, ManifestError, PageObject};
use crate::failpoint;
use crate::store::cache::CacheError;
use crate::store::{ETag, PageCache, Store, StoreError};

/// Names of objects in [`AppPaths::transfer`].
pub(super) const BUNDLE: &str = "bundle";
/// The page index, on its way from the store.
pub(super) const INDEX: &str = "index";
/// The writable layer.
pub(super) const FILES: &str = "files";
/// Directory of the block sums of single page objects.
const PARTS: &str = "sums";

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

pub(super) fn content<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> TransferError {
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
    pub(super) fn count(&self, bytes: usize) {
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
    /// Whether what was stored is kept on this host, too.
    pub keeps: bool,
}

impl Remote {
    /// Packs the writable layer of a sleeping app. Until this is done the app must not wake.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub async fn pack_files(&self, generation: u64) -> Result<Compressed, TransferError> {
        let (upper, dir) = (self.paths.upper(), self.paths.transfer(generation));
        blocking(move || {
            fs::create_dir_all(&dir).map_err(at(&dir))?;
            let path = dir.join(FILES);
            compress_into(&path, |output| {
                archive::pack(&upper, output).map_err(content("the writable layer"))
            })
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
        files: Compressed,
        previous: Option<ETag>,
    ) -> Result<Stored, TransferError> {
        let checkpoint = self.paths.checkpoint(generation);
        let local = self.clone();
        let prepared = blocking(move || local.prepare(&checkpoint, generation)).await?;
        let known = self.known_objects(&prepared.index).await?;
        let mut pages = Vec::new();
        for object in &prepared.index.objects {
            match known.as_ref().and_then(|known| known.page(object.id)) {
                Some(stored) => pages.push(stored.clone()),
                None => pages.push(self.upload_pages(object.id, generation).await?),
            }
        }
        pages.sort_by_key(|page| (page.generation, page.number));
        let transfer = self.paths.transfer(generation);
        let bundle_key = keys::bundle(&self.app, generation);
        let index_key = keys::index(&self.app, generation);
        let files_key = keys::files(&self.app, generation);
        let sums_key = keys::sums(&self.app, generation);
        let sums_path = self.paths.sums(generation);
        let sums = blocking({
            let (pages, to, parts) = (pages.clone(), sums_path.clone(), transfer.join(PARTS));
            move || join_sums(&pages, known.as_deref(), &parts, &to)
        })
        .await?;
        self.put_file(&bundle_key, &transfer.join(BUNDLE), prepared.bundle.digest.bytes)
            .await?;
        self.store.put(&index_key, prepared.index_bytes.clone()).await?;
        self.put_file(&files_key, &transfer.join(FILES), files.digest.bytes)
            .await?;
        self.put_file(&sums_key, &sums_path, sums.bytes).await?;
        let manifest = Manifest {
            schema: manifest::SCHEMA.to_owned(),
            blake3: Digest::of(b"").blake3,
            requires: vec![manifest::COMPRESSION.to_owned()],
            app: self.app.clone(),
            generation,
            clocks: prepared.dump.clocks.clone(),
            host: this_host()?,
            bundle: manifest::Object::compressed(bundle_key, prepared.bundle),
            index: manifest::Object::new(index_key, Digest::of(&prepared.index_bytes)),
            files: Some(manifest::Object::compressed(files_key, files)),
            pages,
            sums: manifest::Object::new(sums_key, sums),
            root_files: prepared.dump.root_files,
        };
        let bytes = Bytes::from(manifest.encode()?);
        failpoint::reach("agent.uploaded");
        let etag = self.publish(generation, &bytes, previous).await?;
        failpoint::reach("agent.published");
        self.tidy(&transfer, &prepared.index_bytes);
        remove_other_sums(&self.paths, generation);
        self.collect_garbage(&manifest).await;
        Ok(Stored {
            etag,
            bytes: total_bytes(&manifest),
        })
    }

    /// Leaves of what was stored what a wake from cold needs first, if that is kept.
    fn tidy(&self, transfer: &Path, index: &[u8]) {
        let of_no_use = match self.keeps && fs::write(transfer.join(INDEX), index).is_ok() {
            true => vec![transfer.join(IMAGES_DIR), transfer.join(PARTS)],
            false => vec![transfer.to_owned()],
        };
        for dir in of_no_use {
            // What stays goes with the next sleep.
            let _ = fs::remove_dir_all(dir);
        }
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
        let parts = transfer.join(PARTS);
        fs::create_dir_all(&parts).map_err(at(&parts))?;
        let staged = transfer.join(IMAGES_DIR);
        let _ = fs::remove_dir_all(&staged);
        fs::create_dir_all(&staged).map_err(at(&staged))?;
        let images = checkpoint.join(IMAGES_DIR);
        for entry in fs::read_dir(&images).map_err(at(&images))? {
            let entry = entry.map_err(at(&images))?;
            fs::hard_link(entry.path(), staged.join(entry.file_name())).map_err(at(&staged))?;
        }
        fs::write(staged.join(DUMP_FILE), &dump_bytes).map_err(at(&staged))?;
        // Without them the app is saved all the same; whoever wakes it learns anew.
        let _ = fs::copy(self.paths.active_sets(), staged.join(ACTIVE_SETS_FILE));
        let path = transfer.join(BUNDLE);
        let bundle = compress_into(&path, |output| {
            bundle::pack(&staged, output).map_err(content("CRIU's images"))
        })?;
        Ok(Prepared {
            index,
            index_bytes: index_bytes.into(),
            dump,
            bundle,
        })
    }

    /// What the last manifest of this host knows of page objects, if any of them is in `index`.
    async fn known_objects(&self, index: &PageIndex) -> Result<Option<Arc<Known>>, TransferError> {
        let Some(manifest) = self.read_manifest() else {
            return Ok(None);
        };
        let stored: HashSet<ObjectId> = manifest.pages.iter().map(PageObject::id).collect();
        if !index.objects.iter().any(|object| stored.contains(&object.id)) {
            return Ok(None);
        }
        let paths = self.paths.clone();
        if let Ok(known) = blocking(move || Known::open(&paths)).await {
            return Ok(Some(known));
        }
        // Cut off between the manifest's PUT and here, or damaged: the store has them.
        self.fetch(&manifest.sums, self.paths.sums(manifest.generation))
            .await?;
        let paths = self.paths.clone();
        blocking(move || Known::open(&paths)).await.map(Some)
    }

    /// Stores a page object; its block sums are left with what is on its way with checkpoint `generation`.
    async fn upload_pages(&self, id: ObjectId, generation: u64) -> Result<PageObject, TransferError> {
        let path = PageCache::open(self.paths.pages())?.complete_path(id.generation, id.number);
        let sums = self.paths.transfer(generation).join(PARTS).join(id.to_string());
        let bytes = blocking({
            let path = path.clone();
            move || {
                let pages = BufReader::new(File::open(&path).map_err(at(&path))?);
                let mut out = BufWriter::new(File::create(&sums).map_err(at(&sums))?);
                let bytes = write_sums(pages, &mut out).map_err(at(&path))?;
                io::Write::flush(&mut out).map_err(at(&sums))?;
                Ok(bytes)
            }
        })
        .await?;
        let key = keys::pages(&self.app, id.generation, id.number);
        self.put_file(&key, &path, bytes).await?;
        Ok(PageObject {
            generation: id.generation,
            number: id.number,
            key,
            bytes,
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

    /// The last manifest that this host stored or read.
    fn read_manifest(&self) -> Option<Manifest> {
        let bytes = fs::read(self.paths.manifest()).ok()?;
        Manifest::decode(&bytes, &manifest::Limits::default()).ok()
    }

    /// Deletes what no checkpoint needs any more. What cannot be deleted now is deleted next time.
    async fn collect_garbage(&self, manifest: &Manifest) {
        let mut kept: HashSet<&str> = manifest.objects().map(|object| object.key.as_str()).collect();
        kept.extend(manifest.pages.iter().map(|page| page.key.as_str()));
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
}

struct Prepared {
    index: PageIndex,
    index_bytes: Bytes,
    dump: Dump,
    bundle: Compressed,
}

/// Makes the object in the file `path` of what `pack` writes.
fn compress_into<T>(
    path: &Path,
    pack: impl FnOnce(&mut Compress<BufWriter<File>>) -> Result<T, TransferError>,
) -> Result<Compressed, TransferError> {
    let output = BufWriter::new(File::create(path).map_err(at(path))?);
    let mut output = Compress::new(output).map_err(at(path))?;
    pack(&mut output)?;
    output.finish().map_err(at(path))
}

fn this_host() -> Result<manifest::Host, TransferError> {
    let host = nix::sys::utsname::uname().map_err(content("the host"))?;
    let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
    Ok(manifest::Host {
        kernel: text(host.release()),
        arch: text(host.machine()),
    })
}

fn total_bytes(manifest: &Manifest) -> u64 {
    let pages = manifest.pages.iter().map(|page| page.bytes);
    manifest.objects().map(|object| object.bytes).chain(pages).sum()
}

/// Writes to `to` the block sums of `pages` in their order: those in `known` from there, those of objects that were just
/// stored from `parts`.
fn join_sums(
    pages: &[PageObject],
    known: Option<&Known>,
    parts: &Path,
    to: &Path,
) -> Result<Digest, TransferError> {
    let file = File::create(to).map_err(at(to))?;
    let mut out = Hashing::new(BufWriter::new(file));
    for page in pages {
        match known.filter(|known| known.page(page.id()).is_some()) {
            Some(known) => known.copy_sums(page.id(), &mut out)?,
            None => {
                let path = parts.join(page.id().to_string());
                let mut part = File::open(&path).map_err(at(&path))?;
                io::copy(&mut part, &mut out).map_err(at(to))?;
            }
        }
    }
    io::Write::flush(&mut out).map_err(at(to))?;
    Ok(out.digest())
}
