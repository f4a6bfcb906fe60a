//! Parts that every scenario, the demo and the benches are made of.
//!
//! A scenario is a [`Rig`]: an own network namespace, a store, an agent and its apps, all under one
//! directory, taken away and searched for leftovers at the end.

pub mod agent;
pub mod apps;
pub mod bin;
pub mod bpf;
pub mod config;
pub mod disk;
pub mod hub;
pub mod interrupt;
pub mod leftovers;
pub mod net;
pub mod owner;
pub mod pagecache;
pub mod process;
pub mod procs;
pub mod rig;
pub mod shaper;
pub mod slot;
pub mod soak;
pub mod stats;
pub mod store;
pub mod table;
pub mod wait;

/// The states an app sleeps in, warmest first: scenarios that end in a wake go through all of them.
pub const TIERS: [&str; 2] = ["warm", "cold"];

pub use agent::{Agent, Show};
pub use config::{AgentConfig, AppConfig};
pub use rig::Rig;
pub use soak::soak;
pub use stats::Samples;
pub use wait::{until, within};
