//! A `pico-hub serve` process for one test, and calls to it as its administrator.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses its share")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

/// Bounds what should come at once.
pub const SOON: Duration = Duration::from_secs(30);

/// A hub process, killed when dropped.
pub struct Hub {
    pub child: Child,
    pub api: String,
    token: MetadataValue<Ascii>,
    config: PathBuf,
}

impl Hub {
    /// On a free port, with its state in `dir` and `more` in its configuration; answers when this returns.
    pub async fn start(dir: &Path, more: &str) -> Hub {
        let (config, ready) = (dir.join("hub.toml"), dir.join("ready"));
        let _ = std::fs::remove_file(&ready);
        std::fs::write(
            &config,
            format!("state_dir = \"state\"\nlisten = \"127.0.0.1:0\"\n{more}"),
        )
        .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pico-hub"))
            .args(["serve", "--config"])
            .arg(&config)
            .arg("--ready-file")
            .arg(&ready)
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let text = loop {
            match std::fs::read(&ready) {
                Ok(text) => break text,
                Err(_) => assert!(
                    child.try_wait().unwrap().is_none(),
                    "it ended before it was ready"
                ),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let ready: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let token = std::fs::read_to_string(dir.join("state/admin.token")).unwrap();
        Hub {
            child,
            api: ready["api"][0].as_str().unwrap().to_owned(),
            token: format!("Bearer {}", token.trim()).parse().unwrap(),
            config,
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        Channel::from_shared(self.api.clone()).unwrap()
    }

    pub async fn channel(&self) -> Channel {
        self.endpoint().connect().await.unwrap()
    }

    /// The address of the API alone.
    pub fn address(&self) -> &str {
        self.api.split_once("://").unwrap().1
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }

    /// Another hub with the same configuration, to its end.
    pub fn second(&self) -> std::process::Output {
        let mut second = Command::new(env!("CARGO_BIN_EXE_pico-hub"));
        second.args(["serve", "--config"]).arg(&self.config);
        second.output().unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
