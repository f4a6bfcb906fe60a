//! Requests and answers of `criu swrk`: one protocol buffer message a packet on a SOCK_SEQPACKET socket.
//!
//! Field numbers are those of CRIU's `images/rpc.proto`. Only what a swap needs is spoken.

use std::os::fd::RawFd;

use super::wire::{self, Value, WireError};

const DUMP: u64 = 1;
const RESTORE: u64 = 2;
const NOTIFY: u64 = 6;
/// `criu_network_lock_method`: the gate is the lock.
const NETWORK_LOCK_SKIP: u64 = 3;
/// `criu_cg_mode`: cgroups are ours to place.
const CGROUPS_IGNORE: u64 = 0;
/// Deleted but open files up to this size travel in the checkpoint, in bytes.
const GHOST_LIMIT: u64 = 64 << 20;

/// Warnings and errors: the reason of a failure. The app stands still while more is written, a system call a line.
const LOG_LEVEL: u64 = 2;

/// What both directions need.
#[derive(Debug, Clone)]
pub struct Common<'a> {
    /// Directory of the images, open in the process that made the socket.
    pub images: RawFd,
    /// Directory where CRIU works and logs, likewise.
    pub work: RawFd,
    /// Name of the log file in the working directory.
    pub log: &'a str,
}

fn options(common: &Common<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, 1, fd(common.images));
    number(&mut out, 17, fd(common.work));
    number(&mut out, 9, LOG_LEVEL);
    text(&mut out, 10, common.log);
    for flag in [
        5,  // tcp_established
        8,  // file_locks
        12, // notify_scripts
        18, // link_remap: names for open files that were unlinked
        28, // auto_ext_mnt
        29, // ext_sharing
        30, // ext_masters
        50, // orphan_pts_master
    ] {
        number(&mut out, flag, 1);
    }
    number(&mut out, 34, CGROUPS_IGNORE);
    number(&mut out, 35, GHOST_LIMIT);
    number(&mut out, 64, NETWORK_LOCK_SKIP);
    out
}

/// A request to dump the process tree of `pid` (a host process id).
pub fn dump(common: &Common<'_>, pid: i32, root: &str) -> Vec<u8> {
    let mut opts = options(common);
    number(&mut opts, 2, fd(pid));
    text(&mut opts, 13, root);
    request(DUMP, &opts)
}

/// A request to restore with lazy pages below `root`, as a child of CRIU's parent.
///
/// `inherit` maps CRIU's name of a resource (`pipe:[INODE]`) to the descriptor that stands in for it, by its
/// number in CRIU itself.
pub fn restore(common: &Common<'_>, root: &str, inherit: &[(String, RawFd)]) -> Vec<u8> {
    let mut opts = options(common);
    text(&mut opts, 13, root);
    number(&mut opts, 26, 1); // rst_sibling
    number(&mut opts, 48, 1); // lazy_pages
    for (key, file) in inherit {
        let mut entry = Vec::new();
        text(&mut entry, 1, key);
        number(&mut entry, 2, fd(*file));
        wire::put(&mut opts, 27, Value::Bytes(&entry));
    }
    request(RESTORE, &opts)
}

/// The answer to a notification: go on, or give up.
pub fn notified(go_on: bool) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, 1, NOTIFY);
    number(&mut out, 3, u64::from(go_on));
    out
}

/// What CRIU says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// It has come to a step (`post-dump`, `pre-resume`...) and waits for [`notified`].
    Notify {
        /// Name of the step.
        script: String,
    },
    /// The request is done; after a restore with the root process.
    Done {
        /// Host process id of the restored root process.
        pid: Option<i32>,
    },
    /// The request failed.
    Failed {
        /// CRIU's own words, if it has any.
        message: String,
    },
}

/// Reads one answer.
///
/// # Errors
/// When the bytes are no message.
pub fn response(bytes: &[u8]) -> Result<Response, WireError> {
    let sub = |number| Ok(wire::get(bytes, number)?.and_then(Value::bytes));
    if wire::get_number(bytes, 1)? == NOTIFY {
        let script = sub(5)?
            .map(|notify| string(notify, 1))
            .transpose()?
            .unwrap_or_default();
        return Ok(Response::Notify { script });
    }
    if wire::get_number(bytes, 2)? == 0 {
        let errno = wire::get_number(bytes, 7)?;
        let mut message = string(bytes, 9)?;
        if message.is_empty() && errno != 0 {
            message = format!("error {errno}");
        }
        return Ok(Response::Failed { message });
    }
    let pid = sub(4)?.map(|restore| wire::get_number(restore, 1)).transpose()?;
    Ok(Response::Done {
        pid: pid.and_then(|pid| i32::try_from(pid).ok()),
    })
}

fn request(kind: u64, opts: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, 1, kind);
    wire::put(&mut out, 2, Value::Bytes(opts));
    out
}

fn string(message: &[u8], number: u32) -> Result<String, WireError> {
    let bytes = wire::get(message, number)?
        .and_then(Value::bytes)
        .unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    wire::put(out, field, Value::Varint(value));
}

fn text(out: &mut Vec<u8>, field: u32, value: &str) {
    wire::put(out, field, Value::Bytes(value.as_bytes()));
}

/// An int32 as proto2 puts it: sign-extended to 64 bits.
fn fd(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let mut notify = vec![];
        number(&mut notify, 1, NOTIFY);
        number(&mut notify, 2, 1);
        let mut script = vec![];
        text(&mut script, 1, "post-dump");
        wire::put(&mut notify, 5, Value::Bytes(&script));
        assert_eq!(
            response(&notify),
            Ok(Response::Notify {
                script: "post-dump".into()
            })
        );

        let mut done = vec![];
        number(&mut done, 1, RESTORE);
        number(&mut done, 2, 1);
        let mut pid = vec![];
        number(&mut pid, 1, 4711);
        wire::put(&mut done, 4, Value::Bytes(&pid));
        assert_eq!(response(&done), Ok(Response::Done { pid: Some(4711) }));

        let mut failed = vec![];
        number(&mut failed, 1, RESTORE);
        number(&mut failed, 2, 0);
        text(&mut failed, 9, "no");
        assert_eq!(response(&failed), Ok(Response::Failed { message: "no".into() }));
    }
}
