//! Traces: what an app touched and when its sockets spoke, kept in a file, and the tool that shows it (`pico-trace`).
//!
//! Owns the events, their file format (`kernel-notes/trace-format.md`), and how windows for the model are cut out of
//! them. Knows nothing of eBPF or of a running agent: whoever records hands events in.

pub mod cli;
mod event;
mod file;
mod recorder;
#[cfg(test)]
mod tests;
mod windows;

pub use event::{Event, Fault, Header, Mapping, Trace, What};
pub use file::{TraceError, decode};
pub use recorder::Recorder;
pub use windows::windows;
