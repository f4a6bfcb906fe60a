//! The host's forwarding switches. They are everybody's, so what they were before is written to a file, with the
//! names of the gates that need them; the last gate to be removed puts the old values back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use crate::sysctl::{SysctlError, at, has_ipv6, read, write};

/// Settings by their path below `/proc/sys/net`.
type Settings = BTreeMap<String, String>;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// After a reboot old values mean nothing.
    boot_id: String,
    /// TUN names of the gates that need the switches.
    users: BTreeSet<String>,
    /// What was there before the first of them.
    before: Settings,
    /// What they made of it. Where something else stands now, somebody else has set it since.
    ours: Settings,
}

/// Turns forwarding on for the gate whose TUN is `tun`, remembering in `state_file` how it was.
pub fn enable(state_file: &Path, tun: &str) -> Result<(), SysctlError> {
    let mut file = lock(state_file)?;
    let mut state = load(&mut file).map_err(at(state_file))?;
    state.users.retain(|user| device_exists(user));
    if state.ours.is_empty() {
        state.before = snapshot()?;
    }
    state.users.insert(tun.to_owned());
    // Written first: a crash between the two must not lose the old values.
    save(&mut file, &state).map_err(at(state_file))?;

    if has_ipv6() && read("ipv6/conf/all/forwarding")? != "1" {
        // A forwarding host ignores router advertisements, and drops the default route it got from one, unless
        // accept_ra is 2.
        for device in devices("ipv6")? {
            let key = format!("ipv6/conf/{device}/accept_ra");
            if read(&key).is_ok_and(|value| value == "1") {
                write(&key, "2")?;
            }
        }
        write("ipv6/conf/all/forwarding", "1")?;
    }
    if read("ipv4/ip_forward")? != "1" {
        write("ipv4/ip_forward", "1")?;
    }
    if state.ours.is_empty() {
        state.ours = snapshot()?;
        save(&mut file, &state).map_err(at(state_file))?;
    }
    Ok(())
}

/// Puts back what [`enable`] changed, unless another gate still needs it.
pub fn restore(state_file: &Path, tun: &str) -> Result<(), SysctlError> {
    if !state_file.exists() {
        return Ok(());
    }
    let mut file = lock(state_file)?;
    let mut state = load(&mut file).map_err(at(state_file))?;
    state.users.remove(tun);
    state.users.retain(|user| device_exists(user));
    if !state.users.is_empty() {
        return save(&mut file, &state).map_err(at(state_file));
    }
    // The switches for all devices first: each sets every device's.
    let for_all = |key: &&String| key.ends_with("ip_forward") || key.ends_with("all/forwarding");
    let (first, then): (Vec<_>, Vec<_>) = state.before.keys().partition(for_all);
    let untouched: BTreeSet<_> = state
        .before
        .keys()
        .filter(|key| state.ours.is_empty() || read(key).ok().as_ref() == state.ours.get(*key))
        .collect();
    for key in first.into_iter().chain(then) {
        let value = &state.before[key];
        // A device may have gone since.
        if untouched.contains(key) && read(key).is_ok_and(|now| now != *value) {
            write(key, value)?;
        }
    }
    fs::remove_file(state_file).map_err(at(state_file))
}

/// Every setting that turning forwarding on touches, here or in the kernel.
fn snapshot() -> Result<Settings, SysctlError> {
    let mut keys = vec![
        "ipv4/ip_forward".to_owned(),
        "ipv4/conf/all/accept_redirects".to_owned(),
    ];
    for device in devices("ipv4")? {
        keys.push(format!("ipv4/conf/{device}/forwarding"));
    }
    if has_ipv6() {
        for device in devices("ipv6")? {
            keys.push(format!("ipv6/conf/{device}/forwarding"));
            keys.push(format!("ipv6/conf/{device}/accept_ra"));
        }
    }
    // A device may go while we look.
    Ok(keys
        .into_iter()
        .filter_map(|key| read(&key).ok().map(|value| (key, value)))
        .collect())
}

fn devices(family: &str) -> Result<Vec<String>, SysctlError> {
    let directory = PathBuf::from(format!("/proc/sys/net/{family}/conf"));
    let entries = fs::read_dir(&directory).map_err(at(&directory))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// By the routing tables' own view: `/sys/class/net` may show another network namespace.
fn device_exists(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// Opens and locks the file of old values.
fn lock(path: &Path) -> Result<Flock<File>, SysctlError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(at(directory))?;
    }
    loop {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let locked = Flock::lock(open.map_err(at(path))?, FlockArg::LockExclusive)
            .map_err(|(_, error)| at(path)(error.into()))?;
        // The holder before us may have removed the file that we have now locked.
        let inode = locked.metadata().map_err(at(path))?.ino();
        if fs::metadata(path).is_ok_and(|now| now.ino() == inode) {
            return Ok(locked);
        }
    }
}

fn load(file: &mut File) -> io::Result<State> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if !text.is_empty() {
        let state: State = serde_json::from_str(&text)?;
        if state.boot_id == boot_id {
            return Ok(state);
        }
    }
    Ok(State {
        boot_id,
        ..State::default()
    })
}

fn save(file: &mut File, state: &State) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(state)?;
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(&text)
}
