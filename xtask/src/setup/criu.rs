//! Finds a CRIU that works on this kernel, or makes a private copy that does. A CRIU counts only
//! after `probe` has seen it dump and lazily restore a server; what was seen is kept in the tools
//! directory for this version and kernel, so that it is tried once.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{apt, probe, sources};
use crate::cmd;
use crate::place::{Place, clean_env};

/// Debian's suite that has the newest CRIU.
const NEWEST_SUITE: &str = "unstable";

/// One CRIU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    /// A `criu` binary, or a root directory with its own loader and libraries (a private copy).
    pub path: PathBuf,
    /// What it says of itself, such as `4.2.1`.
    pub version: String,
}

/// What the probe saw of one CRIU on one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    path: PathBuf,
    version: String,
    kernel: String,
    /// Why it does not work; absent when it does.
    failure: Option<String>,
}

/// All that was seen, in TOOLS/criu-probe.json.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    seen: Vec<Seen>,
}

impl Record {
    fn file(place: &Place) -> PathBuf {
        place.tools.join("criu-probe.json")
    }

    fn load(place: &Place) -> Record {
        let text = std::fs::read(Record::file(place)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn find(&self, path: &Path, version: &str, kernel: &str) -> Option<&Seen> {
        self.seen
            .iter()
            .find(|s| s.path == path && s.version == version && s.kernel == kernel)
    }

    /// Adds what was seen, in place of what was seen of the same path and kernel before.
    fn add(&mut self, seen: Seen) {
        self.seen
            .retain(|s| s.path != seen.path || s.kernel != seen.kernel);
        self.seen.push(seen);
    }

    fn save(&self, place: &Place) -> Result<()> {
        cmd::write_if_changed(&Record::file(place), &serde_json::to_vec_pretty(self)?).map(drop)
    }
}

/// The running kernel's release.
pub fn kernel() -> Result<String> {
    let text =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    Ok(text.trim().to_owned())
}

/// How to start the CRIU at this path: a private copy is started by its own loader, with its own
/// libraries (below `usr/lib`, in older releases below `lib` too).
fn command_line(path: &Path) -> Option<Vec<String>> {
    let text = |p: &Path| p.to_str().map(str::to_owned);
    if path.is_file() {
        return Some(vec![text(path)?]);
    }
    let binary = path.join("usr/sbin/criu");
    let below = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    };
    let named = |p: &Path, part: &str| p.file_name().is_some_and(|n| n.to_string_lossy().contains(part));
    let mut libraries: Vec<PathBuf> = ["usr/lib", "lib"]
        .iter()
        .flat_map(|dir| below(&path.join(dir)))
        .collect();
    libraries.retain(|dir| named(dir, "-linux-gnu"));
    let loader = libraries
        .iter()
        .flat_map(|dir| below(dir))
        .find(|file| named(file, "ld-linux"))?;
    let libraries: Option<Vec<String>> = libraries.iter().map(|dir| text(dir)).collect();
    binary.is_file().then_some(())?;
    Some(vec![
        text(&loader)?,
        "--library-path".into(),
        libraries?.join(":"),
        text(&binary)?,
    ])
}

/// The CRIU at this path, if it can be started.
fn inspect(path: PathBuf) -> Option<Criu> {
    let line = command_line(&path)?;
    let said = cmd::output(clean_env(
        Command::new(&line[0]).args(&line[1..]).arg("--version"),
    ))
    .ok()?;
    Some(Criu {
        version: parse_version(&said)?,
        path,
    })
}

fn parse_version(text: &str) -> Option<String> {
    text.lines()
        .find_map(|l| l.strip_prefix("Version:"))
        .map(|v| v.trim().to_owned())
}

/// The CRIUs on this host in the order in which they are taken: the one that `PICO_CRIU` names
/// (then no other), the distribution's, the private copy.
fn present(place: &Place) -> Vec<Criu> {
    let paths = match std::env::var_os("PICO_CRIU") {
        Some(path) if !path.is_empty() => vec![PathBuf::from(path)],
        _ => cmd::which("criu").into_iter().chain([private(place)]).collect(),
    };
    paths.into_iter().filter_map(inspect).collect()
}

/// Where the private copy is.
fn private(place: &Place) -> PathBuf {
    place.tools.join("criu")
}

/// What is known without trying anything.
pub enum Known {
    /// This one passed the probe on this kernel.
    Works(Criu),
    /// None is known to work, and why.
    Nothing(String),
}

/// Looks at what earlier probes have seen.
pub fn known(place: &Place) -> Result<Known> {
    let (record, kernel) = (Record::load(place), kernel()?);
    let mut reasons = Vec::new();
    for criu in present(place) {
        match record
            .find(&criu.path, &criu.version, &kernel)
            .map(|seen| &seen.failure)
        {
            Some(None) => return Ok(Known::Works(criu)),
            Some(Some(failure)) => {
                reasons.push(format!("{} ({}): {failure}", criu.path.display(), criu.version))
            }
            None => reasons.push(format!(
                "{} ({}) was not tried on this kernel",
                criu.path.display(),
                criu.version
            )),
        }
    }
    if reasons.is_empty() {
        reasons.push("not installed".into());
    }
    Ok(Known::Nothing(reasons.join("; ")))
}

/// Tries one CRIU, unless it was tried on this kernel before, and keeps what was seen under `name`.
fn attempt(place: &Place, criu: &Criu, name: &Path) -> Result<Result<(), String>> {
    let (mut record, kernel) = (Record::load(place), kernel()?);
    if let Some(seen) = record.find(name, &criu.version, &kernel) {
        return Ok(seen.failure.clone().map_or(Ok(()), Err));
    }
    println!(
        "    trying {} ({}): a dump and lazy restore of a small TCP server",
        criu.path.display(),
        criu.version
    );
    let line =
        command_line(&criu.path).with_context(|| format!("{} cannot be started", criu.path.display()))?;
    let failure = probe::run(&line)?.err();
    println!("    {}", failure.as_deref().unwrap_or("it works"));
    let outcome = failure.clone().map_or(Ok(()), Err);
    record.add(Seen {
        path: name.to_path_buf(),
        version: criu.version.clone(),
        kernel,
        failure,
    });
    record.save(place)?;
    Ok(outcome)
}

/// Makes sure that a working CRIU is there: tries those that are present, then the distribution's,
/// then a private copy of the newest one.
pub fn install(place: &Place) -> Result<Criu> {
    let here = present(place);
    for criu in &here {
        match attempt(place, criu, &criu.path)? {
            Ok(()) => return Ok(criu.clone()),
            Err(reason) if std::env::var_os("PICO_CRIU").is_some_and(|v| !v.is_empty()) => {
                bail!(
                    "the CRIU named by PICO_CRIU does not work here: {reason}. Unset PICO_CRIU, or name another"
                )
            }
            Err(_) => {}
        }
    }
    if !here.iter().any(|c| c.path != private(place))
        && let Some(criu) = distribution(place)?
    {
        return Ok(criu);
    }
    println!(
        "    fetching a private copy from Debian's {NEWEST_SUITE} into {}",
        private(place).display()
    );
    let fetched = fetch(place, Some(NEWEST_SUITE))?;
    let root = private(place);
    if root.exists() {
        std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    std::fs::rename(fetched.join("root"), &root)
        .with_context(|| format!("cannot make {}", root.display()))?;
    std::fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))?;
    let criu =
        inspect(root.clone()).with_context(|| format!("the CRIU in {} cannot be started", root.display()))?;
    match attempt(place, &criu, &criu.path)? {
        Ok(()) => Ok(criu),
        Err(reason) => bail!(
            "no CRIU works on this kernel; the newest, {}, fails: {reason}. Build a newer one and name it with \
             PICO_CRIU=/path/to/criu",
            criu.version
        ),
    }
}

/// The distribution's CRIU, tried in a private copy first: it is installed only if it works.
fn distribution(place: &Place) -> Result<Option<Criu>> {
    if !apt::candidates(&["criu"]).contains_key("criu") {
        return Ok(None);
    }
    println!("    fetching the distribution's criu, to try it before it is installed");
    let fetched = fetch(place, None)?;
    let works = match inspect(fetched.join("root")) {
        Some(criu) => attempt(place, &criu, Path::new("distribution"))?.is_ok(),
        None => false,
    };
    std::fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))?;
    if !works {
        return Ok(None);
    }
    apt::install(&["criu".to_owned()])?;
    let path = cmd::which("criu").context("criu is installed, but not on PATH")?;
    let criu = inspect(path).context("criu is installed, but cannot be started")?;
    let outcome = attempt(place, &criu, &criu.path)?;
    Ok(outcome.is_ok().then_some(criu))
}

/// Downloads criu and everything it needs, its C library included, and unpacks it into `root` of
/// a new directory below the tools directory. Uses an apt state of its own (so the host's is
/// not touched, and no root is needed), in which nothing is installed yet; the packages come from
/// the host's own mirror, from its own release or the suite given.
fn fetch(place: &Place, suite: Option<&str>) -> Result<PathBuf> {
    let dir = place.tools.join(format!("criu.new-{}", std::process::id()));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    for sub in ["state/lists/partial", "cache/archives/partial", "parts", "root"] {
        std::fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    std::fs::write(dir.join("state/status"), "")?;
    let codename = apt::codename()?;
    let found = apt::host_sources();
    let wanted = match suite {
        Some(suite) => sources::with_suite(&found, &codename, suite)
            .into_iter()
            .collect(),
        None => sources::of_release(&found, &codename),
    };
    if wanted.is_empty() {
        bail!(
            "the apt sources of this host name no archive of {codename}: add it to /etc/apt/sources.list.d"
        );
    }
    let stanzas: Vec<String> = wanted.iter().map(sources::Source::stanza).collect();
    std::fs::write(dir.join("parts/criu.sources"), stanzas.join("\n"))?;

    let at = |sub: &str| dir.join(sub).display().to_string();
    let options = [
        format!("Dir::State={}", at("state")),
        format!("Dir::State::status={}", at("state/status")),
        format!("Dir::Cache={}", at("cache")),
        "Dir::Etc::SourceList=/dev/null".into(),
        format!("Dir::Etc::SourceParts={}", at("parts")),
        // A pin on the host must not choose another version.
        "Dir::Etc::Preferences=/dev/null".into(),
        "Dir::Etc::PreferencesParts=/dev/null".into(),
        "APT::Install-Recommends=false".into(),
        // The tools directory is often closed to the user that apt downloads as.
        "APT::Sandbox::User=root".into(),
    ];
    let apt_get = || {
        let mut cmd = Command::new("apt-get");
        cmd.arg("-qq")
            .args(options.iter().flat_map(|o| ["-o", o]))
            .env("DEBIAN_FRONTEND", "noninteractive");
        cmd
    };
    cmd::output(apt_get().arg("update"))?;
    cmd::output(apt_get().args(["install", "-y", "--download-only", "criu"]))?;
    let mut packages = 0;
    for entry in std::fs::read_dir(dir.join("cache/archives"))?.flatten() {
        if entry.path().extension().is_some_and(|e| e == "deb") {
            cmd::output(
                Command::new("dpkg")
                    .arg("-x")
                    .arg(entry.path())
                    .arg(dir.join("root")),
            )?;
            packages += 1;
        }
    }
    println!("    {packages} packages unpacked; nothing of the host was touched");
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(path: &str, version: &str, kernel: &str, failure: Option<&str>) -> Seen {
        Seen {
            path: path.into(),
            version: version.into(),
            kernel: kernel.into(),
            failure: failure.map(str::to_owned),
        }
    }

    #[test]
    fn what_was_seen_counts_for_that_version_and_kernel_only() {
        let mut record = Record::default();
        record.add(seen("/usr/sbin/criu", "3.17.1", "6.1", None));
        assert!(
            record
                .find(Path::new("/usr/sbin/criu"), "3.17.1", "6.1")
                .is_some()
        );
        assert!(
            record
                .find(Path::new("/usr/sbin/criu"), "3.17.1", "6.18")
                .is_none()
        );
        assert!(record.find(Path::new("/usr/sbin/criu"), "4.2.1", "6.1").is_none());
        record.add(seen("/usr/sbin/criu", "4.2.1", "6.1", Some("no")));
        assert_eq!(
            record.seen.len(),
            1,
            "an upgraded CRIU replaces what was seen of the old one"
        );
    }

    #[test]
    fn the_record_survives_on_disk() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let place = Place {
            root: dir.path().into(),
            target: dir.path().into(),
            tools: dir.path().join("tools"),
        };
        let mut record = Record::load(&place);
        record.add(seen("/c", "4.2.1", "6.18", Some("criu dump fails")));
        record.save(&place)?;
        assert_eq!(Record::load(&place).seen, record.seen);
        std::fs::write(Record::file(&place), "{ half")?;
        assert!(
            Record::load(&place).seen.is_empty(),
            "a damaged record means: try again"
        );
        Ok(())
    }

    #[test]
    fn a_private_copy_is_started_by_its_own_loader() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let lib = dir.path().join("usr/lib/x86_64-linux-gnu");
        std::fs::create_dir_all(&lib)?;
        std::fs::create_dir_all(dir.path().join("usr/sbin"))?;
        assert_eq!(command_line(dir.path()), None);
        std::fs::write(dir.path().join("usr/sbin/criu"), "")?;
        std::fs::write(lib.join("ld-linux-x86-64.so.2"), "")?;
        let line = command_line(dir.path()).unwrap();
        assert!(
            line[0].ends_with("ld-linux-x86-64.so.2") && line[3].ends_with("usr/sbin/criu"),
            "{line:?}"
        );
        assert_eq!(line[1], "--library-path");
        Ok(())
    }

    #[test]
    fn the_version_is_what_criu_says() {
        assert_eq!(
            parse_version("Version: 4.2.1\nGitID: v4.2.1\n").as_deref(),
            Some("4.2.1")
        );
        assert_eq!(parse_version("criu: not found"), None);
    }
}
