//! The life of every app: one actor and one state machine each, the only place where states change.
//!
//! * [`agent`]: the agent as a whole; `apps`: the apps it has, and how they come and go
//! * [`exec`]: commands that run beside an app, as processes of the agent's
//! * `doorway`: what the gate is told of an app at rest
//! * `app`: the actor; `start`, `swap_in`, `swap_out`: what it does
//! * [`state`], [`policy`], [`timers`], [`record`], [`registration`], [`explain`]: pure: the states, the decisions, when an
//!   app is due by the clock, what is remembered, why an app is as it is
//! * [`transfer`]: checkpoints to the object store; `publish`: which of them is the current one; `fetch`: their way back
//! * [`traces`]: what tracing tells, taken to its app; [`learning`]: what that teaches, and its file; [`costs`]: what pages cost
//! * [`cache`]: which apps give up what they keep on this host's disk
//! * [`host`], [`paths`]: what apps share, and where an app's things lie
//!
//! Uses gate, sandbox, shim, probes and store; none of them knows it, nor each other.

pub mod agent;
mod app;
mod apps;
pub mod cache;
pub mod costs;
mod doorway;
pub mod exec;
pub mod explain;
mod fetch;
pub mod host;
pub mod learning;
pub mod paths;
pub mod policy;
mod publish;
pub mod record;
pub mod registration;
mod start;
pub mod state;
mod swap_in;
mod swap_out;
pub mod timers;
pub mod traces;
pub mod transfer;
