//! The only code that knows CRIU: how it is run, what it is told, and what its image files hold.
//!
//! * [`command`]: finding a CRIU that works and starting it
//! * [`rpc`]: requests and answers of `criu swrk`
//! * [`images`]: reading and changing image files after a dump and before a restore
//! * [`stats`]: how long the app stood still for a dump
//! * [`timers`]: the clocks and timers in them: how they go on, when they are due
//! * [`wire`]: the protocol buffer wire format under both

pub mod command;
pub mod images;
pub mod rpc;
pub mod sockets;
pub mod stats;
pub mod timers;
pub mod wire;
