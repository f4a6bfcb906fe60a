//! The Debian packages that are needed, for what, and why. Only a table: knows not how to install.

use super::Need;

/// One package.
#[derive(Debug)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub why: &'static str,
    /// The service that it brings, which we never want to run by itself.
    pub unit: Option<&'static str>,
    needs: &'static [Need],
}

impl Package {
    /// Whether one of these needs it.
    pub fn needed_for(&self, needs: &[Need]) -> bool {
        let wanted =
            |need: &Need| needs.contains(need) || (*need == Need::Build && super::needs_build(needs));
        self.needs.iter().any(wanted)
    }
}

const BUILD: &[Need] = &[Need::Build];
/// Apps that only scenarios run.
const TEST: &[Need] = &[Need::Test];
/// The apps, and what drives them.
const RUN: &[Need] = &[Need::Test, Need::Demo, Need::Bench];

const fn package(name: &'static str, why: &'static str, needs: &'static [Need]) -> Package {
    Package {
        name,
        why,
        unit: None,
        needs,
    }
}

const fn service(
    name: &'static str,
    why: &'static str,
    unit: &'static str,
    needs: &'static [Need],
) -> Package {
    Package {
        name,
        why,
        unit: Some(unit),
        needs,
    }
}

/// All of them.
pub const PACKAGES: &[Package] = &[
    package("gcc", "links Rust programs, builds the C parts of crates", BUILD),
    package("libc6-dev", "the C library's headers and start files", BUILD),
    package(
        "libclang-dev",
        "reads the kernel's userfaultfd header (bindgen)",
        BUILD,
    ),
    package("ca-certificates", "cargo fetches crates over TLS", BUILD),
    service("nginx", "an app: static site", "nginx.service", RUN),
    service(
        "redis-server",
        "an app: 60 MB of keys",
        "redis-server.service",
        RUN,
    ),
    package("redis-tools", "fills and asks redis", RUN),
    service("bind9", "an app: DNS over UDP and TCP", "named.service", RUN),
    package("bind9-dnsutils", "asks BIND (dig)", RUN),
    service(
        "postgresql",
        "an app: a database under pgbench",
        "postgresql.service",
        TEST,
    ),
    service(
        "mosquitto",
        "an app: clients that wait for messages",
        "mosquitto.service",
        TEST,
    ),
    service(
        "openssh-server",
        "an app: sessions that stay open",
        "ssh.service",
        TEST,
    ),
    package("openssh-client", "an SSH session", TEST),
    package("python3", "an app: objects of an interpreter", TEST),
    package("python3-numpy", "an app: arrays of a library in C", TEST),
    package("nodejs", "an app: a JavaScript heap", TEST),
    package("openjdk-17-jdk-headless", "an app: a Java virtual machine", TEST),
    package("curl", "asks nginx", RUN),
    package("iproute2", "shows and makes links, routes, rules", RUN),
    package("nftables", "published ports", RUN),
    package("procps", "shows processes and kernel settings", RUN),
    package("util-linux", "namespaces for trying CRIU (unshare, setsid)", RUN),
    package(
        "debootstrap",
        "makes a fresh Debian to prove the README in",
        &[Need::Fresh],
    ),
];
