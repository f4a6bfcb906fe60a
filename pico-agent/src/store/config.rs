//! Where the object store is, and with which credentials.
//!
//! Owns the `[store]` table of agent.toml and the search for credentials. Sends nothing.

use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::StoreError;

/// The `[store]` table.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// URL of an S3-compatible server. Absent: the one in the credentials file, else Amazon's of the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Name of the bucket.
    pub bucket: String,
    /// Region of the bucket; most other servers than Amazon's take any.
    #[serde(default = "default_region")]
    pub region: String,
    /// Begins every key: several agents' data can share a bucket. Without slashes at its ends.
    #[serde(default)]
    pub prefix: String,
    /// Make the bucket if there is none. Unset: yes where an endpoint is given, no at Amazon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_bucket: Option<bool>,
    /// Access key; goes with `secret_access_key`, and excludes `credentials_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Secret of the access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Secret>,
    /// JSON file with `access_key_id`, `secret_access_key` and perhaps `endpoint`, as `pico-hub store`
    /// writes it. Absent: the environment's AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
}

fn default_region() -> String {
    "us-east-1".into()
}

/// A text that never shows in logs or messages.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What [`StoreConfig::resolve`] finds.
#[derive(Debug)]
pub(super) struct Access {
    pub endpoint: Option<String>,
    pub access_key_id: String,
    pub secret: Secret,
    pub session_token: Option<Secret>,
}

#[derive(Deserialize)]
struct CredentialsFile {
    access_key_id: String,
    secret_access_key: Secret,
    endpoint: Option<String>,
}

fn config<T>(what: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Config(what.into()))
}

impl StoreConfig {
    /// Checks what can be checked without the store, and reads the credentials.
    pub(super) fn resolve(&self) -> Result<Access, StoreError> {
        self.resolve_with(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn resolve_with(&self, env: impl Fn(&str) -> Option<String>) -> Result<Access, StoreError> {
        if self.bucket.is_empty() || self.bucket.contains('/') {
            return config(format!("bucket = \"{}\" is no bucket name", self.bucket));
        }
        if self.prefix.starts_with('/') || self.prefix.ends_with('/') || self.prefix.contains("//") {
            return config(format!(
                "prefix = \"{}\": write it without slashes at its ends",
                self.prefix
            ));
        }
        let mut access = self.credentials(env)?;
        access.endpoint = self.endpoint.clone().or(access.endpoint);
        if let Some(url) = &access.endpoint {
            let host = url
                .strip_prefix("http://")
                .or_else(|| url.strip_prefix("https://"));
            if !host.is_some_and(|host| !host.is_empty() && !host.starts_with('/')) {
                return config(format!(
                    "endpoint = \"{url}\": write it as http://HOST:PORT or https://HOST"
                ));
            }
        }
        Ok(access)
    }

    fn credentials(&self, env: impl Fn(&str) -> Option<String>) -> Result<Access, StoreError> {
        match (
            &self.access_key_id,
            &self.secret_access_key,
            &self.credentials_file,
        ) {
            (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                config("credentials_file and access_key_id exclude each other: give one")
            }
            (Some(id), Some(secret), None) => Ok(Access {
                endpoint: None,
                access_key_id: id.clone(),
                secret: secret.clone(),
                session_token: None,
            }),
            (Some(_), None, None) | (None, Some(_), None) => {
                config("access_key_id and secret_access_key go together: give both or neither")
            }
            (None, None, Some(path)) => {
                let file = fs::read(path).map_err(|e| StoreError::File {
                    path: path.clone(),
                    source: e,
                })?;
                let file: CredentialsFile = serde_json::from_slice(&file).or_else(|e| {
                    config(format!(
                        "credentials_file = \"{}\" cannot be read: {e}",
                        path.display()
                    ))
                })?;
                Ok(Access {
                    endpoint: file.endpoint,
                    access_key_id: file.access_key_id,
                    secret: file.secret_access_key,
                    session_token: None,
                })
            }
            (None, None, None) => match (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")) {
                (Some(access_key_id), Some(secret)) => Ok(Access {
                    endpoint: None,
                    access_key_id,
                    secret: Secret(secret),
                    session_token: env("AWS_SESSION_TOKEN").map(Secret),
                }),
                _ => config(
                    "no credentials: set credentials_file (written by `pico-hub store`), or access_key_id and \
                     secret_access_key, or the environment's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                ),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parsed(text: &str) -> StoreConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn credentials_are_taken_from_the_nearest_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        fs::write(
            &path,
            r#"{"access_key_id":"F","secret_access_key":"s","endpoint":"http://127.0.0.1:9"}"#,
        )
        .unwrap();
        let env = |name: &str| Some(format!("{name} of env"));
        let none = |_: &str| None;

        let mut config = parsed("bucket = 'b'");
        assert_eq!(
            config.resolve_with(env).unwrap().access_key_id,
            "AWS_ACCESS_KEY_ID of env"
        );
        assert!(matches!(config.resolve_with(none), Err(StoreError::Config(_))));
        config.credentials_file = Some(path);
        let access = config.resolve_with(env).unwrap();
        assert_eq!(access.access_key_id, "F");
        assert_eq!(access.endpoint.as_deref(), Some("http://127.0.0.1:9"));
        config.endpoint = Some("https://s3.example".into());
        assert_eq!(
            config.resolve_with(env).unwrap().endpoint.as_deref(),
            Some("https://s3.example")
        );
        config.access_key_id = Some("X".into());
        assert!(matches!(config.resolve_with(env), Err(StoreError::Config(_))));
        config.credentials_file = None;
        assert!(
            matches!(config.resolve_with(env), Err(StoreError::Config(_))),
            "half a key pair"
        );
        config.secret_access_key = Some(Secret("geheim".into()));
        assert_eq!(config.resolve_with(env).unwrap().access_key_id, "X");
        assert!(!format!("{config:?}").contains("geheim"));
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_is_sent() {
        let with_keys = |text: &str| parsed(&format!("{text}\naccess_key_id = 'a'\nsecret_access_key = 's'"));
        assert!(with_keys("bucket = 'b'").resolve().is_ok());
        for text in [
            "bucket = ''",
            "bucket = 'b'\nprefix = '/x'",
            "bucket = 'b'\nprefix = 'x/'",
            "bucket = 'b'\nendpoint = '127.0.0.1:9000'",
            "bucket = 'b'\nendpoint = 'http://'",
        ] {
            assert!(
                matches!(with_keys(text).resolve(), Err(StoreError::Config(_))),
                "{text}"
            );
        }
        assert!(toml::from_str::<StoreConfig>("bucket = 'b'\nbukcet = 'c'").is_err());
    }
}
