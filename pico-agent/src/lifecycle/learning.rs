//! From what was seen of an app's run to what is known of its pages, and to the pages that its next wake brings ahead;
//! and that knowledge on disk: it survives the agent and the host. What cannot be read is learned anew; the app wakes
//! all the same.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use super::record::write_atomically;
use super::traces::Seen;
use crate::activeset::{ActiveSets, Closed, Costs, FILE_MAX, Learner, PageId};
use crate::checkpoint::index::{AddressSpace, ObjectId, PAGE_SIZE, PageIndex};
use crate::config::Prefetch;
use crate::port::{Port, Proto};
use crate::probes::{EventKind, PresentPage, ProbeError, Probes, TraceEvent, anonymous_pages};

/// What all ports are taken for by [`Prefetch::Global`].
const ANY: Port = Port {
    number: 1,
    proto: Proto::Tcp,
};

/// A wake, or a slice of a hot time, of which something is to be learned.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The port whose packet woke the app; `None`: another reason.
    pub trigger: Option<Port>,
    /// Whether it is a wake.
    pub wake: bool,
    /// What was brought ahead, if anything.
    pub ahead: Vec<PageId>,
}

/// The pages that a wake by `port` should bring, in the order in which they are needed.
pub fn predict(
    how: Prefetch,
    learner: &Learner,
    port: Option<Port>,
    costs: &Costs,
    sees_unused: bool,
    index: impl FnOnce() -> Option<PageIndex>,
) -> Vec<PageId> {
    let by_model = |port| {
        let prediction = learner.predict(port, costs, sees_unused);
        prediction.pages.into_iter().map(|page| page.at).collect()
    };
    match how {
        Prefetch::None => Vec::new(),
        Prefetch::PerPort => by_model(port),
        Prefetch::Global => by_model(Some(ANY)),
        Prefetch::LastWindow => {
            let pages = learner.sets().last_window();
            pages.iter().take(costs.pages_max).copied().collect()
        }
        Prefetch::Full => {
            let index = index().unwrap_or_default();
            let spaces = index.spaces.iter();
            let pages = spaces.flat_map(|(space, pages)| {
                let runs = pages.runs().iter();
                let numbers = runs.flat_map(|run| run.page..run.page + run.count);
                numbers.map(|page| PageId { space: *space, page })
            });
            pages.collect()
        }
    }
}

/// Learns from what was seen. Only pages of the checkpoint that the app woke from count: those alone can be brought
/// ahead. `accessed`: the pages of which it was looked up whether they were used; `None`: that cannot be seen here.
pub fn learn(
    learner: &mut Learner,
    how: Prefetch,
    watched: &Watched,
    seen: &Seen,
    index: &PageIndex,
    accessed: Option<Vec<(PageId, PresentPage)>>,
) -> Option<Closed> {
    let as_one = |port: Port| if how == Prefetch::Global { ANY } else { port };
    let ahead: BTreeSet<PageId> = watched.ahead.iter().copied().collect();
    let known = |at: PageId| {
        index
            .space(at.space)
            .and_then(|space| space.lookup(at.page))
            .is_some()
    };
    if watched.wake {
        let pages = index.spaces.iter().map(|(_, space)| space.pages()).sum();
        learner.wake(watched.trigger.map(as_one), pages);
    } else {
        learner.hot();
    }
    for page in watched.ahead.iter().filter(|page| known(**page)) {
        learner.ahead(*page, PAGE_SIZE);
    }
    for event in &seen.events {
        match event {
            TraceEvent::Fault(fault) => {
                let page = fault.address / PAGE_SIZE;
                let processes = seen.processes.get(&fault.pid).into_iter().flatten();
                let places = processes.map(|space| PageId { space: *space, page });
                // A page that was put there ahead and is not writable yet was no miss.
                let at = places.filter(|at| fault.is_missing() || !ahead.contains(at));
                if let Some(at) = at.into_iter().find(|at| known(*at)) {
                    let port = port_of(fault.port, fault.proto).map(as_one);
                    learner.fault(at, fault.is_write(), port);
                }
            }
            TraceEvent::Socket(event) => {
                let Some(port) = port_of(event.port, event.proto).map(as_one) else {
                    continue;
                };
                match EventKind::from_number(event.kind) {
                    Some(EventKind::Received) => learner.received(port),
                    Some(EventKind::Sent) => learner.sent(port),
                    _ => {}
                }
            }
        }
    }
    if seen.lost {
        learner.lost();
    }
    let used = accessed.map(|pages| {
        let used = pages.into_iter().filter(|(_, page)| page.accessed);
        used.map(|(at, page)| (at, page.written)).collect::<Vec<_>>()
    });
    learner.close(used)
}

fn port_of(number: u16, proto: u8) -> Option<Port> {
    let proto = [Proto::Tcp, Proto::Udp]
        .into_iter()
        .find(|known| known.number() == proto)?;
    (number != 0).then_some(Port { number, proto })
}

/// Where pages lie: parts of page objects, in pages, each part once. Parts that are less than `gap` pages apart are one.
pub fn places(index: &PageIndex, pages: &[PageId], gap: u64) -> Vec<(ObjectId, Range<u64>)> {
    let spaces: HashMap<u32, &AddressSpace> = index.spaces.iter().map(|(id, space)| (*id, space)).collect();
    let mut places: Vec<(ObjectId, u64)> = pages
        .iter()
        .filter_map(|at| {
            let (object, offset) = spaces.get(&at.space)?.lookup(at.page)?;
            Some((index.objects.get(object as usize)?.id, offset))
        })
        .collect();
    places.sort_unstable();
    let parts = places.chunk_by(|(a, x), (b, y)| a == b && y - x <= gap);
    let ranges = parts.filter_map(|part| Some((part.first()?.0, part.first()?.1..part.last()?.1 + 1)));
    ranges.collect()
}

/// Looks up which of `pages` were used, in the processes `running`, each with the number that its checkpoint has for it.
///
/// # Errors
/// When that cannot be seen here.
pub fn look_up(
    probes: &Probes,
    running: &[(u32, u32)],
    pages: &[PageId],
) -> Result<Vec<(PageId, PresentPage)>, ProbeError> {
    let mut found = Vec::new();
    for (pid, space) in running {
        let mut numbers: Vec<u64> = pages
            .iter()
            .filter(|page| page.space == *space)
            .map(|page| page.page)
            .collect();
        numbers.sort_unstable();
        let ranges: Vec<Range<u64>> = numbers
            .chunk_by(|a, b| a + 1 >= *b)
            .filter_map(|run| Some(*run.first()?..run.last()? + 1))
            .collect();
        if ranges.is_empty() {
            continue;
        }
        let present = present_pages(probes, *pid, &ranges)?;
        found.extend(present.into_iter().map(|page| {
            let at = PageId {
                space: *space,
                page: page.page,
            };
            (at, page)
        }));
    }
    Ok(found)
}

/// The same for all private memory that is there. Where there is no checkpoint yet, all of it may come into the next one;
/// else only what the checkpoint has counts.
///
/// # Errors
/// When that cannot be seen here.
pub fn look_up_all(
    probes: &Probes,
    running: &[(u32, u32)],
    index: &PageIndex,
) -> Result<Vec<(PageId, PresentPage)>, ProbeError> {
    let mut found = Vec::new();
    for (pid, space) in running {
        // A process that is gone meanwhile has nothing to tell.
        let Ok(mut ranges) = anonymous_pages(*pid) else {
            continue;
        };
        if !index.spaces.is_empty() {
            let runs = index.space(*space).map(AddressSpace::runs).unwrap_or_default();
            ranges = runs.iter().map(|run| run.page..run.page + run.count).collect();
        }
        let present = present_pages(probes, *pid, &ranges)?;
        found.extend(present.into_iter().map(|page| {
            let at = PageId {
                space: *space,
                page: page.page,
            };
            (at, page)
        }));
    }
    Ok(found)
}

/// The pages of a process that are there; none of one that has ended.
fn present_pages(probes: &Probes, pid: u32, ranges: &[Range<u64>]) -> Result<Vec<PresentPage>, ProbeError> {
    match probes.present_pages(pid, ranges) {
        Err(_) if anonymous_pages(pid).map_or(true, |left| left.is_empty()) => Ok(Vec::new()),
        present => present,
    }
}

/// The learner of the life `lineage` of an app, and what the owner should know when the file was there and of no use.
pub fn load(path: &Path, lineage: u64) -> (Learner, Option<String>) {
    let (sets, message) = match read(path) {
        Ok(bytes) => match ActiveSets::decode_for(&bytes, lineage) {
            Ok(sets) => (Some(sets), None),
            Err(error) => (None, Some(format!("{}: {error}", path.display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
        Err(error) => (
            None,
            Some(format!("cannot read the ActiveSets {} ({error})", path.display())),
        ),
    };
    let sets = sets.unwrap_or_else(|| ActiveSets::new(lineage));
    (Learner::new(sets), message)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than the largest, so that a larger file is seen to be one.
    File::open(path)?
        .take(FILE_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps what was learned.
///
/// # Errors
/// What the file system says; the old file is then still there.
pub fn save(path: &Path, learner: &Learner) -> io::Result<()> {
    write_atomically(path, &learner.sets().encode())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::activeset::PageId;

    fn learner() -> Learner {
        let mut learner = Learner::new(ActiveSets::new(7));
        learner.wake(Some("80/tcp".parse().unwrap()), 10);
        learner.fault(PageId { space: 1, page: 5 }, true, None);
        learner.close(None::<[_; 0]>).unwrap();
        learner
    }

    #[test]
    fn what_is_saved_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("activesets");
        assert_eq!(load(&path, 7).1, None, "there is none yet");
        save(&path, &learner()).unwrap();
        let (loaded, message) = load(&path, 7);
        assert_eq!(message, None);
        assert_eq!(loaded.sets(), learner().sets());
    }

    #[test]
    fn damaged_foreign_and_unreadable_files_are_told_and_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("activesets");
        save(&path, &learner()).unwrap();
        let (other, message) = load(&path, 8);
        assert!(message.unwrap().contains("another start of the app (7, it is 8)"));
        assert_eq!(other.sets(), &ActiveSets::new(8));

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (damaged, message) = load(&path, 7);
        assert!(
            message
                .unwrap()
                .contains("checksum differs; they are learned anew")
        );
        assert_eq!(damaged.sets(), &ActiveSets::new(7));

        let (_, message) = load(dir.path(), 7);
        assert!(
            message.unwrap().starts_with("cannot read the ActiveSets"),
            "a directory"
        );
    }
}
