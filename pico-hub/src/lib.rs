//! The Picocenter hub. Today it owns the embedded S3 store ([`s3`]); it must not know the agent's insides.
#![forbid(unsafe_code)]

pub mod s3;
