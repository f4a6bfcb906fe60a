//! Run as root: they mount, in a mount namespace of the test's own thread.

use std::os::unix::fs::FileTypeExt;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs `test` in a thread with a mount namespace of its own, so that no mount can be left behind.
fn in_mount_namespace(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            test(dir.path());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn spec(dir: &Path) -> RootSpec {
    let lower = dir.join("lower");
    fs::create_dir_all(lower.join("etc")).unwrap();
    fs::write(lower.join("etc/name"), "lower").unwrap();
    RootSpec {
        lower: vec![lower],
        mask: Mask::Directory,
        upper: dir.join("upper"),
        work: dir.join("work"),
        mountpoint: dir.join("root"),
    }
}

#[test]
fn any_directory_can_be_a_root_whatever_its_name() {
    in_mount_namespace(|dir| {
        for name in ["plain", "a:b", "a,b=c", "a\\b", "a b\n"] {
            let root = spec(&dir.join(name));
            mount_root(&root).unwrap();
            assert_eq!(
                fs::read_to_string(root.mountpoint.join("etc/name")).unwrap(),
                "lower",
                "{name}"
            );
            let null = fs::metadata(root.mountpoint.join("dev/null")).unwrap();
            assert!(null.file_type().is_char_device() && null.rdev() == nix::sys::stat::makedev(1, 3));
            for path in ["proc", "run", "tmp", "dev/pts", "dev/shm"] {
                assert!(root.mountpoint.join(path).is_dir(), "{path}");
            }
            unmount_root(&root).unwrap();
            unmount_root(&root).unwrap();
        }
    });
}

#[test]
fn what_the_root_directory_has_in_run_and_tmp_is_kept() {
    in_mount_namespace(|dir| {
        let root = spec(dir);
        fs::create_dir(root.lower[0].join("run")).unwrap();
        fs::write(root.lower[0].join("run/x"), "").unwrap();
        fs::create_dir(root.lower[0].join("dev")).unwrap();
        fs::write(root.lower[0].join("dev/x"), "").unwrap();
        mount_root(&root).unwrap();
        assert!(root.mountpoint.join("run/x").exists() && !root.mountpoint.join("dev/x").exists());
        assert!(!root.upper.join("run").exists());
        unmount_root(&root).unwrap();
    });
}

#[test]
fn a_writable_layer_is_mounted_once_at_a_time() {
    in_mount_namespace(|dir| {
        let root = spec(dir);
        mount_root(&root).unwrap();
        let twice = RootSpec {
            mountpoint: dir.join("root2"),
            work: dir.join("work2"),
            ..root.clone()
        };
        assert!(matches!(mount_root(&twice), Err(SandboxError::RootBusy(_))));
        unmount_root(&root).unwrap();
    });
}

#[test]
fn a_replaced_root_directory_is_named_and_can_be_accepted() {
    in_mount_namespace(|dir| {
        let root = spec(dir);
        mount_root(&root).unwrap();
        fs::write(root.mountpoint.join("etc/mine"), "mine").unwrap();
        unmount_root(&root).unwrap();
        fs::rename(&root.lower[0], dir.join("old")).unwrap();
        spec(dir);
        fs::write(root.lower[0].join("etc/new"), "new").unwrap();
        let error = mount_root(&root).unwrap_err();
        assert!(matches!(error, SandboxError::RootReplaced(_)), "{error}");
        forget_lower(&root).unwrap();
        mount_root(&root).unwrap();
        for (name, text) in [("mine", "mine"), ("new", "new"), ("name", "lower")] {
            assert_eq!(
                fs::read_to_string(root.mountpoint.join("etc").join(name)).unwrap(),
                text
            );
        }
        unmount_root(&root).unwrap();
    });
}

#[test]
fn the_mask_does_not_follow_an_apps_links_out_of_its_layer() {
    in_mount_namespace(|dir| {
        let mut root = spec(dir);
        let outside = dir.join("outside");
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(root.lower[0].join("var/lib/state")).unwrap();
        fs::create_dir_all(root.upper.join("var")).unwrap();
        symlink(&outside, root.upper.join("var/lib")).unwrap();
        symlink(&outside, root.upper.join("dev")).unwrap();
        root.mask = Mask::Host {
            hidden: vec!["/var/lib/state".into(), "/".into(), "/var/none/x".into()],
        };
        mount_root(&root).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!root.mountpoint.join("var/none").exists());
        unmount_root(&root).unwrap();
    });
}

#[test]
fn the_mask_hides_again_what_a_damaged_layer_would_show() {
    in_mount_namespace(|dir| {
        let mut root = spec(dir);
        fs::create_dir_all(root.lower[0].join("root")).unwrap();
        fs::write(root.lower[0].join("root/key"), "secret").unwrap();
        fs::create_dir_all(root.upper.join("root")).unwrap();
        root.mask = Mask::Host { hidden: vec![] };
        mount_root(&root).unwrap();
        assert_eq!(fs::read_dir(root.mountpoint.join("root")).unwrap().count(), 0);
        unmount_root(&root).unwrap();
    });
}

#[test]
fn a_seed_is_copied_with_owner_mode_and_links() {
    in_mount_namespace(|dir| {
        let root = spec(dir);
        let from = dir.join("seed");
        fs::create_dir_all(from.join("etc/app")).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(from.join("etc"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(from.join("etc/app/conf"), "conf").unwrap();
        fs::set_permissions(from.join("etc/app/conf"), fs::Permissions::from_mode(0o4750)).unwrap();
        lchown(from.join("etc/app/conf"), Some(33), Some(34)).unwrap();
        fs::set_permissions(from.join("etc/app/conf"), fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("app/conf", from.join("etc/link")).unwrap();
        seed(&root, &from).unwrap();
        mount_root(&root).unwrap();
        let at = |p: &str| fs::symlink_metadata(root.mountpoint.join(p)).unwrap();
        let conf = at("etc/app/conf");
        assert_eq!((conf.mode() & 0o7777, conf.uid(), conf.gid()), (0o4750, 33, 34));
        assert_eq!(
            conf.mtime(),
            fs::metadata(from.join("etc/app/conf")).unwrap().mtime()
        );
        assert!(at("etc/link").is_symlink());
        assert_eq!(
            (at("").mode() & 0o7777, at("etc").mode() & 0o7777),
            (0o755, 0o755),
            "the root's own modes stay"
        );
        unmount_root(&root).unwrap();
    });
}

#[test]
fn a_seed_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = spec(dir.path());
    symlink("usr/lib", root.lower[0].join("lib")).unwrap();
    let from = dir.path().join("seed");
    assert!(
        seed(&root, &from)
            .unwrap_err()
            .to_string()
            .contains("correct `seed`")
    );
    fs::create_dir_all(from.join("lib")).unwrap();
    assert!(
        seed(&root, &from)
            .unwrap_err()
            .to_string()
            .contains("symbolic link there")
    );
    fs::remove_dir(from.join("lib")).unwrap();
    nix::unistd::mkfifo(&from.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(
        seed(&root, &from)
            .unwrap_err()
            .to_string()
            .contains("leave it out")
    );
}
