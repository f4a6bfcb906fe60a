//! The shim: one small process per hot app. It is the app's parent, reads its log pipes, runs CRIU for it and
//! hosts its pager, so that the agent can be restarted, upgraded or killed and no app notices.
//!
//! Single-threaded, without an async runtime and without a store client: what is not on this host's disk it asks
//! of whatever agent is connected. A forked *keeper* holds a second descriptor of every userfaultfd, because when
//! the last one closes the kernel answers missing pages with zeros: when the shim dies, the keeper ends the app
//! before it lets go (kernel-notes/userfaultfd.md).
//!
//! * [`protocol`]: what agent and shim say
//! * [`client`]: the agent's end
//! * [`server`]: the shim's event loop
//! * [`swrk`]: one CRIU at work
//! * [`dump`]: from CRIU's images to a checkpoint
//! * [`restore`]: from a checkpoint to CRIU's images
//! * `durable`: what a dump and the app have written reaches the disk
//! * [`keeper`], [`socket`], [`pages`], [`stdio`], [`files`]: their parts

pub mod client;
pub mod dump;
mod durable;
pub mod files;
pub mod keeper;
mod locked;
pub mod pages;
pub mod protocol;
pub mod restore;
pub mod server;
mod sift;
pub mod socket;
pub mod stdio;
pub mod swrk;
