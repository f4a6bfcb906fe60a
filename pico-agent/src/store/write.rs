//! Writing and deleting objects.
//!
//! Owns what a conditional PUT means when answers are lost or conflict; knows nothing of what is written.

use std::path::Path;
use std::sync::atomic::Ordering;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use bytes::Bytes;

use super::client::{ETag, Precondition, Store, etag};
use super::error::{Request, Result, StoreError, chain};
use crate::checkpoint::OBJECT_MAX;

impl Store {
    /// Writes an object, whatever was there before.
    pub async fn put(&self, key: &str, content: Bytes) -> Result<ETag> {
        let (request, bytes) = (self.request("put", key), content.len() as u64);
        let once = || self.put_once(key, ByteStream::from(content.clone()), bytes, None);
        self.repeat(&request, bytes, once).await
    }

    /// Writes an object from the file at `path`, which must not change meanwhile. Memory does not grow with
    /// the file.
    pub async fn put_file(&self, key: &str, path: &Path) -> Result<ETag> {
        let failed = |source| StoreError::File {
            path: path.to_owned(),
            source,
        };
        let bytes = tokio::fs::metadata(path).await.map_err(failed)?.len();
        let once = || async {
            let content = ByteStream::read_from().path(path).build().await;
            let content = content.map_err(|e| failed(std::io::Error::other(e)))?;
            self.put_once(key, content, bytes, None).await
        };
        self.repeat(&self.request("put", key), bytes, once).await
    }

    /// Writes an object if `condition` holds; of several who try at once, one succeeds.
    ///
    /// [`StoreError::Lost`] and [`StoreError::Missing`] (there is nothing to match) are final: the object is
    /// not this content. After any other error, whether it was written is unknown. A PUT that is repeated
    /// because its answer was lost, and finds its own content there, counts as a success: so contents must
    /// differ between writers who compete.
    pub async fn put_if(&self, key: &str, content: Bytes, condition: Precondition) -> Result<ETag> {
        let request = self.request("put", key);
        let (bytes, tuning) = (content.len() as u64, &self.inner.tuning);
        let (mut failures, mut conflicts) = (0, 0);
        loop {
            let once = self.put_once(key, ByteStream::from(content.clone()), bytes, Some(&condition));
            let result = self.within(&request, self.deadline(bytes), once).await.flatten();
            match result {
                Err(StoreError::Lost { .. }) if failures > 0 => return self.is_ours(key, &content).await,
                // Another request for the key was being carried out: neither won nor lost.
                Err(StoreError::Refused { status: 409, .. }) if conflicts + 1 < tuning.conflicts => {
                    conflicts += 1;
                }
                result @ Err(StoreError::Refused { status: 409, .. }) => return result,
                Err(e) if e.is_transient() && failures + 1 < tuning.attempts => failures += 1,
                result => return result,
            }
            self.pause(failures + conflicts).await;
        }
    }

    /// After a PUT whose answer was lost: was it carried out?
    async fn is_ours(&self, key: &str, content: &Bytes) -> Result<ETag> {
        match self.get(key, content.len() as u64).await {
            Ok((found, etag)) if found == content => Ok(etag),
            Ok(_) | Err(StoreError::TooLarge { .. } | StoreError::Missing { .. }) => {
                Err(StoreError::Lost { key: key.to_owned() })
            }
            Err(e) => Err(e),
        }
    }

    async fn put_once(
        &self,
        key: &str,
        content: ByteStream,
        bytes: u64,
        condition: Option<&Precondition>,
    ) -> Result<ETag> {
        let request = self.request("put", key);
        if bytes > OBJECT_MAX {
            return Err(StoreError::TooLarge {
                op: "put",
                key: key.into(),
                bytes,
                limit: OBJECT_MAX,
            });
        }
        let put = self
            .inner
            .client
            .put_object()
            .bucket(&self.inner.bucket)
            .key(self.full(key))
            .body(content);
        let put = match condition {
            None => put,
            Some(Precondition::Absent) => put.if_none_match("*"),
            Some(Precondition::Matches(tag)) => put.if_match(&tag.0),
        };
        let output = put.send().await.map_err(|e| request.explain(e))?;
        self.inner.counters.bytes_out.fetch_add(bytes, Ordering::Relaxed);
        etag(&request, output.e_tag())
    }

    /// Deletes objects; one that is not there counts as deleted.
    pub async fn delete<K: AsRef<str>>(&self, keys: &[K]) -> Result<()> {
        /// What one request can carry.
        const BATCH: usize = 1000;
        if let [key] = keys {
            let request = self.request("delete", key.as_ref());
            return self
                .repeat(&request, 0, || async {
                    let delete = self.inner.client.delete_object().bucket(&self.inner.bucket);
                    match delete
                        .key(self.full(key.as_ref()))
                        .send()
                        .await
                        .map_err(|e| request.explain(e))
                    {
                        Ok(_) | Err(StoreError::Missing { .. }) => Ok(()),
                        Err(e) => Err(e),
                    }
                })
                .await;
        }
        for keys in keys.chunks(BATCH) {
            let request = self.request("delete", keys.first().map_or("", AsRef::as_ref));
            self.repeat(&request, 0, || self.delete_batch(&request, keys))
                .await?;
        }
        Ok(())
    }

    async fn delete_batch<K: AsRef<str>>(&self, request: &Request<'_>, keys: &[K]) -> Result<()> {
        let id = |key: &K| ObjectIdentifier::builder().key(self.full(key.as_ref())).build();
        let ids = keys.iter().map(id).collect::<Result<Vec<_>, _>>();
        let list = ids.and_then(|ids| Delete::builder().set_objects(Some(ids)).quiet(true).build());
        let list = list.map_err(|e| StoreError::Config(chain(&e)))?;
        let delete = self
            .inner
            .client
            .delete_objects()
            .bucket(&self.inner.bucket)
            .delete(list)
            .send();
        let output = delete.await.map_err(|e| request.explain(e))?;
        match output.errors().iter().find(|e| e.code() != Some("NoSuchKey")) {
            None => Ok(()),
            Some(error) => Err(StoreError::Refused {
                op: request.op,
                key: error.key().unwrap_or_default().to_owned(),
                status: 200,
                code: error.code().unwrap_or_default().to_owned(),
                message: error.message().unwrap_or_default().to_owned(),
            }),
        }
    }
}
