//! The API `pico.v1`: messages, clients and servers, made from the .proto files in `pico-hub/proto/pico/v1`, which
//! hold its documentation. Both hub and agent speak it, and neither needs the other's code for it. So do the few
//! texts that owners write the same way everywhere: [`units`], [`port`]s, times and senders that wake an app ([`cron`],
//! [`waking`]).
#![forbid(unsafe_code)]

pub mod cron;
pub mod port;
pub mod units;
pub mod waking;

/// Package `pico.v1`.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    reason = "generated; documented in the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("pico.v1");
}

/// Lines, inputs or outputs of one stream that either side may send ahead of what the other has taken (agent.proto,
/// `StreamData`).
pub const STREAM_WINDOW: usize = 64;

/// The encoded `FileDescriptorSet` of the package, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
