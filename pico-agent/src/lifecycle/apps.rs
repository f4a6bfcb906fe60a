//! The apps of an agent: which there are, and how they come and go while it runs. Those of agent.toml are there from
//! its start to its end; the hub's are registered, changed and deleted, and each of these steps is on the disk
//! ([`super::registration`]) before it begins, so that a crash in the middle of one does it again.
//!
//! Knows nothing of how an app is started, stopped or removed: that is its actor's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::agent::AgentError;
use super::app::{App, AppHandle, Command, Reply};
use super::host::Host;
use super::paths::AppPaths;
use super::record::Record;
use super::registration::{self, Desired, Due, Registration};
use crate::addresses::{AddressError, Addresses, Request as AddressRequest, Subnets};
use crate::config::{AppConfig, Config};
use crate::control::protocol::{ErrorCode, Failure};
use crate::fence::Fenced;
use crate::hub::{Applying, Wanted};
use crate::units::Timestamp;

/// First and longest wait before a deletion that failed is tried again.
const DELETE_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// All apps of this agent.
pub(super) struct Apps {
    host: Arc<Host>,
    subnets: Subnets,
    set: RwLock<Set>,
    /// Held by whoever registers or changes an app: one at a time.
    changing: tokio::sync::Mutex<()>,
    /// Counts registrations that are done, and apps that are gone.
    progress: watch::Sender<u64>,
}

#[derive(Default)]
struct Set {
    entries: BTreeMap<String, Entry>,
    /// As in agent.toml, then the hub's as they came.
    order: Vec<String>,
    /// By what the probes know the next app; never given twice.
    next_number: u32,
    /// Names of the hub's apps by their ids.
    ids: HashMap<String, String>,
    taken: BTreeSet<Ipv4Addr>,
    /// The address that was given last.
    last: Option<Ipv4Addr>,
}

struct Entry {
    handle: AppHandle,
    v4: Ipv4Addr,
    /// `None`: it stands in agent.toml.
    registration: Option<Arc<Registered>>,
}

struct Registered {
    current: Mutex<Registration>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Apps {
    /// Takes up every app of the configuration, and every one that is registered on this disk. What was begun with
    /// one of the latter and not finished goes on.
    ///
    /// # Errors
    /// When a record or registration cannot be read, an address cannot be given, or agent.toml has an app whose
    /// name is registered.
    pub fn open(
        host: Arc<Host>,
        config: &Config,
        mut records: HashMap<String, Record>,
    ) -> Result<Arc<Apps>, AgentError> {
        let registered = registrations(&host.state_dir)?;
        if let Some(both) = config.apps.iter().find(|app| registered.contains_key(&app.name)) {
            return Err(AgentError::Clash(both.name.clone()));
        }
        let local = config.apps.iter();
        let known: Vec<&AppConfig> = local
            .chain(registered.values().map(|found| &found.config))
            .collect();
        let subnets = Subnets::new(config.network.v4, config.network.v6)?;
        let requests: Vec<AddressRequest<'_>> = known
            .iter()
            .map(|app| AddressRequest {
                app: &app.name,
                configured: app.address,
                kept: records.get(&app.name).map(|record| record.addresses.v4),
            })
            .collect();
        let reserved = reserved(&host.state_dir, &known);
        let addresses = subnets.allocate(&requests, &reserved)?;
        let apps = Arc::new(Apps {
            host,
            subnets,
            set: RwLock::new(Set {
                taken: reserved,
                ..Set::default()
            }),
            changing: tokio::sync::Mutex::default(),
            progress: watch::Sender::new(0),
        });
        let fenced = known.iter().zip(&addresses);
        apps.host
            .fence
            .replace(fenced.map(|(app, addresses)| apps.fenced(app, *addresses)))?;
        for (app, addresses) in known.iter().zip(addresses) {
            let record = records.remove(&app.name);
            apps.spawn(
                (*app).clone(),
                addresses,
                record,
                registered.get(&app.name).cloned(),
            )?;
        }
        for registration in registered.into_values() {
            apps.resume(registration);
        }
        Ok(apps)
    }

    fn read(&self) -> RwLockReadGuard<'_, Set> {
        self.set.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Set> {
        self.set.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The app called `name`.
    pub fn get(&self, name: &str) -> Option<AppHandle> {
        self.read().entries.get(name).map(|entry| entry.handle.clone())
    }

    /// All names: as in agent.toml, then the hub's.
    pub fn names(&self) -> Vec<String> {
        self.read().order.clone()
    }

    /// All apps, in the order of [`Apps::names`].
    pub fn handles(&self) -> Vec<AppHandle> {
        let set = self.read();
        let entries = set.order.iter().filter_map(|name| set.entries.get(name));
        entries.map(|entry| entry.handle.clone()).collect()
    }

    /// The name of the hub's app with this id.
    pub fn name_of(&self, id: &str) -> Option<String> {
        self.read().ids.get(id).cloned()
    }

    /// The registration of the app called `name`, if it is the hub's.
    pub fn registration(&self, name: &str) -> Option<Registration> {
        let shared = self.read().entries.get(name)?.registration.clone()?;
        let registration = lock(&shared.current).clone();
        Some(registration)
    }

    /// Names of the hub's apps.
    pub fn registered(&self) -> Vec<String> {
        self.read().ids.values().cloned().collect()
    }

    fn fenced(&self, app: &AppConfig, addresses: Addresses) -> Fenced {
        Fenced {
            link: link_name(&self.host.instance, &app.name),
            addresses,
            ports: app.ports.clone(),
        }
    }

    /// Starts the actor of an app.
    fn spawn(
        &self,
        config: AppConfig,
        addresses: Addresses,
        record: Option<Record>,
        registration: Option<Registration>,
    ) -> Result<AppHandle, AgentError> {
        let name = config.name.clone();
        let paths = AppPaths::new(&self.host.state_dir, &name);
        fs::create_dir_all(&paths.dir).map_err(|source| AgentError::File {
            path: paths.dir.clone(),
            source,
        })?;
        let link = link_name(&self.host.instance, &name);
        let mut record = record.unwrap_or_else(|| Record::new(&name, addresses, &link, Timestamp::now()));
        record.addresses = addresses;
        let starts = registration
            .as_ref()
            .is_none_or(|registration| registration.desired == Desired::Running);
        let mut set = self.write();
        let number = set.next_number;
        set.next_number += 1;
        let handle = App::spawn(self.host.clone(), config, record, number, starts);
        set.order.push(name.clone());
        set.taken.insert(addresses.v4);
        set.last = Some(addresses.v4);
        if let Some(registration) = &registration {
            set.ids.insert(registration.id.clone(), name.clone());
        }
        let entry = Entry {
            handle: handle.clone(),
            v4: addresses.v4,
            registration: registration.map(|registration| {
                Arc::new(Registered {
                    current: Mutex::new(registration),
                    writing: Mutex::default(),
                })
            }),
        };
        set.entries.insert(name, entry);
        Ok(handle)
    }

    fn forget(&self, name: &str) {
        let mut set = self.write();
        let Some(entry) = set.entries.remove(name) else {
            return;
        };
        set.order.retain(|other| other != name);
        set.taken.remove(&entry.v4);
        if let Some(registration) = entry.registration {
            set.ids.remove(&lock(&registration.current).id);
        }
        drop(set);
        self.progress.send_modify(|count| *count += 1);
    }

    /// Makes an app of the hub's as the hub wants it. When this returns, it is on the disk and begun; the future that
    /// it gives waits for the end.
    ///
    /// # Errors
    /// When it cannot be begun; nothing has changed then.
    pub async fn register(self: &Arc<Self>, wanted: Wanted) -> Result<Applying, Failure> {
        let _one = self.changing.lock().await;
        let name = wanted.config.name.clone();
        let Some(now) = self.registration(&name) else {
            if self.get(&name).is_some() {
                let message = format!("this host has an app '{name}' of its own, in agent.toml");
                return Err(Failure::new(ErrorCode::NameTaken, message)
                    .hint("choose another name, or have it renamed in agent.toml"));
            }
            return match wanted.desired {
                // Nothing of it is here, so that all of it is gone.
                Desired::Deleted => Ok(Box::pin(async { Ok(()) })),
                _ => self.add(wanted).await,
            };
        };
        if now.id != wanted.id {
            let message = format!("this host has another app '{name}' of the hub's (id {})", now.id);
            let failure = Failure::new(ErrorCode::NameTaken, message);
            return Err(match now.desired {
                Desired::Deleted => Failure {
                    retryable: true,
                    ..failure.hint("it is being deleted: try again when it is gone")
                },
                _ => failure.hint("delete that one first, or choose another name"),
            });
        }
        if now.desired == Desired::Deleted || wanted.resource_version <= now.resource_version {
            return Ok(self.until_done(now));
        }
        self.change(now, wanted).await
    }

    async fn add(self: &Arc<Self>, wanted: Wanted) -> Result<Applying, Failure> {
        let apps = self.clone();
        let added = tokio::task::spawn_blocking(move || apps.add_now(wanted));
        let (handle, registration) = added.await.map_err(failed)??;
        let apps = self.clone();
        Ok(driven(async move {
            let outcome = settled(&handle, &registration).await;
            apps.done(registration).await;
            outcome
        }))
    }

    fn add_now(&self, wanted: Wanted) -> Result<(AppHandle, Registration), Failure> {
        let name = wanted.config.name.clone();
        let paths = AppPaths::new(&self.host.state_dir, &name);
        if !matches!(Record::read(&paths.dir), Ok(None)) {
            let message = format!(
                "{} has the state of an app that is not the hub's",
                paths.dir.display()
            );
            return Err(Failure::new(ErrorCode::NameTaken, message)
                .hint("choose another name, or have that directory moved away"));
        }
        let addresses = {
            let set = self.read();
            let last = set.last.unwrap_or(self.subnets.gate().v4);
            self.subnets.next(&name, last, &set.taken)
        };
        let addresses = addresses.map_err(|error: AddressError| failed(error))?;
        let registration = Registration {
            version: registration::VERSION,
            id: wanted.id,
            owner: wanted.owner,
            resource_version: wanted.resource_version,
            applied: 0,
            desired: wanted.desired,
            due: Some(match wanted.desired {
                Desired::Running => Due::Start,
                _ => Due::Stop,
            }),
            config: wanted.config,
        };
        // Before it can send anything.
        self.host
            .fence
            .put(self.fenced(&registration.config, addresses))
            .map_err(failed)?;
        fs::create_dir_all(&paths.dir).map_err(failed)?;
        registration.write(&paths.dir).map_err(failed)?;
        // The directory's own name must be on the disk too.
        let parent = paths.dir.parent().unwrap_or(Path::new("/"));
        fs::File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)?;
        let config = registration.config.clone();
        let handle = self
            .spawn(config, addresses, None, Some(registration.clone()))
            .map_err(failed)?;
        Ok((handle, registration))
    }

    async fn change(self: &Arc<Self>, now: Registration, wanted: Wanted) -> Result<Applying, Failure> {
        let next = Registration {
            due: now.due_for(&wanted.config, wanted.desired),
            resource_version: wanted.resource_version,
            desired: wanted.desired,
            // What is deleted keeps its last configuration.
            config: match wanted.desired {
                Desired::Deleted => now.config.clone(),
                _ => wanted.config,
            },
            ..now
        };
        self.keep(next.clone()).await?;
        if next.desired != Desired::Deleted {
            let (apps, config) = (self.clone(), next.config.clone());
            let fenced = tokio::task::spawn_blocking(move || {
                let addresses = apps
                    .get(&config.name)
                    .map(|app| app.view.borrow().detail.summary.addresses);
                addresses.map_or(Ok(()), |addresses| {
                    apps.host.fence.put(apps.fenced(&config, addresses))
                })
            });
            fenced.await.map_err(failed)?.map_err(failed)?;
        }
        Ok(match next.desired {
            Desired::Deleted => {
                tokio::spawn(self.clone().delete(next.config.name.clone()));
                self.until_done(next)
            }
            _ => self.apply(next),
        })
    }

    /// Goes on with what was begun before the agent started.
    fn resume(self: &Arc<Self>, registration: Registration) {
        if registration.desired == Desired::Deleted {
            tokio::spawn(self.clone().delete(registration.config.name));
        } else if registration.due.is_some() {
            let name = registration.config.name.clone();
            let applying = self.apply(registration);
            tokio::spawn(async move {
                if let Err(error) = applying.await {
                    tracing::error!(app = name, %error, "what its owner asked for before failed");
                }
            });
        }
    }

    /// Tells the actor, in order, what a registration asks of it; the future waits until it has done it.
    fn apply(self: &Arc<Self>, registration: Registration) -> Applying {
        let Some(handle) = self.get(&registration.config.name) else {
            return Box::pin(async { Err(going_down()) });
        };
        let config = Box::new(registration.config.clone());
        let configured = handle.begin(|reply| Command::Configure(config, reply));
        let started = match registration.due {
            Some(Due::Restart) => Some(handle.begin(Command::Restart)),
            Some(Due::Start) => Some(handle.begin(Command::Start)),
            Some(Due::Stop) => Some(handle.begin(Command::Stop)),
            Some(Due::Adjust) | None => None,
        };
        let apps = self.clone();
        driven(async move {
            let mut outcome = configured.await.unwrap_or_else(|_| Err(going_down()));
            if let (Ok(()), Some(started)) = (&outcome, started) {
                outcome = started.await.unwrap_or_else(|_| Err(going_down()));
            }
            // An actor that is gone has not done it: it stays due.
            if !matches!(&outcome, Err(failure) if failure.code == ErrorCode::Busy) {
                apps.done(registration).await;
            }
            outcome
        })
    }

    /// Notes that all of a registration was done, if it is still the newest.
    async fn done(&self, registration: Registration) {
        let done = Registration {
            due: None,
            applied: registration.resource_version,
            ..registration
        };
        let name = done.config.name.clone();
        if let Err(error) = self.keep(done).await {
            // It will be done once more.
            tracing::error!(app = name, %error, "what was done cannot be noted");
        }
        self.host.changes.mark(&name);
        self.progress.send_modify(|count| *count += 1);
    }

    /// Replaces a registration by one that is not older, on the disk first.
    async fn keep(&self, next: Registration) -> Result<(), Failure> {
        let shared = self
            .read()
            .entries
            .get(&next.config.name)
            .and_then(|entry| entry.registration.clone());
        let Some(shared) = shared else { return Ok(()) };
        let dir = AppPaths::new(&self.host.state_dir, &next.config.name).dir;
        let kept = tokio::task::spawn_blocking(move || {
            let _writing = lock(&shared.writing);
            let newest = lock(&shared.current).resource_version;
            if next.resource_version >= newest {
                next.write(&dir)?;
                *lock(&shared.current) = next;
            }
            Ok::<_, registration::RegistrationError>(())
        });
        kept.await.map_err(failed)?.map_err(failed)
    }

    /// Removes an app whose tombstone is on the disk, however often that must be tried.
    async fn delete(self: Arc<Self>, name: String) {
        let Some(handle) = self.get(&name) else { return };
        let mut pause = DELETE_BACKOFF.0;
        // The actor ends when it has removed all but the tombstone, or when the agent goes down.
        loop {
            match handle.begin(Command::Delete).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => tracing::error!(app = name, %error, "cannot be deleted yet"),
                Err(_) => return,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(DELETE_BACKOFF.1);
        }
        // Until that has succeeded the tombstone is there, and nobody is told that the app is gone.
        while let Err(error) = self.clone().remove_traces(&name).await {
            tracing::error!(app = name, %error, "its last traces cannot be removed yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(DELETE_BACKOFF.1);
        }
        tracing::info!(app = name, "deleted");
        self.forget(&name);
    }

    /// What is left of an app when its actor has ended: what it may reach, and its tombstone.
    async fn remove_traces(self: Arc<Self>, name: &str) -> Result<(), Failure> {
        let dir = AppPaths::new(&self.host.state_dir, name).dir;
        let link = link_name(&self.host.instance, name);
        let removed = tokio::task::spawn_blocking(move || {
            self.host.fence.remove(&link).map_err(failed)?;
            bury(&dir).map_err(failed)
        });
        removed.await.map_err(failed)?
    }

    /// Waits until what a registration asks is done: of a tombstone, until nothing is left of the app.
    fn until_done(self: &Arc<Self>, asked: Registration) -> Applying {
        let apps = self.clone();
        Box::pin(async move {
            let mut progress = apps.progress.subscribe();
            loop {
                let now = apps
                    .registration(&asked.config.name)
                    .filter(|now| now.id == asked.id);
                let tombstone = asked.desired == Desired::Deleted;
                if now.is_none_or(|now| !tombstone && now.applied >= asked.resource_version) {
                    return Ok(());
                }
                progress.changed().await.map_err(|_| going_down())?;
            }
        })
    }
}

/// Runs to its end whether or not anybody waits for it.
fn driven(work: impl Future<Output = Result<(), Failure>> + Send + 'static) -> Applying {
    let task = tokio::spawn(work);
    Box::pin(async move { task.await.unwrap_or_else(|_| Err(going_down())) })
}

/// Removes the tombstone and the directory that has nothing else any more.
fn bury(dir: &Path) -> std::io::Result<()> {
    match fs::remove_file(dir.join(registration::FILE_NAME)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits until an app that was just added has come to rest.
async fn settled(handle: &AppHandle, registration: &Registration) -> Result<(), Failure> {
    let (done, finished) = oneshot::channel();
    // Answered after the actor has taken the app up: started it, if it was to be.
    let _ = handle.commands.send(Command::Refresh(done));
    finished.await.map_err(|_| going_down())?;
    let summary = handle.view.borrow().detail.summary.clone();
    if registration.desired == Desired::Running && summary.state == "failed" {
        let message = format!("'{}' could not be started ({})", summary.name, summary.reason);
        return Err(Failure::new(ErrorCode::StartFailed, message));
    }
    Ok(())
}

fn going_down() -> Failure {
    Failure::new(ErrorCode::Busy, "the agent is going down")
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Failed, error.to_string())
}

impl AppHandle {
    /// Sends a command now; its outcome comes later. The receiver fails when the actor has ended.
    pub fn begin(&self, command: impl FnOnce(Reply) -> Command) -> oneshot::Receiver<Result<(), Failure>> {
        let (reply, outcome) = oneshot::channel();
        let _ = self.commands.send(command(reply));
        outcome
    }
}

/// What is registered on this disk, by name.
fn registrations(state_dir: &Path) -> Result<BTreeMap<String, Registration>, AgentError> {
    let mut found = BTreeMap::new();
    for dir in app_dirs(state_dir) {
        if let Some(registration) = Registration::read(&dir)? {
            found.insert(registration.config.name.clone(), registration);
        }
    }
    Ok(found)
}

/// The wake records there are, by app.
///
/// # Errors
/// When one of an app of the configuration or of the hub's is damaged; others are left alone.
pub(super) fn records(config: &Config) -> Result<HashMap<String, Record>, AgentError> {
    let mut records = HashMap::new();
    let local = config
        .apps
        .iter()
        .map(|app| AppPaths::new(&config.state_dir, &app.name).dir);
    let registered = app_dirs(&config.state_dir)
        .into_iter()
        .filter(|dir| dir.join(registration::FILE_NAME).exists());
    for dir in local.chain(registered) {
        if let Some(record) = Record::read(&dir)? {
            records.insert(record.name.clone(), record);
        }
    }
    Ok(records)
}

fn app_dirs(state_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir.join("apps"));
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).collect()
}

/// Addresses of apps that are neither in agent.toml now nor registered, but have a record.
fn reserved(state_dir: &Path, known: &[&AppConfig]) -> BTreeSet<Ipv4Addr> {
    let known: BTreeSet<&str> = known.iter().map(|app| app.name.as_str()).collect();
    app_dirs(state_dir)
        .iter()
        .filter(|dir| {
            let name = dir.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| !known.contains(name))
        })
        .filter_map(|dir| Record::read(dir).ok().flatten())
        .map(|record| record.addresses.v4)
        .collect()
}

/// Name of the host's end of an app's veth pair: the same for the same app, at most 15 bytes.
pub(super) fn link_name(instance: &str, app: &str) -> String {
    let hash = blake3::hash(format!("{instance}/{app}").as_bytes()).to_hex();
    format!("pv{}", &hash[..10])
}
