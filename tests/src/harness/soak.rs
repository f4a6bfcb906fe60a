//! How often things that come in long rows are done.

/// `long` with `cargo xtask test --soak` (`PICO_SOAK` is set), else `short`.
pub fn soak(short: usize, long: usize) -> usize {
    if std::env::var_os("PICO_SOAK").is_some() {
        long
    } else {
        short
    }
}
