//! The words in which the store's answers are told.
//!
//! Owns the translation from the S3 library's errors, so that no one else needs to know them.

use std::path::PathBuf;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{op} {key}: there is no such object")]
    Missing {
        /// What was asked.
        op: &'static str,
        /// Of which object.
        key: String,
    },
    /// The precondition of a conditional PUT does not hold: someone else was first.
    #[error("put {key}: someone else has written it first")]
    Lost {
        /// The object.
        key: String,
    },
    /// The object is not the one any more that the tag names.
    #[error("get {key}: it was replaced meanwhile")]
    Changed {
        /// The object.
        key: String,
    },
    /// The object is larger than what the caller can take, or than what one PUT can carry.
    #[error("{op} {key}: it has {bytes} bytes, at most {limit} are accepted")]
    TooLarge {
        /// What was asked.
        op: &'static str,
        /// Of which object.
        key: String,
        /// Its length as far as known.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The store sent something else than the range that was asked for, or not all of it.
    #[error("{op} {key}: the store sent {got}, not {asked}")]
    WrongAnswer {
        /// What was asked.
        op: &'static str,
        /// The object.
        key: String,
        /// What was asked for.
        asked: String,
        /// What came.
        got: String,
    },
    /// No answer at all.
    #[error("{op} {key}: the store at {endpoint} cannot be reached: {why}")]
    Unreachable {
        /// What was asked.
        op: &'static str,
        /// Of which object.
        key: String,
        /// Where.
        endpoint: String,
        /// What happened.
        why: String,
    },
    /// An answer that did not come in time.
    #[error("{op} {key}: the store at {endpoint} did not answer within {} s", after.as_secs())]
    Timeout {
        /// What was asked.
        op: &'static str,
        /// Of which object.
        key: String,
        /// Where.
        endpoint: String,
        /// After how long.
        after: Duration,
    },
    /// The store refuses these credentials, or refuses them this.
    #[error("{op} {key}: the store refuses these credentials ({code}): {message}")]
    Denied {
        /// What was asked.
        op: &'static str,
        /// Of which object.
        key: String,
        /// The store's error code.
        code: String,
        /// The store's words.
        message: String,
    },
    /// There is no such bucket.
    #[error("the bucket '{bucket}' does not exist: create it, or set create_bucket = true in [store]")]
    NoBucket {
        /// Its name.
        bucket: String,
    },
    /// The store ignores, or does not know, the condition of a conditional PUT.
    #[error(
        "the store does not keep the condition {condition} of a PUT ({how}), so two agents could both \
         own an app: use one that does (Amazon S3, `pico-hub store`)"
    )]
    NoConditions {
        /// Which one.
        condition: &'static str,
        /// What it did instead.
        how: String,
    },
    /// Any other refusal.
    #[error("{op} {key}: the store answered {status} {code}: {message}")]
    Refused {
        /// What was asked.
        op: &'static str,
        /// Of which object.
        key: String,
        /// HTTP status.
        status: u16,
        /// The store's error code.
        code: String,
        /// The store's words.
        message: String,
    },
    /// A local file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The configuration cannot work.
    #[error("[store]: {0}")]
    Config(String),
}

impl StoreError {
    /// True where the same request may succeed later without anyone mending anything.
    pub fn is_transient(&self) -> bool {
        match self {
            StoreError::Unreachable { .. } | StoreError::Timeout { .. } | StoreError::WrongAnswer { .. } => {
                true
            }
            StoreError::Refused { status, .. } => *status >= 500 || matches!(status, 408 | 409 | 429),
            _ => false,
        }
    }
}

/// What the object store's functions return.
pub(super) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A failed request, for [`Request::explain`].
pub(super) struct Request<'a> {
    pub op: &'static str,
    pub key: &'a str,
    pub endpoint: &'a str,
    pub bucket: &'a str,
}

impl Request<'_> {
    pub fn unreachable(&self, why: String) -> StoreError {
        let (op, key, endpoint) = (self.op, self.key.to_owned(), self.endpoint.to_owned());
        StoreError::Unreachable {
            op,
            key,
            endpoint,
            why,
        }
    }

    pub fn timeout(&self, after: Duration) -> StoreError {
        let (op, key, endpoint) = (self.op, self.key.to_owned(), self.endpoint.to_owned());
        StoreError::Timeout {
            op,
            key,
            endpoint,
            after,
        }
    }

    pub fn explain<E>(&self, error: SdkError<E, HttpResponse>) -> StoreError
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let (op, key) = (self.op, self.key.to_owned());
        let refusal = match &error {
            SdkError::ServiceError(refusal) => refusal,
            SdkError::ConstructionFailure(_) => return StoreError::Config(chain(&error)),
            _ => return self.unreachable(format!("{}{}", chain(&error), proxy_hint(self.endpoint))),
        };
        let status = refusal.raw().status().as_u16();
        let code = refusal.err().code().unwrap_or("without a code").to_owned();
        let message = refusal.err().message().unwrap_or("no reason given").to_owned();
        match (status, code.as_str()) {
            // Something else than an S3 server, most likely.
            (..=299, _) => {
                let (asked, got) = ("an S3 server's answer".into(), chain(&error));
                StoreError::WrongAnswer { op, key, asked, got }
            }
            (404, "NoSuchBucket") => StoreError::NoBucket {
                bucket: self.bucket.to_owned(),
            },
            (404, _) => StoreError::Missing { op, key },
            (412, _) if op == "put" => StoreError::Lost { key },
            (412, _) => StoreError::Changed { key },
            (401 | 403, _) | (400, "ExpiredToken" | "InvalidToken" | "InvalidAccessKeyId") => {
                StoreError::Denied {
                    op,
                    key,
                    code,
                    message,
                }
            }
            (301 | 307, _) | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
                let message = format!("{message} (is `region` in [store] the bucket's?)");
                StoreError::Refused {
                    op,
                    key,
                    status,
                    code,
                    message,
                }
            }
            _ => StoreError::Refused {
                op,
                key,
                status,
                code,
                message,
            },
        }
    }
}

/// An error and what caused it, without repetitions.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// The usual reason why a store on this very host cannot be reached.
fn proxy_hint(endpoint: &str) -> &'static str {
    let name = if endpoint.starts_with("https") {
        "https_proxy"
    } else {
        "http_proxy"
    };
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if set(name) || set(&name.to_uppercase()) {
        " (a proxy is set in the environment: NO_PROXY must name the store's host if it is not behind it)"
    } else {
        ""
    }
}
