//! Library preloaded into CRIU.
