//! The eBPF programs of the agent, one module per kernel mechanism. Built by `cargo xtask build` for
//! `bpfel-unknown-none` and embedded in the agent, which loads and attaches them (`probes/`).
//!
//! They observe and never interfere: no packet is dropped, no memory is written. Only helpers and map
//! types of Linux 5.8 are used (`kernel-notes/` says which and why).
#![no_std]
#![no_main]
#![allow(
    clippy::cast_possible_truncation,
    reason = "helpers answer with two 32-bit numbers in one, and sizes here are those of packet headers"
)]

mod accessed;
mod faults;
mod kernel;
mod report;
mod serving;
mod sockets;
mod syscalls;

/// Some helpers the programs call may only be used by programs that declare a GPL-compatible licence
/// (`bpf_probe_read_kernel`); the sources are MIT or Apache-2.0 like the rest.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics: every access is checked by the verifier. The item is only needed to link.
    loop {}
}
