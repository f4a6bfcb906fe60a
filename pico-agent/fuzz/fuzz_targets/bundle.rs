//! Fuzzes the bundle of CRIU's files.
#![no_main]

#[path = "../entries.rs"]
mod entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entries::bundle(bytes));
