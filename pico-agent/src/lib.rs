//! The Picocenter agent. ARCHITECTURE.md at the top of the repository is the map.

pub mod activeset;
pub mod address;
pub mod addresses;
pub mod checkpoint;
pub mod cli;
pub mod clocks;
pub mod config;
pub mod control;
pub mod criu;
pub mod doctor;
pub mod failpoint;
pub mod fence;
pub mod gate;
pub mod hub;
pub mod lifecycle;
pub mod logs;
pub mod metrics;
pub(crate) mod netlink;
#[cfg(test)]
mod nettest;
pub mod pager;
pub mod probes;
pub mod sandbox;
pub mod shim;
pub mod store;
pub(crate) mod sysctl;
pub mod trace;
pub mod varint;

// What owners write the same way here and at the hub.
pub use pico_proto::{cron, port, units, waking};
