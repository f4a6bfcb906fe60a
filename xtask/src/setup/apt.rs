//! The host's Debian packages: which are installed, what apt could install, installing without
//! starting any service. Knows no package by name.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::sources::{self, Source};
use crate::cmd;

/// The installed packages among these, with their versions.
pub fn installed(names: &BTreeSet<String>) -> BTreeMap<String, String> {
    // Exits with 1 when one of them is unknown, and tells of the others all the same.
    let out = Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status} ${Package} ${Version}\n"])
        .args(names)
        .output();
    let text = out
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    parse_installed(&text)
}

fn parse_installed(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (status, name, version) = (words.next()?, words.next()?, words.next()?);
            (status == "installed").then(|| (name.to_owned(), version.to_owned()))
        })
        .collect()
}

/// The version that apt would install of each of these; those it does not know are left out.
pub fn candidates(names: &[&str]) -> BTreeMap<String, String> {
    let out = cmd::output(
        Command::new("apt-cache")
            .arg("policy")
            .args(names)
            .env("LC_ALL", "C"),
    );
    parse_policy(&out.unwrap_or_default())
}

fn parse_policy(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut package = "";
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            package = name;
        } else if let Some(version) = line.trim().strip_prefix("Candidate: ")
            && version != "(none)"
        {
            found.insert(package.to_owned(), version.to_owned());
        }
    }
    found
}

/// The major version of the LLVM library that a package needs, itself or by what it needs.
pub fn llvm_of(package: &str) -> Option<u32> {
    let mut cmd = Command::new("apt-cache");
    let out = cmd::output(cmd.args(["depends", "--recurse", "--important", package])).ok()?;
    let mut majors = out
        .split_whitespace()
        .filter_map(|w| w.strip_prefix("libllvm")?.parse().ok());
    majors.next()
}

/// Asks the mirrors for their lists of packages.
pub fn update() -> Result<()> {
    let mut cmd = cmd::as_root("apt-get", &[("DEBIAN_FRONTEND", "noninteractive".into())])?;
    cmd::run(cmd.args(["-q", "update"]))
}

/// Run as root with `sh -c`: forbids maintainer scripts to start services while apt-get runs
/// (policy-rc.d is Debian's own way), unless the host has such a policy already. The trap takes
/// the file away on failure and Ctrl-C too.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ] && [ ! -L "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@"
"#;

/// Installs packages. No service of theirs is started, now or when the host boots.
pub fn install(names: &[String]) -> Result<()> {
    let env: [(&str, OsString); 2] = [
        ("DEBIAN_FRONTEND", "noninteractive".into()),
        ("NEEDRESTART_SUSPEND", "1".into()),
    ];
    println!("$ {}", install_command(names));
    let status = cmd::as_root("sh", &env)?
        .args(["-c", INSTALL, "install"])
        .args(names)
        .stdin(std::process::Stdio::null())
        .status()
        .context("cannot run sh")?;
    if !status.success() {
        bail!("apt-get could not install {}: {status}", names.join(" "));
    }
    Ok(())
}

/// Keeps services that a package brought from being started when the host boots. Units that do
/// not exist are no error: what is asked for holds.
pub fn disable_services(units: &[&str]) -> Result<()> {
    if units.is_empty() || cmd::which("systemctl").is_none() {
        return Ok(());
    }
    let mut cmd = cmd::as_root("systemctl", &[])?;
    cmd.args(["--quiet", "disable"]).args(units);
    println!("$ {}", cmd::display(&cmd));
    cmd.stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .context("systemctl")?;
    Ok(())
}

/// What a person types to install these.
pub fn install_command(names: &[String]) -> String {
    format!(
        "{}apt-get install -y --no-install-recommends {}",
        cmd::sudo_prefix(),
        names.join(" ")
    )
}

/// The host's sources, in both styles.
pub fn host_sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut files = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
    let parts = std::fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    let mut parts: Vec<_> = parts.map(|e| e.path()).collect();
    parts.sort();
    files.extend(parts);
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => found.extend(sources::parse_deb822(&text)),
            Some("list") => found.extend(sources::parse_one_line(&text)),
            _ => {}
        }
    }
    found
}

/// The release's code name, such as `bookworm`.
pub fn codename() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="))
        .unwrap_or_default();
    match name.trim_matches('"') {
        "" => bail!("/etc/os-release names no VERSION_CODENAME: setup knows Debian releases only"),
        name => Ok(name.to_owned()),
    }
}

/// Compares two versions as dpkg does: whether the first is at least the second.
pub fn at_least(version: &str, wanted: &str) -> bool {
    let status = Command::new("dpkg")
        .args(["--compare-versions", version, "ge", wanted])
        .status();
    status.is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let text = "installed gcc 4:12.2.0-3\nnot-installed nginx \nconfig-files bind9 1:9.18\n";
        let found = parse_installed(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found["gcc"], "4:12.2.0-3");
    }

    #[test]
    fn a_package_without_a_candidate_is_unknown() {
        let text = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1\n  Version table:\n\
                    \x20    1.96.0+dfsg1-1 500\nghost:\n  Installed: (none)\n  Candidate: (none)\n";
        let found = parse_policy(text);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("rustc-web".into(), "1.96.0+dfsg1-1".into())]
        );
    }
}
