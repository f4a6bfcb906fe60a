//! To be written.

pub mod net;
