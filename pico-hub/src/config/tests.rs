use super::*;

fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    Config::parse(text, Path::new("/etc/pico"))
}

fn places(text: &str) -> Vec<String> {
    let mut places: Vec<String> = parse(text)
        .unwrap_err()
        .into_iter()
        .map(|problem| problem.place)
        .collect();
    places.sort();
    places
}

#[test]
fn an_empty_file_is_enough_and_stays_on_this_host() {
    let config = parse("").unwrap();
    assert_eq!(config.listen, ["127.0.0.1:7071".parse().unwrap()]);
    assert_eq!(config.state_dir, Path::new("/var/lib/pico-hub"));
    assert!(config.tls.is_none() && config.object_store.is_none() && config.metrics.is_none());
}

#[test]
fn the_example_is_what_happens_without_a_file_apart_from_its_sections() {
    let config = parse(EXAMPLE).unwrap();
    let default = parse("").unwrap();
    assert_eq!(
        (config.state_dir, config.limits),
        (default.state_dir, default.limits)
    );
    // Every line that is commented out is a key that is known.
    let all: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n")
        .collect();
    let config = parse(&all).unwrap();
    assert!(config.tls.is_some() && config.object_store.is_some() && config.metrics.is_some());
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = parse(
        "state_dir = \"s\"\nlisten = [\"unix:hub.sock\", \"[::1]:0\"]\n[object_store]\nembedded = \"/o\"",
    )
    .unwrap();
    assert_eq!(config.state_dir, Path::new("/etc/pico/s"));
    assert_eq!(config.listen[0], Address::Unix("/etc/pico/hub.sock".into()));
    assert_eq!(config.object_store.unwrap().embedded, Path::new("/o"));
}

#[test]
fn beyond_this_host_only_with_tls() {
    assert_eq!(places("listen = \"0.0.0.0:7071\""), ["listen"]);
    assert_eq!(
        places("listen = [\"127.0.0.1:1\", \"[2001:db8::1]:7071\"]"),
        ["listen"]
    );
    let tls = "[tls]\ncert = \"c\"\nkey = \"k\"";
    assert!(parse(&format!("listen = \"0.0.0.0:7071\"\n{tls}")).is_ok());
    for section in [
        "[metrics]\nlisten = \"0.0.0.0:1\"",
        "[object_store]\nembedded = \"o\"\nlisten = \"0.0.0.0:1\"",
    ] {
        assert_eq!(places(&format!("{section}\n{tls}")).len(), 1, "{section}");
    }
}

#[test]
fn all_problems_are_told_at_once_with_the_paths_of_their_keys() {
    let text = "statedir = 1\nlisten = [\"nowhere\"]\n[tls]\ncert = 1\nkey_file = \"k\"\n[object_store]\nlisten = \"x\"\n\
                [metrics]\n[log]\nformat = \"xml\"\n[limits]\nconnections = 1\n[dsn]\n";
    assert_eq!(
        places(text),
        [
            "dsn",
            "limits.connections",
            "listen",
            "log.format",
            "metrics.listen",
            "object_store.embedded",
            "object_store.listen",
            "statedir",
            "tls.cert",
            "tls.key",
            "tls.key_file",
        ]
    );
    let problems = parse(text).unwrap_err();
    let near = problems
        .iter()
        .find(|problem| problem.place == "statedir")
        .unwrap();
    assert_eq!(near.fix, "state_dir");
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let problems = parse("listen = \"127.0.0.1:1\"\n[tls\n").unwrap_err();
    assert!(problems[0].to_string().contains("line 2"), "{}", problems[0]);
}
