//! Owns one bucket: its index, the locks of its keys, and the order in which a change becomes durable and
//! visible (see [`super::objects`]). Must not know other buckets or requests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use super::error::{Result, StoreError, io_error};
use super::file::{self, Meta, Sealed, sync_dir};
use super::list::{self, Page, Query};
use super::names;
use super::uploads::Upload;

/// Writers to different keys rarely meet in the same of these locks.
const KEY_LOCKS: usize = 64;

/// What must hold of a key for a write to it to happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// There is no such object.
    Absent,
    /// There is one.
    Exists,
    /// There is one with this entity tag.
    Matches(String),
}

impl Condition {
    fn check(&self, key: &str, current: Option<&Meta>) -> Result<()> {
        let failed = || StoreError::PreconditionFailed(key.to_owned());
        match (self, current) {
            (Condition::None, _) | (Condition::Absent, None) | (Condition::Exists, Some(_)) => Ok(()),
            (Condition::Matches(etag), Some(meta)) if *etag == meta.etag => Ok(()),
            (Condition::Exists | Condition::Matches(_), None) => Err(StoreError::NoSuchKey(key.to_owned())),
            (Condition::Absent | Condition::Matches(_), Some(_)) => Err(failed()),
        }
    }
}

/// A bucket, shared by all who use it.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) created: SystemTime,
    /// False once deleted. Held shared by every change within, exclusively by the deletion.
    alive: RwLock<bool>,
    versions: AtomicU64,
    /// One writer per key at a time, from the check of its condition until it is visible.
    writers: [Mutex<()>; KEY_LOCKS],
    /// What readers see: only what is durable.
    objects: RwLock<BTreeMap<String, Stored>>,
    pub(super) uploads: Mutex<BTreeMap<String, Arc<Upload>>>,
}

/// Proof that a bucket is not being deleted.
#[derive(Debug)]
pub(super) struct Alive<'a> {
    _guard: RwLockReadGuard<'a, bool>,
}

#[derive(Debug, Clone)]
struct Stored {
    meta: Arc<Meta>,
    version: u64,
}

impl Bucket {
    /// Reads a bucket from its directory.
    pub(super) fn load(name: String, dir: PathBuf) -> Result<Bucket> {
        let created = dir.join("created");
        let created = fs::metadata(&created)
            .and_then(|meta| meta.modified())
            .map_err(io_error("read", &created))?;
        let (objects, highest) = load_objects(&dir.join("objects"))?;
        let uploads = Upload::load_all(&dir.join("uploads"))?;
        Ok(Bucket {
            name,
            dir,
            created,
            alive: RwLock::new(true),
            versions: AtomicU64::new(highest),
            writers: [const { Mutex::new(()) }; KEY_LOCKS],
            objects: RwLock::new(objects),
            uploads: Mutex::new(uploads),
        })
    }

    /// Keeps the bucket from being deleted while the guard lives.
    /// Take it before any other lock of the bucket, and once: a waiting deletion lets no second one through.
    pub(super) fn hold(&self) -> Result<Alive<'_>> {
        let alive = read(&self.alive);
        if *alive {
            Ok(Alive { _guard: alive })
        } else {
            Err(StoreError::NoSuchBucket(self.name.clone()))
        }
    }

    /// The metadata of the object `key`, if there is one.
    pub(super) fn current(&self, key: &str) -> Option<Arc<Meta>> {
        read(&self.objects)
            .get(key)
            .map(|stored| Arc::clone(&stored.meta))
    }

    /// Gives a sealed draft its name and shows it, if the condition holds.
    pub(super) fn publish(&self, _: &Alive<'_>, sealed: Sealed, condition: &Condition) -> Result<Arc<Meta>> {
        let key = sealed.meta.key.clone();
        let _writer = self.writer(&key);
        condition.check(&key, self.current(&key).as_deref())?;
        let version = self.versions.fetch_add(1, Ordering::Relaxed) + 1;
        let path = self.object_path(&key, version);
        let meta = Arc::new(sealed.rename_to(&path).map_err(io_error("create", &path))?);
        if let Err(error) = self.sync_objects() {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let stored = Stored {
            meta: Arc::clone(&meta),
            version,
        };
        let old = write(&self.objects).insert(key.clone(), stored);
        if let Some(old) = old {
            let path = self.object_path(&key, old.version);
            // Needs no sync of its own: the next change here syncs the directory, and after a crash the
            // higher version counts.
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an old version stays until the next start");
            }
        }
        Ok(meta)
    }

    /// See [`super::objects::Store::open_object`].
    pub(super) fn open_object(&self, key: &str) -> Result<(Arc<Meta>, File)> {
        // Held over the opening: a version is unlinked only after it has left the index.
        let objects = read(&self.objects);
        let stored = objects
            .get(key)
            .ok_or_else(|| StoreError::NoSuchKey(key.to_owned()))?;
        let path = self.object_path(key, stored.version);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        Ok((Arc::clone(&stored.meta), file))
    }

    /// See [`super::objects::Store::list`].
    pub(super) fn list(&self, query: &Query) -> Page<Arc<Meta>> {
        let Page {
            entries,
            groups,
            next,
        } = list::page(&read(&self.objects), query);
        Page {
            entries: entries.into_iter().map(|stored| stored.meta).collect(),
            groups,
            next,
        }
    }

    /// Deletes objects and waits for the disk once. The condition is of each of them.
    pub(super) fn delete(&self, keys: &[impl AsRef<str>], condition: &Condition) -> Result<()> {
        let _alive = self.hold()?;
        for key in keys {
            self.unlink(key.as_ref(), condition)?;
        }
        self.sync_objects()
    }

    /// Ends the bucket by `remove` if it holds no object. No change runs meanwhile, and none after.
    pub(super) fn retire(&self, remove: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut alive = write(&self.alive);
        if !*alive {
            return Err(StoreError::NoSuchBucket(self.name.clone()));
        }
        if !read(&self.objects).is_empty() {
            return Err(StoreError::BucketNotEmpty(self.name.clone()));
        }
        remove()?;
        *alive = false;
        Ok(())
    }

    /// Removes an object from the index and from the directory, which the caller syncs.
    fn unlink(&self, key: &str, condition: &Condition) -> Result<()> {
        let _writer = self.writer(key);
        condition.check(key, self.current(key).as_deref())?;
        let removed = write(&self.objects).remove(key);
        if let Some(stored) = removed {
            let path = self.object_path(key, stored.version);
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    fn sync_objects(&self) -> Result<()> {
        let dir = self.dir.join("objects");
        sync_dir(&dir).map_err(io_error("sync", &dir))
    }

    fn object_path(&self, key: &str, version: u64) -> PathBuf {
        self.dir.join("objects").join(names::object_file(key, version))
    }

    fn writer(&self, key: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        let slot = hasher.finish() as usize % KEY_LOCKS;
        lock(&self.writers[slot])
    }
}

/// Reads the index from the files: the highest version of each key counts, lower ones are removed. A file
/// that is not a whole object is reported and left alone: it was never acknowledged, or the disk is failing.
fn load_objects(dir: &Path) -> Result<(BTreeMap<String, Stored>, u64)> {
    let mut objects: BTreeMap<String, Stored> = BTreeMap::new();
    let mut highest = 0;
    let mut stale = Vec::new();
    for entry in read_dir(dir)? {
        let (path, name) = (entry.path(), entry.file_name());
        let Some((name, version)) = name
            .to_str()
            .and_then(|name| Some((name, names::version_of(name)?)))
        else {
            tracing::warn!(path = %path.display(), "not an object of ours; left alone");
            continue;
        };
        highest = highest.max(version);
        let meta = match File::open(&path).and_then(|file| file::read_meta(&file)) {
            Ok(meta) if names::object_file(&meta.key, version) == name => meta,
            Ok(_) => {
                tracing::warn!(path = %path.display(), "holds another key than its name says; left alone");
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(path = %path.display(), %error, "damaged object; left alone, not served");
                continue;
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let key = meta.key.clone();
        let found = Stored {
            meta: Arc::new(meta),
            version,
        };
        let older = match objects.get(&key) {
            Some(known) if known.version > version => Some(version),
            _ => objects.insert(key.clone(), found).map(|known| known.version),
        };
        stale.extend(older.map(|version| dir.join(names::object_file(&key, version))));
    }
    for path in &stale {
        fs::remove_file(path).map_err(io_error("remove the old version", path))?;
    }
    if !stale.is_empty() {
        sync_dir(dir).map_err(io_error("sync", dir))?;
    }
    Ok((objects, highest))
}

pub(super) fn check_key(key: &str) -> Result<()> {
    if (1..=names::MAX_KEY).contains(&key.len()) {
        Ok(())
    } else {
        Err(StoreError::BadKeyLength(key.len()))
    }
}

pub(super) fn read_dir(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    fs::read_dir(dir)
        .and_then(Iterator::collect)
        .map_err(io_error("read", dir))
}

// A panic while one of these is held leaves the data whole (each change is one insert or remove), so a
// poisoned lock is as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
