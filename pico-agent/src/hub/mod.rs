//! The agent's side of the hub: joins it once, then keeps one stream to it. The hub says which apps should be here
//! and what to do with them; the agent reports what is. Nothing that an app needs waits for the hub.
//!
//! * `config`: `[hub]` of agent.toml, and what owners may ask of this host
//! * `credential`: who this agent is to the hub, on disk
//! * `channel`: the way there
//! * `spec`, `report`: pure: the hub's words into the agent's, and back
//! * [`link`]: connects, again and again; `session`: one stream; `streams`: logs on it, and `exec` sessions
//!
//! Knows apps by what [`Apps`] offers; must not know actors, checkpoints or the gate. What the hub sends is as
//! untrusted as what a stranger sends: bounded, and checked like agent.toml.

pub mod changes;
mod channel;
pub mod config;
mod credential;
mod exec;
pub mod link;
mod report;
mod session;
mod spec;
mod streams;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use changes::Changes;
pub use config::HubConfig;
pub use credential::{Credential, CredentialError};

use crate::config::AppConfig;
use crate::control::protocol::{AppDetail, Failure};
use crate::control::server::Handler;
use crate::lifecycle::exec::{Exec, Running};
use crate::lifecycle::registration::{Desired, Registration};

/// How the hub wants an app to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The hub's name for it.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// Of what follows.
    pub resource_version: u64,
    /// What is to become of it.
    pub desired: Desired,
    /// How it runs, checked.
    pub config: AppConfig,
}

/// An app of the hub's as it is here.
#[derive(Debug, Clone)]
pub struct Registered {
    /// What was asked for.
    pub registration: Registration,
    /// What is.
    pub detail: AppDetail,
}

/// Waits until what was begun is done. It goes on when this is dropped.
pub type Applying = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// What the hub can do with apps, besides what their owner can do on the host.
pub trait Apps: Handler {
    /// The name of the hub's app with this id, if it is here.
    fn name_of(&self, id: &str) -> Option<String>;
    /// Names of all apps of the hub's that are here.
    fn registered(&self) -> Vec<String>;
    /// One of them, without waiting for anything.
    fn look_up(&self, name: &str) -> Option<Registered>;
    /// Makes an app as the hub wants it. When this returns it is on the disk and begun.
    fn register(&self, wanted: Wanted) -> impl Future<Output = Result<Applying, Failure>> + Send;
    /// A client is likely to come: makes the next wake quick, or wakes at once.
    fn prefetch(&self, name: &str, wake: bool);
    /// Runs a command beside an app, which wakes for it and stays awake meanwhile.
    fn exec(&self, name: &str, exec: Exec) -> impl Future<Output = Result<Running, Failure>> + Send;
    /// Tells which apps have changed.
    fn changes(&self) -> Arc<Changes>;
}

#[cfg(test)]
mod tests;
