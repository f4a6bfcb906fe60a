//! Owns the way of bytes between requests and files: uploads to drafts, verified as they come, and file
//! ranges to responses. Never holds more than about a mebibyte or two of an object in memory.
//! Must not know buckets or keys.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use hyper::HeaderMap;
use s3s::checksum::ChecksumHasher;
use s3s::dto::{Checksum, StreamingBlob};
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Result, StdError, TrailingHeaders, s3_error};
use tokio::task::JoinHandle;

use super::convert::{joined, to_s3};
use super::error::io_error;
use super::file::Draft;
use super::objects::Store;

/// Upload bytes are handed to a disk thread in batches of this size, and one batch is written while the next
/// arrives.
const BATCH: usize = 1024 * 1024;

/// Ranges up to this length are read at once, in the same hop to a disk thread that opened the file.
const READ_AT_ONCE: u64 = 1024 * 1024;

/// Longer ones are streamed in pieces of this length.
const PIECE: u64 = 256 * 1024;

const PREFIX: &str = "x-amz-checksum-";

/// Verifies the checksums a client sends with a body, in its headers or (as SDKs do by default) behind the
/// body in trailers. The s3s crate parses both but compares neither.
pub struct Verifier {
    hasher: ChecksumHasher,
    expected: BTreeMap<String, String>,
    announced: Vec<String>,
    trailers: Option<TrailingHeaders>,
    md5: Option<String>,
}

impl Verifier {
    /// What the headers promise. `trailers` of the same request.
    pub fn new(headers: &HeaderMap, trailers: Option<TrailingHeaders>) -> S3Result<Verifier> {
        let mut expected = BTreeMap::new();
        for (name, value) in headers {
            let Some(algorithm) = name.as_str().strip_prefix(PREFIX) else {
                continue;
            };
            if !matches!(algorithm, "type" | "algorithm" | "mode") {
                let value = value
                    .to_str()
                    .map_err(|_| s3_error!(InvalidRequest, "invalid header: {name}"))?;
                expected.insert(algorithm.to_owned(), value.to_owned());
            }
        }
        let announced = match headers.get("x-amz-trailer").and_then(|value| value.to_str().ok()) {
            Some(names) => names
                .split(',')
                .filter_map(|name| name.trim().strip_prefix(PREFIX))
                .collect(),
            None => Vec::new(),
        };
        let mut hasher = ChecksumHasher::default();
        for algorithm in expected
            .keys()
            .map(String::as_str)
            .chain(announced.iter().copied())
        {
            match algorithm {
                "crc32" => hasher.crc32 = Some(Default::default()),
                "crc32c" => hasher.crc32c = Some(Default::default()),
                "crc64nvme" => hasher.crc64nvme = Some(Default::default()),
                "sha1" => hasher.sha1 = Some(Default::default()),
                "sha256" => hasher.sha256 = Some(Default::default()),
                other => return Err(s3_error!(InvalidRequest, "unknown checksum algorithm '{other}'")),
            }
        }
        let md5 = headers
            .get("content-md5")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let announced = announced.into_iter().map(str::to_owned).collect();
        Ok(Verifier {
            hasher,
            expected,
            announced,
            trailers,
            md5,
        })
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Compares, after the whole body. Gives the verified checksums, to be kept with the object.
    fn finish(mut self, draft: &mut Draft) -> S3Result<BTreeMap<String, String>> {
        for algorithm in &self.announced {
            let value = self.trailers.as_ref().and_then(|trailers| {
                trailers
                    .read(|map| Some(map.get(format!("{PREFIX}{algorithm}"))?.to_str().ok()?.to_owned()))?
            });
            let value =
                value.ok_or_else(|| s3_error!(InvalidRequest, "the announced checksum did not follow"))?;
            self.expected.insert(algorithm.clone(), value);
        }
        let actual = by_name(self.hasher.finalize());
        if actual != self.expected {
            return Err(s3_error!(
                BadDigest,
                "the bytes received do not have the checksum that was sent"
            ));
        }
        if let Some(expected) = self.md5
            && expected != base64_simd::STANDARD.encode_to_string(draft.md5())
        {
            return Err(s3_error!(
                BadDigest,
                "the bytes received do not have the Content-MD5 that was sent"
            ));
        }
        Ok(actual)
    }
}

/// Checksums by the name of their algorithm.
fn by_name(sums: Checksum) -> BTreeMap<String, String> {
    [
        ("crc32", sums.checksum_crc32),
        ("crc32c", sums.checksum_crc32c),
        ("crc64nvme", sums.checksum_crc64nvme),
        ("sha1", sums.checksum_sha1),
        ("sha256", sums.checksum_sha256),
    ]
    .into_iter()
    .filter_map(|(name, sum)| Some((name.to_owned(), sum?)))
    .collect()
}

/// Header names and values that tell these checksums.
pub fn checksum_headers(sums: &BTreeMap<String, String>) -> impl Iterator<Item = (String, &str)> {
    sums.iter()
        .map(|(algorithm, sum)| (format!("{PREFIX}{algorithm}"), sum.as_str()))
}

/// Everything of an upload but the name it is to get.
pub struct Received {
    draft: Draft,
    verifier: Verifier,
    /// The last bytes, still to be written.
    rest: Vec<Bytes>,
}

impl Received {
    fn write(mut self, batch: Vec<Bytes>) -> S3Result<Received> {
        for bytes in batch {
            self.verifier.update(&bytes);
            self.draft
                .write(&bytes)
                .map_err(|error| to_s3(io_error("write", self.draft.path())(error)))?;
        }
        Ok(self)
    }

    /// Writes the rest and compares the checksums. Blocking.
    pub fn finish(mut self) -> S3Result<(Draft, BTreeMap<String, String>)> {
        let rest = std::mem::take(&mut self.rest);
        let Received {
            mut draft, verifier, ..
        } = self.write(rest)?;
        let checksums = verifier.finish(&mut draft)?;
        Ok((draft, checksums))
    }
}

/// Brings a body to disk. `length`: what the request says (`Content-Length`, or the decoded one).
pub async fn receive(
    store: &Arc<Store>,
    body: Option<StreamingBlob>,
    length: Option<i64>,
    verifier: Verifier,
) -> S3Result<Received> {
    let drafts = Arc::clone(store);
    let begin = move || {
        Ok(Received {
            draft: drafts.draft().map_err(to_s3)?,
            verifier,
            rest: Vec::new(),
        })
    };
    let mut job = tokio::task::spawn_blocking(begin);
    let (mut batch, mut size, mut total) = (Vec::new(), 0, 0_u64);
    if let Some(mut body) = body {
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|error| s3_error!(IncompleteBody, "cannot read the body: {error}"))?;
            size += bytes.len();
            total += bytes.len() as u64;
            batch.push(bytes);
            if size >= BATCH {
                let received = joined(job).await?;
                let full = std::mem::take(&mut batch);
                size = 0;
                job = tokio::task::spawn_blocking(move || received.write(full));
            }
        }
    }
    // A body that ends early without an error would otherwise become a shorter object.
    if length.is_some_and(|length| u64::try_from(length) != Ok(total)) {
        return Err(s3_error!(
            IncompleteBody,
            "the body has {total} bytes, not what its length says"
        ));
    }
    let mut received = joined(job).await?;
    received.rest = batch;
    Ok(received)
}

/// Reads a range of an open file into memory. Blocking.
fn read_range(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

/// Streams a range of an open file; while one piece is sent, the next is read.
struct FileStream {
    file: Arc<File>,
    /// What was not yet asked of the disk.
    ahead: Range<u64>,
    /// What was not yet handed out.
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl FileStream {
    /// Begins to read at once.
    fn new(file: File, range: Range<u64>) -> FileStream {
        let left = range.end - range.start;
        let mut stream = FileStream {
            file: Arc::new(file),
            ahead: range,
            left,
            reading: None,
        };
        stream.read_on();
        stream
    }

    fn read_on(&mut self) {
        if self.ahead.is_empty() {
            return;
        }
        let end = self.ahead.end.min(self.ahead.start + PIECE);
        let piece = self.ahead.start..end;
        self.ahead.start = end;
        let file = Arc::clone(&self.file);
        self.reading = Some(tokio::task::spawn_blocking(move || read_range(&file, &piece)));
    }
}

impl Stream for FileStream {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(reading) = self.reading.as_mut() else {
            return Poll::Ready(None);
        };
        let result = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        match result.map_err(io::Error::other).flatten() {
            Ok(bytes) => {
                self.left -= bytes.len() as u64;
                self.read_on();
                Poll::Ready(Some(Ok(bytes)))
            }
            Err(error) => {
                tracing::error!(%error, "cannot read on in an object; its download breaks off");
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }
}

impl ByteStream for FileStream {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.left).map_or_else(|_| RemainingLength::unknown(), RemainingLength::new_exact)
    }
}

/// The bytes of a response.
pub enum Content {
    /// Read already.
    Bytes(Bytes),
    /// To be streamed.
    Stream(File, Range<u64>),
}

impl Content {
    /// Reads the range if it is short, so that it costs one hop to a disk thread together with the opening
    /// of the file. Blocking.
    pub fn of(file: File, range: Range<u64>) -> io::Result<Content> {
        if range.end - range.start > READ_AT_ONCE {
            return Ok(Content::Stream(file, range));
        }
        read_range(&file, &range).map(Content::Bytes)
    }
}

impl From<Content> for StreamingBlob {
    fn from(content: Content) -> StreamingBlob {
        match content {
            Content::Bytes(bytes) => s3s::Body::from(bytes).into(),
            Content::Stream(file, range) => StreamingBlob::new(FileStream::new(file, range)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a body of these pieces (`None` breaks it off) under these headers.
    async fn upload(
        pieces: &[Option<&'static [u8]>],
        length: i64,
        headers: &[(&str, &str)],
    ) -> S3Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| {
                piece
                    .map(Bytes::from_static)
                    .ok_or_else(|| io::Error::other("connection lost"))
            })
            .collect();
        let body = StreamingBlob::wrap(futures_util::stream::iter(pieces));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            super::super::convert::add_header(&mut map, name, value).unwrap();
        }
        let result = match receive(
            &store,
            Some(body),
            Some(length),
            Verifier::new(&map, None).unwrap(),
        )
        .await
        {
            Ok(received) => received
                .finish()
                .map(|(draft, _)| std::fs::read(draft.path()).unwrap()),
            Err(error) => Err(error),
        };
        if result.is_err() {
            // The draft is dropped by the disk thread that made it.
            while std::fs::read_dir(dir.path().join("tmp")).unwrap().count() > 0 {
                tokio::task::yield_now().await;
            }
        }
        result
    }

    #[tokio::test]
    async fn a_body_arrives_whole_or_not_at_all() {
        assert_eq!(
            upload(&[Some(b"hel"), Some(b"lo")], 5, &[]).await.unwrap(),
            b"hello"
        );
        static BIG: [u8; 3 << 20] = [7; 3 << 20];
        let pieces = [
            Some(&BIG[..1 << 20]),
            Some(&BIG[1 << 20..(2 << 20) + 5]),
            Some(&BIG[(2 << 20) + 5..]),
        ];
        assert!(upload(&pieces, 3 << 20, &[]).await.unwrap() == BIG);
        for (pieces, length) in [
            (&[Some(&BIG[..]), None][..], 4 << 20),
            (&[Some(b"short")], 6),
            (&[Some(b"long")], 3),
        ] {
            assert_eq!(
                upload(pieces, length, &[]).await.unwrap_err().code().as_str(),
                "IncompleteBody"
            );
        }
    }

    #[tokio::test]
    async fn checksums_are_compared() {
        let hello = [Some(&b"hello"[..])];
        let with = async |name, value| {
            upload(&hello, 5, &[(name, value)])
                .await
                .map_err(|error| error.code().clone())
        };
        assert!(with("x-amz-checksum-crc32", "NhCmhg==").await.is_ok());
        assert_eq!(
            with("x-amz-checksum-crc32", "NhCmhQ==")
                .await
                .unwrap_err()
                .as_str(),
            "BadDigest"
        );
        assert!(with("content-md5", "XUFAKrxLKna5cZ2REBfFkg==").await.is_ok());
        assert_eq!(
            with("content-md5", "AAAA").await.unwrap_err().as_str(),
            "BadDigest"
        );
        let silent = with("x-amz-trailer", "x-amz-checksum-crc32").await;
        assert_eq!(
            silent.unwrap_err().as_str(),
            "InvalidRequest",
            "announced, but it did not follow"
        );
    }
}
