//! The `[dns]` table of hub.toml: what may be written, and what is wrong with it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_server::proto::rr::Name;
use pico_proto::units::Wait;
use serde::{Deserialize, Serialize};

/// Longest zone, in bytes of its text, so that `_65535._tcp.LABEL.ZONE` fits a name.
const ZONE_BYTES: usize = 170;
/// RFC 2181 section 8.
const TTL_LIMIT: Duration = Duration::from_secs(1 << 31);

/// `[dns]`: the zone, where it is served, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// The zone; apps are `NAME-OWNER.ZONE`.
    pub zone: String,
    /// Addresses and ports, each for UDP and TCP. On a host with several addresses, name each: from `0.0.0.0` the
    /// answer's source is the kernel's choice.
    #[serde(default = "default_listen")]
    pub listen: Vec<SocketAddr>,
    /// Names of the zone's name servers, as its parent has them; the first is the primary one of the SOA.
    /// Default: `ns.ZONE`.
    #[serde(default)]
    pub nameservers: Vec<String>,
    /// Addresses of those name servers that lie in the zone itself.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Mail address of who answers for the zone. Default: `hostmaster@ZONE`.
    #[serde(default)]
    pub contact: Option<String>,
    /// Certificate authorities that may issue for the zone, as CAA `issue` records. Default: no CAA record.
    #[serde(default)]
    pub issuers: Vec<String>,
    /// How long resolvers keep what is said of apps, also that there is none. Short, so that a client that comes
    /// after a while asks again: that is when its app is told.
    #[serde(default = "default_ttl")]
    pub ttl: Wait,
    /// Answers a second over UDP to one client network (IPv4 /24, IPv6 /56); beyond it every second answer is
    /// truncated, so that a real client comes by TCP, and the others are left out. 0: no limit.
    #[serde(default = "default_rate")]
    pub answers_per_second: u32,
}

fn default_listen() -> Vec<SocketAddr> {
    vec![SocketAddr::from(([127, 0, 0, 1], 53))]
}

fn default_ttl() -> Wait {
    Wait::secs(5)
}

fn default_rate() -> u32 {
    500
}

/// A configuration whose texts have been read.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) apex: Name,
    pub(super) nameservers: Vec<Name>,
    pub(super) contact: Name,
    pub(super) issuers: Vec<Name>,
    /// In seconds.
    pub(super) ttl: u32,
}

impl DnsConfig {
    /// A configuration of a zone, with defaults for the rest.
    pub fn of_zone(zone: &str) -> Self {
        DnsConfig {
            zone: zone.to_owned(),
            listen: default_listen(),
            nameservers: Vec::new(),
            addresses: Vec::new(),
            contact: None,
            issuers: Vec::new(),
            ttl: default_ttl(),
            answers_per_second: default_rate(),
        }
    }

    /// All that is wrong, one sentence each; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        self.checked().err().unwrap_or_default()
    }

    pub(super) fn checked(&self) -> Result<Checked, Vec<String>> {
        let mut problems = Vec::new();
        let apex = keep(host_name(&self.zone), "zone", &mut problems);
        if self.zone.len() > ZONE_BYTES {
            problems.push(format!("zone is longer than {ZONE_BYTES} bytes"));
        }
        if self.listen.is_empty() {
            problems.push("listen is empty; try: listen = [\"127.0.0.1:53\"]".to_owned());
        }
        let ttl = self.seconds(&mut problems);
        let apex = apex.unwrap_or_default();
        let nameservers = self.read_nameservers(&apex, &mut problems);
        let contact = keep(self.contact_name(), "contact", &mut problems).unwrap_or_default();
        let issuers = self
            .issuers
            .iter()
            .filter_map(|issuer| keep(host_name(issuer), "issuers", &mut problems))
            .collect();
        match problems.is_empty() {
            true => Ok(Checked {
                apex,
                nameservers,
                contact,
                issuers,
                ttl,
            }),
            false => Err(problems),
        }
    }

    fn seconds(&self, problems: &mut Vec<String>) -> u32 {
        match self.ttl {
            Wait::After(ttl) if ttl < TTL_LIMIT && ttl.subsec_nanos() == 0 => {
                u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)
            }
            ttl => {
                problems.push(format!("ttl {ttl} is not a number of seconds; try: ttl = \"5s\""));
                0
            }
        }
    }

    fn read_nameservers(&self, apex: &Name, problems: &mut Vec<String>) -> Vec<Name> {
        let default = [format!("ns.{}", self.zone)];
        let given: &[String] = match self.nameservers.is_empty() {
            true => &default,
            false => &self.nameservers,
        };
        let mut names = Vec::new();
        for text in given {
            let Some(name) = keep(host_name(text), "nameservers", problems) else {
                continue;
            };
            let labels = name.iter().len().saturating_sub(apex.iter().len());
            let inside = apex.zone_of(&name);
            if inside && labels == 0 {
                problems.push(format!("nameservers: {text} is the zone itself; try: ns.{text}"));
            } else if inside
                && name
                    .iter()
                    .nth(labels - 1)
                    .is_some_and(|label| label.contains(&b'-'))
            {
                problems.push(format!(
                    "nameservers: {text} could be an app's name; try: a name without a hyphen, ns.{}",
                    self.zone
                ));
            } else {
                names.push(name);
            }
        }
        names
    }

    /// RFC 1035 section 8: the part before the @ is the first label.
    fn contact_name(&self) -> Result<Name, String> {
        let default = format!("hostmaster@{}", self.zone);
        let contact = self.contact.as_deref().unwrap_or(&default);
        let wrong = || format!("'{contact}' is not a mail address; try: hostmaster@example.com");
        let (user, host) = contact.split_once('@').ok_or_else(wrong)?;
        host_name(host)?
            .prepend_label(user.as_bytes())
            .map_err(|_| wrong())
    }
}

fn keep(read: Result<Name, String>, key: &str, problems: &mut Vec<String>) -> Option<Name> {
    read.map_err(|problem| problems.push(format!("{key}: {problem}")))
        .ok()
}

/// Letters, digits and inner hyphens in each label, and at least one label.
fn host_name(text: &str) -> Result<Name, String> {
    let label_is_fine = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let wrong = || format!("'{text}' is not a domain name; try: apps.example.com");
    let trimmed = text.strip_suffix('.').unwrap_or(text);
    if !trimmed.split('.').all(label_is_fine) {
        return Err(wrong());
    }
    let mut name = Name::from_ascii(trimmed.to_ascii_lowercase()).map_err(|_| wrong())?;
    name.set_fqdn(true);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_alone_is_enough() {
        let config: DnsConfig = toml::from_str("zone = \"Pico.Example.\"").unwrap();
        assert_eq!(
            config,
            DnsConfig {
                zone: "Pico.Example.".to_owned(),
                ..DnsConfig::of_zone("")
            }
        );
        let checked = config.checked().unwrap();
        assert_eq!(checked.apex.to_string(), "pico.example.");
        assert_eq!(checked.nameservers[0].to_string(), "ns.pico.example.");
        assert_eq!(checked.contact.to_string(), "hostmaster.pico.example.");
        assert_eq!(checked.ttl, 5);
    }

    #[test]
    fn all_problems_are_told_at_once_and_say_what_to_do() {
        let config = DnsConfig {
            listen: vec![],
            nameservers: vec![
                "ns-1.pico.example".to_owned(),
                "pico.example".to_owned(),
                "a b".to_owned(),
            ],
            contact: Some("nobody".to_owned()),
            issuers: vec!["-".to_owned()],
            ttl: Wait::Never,
            ..DnsConfig::of_zone("pico.example")
        };
        let problems = config.problems();
        assert_eq!(problems.len(), 7, "{problems:#?}");
        assert!(
            problems.iter().all(|problem| problem.contains("; try: ")),
            "{problems:#?}"
        );
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for zone in [
            "",
            ".",
            "a..b",
            "under_score.example",
            "-a.example",
            &"a".repeat(64),
            &"a.".repeat(120),
        ] {
            assert!(!DnsConfig::of_zone(zone).problems().is_empty(), "{zone}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<DnsConfig>("zone = \"a.example\"\ntt1 = \"5s\"").is_err());
    }
}
