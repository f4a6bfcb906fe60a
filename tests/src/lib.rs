//! What the scenario tests, `pico-demo` and `pico-bench` share: a harness that runs the real
//! binaries on the real kernel, and the benches.
//!
//! This crate knows the project only as its users do: `agent.toml`, the command lines, the JSON they
//! print, and packets. It must not link `pico-agent` or `pico-hub`.

pub mod bench;
pub mod harness;
pub mod truth;
