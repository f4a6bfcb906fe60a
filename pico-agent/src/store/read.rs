//! Reading objects: whole, in ranges, by name.
//!
//! Owns the checks that what arrives is what was asked for, and not more than the caller can take. What
//! the bytes are is compared with checksums by the caller.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::client::{ETag, Store, etag};
use super::error::{Request, Result, StoreError, chain};
use crate::checkpoint::hash::{Digest, Hashing};

impl Store {
    /// A whole object of at most `max_bytes`, and the tag of this content.
    pub async fn get(&self, key: &str, max_bytes: u64) -> Result<(Bytes, ETag)> {
        self.repeat(&self.request("get", key), max_bytes, || {
            self.get_once(key, max_bytes)
        })
        .await
    }

    async fn get_once(&self, key: &str, max_bytes: u64) -> Result<(Bytes, ETag)> {
        let request = self.request("get", key);
        let output = self.open(&request, |get| get).await?;
        let etag = etag(&request, output.e_tag())?;
        let length = claimed_length(&request, &output, max_bytes)?;
        let mut content = BytesMut::with_capacity(usize::try_from(length.unwrap_or(0)).unwrap_or(0));
        let mut pieces = self.pieces(request, output, max_bytes);
        while let Some(piece) = pieces.next().await? {
            content.extend_from_slice(&piece);
        }
        Ok((content.freeze(), etag))
    }

    /// A whole object of at most `max_bytes` into the file at `path`, which is made or overwritten; not
    /// synced. Memory does not grow with the object. The digest is that of what was written.
    pub async fn get_file(&self, key: &str, path: &Path, max_bytes: u64) -> Result<Digest> {
        self.repeat(&self.request("get", key), max_bytes, || {
            self.get_file_once(key, path, max_bytes)
        })
        .await
    }

    async fn get_file_once(&self, key: &str, path: &Path, max_bytes: u64) -> Result<Digest> {
        let failed = |source| StoreError::File {
            path: path.to_owned(),
            source,
        };
        let request = self.request("get", key);
        let output = self.open(&request, |get| get).await?;
        claimed_length(&request, &output, max_bytes)?;
        let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
        let mut hash = Hashing::new(std::io::sink());
        let mut pieces = self.pieces(request, output, max_bytes);
        while let Some(piece) = pieces.next().await? {
            hash.write_all(&piece).map_err(failed)?;
            file.write_all(&piece).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        Ok(hash.digest())
    }

    /// Exactly the `length` bytes from `offset`, or an error. With a tag, only of that content.
    pub async fn get_range(&self, key: &str, offset: u64, length: usize, of: Option<&ETag>) -> Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let request = self.request("get", key);
        self.repeat(&request, length as u64, || {
            self.get_range_once(key, offset, length, of)
        })
        .await
    }

    async fn get_range_once(
        &self,
        key: &str,
        offset: u64,
        length: usize,
        of: Option<&ETag>,
    ) -> Result<Bytes> {
        let request = self.request("get", key);
        let last = offset.saturating_add(length as u64 - 1);
        let asked = format!("bytes {offset}-{last}");
        let wrong = |got: String| StoreError::WrongAnswer {
            op: "get",
            key: key.to_owned(),
            asked: asked.clone(),
            got,
        };
        let range = format!("bytes={offset}-{last}");
        let if_match = of.map(|tag| tag.0.clone());
        let output = self
            .open(&request, |get| get.range(range).set_if_match(if_match))
            .await?;
        match output.content_range() {
            // "bytes 0-9/100": the whole's length is not our concern.
            Some(sent) if sent.split('/').next() == Some(asked.as_str()) => {}
            Some(sent) => return Err(wrong(sent.to_owned())),
            // A server may send a whole object that was asked for as a range.
            None if offset == 0 && output.content_length() == i64::try_from(length).ok() => {}
            None => return Err(wrong("the whole object".into())),
        }
        let mut content = BytesMut::with_capacity(length);
        let mut pieces = self.pieces(request, output, length as u64);
        while let Some(piece) = pieces.next().await? {
            content.extend_from_slice(&piece);
        }
        if content.len() != length {
            return Err(wrong(format!("{} bytes", content.len())));
        }
        Ok(content.freeze())
    }

    /// Length and tag of an object.
    pub async fn head(&self, key: &str) -> Result<(u64, ETag)> {
        let request = self.request("look at", key);
        self.repeat(&request, 0, || async {
            let head = self
                .inner
                .client
                .head_object()
                .bucket(&self.inner.bucket)
                .key(self.full(key))
                .send();
            let output = head.await.map_err(|e| request.explain(e))?;
            let length = output
                .content_length()
                .and_then(|length| u64::try_from(length).ok());
            Ok((length.unwrap_or(0), etag(&request, output.e_tag())?))
        })
        .await
    }

    /// Keys that begin with `prefix`, in order, with the objects' lengths.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        let request = self.request("list", prefix);
        let (mut all, mut next) = (Vec::new(), None::<String>);
        loop {
            let page = self
                .repeat(&request, 0, || async {
                    let list = self.inner.client.list_objects_v2().bucket(&self.inner.bucket);
                    let list = list
                        .prefix(self.full(prefix))
                        .set_continuation_token(next.clone());
                    list.send().await.map_err(|e| request.explain(e))
                })
                .await?;
            for object in page.contents() {
                // The store may encode or invent keys; only ours are believed.
                if let Some(key) = object.key().and_then(|key| key.strip_prefix(&self.inner.prefix)) {
                    all.push((
                        key.to_owned(),
                        object.size().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                    ));
                }
            }
            let token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() || token == next {
                return Ok(all);
            }
            next = token;
        }
    }

    /// Sends a GET and waits for the answer's head.
    async fn open(
        &self,
        request: &Request<'_>,
        with: impl FnOnce(GetObjectFluentBuilder) -> GetObjectFluentBuilder,
    ) -> Result<GetObjectOutput> {
        let get = self
            .inner
            .client
            .get_object()
            .bucket(&self.inner.bucket)
            .key(self.full(request.key));
        let head = self
            .within(request, self.inner.tuning.attempt, with(get).send())
            .await?;
        head.map_err(|e| request.explain(e))
    }

    /// The content of an answer, of which at most `most` bytes are taken.
    fn pieces<'a>(&'a self, request: Request<'a>, output: GetObjectOutput, most: u64) -> Pieces<'a> {
        Pieces {
            store: self,
            request,
            content: output.body,
            got: 0,
            most,
        }
    }
}

/// An answer's content as it arrives.
struct Pieces<'a> {
    store: &'a Store,
    request: Request<'a>,
    content: ByteStream,
    got: u64,
    most: u64,
}

impl Pieces<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Pieces {
            store,
            request,
            content,
            got,
            most,
        } = self;
        let key = || request.key.to_owned();
        let Some(piece) = store
            .within(request, store.inner.tuning.attempt, content.next())
            .await?
        else {
            return Ok(None);
        };
        let piece = piece.map_err(|e| StoreError::WrongAnswer {
            op: request.op,
            key: key(),
            asked: "its content".into(),
            got: format!("{got} bytes and then: {}", chain(&e)),
        })?;
        store
            .inner
            .counters
            .bytes_in
            .fetch_add(piece.len() as u64, Ordering::Relaxed);
        *got += piece.len() as u64;
        if *got > *most {
            return Err(StoreError::TooLarge {
                op: request.op,
                key: key(),
                bytes: *got,
                limit: *most,
            });
        }
        Ok(Some(piece))
    }
}

/// What the answer says its length is, refused before a byte is read if it is more than `most`.
fn claimed_length(request: &Request<'_>, output: &GetObjectOutput, most: u64) -> Result<Option<u64>> {
    let bytes = output
        .content_length()
        .and_then(|length| u64::try_from(length).ok());
    match bytes {
        Some(bytes) if bytes > most => Err(StoreError::TooLarge {
            op: request.op,
            key: request.key.into(),
            bytes,
            limit: most,
        }),
        bytes => Ok(bytes),
    }
}
