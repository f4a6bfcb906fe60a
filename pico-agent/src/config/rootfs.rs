//! Looks a program up in an app's files as the app will see them: its writable layer over its seed over its
//! root, symbolic links followed inside, never outside. Reads only.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// Where programs are looked for when an app's environment has no PATH.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As the kernel (ELOOP).
const MAX_LINKS: usize = 40;

/// The layers of an app's root file system, highest first.
#[derive(Debug, Clone)]
pub struct Layers {
    /// What the app has written so far; may be missing.
    pub upper: Vec<PathBuf>,
    /// What is copied into the writable layer when the app is made.
    pub seed: Option<PathBuf>,
    /// The lowest layer.
    pub root: PathBuf,
    /// Directories of the lowest layer that the app does not see.
    pub hidden: Vec<PathBuf>,
}

/// Why an app's program cannot be started. Paths are as the app would see them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Nothing there.
    #[error("there is no {0} in the root")]
    Missing(PathBuf),
    /// Not in any directory of PATH.
    #[error("'{program}' is in none of {path}")]
    NotInPath {
        /// As configured.
        program: String,
        /// The directories tried.
        path: String,
    },
    /// A directory, a device.
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    /// Not executable.
    #[error("{0} is not executable")]
    NotExecutable(PathBuf),
    /// On the host, but hidden from apps.
    #[error("{0} is on the host, but apps do not see that directory")]
    Hidden(PathBuf),
    /// Symbolic links without end.
    #[error("{0} has too many symbolic links")]
    Loop(PathBuf),
}

impl ProgramError {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            ProgramError::Missing(_) | ProgramError::NotInPath { .. } => {
                "install it in the root, or correct the path"
            }
            ProgramError::NotAFile(_) => "give the program itself",
            ProgramError::NotExecutable(_) => "chmod +x it, or start it by its interpreter",
            ProgramError::Hidden(_) => "install it under /usr/local or /opt, or put it into the app's seed",
            ProgramError::Loop(_) => "correct the links",
        }
    }
}

/// What apps do not see of the host's root file system (the sandbox masks the same).
pub fn hidden_of_host(state_dir: &Path) -> Vec<PathBuf> {
    [
        "/root",
        "/home",
        "/run",
        "/tmp",
        "/var/tmp",
        "/boot",
        "/dev",
        "/proc",
        "/sys",
        "/etc/ssh",
        "/etc/pico",
    ]
    .into_iter()
    .map(PathBuf::from)
    .chain([state_dir.to_owned()])
    .collect()
}

impl Layers {
    /// Finds a program as execvp(3) does inside the root: a name with a slash is a path (from `workdir`),
    /// another is looked up in `search`, directories separated by colons.
    ///
    /// # Errors
    /// [`ProgramError`]
    pub fn find_program(&self, program: &str, search: &str, workdir: &Path) -> Result<PathBuf, ProgramError> {
        if program.contains('/') {
            return self.executable(&workdir.join(program));
        }
        let mut refused = None;
        for directory in search.split(':').filter(|directory| !directory.is_empty()) {
            match self.executable(&workdir.join(directory).join(program)) {
                Ok(path) => return Ok(path),
                Err(ProgramError::Missing(_)) => {}
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| ProgramError::NotInPath {
            program: program.to_owned(),
            path: search.to_owned(),
        }))
    }

    /// Whether `user` (a name or a number, optionally `USER:GROUP`) can be looked up inside the root.
    pub fn knows_user(&self, user: &str) -> bool {
        let name = user.split(':').next().unwrap_or_default();
        if name.parse::<u32>().is_ok() {
            return true;
        }
        let Ok((on_host, _)) = self.resolve(Path::new("/etc/passwd")) else {
            return false;
        };
        let passwd = std::fs::read_to_string(on_host).unwrap_or_default();
        passwd.lines().any(|line| line.split(':').next() == Some(name))
    }

    fn executable(&self, path: &Path) -> Result<PathBuf, ProgramError> {
        let (on_host, inside) = self.resolve(path)?;
        let Ok(metadata) = std::fs::symlink_metadata(&on_host) else {
            return Err(ProgramError::Missing(path.to_owned()));
        };
        if !metadata.is_file() {
            Err(ProgramError::NotAFile(path.to_owned()))
        } else if metadata.permissions().mode() & 0o111 == 0 {
            Err(ProgramError::NotExecutable(path.to_owned()))
        } else {
            Ok(inside)
        }
    }

    /// Follows every link of `path` inside the layers. Returns where the file is on the host, and its path
    /// inside without links.
    fn resolve(&self, path: &Path) -> Result<(PathBuf, PathBuf), ProgramError> {
        let mut todo: VecDeque<OsString> = components(path);
        let mut inside = PathBuf::from("/");
        let mut on_host = self.root.clone();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                inside.pop();
                continue;
            }
            let next = inside.join(&name);
            on_host = self.find(&next).ok_or_else(|| self.why_missing(path, &next))?;
            if let Ok(target) = std::fs::read_link(&on_host) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(ProgramError::Loop(path.to_owned()));
                }
                if target.is_absolute() {
                    inside = PathBuf::from("/");
                }
                for part in components(&target).into_iter().rev() {
                    todo.push_front(part);
                }
            } else {
                inside = next;
            }
        }
        Ok((on_host, inside))
    }

    fn why_missing(&self, path: &Path, inside: &Path) -> ProgramError {
        if self.hidden.iter().any(|hidden| inside.starts_with(hidden))
            && self.below(&self.root, inside).is_some()
        {
            ProgramError::Hidden(path.to_owned())
        } else {
            ProgramError::Missing(path.to_owned())
        }
    }

    /// The highest layer's file at a path without links. A directory of an upper layer does not hide what
    /// the lower ones have in it.
    fn find(&self, inside: &Path) -> Option<PathBuf> {
        let upper = self
            .upper
            .iter()
            .chain(&self.seed)
            .find_map(|layer| self.below(layer, inside));
        let visible = !self
            .hidden
            .iter()
            .any(|hidden| inside.starts_with(hidden) && inside != hidden);
        upper.or_else(|| visible.then(|| self.below(&self.root, inside)).flatten())
    }

    fn below(&self, layer: &Path, inside: &Path) -> Option<PathBuf> {
        let path = layer.join(inside.strip_prefix("/").unwrap_or(inside));
        std::fs::symlink_metadata(&path).is_ok().then_some(path)
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn program(path: &Path, mode: u32) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn layers(root: &Path) -> Layers {
        Layers {
            upper: Vec::new(),
            seed: None,
            root: root.to_owned(),
            hidden: Vec::new(),
        }
    }

    fn find(layers: &Layers, program: &str) -> Result<PathBuf, ProgramError> {
        layers.find_program(program, DEFAULT_PATH, Path::new("/srv"))
    }

    #[test]
    fn links_are_followed_inside_the_root_and_never_outside() {
        let root = tempfile::tempdir().unwrap();
        program(&root.path().join("usr/bin/app"), 0o755);
        symlink("/usr/bin", root.path().join("bin")).unwrap();
        symlink("../../../../../../usr/bin/app", root.path().join("usr/bin/up")).unwrap();
        symlink("/bin/sh", root.path().join("usr/bin/escapes")).unwrap();
        std::fs::create_dir(root.path().join("srv")).unwrap();
        symlink("loop", root.path().join("usr/bin/loop")).unwrap();
        let layers = layers(root.path());
        for name in ["/bin/app", "app", "/usr/bin/up", "../bin/app"] {
            assert_eq!(find(&layers, name), Ok("/usr/bin/app".into()), "{name}");
        }
        assert!(Path::new("/bin/sh").exists());
        assert_eq!(
            find(&layers, "/usr/bin/escapes"),
            Err(ProgramError::Missing("/usr/bin/escapes".into()))
        );
        assert!(matches!(
            find(&layers, "/usr/bin/loop"),
            Err(ProgramError::Loop(_))
        ));
    }

    #[test]
    fn only_an_executable_file_is_a_program() {
        let root = tempfile::tempdir().unwrap();
        program(&root.path().join("usr/bin/text"), 0o644);
        let layers = layers(root.path());
        assert!(matches!(
            find(&layers, "text"),
            Err(ProgramError::NotExecutable(_))
        ));
        assert!(matches!(
            find(&layers, "/usr/bin"),
            Err(ProgramError::NotAFile(_))
        ));
        assert!(matches!(
            find(&layers, "absent"),
            Err(ProgramError::NotInPath { .. })
        ));
    }

    #[test]
    fn a_program_of_the_seed_or_of_the_writable_layer_is_found() {
        let (root, seed, upper) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        symlink("usr/bin", root.path().join("bin")).unwrap();
        program(&seed.path().join("usr/bin/seeded"), 0o755);
        program(&upper.path().join("opt/written"), 0o755);
        let layers = Layers {
            upper: vec![upper.path().to_owned()],
            seed: Some(seed.path().to_owned()),
            ..layers(root.path())
        };
        assert_eq!(find(&layers, "/bin/seeded"), Ok("/usr/bin/seeded".into()));
        assert_eq!(find(&layers, "/opt/written"), Ok("/opt/written".into()));
    }

    #[test]
    fn what_is_hidden_from_apps_is_not_found_and_the_reason_is_told() {
        let root = tempfile::tempdir().unwrap();
        program(&root.path().join("home/me/app"), 0o755);
        let layers = Layers {
            hidden: vec!["/home".into()],
            ..layers(root.path())
        };
        assert_eq!(
            find(&layers, "/home/me/app"),
            Err(ProgramError::Hidden("/home/me/app".into()))
        );
        assert_eq!(
            find(&layers, "/home/you/app"),
            Err(ProgramError::Missing("/home/you/app".into()))
        );
    }

    #[test]
    fn users_are_those_of_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "www:x:33:33::/:/bin/sh\n").unwrap();
        let layers = layers(root.path());
        assert!(layers.knows_user("www") && layers.knows_user("www:www") && layers.knows_user("1000"));
        assert!(!layers.knows_user("root") && !layers.knows_user("ww"));
    }
}
