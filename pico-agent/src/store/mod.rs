//! The object store and what of it is kept on this host's disk.
//!
//! Owns the one S3 client of the host ([`client`]) and the local copies of page objects ([`cache`]). Must
//! not know what the objects mean; whoever fetches compares them with their checksums. Nothing outside
//! [`client`] names the S3 library.

pub mod cache;
mod check;
pub mod client;
pub mod config;
mod error;

pub use cache::{PageCache, PageFile, PageReader};
pub use client::{ETag, Precondition, Store, StoreStats};
pub use config::{Secret, StoreConfig};
pub use error::StoreError;
