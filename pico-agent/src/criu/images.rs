//! CRIU's image files, as far as a swap must read or change them.
//!
//! An image is two 32-bit magic numbers, then entries: a 32-bit length and a protocol buffer message
//! (<https://criu.org/Images>). Files ending in `pages-N.img` are raw pages in the order of the pagemap that
//! names N. Field numbers are those of CRIU's `images/*.proto`. Whatever is read here is checked: a checkpoint
//! from the object store is not trusted to be what CRIU wrote.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use super::wire::{self, Value, WireError};
use crate::checkpoint::index::PAGE_SIZE;

/// First word of every image (CRIU's `IMG_COMMON_MAGIC`).
const COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of what CRIU writes beside images (`IMG_SERVICE_MAGIC`).
const SERVICE_MAGIC: u32 = 0x5510_5940;

/// `PE_LAZY` of a pagemap entry: the page may be restored on demand.
const PAGE_LAZY: u64 = 1 << 1;
/// `PE_PRESENT`: its bytes are in the pages file.
const PAGE_PRESENT: u64 = 1 << 2;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    /// Not an image, or cut short.
    #[error("not a CRIU image file")]
    NotAnImage,
    /// An entry is no message.
    #[error("a CRIU image entry is damaged: {0}")]
    Wire(#[from] WireError),
    /// A value that CRIU does not write.
    #[error("a CRIU image holds an impossible value: {0}")]
    Invalid(&'static str),
}

/// An image split into its magic numbers and entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image<'a> {
    magic: [u8; 8],
    /// The messages, in file order.
    pub entries: Vec<&'a [u8]>,
}

impl<'a> Image<'a> {
    /// Splits the bytes of an image file.
    ///
    /// # Errors
    /// When the magic number or a length is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        Self::parse_as(bytes, COMMON_MAGIC)
    }

    /// The same for a file that CRIU writes beside images, as its statistics.
    ///
    /// # Errors
    /// As [`Image::parse`].
    pub fn parse_service(bytes: &'a [u8]) -> Result<Self, ImageError> {
        Self::parse_as(bytes, SERVICE_MAGIC)
    }

    fn parse_as(bytes: &'a [u8], first_word: u32) -> Result<Self, ImageError> {
        let (magic, mut rest) = bytes.split_first_chunk::<8>().ok_or(ImageError::NotAnImage)?;
        if magic[..4] != first_word.to_le_bytes() {
            return Err(ImageError::NotAnImage);
        }
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (len, after) = rest.split_first_chunk::<4>().ok_or(ImageError::NotAnImage)?;
            let len = u32::from_le_bytes(*len) as usize;
            let (entry, after) = after.split_at_checked(len).ok_or(ImageError::NotAnImage)?;
            entries.push(entry);
            rest = after;
        }
        Ok(Image {
            magic: *magic,
            entries,
        })
    }

    /// The first message alone, of an image that goes on with something else.
    ///
    /// # Errors
    /// When the magic number or the length is wrong.
    pub fn first_entry(bytes: &'a [u8]) -> Result<&'a [u8], ImageError> {
        let rest = bytes.get(8..).ok_or(ImageError::NotAnImage)?;
        let (len, _) = rest.split_first_chunk::<4>().ok_or(ImageError::NotAnImage)?;
        let end = (u32::from_le_bytes(*len) as usize).saturating_add(12);
        let image = Image::parse(bytes.get(..end).ok_or(ImageError::NotAnImage)?)?;
        image.entries.first().copied().ok_or(ImageError::NotAnImage)
    }

    /// An image file with the same magic numbers and other entries.
    ///
    /// # Errors
    /// When an entry is longer than 4 GiB.
    pub fn with_entries<T: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = T>,
    ) -> Result<Vec<u8>, ImageError> {
        let mut out = self.magic.to_vec();
        for entry in entries {
            let entry = entry.as_ref();
            let len = u32::try_from(entry.len()).map_err(|_| ImageError::Invalid("entry length"))?;
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(entry);
        }
        Ok(out)
    }
}

/// The processes of a dump (`pstree.img`), as their ids inside the app's pid namespace.
///
/// # Errors
/// When the image is damaged.
pub fn process_ids(pstree: &[u8]) -> Result<Vec<u32>, ImageError> {
    let id = |entry: &&[u8]| -> Result<u32, ImageError> {
        u32::try_from(wire::get_number(entry, 1)?).map_err(|_| ImageError::Invalid("process id"))
    };
    Image::parse(pstree)?.entries.iter().map(id).collect()
}

/// Pages that CRIU dumped for one process, split by how they are restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    /// N of the `pages-N.img` that holds them.
    pub pages_id: u32,
    /// Pages restored on demand: page numbers, and the page offset of the first in the file.
    pub lazy: Vec<(Range<u64>, u64)>,
    /// Page offsets in the file of what must be there before the process runs, in order.
    pub eager: Vec<Range<u64>>,
    /// Pages in the file.
    pub total: u64,
    /// The pagemap image that lists the eager pages alone.
    pub eager_image: Vec<u8>,
}

/// Splits a pagemap image (`pagemap-PID.img`): pages in `on_demand` (sorted, disjoint; [`Anonymous::on_demand`]) are
/// lazy, all others eager. CRIU's own flag of a lazy page is not asked: a thread whose stack pointer is at the start of
/// a page makes it call every page of the process eager (`is_stack` in its `mem.c` compares offsets within a page).
///
/// # Errors
/// When the image is damaged, or refers to a parent image, which this agent's dumps never have.
pub fn split_pagemap(bytes: &[u8], on_demand: &[Range<u64>]) -> Result<Pagemap, ImageError> {
    let image = Image::parse(bytes)?;
    let (head, entries) = image.entries.split_first().ok_or(ImageError::NotAnImage)?;
    let pages_id = u32::try_from(wire::get_number(head, 1)?).map_err(|_| ImageError::Invalid("pages id"))?;
    let mut map = Pagemap {
        pages_id,
        lazy: Vec::new(),
        eager: Vec::new(),
        total: 0,
        eager_image: Vec::new(),
    };
    let mut kept: Vec<Cow<'_, [u8]>> = vec![Cow::Borrowed(head)];
    for entry in entries {
        let address = wire::get_number(entry, 1)?;
        let count = match wire::get_number(entry, 5)? {
            0 => wire::get_number(entry, 2)?,
            count => count,
        };
        let flags = wire::get_number(entry, 4)?;
        if address % PAGE_SIZE != 0 || count == 0 || count > 1 << 40 {
            return Err(ImageError::Invalid("pagemap entry"));
        }
        if flags & PAGE_PRESENT == 0 {
            return Err(ImageError::Invalid("pagemap entry without its pages"));
        }
        let offset = map.total;
        map.total = offset
            .checked_add(count)
            .ok_or(ImageError::Invalid("pagemap length"))?;
        let page = address / PAGE_SIZE;
        for (pages, lazy) in parts(page..page + count, on_demand) {
            let offset = offset + (pages.start - page);
            if lazy {
                map.lazy.push((pages, offset));
                continue;
            }
            let count = pages.end - pages.start;
            map.eager.push(offset..offset + count);
            let (address, flags) = (pages.start * PAGE_SIZE, flags & !PAGE_LAZY);
            let part = [(1, address), (2, count), (4, flags), (5, count)];
            kept.push(Cow::Owned(wire::set_numbers(entry, &part)?));
        }
    }
    map.eager_image = image.with_entries(kept)?;
    Ok(map)
}

/// The parts of `pages` inside and outside of the sorted, disjoint `ranges`, in order; true: inside.
fn parts(pages: Range<u64>, ranges: &[Range<u64>]) -> Vec<(Range<u64>, bool)> {
    let mut parts = Vec::new();
    let mut at = pages.start;
    let first = ranges.partition_point(|range| range.end <= pages.start);
    for range in ranges[first..].iter().take_while(|range| range.start < pages.end) {
        let (start, end) = (range.start.clamp(at, pages.end), range.end.clamp(at, pages.end));
        parts.extend([(at..start, false), (start..end, true)]);
        at = end;
    }
    parts.push((at..pages.end, false));
    parts.retain(|(part, _)| !part.is_empty());
    parts
}

/// The private anonymous mappings of a process, in page ranges, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Anonymous {
    /// Where lazy pages can be: not in locked memory, huge pages, or what the kernel maps (CRIU's
    /// `vma_entry_can_be_lazy`, by which it registers them with userfaultfd).
    pub lazy: Vec<Range<u64>>,
    /// Those that are locked: CRIU restores them at once.
    pub locked: Vec<Range<u64>>,
    /// Those of the lazy ones that a forked child finds empty (MADV_WIPEONFORK). Their pages must be there before the process
    /// runs: the fault of a child on one of them cannot be told from that of its parent, and is to read zeros.
    pub wiped_on_fork: Vec<Range<u64>>,
}

impl Anonymous {
    /// Where pages are to be restored on demand, sorted.
    pub fn on_demand(&self) -> Vec<Range<u64>> {
        let wiped = |range: &&Range<u64>| self.wiped_on_fork.contains(range);
        self.lazy.iter().filter(|range| !wiped(range)).cloned().collect()
    }
}

/// Reads the private anonymous mappings of a process from `mm-PID.img`.
///
/// # Errors
/// When the image is damaged.
pub fn anonymous(mm: &[u8]) -> Result<Anonymous, ImageError> {
    const MAP_PRIVATE: u64 = 0x02;
    const MAP_ANONYMOUS: u64 = 0x20;
    const MAP_LOCKED: u64 = 0x2000;
    const MAP_HUGETLB: u64 = 0x40000;
    /// `VMA_AREA_VSYSCALL`, `VMA_AREA_VDSO` and `VMA_AREA_VVAR` of CRIU's `image.h`.
    const KERNEL_MADE: u64 = (1 << 2) | (1 << 3) | (1 << 12);
    /// CRIU keeps the advice N of a mapping as bit N.
    const WIPE_ON_FORK: u64 = 1 << libc::MADV_WIPEONFORK;
    let image = Image::parse(mm)?;
    let entry = image.entries.first().ok_or(ImageError::NotAnImage)?;
    let mut found = Anonymous::default();
    for field in wire::fields(entry) {
        let (14, Value::Bytes(vma)) = field? else { continue };
        let (start, end) = (wire::get_number(vma, 1)?, wire::get_number(vma, 2)?);
        let flags = wire::get_number(vma, 6)?;
        if start >= end || start % PAGE_SIZE != 0 || end % PAGE_SIZE != 0 {
            return Err(ImageError::Invalid("mapping"));
        }
        if flags & (MAP_PRIVATE | MAP_ANONYMOUS) == MAP_PRIVATE | MAP_ANONYMOUS {
            let pages = start / PAGE_SIZE..end / PAGE_SIZE;
            if flags & MAP_LOCKED != 0 {
                found.locked.push(pages);
                continue;
            }
            if flags & MAP_HUGETLB != 0 || wire::get_number(vma, 7)? & KERNEL_MADE != 0 {
                continue;
            }
            if wire::get_number(vma, 9)? & WIPE_ON_FORK != 0 {
                found.wiped_on_fork.push(pages.clone());
            }
            found.lazy.push(pages);
        }
    }
    for ranges in [&mut found.lazy, &mut found.locked, &mut found.wiped_on_fork] {
        ranges.sort_by_key(|range| range.start);
    }
    Ok(found)
}

/// Paths of the regular files that the app has open or mapped (`files.img`), inside its root, once each.
///
/// # Errors
/// When the image is damaged.
pub fn regular_files(files: &[u8]) -> Result<Vec<String>, ImageError> {
    const REGULAR: u64 = 1;
    let mut names = BTreeMap::new();
    for entry in &Image::parse(files)?.entries {
        if wire::get_number(entry, 1)? != REGULAR {
            continue;
        }
        let Some(Value::Bytes(reg)) = wire::get(entry, 3)? else {
            continue;
        };
        let Some(Value::Bytes(name)) = wire::get(reg, 6)? else {
            continue;
        };
        let name = std::str::from_utf8(name).map_err(|_| ImageError::Invalid("file name"))?;
        names.insert(format!("/{}", name.trim_start_matches('/')), ());
    }
    Ok(names.into_keys().collect())
}

/// Inode numbers of the pipes among the app's open files (`files.img`): CRIU names an inherited pipe by them.
///
/// # Errors
/// When the image is damaged.
pub fn pipe_inodes(files: &[u8]) -> Result<Vec<u64>, ImageError> {
    let mut inodes = Vec::new();
    for entry in &Image::parse(files)?.entries {
        if let Some(Value::Bytes(pipe)) = wire::get(entry, 17)? {
            inodes.push(wire::get_number(pipe, 2)?);
        }
    }
    Ok(inodes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::criu) fn image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut magic = [0; 8];
        magic[..4].copy_from_slice(&COMMON_MAGIC.to_le_bytes());
        Image {
            magic,
            entries: Vec::new(),
        }
        .with_entries(entries)
        .expect("short entries")
    }

    pub(in crate::criu) fn message(fields: &[(u32, u64)]) -> Vec<u8> {
        wire::set_numbers(&[], fields).expect("empty message")
    }

    pub(in crate::criu) fn nested(number: u32, inner: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        wire::put(&mut out, number, Value::Bytes(inner));
        out
    }

    #[test]
    fn a_pagemap_is_split_into_lazy_and_eager_pages_whatever_criu_flags() {
        let bytes = image(&[
            message(&[(1, 3)]),
            message(&[(1, 0x10000), (2, 2), (4, 4), (5, 2)]),
            message(&[(1, 0x20000), (2, 1), (4, 6), (5, 1)]),
            message(&[(1, 0x30000), (2, 5), (4, 6)]),
        ]);
        let map = split_pagemap(&bytes, &[0x10..0x20, 0x21..0x35, 0x40..0x50]).expect("a pagemap");
        assert_eq!(map.pages_id, 3);
        assert_eq!(map.lazy, [(0x10..0x12, 0), (0x30..0x35, 3)]);
        assert_eq!(map.eager, vec![2..3]);
        assert_eq!(map.total, 8);
        assert_eq!(
            map.eager_image,
            image(&[
                message(&[(1, 3)]),
                message(&[(1, 0x20000), (2, 1), (4, 4), (5, 1)])
            ])
        );
    }

    #[test]
    fn pages_that_a_child_must_not_see_are_restored_eagerly() {
        const WIPED: u64 = 1 << libc::MADV_WIPEONFORK;
        let vma = |start, end, flags, madv| {
            let fields = [(1, start), (2, end), (6, flags), (9, madv)];
            nested(14, &message(&fields))
        };
        let mm = [
            vma(0x20000, 0x24000, 0x22, 0),
            vma(0x10000, 0x11000, 0x22, 0),
            vma(0x13000, 0x15000, 0x22, 0),
            vma(0x11000, 0x13000, 0x22, WIPED),
            vma(0x30000, 0x31000, 0x2022, 0),
            vma(0x40000, 0x41000, 0x21, 0),
        ];
        let found = anonymous(&image(&[mm.concat()])).expect("an image");
        assert_eq!(found.lazy, [0x10..0x11, 0x11..0x13, 0x13..0x15, 0x20..0x24]);
        assert_eq!(found.locked, vec![0x30..0x31]);
        assert_eq!(found.wiped_on_fork, vec![0x11..0x13]);
        let bytes = image(&[
            message(&[(1, 3)]),
            message(&[(1, 0x10000), (2, 5), (4, 6), (5, 5)]),
        ]);
        let map = split_pagemap(&bytes, &found.on_demand()).expect("a pagemap");
        assert_eq!(map.lazy, [(0x10..0x11, 0), (0x13..0x15, 3)]);
        assert_eq!(map.eager, vec![1..3]);
        let part = message(&[(1, 0x11000), (2, 2), (4, 4), (5, 2)]);
        assert_eq!(map.eager_image, image(&[message(&[(1, 3)]), part]));
    }

    #[test]
    fn locked_huge_and_kernel_made_mappings_are_never_lazy() {
        let vma = |start, flags, status| {
            let fields = [(1, start), (2, start + 0x1000), (6, flags), (7, status)];
            nested(14, &message(&fields))
        };
        let mm = [
            vma(0x10000, 0x22, 1 << 9),
            vma(0x20000, 0x2022, 1 << 9),
            vma(0x30000, 0x40022, 1 << 9),
            vma(0x40000, 0x22, (1 << 3) | (1 << 9)),
            vma(0x50000, 0x22, (1 << 12) | (1 << 9)),
        ];
        let found = anonymous(&image(&[mm.concat()])).expect("an image");
        assert_eq!(found.on_demand(), vec![0x10..0x11]);
    }

    #[test]
    fn a_pagemap_that_leans_on_a_parent_is_refused() {
        let bytes = image(&[message(&[(1, 3)]), message(&[(1, 0x10000), (2, 2), (4, 1)])]);
        assert!(split_pagemap(&bytes, &[]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_images_or_errors(mut bytes: Vec<u8>, magic: bool) {
            if magic {
                bytes.splice(0..0, [COMMON_MAGIC.to_le_bytes(), [0; 4]].concat());
            }
            let _ = (split_pagemap(&bytes, &[]), process_ids(&bytes), anonymous(&bytes), regular_files(&bytes));
            let _ = pipe_inodes(&bytes);
        }
    }
}
