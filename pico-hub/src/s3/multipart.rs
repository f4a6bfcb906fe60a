//! Owns the S3 operations of uploads in parts, the second half of [`super::backend`].
//! Must not know files on disk, sockets or signatures.

use hyper::HeaderMap;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::backend::{Backend, Reply, page_size, refuse};
use super::body::{Verifier, checksum_headers, receive};
use super::convert::*;
use super::credentials::random_hex;
use super::file::Attributes;
use super::uploads::MAX_PART;

fn part_number(number: i32) -> S3Result<u16> {
    let number = u16::try_from(number)
        .ok()
        .filter(|number| (1..=MAX_PART).contains(number));
    number.ok_or_else(|| s3_error!(InvalidArgument, "part numbers run from 1 to {MAX_PART}"))
}

impl Backend {
    pub(super) async fn begin_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Reply<CreateMultipartUploadOutput> {
        let S3Request { input, headers, .. } = req;
        refuse!(
            input,
            sse_customer_key,
            object_lock_mode,
            object_lock_legal_hold_status
        );
        let attributes = attributes(&headers)?;
        let output = CreateMultipartUploadOutput {
            bucket: Some(input.bucket.clone()),
            key: Some(input.key.clone()),
            ..CreateMultipartUploadOutput::default()
        };
        let id = self
            .run(move |store| {
                let id = random_hex::<16>().map_err(|error| s3_error!(error, InternalError))?;
                store
                    .create_upload(&input.bucket, &id, &input.key, attributes)
                    .map_err(to_s3)?;
                Ok(id)
            })
            .await?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            upload_id: Some(id),
            ..output
        }))
    }

    pub(super) async fn take_part(&self, req: S3Request<UploadPartInput>) -> Reply<UploadPartOutput> {
        let S3Request {
            input,
            headers,
            trailing_headers,
            ..
        } = req;
        refuse!(input, sse_customer_key);
        let number = part_number(input.part_number)?;
        let verifier = Verifier::new(&headers, trailing_headers)?;
        let received = receive(&self.store, input.body, input.content_length, verifier).await?;
        let meta = self
            .run(move |store| {
                let (draft, checksums) = received.finish()?;
                let attributes = Attributes {
                    checksums,
                    ..Attributes::default()
                };
                let (bucket, key, id) = (&input.bucket, &input.key, &input.upload_id);
                store
                    .put_part(bucket, key, id, number, draft, attributes)
                    .map_err(to_s3)
            })
            .await?;
        let mut headers = HeaderMap::new();
        for (name, value) in checksum_headers(&meta.attributes.checksums) {
            add_header(&mut headers, &name, value)?;
        }
        let output = UploadPartOutput {
            e_tag: Some(etag(&meta)),
            ..UploadPartOutput::default()
        };
        Ok(S3Response::with_headers(output, headers))
    }

    pub(super) async fn complete_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Reply<CompleteMultipartUploadOutput> {
        let input = req.input;
        // Not verified here, so not accepted either; those of the parts were.
        refuse!(
            input,
            checksum_crc32,
            checksum_crc32c,
            checksum_crc64nvme,
            checksum_sha1,
            checksum_sha256
        );
        let condition = write_condition(input.if_match, input.if_none_match)?;
        let parts = input
            .multipart_upload
            .and_then(|upload| upload.parts)
            .unwrap_or_default();
        let chosen = parts.into_iter().map(|part| {
            let (Some(number), Some(etag)) = (part.part_number, part.e_tag) else {
                return Err(s3_error!(
                    MalformedXML,
                    "a part lacks its number or its entity tag"
                ));
            };
            Ok((part_number(number)?, etag.into_value()))
        });
        let chosen: Vec<(u16, String)> = chosen.collect::<S3Result<_>>()?;
        if chosen.is_empty() {
            return Err(s3_error!(MalformedXML, "no parts"));
        }
        let location = format!("/{}/{}", input.bucket, url_encoded(&input.key));
        let output = CompleteMultipartUploadOutput {
            bucket: Some(input.bucket.clone()),
            key: Some(input.key.clone()),
            location: Some(location),
            ..CompleteMultipartUploadOutput::default()
        };
        let meta = self
            .run(move |store| {
                let (bucket, key, id) = (&input.bucket, &input.key, &input.upload_id);
                store
                    .complete_upload(bucket, key, id, &chosen, &condition)
                    .map_err(to_s3)
            })
            .await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: Some(etag(&meta)),
            ..output
        }))
    }

    pub(super) async fn abort_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Reply<AbortMultipartUploadOutput> {
        let AbortMultipartUploadInput {
            bucket,
            key,
            upload_id,
            ..
        } = req.input;
        self.run(move |store| store.abort_upload(&bucket, &key, &upload_id).map_err(to_s3))
            .await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    pub(super) async fn show_parts(&self, req: S3Request<ListPartsInput>) -> Reply<ListPartsOutput> {
        let input = req.input;
        let max_parts = page_size(input.max_parts)?;
        let marker = input.part_number_marker.unwrap_or(0);
        let all = self
            .store
            .parts(&input.bucket, &input.key, &input.upload_id)
            .map_err(to_s3)?;
        let mut rest = all.into_iter().filter(|(number, _)| i32::from(*number) > marker);
        let parts = rest
            .by_ref()
            .take(usize::try_from(max_parts).unwrap_or(0))
            .map(|(number, meta)| Part {
                part_number: Some(number.into()),
                e_tag: Some(etag(&meta)),
                size: signed(meta.size),
                last_modified: Some(modified(&meta)),
                ..Part::default()
            });
        let parts: Vec<Part> = parts.collect();
        let output = ListPartsOutput {
            next_part_number_marker: parts.last().and_then(|part| part.part_number),
            is_truncated: Some(rest.next().is_some()),
            parts: Some(parts),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: Some(max_parts),
            part_number_marker: Some(marker),
            ..ListPartsOutput::default()
        };
        Ok(S3Response::new(output))
    }

    pub(super) async fn show_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> Reply<ListMultipartUploadsOutput> {
        let input = req.input;
        refuse!(input, delimiter);
        let max_uploads = page_size(input.max_uploads)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        // Behind the key marker, or behind the upload id where one is given with it.
        let marker = (input.key_marker.clone(), input.upload_id_marker.clone());
        let behind = |key: &str, id: &str| match &marker {
            (None, _) => true,
            (Some(at), None) => key > at.as_str(),
            (Some(at), Some(at_id)) => (key, id) > (at.as_str(), at_id.as_str()),
        };
        let mut all = self.store.uploads(&input.bucket).map_err(to_s3)?;
        all.retain(|(id, plan)| plan.key.starts_with(&prefix) && behind(&plan.key, id));
        let shown = all.len().min(usize::try_from(max_uploads).unwrap_or(0));
        let uploads = all.iter().take(shown).map(|(id, plan)| MultipartUpload {
            key: Some(plan.key.clone()),
            upload_id: Some(id.clone()),
            initiated: Some(time(plan.started_ms)),
            ..MultipartUpload::default()
        });
        let uploads: Vec<MultipartUpload> = uploads.collect();
        let last = uploads.last();
        let output = ListMultipartUploadsOutput {
            next_key_marker: last.and_then(|upload| upload.key.clone()),
            next_upload_id_marker: last.and_then(|upload| upload.upload_id.clone()),
            is_truncated: Some(shown < all.len()),
            uploads: Some(uploads),
            bucket: Some(input.bucket),
            prefix: input.prefix,
            max_uploads: Some(max_uploads),
            key_marker: input.key_marker,
            upload_id_marker: input.upload_id_marker,
            ..ListMultipartUploadsOutput::default()
        };
        Ok(S3Response::new(output))
    }
}
