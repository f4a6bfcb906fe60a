//! The probes on the real kernel: programs loaded and attached, real processes in real cgroups, real packets
//! and page faults. Needs root and the eBPF object; says so and passes where either is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod accessed;
mod activity;
mod faults;
mod serving;
mod world;

use std::io::Write;
use std::time::{Duration, Instant};

use aya::maps::MapError;
use aya::programs::loaded_programs;

use self::world::{Cgroup, Child};
use super::*;

/// Loads probes at a cgroup of their own, or says why it cannot be done here and ends the test.
macro_rules! probes_or_skip {
    () => {{
        if crate::probes::tests::skipped() {
            return;
        }
        let cgroup = crate::probes::tests::world::Cgroup::new();
        (crate::probes::Probes::load(cgroup.path()).unwrap(), cgroup)
    }};
}
use probes_or_skip;

/// Whether nothing can be tested here; says why.
fn skipped() -> bool {
    let reason = if object::OBJECT.is_empty() {
        "no eBPF object is embedded; run `cargo xtask build`"
    } else if !nix::unistd::geteuid().is_root() {
        "not root"
    } else {
        return false;
    };
    // Written to the stream itself: what a passing test prints with a macro is kept back.
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {reason}");
    true
}

#[test]
fn everything_works_on_this_kernel() {
    if skipped() {
        return;
    }
    let capabilities = Capabilities::probe().unwrap();
    assert!(capabilities.activity.is_ok(), "{capabilities:?}");
    assert!(capabilities.user_faults.is_ok(), "{capabilities:?}");
    assert!(capabilities.kernel_faults.is_ok(), "{capabilities:?}");
    assert!(
        matches!(capabilities.ports, Ok(PortSource::Sockets)),
        "{capabilities:?}"
    );
    assert!(capabilities.accessed.is_ok(), "{capabilities:?}");
}

#[test]
fn a_directory_that_is_no_cgroup_is_refused_by_name() {
    let error = Probes::load(Path::new("/tmp")).unwrap_err();
    assert!(
        matches!(&error, ProbeError::NotCgroup2(path) if path == Path::new("/tmp")),
        "{error:?}"
    );
    let error = Probes::load(Path::new("/nonexistent/apps")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/apps"), "{error}");
}

#[test]
fn without_the_right_to_use_ebpf_the_error_says_which_capabilities_are_missing() {
    let denied = MapError::CreateError {
        name: "ACTIVITY".into(),
        io_error: nix::errno::Errno::EPERM.into(),
    };
    let error =
        ProbeError::unless_permission(aya::EbpfError::from(denied), |e| ProbeError::Object(Box::new(e)));
    assert!(matches!(error, ProbeError::NotPermitted(_)), "{error:?}");
    assert!(error.to_string().contains("CAP_BPF"), "{error}");
}

#[test]
fn dropped_probes_leave_no_program_in_the_kernel() {
    let (probes, cgroup) = probes_or_skip!();
    let tracing = probes.trace(world::target(&cgroup, 1)).unwrap();
    probes.present_pages(std::process::id(), &[]).unwrap();
    let mine: Vec<u32> = probes
        .programs
        .lock()
        .programs()
        .filter_map(|(_, program)| program.info().ok())
        .map(|info| info.id())
        .collect();
    // Two for packets, two for faults, five for requests, one for page tables; the stand-in is not loaded.
    assert_eq!(mine.len(), 10);
    let present = || {
        loaded_programs()
            .filter_map(Result::ok)
            .filter(|p| mine.contains(&p.id()))
            .count()
    };
    assert_eq!(present(), mine.len());
    assert_eq!(world::attached(&cgroup), 2);

    drop(tracing);
    drop(probes);
    // Detached from the cgroup at once; freed when the kernel's grace periods are over, of which no event tells.
    assert_eq!(world::attached(&cgroup), 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while present() > 0 {
        assert!(
            Instant::now() < deadline,
            "{} programs are still loaded",
            present()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_sets_of_probes_on_one_cgroup_both_count() {
    let (first, cgroup) = probes_or_skip!();
    let second = Probes::load(cgroup.path()).unwrap();
    let (v4, v6) = world::LOOPBACK;
    let mut child = Child::spawn(&cgroup, world::udp_echo("127.0.0.1"));
    let port = Port {
        number: child.port(),
        proto: crate::port::Proto::Udp,
    };
    first.watch(v4, v6, &[port]).unwrap();
    second.watch(v4, v6, &[port]).unwrap();
    world::udp_exchange("127.0.0.1", port.number, &[]);
    assert_eq!(first.activity(v4, v6).unwrap()[0].packets, 2);
    assert_eq!(second.activity(v4, v6).unwrap()[0].packets, 2);
}
