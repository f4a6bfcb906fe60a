//! What the hub wants of one of its apps, `STATE/apps/NAME/registered.json`: beside the wake record, so that the
//! app comes back without the hub. Written before anything is done about it, and once more when it is done: a
//! crash in between does it again. Removed last of all when the app is deleted. Knows neither the hub's messages
//! nor how an app is started.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::write_atomically;
use crate::config::AppConfig;

/// Version of the format; another one is refused.
pub const VERSION: u32 = 1;
/// Name of the file in the app's directory.
pub const FILE_NAME: &str = "registered.json";
/// No registration is longer: the hub's messages are bounded far below.
pub const MAX_BYTES: u64 = 1 << 20;

/// What an owner last asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// It runs, or sleeps until it is needed.
    Running,
    /// It does not run, and packets do not wake it.
    Stopped,
    /// All of it is removed, here and in the store.
    Deleted,
}

/// registered.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// [`VERSION`].
    pub version: u32,
    /// The hub's name for it, never used for another app.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// Grows with every change of what follows.
    pub resource_version: u64,
    /// The newest resource version all of which was done; 0: none.
    pub applied: u64,
    /// What is to become of it.
    pub desired: Desired,
    /// What is still to be done so that the app is as registered.
    pub due: Option<Due>,
    /// How it runs; its name is that of the directory.
    pub config: AppConfig,
}

/// What a change of a registration asks of an app that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Due {
    /// To take up limits, ports and policy as it goes.
    Adjust,
    /// To end and start anew.
    Restart,
    /// To start, if it does not run.
    Start,
    /// To end.
    Stop,
}

/// Why a registration cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The file system refused.
    #[error("cannot {doing} the registration {path} ({source})")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there but is no registration of this version.
    #[error(
        "the registration {path} is damaged ({why}); try: restore it from a backup, or move the app's directory \
         away and let its owner delete the app"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Registration {
    /// Reads the registration in an app's directory; `None` when there is none: the app is not the hub's.
    ///
    /// # Errors
    /// [`RegistrationError`]; a damaged one is never taken for a missing one.
    pub fn read(app_dir: &Path) -> Result<Option<Registration>, RegistrationError> {
        let path = app_dir.join(FILE_NAME);
        let io = |source| RegistrationError::Io {
            doing: "read",
            path: path.clone(),
            source,
        };
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        let damaged = |why: String| RegistrationError::Damaged {
            path: path.clone(),
            why,
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(damaged(format!("it is longer than {MAX_BYTES} bytes")));
        }
        let found: Registration =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if found.version != VERSION {
            return Err(damaged(format!(
                "it has version {}, this agent reads {VERSION}",
                found.version
            )));
        }
        if app_dir.file_name().and_then(|name| name.to_str()) != Some(found.config.name.as_str()) {
            return Err(damaged(format!("it is of '{}'", found.config.name)));
        }
        Ok(Some(found))
    }

    /// Writes the registration into an app's directory, so that it is on the disk when this returns.
    ///
    /// # Errors
    /// [`RegistrationError::Io`]; the old one is then still there.
    pub fn write(&self, app_dir: &Path) -> Result<(), RegistrationError> {
        let path = app_dir.join(FILE_NAME);
        let io = |source| RegistrationError::Io {
            doing: "write",
            path: path.clone(),
            source,
        };
        let bytes = serde_json::to_vec(self).map_err(|error| io(error.into()))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(io(io::Error::other(format!(
                "it would have {} bytes",
                bytes.len()
            ))));
        }
        write_atomically(&path, &bytes).map_err(io)
    }

    /// What has to be done when this registration, all of which is done or due, becomes `next`.
    pub fn due_for(&self, next: &AppConfig, desired: Desired) -> Option<Due> {
        if desired == Desired::Stopped {
            return Some(Due::Stop);
        }
        let restarts = self.due == Some(Due::Restart) || !runs_alike(&self.config, next);
        match (restarts, self.desired) {
            (true, _) => Some(Due::Restart),
            (false, Desired::Stopped) => Some(Due::Start),
            (false, _) => Some(self.due.filter(|due| *due != Due::Stop).unwrap_or(Due::Adjust)),
        }
    }
}

/// Whether a process that was started by one configuration can go on under the other.
fn runs_alike(old: &AppConfig, new: &AppConfig) -> bool {
    // Whatever is not named here needs a new start, also what is added one day.
    let taken_up = AppConfig {
        ports: new.ports.clone(),
        seed: new.seed.clone(),
        memory: new.memory,
        cpus: new.cpus,
        pids: new.pids,
        idle: new.idle,
        cold_after: new.cold_after,
        restart: new.restart,
        after_crash: new.after_crash,
        prefetch: new.prefetch,
        ..old.clone()
    };
    taken_up == *new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Wait;

    fn config(extra: &str) -> AppConfig {
        let text = format!("name = \"web-ann\"\nroot = \"/srv/web\"\ncommand = [\"/bin/web\"]\n{extra}");
        toml::from_str(&text).unwrap()
    }

    fn registration(desired: Desired) -> Registration {
        Registration {
            version: VERSION,
            id: "a1".to_owned(),
            owner: "ann".to_owned(),
            resource_version: 3,
            applied: 3,
            desired,
            due: None,
            config: config("ports = [\"80/tcp\"]\nmemory = \"64M\"\nidle = \"10s\"\nenv = { A = \"b\" }"),
        }
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let app = root.path().join("web-ann");
        fs::create_dir(&app).unwrap();
        (root, app)
    }

    #[test]
    fn a_registration_is_read_back_as_it_was_written() {
        let (_root, app) = directory();
        assert_eq!(Registration::read(&app).unwrap(), None);
        let written = registration(Desired::Running);
        written.write(&app).unwrap();
        assert_eq!(Registration::read(&app).unwrap(), Some(written));
    }

    #[test]
    fn one_that_is_damaged_or_of_another_app_or_version_is_an_error_that_names_the_file() {
        let (_root, app) = directory();
        let good = registration(Desired::Running);
        let mut other = good.clone();
        other.config.name = "db-ann".to_owned();
        let newer = Registration {
            version: 2,
            ..good.clone()
        };
        for (bad, why) in [(other, "of 'db-ann'"), (newer, "version 2")] {
            bad.write(&app).unwrap();
            let error = Registration::read(&app).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(FILE_NAME), "{error}");
        }
        for bytes in [b"{}".to_vec(), vec![b' '; 2 << 20], b"{\"version\":1,".to_vec()] {
            fs::write(app.join(FILE_NAME), bytes).unwrap();
            assert!(matches!(
                Registration::read(&app),
                Err(RegistrationError::Damaged { .. })
            ));
        }
    }

    #[test]
    fn one_that_is_too_long_to_be_read_is_not_written() {
        let (_root, app) = directory();
        let mut long = registration(Desired::Running);
        long.config.env.insert("A".to_owned(), "x".repeat(2 << 20));
        assert!(long.write(&app).is_err());
        assert_eq!(Registration::read(&app).unwrap(), None);
    }

    #[test]
    fn only_what_a_process_cannot_take_up_as_it_goes_restarts_it() {
        let now = registration(Desired::Running);
        let mut policy = now.config.clone();
        policy.idle = Wait::Never;
        policy.ports.clear();
        policy.memory = None;
        assert_eq!(now.due_for(&policy, Desired::Running), Some(Due::Adjust));
        let mut command = now.config.clone();
        command.command.push("-v".to_owned());
        assert_eq!(now.due_for(&command, Desired::Running), Some(Due::Restart));
        assert_eq!(now.due_for(&command, Desired::Stopped), Some(Due::Stop));
        let stopped = registration(Desired::Stopped);
        assert_eq!(stopped.due_for(&policy, Desired::Running), Some(Due::Start));
    }

    #[test]
    fn what_was_due_and_not_done_stays_due() {
        let mut now = registration(Desired::Running);
        now.due = Some(Due::Restart);
        assert_eq!(now.due_for(&now.config, Desired::Running), Some(Due::Restart));
        now.due = Some(Due::Start);
        assert_eq!(now.due_for(&now.config, Desired::Running), Some(Due::Start));
        now.due = Some(Due::Stop);
        assert_eq!(now.due_for(&now.config, Desired::Running), Some(Due::Adjust));
    }
}
