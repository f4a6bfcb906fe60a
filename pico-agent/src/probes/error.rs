//! What can go wrong with the probes, and what to do about it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use super::btf::BtfError;

/// Why probes cannot be loaded, attached or read. The message says what to do; the source says why.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The agent was built on a machine without an eBPF toolchain.
    #[error(
        "this agent was built without its eBPF programs; run `cargo xtask build` and start the agent anew"
    )]
    NotBuilt,
    /// The embedded object and the agent do not come from the same sources.
    #[error("the embedded eBPF object does not fit this agent ({0}); run `cargo xtask build`")]
    Stale(&'static str),
    /// The process may not use eBPF.
    #[error(
        "the kernel refuses eBPF to this process; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN \
         (in a container: check its seccomp profile, too)"
    )]
    NotPermitted(#[source] Box<dyn Error + Send + Sync>),
    /// The object or its maps were refused.
    #[error("the kernel refuses the eBPF maps; Linux 5.10 or later is needed")]
    Object(#[source] Box<EbpfError>),
    /// The verifier, or the kernel's configuration, refuses a program.
    #[error(
        "the kernel refuses the eBPF program {program}; Linux 5.10 or later with CONFIG_CGROUP_BPF is needed"
    )]
    Program {
        /// Which one.
        program: &'static str,
        /// What the kernel said, verifier log included.
        #[source]
        source: Box<ProgramError>,
    },
    /// The apps' cgroup cannot be opened.
    #[error("cannot open the apps' cgroup {path}; it must exist before probes are loaded")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The given directory is no cgroup of the v2 hierarchy.
    #[error(
        "{0} is not in a cgroup v2 hierarchy; mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`)"
    )]
    NotCgroup2(PathBuf),
    /// The programs that watch sockets cannot be attached.
    #[error(
        "cannot attach {program} to cgroup {path}; a program attached to a parent cgroup without \
         BPF_F_ALLOW_MULTI excludes others: find it with `bpftool cgroup tree`"
    )]
    AttachCgroup {
        /// Which program.
        program: &'static str,
        /// The apps' cgroup.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A tracepoint is not there.
    #[error(
        "cannot attach to the tracepoint {tracepoint}, so not all that an app does is traced; \
         an x86-64 kernel with CONFIG_BPF_EVENTS is needed"
    )]
    AttachTracepoint {
        /// Its name.
        tracepoint: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map cannot be read or written.
    #[error("cannot {action} the eBPF map {map}")]
    Map {
        /// Which map.
        map: &'static str,
        /// Read, add to, or remove from.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<MapError>,
    },
    /// Waiting for events is not possible.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
    /// Where the kernel keeps what the programs read is not known.
    #[error("the kernel's structures are not known, so faults have no port and accessed pages are not seen")]
    Types(#[source] BtfError),
    /// The kernel's type information cannot be read.
    #[error("the kernel's type information cannot be read; a kernel with CONFIG_DEBUG_INFO_BTF is needed")]
    TypesUnreadable(#[source] Box<aya::BtfError>),
    /// The iterator cannot be run.
    #[error("cannot run the iterator over page tables")]
    Iterator(#[source] io::Error),
    /// Page tables are not as they are known to be.
    #[error("page tables cannot be read here ({0}); what is learned comes from faults alone")]
    PageTable(&'static str),
    /// The process that was asked about is gone.
    #[error("process {0} has no memory (any more)")]
    NoProcess(u32),
}

impl ProbeError {
    /// `error` as [`ProbeError::NotPermitted`] if the kernel answered EPERM or EACCES anywhere below it,
    /// otherwise what `otherwise` makes of it.
    pub(super) fn unless_permission<E>(error: E, otherwise: impl FnOnce(E) -> Self) -> Self
    where
        E: Error + Send + Sync + 'static,
    {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(error_now) = cause {
            let io_error = error_now.downcast_ref::<io::Error>();
            if io_error.is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied) {
                return ProbeError::NotPermitted(Box::new(error));
            }
            cause = error_now.source();
        }
        otherwise(error)
    }
}
