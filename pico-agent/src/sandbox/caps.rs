//! Which capabilities an app keeps.
//!
//! Owns the policy and how it is put on the calling process. Must not know what the app is.
//! Each default and its reason stand in kernel-notes/sandbox.md.

use std::collections::BTreeSet;
use std::io;

use caps::{CapSet, Capability, CapsHashSet};

/// What an app may do as root of its sandbox unless its owner says otherwise: what servers need to
/// open their files, take a low port, drop to their own user and end their children.
pub const DEFAULT: [Capability; 10] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
];

/// Why a set of capabilities cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CapsError {
    /// Not the name of a capability.
    #[error("'{0}' is no capability; write it as capabilities(7) does, for example NET_RAW")]
    Unknown(String),
    /// The owner asks for what we cannot give.
    #[error(
        "the app asks for the capability {0}, which the agent itself does not have on this host; leave it out"
    )]
    NotOurs(Capability),
    /// The kernel refused.
    #[error("cannot {action} capabilities: {reason}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

fn kernel(action: &'static str) -> impl Fn(caps::errors::CapsError) -> CapsError {
    move |e| CapsError::Kernel {
        action,
        reason: e.to_string(),
    }
}

/// The capabilities of one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy(BTreeSet<u8>);

impl Policy {
    /// The defaults and what the owner asks besides (`NET_RAW` or `cap_net_raw`).
    pub fn new(asked: &[String]) -> Result<Policy, CapsError> {
        let mut all: BTreeSet<u8> = DEFAULT.iter().map(Capability::index).collect();
        for name in asked {
            all.insert(parse(name)?.index());
        }
        Ok(Policy(all))
    }

    /// Whether the app has `capability`.
    pub fn has(&self, capability: Capability) -> bool {
        self.0.contains(&capability.index())
    }

    /// One bit for each capability, as in the `Cap...` lines of `/proc/PID/status`.
    pub fn mask(&self) -> u64 {
        self.0.iter().fold(0, |mask, index| mask | 1 << index)
    }

    /// Reduces the calling process's bounding set to the policy: no exec can ever bring back more.
    /// A default that we do not have ourselves is left out; one that was asked for is an error.
    pub(super) fn bound(&self) -> Result<(), CapsError> {
        for capability in caps::all() {
            let ours = caps::has_cap(None, CapSet::Permitted, capability).map_err(kernel("read"))?;
            if self.has(capability) && !ours && !DEFAULT.contains(&capability) {
                return Err(CapsError::NotOurs(capability));
            }
        }
        // By number, not by name: a newer kernel may have capabilities that the library cannot name.
        for index in 0..64_u8 {
            // SAFETY: these two prctl operations take a number and touch no memory.
            let (present, dropped) = unsafe {
                let present = libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(index), 0, 0, 0) == 1;
                let drop = present && !self.0.contains(&index);
                (
                    drop,
                    if drop {
                        libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(index), 0, 0, 0)
                    } else {
                        0
                    },
                )
            };
            if present && dropped != 0 {
                let reason = io::Error::last_os_error().to_string();
                return Err(CapsError::Kernel {
                    action: "drop",
                    reason,
                });
            }
        }
        Ok(())
    }

    /// Gives the calling process, if it is root, the policy and nothing else, and any other user
    /// nothing. Nothing is inheritable or ambient: a program of another user has no capability.
    pub(super) fn become_effective(&self, root: bool) -> Result<(), CapsError> {
        let mut set = CapsHashSet::new();
        if root {
            let ours = caps::read(None, CapSet::Permitted).map_err(kernel("read"))?;
            set.extend(ours.into_iter().filter(|c| self.has(*c)));
        }
        caps::clear(None, CapSet::Ambient).map_err(kernel("drop"))?;
        caps::clear(None, CapSet::Inheritable).map_err(kernel("drop"))?;
        // Effective first: it must never exceed permitted.
        caps::set(None, CapSet::Effective, &set).map_err(kernel("set"))?;
        caps::set(None, CapSet::Permitted, &set).map_err(kernel("set"))
    }
}

/// Reads a capability's name, with or without `CAP_`, in upper or lower case.
pub fn parse(name: &str) -> Result<Capability, CapsError> {
    caps::to_canonical(name)
        .parse()
        .map_err(|_| CapsError::Unknown(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_may_ask_for_more_by_name() {
        let default = Policy::new(&[]).unwrap();
        assert_eq!(
            default.mask(),
            0x405fb,
            "see the table in kernel-notes/sandbox.md"
        );
        let more = Policy::new(&["net_raw".to_owned(), "CAP_SYS_PTRACE".to_owned()]).unwrap();
        assert_eq!(more.mask() & !default.mask(), 1 << 13 | 1 << 19);
        for bad in ["", "root", "CAP_", "CAP_CAP_CHOWN", "all"] {
            assert!(
                matches!(Policy::new(&[bad.to_owned()]), Err(CapsError::Unknown(_))),
                "{bad}"
            );
        }
    }
}
