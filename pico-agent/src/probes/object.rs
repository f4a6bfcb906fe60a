//! The embedded eBPF object: opening it, taking its maps, loading and attaching its programs.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{Map, MapError};
use aya::programs::{CgroupSkb, Program, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use pico_ebpf::OFFSETS;

use super::ProbeError;
use super::btf::{BtfError, Types};

/// The object `build.rs` embeds; empty if the agent was built without one.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pico-ebpf.o"));

/// The object's programs, once its maps are taken. Dropped, everything is detached.
#[derive(Clone)]
pub(super) struct Programs(Arc<Mutex<Ebpf>>);

impl Programs {
    pub(super) fn new(programs: Ebpf) -> Self {
        Programs(Arc::new(Mutex::new(programs)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Ebpf> {
        // The kernel's side is consistent whatever its holder did.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

/// Creates the maps and relocates the programs; loads none of them. Says, too, whether the programs know the
/// kernel's structures.
pub(super) fn open() -> Result<(Ebpf, Result<(), BtfError>), ProbeError> {
    if OBJECT.is_empty() {
        return Err(ProbeError::NotBuilt);
    }
    let offsets = Types::of_kernel().and_then(|types| {
        let offset = |(global, structure, field)| Ok((global, types.offset(structure, field)?));
        OFFSETS
            .into_iter()
            .map(offset)
            .collect::<Result<Vec<(&str, u32)>, BtfError>>()
    });
    let mut loader = EbpfLoader::new();
    for (global, offset) in offsets.iter().flatten() {
        loader.override_global(global, offset, true);
    }
    let programs = loader
        // No program is relocated by it, and it takes some milliseconds to read.
        .btf(None)
        .load(OBJECT)
        .map_err(|error| ProbeError::unless_permission(error, |error| ProbeError::Object(Box::new(error))))?;
    Ok((programs, offsets.map(drop)))
}

pub(super) fn open_cgroup(path: &Path) -> Result<File, ProbeError> {
    let failed = |source| ProbeError::Cgroup {
        path: path.to_owned(),
        source,
    };
    let cgroup = File::open(path).map_err(failed)?;
    let kind = fstatfs(&cgroup).map_err(|errno| failed(errno.into()))?;
    if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(ProbeError::NotCgroup2(path.to_owned()));
    }
    Ok(cgroup)
}

/// Takes a map out of the object, with its layout checked by its type.
pub(super) fn take<M: TryFrom<Map, Error = MapError>>(
    programs: &mut Ebpf,
    name: &'static str,
) -> Result<M, ProbeError> {
    let map = programs
        .take_map(name)
        .ok_or(ProbeError::Stale("a map is missing"))?;
    M::try_from(map).map_err(|error| match error {
        MapError::InvalidKeySize { .. } | MapError::InvalidValueSize { .. } => {
            ProbeError::Stale("a map has another layout")
        }
        source => map_error(name, "open", source),
    })
}

pub(super) fn program<'a, P>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, ProbeError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = programs
        .program_mut(name)
        .ok_or(ProbeError::Stale("a program is missing"))?;
    program
        .try_into()
        .map_err(|_| ProbeError::Stale("a program has another type"))
}

pub(super) fn refused(program: &'static str) -> impl FnOnce(ProgramError) -> ProbeError {
    move |error| {
        ProbeError::unless_permission(error, |error| ProbeError::Program {
            program,
            source: Box::new(error),
        })
    }
}

pub(super) fn load_cgroup_skb<'a>(
    programs: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSkb, ProbeError> {
    let program: &mut CgroupSkb = program(programs, name)?;
    program.load().map_err(refused(name))?;
    Ok(program)
}

/// A program of a tracepoint, loaded once and not attached.
pub(super) fn load_tracepoint<'a>(
    programs: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut RawTracePoint, ProbeError> {
    let program: &mut RawTracePoint = program(programs, name)?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(refused(name)(error)),
    }
}

/// Fails to do something with a map.
pub(super) fn map_error(map: &'static str, action: &'static str, source: MapError) -> ProbeError {
    ProbeError::Map {
        map,
        action,
        source: Box::new(source),
    }
}

/// Whether the kernel said that an entry is not there.
pub(super) fn is_not_there(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}
