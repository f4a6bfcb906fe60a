//! The shaping proxy: stands before the store and makes it slow, broken or dishonest on demand, and writes
//! down every request.
//!
//! It passes heads and bodies on as they are (signatures cover the `Host` header, which names the proxy),
//! and must know HTTP/1.1 framing only, not S3.

mod connection;
mod http;
mod limit;

use std::collections::HashMap;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use limit::Bucket;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The proxy answers this status itself; the store sees nothing.
    Status(u16),
    /// The answer's body ends after so many bytes, though its head promises more.
    Truncate(u64),
    /// The lowest bit of the body's byte at this offset is flipped on the way to the client.
    FlipBit(u64),
    /// The connection is reset; the store sees nothing.
    Reset,
    /// The store does what is asked and answers; the answer is held until the faults are cleared.
    Unanswered,
    /// No answer until the faults are cleared; the connection is closed then.
    Hang,
}

/// Which requests a [`Fault`] befalls.
#[derive(Debug, Clone)]
pub struct Rule {
    method: &'static str,
    key: String,
    skip: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// `fault` for every request with this method (`GET`) whose path contains `key`.
    pub fn new(method: &'static str, key: &str, fault: Fault) -> Self {
        Rule {
            method,
            key: key.to_owned(),
            skip: 0,
            times: u64::MAX,
            fault,
        }
    }

    /// Lets the first `count` of them pass.
    #[must_use]
    pub fn after(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Only so many of them.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.times = count;
        self
    }

    fn strikes(&mut self, method: &str, path: &str) -> Option<Fault> {
        if method != self.method || !path.contains(&self.key) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(self.fault)
    }
}

/// One line of the request log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// When it arrived, since the start of the proxy.
    pub at: Duration,
    /// How long it took until the last byte of the answer.
    pub took: Duration,
    /// `GET`, `PUT`, ...
    pub method: String,
    /// Path without query: bucket and key, as the client encoded them.
    pub path: String,
    /// What follows the `?`.
    pub query: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Status of the answer; 0 when there was none.
    pub status: u16,
    /// Bytes of the request's body.
    pub sent: u64,
    /// Bytes of the answer's body that reached the client.
    pub received: u64,
    /// What was done to it.
    pub fault: Option<Fault>,
}

/// A running proxy; dropping it closes all its connections.
#[derive(Debug)]
pub struct Shaper {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: String,
    started: Instant,
    settings: Mutex<Settings>,
    cleared: Condvar,
    log: Mutex<Vec<Request>>,
    in_flight: AtomicU64,
    connections: Mutex<HashMap<u64, TcpStream>>,
    to_client: Bucket,
    to_store: Bucket,
}

#[derive(Debug, Default)]
struct Settings {
    delay: Duration,
    rules: Vec<Rule>,
    generation: u64,
    stopped: bool,
}

/// What a panicking thread left is still whole: every value here is replaced at once.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shaper {
    /// A proxy on a port of its own before the store at `HOST:PORT`. It shapes nothing yet.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(store: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("the proxy cannot listen")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            store: store.to_owned(),
            started: Instant::now(),
            settings: Mutex::default(),
            cleared: Condvar::new(),
            log: Mutex::default(),
            in_flight: AtomicU64::new(0),
            connections: Mutex::default(),
            to_client: Bucket::default(),
            to_store: Bucket::default(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &accepting));
        Ok(Shaper { address, shared })
    }

    /// Host and port it listens on: the agent's endpoint.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// No answer's first byte leaves before this much time after the request.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.shared.settings).delay = delay;
    }

    /// Bytes per second of all bodies together, each way; nothing: unlimited.
    pub fn set_bandwidth(&self, rate: Option<u64>) {
        self.shared.to_client.set(rate);
        self.shared.to_store.set(rate);
    }

    /// Adds a fault. Of several rules that match a request, the oldest strikes.
    pub fn inject(&self, rule: Rule) {
        lock(&self.shared.settings).rules.push(rule);
    }

    /// Removes all faults and lets go of the requests that hang.
    pub fn clear(&self) {
        let mut settings = lock(&self.shared.settings);
        settings.rules.clear();
        settings.generation += 1;
        self.shared.cleared.notify_all();
    }

    /// All requests that were answered or failed so far, in the order of their ends.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.log).clone()
    }

    /// The same, and begins a new log.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.shared.log))
    }

    /// How many requests wait for their answers now.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::SeqCst)
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        lock(&self.shared.settings).stopped = true;
        self.clear();
        for stream in lock(&self.shared.connections).values() {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Ends the wait for the next connection.
        let _ = TcpStream::connect(&self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (id, stream) in (0..).zip(listener.incoming()) {
        if lock(&shared.settings).stopped {
            return;
        }
        let Ok(stream) = stream else { continue };
        if let Ok(handle) = stream.try_clone() {
            lock(&shared.connections).insert(id, handle);
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that goes away in the middle is no fault of the proxy; the log has the request.
            let _ = connection::serve(stream, &shared);
            lock(&shared.connections).remove(&id);
        });
    }
}

impl Shared {
    fn delay(&self) -> Duration {
        lock(&self.settings).delay
    }

    fn fault(&self, method: &str, path: &str) -> Option<Fault> {
        lock(&self.settings)
            .rules
            .iter_mut()
            .find_map(|rule| rule.strikes(method, path))
    }

    fn hang(&self) {
        let settings = lock(&self.settings);
        let generation = settings.generation;
        let wait = self
            .cleared
            .wait_while(settings, |settings| settings.generation == generation);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests;
