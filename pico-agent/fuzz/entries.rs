//! Where bytes that nobody vouches for are read. The fuzz targets and the property tests of the normal run call these
//! alike; each panics when something that was accepted does not hold together.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each target uses one of them, and a panic is what a fuzzer looks for"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use pico_agent::checkpoint::archive::{self, Budget};
use pico_agent::checkpoint::bundle;
use pico_agent::checkpoint::hash::Hash;
use pico_agent::checkpoint::index::PageIndex;
use pico_agent::checkpoint::manifest::{Limits, Manifest};
use pico_agent::criu::images::{self, Image};
use pico_agent::criu::sockets;
use pico_agent::criu::timers;

/// A manifest as it is, and with its checksum made right: no fuzzer guesses one.
pub fn manifest(bytes: &[u8]) {
    read_manifest(bytes);
    if let Some(mended) = mend_manifest(bytes) {
        read_manifest(&mended);
    }
}

/// The document with its checksum made right, if it is one at all.
pub fn mend_manifest(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut document: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    document.as_object()?;
    document["blake3"] = "0".repeat(64).into();
    document["blake3"] = Hash::of(&serde_json::to_vec(&document).ok()?).to_string().into();
    serde_json::to_vec(&document).ok()
}

fn read_manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes, &Limits::default()) else {
        return;
    };
    let written = manifest.encode().unwrap();
    let again = Manifest::decode(&written, &Limits::default()).unwrap();
    // Fields that it does not know are gone, so the checksum is another.
    let blake3 = manifest.blake3;
    assert_eq!(Manifest { blake3, ..again }, manifest);
}

/// A page index.
pub fn index(bytes: &[u8]) {
    let Ok(mut index) = PageIndex::decode(bytes) else {
        return;
    };
    assert_eq!(index.encode(), bytes);
    for (_, space) in &index.spaces {
        for run in space.runs() {
            let pages = index.objects[run.object as usize].pages;
            assert!(run.count > 0 && run.offset + run.count <= pages);
            assert_eq!(space.lookup(run.page), Some((run.object, run.offset)));
        }
    }
    let listed: Vec<u64> = index.spaces.iter().map(|(_, space)| space.pages()).collect();
    index.compact();
    let kept: Vec<u64> = index.spaces.iter().map(|(_, space)| space.pages()).collect();
    assert_eq!(listed, kept);
}

/// A bundle as it is, and with its table's checksum made right.
pub fn bundle(bytes: &[u8]) {
    unpack_bundle(bytes);
    const TABLE_LEN: std::ops::Range<usize> = 16..20;
    const TABLE: usize = 52;
    let Some(len) = bytes.get(TABLE_LEN) else { return };
    let len = u32::from_le_bytes(len.try_into().unwrap()) as usize;
    if let Some(table) = bytes.get(TABLE..TABLE.saturating_add(len)) {
        let mut mended = bytes.to_vec();
        mended[TABLE_LEN.end..TABLE].copy_from_slice(&Hash::of(table).0);
        unpack_bundle(&mended);
    }
}

fn unpack_bundle(bytes: &[u8]) {
    inside(|dir| {
        if bundle::unpack(bytes, dir).is_ok() {
            let mut packed = Vec::new();
            bundle::pack(dir, &mut packed).unwrap();
            assert!(bytes.starts_with(&packed));
        }
    });
}

/// A writable layer.
pub fn archive(bytes: &[u8]) {
    let budget = Budget {
        bytes: 1 << 20,
        entries: 1000,
    };
    inside(|dir| drop(archive::unpack(bytes, dir, &budget)));
}

/// Gives `unpack` a directory, and sees that it makes nothing beside it.
fn inside(unpack: impl FnOnce(&Path)) {
    let around = tempfile::tempdir().unwrap();
    let dir = around.path().join("dir");
    fs::create_dir(&dir).unwrap();
    unpack(&dir);
    assert_eq!(fs::read_dir(around.path()).unwrap().count(), 1);
}

/// Any of CRIU's files, read as each of those that are read.
pub fn criu(bytes: &[u8]) {
    if let Ok(image) = Image::parse(bytes) {
        assert_eq!(image.with_entries(&image.entries).unwrap(), bytes);
    }
    let anonymous = images::anonymous(bytes);
    let on_demand = anonymous.map(|found| found.on_demand()).unwrap_or_default();
    let everything = std::iter::once(0..u64::MAX >> 12).collect();
    for on_demand in [everything, on_demand] {
        let Ok(map) = images::split_pagemap(bytes, &on_demand) else {
            continue;
        };
        let lazy = map.lazy.iter().map(|(pages, _)| pages.end - pages.start);
        let eager = map.eager.iter().map(|pages| pages.end - pages.start);
        assert_eq!(lazy.chain(eager).sum::<u64>(), map.total);
        Image::parse(&map.eager_image).unwrap();
    }
    let _ = images::process_ids(bytes);
    for name in images::regular_files(bytes).unwrap_or_default() {
        assert!(name.starts_with('/'));
    }
    let _ = (
        images::pipe_inodes(bytes),
        sockets::inet_sockets(bytes),
        sockets::stream(bytes),
    );
    let mut armed = timers::Timers::default();
    let _ = (armed.add_task(bytes), armed.add_timerfds(bytes));
    assert!(armed.long <= armed.armed && armed.next.is_some() == (armed.armed > 0));
    let slept = Duration::from_secs(1);
    for advance in [
        timers::advance_time_namespace,
        timers::advance_task_timers,
        timers::advance_timerfds,
    ] {
        if let Ok(changed) = advance(bytes, slept) {
            let (before, after) = (Image::parse(bytes).unwrap(), Image::parse(&changed).unwrap());
            assert_eq!(before.entries.len(), after.entries.len());
        }
    }
}
