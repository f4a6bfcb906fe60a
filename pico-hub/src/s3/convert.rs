//! Owns the small translations between the storage's words and those of S3 requests: errors, conditions,
//! entity tags, times, headers. Must not do I/O.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use s3s::dto::{ETag, ETagCondition, IfMatch, IfNoneMatch, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use tokio::task::JoinHandle;

use super::bucket::Condition;
use super::error::StoreError;
use super::file::{Attributes, Meta};

/// Headers of an upload that are kept and given back as they came, beside `x-amz-meta-*`.
const KEPT_HEADERS: [&str; 6] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
];

/// All kept headers together (S3 allows 8 KiB for headers, 2 of them for user metadata).
const MAX_HEADERS: usize = 8 * 1024;

/// Runs blocking code on a disk thread.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> S3Result<T> + Send + 'static) -> S3Result<T> {
    joined(tokio::task::spawn_blocking(work)).await
}

/// The result of a disk thread; a panic there is an internal error here.
pub async fn joined<T>(job: JoinHandle<S3Result<T>>) -> S3Result<T> {
    job.await
        .map_err(|error| s3_error!(error, InternalError, "a storage task ended abnormally"))?
}

/// The S3 error for a storage error. Failures of the disk are logged, for the client cannot mend them.
pub fn to_s3(error: StoreError) -> S3Error {
    let code = match &error {
        StoreError::Io { .. } | StoreError::InUse(_) => {
            tracing::error!(%error, "storage failure");
            S3ErrorCode::InternalError
        }
        StoreError::BadBucketName(_) => S3ErrorCode::InvalidBucketName,
        StoreError::NoSuchBucket(_) => S3ErrorCode::NoSuchBucket,
        StoreError::BucketExists(_) => S3ErrorCode::BucketAlreadyOwnedByYou,
        StoreError::BucketNotEmpty(_) => S3ErrorCode::BucketNotEmpty,
        StoreError::NoSuchKey(_) => S3ErrorCode::NoSuchKey,
        StoreError::BadKeyLength(_) => S3ErrorCode::KeyTooLongError,
        StoreError::PreconditionFailed(_) => S3ErrorCode::PreconditionFailed,
        StoreError::NoSuchUpload(_) => S3ErrorCode::NoSuchUpload,
        StoreError::InvalidPart(_) => S3ErrorCode::InvalidPart,
        StoreError::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
        StoreError::PartTooSmall(_) => S3ErrorCode::EntityTooSmall,
    };
    S3Error::with_message(code, error.to_string())
}

/// The condition of a write. As in S3, `If-None-Match` knows only `*`.
pub fn write_condition(if_match: Option<IfMatch>, if_none_match: Option<IfNoneMatch>) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::None),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (Some(ETagCondition::Any), None) => Ok(Condition::Exists),
        (Some(ETagCondition::ETag(etag)), None) => Ok(Condition::Matches(etag.into_value())),
        (_, Some(ETagCondition::ETag(_))) => {
            Err(s3_error!(NotImplemented, "If-None-Match of a write knows only *"))
        }
        (Some(_), Some(_)) => Err(s3_error!(NotImplemented, "If-Match and If-None-Match together")),
    }
}

/// The conditions of a read.
#[derive(Debug, Default)]
pub struct ReadCondition {
    /// 412 unless the tag is this one.
    pub if_match: Option<IfMatch>,
    /// 304 if the tag is this one.
    pub if_none_match: Option<IfNoneMatch>,
    /// 304 unless written after that time.
    pub if_modified_since: Option<Timestamp>,
    /// 412 if written after that time.
    pub if_unmodified_since: Option<Timestamp>,
}

impl ReadCondition {
    /// In the order of RFC 9110, 13.2.2: a tag, where given, outweighs a time.
    pub fn check(&self, meta: &Meta) -> S3Result<()> {
        let is = |condition: &ETagCondition| condition.as_etag().is_none_or(|etag| etag.value() == meta.etag);
        let modified = modified(meta);
        let failed = match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) => !is(condition),
            (None, Some(time)) => modified > *time,
            (None, None) => false,
        };
        if failed {
            return Err(s3_error!(PreconditionFailed));
        }
        let unchanged = match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) => is(condition),
            (None, Some(time)) => modified <= *time,
            (None, None) => false,
        };
        if unchanged {
            let mut error = s3_error!(NotModified);
            let mut headers = HeaderMap::new();
            add_header(&mut headers, "etag", &format!("\"{}\"", meta.etag))?;
            error.set_headers(headers);
            return Err(error);
        }
        Ok(())
    }
}

/// The entity tag as S3 requests carry it.
pub fn etag(meta: &Meta) -> ETag {
    ETag::Strong(meta.etag.clone())
}

/// When the object was written, in whole seconds: HTTP dates have no more.
pub fn modified(meta: &Meta) -> Timestamp {
    time(meta.modified_ms)
}

/// Milliseconds since the epoch, in whole seconds.
pub fn time(ms: u64) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_secs(ms / 1000))
}

/// A length for a response, where S3 types are signed.
pub fn signed(length: u64) -> Option<i64> {
    i64::try_from(length).ok()
}

/// What to keep of the headers of an upload.
pub fn attributes(headers: &HeaderMap) -> S3Result<Attributes> {
    let mut kept = BTreeMap::new();
    let mut size = 0;
    for (name, value) in headers {
        let name = name.as_str();
        if !KEPT_HEADERS.contains(&name) && !name.starts_with("x-amz-meta-") {
            continue;
        }
        let text = std::str::from_utf8(value.as_bytes())
            .map_err(|_| s3_error!(InvalidArgument, "header {name} is not text"))?;
        // How the body was sent, not what it is.
        let text = match name {
            "content-encoding" => text
                .trim_start_matches("aws-chunked")
                .trim_start_matches([',', ' ']),
            _ => text,
        };
        size += name.len() + text.len();
        if !text.is_empty() {
            kept.insert(name.to_owned(), text.to_owned());
        }
    }
    if size > MAX_HEADERS {
        return Err(s3_error!(MetadataTooLarge));
    }
    Ok(Attributes {
        headers: kept,
        checksums: BTreeMap::new(),
    })
}

/// Adds one header to a response.
pub fn add_header(headers: &mut HeaderMap, name: &str, value: &str) -> S3Result<()> {
    let name = HeaderName::try_from(name).map_err(|error| s3_error!(error, InternalError))?;
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|error| s3_error!(error, InternalError))?;
    headers.insert(name, value);
    Ok(())
}

/// Percent-encodes a name for a listing that was asked for `encoding-type=url`.
pub fn url_encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
