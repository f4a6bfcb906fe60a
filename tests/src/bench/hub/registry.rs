//! How many apps a second are registered, each acknowledged when it is on the disk, and how much memory of the hub
//! an app takes that does nothing. Then the hub is killed: every acknowledged app must be there afterwards.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pico_proto::v1;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::bench::{Effort, Outcome};
use crate::harness::hub::{Bearer, Hub, apps};
use crate::harness::rig::scratch;
use crate::harness::{Samples, interrupt, procs};

/// Clients that register at the same time.
const CLIENTS: usize = 64;
/// Owners among whom the apps are.
const OWNERS: usize = 100;

/// Adds what it found.
///
/// # Errors
/// When an app is refused, or one that was acknowledged is not there after the hub was killed.
pub(super) fn measure(effort: Effort, progress: &mut dyn FnMut(&str), outcome: &mut Outcome) -> Result<()> {
    let count = match effort {
        Effort::Quick => 10_000,
        Effort::Full => 100_000,
    };
    let dir = scratch("bench-hub")?;
    let mut hub = Hub::start(dir.path())?;
    let admin = Bearer::new(&hub.admin_token()?)?;
    let runtime = tokio::runtime::Runtime::new()?;
    progress(&format!("{count} apps, {CLIENTS} clients"));
    let before = resident(&hub)?;
    let start = Instant::now();
    let mut latencies = Samples::default();
    for time in runtime.block_on(register(&hub, &admin, count))? {
        latencies.push(time);
    }
    let seconds = start.elapsed().as_secs_f64();
    outcome.row("hub", "one registration", "ms", &latencies)?;
    let mut rate = Samples::default();
    rate.push(count as f64 / seconds);
    outcome.row("hub", "registrations a second", "1/s", &rate)?;
    let per_app = resident(&hub)?.saturating_sub(before) as f64 / count as f64;
    let mut bytes = Samples::default();
    bytes.push(per_app);
    outcome.row("hub", "memory of an app", "bytes", &bytes)?;
    outcome
        .values
        .insert("hub.ms_per_registration".into(), seconds * 1e3 / count as f64);
    outcome.values.insert("hub.bytes_per_app".into(), per_app);

    progress("killed, and started again");
    hub.crash_and_restart()?;
    let kept = runtime.block_on(list(&hub, &admin))?;
    ensure!(
        kept == count,
        "{count} apps were acknowledged, {kept} are there after a crash"
    );
    Ok(())
}

/// Whose app the one with this number is.
pub(super) fn owner(number: usize) -> String {
    format!("owner{}", number % OWNERS)
}

fn resident(hub: &Hub) -> Result<u64> {
    let process = procs::Process::read(hub.pid()).context("the hub is gone")?;
    Ok(process.resident)
}

/// Milliseconds of each registration.
pub(super) async fn register(hub: &Hub, admin: &Bearer, count: usize) -> Result<Vec<f64>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (channel, admin, next) = (hub.connect().await?, admin.clone(), next.clone());
        clients.spawn(client(channel, admin, next, count));
    }
    let mut times = Vec::with_capacity(count);
    while let Some(done) = clients.join_next().await {
        times.extend(done??);
    }
    Ok(times)
}

async fn client(channel: Channel, admin: Bearer, next: Arc<AtomicUsize>, count: usize) -> Result<Vec<f64>> {
    let mut client = apps(&channel, &admin);
    let mut times = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return Ok(times);
        }
        interrupt::check()?;
        let request = v1::CreateAppRequest {
            owner: owner(number),
            spec: Some(v1::AppSpec {
                name: format!("app{number}"),
                root: "host".into(),
                command: vec!["/usr/sbin/nginx".into(), "-g".into(), "daemon off;".into()],
                ports: vec!["80/tcp".into()],
                ..v1::AppSpec::default()
            }),
            ..v1::CreateAppRequest::default()
        };
        let start = Instant::now();
        client.create_app(request).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
}

/// How many different apps there are.
async fn list(hub: &Hub, admin: &Bearer) -> Result<usize> {
    let mut client = apps(&hub.connect().await?, admin);
    let (mut seen, mut page_token) = (HashSet::new(), String::new());
    loop {
        let request = v1::ListAppsRequest {
            page_size: 1000,
            page_token,
            ..v1::ListAppsRequest::default()
        };
        let page = client.list_apps(request).await?.into_inner();
        seen.extend(page.apps.into_iter().map(|app| app.id));
        if page.next_page_token.is_empty() {
            return Ok(seen.len());
        }
        page_token = page.next_page_token;
    }
}
