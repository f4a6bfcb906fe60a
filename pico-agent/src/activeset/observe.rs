//! What is told to the model: pages that were touched, in windows. Owns these types and their bounds.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::port::Port;

/// Most first touches one window keeps: 4 GiB of memory. A window that would need more is marked as incomplete.
pub const OBSERVATIONS_MAX: usize = 1 << 20;
/// Most requests one window keeps; what came later is attributed all the same, but not listed.
const REQUESTS_MAX: usize = 1 << 16;

/// One page of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageId {
    /// The address space, by the id that the app's checkpoint gives it (`checkpoint::index::PageIndex::spaces`). A
    /// process that was forked since the restore counts as the one it descends from: it is that one's pages that
    /// must be there before the next fork.
    pub space: u32,
    /// Page number: address / 4096.
    pub page: u64,
}

/// How a touch was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// By a page fault: the first touch, at a known moment, by a known thread.
    Fault,
    /// By the accessed bit of its page table entry: some time in the window.
    Accessed,
}

/// The touch of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Which page.
    pub at: PageId,
    /// Its place among the touches of the window; that of [`Window::next_order`] when it came.
    pub order: u32,
    /// Whether it was written to (of accessed pages: whether the dirty bit was set).
    pub write: bool,
    /// The port whose request the thread was serving. `None` of a fault: no port's (start-up, timers, the accept
    /// loop). `None` of an accessed page: not known, unless the window had one port only.
    pub port: Option<Port>,
    /// How it was seen.
    pub source: Source,
}

/// What kind of window it is, which says what the absence of a touch means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// From a restore on. No lazy page is in memory, so every first touch is a fault.
    Wake,
    /// A slice of a hot period. Most pages are in memory, so only accessed bits say what was not used.
    Hot,
}

/// The time in which a port had something to do, by the order of touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Which port.
    pub port: Port,
    /// [`Window::next_order`] when it began (data was received).
    pub begin: u32,
    /// The same when it ended; `u32::MAX` while it has not.
    pub end: u32,
}

/// What was seen between a restore and its end, or in a slice of a hot period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// What kind of window.
    pub kind: Kind,
    /// The port whose packet woke the app.
    pub trigger: Option<Port>,
    /// Lazy pages that the checkpoint had; 0 where that was not told.
    pub checkpoint_pages: u64,
    /// Requests by their beginning.
    pub requests: Vec<Request>,
    touched: Vec<Observation>,
    /// Where in `touched` each page and port is.
    seen: BTreeMap<(PageId, Option<Port>), usize>,
    prefetched: BTreeSet<PageId>,
    accessed: bool,
    complete: bool,
    next: u32,
}

impl Window {
    /// An empty window.
    pub fn new(kind: Kind, trigger: Option<Port>) -> Self {
        Window {
            kind,
            trigger,
            checkpoint_pages: 0,
            requests: Vec::new(),
            touched: Vec::new(),
            seen: BTreeMap::new(),
            prefetched: BTreeSet::new(),
            accessed: false,
            complete: true,
            next: 0,
        }
    }

    /// The order that the next touch has.
    pub fn next_order(&self) -> u32 {
        self.next
    }

    /// A page was touched. The first touch by each port counts; later ones change nothing but that it is written to.
    pub fn observe(&mut self, at: PageId, write: bool, port: Option<Port>, source: Source) {
        if let Some(known) = self.seen.get(&(at, port)) {
            self.touched[*known].write |= write;
            return;
        }
        if self.touched.len() >= OBSERVATIONS_MAX {
            self.complete = false;
            return;
        }
        self.seen.insert((at, port), self.touched.len());
        self.touched.push(Observation {
            at,
            order: self.next,
            write,
            port,
            source,
        });
        self.next += 1;
    }

    /// A request of `port` began. One of the same port that has not ended goes on.
    pub fn begin(&mut self, port: Port) {
        if !self
            .requests
            .iter()
            .rev()
            .any(|r| r.port == port && r.end == u32::MAX)
            && self.requests.len() < REQUESTS_MAX
        {
            self.requests.push(Request {
                port,
                begin: self.next,
                end: u32::MAX,
            });
        }
    }

    /// The request of `port` that goes on has ended.
    pub fn end(&mut self, port: Port) {
        if let Some(request) = self
            .requests
            .iter_mut()
            .rev()
            .find(|r| r.port == port && r.end == u32::MAX)
        {
            request.end = self.next;
        }
    }

    /// A page was put into memory although nobody had asked for it.
    pub fn prefetched(&mut self, at: PageId) {
        if self.prefetched.len() < OBSERVATIONS_MAX {
            self.prefetched.insert(at);
        }
    }

    /// The accessed bits of the whole window were read and told: a page that is not among the touched was not used.
    pub fn accessed_bits_read(&mut self) {
        self.accessed = true;
    }

    /// Events were lost: that a page is not among the touched means nothing.
    pub fn lost(&mut self) {
        self.complete = false;
    }

    /// The touches, in their order.
    pub fn touched(&self) -> &[Observation] {
        &self.touched
    }

    /// What was put into memory ahead.
    pub fn pages_prefetched(&self) -> &BTreeSet<PageId> {
        &self.prefetched
    }

    /// Whether accessed bits were read.
    pub fn has_accessed_bits(&self) -> bool {
        self.accessed
    }

    /// Whether no event was lost.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether `page`, not among the touched, is known not to have been used.
    pub fn absence_is_known(&self, page: PageId) -> bool {
        let by_bit = self.kind == Kind::Hot || self.prefetched.contains(&page);
        // A lost event is a lost fault: bits are still what they are.
        if by_bit { self.accessed } else { self.complete }
    }

    /// The ports that had requests, with the order at which the last one of each ended.
    pub fn ports(&self) -> BTreeMap<Port, u32> {
        let mut ports = BTreeMap::new();
        for request in &self.requests {
            let end = ports.entry(request.port).or_insert(0);
            *end = request.end.max(*end);
        }
        // An attributed touch is a request, even if its beginning was not seen.
        for touch in &self.touched {
            if let Some(port) = touch.port {
                let end = ports.entry(port).or_insert(0);
                *end = (*end).max(touch.order + 1);
            }
        }
        ports
    }

    /// Pages that requests of `port`, or work of no port, touched: what a wake by `port` needed.
    pub fn needed_by(&self, port: Option<Port>) -> BTreeSet<PageId> {
        let sole = self.ports().len() == 1;
        let counts = |o: &&Observation| match (o.port, o.source) {
            (Some(by), _) => Some(by) == port || sole,
            (None, Source::Fault) => true,
            (None, Source::Accessed) => sole || self.prefetched.contains(&o.at),
        };
        self.touched.iter().filter(counts).map(|o| o.at).collect()
    }
}
