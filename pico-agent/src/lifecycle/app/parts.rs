//! The parts of the app's sandbox: what they are called, taking a run over, and taking all of it away.

use std::collections::BTreeSet;
use std::fs;

use tokio::sync::mpsc;

use super::{App, Live, STOP_GRACE, now};
use crate::config::Root;
use crate::pager::PagerStats;
use crate::sandbox::net::NetSpec;
use crate::sandbox::{Cgroup, Mask, RootSpec, abandon_root, unmount_root};
use crate::shim::client::ShimClient;
use crate::shim::protocol as shim;

/// What becomes of the app's files when its sandbox goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lifecycle) enum Files {
    /// It will run on them again.
    Stay,
    /// They are removed from this host.
    Go,
}

impl App {
    /// The network of the app.
    pub(in crate::lifecycle) fn net(&self) -> NetSpec {
        NetSpec {
            netns: self.paths.netns.clone(),
            link: self.record.link.clone(),
            addrs: self.record.addresses,
        }
    }

    /// The root of the app.
    pub(in crate::lifecycle) fn root(&self) -> RootSpec {
        let (lower, mask) = match &self.config.root {
            Root::Host => (
                "/".into(),
                Mask::Host {
                    hidden: self.host.hidden.clone(),
                },
            ),
            Root::Dir(dir) => (dir.clone(), Mask::Directory),
        };
        RootSpec {
            lower: vec![lower],
            mask,
            upper: self.paths.upper(),
            work: self.paths.overlay_work(),
            mountpoint: self.paths.root(),
        }
    }

    /// Sequence numbers of runs whose cgroups are still there.
    pub(in crate::lifecycle) fn runs(&self) -> BTreeSet<u64> {
        let dir = self.host.cgroups.apps_path().join(&self.config.name);
        let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("run-")?.parse().ok())
            .collect()
    }

    /// Takes over a run whose app is up.
    pub(in crate::lifecycle) fn live(
        &mut self,
        client: ShimClient,
        events: mpsc::UnboundedReceiver<shim::Event>,
        cgroup: Cgroup,
        pid: i32,
    ) {
        let now = now();
        let used = cgroup.cpu_usage().unwrap_or_default();
        self.live = Some(Live {
            client,
            events,
            cgroup,
            pid: Some(pid),
            hot_since: now,
            cpu_sample: (now, used),
            stats: PagerStats::default(),
        });
        self.ran_again();
    }

    /// Undoes network, mount and cgroup of an app that does not run.
    pub(in crate::lifecycle) async fn release_sandbox(&mut self, files: Files) {
        // The shim's mount namespace holds the root until its last process is gone.
        if let Ok(shim) = self.host.cgroups.shim(&self.config.name)
            && shim.path().exists()
        {
            let empty = tokio::task::spawn_blocking(move || shim.wait_empty(STOP_GRACE));
            if let Ok(Err(error)) = empty.await {
                tracing::error!(app = self.config.name, %error, "the shim does not end");
            }
        }
        if let Err(error) = crate::sandbox::net::remove(&self.net()).await {
            tracing::error!(app = self.config.name, %error, "cannot remove the network");
        }
        let unmounted = match files {
            Files::Stay => unmount_root(&self.root()),
            Files::Go => abandon_root(&self.root()),
        };
        if let Err(error) = unmounted {
            tracing::error!(app = self.config.name, %error, "cannot unmount the root");
        }
        for group in [
            self.host.cgroups.app_group(&self.config.name),
            self.host.cgroups.shim(&self.config.name),
        ] {
            if let Err(error) = group.and_then(|group| group.remove()) {
                tracing::error!(app = self.config.name, %error, "cannot remove a cgroup");
            }
        }
    }
}
