//! What is saved of one app: names, formats and checks of the objects a checkpoint is made of.
//!
//! Owns the bytes of every object (`kernel-notes/checkpoint-format.md` describes them). Must not know
//! the object store, CRIU, the pager or an app's state: bytes and files in, bytes and files out. What
//! is read here comes from a bucket and is not trusted: every length is bounded before it is believed,
//! and every checksum is compared before a byte is handed on.

pub mod archive;
pub mod bundle;
pub mod compressed;
pub mod hash;
pub mod index;
pub mod keys;
pub mod local;
pub mod manifest;
pub mod root_file;

/// Bytes of one block of a page object: the unit that is fetched, checked and cached.
pub const BLOCK_SIZE: usize = 64 * 1024;

/// Largest object that is ever written: what one S3 `PUT` takes.
pub const OBJECT_MAX: u64 = 5 << 30;
