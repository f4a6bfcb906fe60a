//! The one S3 client of the host.
//!
//! Owns connections, retries and deadlines; knows nothing of what is asked with them.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
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
use tokio::task::JoinSet;

use super::config::StoreConfig;
use super::error::{Request, Result, StoreError};

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
    pub prefix: String,
    pub endpoint: String,
    pub tuning: Tuning,
    pub counters: Arc<Counters>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    gets: AtomicU64,
    puts: AtomicU64,
    others: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
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
            // What is no result is a panic, and has been reported as one.
            result.unwrap_or(Ok(()))?;
        }
        Ok(())
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

    pub(super) fn deadline(&self, bytes: u64) -> Duration {
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

    /// Waits before another try. Doubles with every failure; random, so that many who failed together do not come back together.
    pub(super) async fn pause(&self, failures: u32) {
        let most = self.inner.tuning.backoff * 2_u32.saturating_pow(failures.saturating_sub(1));
        // The standard library's one source of randomness, in thousandths.
        let random = u32::try_from(RandomState::new().hash_one(failures) % 1000).unwrap_or(0);
        tokio::time::sleep(most * random / 1000).await;
    }
}

/// The tag of an answer: without it nothing could be written under a condition.
pub(super) fn etag(request: &Request<'_>, tag: Option<&str>) -> Result<ETag> {
    tag.map(|tag| ETag(tag.to_owned()))
        .ok_or_else(|| StoreError::WrongAnswer {
            op: request.op,
            key: request.key.to_owned(),
            asked: "an ETag".into(),
            got: "none".into(),
        })
}
