//! What a well-formed configuration may still have wrong: first by itself ([`shape`], pure), then on this
//! host ([`host`], which reads and changes nothing).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use super::rootfs::{self, Layers};
use super::{AppConfig, Config, Problem, Root, TimerPolicy};
use crate::addresses::{AddressError, Request, Subnets};
use crate::gate::MAX_REPLY;
use crate::hub::HubConfig;
use crate::store::StoreConfig;
use crate::units::{Size, Wait, nearest};

/// Longest path of a Unix socket (`sun_path` is 108 bytes with its final zero).
const MAX_SOCKET_PATH: usize = 107;
/// Longest name of a network device (IFNAMSIZ is 16 with its final zero).
const MAX_DEVICE_NAME: usize = 15;
/// Below this no program starts.
const MIN_MEMORY: Size = Size(4 << 20);
/// Routing tables that the kernel and others use: unspec, default, main, local.
const RESERVED_TABLES: [u32; 4] = [0, 253, 254, 255];

/// Whether a text is a DNS label in lower case (RFC 1123: letters, digits, inner hyphens, 1 to 63).
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A capability's name as the kernel's headers spell it, from `CAP_KILL`, `cap_kill` or `kill`.
pub fn capability(text: &str) -> Option<String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    name.parse::<caps::Capability>().ok().map(|_| name)
}

/// Everything that is wrong with a configuration whatever the host.
pub fn shape(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !config.state_dir.is_absolute() {
        problems.push(Problem::new(
            "key 'state_dir'",
            format!("'{}' is not an absolute path", config.state_dir.display()),
            format!("write it from the root, as {}", super::DEFAULT_STATE_DIR),
        ));
    }
    let instance = &config.instance;
    if !instance.is_empty() && (!is_dns_label(instance) || instance.len() > 32) {
        problems.push(Problem::new(
            "key 'instance'",
            format!("'{instance}' cannot be part of a cgroup name"),
            "use at most 32 lower-case letters, digits and hyphens",
        ));
    }
    network(config, &mut problems);
    config
        .store
        .iter()
        .for_each(|section| store(section, &mut problems));
    problems.extend(config.hub.iter().flat_map(HubConfig::shape));
    for app in &config.apps {
        app_shape(app, &config.state_dir, &mut problems);
    }
    names(config, &mut problems);
    problems
}

fn network(config: &Config, problems: &mut Vec<Problem>) {
    let network = &config.network;
    let tun = &network.tun;
    if tun.is_empty()
        || tun.len() > MAX_DEVICE_NAME
        || tun == "."
        || tun == ".."
        || tun.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control())
    {
        problems.push(Problem::new(
            "[network], key 'tun'",
            format!("'{tun}' cannot name a network device"),
            format!("use at most {MAX_DEVICE_NAME} letters and digits, as pico0"),
        ));
    }
    if RESERVED_TABLES.contains(&network.table) {
        problems.push(Problem::new(
            "[network], key 'table'",
            format!("routing table {} is the kernel's own", network.table),
            "use a number that no other program uses, as 7769",
        ));
    }
    let subnets = match Subnets::new(network.v4, network.v6) {
        Ok(subnets) => subnets,
        Err(error) => return problems.push(address_problem("[network]", &error)),
    };
    let mut owners: BTreeMap<Ipv4Addr, &str> = BTreeMap::new();
    for app in &config.apps {
        let Some(address) = app.address else { continue };
        let place = format!("app '{}', key 'address'", app.name);
        if let Err(error) = subnets.addresses(address) {
            problems.push(address_problem(&place, &error));
        } else if let Some(first) = owners.insert(address, &app.name) {
            let (first, second) = (first.to_owned(), app.name.clone());
            problems.push(address_problem(
                &place,
                &AddressError::Twice {
                    address,
                    first,
                    second,
                },
            ));
        }
    }
    let requests: Vec<Request<'_>> = config
        .apps
        .iter()
        .map(|app| Request {
            app: &app.name,
            configured: None,
            kept: app.address,
        })
        .collect();
    if let Err(error @ AddressError::Exhausted { .. }) = subnets.allocate(&requests, &BTreeSet::new()) {
        problems.push(address_problem("[network], key 'v4'", &error));
    }
}

fn address_problem(place: &str, error: &AddressError) -> Problem {
    let text = error.to_string();
    let (what, fix) = text.split_once("; ").unwrap_or((&text, "choose another"));
    Problem::new(place, what, fix)
}

fn store(store: &StoreConfig, problems: &mut Vec<Problem>) {
    let bucket = &store.bucket;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !(3..=63).contains(&bucket.len())
        || !bucket.chars().all(allowed)
        || !bucket.starts_with(edge)
        || !bucket.ends_with(edge)
    {
        problems.push(Problem::new(
            "[store], key 'bucket'",
            format!("'{bucket}' is not a bucket name"),
            "use 3 to 63 lower-case letters, digits, hyphens and dots",
        ));
    }
    let prefix = &store.prefix;
    if prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains("//") {
        problems.push(Problem::new(
            "[store], key 'prefix'",
            format!("'{prefix}' would make empty names in keys"),
            "write it without slashes at its ends, as hosts/one",
        ));
    }
    if let Some(endpoint) = &store.endpoint {
        let host = endpoint
            .strip_prefix("http://")
            .or_else(|| endpoint.strip_prefix("https://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            problems.push(Problem::new(
                "[store], key 'endpoint'",
                format!("'{endpoint}' is not a URL"),
                "write it as http://127.0.0.1:9000 or https://s3.example.com",
            ));
        }
    }
    if store.access_key_id.is_some() != store.secret_access_key.is_some() {
        problems.push(Problem::new(
            "[store]",
            "of access_key_id and secret_access_key only one is given",
            "give both, or neither and a credentials_file",
        ));
    }
    if store.access_key_id.is_some() && store.credentials_file.is_some() {
        problems.push(Problem::new(
            "[store]",
            "keys are given twice, here and by credentials_file",
            "remove one of them",
        ));
    }
}

fn names(config: &Config, problems: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for app in &config.apps {
        if !seen.insert(&app.name) {
            problems.push(Problem::new(
                format!("app '{}'", app.name),
                "two apps have this name",
                "rename one of them",
            ));
        }
    }
}

/// Everything that is wrong with one app, by itself and on this host, whose agent keeps its state in `state_dir`.
pub fn app(app: &AppConfig, state_dir: &Path) -> Vec<Problem> {
    let mut problems = Vec::new();
    app_shape(app, state_dir, &mut problems);
    // A name that is none must not become part of a path.
    if problems.is_empty() {
        app_host(app, state_dir, &mut problems);
    }
    problems
}

fn app_shape(app: &AppConfig, state_dir: &Path, problems: &mut Vec<Problem>) {
    let mut problem = |key: &str, what: String, fix: &str| {
        problems.push(Problem::new(
            format!("app '{}', key '{key}'", app.name),
            what,
            fix,
        ));
    };
    let label = "use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end";
    if !is_dns_label(&app.name) {
        problem("name", format!("'{}' is not a DNS label", app.name), label);
    } else {
        let socket = state_dir.join("apps").join(&app.name).join("shim.sock");
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            let what = format!(
                "the path of its socket would have {} bytes",
                socket.as_os_str().len()
            );
            problem(
                "name",
                what,
                "use a shorter state_dir or name (a socket's path has 107 bytes at most)",
            );
        }
    }
    if app
        .hostname
        .as_deref()
        .is_some_and(|name| !name.split('.').all(is_dns_label) || name.len() > 64)
    {
        problem(
            "hostname",
            format!("'{}' is not a host name", app.hostname()),
            label,
        );
    }
    match app.command.first() {
        None => problem(
            "command",
            "it is empty".to_owned(),
            "give a program, as command = [\"/usr/bin/app\"]",
        ),
        Some(program) if program.is_empty() => {
            problem(
                "command",
                "the program's name is empty".to_owned(),
                "give its path inside the root",
            );
        }
        Some(_) => {}
    }
    if app.command.iter().any(|word| word.contains('\0')) {
        problem("command", "it contains a zero byte".to_owned(), "remove it");
    }
    let mut ports = BTreeSet::new();
    for port in &app.ports {
        if !ports.insert(port) {
            problem(
                "ports",
                format!("{port} is published twice"),
                "remove one of them",
            );
        }
    }
    for (name, value) in &app.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            problem(
                "env",
                format!("'{name}' cannot be an environment variable"),
                "use letters, digits and _",
            );
        }
    }
    if !app.workdir.is_absolute() {
        problem(
            "workdir",
            format!("'{}' is not absolute", app.workdir.display()),
            "write it from the root",
        );
    }
    if app.memory.is_some_and(|memory| memory < MIN_MEMORY) {
        problem(
            "memory",
            "no program starts in so little".to_owned(),
            "give at least 4M",
        );
    }
    if app.cpus.is_some_and(|cpus| !(0.01..=4096.0).contains(&cpus)) {
        problem(
            "cpus",
            "it is not between 0.01 and 4096 cores".to_owned(),
            "write half a core as 0.5",
        );
    }
    if app.pids == Some(0) {
        problem(
            "pids",
            "no process could be started".to_owned(),
            "give at least 1, or remove the limit",
        );
    }
    for (key, wait) in [("idle", app.idle), ("cold_after", app.cold_after)] {
        if matches!(wait, Wait::After(duration) if duration.is_zero()) {
            problem(
                key,
                "zero would never let it answer".to_owned(),
                "give some time, as \"10s\", or \"never\"",
            );
        }
    }
    if app.timers == TimerPolicy::None && !app.wake.at.is_empty() {
        problem(
            "timers",
            "none of them wakes it, and wake.at says when it is to wake".to_owned(),
            "remove one of the two",
        );
    }
    for probe in &app.probes {
        if probe.http.is_some_and(|status| !(200..=599).contains(&status)) {
            problem(
                "probe.http",
                "it is no status of a final answer".to_owned(),
                "give one from 200 to 599, or remove the key: connections are accepted, and that is all",
            );
        }
        if probe.body.len() > MAX_REPLY {
            let fix = format!("give at most {MAX_REPLY}");
            problem("probe.body", format!("it has {} bytes", probe.body.len()), &fix);
        }
        if probe.http.is_none() && !probe.body.is_empty() {
            problem(
                "probe.body",
                "without http nothing is said".to_owned(),
                "add http = 200, or remove it",
            );
        }
    }
    for name in &app.sandbox.capabilities {
        if capability(name).is_none() {
            let known: Vec<String> = caps::all().into_iter().map(|known| known.to_string()).collect();
            let upper = name.to_ascii_uppercase();
            let near = nearest(&upper, known.iter().map(String::as_str));
            let fix = near.map_or("see capabilities(7) for their names".to_owned(), |near| {
                format!("did you mean '{near}'?")
            });
            problem(
                "sandbox.capabilities",
                format!("there is no capability '{name}'"),
                &fix,
            );
        }
    }
}

/// Everything that is wrong with a configuration on this host: files that are not there.
pub fn host(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut exists = |key: &str, path: &Path, fix: &str| {
        if let Err(error) = std::fs::metadata(path) {
            problems.push(Problem::new(
                key,
                format!("{} cannot be used ({error})", path.display()),
                fix,
            ));
        }
    };
    if let Some(shim) = &config.shim {
        exists(
            "key 'shim'",
            shim,
            "give the path of pico-shim, or remove the key",
        );
    }
    if let Some(criu) = &config.criu {
        exists(
            "key 'criu'",
            criu,
            "run `cargo xtask setup`, or give the path of criu",
        );
    }
    if let Some(file) = config
        .store
        .as_ref()
        .and_then(|store| store.credentials_file.as_ref())
    {
        exists(
            "[store], key 'credentials_file'",
            file,
            "start `pico-hub store`, which writes it",
        );
    }
    problems.extend(config.hub.iter().flat_map(HubConfig::host));
    for app in &config.apps {
        app_host(app, &config.state_dir, &mut problems);
    }
    problems
}

fn app_host(app: &AppConfig, state_dir: &Path, problems: &mut Vec<Problem>) {
    let mut problem = |key: &str, what: String, fix: &str| {
        problems.push(Problem::new(
            format!("app '{}', key '{key}'", app.name),
            what,
            fix,
        ));
    };
    if let Root::Dir(root) = &app.root
        && !root.is_dir()
    {
        let what = format!("{} is not a directory", root.display());
        return problem(
            "root",
            what,
            "create it, or write root = \"host\" for the host's own files",
        );
    }
    if let Some(seed) = &app.seed
        && !seed.is_dir()
    {
        return problem(
            "seed",
            format!("{} is not a directory", seed.display()),
            "create it, or remove the key",
        );
    }
    let layers = Layers {
        upper: vec![state_dir.join("apps").join(&app.name).join("upper")],
        seed: app.seed.clone(),
        root: app.root.path().to_owned(),
        hidden: match app.root {
            Root::Host => rootfs::hidden_of_host(state_dir),
            Root::Dir(_) => Vec::new(),
        },
    };
    if let Some(program) = app.command.first() {
        let path = app.env.get("PATH").map_or(rootfs::DEFAULT_PATH, String::as_str);
        if let Err(error) = layers.find_program(program, path, &app.workdir) {
            problem("command", error.to_string(), error.fix());
        }
    }
    if let Some(user) = &app.user
        && !layers.knows_user(user)
    {
        let what = format!("there is no user '{user}' in the root's /etc/passwd");
        problem(
            "user",
            what,
            "install the package that brings it, or give a number",
        );
    }
}
