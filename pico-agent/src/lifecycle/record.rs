//! The wake record of an app, `STATE/apps/NAME/app.json`: all that the agent must know to wake the app
//! without asking anybody. Written so that a crash at any moment leaves the old record or the new one.
//! Knows its own format and nothing of what it is used for.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::activeset::WakeReport;
use crate::addresses::Addresses;
use crate::gate::Connections;
use crate::lifecycle::state::{Situation, Tier};
use crate::port::Port;
use crate::shim::protocol::Sleep;
use crate::units::Timestamp;

/// Version of the format; a record with another one is refused, not guessed at.
pub const VERSION: u32 = 1;
/// Name of the file in the app's directory.
pub const FILE_NAME: &str = "app.json";
/// No record is longer; a file that is, is none.
const MAX_BYTES: u64 = 1024 * 1024;

/// How an app's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// By exit(2), with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl ExitStatus {
    /// Whether it ended by itself with status 0.
    pub fn is_clean(self) -> bool {
        self == ExitStatus::Code(0)
    }

    /// As a shell has it: the status, or 128 and the signal.
    pub fn shell(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exited with status {code}"),
            ExitStatus::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "killed by {name}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
        }
    }
}

/// The end of an app's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How.
    pub status: ExitStatus,
    /// When.
    pub at: Timestamp,
}

/// Something that went wrong and that its owner should know of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// What was being done: `swap-out`, `wake`, `start`, `upload`.
    pub during: String,
    /// What went wrong, with its remedy.
    pub reason: String,
}

/// One step of a wake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Such as `fetch`, `sandbox`, `restore`, `release`.
    pub name: String,
    /// Milliseconds.
    pub ms: f64,
}

/// The last wake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wake {
    /// When it began.
    pub at: Timestamp,
    /// Where the checkpoint lay.
    pub tier: Tier,
    /// What it was for: `80/tcp`, `owner`.
    pub trigger: String,
    /// Milliseconds from the trigger until the gate was open.
    pub total_ms: f64,
    /// Its steps in order; they may overlap.
    pub phases: Vec<Phase>,
    /// Bytes read from the store since the wake began; it goes on while the app runs.
    pub fetched_bytes: u64,
    /// Requests to the store for them.
    pub s3_gets: u64,
    /// Page faults answered since.
    #[serde(default)]
    pub faults: u64,
    /// Pages filled from the checkpoint since.
    #[serde(default)]
    pub pages_installed: u64,
    /// Pages filled before anybody asked for them.
    #[serde(default)]
    pub pages_ahead: u64,
    /// How that turned out; known when it has been learned from.
    #[serde(default)]
    pub prefetch: Option<WakeReport>,
}

/// What is known of the pages that one port's requests need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortSet {
    /// The port; `None`: the work of no port.
    pub port: Option<Port>,
    /// How often its work was watched.
    pub windows: u32,
    /// Pages that are more likely used than not.
    pub pages: u64,
    /// Whether it does something else than before.
    pub relearning: bool,
    /// Wakes by it that were learned from.
    pub wakes: u64,
    /// Of all these: the part of the needed pages that had been brought ahead.
    pub recall: Option<f64>,
    /// The part of those brought ahead that were needed.
    pub precision: Option<f64>,
    /// The last of them.
    pub last: Option<WakeReport>,
}

/// How often things happened since the app was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Starts from its files.
    pub starts: u64,
    /// Wakes from this host's disk.
    pub wakes_warm: u64,
    /// Wakes from object storage.
    pub wakes_cold: u64,
    /// Wakes that failed.
    pub failed_wakes: u64,
    /// Swap-outs.
    pub sleeps: u64,
    /// Swap-outs that failed; the app went on running.
    pub failed_sleeps: u64,
}

/// The checkpoint that the app would wake from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointRecord {
    /// Number of the newest complete generation; 0: none was ever made.
    pub generation: u64,
    /// The generation that lies complete on this host's disk.
    pub local: Option<u64>,
    /// The generation that the manifest in the store names.
    pub stored: Option<u64>,
    /// ETag of that manifest: the next one replaces it and no other.
    pub manifest_etag: Option<String>,
    /// Bytes of the newest generation with all its layers.
    pub bytes: u64,
    /// When it was taken, by the wall clock: what clocks are advanced from.
    pub taken: Option<Timestamp>,
    /// Its timers, and the clocks when it stopped.
    pub sleep: Sleep,
}

/// app.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// The app.
    pub name: String,
    /// Its service addresses, kept for ever.
    pub addresses: Addresses,
    /// The host's end of its veth pair.
    pub link: String,
    /// Its state, since when, and why.
    pub situation: Situation,
    /// Sequence number of its current or last run: names its cgroup.
    pub run: u64,
    /// Its checkpoint.
    #[serde(default)]
    pub checkpoint: CheckpointRecord,
    /// The connections in that checkpoint: what is answered in its name while it sleeps.
    #[serde(default)]
    pub connections: Connections,
    /// How its process last ended by itself.
    pub last_exit: Option<Exit>,
    /// What last went wrong.
    pub last_failure: Option<Failure>,
    /// Its last wake.
    pub last_wake: Option<Wake>,
    /// How often things happened.
    #[serde(default)]
    pub counters: Counters,
    /// When the app was first made.
    pub created: Timestamp,
    /// Names its life since it was last started anew: what is known of pages is known of those of one life.
    #[serde(default)]
    pub life: u64,
    /// What is known of the pages that its requests need.
    #[serde(default)]
    pub active_sets: Vec<PortSet>,
}

/// Why a wake record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("cannot {doing} the wake record {path} ({source})")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there but is no record.
    #[error(
        "the wake record {path} is damaged ({why}); try: restore it from a backup, or move it away: \
         the app then starts anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Written by another version of the agent.
    #[error(
        "the wake record {path} has version {found}, this agent reads {VERSION}; try: the agent that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

impl Record {
    /// The record of an app that was never started.
    pub fn new(name: &str, addresses: Addresses, link: &str, now: Timestamp) -> Self {
        Record {
            version: VERSION,
            name: name.to_owned(),
            addresses,
            link: link.to_owned(),
            situation: Situation::new(now),
            run: 0,
            checkpoint: CheckpointRecord::default(),
            connections: Connections::default(),
            last_exit: None,
            last_failure: None,
            last_wake: None,
            counters: Counters::default(),
            created: now,
            life: 0,
            active_sets: Vec::new(),
        }
    }

    /// Reads the record in an app's directory; `None` when there is none.
    ///
    /// # Errors
    /// [`RecordError`]; a damaged record is never taken for a missing one.
    pub fn read(app_dir: &Path) -> Result<Option<Record>, RecordError> {
        let path = app_dir.join(FILE_NAME);
        let io = |source| RecordError::Io {
            doing: "read",
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        let damaged = |why: String| RecordError::Damaged {
            path: path.clone(),
            why,
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(damaged(format!("it is longer than {MAX_BYTES} bytes")));
        }
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(found) if found == u64::from(VERSION) => {}
            Some(found) => return Err(RecordError::Version { path, found }),
            None => return Err(damaged("it has no version".to_owned())),
        }
        let record: Record = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        let directory = app_dir
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if record.name != directory {
            return Err(damaged(format!(
                "it is of '{}', in the directory of '{directory}'",
                record.name
            )));
        }
        Ok(Some(record))
    }

    /// Writes the record into an app's directory, so that it is on the disk when this returns.
    ///
    /// # Errors
    /// [`RecordError::Io`]; the old record is then still there.
    pub fn write(&self, app_dir: &Path) -> Result<(), RecordError> {
        let path = app_dir.join(FILE_NAME);
        let io = |source| RecordError::Io {
            doing: "write",
            path: path.clone(),
            source,
        };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| io(error.into()))?;
        bytes.push(b'\n');
        write_atomically(&path, &bytes).map_err(io)
    }
}

/// Replaces a file by another content, on the disk when this returns: the content is synced before the name
/// points to it, and the name before the caller goes on.
///
/// # Errors
/// What the file system says; the old content is then still there.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // One name, not a random one: what a crash leaves behind is overwritten by the next write.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lifecycle::state::Event;

    fn record() -> Record {
        let addresses = Addresses {
            v4: [10, 77, 0, 5].into(),
            v6: "fd77::5".parse().unwrap(),
        };
        let mut record = Record::new("web", addresses, "pico-web", Timestamp::from_micros(7));
        record
            .situation
            .apply(Event::Start, "asked", Timestamp::from_micros(8))
            .unwrap();
        record.checkpoint.manifest_etag = Some("\"abc\"".to_owned());
        record.last_exit = Some(Exit {
            status: ExitStatus::Signal(9),
            at: Timestamp::from_micros(9),
        });
        record.last_wake = Some(Wake {
            at: Timestamp::from_micros(10),
            tier: Tier::Cold,
            trigger: "80/tcp".to_owned(),
            total_ms: 12.5,
            phases: vec![Phase {
                name: "fetch".to_owned(),
                ms: 3.25,
            }],
            fetched_bytes: 4096,
            s3_gets: 2,
            faults: 7,
            pages_installed: 6,
            pages_ahead: 0,
            prefetch: None,
        });
        record
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let app = root.path().join("web");
        fs::create_dir(&app).unwrap();
        (root, app)
    }

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let (_root, app) = directory();
        assert_eq!(Record::read(&app).unwrap(), None);
        record().write(&app).unwrap();
        assert_eq!(Record::read(&app).unwrap(), Some(record()));
        assert_eq!(fs::read_dir(&app).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_write_cut_short_by_a_crash_leaves_the_old_record() {
        let (_root, app) = directory();
        record().write(&app).unwrap();
        fs::write(app.join("app.json.new"), b"{\"version\":1,").unwrap();
        assert_eq!(Record::read(&app).unwrap(), Some(record()));
        record().write(&app).unwrap();
        assert!(!app.join("app.json.new").exists());
    }

    #[test]
    fn a_record_of_another_version_or_app_is_refused_by_name() {
        let (_root, app) = directory();
        Record {
            version: 9,
            ..record()
        }
        .write(&app)
        .unwrap();
        assert!(matches!(
            Record::read(&app),
            Err(RecordError::Version { found: 9, .. })
        ));
        Record {
            name: "db".to_owned(),
            ..record()
        }
        .write(&app)
        .unwrap();
        let error = Record::read(&app).unwrap_err().to_string();
        assert!(
            error.contains("it is of 'db'") && error.contains("app.json"),
            "{error}"
        );
    }

    #[test]
    fn an_oversized_record_is_refused_without_reading_all_of_it() {
        let (_root, app) = directory();
        File::create(app.join(FILE_NAME))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(matches!(Record::read(&app), Err(RecordError::Damaged { .. })));
    }

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(ExitStatus::Code(3).to_string(), "exited with status 3");
        assert_eq!(ExitStatus::Signal(9).to_string(), "killed by SIGKILL");
        assert_eq!(ExitStatus::Signal(40).to_string(), "killed by signal 40");
        assert_eq!(ExitStatus::Signal(15).shell(), 143);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Cut off, or with bytes changed: an error or a record, never a panic, and never "no record".
        #[test]
        fn a_damaged_record_is_an_error(cut in 0usize..2000, flips in proptest::collection::vec((0usize..2000, any::<u8>()), 0..4)) {
            let (_root, app) = directory();
            let mut bytes = serde_json::to_vec_pretty(&record()).unwrap();
            for (at, byte) in flips {
                if let Some(slot) = bytes.get_mut(at) { *slot = byte; }
            }
            let whole = bytes.len();
            bytes.truncate(cut);
            fs::write(app.join(FILE_NAME), &bytes).unwrap();
            match Record::read(&app) {
                Ok(found) => prop_assert!(found.is_some() && cut >= whole),
                Err(error) => prop_assert!(error.to_string().contains("app.json")),
            }
        }
    }
}
