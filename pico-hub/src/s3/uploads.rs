//! Owns uploads in parts (S3 multipart): their parts on disk until they become one object.
//! Must not know HTTP or S3 requests.
//!
//! `uploads/ID/upload.json` says what is uploaded, `uploads/ID/part-NUMBER` is an object file like any other
//! (file.rs). Uploads survive a restart; what nobody completed within [`KEEP`] is removed at start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use s3s::crypto::{Checksum as _, Md5};
use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Condition, check_key, lock, read_dir};
use super::error::{Result, StoreError, io_error};
use super::file::{self, Attributes, Draft, Meta, sync_dir};
use super::names;
use super::objects::Store;

/// How long an upload may take.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Parts but the last have at least this many bytes, and numbers run from 1 to [`MAX_PART`] (Amazon S3 user
/// guide, "multipart upload limits").
const MIN_PART_SIZE: u64 = 5 * 1024 * 1024;

/// The highest part number.
pub const MAX_PART: u16 = 10_000;

/// What is uploaded, as kept on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The object it will become.
    pub key: String,
    /// When it was begun, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// What the object will keep.
    pub attributes: Attributes,
}

/// An upload in progress.
#[derive(Debug)]
pub struct Upload {
    dir: PathBuf,
    plan: Plan,
    /// `None` once it was completed or aborted. Held while parts become an object.
    parts: Mutex<Option<BTreeMap<u16, Arc<Meta>>>>,
}

impl Upload {
    /// All uploads under `dir`, by their ids.
    pub(super) fn load_all(dir: &Path) -> Result<BTreeMap<String, Arc<Upload>>> {
        let mut uploads = BTreeMap::new();
        for entry in read_dir(dir)? {
            let dir = entry.path();
            let upload = match Upload::load(dir.clone()) {
                Ok(upload) => upload,
                Err(error) => {
                    tracing::warn!(path = %dir.display(), %error, "unreadable upload; left alone, not served");
                    continue;
                }
            };
            let age = Duration::from_millis(file::now_ms().saturating_sub(upload.plan.started_ms));
            if age > KEEP {
                fs::remove_dir_all(&dir).map_err(io_error("remove the forgotten upload", &dir))?;
            } else {
                uploads.insert(entry.file_name().to_string_lossy().into_owned(), Arc::new(upload));
            }
        }
        Ok(uploads)
    }

    fn load(dir: PathBuf) -> io::Result<Upload> {
        let plan = serde_json::from_slice(&fs::read(dir.join("upload.json"))?)?;
        let mut parts = BTreeMap::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix("part-")?.parse().ok());
            if let Some(number) = number {
                parts.insert(number, Arc::new(file::read_meta(&File::open(entry.path())?)?));
            }
        }
        Ok(Upload {
            dir,
            plan,
            parts: Mutex::new(Some(parts)),
        })
    }

    fn part_path(&self, number: u16) -> PathBuf {
        self.dir.join(format!("part-{number:05}"))
    }
}

impl Store {
    /// Begins an upload under an `id` the caller made up (unguessable, of letters and digits).
    pub fn create_upload(&self, bucket: &str, id: &str, key: &str, attributes: Attributes) -> Result<()> {
        check_key(key)?;
        let bucket = self.bucket(bucket)?;
        let _alive = bucket.hold()?;
        let plan = Plan {
            key: key.to_owned(),
            started_ms: file::now_ms(),
            attributes,
        };
        let (made, parent) = (self.temp_path(), bucket.dir.join("uploads"));
        let make = || {
            fs::create_dir(&made)?;
            let mut file = File::create(made.join("upload.json"))?;
            file.write_all(&serde_json::to_vec(&plan)?)?;
            file.sync_all()?;
            sync_dir(&made)?;
            fs::rename(&made, parent.join(id))?;
            sync_dir(&parent)
        };
        make().map_err(io_error("create upload", &parent.join(id)))?;
        let upload = Upload {
            dir: parent.join(id),
            plan,
            parts: Mutex::new(Some(BTreeMap::new())),
        };
        lock(&bucket.uploads).insert(id.to_owned(), Arc::new(upload));
        Ok(())
    }

    /// Makes a draft part `number` of an upload, replacing an earlier one.
    pub fn put_part(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        number: u16,
        draft: Draft,
        attributes: Attributes,
    ) -> Result<Arc<Meta>> {
        let bucket = self.bucket(bucket)?;
        let _alive = bucket.hold()?;
        let upload = bucket.upload(key, id)?;
        let path = draft.path().to_owned();
        let sealed = draft
            .seal(key, attributes, None)
            .map_err(io_error("write", &path))?;
        let mut parts = lock(&upload.parts);
        let parts = parts
            .as_mut()
            .ok_or_else(|| StoreError::NoSuchUpload(id.to_owned()))?;
        let path = upload.part_path(number);
        let meta = Arc::new(sealed.rename_to(&path).map_err(io_error("create", &path))?);
        sync_dir(&upload.dir).map_err(io_error("sync", &upload.dir))?;
        parts.insert(number, Arc::clone(&meta));
        Ok(meta)
    }

    /// Makes the chosen parts (number and entity tag, ascending) one object if the condition holds. If it
    /// does not, the upload stays as it is.
    pub fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        chosen: &[(u16, String)],
        condition: &Condition,
    ) -> Result<Arc<Meta>> {
        let owner = self.bucket(bucket)?;
        let alive = owner.hold()?;
        let upload = owner.upload(key, id)?;
        let mut guard = lock(&upload.parts);
        let parts = guard
            .as_ref()
            .ok_or_else(|| StoreError::NoSuchUpload(id.to_owned()))?;
        check_choice(chosen, parts)?;

        let mut draft = self.draft()?;
        let mut tags = Md5::new();
        for (number, etag) in chosen {
            let path = upload.part_path(*number);
            let size = parts.get(number).map_or(0, |part| part.size);
            let file = File::open(&path).map_err(io_error("open", &path))?;
            draft.append(&file, size).map_err(io_error("copy", &path))?;
            tags.update(&names::unhex(etag).unwrap_or_default());
        }
        let etag = format!("{}-{}", names::hex(&tags.finalize()), chosen.len());
        let attributes = upload.plan.attributes.clone();
        let path = draft.path().to_owned();
        let sealed = draft
            .seal(key, attributes, Some(etag))
            .map_err(io_error("write", &path))?;
        let meta = owner.publish(&alive, sealed, condition)?;

        *guard = None;
        lock(&owner.uploads).remove(id);
        if let Err(error) = self.discard(&upload.dir) {
            // The object is there, which is what was asked.
            tracing::warn!(%error, "parts of a completed upload stay until the server starts next");
        }
        Ok(meta)
    }

    /// Forgets an upload and its parts.
    pub fn abort_upload(&self, bucket: &str, key: &str, id: &str) -> Result<()> {
        let bucket = self.bucket(bucket)?;
        let _alive = bucket.hold()?;
        let upload = bucket.upload(key, id)?;
        let taken = lock(&upload.parts).take();
        taken.ok_or_else(|| StoreError::NoSuchUpload(id.to_owned()))?;
        lock(&bucket.uploads).remove(id);
        self.discard(&upload.dir)
    }

    /// The parts an upload has so far, in order.
    pub fn parts(&self, bucket: &str, key: &str, id: &str) -> Result<Vec<(u16, Arc<Meta>)>> {
        let upload = self.bucket(bucket)?.upload(key, id)?;
        let parts = lock(&upload.parts);
        let parts = parts
            .as_ref()
            .ok_or_else(|| StoreError::NoSuchUpload(id.to_owned()))?;
        Ok(parts
            .iter()
            .map(|(number, meta)| (*number, Arc::clone(meta)))
            .collect())
    }

    /// Id and plan of every upload in a bucket, ordered by key, then by id.
    pub fn uploads(&self, bucket: &str) -> Result<Vec<(String, Plan)>> {
        let bucket = self.bucket(bucket)?;
        let uploads = lock(&bucket.uploads);
        let mut all: Vec<_> = uploads
            .iter()
            .map(|(id, upload)| (id.clone(), upload.plan.clone()))
            .collect();
        all.sort_by(|a, b| (&a.1.key, &a.0).cmp(&(&b.1.key, &b.0)));
        Ok(all)
    }
}

impl Bucket {
    fn upload(&self, key: &str, id: &str) -> Result<Arc<Upload>> {
        let found = lock(&self.uploads)
            .get(id)
            .filter(|upload| upload.plan.key == key)
            .cloned();
        found.ok_or_else(|| StoreError::NoSuchUpload(id.to_owned()))
    }
}

fn check_choice(chosen: &[(u16, String)], parts: &BTreeMap<u16, Arc<Meta>>) -> Result<()> {
    if !chosen.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(StoreError::InvalidPartOrder);
    }
    for (at, (number, etag)) in chosen.iter().enumerate() {
        match parts.get(number) {
            Some(part) if part.etag == *etag => {
                if part.size < MIN_PART_SIZE && at + 1 < chosen.len() {
                    return Err(StoreError::PartTooSmall(*number));
                }
            }
            _ => return Err(StoreError::InvalidPart(*number)),
        }
    }
    Ok(())
}
