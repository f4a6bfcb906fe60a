//! Tests of the archive: a layer comes back as it was, and a malicious archive gets nowhere.
//! They run as root, as the agent does: owners, devices and `trusted.` attributes are root's.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::checkpoint::hash::Hash;

const PLENTY: Budget = Budget {
    bytes: 1 << 30,
    entries: 10_000,
};

fn packed(dir: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    let summary = pack(dir, &mut archive).unwrap();
    assert_eq!(summary.digest, Digest::of(&archive));
    archive
}

fn unpacked(archive: &[u8]) -> Result<TempDir> {
    let dir = tempdir().unwrap();
    unpack(archive, dir.path(), &PLENTY).map(|_| dir)
}

/// Everything about a tree that must survive, as text by path.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(
        root: &Path,
        path: &Path,
        inodes: &mut BTreeMap<u64, PathBuf>,
        all: &mut BTreeMap<PathBuf, String>,
    ) {
        let stat = fs::symlink_metadata(path).unwrap();
        let kind = stat.file_type();
        let content = if kind.is_file() {
            let data = fs::read(path).unwrap();
            format!("{} {}", data.len(), Hash::of(&data))
        } else if kind.is_symlink() {
            fs::read_link(path).unwrap().display().to_string()
        } else {
            String::new()
        };
        let mut xattrs: Vec<_> = xattr::list(path)
            .unwrap()
            .map(|n| (n.clone(), xattr::get(path, n).unwrap()))
            .collect();
        xattrs.sort();
        let first = inodes
            .entry(stat.ino())
            .or_insert_with(|| path.strip_prefix(root).unwrap().to_owned());
        let (mode, rdev) = (stat.mode(), stat.rdev());
        let (uid, gid, time, nanos) = (stat.uid(), stat.gid(), stat.mtime(), stat.mtime_nsec());
        let text = format!("{mode:o} {rdev} {uid}:{gid} {time}.{nanos} {first:?} {content} {xattrs:?}");
        all.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        if kind.is_dir() {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            names.iter().for_each(|path| walk(root, path, inodes, all));
        }
    }
    let mut all = BTreeMap::new();
    walk(root, root, &mut BTreeMap::new(), &mut all);
    all
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = TimeSpec::new(seconds, nanoseconds);
    utimensat(
        nix::fcntl::AT_FDCWD,
        path,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )
    .unwrap();
}

#[test]
fn a_layer_comes_back_as_it_was() {
    let layer = tempdir().unwrap();
    let at = |name: &str| layer.path().join(name);
    fs::create_dir_all(at("var/lib/app")).unwrap();
    fs::write(at("var/lib/app/data"), "content").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("big"), vec![7; 3 * RUN_MAX + 5]).unwrap();
    fs::hard_link(at("var/lib/app/data"), at("var/other-name")).unwrap();
    fs::hard_link(at("var/lib/app/data"), at("zz")).unwrap();
    symlink("../../etc/passwd", at("var/link")).unwrap();
    lchown(at("var/link"), Some(33), Some(34)).unwrap();
    set_time(&at("var/link"), 5, 6);
    // A whiteout and a name that is no UTF-8.
    mknod(&at("gone"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    fs::write(layer.path().join(OsStr::from_bytes(b"\xff\xfe name\n")), "x").unwrap();
    mknod(
        &at("null"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        libc::makedev(1, 3),
    )
    .unwrap();
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    fs::write(at("su"), "#!").unwrap();
    chown(at("su"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(at("su"), Permissions::from_mode(0o6755)).unwrap();
    xattr::set(at("su"), "user.note", b"hello\0there").unwrap();
    // cap_net_bind_service=ep, as setcap(8) writes it (VFS_CAP_REVISION_2).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(at("su"), "security.capability", &capability).unwrap();
    xattr::set(at("var/lib"), "trusted.overlay.opaque", b"y").unwrap();
    xattr::set(at("var"), "trusted.overlay.redirect", b"/srv").unwrap();
    chown(at("var/lib/app"), Some(33), Some(33)).unwrap();
    fs::set_permissions(at("var/lib/app"), Permissions::from_mode(0o2750)).unwrap();
    for (n, folder) in ["var/lib/app", "var/lib", "var", ""].into_iter().enumerate() {
        set_time(&at(folder), -100 + n as i64, 123_456_789);
    }

    let archive = packed(layer.path());
    let copy = unpacked(&archive).unwrap();
    assert_eq!(describe(copy.path()), describe(layer.path()));
    assert_eq!(
        packed(copy.path()),
        archive,
        "the same content is the same archive"
    );
}

#[test]
fn an_overlay_shows_the_same_over_the_unpacked_layer() {
    // The real thing: a layer that the kernel's overlayfs itself wrote.
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["lower/a", "lower/b", "upper", "work", "work2", "root"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::write(at("lower/a/kept"), "kept").unwrap();
    fs::write(at("lower/a/deleted"), "deleted").unwrap();
    fs::write(at("lower/b/hidden"), "hidden").unwrap();
    let mount = |upper: &Path, work: &str| {
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=on,nfs_export=on",
            at("lower").display(),
            upper.display(),
            at(work).display()
        );
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(
            Some("overlay"),
            &at("root"),
            Some("overlay"),
            flags,
            Some(&*options),
        )
        .unwrap();
    };
    let umount = || nix::mount::umount2(&at("root"), nix::mount::MntFlags::MNT_DETACH).unwrap();

    mount(&at("upper"), "work");
    fs::remove_file(at("root/a/deleted")).unwrap();
    fs::remove_dir_all(at("root/b")).unwrap();
    fs::create_dir(at("root/b")).unwrap();
    fs::write(at("root/b/new"), "new").unwrap();
    fs::write(at("root/a/kept"), "changed").unwrap();
    fs::hard_link(at("root/a/kept"), at("root/link")).unwrap();
    let seen = |root: &Path| -> Vec<(PathBuf, String)> {
        // Inode numbers and link order aside, what an app sees.
        describe(root)
            .into_iter()
            .map(|(path, text)| (path, text.split(" Some").next().unwrap().into()))
            .collect()
    };
    let before = seen(&at("root"));
    umount();

    let copy = unpacked(&packed(&at("upper"))).unwrap();
    assert_eq!(
        xattr::get(copy.path().join("b"), "trusted.overlay.opaque").unwrap(),
        Some(b"y".to_vec())
    );
    for path in describe(copy.path()).into_keys() {
        assert_eq!(
            xattr::get(copy.path().join(path), "trusted.overlay.origin").unwrap(),
            None
        );
    }
    mount(copy.path(), "work2");
    let after = seen(&at("root"));
    umount();
    assert_eq!(after, before);
    assert!(after.iter().any(|(path, _)| path == Path::new("link")));
    assert!(
        !after
            .iter()
            .any(|(path, _)| path == Path::new("b/hidden") || path == Path::new("a/deleted"))
    );
}

#[test]
fn holes_travel_as_holes() {
    let layer = tempdir().unwrap();
    let file = File::create(layer.path().join("sparse")).unwrap();
    file.write_all_at(b"middle", 1 << 33).unwrap();
    file.set_len(1 << 34).unwrap();
    File::create(layer.path().join("all-hole"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let archive = packed(layer.path());
    assert!(archive.len() < 100_000, "{}", archive.len());
    let copy = unpacked(&archive).unwrap();
    let file = File::open(copy.path().join("sparse")).unwrap();
    let mut middle = [0; 8];
    file.read_exact_at(&mut middle, (1 << 33) - 1).unwrap();
    assert_eq!(&middle, b"\0middle\0");
    assert_eq!(file.metadata().unwrap().size(), 1 << 34);
    assert!(file.metadata().unwrap().blocks() * 512 < 100_000);
    assert_eq!(fs::metadata(copy.path().join("all-hole")).unwrap().blocks(), 0);
}

#[test]
fn sockets_and_attributes_of_this_host_stay_behind() {
    let layer = tempdir().unwrap();
    let _listener = UnixListener::bind(layer.path().join("sock")).unwrap();
    for name in ["origin", "impure", "nlink", "upper", "uuid"] {
        xattr::set(layer.path(), format!("trusted.overlay.{name}"), b"y").unwrap();
    }
    let copy = unpacked(&packed(layer.path())).unwrap();
    assert_eq!(fs::read_dir(copy.path()).unwrap().count(), 0);
    assert_eq!(xattr::list(copy.path()).unwrap().count(), 0);
}

#[test]
fn a_device_that_leads_to_hardware_is_refused_on_both_sides() {
    let layer = tempdir().unwrap();
    let disk = libc::makedev(8, 0);
    mknod(&layer.path().join("sda"), SFlag::S_IFBLK, Mode::S_IRWXU, disk).unwrap();
    assert!(
        matches!(pack(layer.path(), &mut Vec::new()), Err(ArchiveError::Unfit(path, _)) if path == Path::new("sda"))
    );
    for (kind, major, minor) in [
        (BLOCK, 8, 0),
        (BLOCK, 0, 0),
        (CHARACTER, 1, 1),
        (CHARACTER, 8, 0),
        (7, 0, 0),
    ] {
        let mut device = Forged::entry(DEVICE, b"d");
        device.plain_attributes().0.push(kind);
        device.0.extend_from_slice(&u32::to_le_bytes(major));
        device.0.extend_from_slice(&u32::to_le_bytes(minor));
        assert!(matches!(
            unpacked(&Forged::archive(&[device])),
            Err(ArchiveError::Damaged(_))
        ));
    }
}

/// Makes archives that [`pack`] would never write, with a right checksum.
#[derive(Clone)]
struct Forged(Vec<u8>);

impl Forged {
    fn text(&mut self, text: &[u8]) -> &mut Self {
        self.0
            .extend_from_slice(&u16::try_from(text.len()).unwrap().to_le_bytes());
        self.0.extend_from_slice(text);
        self
    }

    fn entry(tag: u8, name: &[u8]) -> Self {
        let mut entry = Forged(vec![tag]);
        entry.text(name);
        entry
    }

    /// Mode 0644, root, 1970, no extended attributes.
    fn plain_attributes(&mut self) -> &mut Self {
        self.0.extend_from_slice(&0o644u32.to_le_bytes());
        self.0.extend_from_slice(&[0; 4 + 4 + 8 + 4 + 2]);
        self
    }

    fn folder(name: &[u8]) -> Self {
        let mut entry = Forged::entry(ENTER, name);
        entry.plain_attributes();
        entry
    }

    fn leave() -> Self {
        Forged(vec![LEAVE])
    }

    fn symlink(name: &[u8], target: &[u8]) -> Self {
        let mut entry = Forged::entry(SYMLINK, name);
        entry.plain_attributes().text(target);
        entry
    }

    fn hardlink(name: &[u8], path: &[u8]) -> Self {
        let mut entry = Forged::entry(HARDLINK, name);
        entry.text(path);
        entry
    }

    fn file(name: &[u8], size: u64, runs: &[(u64, &[u8])]) -> Self {
        let mut entry = Forged::entry(FILE, name);
        entry.plain_attributes().0.extend_from_slice(&size.to_le_bytes());
        for (at, data) in runs {
            entry
                .0
                .extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
            entry.0.extend_from_slice(&at.to_le_bytes());
            entry.0.extend_from_slice(data);
        }
        entry.0.extend_from_slice(&[0; 4]);
        entry
    }

    /// The records within the layer's root.
    fn archive(records: &[Forged]) -> Vec<u8> {
        let mut all = vec![Forged::folder(b"")];
        all.extend_from_slice(records);
        all.push(Forged::leave());
        Forged::bare(&all)
    }

    fn bare(records: &[Forged]) -> Vec<u8> {
        let mut archive = [MAGIC, &VERSION.to_le_bytes()[..]].concat();
        records
            .iter()
            .for_each(|record| archive.extend_from_slice(&record.0));
        archive.push(END);
        let sum = Hash::of(&archive);
        archive.extend_from_slice(&sum.0);
        archive
    }
}

#[test]
fn a_forged_archive_never_leaves_its_folder() {
    // `outside` lies beside the folder that is unpacked into; nothing may appear or change in it.
    let top = tempdir().unwrap();
    let outside = top.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "precious").unwrap();
    let before = describe(&outside);
    let outside_bytes = outside.as_os_str().as_bytes();
    let file = |name: &[u8]| Forged::file(name, 4, &[(0, b"evil")]);
    let link_then = |record: Forged| vec![Forged::symlink(b"l", outside_bytes), record];

    let mut attacks: Vec<(&str, Vec<Forged>)> = vec![
        ("enter through a symlink", link_then(Forged::folder(b"l"))),
        (
            "write through a symlink",
            vec![
                Forged::symlink(b"l", &[outside_bytes, b"/precious"].concat()),
                file(b"l"),
            ],
        ),
        (
            "link to a file through a symlink",
            link_then(Forged::hardlink(b"h", b"l/precious")),
        ),
        (
            "link upward",
            vec![Forged::hardlink(b"h", b"../outside/precious")],
        ),
        (
            "link to an absolute path",
            vec![Forged::hardlink(b"h", &[outside_bytes, b"/precious"].concat())],
        ),
        ("leave the root", vec![Forged::leave(), file(b"evil")]),
        ("leave the root twice", vec![Forged::leave(), Forged::leave()]),
        ("a file twice", vec![file(b"f"), file(b"f")]),
        ("an unknown record", vec![Forged::entry(99, b"f")]),
        ("a socket's worth of nothing", vec![Forged::symlink(b"l", b"")]),
        (
            "data beyond the size",
            vec![Forged::file(b"f", 3, &[(0, b"evil")])],
        ),
        (
            "data backward",
            vec![Forged::file(b"f", 99, &[(50, b"evil"), (10, b"evil")])],
        ),
        (
            "data at the end of the world",
            vec![Forged::file(b"f", u64::MAX, &[(u64::MAX - 2, b"evil")])],
        ),
        ("a size that no file has", vec![Forged::file(b"f", u64::MAX, &[])]),
    ];
    for name in [
        &b""[..],
        b".",
        b"..",
        b"../outside/evil",
        b"/tmp/evil",
        b"a/b",
        b"a\0b",
        &[b'x'; 256],
    ] {
        attacks.push(("a name as a file", vec![file(name)]));
        attacks.push(("a name as a folder", vec![Forged::folder(name), Forged::leave()]));
    }
    for (what, records) in attacks {
        let into = tempfile::tempdir_in(top.path()).unwrap();
        let result = unpack(&Forged::archive(&records)[..], into.path(), &PLENTY);
        assert!(result.is_err(), "{what}: {result:?}");
        assert_eq!(describe(&outside), before, "{what}");
        drop(into);
        assert_eq!(
            fs::read_dir(top.path()).unwrap().count(),
            1,
            "{what} left something beside"
        );
    }
}

#[test]
fn a_symlink_itself_may_point_anywhere() {
    // It is the app's own business where its links lead; only we must not follow them.
    let link = Forged::symlink(b"l", b"/etc/shadow");
    let hard = Forged::hardlink(b"h", b"l");
    let copy = unpacked(&Forged::archive(&[link, hard])).unwrap();
    assert_eq!(
        fs::read_link(copy.path().join("h")).unwrap(),
        Path::new("/etc/shadow")
    );
}

#[test]
fn bombs_stop_at_the_budget() {
    let small = Budget {
        bytes: 1000,
        entries: 3,
    };
    let try_unpack = |records: &[Forged]| {
        let dir = tempdir().unwrap();
        unpack(&Forged::archive(records)[..], dir.path(), &small)
    };
    let data = Forged::file(b"f", 2000, &[(0, &[1; 600]), (600, &[1; 600])]);
    assert!(matches!(
        try_unpack(&[data]),
        Err(ArchiveError::Budget { what: "bytes", .. })
    ));
    let many: Vec<_> = (b'a'..b'f').map(|name| Forged::file(&[name], 0, &[])).collect();
    assert!(matches!(
        try_unpack(&many),
        Err(ArchiveError::Budget { what: "files", .. })
    ));
    let deep: Vec<_> = (0..400).map(|_| Forged::folder(b"d")).collect();
    assert!(matches!(
        unpacked(&Forged::archive(&deep)),
        Err(ArchiveError::Damaged(_))
    ));
    // An attribute that claims more than there is costs no memory.
    let mut huge = Forged::entry(FIFO, b"f");
    huge.plain_attributes();
    let count = huge.0.len() - 2;
    huge.0[count] = 1;
    huge.text(b"user.x").0.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        unpacked(&Forged::archive(&[huge])),
        Err(ArchiveError::Budget { .. })
    ));
}

#[test]
fn only_an_empty_folder_is_unpacked_into() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("mine"), "").unwrap();
    let archive = Forged::archive(&[]);
    assert!(matches!(
        unpack(&archive[..], dir.path(), &PLENTY),
        Err(ArchiveError::File(..))
    ));
    assert!(unpacked(&Forged::bare(&[])).is_err(), "an archive without a root");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_comes_back(
        entries in vec((vec("[^/\u{0}]{1,12}", 1..4), 0..5u8, vec(any::<u8>(), 0..50)), 0..12),
    ) {
        let layer = tempdir().unwrap();
        let mut made: Vec<PathBuf> = Vec::new();
        for (names, kind, data) in entries {
            // Names as they come: those that the kernel itself refuses are left out.
            if names.iter().any(|n| n == "." || n == "..") {
                continue;
            }
            let path = names.iter().fold(layer.path().to_owned(), |path, name| path.join(name));
            if fs::create_dir_all(path.parent().unwrap()).is_err() || fs::symlink_metadata(&path).is_ok() {
                continue;
            }
            match kind {
                0 => fs::create_dir(&path).unwrap(),
                1 => symlink(names.concat(), &path).unwrap(),
                2 if !made.is_empty() => fs::hard_link(&made[data.len() % made.len()], &path).unwrap(),
                3 => mkfifo(&path, Mode::S_IRUSR).unwrap(),
                _ => fs::write(&path, &data).unwrap(),
            }
            if fs::symlink_metadata(&path).unwrap().is_file() {
                made.push(path);
            }
        }
        let copy = unpacked(&packed(layer.path())).unwrap();
        prop_assert_eq!(describe(copy.path()), describe(layer.path()));
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_always_found(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let records = [
            Forged::folder(b"folder"),
            Forged::file(b"file", 9, &[(2, b"content")]),
            Forged::leave(),
            Forged::symlink(b"link", b"target"),
            Forged::hardlink(b"other", b"folder/file"),
        ];
        let mut archive = Forged::archive(&records);
        prop_assert!(unpacked(&archive).is_ok());
        let at = at.index(archive.len());
        prop_assert!(unpacked(&archive[..at]).is_err());
        archive[at] ^= 1 << bit;
        prop_assert!(unpacked(&archive).is_err());
    }

    #[test]
    fn any_bytes_are_refused_in_peace(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(unpacked(&bytes).is_err());
        prop_assert!(unpacked(&[MAGIC, &VERSION.to_le_bytes()[..], &bytes].concat()).is_err());
    }

    #[test]
    fn a_name_is_one_plain_component(name in vec(any::<u8>(), 0..300)) {
        let path = Path::new(OsStr::from_bytes(&name));
        let plain = path.components().count() == 1
            && matches!(path.components().next(), Some(std::path::Component::Normal(n)) if n.as_bytes() == name)
            && !name.contains(&0) && name.len() <= NAME_MAX;
        prop_assert_eq!(is_name(&name), plain);
    }
}

#[test]
fn a_fifo_in_the_layer_is_a_fifo_again() {
    let mut fifo = Forged::entry(FIFO, b"f");
    fifo.plain_attributes();
    let copy = unpacked(&Forged::archive(&[fifo])).unwrap();
    assert!(fs::metadata(copy.path().join("f")).unwrap().file_type().is_fifo());
}
