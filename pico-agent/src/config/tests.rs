//! What agent.toml accepts, and how it refuses.

use proptest::prelude::*;

use super::*;

const WEB: &str = r#"
[[app]]
name = "web"
root = "host"
command = ["/bin/sh"]
"#;

fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    Config::parse(text, Path::new("/etc/pico"))
}

/// The one problem of a file, as it is printed.
fn problem(text: &str) -> String {
    let problems = parse(text).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].to_string()
}

/// The one problem of a file with one app that has these further lines.
fn app_problem(lines: &str) -> String {
    problem(&format!("{WEB}{lines}"))
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
    assert_eq!(config.socket(), Path::new("/var/lib/pico/agent.sock"));
    assert_eq!(
        (config.network.tun.as_str(), config.network.table),
        ("pico0", 7769)
    );
    assert!(config.apps.is_empty() && config.store.is_none());
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
state_dir = "/srv/pico"
instance = "two"
shim = "bin/pico-shim"
criu = "/opt/criu"
[network]
tun = "pico2"
v4 = "10.99.0.0/24"
v6 = "fd99::/64"
table = 8000
[store]
endpoint = "http://127.0.0.1:9000"
bucket = "pico"
region = "eu-1"
prefix = "a/b"
access_key_id = "id"
secret_access_key = "hush"
[[app]]
name = "web"
root = "files"
command = ["app", "-x"]
ports = ["80/tcp", "53/udp"]
address = "10.99.0.5"
env = { A = "b" }
user = "www-data"
workdir = "/srv"
hostname = "www.example"
seed = "seed"
memory = "256M"
cpus = 0.5
pids = 512
idle = "10s"
cold_after = "never"
restart = "always"
after_crash = "fresh"
[app.sandbox]
capabilities = ["CAP_KILL"]
no_new_privs = false
seccomp = false
"#,
    )
    .unwrap();
    let app = &config.apps[0];
    assert_eq!(config.shim.as_deref(), Some(Path::new("/etc/pico/bin/pico-shim")));
    assert_eq!(app.root, Root::Dir("/etc/pico/files".into()));
    assert_eq!(app.seed.as_deref(), Some(Path::new("/etc/pico/seed")));
    assert_eq!(
        (app.memory, app.cpus, app.pids),
        (Some(Size(256 << 20)), Some(0.5), Some(512))
    );
    assert_eq!((app.idle, app.cold_after), (Wait::secs(10), Wait::Never));
    assert_eq!(
        (app.restart, app.after_crash),
        (Restart::Always, AfterCrash::Fresh)
    );
    assert_eq!(app.ports.len(), 2);
    assert_eq!(app.hostname(), "www.example");
    assert!(
        !format!("{config:?}").contains("hush"),
        "a secret is never printed"
    );
}

#[test]
fn without_a_store_apps_do_not_go_cold() {
    assert_eq!(parse(WEB).unwrap().apps[0].cold_after, Wait::Never);
    assert!(app_problem("cold_after = \"5m\"").contains("[store]"));
    let with = parse(&format!("[store]\nbucket = \"pico\"\n{WEB}")).unwrap();
    assert_eq!(with.apps[0].cold_after, Wait::secs(300));
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    assert_eq!(
        app_problem("idel = \"5s\""),
        "app 'web': unknown key 'idel'; try: did you mean 'idle'?"
    );
    assert_eq!(
        problem("state_dri = \"/x\""),
        "the file: unknown key 'state_dri'; try: did you mean 'state_dir'?"
    );
    assert_eq!(
        problem("[netwrok]"),
        "the file: unknown key 'netwrok'; try: did you mean 'network'?"
    );
    assert!(problem("[network]\nwibble = 1").contains("the keys there are tun, v4, v6, table"));
    let nested = app_problem("[app.sandbox]\nsecomp = true");
    assert_eq!(
        nested,
        "app 'web', table 'sandbox': unknown key 'secomp'; try: did you mean 'seccomp'?"
    );
}

#[test]
fn bad_values_are_refused_with_their_place_and_a_remedy() {
    for (lines, expected) in [
        (
            "idle = \"10\"",
            "app 'web', key 'idle': '10' is not a duration; try: write it as 500ms",
        ),
        ("idle = \"0s\"", "app 'web', key 'idle': zero"),
        (
            "memory = \"256MB\"",
            "app 'web', key 'memory': '256MB' is not a size; try: write it as 64K",
        ),
        ("memory = 5", "app 'web', key 'memory': invalid type: integer"),
        ("memory = \"1M\"", "at least 4M"),
        ("cpus = nan", "between 0.01 and 4096"),
        ("cpus = -1.0", "between 0.01 and 4096"),
        ("pids = 0", "no process could be started"),
        ("pids = -1", "app 'web', key 'pids': "),
        (
            "ports = [\"80\"]",
            "app 'web', key 'ports': '80' is not a port; try: write it as 80/tcp",
        ),
        (
            "ports = [\"80/tcp\", \"80/udp\", \"80/tcp\"]",
            "app 'web', key 'ports': 80/tcp is published twice",
        ),
        (
            "address = \"10.78.0.1\"",
            "app 'web', key 'address': address 10.78.0.1 is outside",
        ),
        ("address = \"10.77.0.1\"", "the gate's own address"),
        (
            "restart = \"sometimes\"",
            "app 'web', key 'restart': unknown variant `sometimes`",
        ),
        (
            "workdir = \"srv\"",
            "app 'web', key 'workdir': 'srv' is not absolute",
        ),
        (
            "hostname = \"a_b\"",
            "app 'web', key 'hostname': 'a_b' is not a host name",
        ),
        ("env = { \"A=B\" = \"c\" }", "app 'web', key 'env': 'A=B'"),
        (
            "[app.wake]\nallow = [\"nobody\"]",
            "app 'web', key 'wake.allow': 'nobody' is no subnet; try: write it as 192.0.2.0/24",
        ),
        ("[app.wake]\nrate = \"6\"", "write it as 6/1m"),
        (
            "timers = \"none\"\n[app.wake]\nat = [\"30 3 * * *\"]",
            "app 'web', key 'timers': none of them wakes it, and wake.at says when it is to wake; try: remove one",
        ),
        (
            "[app.wake]\nat = [\"30 24 * * *\"]",
            "app 'web', key 'wake.at': '30 24 * * *' is no time to wake at ('24' is no hour: 0 to 23); try: write it",
        ),
        (
            "[[app.probe]]\nfrom = \"192.0.2.1\"\nhttp = 99",
            "app 'web', key 'probe.http': it is no status",
        ),
        (
            "[[app.probe]]\nfrom = \"192.0.2.1\"\nbody = \"up\"",
            "key 'probe.body': without http nothing is said",
        ),
        (
            "[app.sandbox]\ncapabilities = [\"CAP_NET_BIN_SERVICE\"]",
            "did you mean 'CAP_NET_BIND_SERVICE'?",
        ),
    ] {
        let printed = app_problem(lines);
        assert!(
            printed.contains(expected),
            "{lines}\n  gave     {printed}\n  expected {expected}"
        );
    }
}

#[test]
fn bad_sections_are_refused_with_their_place_and_a_remedy() {
    for (text, expected) in [
        (
            "state_dir = \"pico\"",
            "key 'state_dir': 'pico' is not an absolute path; try: write it from the root",
        ),
        (
            "instance = \"A/B\"",
            "key 'instance': 'A/B' cannot be part of a cgroup name",
        ),
        ("[network]\nv4 = \"10.77.0.5/16\"", "did you mean 10.77.0.0/16?"),
        ("[network]\nv4 = \"10.77.0.0/31\"", "10.77.0.0/31 is too small"),
        (
            "[network]\ntun = \"a-name-too-long-for-it\"",
            "[network], key 'tun'",
        ),
        ("[network]\ntable = 254", "routing table 254 is the kernel's own"),
        (
            "[store]",
            "[store]: the key 'bucket' is missing; try: add bucket = ...",
        ),
        (
            "[store]\nbucket = \"pico\"\nprefix = \"a/\"",
            "without slashes at its ends",
        ),
        ("[store]\nbucket = \"Pico\"", "'Pico' is not a bucket name"),
        (
            "[store]\nbucket = \"pico\"\nendpoint = \"localhost:9000\"",
            "write it as http://127.0.0.1:9000",
        ),
        (
            "[store]\nbucket = \"pico\"\naccess_key_id = \"a\"",
            "only one is given",
        ),
        ("[app]\nname = \"web\"", "write [[app]] with two brackets"),
        (
            "[[app]]\nroot = \"host\"\ncommand = [\"/bin/sh\"]",
            "[[app]] number 1: the key 'name' is missing",
        ),
        ("a = \n", "line 1: "),
        (
            "\n\nstate_dir = \"/x\"\nstate_dir = \"/y\"",
            "line 4: duplicate key",
        ),
    ] {
        let printed = problem(text);
        assert!(
            printed.contains(expected),
            "{text}\n  gave     {printed}\n  expected {expected}"
        );
    }
}

#[test]
fn names_and_addresses_used_twice_are_refused_and_all_problems_told_at_once() {
    let two = format!("{WEB}address = \"10.77.0.5\"\n{WEB}address = \"10.77.0.5\"\nidle = \"soon\"");
    let printed: Vec<String> = parse(&two).unwrap_err().iter().map(Problem::to_string).collect();
    assert_eq!(
        printed.len(),
        1,
        "a table that cannot be read hides only itself: {printed:?}"
    );

    let other = WEB.replace("web", "db");
    let three =
        format!("{WEB}address = \"10.77.0.5\"\n{other}address = \"10.77.0.5\"\n{WEB}command_ = 1\n{WEB}");
    let printed: Vec<String> = parse(&three)
        .unwrap_err()
        .iter()
        .map(Problem::to_string)
        .collect();
    for expected in [
        "address 10.77.0.5 is given to both 'web' and 'db'",
        "two apps have this name",
        "unknown key 'command_'",
    ] {
        assert!(
            printed.iter().any(|line| line.contains(expected)),
            "{expected} in {printed:?}"
        );
    }
}

#[test]
fn a_state_dir_too_long_for_a_socket_is_refused() {
    let text = format!("state_dir = \"/{}\"\n{WEB}", "x".repeat(100));
    assert!(problem(&text).contains("use a shorter state_dir"));
}

#[test]
fn files_missing_on_this_host_are_told_with_the_app() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let path = dir.path().join("agent.toml");
    let text = format!(
        r#"
state_dir = "{0}/state"
shim = "{0}/absent-shim"
[store]
bucket = "pico"
credentials_file = "absent.json"
[[app]]
name = "a"
root = "absent"
command = ["/bin/sh"]
[[app]]
name = "b"
root = "empty"
command = ["/bin/sh"]
[[app]]
name = "c"
root = "host"
command = ["no-such-program-anywhere"]
user = "no-such-user"
[[app]]
name = "d"
root = "host"
command = ["/bin/sh"]
seed = "absent"
[[app]]
name = "fine"
root = "host"
command = ["sh", "-c", "true"]
user = "root"
"#,
        dir.path().display()
    );
    std::fs::write(&path, text).unwrap();
    let error = Config::load(&path).unwrap_err();
    let ConfigError::Invalid { problems, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(problems.len(), 7, "{error}");
    let printed = error.to_string();
    for expected in [
        "key 'shim'",
        "key 'credentials_file'",
        "app 'a', key 'root'",
        "app 'b', key 'command': there is no /bin/sh in the root",
        "app 'c', key 'command': 'no-such-program-anywhere' is in none of",
        "app 'c', key 'user'",
        "app 'd', key 'seed'",
    ] {
        assert!(printed.contains(expected), "{expected} in {printed}");
    }
    assert_eq!(Config::state_dir_of(&path).unwrap(), dir.path().join("state"));
    assert!(!dir.path().join("state").exists(), "checking changes nothing");
}

#[test]
fn a_missing_file_is_told_by_its_name() {
    let error = Config::load(Path::new("/no/such/agent.toml"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/agent.toml"), "{error}");
}

proptest! {
    #[test]
    fn only_dns_labels_are_names(name in "[a-z0-9-]{0,70}|.{0,10}") {
        let label = check::is_dns_label(&name);
        let by_words = !name.is_empty() && name.len() < 64
            && !name.starts_with('-') && !name.ends_with('-')
            && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
        prop_assert_eq!(label, by_words);
    }

    #[test]
    fn no_file_makes_the_parser_panic(text in "(\\[|\\]|app|name|=|\"|web|idle|\n|[0-9]|\\.|,){0,30}|.{0,60}") {
        let _ = parse(&text);
    }
}
