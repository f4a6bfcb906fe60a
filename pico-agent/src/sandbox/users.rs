//! Whom an app runs as: looks a user up in the sandbox's own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to the app and are read by root, so they are bounded and nothing in them is
//! believed beyond its own line. Must not ask the host's name services: their answers are about other
//! users.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Files above this are refused: a host with 10,000 users needs about 1 MB.
const MAX_FILE: u64 = 8 << 20;
/// The kernel's own limit (NGROUPS_MAX) is 65536; no real user is in this many.
const MAX_GROUPS: usize = 1024;

/// Why a user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such name.
    #[error("user '{0}' is not in /etc/passwd of the app's root file system; add it there or write UID:GID")]
    NoUser(String),
    /// No such group.
    #[error("group '{0}' is not in /etc/group of the app's root file system; add it there or write UID:GID")]
    NoGroup(String),
    /// A number without an entry says nothing about its group.
    #[error("user {0} is not in /etc/passwd of the app's root file system; write it with its group: {0}:GID")]
    NoGroupOf(u32),
    /// The kernel takes it as "leave as it is", which would be root.
    #[error("user and group 4294967295 mean 'unchanged' to the kernel; choose another number")]
    Unchanged,
    /// A file could not be read.
    #[error("cannot read {} of the app's root file system: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is too large or no file at all.
    #[error("{} of the app's root file system is {what}", path.display())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Whom to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Name, if the user has one.
    pub name: Option<String>,
    /// Home directory; `/` for a user without an entry.
    pub home: String,
}

/// Finds `user` (`NAME`, `UID`, `NAME:GROUP`, `UID:GID`, any mix; `None` is root) in the files below
/// `root`. A group that is given replaces the user's own and the supplementary ones.
pub fn lookup(root: &Path, user: Option<&str>) -> Result<Identity, UserError> {
    let user = user.unwrap_or("0");
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let passwd = read(&root.join("etc/passwd"))?;
    let entry = find_user(&passwd, user);
    let uid = match (&entry, user.parse()) {
        (Some(entry), _) => entry.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(UserError::NoUser(user.to_owned())),
    };
    let name = entry.as_ref().map(|e| e.name.to_owned());
    let home = entry.as_ref().map_or("/", |e| e.home).to_owned();
    let (gid, groups) = match (group, &entry) {
        (Some(group), _) => {
            let gid = match group.parse() {
                Ok(gid) => gid,
                Err(_) => find_group(&read(&root.join("etc/group"))?, group)
                    .ok_or_else(|| UserError::NoGroup(group.to_owned()))?,
            };
            (gid, Vec::new())
        }
        (None, Some(entry)) => (entry.gid, groups_of(&read(&root.join("etc/group"))?, entry.name)),
        // Root needs no entry: an empty root file system has no /etc/passwd.
        (None, None) if uid == 0 => (0, Vec::new()),
        (None, None) => return Err(UserError::NoGroupOf(uid)),
    };
    if uid == u32::MAX || gid == u32::MAX || groups.contains(&u32::MAX) {
        return Err(UserError::Unchanged);
    }
    Ok(Identity {
        uid,
        gid,
        groups,
        name,
        home,
    })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Format: passwd(5). Lines that are none are skipped.
fn find_user<'a>(passwd: &'a str, user: &str) -> Option<Entry<'a>> {
    let number: Option<u32> = user.parse().ok();
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.splitn(8, ':').collect();
        let &[name, _, uid, gid, _, home, _] = fields.as_slice() else {
            return None;
        };
        let entry = Entry {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
        };
        (!name.is_empty() && (name == user || number == Some(entry.uid))).then_some(entry)
    })
}

/// Name, gid and members of each line of group(5).
fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.splitn(4, ':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

fn find_group(group: &str, wanted: &str) -> Option<u32> {
    group_lines(group)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, gid, _)| gid)
}

fn groups_of(group: &str, user: &str) -> Vec<u32> {
    group_lines(group)
        .filter(|(.., members)| members.split(',').any(|m| m == user))
        .map(|(_, gid, _)| gid)
        .take(MAX_GROUPS)
        .collect()
}

/// A missing file is an empty one.
fn read(path: &Path) -> Result<String, UserError> {
    let error = |source| UserError::Io {
        path: path.to_owned(),
        source,
    };
    // Not blocking: a FIFO in this place would stop the start for ever.
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
    {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(error(e)),
    };
    let meta = file.metadata().map_err(error)?;
    let refused = |what| UserError::Refused {
        path: path.to_owned(),
        what,
    };
    if !meta.is_file() {
        return Err(refused("not a regular file"));
    }
    if meta.len() > MAX_FILE {
        return Err(refused("larger than 8 MiB"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(error)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nbroken\n:x:7:7::/:\nweb:x:33:33:www,x:/var/www:/bin/false\n\
                      bad:x:-1:33::/:/bin/sh\nbig:x:4294967296:1::/:/bin/sh\n";
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        let group = "root:x:0:\nweb:x:33:\nlogs:x:4:x,web\nother:x:9:webby\nbad:x:y:web\ncerts:x:110:web,y\n";
        fs::write(dir.path().join("etc/group"), group).unwrap();
        dir
    }

    fn ids(dir: &Path, user: &str) -> Option<(u32, u32, Vec<u32>)> {
        lookup(dir, Some(user)).ok().map(|i| (i.uid, i.gid, i.groups))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let dir = root();
        for user in ["web", "33"] {
            assert_eq!(ids(dir.path(), user), Some((33, 33, vec![4, 110])), "{user}");
        }
        assert_eq!(ids(dir.path(), "web:logs"), Some((33, 4, vec![])));
        assert_eq!(ids(dir.path(), "web:7"), Some((33, 7, vec![])));
        assert_eq!(ids(dir.path(), "1234:5678"), Some((1234, 5678, vec![])));
        let web = lookup(dir.path(), Some("web")).unwrap();
        assert_eq!(
            (web.name.as_deref(), web.home.as_str()),
            (Some("web"), "/var/www")
        );
        let nobody = lookup(dir.path(), None).unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.home.as_str()), (0, 0, "/root"));
    }

    #[test]
    fn unknown_users_are_refused_with_what_to_do() {
        let dir = root();
        for (user, text) in [
            ("nobody", "user 'nobody' is not in"),
            ("web:nogroup", "group 'nogroup' is not in"),
            ("1234", "1234:GID"),
            ("bad", "user 'bad'"),
            ("big", "user 'big'"),
            ("", "user ''"),
            ("-1", "user '-1'"),
            ("4294967296", "user '4294967296'"),
            ("4294967295:1", "unchanged"),
            ("1:4294967295", "unchanged"),
        ] {
            let error = lookup(dir.path(), Some(user)).unwrap_err().to_string();
            assert!(error.contains(text), "{user}: {error}");
        }
    }

    #[test]
    fn hostile_files_neither_block_nor_fill_memory() {
        let dir = root();
        let passwd = dir.path().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(
            lookup(dir.path(), None)
                .unwrap_err()
                .to_string()
                .contains("not a regular file")
        );
        fs::remove_file(&passwd).unwrap();
        fs::File::create(&passwd).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(
            lookup(dir.path(), None)
                .unwrap_err()
                .to_string()
                .contains("larger than")
        );
        fs::write(&passwd, b"\xff\xfe\0:x:0:0::/:\nweb:x:33:33:::\n").unwrap();
        assert_eq!(lookup(dir.path(), Some("web")).unwrap().uid, 33);
        fs::remove_file(&passwd).unwrap();
        assert_eq!(lookup(dir.path(), None).unwrap().uid, 0, "root needs no entry");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_an_answer_or_an_error(passwd in ".{0,300}", user in ".{0,20}") {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("etc")).unwrap();
            fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
            _ = lookup(dir.path(), Some(&user));
        }
    }
}
