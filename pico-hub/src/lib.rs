//! The Picocenter hub: the one place that owners and DNS talk to. It knows apps, agents and where which app is; it
//! must not know the agent's insides, nor touch an app's packets.
//!
//! [`serve`] is the running server, as [`config`] says; [`api`] takes calls, [`auth`] says who may make them, [`hub`] has
//! the rules, [`registry`] keeps the rows; [`directory`] is what [`dns`] sees of them. [`s3`] is the embedded object
//! store, which the rest does not know.
#![forbid(unsafe_code)]

pub mod api;
pub mod args;
pub mod auth;
pub mod cli;
pub mod config;
pub mod directory;
pub mod dns;
pub mod hub;
pub mod id;
pub mod problem;
pub mod registry;
pub mod s3;
pub mod secret;
pub mod serve;
pub mod spec;
pub mod tls;
