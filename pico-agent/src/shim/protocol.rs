//! What agent and shim say to each other: JSON messages, one a packet, on a SOCK_SEQPACKET socket.
//!
//! The shim outlives agents, so its protocol is versioned: each side says [`VERSION`] first. Pure data; the two
//! ends are [`super::server`] and [`super::client`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::checkpoint::index::ObjectId;
use crate::checkpoint::local::Clocks;
use crate::criu::command::Criu;
use crate::criu::timers::Timers;
use crate::pager::PagerStats;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::{RootSpec, SandboxSpec};

/// Version of the protocol. An agent that meets a shim of another version ends that run:
/// its app goes on from its last checkpoint.
pub const VERSION: u32 = 1;

/// Longest packet, in bytes.
pub const MAX_PACKET: usize = 128 * 1024;

/// What a shim is told when it is started, on its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShimConfig {
    /// Name of the app.
    pub app: String,
    /// Where the shim listens for agents; in the app's directory.
    pub socket: PathBuf,
    /// Directory for what lives as long as this shim: CRIU's working directory and logs.
    pub work: PathBuf,
    /// Directory of the app's local page objects.
    pub pages: PathBuf,
    /// Directory of the app's logs.
    pub logs: PathBuf,
    /// Rotation: bytes of one log file, and how many old ones are kept.
    pub log_bytes: u64,
    /// See `log_bytes`.
    pub log_files: u32,
    /// The tmpfs that stands in for `/run` so that CRIU can keep what it learned of the kernel.
    pub kernel_cache: PathBuf,
    /// CRIU.
    pub criu: Criu,
    /// The app's network namespace.
    pub netns: PathBuf,
    /// The app's root.
    pub root: RootSpec,
    /// The cgroup of this run of the app.
    pub cgroup: Cgroup,
    /// The shim's own cgroup, which is none of the agent's: the shim outlives it.
    pub shim_cgroup: Cgroup,
    /// Whether CRIU is started at once, in the app's network namespace and cgroup, to wait for a restore.
    pub restores: bool,
    /// How long a fault may wait for an agent before the app is ended, in seconds.
    pub fault_timeout_s: u64,
}

/// From the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// First message.
    Hello {
        /// The agent's [`VERSION`].
        version: u32,
    },
    /// Start the app afresh.
    Start(Box<SandboxSpec>),
    /// Restore the app from a local checkpoint directory; page objects may be incomplete.
    Restore {
        /// `ckpt/GEN` of the app.
        checkpoint: PathBuf,
        /// File with the pages to fill before anybody asks for them ([`encode_pages`]).
        #[serde(default)]
        ahead: Option<PathBuf>,
    },
    /// Dump the app into a new directory.
    Dump {
        /// `ckpt/GEN.tmp` of the app.
        checkpoint: PathBuf,
        /// Its generation.
        generation: u64,
        /// When all of the file system was last made durable.
        #[serde(default)]
        synced: Option<Clocks>,
    },
    /// Answer to [`Event::DumpReady`].
    Commit {
        /// Whether the app ends now; otherwise it goes on.
        accept: bool,
    },
    /// Give a dump up, at the next point where the app can go on from it; [`Event::Failed`] or [`Event::DumpReady`]
    /// follows as if it had not been asked.
    CallOff,
    /// A block that was needed has been stored.
    Block {
        /// Which page object.
        object: ObjectId,
        /// Block number.
        block: u64,
    },
    /// A block that was needed cannot be had: the app is ended.
    Lost {
        /// Which page object.
        object: ObjectId,
        /// Block number.
        block: u64,
        /// Why.
        reason: String,
    },
    /// End the app: SIGTERM, and SIGKILL after the grace time.
    Stop {
        /// In milliseconds.
        grace_ms: u64,
    },
    /// Say what the pager has done.
    Stats,
}

/// Bytes of a page's name in a list.
const PAGE_NAME: usize = 12;

/// A list of pages: of each the id that its process has in the images, and its number; little endian.
pub fn encode_pages(pages: impl Iterator<Item = (u32, u64)>) -> Vec<u8> {
    let mut list = Vec::with_capacity(pages.size_hint().0 * PAGE_NAME);
    for (id, page) in pages {
        list.extend_from_slice(&id.to_le_bytes());
        list.extend_from_slice(&page.to_le_bytes());
    }
    list
}

/// The pages of a list; a page that is cut off is left out.
pub fn decode_pages(list: &[u8]) -> impl Iterator<Item = (u32, u64)> {
    list.chunks_exact(PAGE_NAME).filter_map(|name| {
        let (id, page) = name.split_first_chunk()?;
        Some((u32::from_le_bytes(*id), u64::from_le_bytes(page.try_into().ok()?)))
    })
}

/// Where a shim stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing was asked of it yet.
    Idle,
    /// The app is being started or restored.
    Starting,
    /// The app runs.
    Running,
    /// The app is being dumped.
    Dumping,
    /// The app has ended.
    Ended,
}

/// How an app ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with a status.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit status {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What a swap-out found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpSummary {
    /// Lazy pages stored by this dump.
    pub stored_pages: u64,
    /// Pages that stay where older checkpoints put them.
    pub carried_pages: u64,
    /// Those of them that were read and not changed since the last wake.
    #[serde(default)]
    pub unchanged_pages: u64,
    /// Pages of zeros, stored nowhere.
    #[serde(default)]
    pub zero_pages: u64,
    /// Bytes of CRIU's images with the eager pages.
    pub image_bytes: u64,
    /// Its timers, and when it stopped.
    #[serde(default)]
    pub sleep: Sleep,
    /// Time from the start of CRIU until all was ready, in microseconds.
    #[serde(rename = "frozen_us")]
    pub took_us: u64,
}

/// What must be known to tell when the timers of a sleeping app are due.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sleep {
    /// The clocks when it stopped.
    pub clocks: Clocks,
    /// Its timers, as they were then.
    pub timers: Timers,
}

/// From the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// First message.
    Hello {
        /// The shim's [`VERSION`].
        version: u32,
        /// Where it stands.
        phase: Phase,
        /// Host process id of the app's first process.
        pid: Option<i32>,
    },
    /// The app runs.
    Running {
        /// Host process id of its first process.
        pid: i32,
        /// How long it took in the shim, in microseconds.
        took_us: u64,
    },
    /// A start, restore or dump failed.
    Failed {
        /// Why, in words for the owner.
        reason: String,
        /// Whether the app goes on running (a failed dump).
        running: bool,
        /// Whether trying again cannot help until the owner does something.
        #[serde(default)]
        permanent: bool,
    },
    /// Everything is dumped, checked and synced; the app stands still until [`Request::Commit`].
    DumpReady(DumpSummary),
    /// The dumped app has ended; the shim ends.
    Dumped,
    /// A fault waits for this block.
    Need {
        /// Which page object.
        object: ObjectId,
        /// Block number.
        block: u64,
    },
    /// The app ended by itself, by [`Request::Stop`], or because a page could not be had.
    Exited {
        /// How.
        exit: Exit,
        /// Why the shim ended it, if it did.
        reason: Option<String>,
    },
    /// What the pager has done.
    Stats(PagerStats),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_pages_comes_back_and_what_is_cut_off_does_not() {
        let pages = [(1, 5), (u32::MAX, u64::MAX), (7, 0x0007_ffff_ffff)];
        let list = encode_pages(pages.into_iter());
        assert_eq!(decode_pages(&list).collect::<Vec<_>>(), pages);
        assert_eq!(
            decode_pages(&list[..list.len() - 1]).collect::<Vec<_>>(),
            pages[..2]
        );
        assert_eq!(decode_pages(&[]).count(), 0);
    }
}
