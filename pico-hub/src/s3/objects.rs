//! Owns the durable object storage: buckets, objects, their index, and conditional writes. Blocking code.
//! Must not know HTTP, S3 requests or async: [`super::backend`] translates.
//!
//! On disk:
//! ```text
//! DIR/lock                          held while a server uses DIR
//! DIR/tmp/                          what is being written; emptied at start
//! DIR/buckets/NAME/created          an empty file, as old as the bucket
//! DIR/buckets/NAME/objects/KEY.VER  one version of one object (file.rs); the highest is the object
//! DIR/buckets/NAME/uploads/ID/      an upload in parts (uploads.rs)
//! ```
//! A write goes: file synced in `tmp`, key locked, condition checked, renamed to a name of its own, directory
//! synced, **then** made visible in the index, then the old version unlinked. So no bytes are ever seen that a
//! crash could take back, a reader never meets a half object, and of several conditional writers one wins.
//! A deletion leaves the index first and is acknowledged when the directory is synced.
//! The index (all metadata, in memory) is rebuilt at start from the files.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::SystemTime;

use super::bucket::{Bucket, Condition, check_key, read, read_dir, write};
use super::error::{Result, StoreError, io_error};
use super::file::{Attributes, Draft, Meta, sync_dir};
use super::list::{Page, Query};

/// The storage under one directory. Share it by reference; every method may be called from any thread.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    buckets: RwLock<BTreeMap<String, Arc<Bucket>>>,
    temps: AtomicU64,
    /// Locked as long as the store lives.
    _lock: File,
}

impl Store {
    /// Opens the storage in `dir`, creating the directory (owner only) if needed, and clears what a crash
    /// left. Reads the metadata of every object: about a second per hundred thousand objects.
    pub fn open(dir: &Path) -> Result<Store> {
        let create = |dir: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        create(dir).map_err(io_error("create the store directory", dir))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(io_error("create", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
        }
        let (temp, buckets_dir) = (dir.join("tmp"), dir.join("buckets"));
        match fs::remove_dir_all(&temp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("clear", &temp)(error));
            }
            _ => {}
        }
        for sub in [&temp, &buckets_dir] {
            create(sub).map_err(io_error("create", sub))?;
        }
        sync_dir(dir).map_err(io_error("sync", dir))?;

        let mut buckets = BTreeMap::new();
        for entry in read_dir(&buckets_dir)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !s3s::path::check_bucket_name(&name) {
                tracing::warn!(path = %entry.path().display(), "not a bucket of ours; left alone");
                continue;
            }
            let bucket = Bucket::load(name.clone(), entry.path())?;
            buckets.insert(name, Arc::new(bucket));
        }
        let (buckets, temps) = (RwLock::new(buckets), AtomicU64::new(0));
        Ok(Store {
            dir: dir.to_owned(),
            buckets,
            temps,
            _lock: lock,
        })
    }

    /// Creates an empty bucket.
    pub fn create_bucket(&self, name: &str) -> Result<()> {
        if !s3s::path::check_bucket_name(name) {
            return Err(StoreError::BadBucketName(name.to_owned()));
        }
        let mut buckets = write(&self.buckets);
        if buckets.contains_key(name) {
            return Err(StoreError::BucketExists(name.to_owned()));
        }
        // Made aside and renamed, so that a bucket is there whole or not at all.
        let (made, parent) = (self.temp_path(), self.dir.join("buckets"));
        let make = || {
            fs::create_dir(&made)?;
            fs::create_dir(made.join("objects"))?;
            fs::create_dir(made.join("uploads"))?;
            File::create(made.join("created"))?;
            sync_dir(&made)?;
            fs::rename(&made, parent.join(name))?;
            sync_dir(&parent)
        };
        make().map_err(io_error("create bucket", &parent.join(name)))?;
        let bucket = Bucket::load(name.to_owned(), parent.join(name))?;
        buckets.insert(name.to_owned(), Arc::new(bucket));
        Ok(())
    }

    /// Deletes a bucket that holds no object. Uploads that were not completed go with it.
    pub fn delete_bucket(&self, name: &str) -> Result<()> {
        let bucket = self.bucket(name)?;
        bucket.retire(|| {
            self.discard(&bucket.dir)?;
            write(&self.buckets).remove(name);
            Ok(())
        })
    }

    /// All buckets in order of their names, with the time each was made.
    pub fn buckets(&self) -> Vec<(String, SystemTime)> {
        read(&self.buckets)
            .values()
            .map(|bucket| (bucket.name.clone(), bucket.created))
            .collect()
    }

    /// Does this bucket exist? If not, says so as an error.
    pub fn check_bucket(&self, name: &str) -> Result<()> {
        self.bucket(name).map(drop)
    }

    /// A file to write the bytes of an object (or a part) to, before [`Store::put`].
    pub fn draft(&self) -> Result<Draft> {
        let path = self.temp_path();
        Draft::create(path.clone()).map_err(io_error("create", &path))
    }

    /// Makes a draft the object `key` if the condition holds. When this returns, it is durable and visible;
    /// after an error it is neither (after an I/O error it may reappear at the next start).
    /// `etag`: see [`Draft::seal`].
    pub fn put(
        &self,
        bucket: &str,
        key: &str,
        draft: Draft,
        attributes: Attributes,
        etag: Option<String>,
        condition: &Condition,
    ) -> Result<Arc<Meta>> {
        check_key(key)?;
        let bucket = self.bucket(bucket)?;
        let path = draft.path().to_owned();
        let sealed = draft
            .seal(key, attributes, etag)
            .map_err(io_error("write", &path))?;
        bucket.publish(&bucket.hold()?, sealed, condition)
    }

    /// The metadata of an object.
    pub fn head(&self, bucket: &str, key: &str) -> Result<Arc<Meta>> {
        self.bucket(bucket)?
            .current(key)
            .ok_or_else(|| StoreError::NoSuchKey(key.to_owned()))
    }

    /// Opens an object: its metadata, and the file whose first `size` bytes are its content. The file stays
    /// readable and unchanged however the object is replaced meanwhile.
    pub fn open_object(&self, bucket: &str, key: &str) -> Result<(Arc<Meta>, File)> {
        self.bucket(bucket)?.open_object(key)
    }

    /// Makes `key` in `bucket` the same object as `source` (metadata and file from [`Store::open_object`]),
    /// with other attributes if given. The entity tag stays the source's.
    pub fn copy(
        &self,
        source: &(Arc<Meta>, File),
        bucket: &str,
        key: &str,
        attributes: Option<Attributes>,
        condition: &Condition,
    ) -> Result<Arc<Meta>> {
        let (meta, file) = source;
        let mut draft = self.draft()?;
        draft
            .append(file, meta.size)
            .map_err(io_error("copy to", draft.path()))?;
        let attributes = attributes.unwrap_or_else(|| meta.attributes.clone());
        self.put(bucket, key, draft, attributes, Some(meta.etag.clone()), condition)
    }

    /// Deletes an object if the condition holds; deleting nothing is no error unless the condition says so.
    pub fn delete(&self, bucket: &str, key: &str, condition: &Condition) -> Result<()> {
        self.bucket(bucket)?.delete(&[key], condition)
    }

    /// Deletes many objects and waits for the disk once.
    pub fn delete_many(&self, bucket: &str, keys: &[String]) -> Result<()> {
        self.bucket(bucket)?.delete(keys, &Condition::None)
    }

    /// One page of the objects of a bucket.
    pub fn list(&self, bucket: &str, query: &Query) -> Result<Page<Arc<Meta>>> {
        Ok(self.bucket(bucket)?.list(query))
    }

    pub(super) fn bucket(&self, name: &str) -> Result<Arc<Bucket>> {
        let found = read(&self.buckets).get(name).cloned();
        found.ok_or_else(|| StoreError::NoSuchBucket(name.to_owned()))
    }

    /// A path in `tmp` that nothing else uses: only this process writes there, and it was emptied at start.
    pub(super) fn temp_path(&self) -> PathBuf {
        self.dir
            .join("tmp")
            .join(self.temps.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Takes a directory away at once and durably, then removes what is in it.
    pub(super) fn discard(&self, dir: &Path) -> Result<()> {
        let aside = self.temp_path();
        fs::rename(dir, &aside).map_err(io_error("remove", dir))?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent).map_err(io_error("sync", parent))?;
        }
        fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))
    }
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
