//! The look at the store before anything relies on it.
//!
//! Owns the decision whether a bucket can hold checkpoints: it is there, it can be written, and of two who
//! write under a condition one wins. Some stores take the condition and ignore it.

use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use bytes::Bytes;

use super::client::{ETag, Precondition, Store};
use super::error::{Result, StoreError};

impl Store {
    /// Fails, saying what to do, unless the bucket answers to these credentials, can be written and keeps
    /// the conditions of conditional PUTs. Makes the bucket if the configuration allows it. Leaves
    /// nothing behind in it.
    pub async fn check(&self) -> Result<()> {
        match self.look().await {
            Err(StoreError::NoBucket { .. }) if self.inner.create_bucket => {
                self.create_bucket().await?;
                self.look().await?;
            }
            result => result?,
        }
        let uuid = "/proc/sys/kernel/random/uuid";
        let random = std::fs::read_to_string(uuid).map_err(|source| StoreError::File {
            path: uuid.into(),
            source,
        })?;
        let key = format!("probe/{}", random.trim());
        let result = self.probe(&key).await;
        let cleaned = self.delete(&[&key]).await;
        result.and(cleaned)
    }

    /// Lists rather than HEADs: the answer to a HEAD carries no reason.
    async fn look(&self) -> Result<()> {
        let request = self.request("look at", &self.inner.bucket);
        self.repeat(&request, 0, || async {
            let list = self
                .inner
                .client
                .list_objects_v2()
                .bucket(&self.inner.bucket)
                .max_keys(1)
                .send();
            list.await.map(drop).map_err(|e| match request.explain(e) {
                // Of a bucket, whatever code comes with it.
                StoreError::Missing { .. } => StoreError::NoBucket {
                    bucket: self.inner.bucket.clone(),
                },
                e => e,
            })
        })
        .await
    }

    async fn create_bucket(&self) -> Result<()> {
        let request = self.request("create", &self.inner.bucket);
        let region = self.inner.region.as_str();
        // Amazon wants the region said, except for the one that it was born in.
        let place = (region != "us-east-1").then(|| {
            let region = BucketLocationConstraint::from(region);
            CreateBucketConfiguration::builder()
                .location_constraint(region)
                .build()
        });
        let result = self
            .repeat(&request, 0, || async {
                let create = self.inner.client.create_bucket().bucket(&self.inner.bucket);
                let create = create.set_create_bucket_configuration(place.clone());
                create.send().await.map(drop).map_err(|e| request.explain(e))
            })
            .await;
        match result {
            // Another agent's first start at the same moment.
            Err(StoreError::Refused {
                status: 409, code, ..
            }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
            result => result,
        }
    }

    async fn probe(&self, key: &str) -> Result<()> {
        let absent = "If-None-Match: *";
        let first = self
            .put_if(key, Bytes::from_static(b"first"), Precondition::Absent)
            .await;
        let first = known(absent, first)?;
        let second = self
            .put_if(key, Bytes::from_static(b"second"), Precondition::Absent)
            .await;
        must_lose(absent, known(absent, second))?;

        let matches = "If-Match";
        let right = Precondition::Matches(first.clone());
        known(
            matches,
            self.put_if(key, Bytes::from_static(b"third"), right).await,
        )?;
        let stale = self
            .put_if(key, Bytes::from_static(b"fourth"), Precondition::Matches(first))
            .await;
        must_lose(matches, known(matches, stale))
    }
}

/// Tells a store that does not know a condition from one that fails.
fn known(condition: &'static str, result: Result<ETag>) -> Result<ETag> {
    match result {
        Err(StoreError::Refused {
            status: status @ (400 | 501),
            code,
            ..
        }) => Err(StoreError::NoConditions {
            condition,
            how: format!("it answered {status} {code}"),
        }),
        result => result,
    }
}

fn must_lose(condition: &'static str, result: Result<ETag>) -> Result<()> {
    match result {
        Err(StoreError::Lost { .. }) => Ok(()),
        Ok(_) => Err(StoreError::NoConditions {
            condition,
            how: "it wrote although it must not".into(),
        }),
        Err(e) => Err(e),
    }
}
