//! What an owner may say of an app: checked as a whole, with every fault found and not only the first. Pure; the agent
//! checks again what only its host can tell (files, commands, users).

use pico_proto::v1;

use pico_proto::cron::Cron;
use pico_proto::port::Port;
use pico_proto::waking::{Source, WakeRate};

/// A DNS label is no longer, nor is `NAME-OWNER`.
pub const LABEL_BYTES: usize = 63;
/// Bytes of the whole spec.
const SPEC_BYTES: usize = 64 << 10;
const PORTS: usize = 64;
const ARGUMENTS: usize = 1024;
const VARIABLES: usize = 512;
const CAPABILITIES: usize = 64;
/// Of each kind: subnets that wake, or do not, cron lines, probes.
const RULES: usize = 64;
/// A path on Linux is no longer.
const PATH_BYTES: usize = 4096;
const YEAR_SECONDS: i64 = 365 * 24 * 3600;

/// Fields and what is wrong with them.
pub type Faults = Vec<(String, String)>;

/// Whether this can be a part of a host name: lower-case letters, digits, inner hyphens.
pub fn is_label(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= LABEL_BYTES
        && text.bytes().all(fine)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether this can be an owner's name: as a label, without a hyphen, so that `NAME-OWNER` means one thing.
pub fn is_owner(text: &str) -> bool {
    is_label(text) && !text.contains('-')
}

/// All that is wrong with the spec of an app of `owner`.
pub fn faults(owner: &str, spec: &v1::AppSpec) -> Faults {
    let mut faults = Checker(Vec::new());
    faults.names(owner, spec);
    faults.files(spec);
    faults.command(spec);
    faults.ports(&spec.ports);
    faults.limits(spec);
    faults.policies(spec);
    faults.waking(spec);
    let bytes = prost::Message::encoded_len(spec);
    faults.unless(bytes <= SPEC_BYTES, "spec", || {
        format!("it has {bytes} bytes, at most {SPEC_BYTES} are taken")
    });
    faults.0
}

struct Checker(Faults);

impl Checker {
    fn unless(&mut self, fine: bool, field: &str, what: impl FnOnce() -> String) {
        if !fine {
            self.0.push((field.to_owned(), what()));
        }
    }

    fn names(&mut self, owner: &str, spec: &v1::AppSpec) {
        let name = &spec.name;
        if !is_label(name) {
            let what = "write a DNS label: lower-case letters, digits and inner hyphens, at most 63";
            self.unless(false, "spec.name", || what.into());
        } else {
            let length = name.len() + 1 + owner.len();
            self.unless(length <= LABEL_BYTES, "spec.name", || {
                format!("'{name}-{owner}' has {length} bytes, and a DNS label has 63; use a shorter name")
            });
        }
        let hostname = &spec.hostname;
        self.unless(hostname.is_empty() || is_label(hostname), "spec.hostname", || {
            "write a DNS label".into()
        });
    }

    fn path(&mut self, field: &str, path: &str) {
        let fine = path.starts_with('/') && path.len() < PATH_BYTES && !path.contains('\0');
        self.unless(fine, field, || format!("'{path}' is no absolute path"));
    }

    fn files(&mut self, spec: &v1::AppSpec) {
        match spec.root.as_str() {
            "host" => {}
            "" => self.unless(false, "spec.root", || {
                "write 'host' or a directory of the agent's host".into()
            }),
            path => self.path("spec.root", path),
        }
        if !spec.workdir.is_empty() {
            self.path("spec.workdir", &spec.workdir);
        }
        if !spec.seed.is_empty() {
            self.path("spec.seed", &spec.seed);
        }
        let user = &spec.user;
        let fine = user.len() <= 256 && !user.chars().any(|c| c.is_control() || c.is_whitespace());
        self.unless(fine, "spec.user", || {
            "write USER, UID, USER:GROUP or UID:GID".into()
        });
    }

    fn command(&mut self, spec: &v1::AppSpec) {
        let command = &spec.command;
        let given = command.first().is_some_and(|program| !program.is_empty());
        self.unless(given, "spec.command", || {
            "name a program, with its arguments".into()
        });
        self.unless(command.len() <= ARGUMENTS, "spec.command", || {
            format!("it has {} parts, at most {ARGUMENTS} are taken", command.len())
        });
        let whole = command.iter().all(|part| !part.contains('\0'));
        self.unless(whole, "spec.command", || "it contains a zero byte".into());
        self.unless(spec.env.len() <= VARIABLES, "spec.env", || {
            format!(
                "it has {} variables, at most {VARIABLES} are taken",
                spec.env.len()
            )
        });
        for (name, value) in &spec.env {
            let fine = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            self.unless(fine, "spec.env", || format!("'{name}' is no variable"));
        }
    }

    fn ports(&mut self, ports: &[String]) {
        self.unless(ports.len() <= PORTS, "spec.ports", || {
            format!("{} ports are listed, at most {PORTS} are taken", ports.len())
        });
        let mut seen = Vec::new();
        for text in ports.iter().take(PORTS) {
            match text.parse::<Port>() {
                Ok(port) if seen.contains(&port) => {
                    self.unless(false, "spec.ports", || format!("{port} is listed twice"));
                }
                Ok(port) => seen.push(port),
                Err(error) => self.unless(false, "spec.ports", || error.to_string()),
            }
        }
    }

    fn limits(&mut self, spec: &v1::AppSpec) {
        self.unless(
            spec.memory_bytes.is_none_or(|bytes| bytes >= 1 << 20),
            "spec.memory_bytes",
            || "no app runs in less than 1 MiB".into(),
        );
        let cpus = spec.cpus.is_none_or(|cpus| (0.01..=4096.0).contains(&cpus));
        self.unless(cpus, "spec.cpus", || {
            "write a number of processors from 0.01 on".into()
        });
        self.unless(spec.pids != Some(0), "spec.pids", || {
            "an app has at least one process".into()
        });
        let capabilities = spec
            .sandbox
            .as_ref()
            .map_or(&[][..], |sandbox| &sandbox.capabilities);
        self.unless(
            capabilities.len() <= CAPABILITIES,
            "spec.sandbox.capabilities",
            || "too many".into(),
        );
        for name in capabilities {
            let fine = name.strip_prefix("CAP_").is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
            });
            self.unless(fine, "spec.sandbox.capabilities", || {
                format!("'{name}' is no capability; write it as CAP_NET_RAW")
            });
        }
    }

    fn policies(&mut self, spec: &v1::AppSpec) {
        let waits = [
            ("spec.idle", &spec.idle),
            ("spec.cold_after", &spec.cold_after),
            ("spec.hold_timeout", &spec.hold_timeout),
        ];
        for (field, wait) in waits {
            let Some(kind) = wait.as_ref().and_then(|wait| wait.kind.as_ref()) else {
                continue;
            };
            if let v1::wait::Kind::After(after) = kind {
                let fine =
                    (0..=YEAR_SECONDS).contains(&after.seconds) && (0..1_000_000_000).contains(&after.nanos);
                self.unless(fine, field, || {
                    "write a duration from 0 to a year, or never".into()
                });
            }
        }
        let known = [
            ("spec.restart", v1::Restart::try_from(spec.restart).is_ok()),
            (
                "spec.after_crash",
                v1::AfterCrash::try_from(spec.after_crash).is_ok(),
            ),
            (
                "spec.wake_on_dns",
                v1::WakeOnDns::try_from(spec.wake_on_dns).is_ok(),
            ),
            ("spec.prefetch", v1::PrefetchMode::try_from(spec.prefetch).is_ok()),
            (
                "spec.connections",
                v1::Connections::try_from(spec.connections).is_ok(),
            ),
            ("spec.timers", v1::Timers::try_from(spec.timers).is_ok()),
        ];
        for (field, known) in known {
            self.unless(known, field, || "this hub does not know that value".into());
        }
    }

    fn waking(&mut self, spec: &v1::AppSpec) {
        let none = v1::WakeRules::default();
        let wake = spec.wake.as_ref().unwrap_or(&none);
        self.each("spec.wake.allow", &wake.allow, |text| text.parse::<Source>());
        self.each("spec.wake.deny", &wake.deny, |text| text.parse::<Source>());
        self.each("spec.wake.at", &wake.at, |text| text.parse::<Cron>());
        if !wake.rate.is_empty() {
            self.each("spec.wake.rate", std::slice::from_ref(&wake.rate), |text| {
                text.parse::<WakeRate>()
            });
        }
        let both = spec.timers() == v1::Timers::None && !wake.at.is_empty();
        self.unless(!both, "spec.timers", || {
            "none wakes it, and wake.at says when it is to wake; remove one of the two".into()
        });
        let from: Vec<String> = spec.probes.iter().map(|probe| probe.from.clone()).collect();
        self.each("spec.probes.from", &from, |text| text.parse::<Source>());
        for probe in spec.probes.iter().take(RULES) {
            let fine = probe.http == 0 || (200..=599).contains(&probe.http);
            self.unless(fine, "spec.probes.http", || {
                format!("{} is no status of a final answer: 200 to 599", probe.http)
            });
            self.unless(
                probe.http != 0 || probe.body.is_empty(),
                "spec.probes.body",
                || "without http nothing is said".into(),
            );
        }
    }

    fn each<T, E: std::fmt::Display>(
        &mut self,
        field: &str,
        texts: &[String],
        read: impl Fn(&str) -> Result<T, E>,
    ) {
        self.unless(texts.len() <= RULES, field, || {
            format!("it has {} entries, at most {RULES} are taken", texts.len())
        });
        for text in texts.iter().take(RULES) {
            if let Err(error) = read(text) {
                self.unless(false, field, || error.to_string());
            }
        }
    }
}

/// Changes of `spec` what `paths` name to what `new` has; all of it, but for the name, where they name nothing.
///
/// # Errors
/// The paths that name no field, or one that cannot be changed.
pub fn merge(spec: &v1::AppSpec, new: v1::AppSpec, paths: &[String]) -> Result<v1::AppSpec, Faults> {
    let fixed = |field: &str| {
        (
            field.to_owned(),
            "an app keeps its name; create another".to_owned(),
        )
    };
    if paths.is_empty() {
        return if new.name.is_empty() || new.name == spec.name {
            Ok(v1::AppSpec {
                name: spec.name.clone(),
                ..new
            })
        } else {
            Err(vec![fixed("spec.name")])
        };
    }
    let (mut merged, mut faults) = (spec.clone(), Vec::new());
    for path in paths {
        match path.as_str() {
            "root" => merged.root.clone_from(&new.root),
            "command" => merged.command.clone_from(&new.command),
            "ports" => merged.ports.clone_from(&new.ports),
            "env" => merged.env.clone_from(&new.env),
            "user" => merged.user.clone_from(&new.user),
            "workdir" => merged.workdir.clone_from(&new.workdir),
            "hostname" => merged.hostname.clone_from(&new.hostname),
            "seed" => merged.seed.clone_from(&new.seed),
            "memory_bytes" => merged.memory_bytes = new.memory_bytes,
            "cpus" => merged.cpus = new.cpus,
            "pids" => merged.pids = new.pids,
            "idle" => merged.idle = new.idle,
            "cold_after" => merged.cold_after = new.cold_after,
            "restart" => merged.restart = new.restart,
            "after_crash" => merged.after_crash = new.after_crash,
            "sandbox" => merged.sandbox.clone_from(&new.sandbox),
            "wake_on_dns" => merged.wake_on_dns = new.wake_on_dns,
            "hold_timeout" => merged.hold_timeout = new.hold_timeout,
            "prefetch" => merged.prefetch = new.prefetch,
            "connections" => merged.connections = new.connections,
            "timers" => merged.timers = new.timers,
            "probes" => merged.probes.clone_from(&new.probes),
            "wake" => merged.wake.clone_from(&new.wake),
            "wake.allow" => rules(&mut merged).allow = new.wake.clone().unwrap_or_default().allow,
            "wake.deny" => rules(&mut merged).deny = new.wake.clone().unwrap_or_default().deny,
            "wake.rate" => rules(&mut merged).rate = new.wake.clone().unwrap_or_default().rate,
            "wake.at" => rules(&mut merged).at = new.wake.clone().unwrap_or_default().at,
            "name" => faults.push(fixed("update_mask")),
            _ => faults.push(("update_mask".to_owned(), format!("a spec has no field '{path}'"))),
        }
    }
    if faults.is_empty() {
        Ok(merged)
    } else {
        Err(faults)
    }
}

fn rules(spec: &mut v1::AppSpec) -> &mut v1::WakeRules {
    spec.wake.get_or_insert_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn web() -> v1::AppSpec {
        v1::AppSpec {
            name: "web".into(),
            root: "host".into(),
            command: vec!["/usr/sbin/nginx".into()],
            ports: vec!["80/tcp".into(), "443/tcp".into()],
            ..v1::AppSpec::default()
        }
    }

    fn fields(spec: &v1::AppSpec) -> Vec<String> {
        faults("ann", spec).into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn a_plain_spec_has_no_faults() {
        assert_eq!(fields(&web()), [""; 0]);
    }

    #[test]
    fn every_fault_is_told_and_not_only_the_first() {
        let wrong = v1::AppSpec {
            name: "Web".into(),
            root: "relative".into(),
            command: Vec::new(),
            ports: vec!["80/tcp".into(), "80/tcp".into(), "x".into()],
            env: [("A=B".into(), String::new())].into(),
            workdir: "tmp".into(),
            memory_bytes: Some(1),
            cpus: Some(f64::NAN),
            pids: Some(0),
            restart: 99,
            sandbox: Some(v1::Sandbox {
                capabilities: vec!["net_raw".into()],
                ..v1::Sandbox::default()
            }),
            ..v1::AppSpec::default()
        };
        let told = fields(&wrong);
        for field in [
            "name",
            "root",
            "workdir",
            "command",
            "env",
            "ports",
            "memory_bytes",
            "cpus",
            "pids",
            "restart",
            "sandbox.capabilities",
        ] {
            assert!(told.contains(&format!("spec.{field}")), "{field} of {told:?}");
        }
        assert_eq!(told.iter().filter(|field| *field == "spec.ports").count(), 2);
    }

    #[test]
    fn who_wakes_an_app_and_when_is_read_before_it_is_taken() {
        let mut spec = web();
        spec.wake = Some(v1::WakeRules {
            allow: vec!["192.0.2.0/24".into(), "nobody".into()],
            deny: vec!["192.0.2.7".into()],
            rate: "6".into(),
            at: vec!["30 3 * * 1-5".into(), "30 24 * * *".into()],
        });
        spec.timers = v1::Timers::None.into();
        spec.probes = vec![v1::Probe {
            from: "192.0.2.9".into(),
            http: 99,
            body: String::new(),
        }];
        let told = fields(&spec);
        assert_eq!(
            told,
            [
                "spec.wake.allow",
                "spec.wake.at",
                "spec.wake.rate",
                "spec.timers",
                "spec.probes.http"
            ]
        );
    }

    #[test]
    fn one_rule_is_changed_without_the_others() {
        let mut spec = web();
        spec.wake = Some(v1::WakeRules {
            rate: "6/1m".into(),
            ..v1::WakeRules::default()
        });
        let new = v1::AppSpec {
            wake: Some(v1::WakeRules {
                at: vec!["0 4 * * *".into()],
                ..v1::WakeRules::default()
            }),
            ..v1::AppSpec::default()
        };
        let merged = merge(&spec, new, &["wake.at".into()]).unwrap();
        let wake = merged.wake.unwrap();
        assert_eq!((wake.rate.as_str(), wake.at.len()), ("6/1m", 1));
    }

    #[test]
    fn name_and_owner_fit_one_label_together() {
        let mut spec = web();
        spec.name = "n".repeat(59);
        assert_eq!(fields(&spec), [""; 0]);
        spec.name = "n".repeat(60);
        assert_eq!(fields(&spec), ["spec.name"]);
    }

    #[test]
    fn a_mask_changes_what_it_names_and_nothing_else() {
        let new = v1::AppSpec {
            ports: vec!["8080/tcp".into()],
            user: "www".into(),
            ..v1::AppSpec::default()
        };
        let merged = merge(&web(), new.clone(), &["ports".into()]).unwrap();
        assert_eq!(merged.ports, ["8080/tcp"]);
        assert_eq!((merged.user.as_str(), &merged.command), ("", &web().command));
        assert!(merge(&web(), new.clone(), &["name".into()]).is_err());
        assert!(merge(&web(), new.clone(), &["colour".into()]).is_err());
        assert_eq!(merge(&web(), new, &[]).unwrap().name, "web");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_check_fail_to_end(name in ".{0,80}", port in ".{0,20}", path in ".{0,40}") {
            let spec = v1::AppSpec {
                name,
                ports: vec![port],
                workdir: path,
                ..web()
            };
            let _ = faults("ann", &spec);
        }
    }
}
