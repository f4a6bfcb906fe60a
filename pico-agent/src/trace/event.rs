//! What a trace is made of.

use serde::{Deserialize, Serialize};

use crate::activeset::PageId;
use crate::port::Port;
use crate::units::Timestamp;

/// What a trace is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The app.
    pub app: String,
    /// Its life from one fresh start on: page numbers mean nothing in another.
    pub lineage: u64,
    /// When the recording began.
    pub started: Timestamp,
    /// CLOCK_MONOTONIC at that moment, in nanoseconds: times of events count from it.
    pub base_ns: u64,
    /// Release of the kernel.
    pub kernel: String,
}

/// A mapping of an address space, as it was when it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The address space, as in [`PageId::space`].
    pub space: u32,
    /// First page.
    pub start: u64,
    /// The page after the last.
    pub end: u64,
    /// Page of the file at which it begins.
    pub offset: u64,
    /// The file, `[heap]`, `[stack]`, or empty: anonymous.
    pub name: String,
}

impl Mapping {
    /// Whether the page lies in it.
    pub fn holds(&self, page: PageId) -> bool {
        page.space == self.space && (self.start..self.end).contains(&page.page)
    }
}

/// A page fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The address space, as in [`PageId::space`].
    pub space: u32,
    /// The address, not rounded.
    pub address: u64,
    /// The thread.
    pub tid: u32,
    /// The instruction.
    pub ip: u64,
    /// Whether it was a write.
    pub write: bool,
    /// Whether it was raised in user mode, rather than in a system call.
    pub user: bool,
    /// The port whose request the thread served.
    pub port: Option<Port>,
}

impl Fault {
    /// The page.
    pub fn page(&self) -> PageId {
        PageId {
            space: self.space,
            page: self.address / crate::checkpoint::index::PAGE_SIZE,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum What {
    /// A thread touched a page that was not there.
    Fault(Fault),
    /// A page's accessed bit was found set.
    Accessed {
        /// Which page.
        #[serde(flatten)]
        at: PageId,
        /// Whether its dirty bit was set too.
        write: bool,
    },
    /// A thread received data.
    Recv {
        /// On this port.
        port: Port,
        /// The thread.
        tid: u32,
        /// How much.
        bytes: u64,
    },
    /// A thread sent data.
    Send {
        /// On this port.
        port: Port,
        /// The thread.
        tid: u32,
        /// How much.
        bytes: u64,
    },
    /// A connection was established.
    Accept {
        /// On this port.
        port: Port,
    },
    /// A page was put into memory ahead.
    Prefetched {
        /// Which page.
        #[serde(flatten)]
        at: PageId,
    },
    /// The app was swapped in: no lazy page was in memory.
    WakeStart {
        /// The port whose packet woke it.
        trigger: Option<Port>,
        /// Lazy pages that its checkpoint had.
        pages: u64,
    },
    /// A slice of a hot period began: accessed bits were cleared.
    HotStart,
    /// The wake or the slice ended.
    End {
        /// Whether all accessed bits of it were read and told.
        accessed: bool,
    },
    /// Events were lost here.
    Lost {
        /// How many.
        count: u64,
    },
}

/// What happened, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since [`Header::base_ns`].
    pub time_ns: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// A whole trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What it is of.
    pub header: Header,
    /// Mappings, later ones over earlier ones.
    pub mappings: Vec<Mapping>,
    /// Events in the order in which they were recorded.
    pub events: Vec<Event>,
    /// Whether the recording was ended, rather than cut off.
    pub ended: bool,
}

impl Trace {
    /// Events that were lost while it was recorded.
    pub fn lost(&self) -> u64 {
        let lost = self.events.iter().map(|event| match event.what {
            What::Lost { count } => count,
            _ => 0,
        });
        lost.fold(0, u64::saturating_add)
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.ended && self.lost() == 0
    }

    /// The mapping that holds a page.
    pub fn mapping(&self, page: PageId) -> Option<&Mapping> {
        self.mappings.iter().rev().find(|mapping| mapping.holds(page))
    }
}
