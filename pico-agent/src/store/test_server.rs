//! For tests: a server that answers whatever a test tells it to, wrong answers above all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::client::{Store, Tuning};
use super::config::{Secret, StoreConfig};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// One answer, or the lack of one.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Status, headers, body.
    Send(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// A head that promises so many bytes, these bytes, and the end of the connection.
    Cut(u16, Vec<(&'static str, String)>, usize, Vec<u8>),
    /// A head that promises so many bytes, these bytes, and silence.
    Stall(usize, Vec<u8>),
    /// The end of the connection, with no answer.
    HangUp,
    /// Silence.
    Silence,
}

pub fn ok(body: &[u8]) -> Answer {
    Answer::Send(200, vec![("etag", "\"tag\"".into())], body.to_vec())
}

pub fn error(status: u16, code: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>said the server</Message></Error>");
    Answer::Send(
        status,
        vec![("content-type", "application/xml".into())],
        body.into_bytes(),
    )
}

pub fn part(range: &str, body: &[u8]) -> Answer {
    Answer::Send(
        206,
        vec![("etag", "\"tag\"".into()), ("content-range", range.into())],
        body.to_vec(),
    )
}

#[derive(Default)]
pub struct Log {
    pub asked: Vec<Asked>,
    pub connections: usize,
}

pub struct Server {
    pub store: Store,
    pub log: Arc<Mutex<Log>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn config(endpoint: String) -> StoreConfig {
    StoreConfig {
        endpoint: Some(endpoint),
        bucket: "bucket".into(),
        region: "us-east-1".into(),
        prefix: "pre/fix".into(),
        create_bucket: None,
        access_key_id: Some("id".into()),
        secret_access_key: Some(Secret("secret".into())),
        credentials_file: None,
    }
}

/// Short enough to wait for in a test.
pub fn hurried() -> Tuning {
    Tuning {
        attempt: Duration::from_millis(300),
        per_mib: Duration::from_millis(300),
        backoff: Duration::from_millis(1),
        ..Tuning::default()
    }
}

impl Server {
    /// Answers request number n (from 0) with `answer(n, request)`.
    pub async fn start(answer: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Log::default()));
        let (shared, answer) = (Arc::clone(&log), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                shared.lock().unwrap().connections += 1;
                let (log, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                connections.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some(asked) = read_request(&mut stream).await {
                        let n = {
                            let mut log = log.lock().unwrap();
                            log.asked.push(asked.clone());
                            log.asked.len() - 1
                        };
                        if !send(&mut stream, &asked, answer(n, &asked)).await {
                            return;
                        }
                    }
                });
            }
        });
        Server {
            store: Store::connect_tuned(&config(endpoint), hurried()).unwrap(),
            log,
            task,
        }
    }

    /// Its HOST:PORT.
    pub fn address(&self) -> &str {
        self.store.inner.endpoint.strip_prefix("http://").unwrap()
    }

    /// Always the same answer.
    pub async fn always(answer: Answer) -> Self {
        Server::start(move |_, _| answer.clone()).await
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().asked.clone()
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|&n| n > 0)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked {
        method,
        target,
        headers,
        body,
    })
}

/// False: the connection is over.
async fn send(stream: &mut BufReader<TcpStream>, asked: &Asked, answer: Answer) -> bool {
    let (status, headers, length, body, then) = match answer {
        Answer::Send(status, headers, body) => (status, headers, body.len(), body, true),
        Answer::Cut(status, headers, length, body) => (status, headers, length, body, false),
        Answer::Stall(length, body) => (200, vec![("etag", "\"tag\"".into())], length, body, true),
        Answer::HangUp => return false,
        Answer::Silence => return std::future::pending().await,
    };
    let stalls = then && length != body.len();
    let mut text = format!("HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    let body = if asked.method == "HEAD" { vec![] } else { body };
    let sent = async {
        stream.write_all(text.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await
    };
    if sent.await.is_err() {
        return false;
    }
    if stalls {
        std::future::pending().await
    } else {
        then
    }
}

/// A store in memory that keeps conditions or does not.
pub fn small_store(
    keeps_absent: bool,
    keeps_matches: bool,
) -> impl Fn(usize, &Asked) -> Answer + Send + Sync {
    #[derive(Default)]
    struct State {
        bucket: bool,
        objects: HashMap<String, usize>,
    }
    let state = Mutex::new(State::default());
    move |n, asked| {
        let mut state = state.lock().unwrap();
        let path = asked.target.split('?').next().unwrap().to_owned();
        let of_bucket = path.trim_end_matches('/') == "/bucket";
        let now = state.objects.get(&path).map(|tag| format!("\"{tag}\""));
        match asked.method.as_str() {
            "PUT" if of_bucket => {
                state.bucket = true;
                Answer::Send(200, vec![], vec![])
            }
            _ if !state.bucket => error(404, "NoSuchBucket"),
            "GET" if of_bucket => {
                let xml = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
                Answer::Send(200, vec![], xml.into())
            }
            "PUT" => {
                let lost = (keeps_absent && asked.headers.contains_key("if-none-match") && now.is_some())
                    || (keeps_matches
                        && asked
                            .headers
                            .get("if-match")
                            .is_some_and(|tag| Some(tag) != now.as_ref()));
                if lost {
                    return error(412, "PreconditionFailed");
                }
                state.objects.insert(path, n);
                Answer::Send(200, vec![("etag", format!("\"{n}\""))], vec![])
            }
            "DELETE" => {
                assert!(state.objects.remove(&path).is_some(), "{path}");
                Answer::Send(204, vec![], vec![])
            }
            other => panic!("{other} {path}"),
        }
    }
}
