//! The one S3 client of the host.
//!
//! Owns connections, retries and deadlines. Nothing outside this folder knows the S3 library. It trusts
//! the store with nothing but names: an answer of the wrong length, or one larger than the caller can
//! use, is an error here; what the bytes are is compared with checksums by the caller.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    ConfigBag, Credentials, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::config::StoreConfig;
use super::error::{Request, Result, StoreError, chain};
use crate::checkpoint::OBJECT_MAX;
use crate::checkpoint::hash::{Digest, Hashing};

/// Names one content of one key, as the store gave it. Says nothing about what the content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ETag(pub String);

/// What must hold for a [`Store::put_if`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// There is no such object.
    Absent,
    /// The object is still the one with this tag.
    Matches(ETag),
}

/// What has gone over the wire since [`Store::connect`], failed and repeated requests included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct StoreStats {
    /// GET requests (listings are GETs too).
    pub gets: u64,
    /// PUT requests.
    pub puts: u64,
    /// All other requests.
    pub others: u64,
    /// Bytes of object content received.
    pub bytes_in: u64,
    /// Bytes of object content that the store has accepted.
    pub bytes_out: u64,
}

/// Times and counts, apart so that tests need not wait for the real ones.
#[derive(Debug, Clone)]
pub(super) struct Tuning {
    /// To have a connection.
    pub connect: Duration,
    /// For one request without content.
    pub attempt: Duration,
    /// On top of that, for each MiB of content: the slowest store that is worth waiting for.
    pub per_mib: Duration,
    /// Times that a request is sent in all, while the store fails.
    pub attempts: u32,
    /// Times that a conditional PUT is sent in all, while the store reports a conflict.
    pub conflicts: u32,
    /// Longest pause before the second time; doubles.
    pub backoff: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            connect: Duration::from_secs(2),
            attempt: Duration::from_secs(10),
            per_mib: Duration::from_secs(1),
            attempts: 3,
            conflicts: 5,
            // An app is waiting: Amazon's usual second would be felt.
            backoff: Duration::from_millis(50),
        }
    }
}

/// A connection pool to one bucket. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub client: aws_sdk_s3::Client,
    pub bucket: String,
    pub region: String,
    pub create_bucket: bool,
    prefix: String,
    endpoint: String,
    tuning: Tuning,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    gets: AtomicU64,
    puts: AtomicU64,
    others: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Counts what really goes over the wire.
#[derive(Debug)]
struct Counting(Arc<Counters>);

impl Intercept for Counting {
    fn name(&self) -> &'static str {
        "pico-counters"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let counter = match context.request().method() {
            "GET" => &self.0.gets,
            "PUT" => &self.0.puts,
            _ => &self.0.others,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Store {
    /// Reads the credentials and makes the client. Nothing is sent: see [`Store::check`].
    pub fn connect(config: &StoreConfig) -> Result<Self> {
        Store::connect_tuned(config, Tuning::default())
    }

    pub(super) fn connect_tuned(config: &StoreConfig, tuning: Tuning) -> Result<Self> {
        let access = config.resolve()?;
        let token = access.session_token.map(|token| token.0);
        let counters = Arc::new(Counters::default());
        let mut builder = aws_sdk_s3::Config::builder()
            .region(Region::new(config.region.clone()))
            .credentials_provider(Credentials::new(
                access.access_key_id,
                access.secret.0,
                token,
                None,
                "pico",
            ))
            // Some servers refuse the checksums that the library adds by itself; ours are BLAKE3.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // It takes a slow answer for a dead one; our own deadlines know how much was asked for.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // Repeating is done here, where a cut content and a conflict can be repeated as well.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(tuning.connect).build())
            .interceptor(Counting(Arc::clone(&counters)));
        if let Some(endpoint) = &access.endpoint {
            builder = builder.endpoint_url(endpoint).force_path_style(true);
        }
        Ok(Store {
            inner: Arc::new(Inner {
                client: aws_sdk_s3::Client::from_conf(builder.build()),
                bucket: config.bucket.clone(),
                region: config.region.clone(),
                create_bucket: config.create_bucket.unwrap_or(access.endpoint.is_some()),
                prefix: if config.prefix.is_empty() {
                    String::new()
                } else {
                    format!("{}/", config.prefix)
                },
                endpoint: access
                    .endpoint
                    .unwrap_or_else(|| format!("Amazon S3, {}", config.region)),
                tuning,
                counters,
            }),
        })
    }

    /// Opens `connections` connections at once, so that a later wave of requests does not wait for
    /// handshakes. The store may close idle ones; the client drops them itself after 90 s.
    pub async fn warm(&self, connections: usize) -> Result<()> {
        let mut requests = JoinSet::new();
        for _ in 0..connections {
            let store = self.clone();
            requests.spawn(async move {
                let request = store.request("look at", "the bucket");
                let head = store
                    .inner
                    .client
                    .head_bucket()
                    .bucket(&store.inner.bucket)
                    .send();
                let head = store.within(&request, store.inner.tuning.attempt, head).await?;
                head.map(drop).map_err(|e| request.explain(e))
            });
        }
        while let Some(result) = requests.join_next().await {
            result.map_err(|e| StoreError::Config(format!("a task failed: {e}")))??;
        }
        Ok(())
    }

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
    /// [`StoreError::Lost`] and [`StoreError::Missing`] (there is nothing to match) are final: nothing was
    /// written. After any other error, whether it was written is unknown. A PUT that is repeated since its
    /// answer was lost finds its own content there and counts as a success: contents must differ between
    /// writers who compete.
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

    /// What has gone over the wire so far.
    pub fn stats(&self) -> StoreStats {
        let Counters {
            gets,
            puts,
            others,
            bytes_in,
            bytes_out,
        } = &*self.inner.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreStats {
            gets: read(gets),
            puts: read(puts),
            others: read(others),
            bytes_in: read(bytes_in),
            bytes_out: read(bytes_out),
        }
    }

    pub(super) fn request<'a>(&'a self, op: &'static str, key: &'a str) -> Request<'a> {
        Request {
            op,
            key,
            endpoint: &self.inner.endpoint,
            bucket: &self.inner.bucket,
        }
    }

    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.inner.prefix)
    }

    fn deadline(&self, bytes: u64) -> Duration {
        let Tuning { attempt, per_mib, .. } = self.inner.tuning;
        attempt + per_mib * u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
    }

    pub(super) async fn within<T>(
        &self,
        request: &Request<'_>,
        time: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        tokio::time::timeout(time, work)
            .await
            .map_err(|_| request.timeout(time))
    }

    /// Does something that may be done twice until it succeeds, fails for good or has failed too often.
    /// Each time has as long as `bytes` of content take.
    pub(super) async fn repeat<T, F: Future<Output = Result<T>>>(
        &self,
        request: &Request<'_>,
        bytes: u64,
        work: impl Fn() -> F,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            match self.within(request, self.deadline(bytes), work()).await.flatten() {
                Err(e) if e.is_transient() && failures + 1 < self.inner.tuning.attempts => {
                    failures += 1;
                    tracing::debug!(error = %e, failures, "trying again");
                }
                result => return result,
            }
            self.pause(failures).await;
        }
    }

    /// Doubles with every failure; random, so that many who failed together do not come back together.
    async fn pause(&self, failures: u32) {
        let most = self.inner.tuning.backoff * 2_u32.saturating_pow(failures.saturating_sub(1));
        // The standard library's one source of randomness, in thousandths.
        let random = u32::try_from(RandomState::new().hash_one(failures) % 1000).unwrap_or(0);
        tokio::time::sleep(most * random / 1000).await;
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

fn etag(request: &Request<'_>, tag: Option<&str>) -> Result<ETag> {
    tag.map(|tag| ETag(tag.to_owned()))
        .ok_or_else(|| StoreError::WrongAnswer {
            op: request.op,
            key: request.key.to_owned(),
            asked: "an ETag".into(),
            got: "none".into(),
        })
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

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
