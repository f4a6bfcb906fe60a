//! What is saved of one app. Pure: bytes and numbers, no I/O.

pub mod index;
pub mod local;
