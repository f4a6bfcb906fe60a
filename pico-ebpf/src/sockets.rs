//! Last activity per app and local port, from the packets that reach or leave the apps' sockets.
//!
//! One pair of `cgroup_skb` programs is attached at the cgroup all apps live under. They count only for
//! addresses and ports the agent asked for: it makes the map entries, the programs never do, so that a
//! scan of a thousand ports or a thousand outgoing connections cannot push anything out of the map.
//! Loopback traffic inside an app is nobody's activity because its address is not watched.
//!
//! The programs see a packet from its IP header on. They always let it pass.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_TCP_LISTEN};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_tcp_sock};
use aya_ebpf::macros::{cgroup_skb, map};
use aya_ebpf::maps::PerCpuHashMap;
use aya_ebpf::programs::SkBuffContext;
use pico_ebpf::{ACTIVITY_ENTRIES, Activity, ActivityKey, OTHER_PORTS, v4_mapped};

/// Filled by the agent only; not preallocated, because few hosts watch as many ports as there is room for.
/// One value for each CPU, which the agent sums up: eBPF for Linux 5.10 has no better way to count.
#[map]
static ACTIVITY: PerCpuHashMap<ActivityKey, Activity> =
    PerCpuHashMap::with_max_entries(ACTIVITY_ENTRIES, BPF_F_NO_PREALLOC);

/// What a `cgroup_skb` program answers to let the packet pass.
const PASS: i32 = 1;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// TCP flags that are activity without payload: FIN, SYN, RST.
const FIN_SYN_RST: u8 = 0x01 | 0x02 | 0x04;

/// IPv6 extension headers that are looked through. Real packets have at most two.
const MAX_EXTENSIONS: usize = 6;

/// A packet on its way to a socket: the local end is the destination.
#[cgroup_skb(ingress)]
pub fn pico_ingress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::In);
    PASS
}

/// A packet a socket sends: the local end is the source.
#[cgroup_skb(egress)]
pub fn pico_egress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Out);
    PASS
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// The IP layer of a packet.
struct Network {
    /// The app's own address.
    local: [u8; 16],
    /// Protocol of what starts at `transport`.
    proto: u8,
    /// Offset of the transport header.
    transport: usize,
}

#[inline(always)]
fn count(ctx: &SkBuffContext, direction: Direction) {
    let Some(key) = activity_of(ctx, direction) else {
        return;
    };
    let other = ActivityKey::new(key.address, OTHER_PORTS, key.proto);
    let Some(entry) = ACTIVITY.get_ptr_mut(key).or_else(|| ACTIVITY.get_ptr_mut(other)) else {
        return;
    };
    // SAFETY: `entry` is this CPU's and stays until the program returns (the kernel frees after an RCU grace
    // period). An interrupt between reading and writing a counter can lose one count, and nothing else.
    unsafe {
        (*entry).last_ns = bpf_ktime_get_ns();
        (*entry).packets += 1;
        (*entry).bytes += u64::from(ctx.len());
    }
}

/// The local end of the packet, if the packet is activity.
#[inline(always)]
fn activity_of(ctx: &SkBuffContext, direction: Direction) -> Option<ActivityKey> {
    let network = match ctx.load::<u8>(0).ok()? >> 4 {
        4 => ipv4(ctx, direction)?,
        6 => ipv6(ctx, direction)?,
        _ => return None,
    };
    match network.proto {
        TCP if !tcp_is_activity(ctx, network.transport, direction)? => return None,
        TCP | UDP => {}
        _ => return None,
    }
    // Both protocols start with source port, destination port.
    let port_at = match direction {
        Direction::In => 2,
        Direction::Out => 0,
    };
    let port = u16::from_be_bytes(ctx.load(network.transport + port_at).ok()?);
    Some(ActivityKey::new(network.local, port, network.proto))
}

#[inline(always)]
fn ipv4(ctx: &SkBuffContext, direction: Direction) -> Option<Network> {
    let header: [u8; 20] = ctx.load(0).ok()?;
    // A fragment that is not the first has no ports. (The hooks sit above reassembly and before
    // fragmentation, so only raw sockets can show one.)
    if u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
        return None;
    }
    let local = match direction {
        Direction::In => [header[16], header[17], header[18], header[19]],
        Direction::Out => [header[12], header[13], header[14], header[15]],
    };
    Some(Network {
        local: v4_mapped(local),
        proto: header[9],
        transport: usize::from(header[0] & 0x0f) * 4,
    })
}

#[inline(always)]
fn ipv6(ctx: &SkBuffContext, direction: Direction) -> Option<Network> {
    let local = match direction {
        Direction::In => ctx.load(24).ok()?,
        Direction::Out => ctx.load(8).ok()?,
    };
    let mut proto: u8 = ctx.load(6).ok()?;
    let mut transport = 40;
    for _ in 0..MAX_EXTENSIONS {
        // Next header, length, and for a fragment its offset.
        let extension: [u8; 4] = match proto {
            0 | 43 | 44 | 51 | 60 => ctx.load(transport).ok()?,
            _ => {
                return Some(Network {
                    local,
                    proto,
                    transport,
                });
            }
        };
        transport += match proto {
            44 if u16::from_be_bytes([extension[2], extension[3]]) & !7 != 0 => return None,
            44 => 8,
            51 => (usize::from(extension[1]) + 2) * 4,
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        proto = extension[0];
    }
    None
}

/// Whether a TCP segment says something: it opens, ends or resets a connection, or brings payload that
/// was not there before. Acknowledgements, window updates and keepalives do not.
#[inline(always)]
fn tcp_is_activity(ctx: &SkBuffContext, transport: usize, direction: Direction) -> Option<bool> {
    let header: [u8; 14] = ctx.load(transport).ok()?;
    if header[13] & FIN_SYN_RST != 0 {
        return Some(true);
    }
    let headers = transport + usize::from(header[12] >> 4) * 4;
    let payload = (ctx.len() as usize).saturating_sub(headers) as u32;
    if payload == 0 {
        return Some(false);
    }
    // What an app sends again still waits for its client, and would wait for ever if the app fell asleep.
    if direction == Direction::Out {
        return Some(true);
    }
    let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    Some(!already_received(ctx, seq.wrapping_add(payload)))
}

/// Whether the socket has already received everything before sequence number `end`: the segment is a
/// keepalive with one byte of garbage (as Windows sends them) or a retransmission.
#[inline(always)]
fn already_received(ctx: &SkBuffContext, end: u32) -> bool {
    // SAFETY: the context is valid while the program runs; the verifier demands the null checks below and
    // allows no access that could fail.
    unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        // A listening socket has received nothing, and the first data may come with the handshake's end.
        if sk.is_null() || (*sk).state == BPF_TCP_LISTEN {
            return false;
        }
        let tcp = bpf_tcp_sock(sk);
        if tcp.is_null() {
            return false;
        }
        // Sequence numbers wrap: `end` is not after `rcv_nxt` if the difference is not negative.
        ((*tcp).rcv_nxt.wrapping_sub(end) as i32) >= 0
    }
}
