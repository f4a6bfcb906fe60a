//! What the tests of the store share: a server of its own for each, clients, and the words of errors.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses its share")]

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use pico_hub::s3;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Exists in every [`Running`] server.
pub const BUCKET: &str = "bucket";

/// A server in this process, on a free port and a directory of its own.
pub struct Running {
    pub dir: TempDir,
    pub credentials: s3::Credentials,
    _stop: DropGuard,
}

impl Running {
    pub async fn start() -> Running {
        let dir = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let options = s3::Options {
            dir: dir.path().to_owned(),
            listen,
            credentials_file: None,
        };
        let server = s3::Server::bind(&options).await.unwrap();
        let (credentials, stop) = (server.credentials().clone(), CancellationToken::new());
        tokio::spawn(server.run(stop.clone()));
        let running = Running {
            dir,
            credentials,
            _stop: stop.drop_guard(),
        };
        running
            .client()
            .create_bucket()
            .bucket(BUCKET)
            .send()
            .await
            .unwrap();
        running
    }

    /// A client with connections of its own.
    pub fn client(&self) -> Client {
        client(&self.credentials)
    }

    /// Sends raw bytes and reads the answer until the server closes.
    pub async fn exchange(&self, request: &str) -> String {
        let addr = self.credentials.endpoint.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

pub fn client(credentials: &s3::Credentials) -> Client {
    client_with(
        &credentials.endpoint,
        &credentials.access_key_id,
        &credentials.secret_access_key,
    )
}

pub fn client_with(endpoint: &str, id: &str, secret: &str) -> Client {
    let credentials = Credentials::new(id, secret, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .region(Region::new("us-east-1"))
        .credentials_provider(credentials)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled());
    Client::from_conf(config.build())
}

/// The HTTP status of an answer.
pub fn status<T, E>(result: &Result<T, SdkError<E>>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(error) => error
            .raw_response()
            .map_or(0, |response| response.status().as_u16()),
    }
}

/// The S3 error code of an answer; empty if it has none.
pub fn code<T, E: ProvideErrorMetadata>(result: &Result<T, SdkError<E>>) -> String {
    result
        .as_ref()
        .err()
        .and_then(|error| error.code())
        .unwrap_or_default()
        .to_owned()
}

/// Bytes that differ everywhere, the same every time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
