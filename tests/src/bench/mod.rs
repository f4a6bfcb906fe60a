//! The benches of `pico-bench`.
