//! The object store and what of it is kept on this host's disk.
//!
//! Owns the one S3 client of the host ([`Store`]) and the local copies of page objects ([`cache`]). Must
//! not know what the objects mean; whoever fetches compares them with their checksums. Nothing outside
//! this folder names the S3 library.

pub mod cache;
mod check;
pub mod client;
pub mod config;
mod error;
mod read;
mod write;

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod test_server;

pub use cache::{CacheError, PageCache, PageFile, PageReader};
pub use client::{ETag, Precondition, Store, StoreStats};
pub use config::{Secret, StoreConfig};
pub use error::StoreError;
