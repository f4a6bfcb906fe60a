//! Owns the S3 operations: each translates a request, asks the storage, and translates the answer.
//! Must not know files on disk, sockets or signatures.

use std::ops::Range;
use std::sync::Arc;

use hyper::HeaderMap;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::body::{Content, Verifier, checksum_headers, receive};
use super::bucket::Condition;
use super::convert::*;
use super::file::Meta;
use super::list::{After, Query};
use super::objects::Store;

/// What S3 says an object is whose writer did not say.
const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";

/// Most keys of one page of a listing, and of one bulk deletion (Amazon S3 API reference).
const PAGE: i32 = 1000;

/// The operations of [`S3`] that clients of one storage need.
#[derive(Debug, Clone)]
pub struct Backend {
    pub(super) store: Arc<Store>,
}

impl Backend {
    /// Operations on this storage.
    pub fn new(store: Arc<Store>) -> Backend {
        Backend { store }
    }

    /// Runs a storage operation on a disk thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let store = Arc::clone(&self.store);
        blocking(move || work(&store)).await
    }
}

/// Refuses what would be unsafe to ignore.
macro_rules! refuse {
    ($input:expr, $($field:ident),+) => {
        $(if $input.$field.is_some() {
            return Err(s3_error!(NotImplemented, "{} is not supported by this store", stringify!($field)));
        })+
    };
}

pub(super) use refuse;

/// There is one version of each object, called "null" as in a bucket without versioning.
fn check_version(version: Option<&str>) -> S3Result<()> {
    match version {
        None | Some("null") => Ok(()),
        Some(_) => Err(s3_error!(NoSuchVersion)),
    }
}

/// The headers that tell what an object is. Raw, so that a client gets back exactly what it sent.
fn object_headers(meta: &Meta, checksums: bool) -> S3Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    add_header(&mut headers, "content-type", DEFAULT_CONTENT_TYPE)?;
    for (name, value) in &meta.attributes.headers {
        add_header(&mut headers, name, value)?;
    }
    if checksums && !meta.attributes.checksums.is_empty() {
        for (name, value) in checksum_headers(&meta.attributes.checksums) {
            add_header(&mut headers, &name, value)?;
        }
        add_header(&mut headers, "x-amz-checksum-type", "FULL_OBJECT")?;
    }
    Ok(headers)
}

/// The bytes a request wants, and whether it wants only a part.
fn wanted(range: Option<s3s::dto::Range>, size: u64) -> S3Result<(Range<u64>, Option<String>)> {
    let Some(range) = range else {
        return Ok((0..size, None));
    };
    match range.check(size) {
        Ok(range) if !range.is_empty() => {
            let header = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            Ok((range, Some(header)))
        }
        _ => {
            let mut error = s3_error!(InvalidRange, "the object has {size} bytes");
            let mut headers = HeaderMap::new();
            add_header(&mut headers, "content-range", &format!("bytes */{size}"))?;
            add_header(&mut headers, "content-type", "application/xml")?;
            error.set_headers(headers);
            Err(error)
        }
    }
}

pub(super) fn page_size(asked: Option<i32>) -> S3Result<i32> {
    match asked.unwrap_or(PAGE) {
        negative if negative < 0 => Err(s3_error!(InvalidArgument, "max-keys is negative")),
        number => Ok(number.min(PAGE)),
    }
}

/// What an operation answers.
pub(super) type Reply<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for Backend {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> Reply<CreateBucketOutput> {
        let location = Some(format!("/{}", req.input.bucket));
        self.run(move |store| store.create_bucket(&req.input.bucket).map_err(to_s3))
            .await?;
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> Reply<HeadBucketOutput> {
        self.store.check_bucket(&req.input.bucket).map_err(to_s3)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> Reply<GetBucketLocationOutput> {
        self.store.check_bucket(&req.input.bucket).map_err(to_s3)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> Reply<DeleteBucketOutput> {
        self.run(move |store| store.delete_bucket(&req.input.bucket).map_err(to_s3))
            .await?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> Reply<ListBucketsOutput> {
        let buckets = self.store.buckets().into_iter().map(|(name, created)| Bucket {
            name: Some(name),
            creation_date: Some(created.into()),
            ..Bucket::default()
        });
        let buckets = Some(buckets.collect());
        Ok(S3Response::new(ListBucketsOutput {
            buckets,
            ..ListBucketsOutput::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> Reply<PutObjectOutput> {
        let S3Request {
            input,
            headers,
            trailing_headers,
            ..
        } = req;
        refuse!(
            input,
            sse_customer_key,
            object_lock_mode,
            object_lock_legal_hold_status,
            write_offset_bytes
        );
        let condition = write_condition(input.if_match, input.if_none_match)?;
        let mut attributes = attributes(&headers)?;
        let verifier = Verifier::new(&headers, trailing_headers)?;
        let received = receive(&self.store, input.body, input.content_length, verifier).await?;
        let meta = self
            .run(move |store| {
                let (draft, checksums) = received.finish()?;
                attributes.checksums = checksums;
                store
                    .put(&input.bucket, &input.key, draft, attributes, None, &condition)
                    .map_err(to_s3)
            })
            .await?;
        let mut headers = HeaderMap::new();
        for (name, value) in checksum_headers(&meta.attributes.checksums) {
            add_header(&mut headers, &name, value)?;
        }
        let output = PutObjectOutput {
            e_tag: Some(etag(&meta)),
            ..PutObjectOutput::default()
        };
        Ok(S3Response::with_headers(output, headers))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> Reply<GetObjectOutput> {
        let input = req.input;
        refuse!(input, sse_customer_key, part_number);
        check_version(input.version_id.as_deref())?;
        let overridden = [
            ("cache-control", input.response_cache_control.is_some()),
            (
                "content-disposition",
                input.response_content_disposition.is_some(),
            ),
            ("content-encoding", input.response_content_encoding.is_some()),
            ("content-language", input.response_content_language.is_some()),
            ("content-type", input.response_content_type.is_some()),
            ("expires", input.response_expires.is_some()),
        ];
        let condition = ReadCondition {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        let (meta, length, content_range, content) = self
            .run(move |store| {
                let (meta, file) = store.open_object(&input.bucket, &input.key).map_err(to_s3)?;
                condition.check(&meta)?;
                let (range, header) = wanted(input.range, meta.size)?;
                let length = range.end - range.start;
                let content = Content::of(file, range).inspect_err(|error| {
                    tracing::error!(%error, bucket = input.bucket, key = input.key, "cannot read an object");
                });
                let content =
                    content.map_err(|error| s3_error!(error, InternalError, "cannot read the object"))?;
                Ok((meta, length, header, content))
            })
            .await?;
        // A checksum is of the whole object: beside a part of it, it would only mislead.
        let checksums = input.checksum_mode.is_some() && content_range.is_none();
        let mut headers = object_headers(&meta, checksums)?;
        for (name, _) in overridden.iter().filter(|(_, overridden)| *overridden) {
            headers.remove(*name);
        }
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            body: Some(content.into()),
            content_length: signed(length),
            content_range,
            e_tag: Some(etag(&meta)),
            last_modified: Some(modified(&meta)),
            ..GetObjectOutput::default()
        };
        Ok(S3Response::with_headers(output, headers))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> Reply<HeadObjectOutput> {
        let input = req.input;
        refuse!(input, sse_customer_key, part_number);
        check_version(input.version_id.as_deref())?;
        let meta = self.store.head(&input.bucket, &input.key).map_err(to_s3)?;
        let condition = ReadCondition {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        condition.check(&meta)?;
        let (range, content_range) = wanted(input.range, meta.size)?;
        let headers = object_headers(&meta, input.checksum_mode.is_some() && content_range.is_none())?;
        let output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: signed(range.end - range.start),
            content_range,
            e_tag: Some(etag(&meta)),
            last_modified: Some(modified(&meta)),
            ..HeadObjectOutput::default()
        };
        Ok(S3Response::with_headers(output, headers))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> Reply<DeleteObjectOutput> {
        let input = req.input;
        refuse!(input, if_match_last_modified_time, if_match_size);
        check_version(input.version_id.as_deref())?;
        let condition = write_condition(input.if_match, None)?;
        self.run(move |store| store.delete(&input.bucket, &input.key, &condition).map_err(to_s3))
            .await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> Reply<DeleteObjectsOutput> {
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        if delete.objects.len() > usize::try_from(PAGE).unwrap_or(usize::MAX) {
            return Err(s3_error!(MalformedXML, "at most {PAGE} keys in one request"));
        }
        for object in &delete.objects {
            refuse!(object, e_tag, last_modified_time, size);
            check_version(object.version_id.as_deref())?;
        }
        let keys: Vec<String> = delete.objects.into_iter().map(|object| object.key).collect();
        let keys = self
            .run(move |store| {
                store.delete_many(&bucket, &keys).map_err(to_s3)?;
                Ok(keys)
            })
            .await?;
        let deleted = |key| DeletedObject {
            key: Some(key),
            ..DeletedObject::default()
        };
        let told = (!delete.quiet.unwrap_or(false)).then(|| keys.into_iter().map(deleted).collect());
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: told,
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> Reply<ListObjectsV2Output> {
        let input = req.input;
        let after = match &input.continuation_token {
            None => input.start_after.clone().map(After::Key),
            Some(token) => Some(
                After::from_token(token)
                    .ok_or_else(|| s3_error!(InvalidArgument, "not a continuation token of this store"))?,
            ),
        };
        let max_keys = page_size(input.max_keys)?;
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone(),
            after,
            limit: usize::try_from(max_keys).unwrap_or(0),
        };
        let page = self.store.list(&input.bucket, &query).map_err(to_s3)?;
        let encode = input
            .encoding_type
            .as_ref()
            .is_some_and(|kind| kind.as_str() == EncodingType::URL);
        let shown = |name: &str| {
            if encode {
                url_encoded(name)
            } else {
                name.to_owned()
            }
        };
        let contents = page.entries.iter().map(|meta| Object {
            key: Some(shown(&meta.key)),
            e_tag: Some(etag(meta)),
            last_modified: Some(modified(meta)),
            size: signed(meta.size),
            storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
            ..Object::default()
        });
        let common_prefixes = page.groups.iter().map(|group| CommonPrefix {
            prefix: Some(shown(group)),
        });
        let output = ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(shown(&query.prefix)),
            delimiter: input.delimiter.as_deref().map(shown),
            max_keys: Some(max_keys),
            key_count: i32::try_from(page.entries.len() + page.groups.len()).ok(),
            contents: Some(contents.collect()),
            common_prefixes: Some(common_prefixes.collect()),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|after| after.to_token()),
            continuation_token: input.continuation_token,
            start_after: input.start_after.as_deref().map(shown),
            encoding_type: input.encoding_type,
            ..ListObjectsV2Output::default()
        };
        Ok(S3Response::new(output))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> Reply<CopyObjectOutput> {
        let S3Request { input, headers, .. } = req;
        refuse!(
            input,
            sse_customer_key,
            copy_source_sse_customer_key,
            object_lock_mode
        );
        let CopySource::Bucket {
            bucket,
            key,
            version_id,
        } = input.copy_source
        else {
            return Err(s3_error!(NotImplemented, "copies from access points"));
        };
        check_version(version_id.as_deref())?;
        let replace = input
            .metadata_directive
            .is_some_and(|it| it.as_str() == MetadataDirective::REPLACE);
        let replaced = if replace {
            Some(attributes(&headers)?)
        } else {
            None
        };
        let condition = ReadCondition {
            if_match: input.copy_source_if_match,
            if_none_match: input.copy_source_if_none_match,
            if_modified_since: input.copy_source_if_modified_since,
            if_unmodified_since: input.copy_source_if_unmodified_since,
        };
        let meta = self
            .run(move |store| {
                let source = store.open_object(&bucket, &key).map_err(to_s3)?;
                // "Not modified" is no answer to a copy.
                condition
                    .check(&source.0)
                    .map_err(|_| s3_error!(PreconditionFailed))?;
                store
                    .copy(&source, &input.bucket, &input.key, replaced, &Condition::None)
                    .map_err(to_s3)
            })
            .await?;
        let result = CopyObjectResult {
            e_tag: Some(etag(&meta)),
            last_modified: Some(modified(&meta)),
            ..CopyObjectResult::default()
        };
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..CopyObjectOutput::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Reply<CreateMultipartUploadOutput> {
        self.begin_upload(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> Reply<UploadPartOutput> {
        self.take_part(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Reply<CompleteMultipartUploadOutput> {
        self.complete_upload(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Reply<AbortMultipartUploadOutput> {
        self.abort_upload(req).await
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> Reply<ListPartsOutput> {
        self.show_parts(req).await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> Reply<ListMultipartUploadsOutput> {
        self.show_uploads(req).await
    }
}
